"""The precisions that commands take by name."""

import torch

from prompts.io.errors import UserError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def dtype_of(name: str) -> torch.dtype:
    """What `--dtype` names. Raises UserError for anything else."""
    if name not in DTYPES:
        raise UserError(f"--dtype {name}: unknown; choose {', '.join(DTYPES)}")
    return DTYPES[name]
