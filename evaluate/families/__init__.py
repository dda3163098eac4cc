"""How a family's network becomes a denoiser: what it is conditioned on, its null prompt, and how it is called.

A file here is a family. Nothing else in the code knows one. The tests hold it against stock diffusers where `tests/tiny_families.py` makes
a tiny pipeline of it, and else skip it by name. It has

- `network`, the name of the network among the parts of a diffusers pipeline;
- `arguments`, what stock diffusers' call is told so that it conditions the network as `encode` does;
- `tiny_vae`, a tiny autoencoder of the same latents on the hub, where there is one;
- `encode(pipeline, prompts)`, everything the network is told of a prompt: a dict of tensors with a row `[B, ...]` for each.
  It depends on nothing else, so rows can be kept and mixed;
- `null(pipeline)`, the same for the null prompt, `[1, ...]`;
- `call(network, x, t, conditioning, pixels)`, the network's raw output for latents x `[B, C, H, W]`, already scaled as it
  expects them, timesteps t `[B]`, and rows of `encode` or `null`. What follows from the latents alone, such as the image's
  size, is found here; pixels: of the image along each side of a latent's, as the pipeline's autoencoder has it.
"""

from typing import Any

from prompts import extensions

__path__ = extensions.extended(__path__, "families")


def names() -> list[str]:
    """The families there are."""
    return extensions.names(__name__)


def load(name: str) -> Any:
    """The module of the family `name`; UserError where there is none."""
    return extensions.member(__name__, name, what="family")
