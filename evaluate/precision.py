"""The precisions that commands take by name, and the least that scores are taken in."""

import torch
from torch import Tensor

from prompts.io.errors import UserError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    """What `--dtype` names. Raises UserError for anything else."""
    if name not in DTYPES:
        raise UserError(f"--dtype {name}: unknown; choose {', '.join(DTYPES)}")
    return DTYPES[name]


def drawn_in(recipe_dtype: str | None, device: str) -> str:
    """What a model is drawn in where nobody says: on a GPU what its recipe was published with, else float32."""
    return recipe_dtype if recipe_dtype and device.startswith("cuda") else "fp32"


def at_least_fp32(x: Tensor) -> Tensor:
    """As it is, or from half precision in float32: what a cosine or a probability is taken in."""
    return x if x.dtype.itemsize >= 4 else x.float()
