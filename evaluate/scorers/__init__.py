"""Scorers: how well a picture suits its prompt, or a person's taste. One file here is one family of them.

A family's file declares `VARIANTS`, name -> what it is in a sentence, the first being the family's default, and `load(name,
weights)`, which returns a `Scorer`. The file's stem is the family's name. Nothing else has to be registered.
"""

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prompts.errors import UserError


class Scorer(nn.Module):
    """A picture and a prompt in, a number out; higher is better.

    protocol: name and version of what is computed. Numbers of different protocols are never compared.
    differentiable: whether float pictures receive a gradient, so that the scorer can be a reward.
    """

    protocol: str
    differentiable: ClassVar[bool] = True

    def score(self, images: Tensor | Sequence[Tensor], prompts: Sequence[str]) -> Tensor:
        """Scores `[B]`, float32, of pictures `[B, 3, H, W]`: float in [0, 1], or uint8. Pictures of mixed sizes come as a list."""
        if not isinstance(images, Tensor):
            return torch.cat([self.score(image[None], [prompt]) for image, prompt in zip(images, prompts, strict=True)])
        if len(images) != len(prompts):
            raise ValueError(f"{self.protocol}: {len(images)} pictures but {len(prompts)} prompts; give one prompt a picture")
        if images.dtype == torch.uint8:
            images = images.float() / 255
        return self.forward(images, prompts).float()

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores `[B]` of float pictures of one size; what a scorer implements."""
        raise NotImplementedError


def _families() -> dict[str, Any]:
    return {
        m.name: importlib.import_module(f"{__name__}.{m.name}")
        for m in pkgutil.iter_modules(__path__)
        if not m.name.startswith("_")
    }


def variants() -> dict[str, str]:
    """Every scorer's name and what it is."""
    return {name: text for family in _families().values() for name, text in family.VARIANTS.items()}


def load(name: str, *, device: Any = "cpu", dtype: torch.dtype = torch.float32, weights: str | None = None) -> Scorer:
    """The scorer called `name` (a variant, or a family for its default), frozen and in evaluation mode.

    weights: a local path in place of the scorer's own. Raises UserError for an unknown name.
    """
    families = _families()
    for stem, family in families.items():
        if name == stem:
            name = next(iter(family.VARIANTS))
        if name in family.VARIANTS:
            scorer: Scorer = family.load(name, weights)
            return scorer.to(device=device, dtype=dtype).eval().requires_grad_(False)
    raise UserError(f"no scorer {name!r}; there are {', '.join(variants())}")
