"""Held-out captions of the embedded world `shapes`, drawn with replacement in its mix of families; grouped by family."""

from collections.abc import Iterator

from prompts.shapes import parse, sample_captions

N = 512
SOURCE = "prompts/shapes"
LICENCE = "Apache-2.0"


def prompts() -> Iterator[tuple[str, dict[str, str]]]:
    """Independent draws, so that a mean's standard error is that of the mix."""
    for caption in sample_captions(N, split="test", seed=0):
        yield caption, {"family": parse(caption).family}
