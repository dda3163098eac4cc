"""Captions of the embedded world `shapes` that nothing was trained, tuned or chosen
by, each once; grouped by family.
"""

from collections.abc import Iterator

from prompts.shapes import captions, parse
from prompts.shapes.grammar import FAMILIES

N = 1024
SOURCE = "prompts/shapes"
LICENCE = "Apache-2.0"
METRICS = ("shapes/oracle", "shapes/rule", "shapes/clip", "shapes/preference", "fd-shapes")


def prompts() -> Iterator[tuple[str, dict[str, str]]]:
    """All that show one thing or count, and as many pairs as make N, in the order of their hashes."""
    for caption in [caption for family in FAMILIES for caption in captions("test", family)][:N]:
        yield caption, {"family": parse(caption).family}
