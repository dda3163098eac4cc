"""The stated rule that labels preference pairs: first, more of the caption's facts; then, more vivid colours."""

import numpy as np

from prompts.shapes.oracle import FACTS, verify

COLOURED = 0.2  # least spread over the channels of a pixel that counts as coloured


def vividness(picture: np.ndarray) -> float:
    """Mean spread over the colour channels of the coloured pixels of a picture `[3, 32, 32]`, in [0, 1]; 0 without any."""
    spread = picture.max(0) - picture.min(0)
    coloured = spread > COLOURED
    return float(spread[coloured].mean()) if coloured.any() else 0.0


def preferred(a: np.ndarray, b: np.ndarray, caption: str) -> bool:
    """Whether the rule prefers picture `b` to picture `a`, both `[3, 32, 32]`, float in [0, 1]."""
    first, second = (
        (sum(verify(picture, caption)[fact] for fact in FACTS if fact != "correct"), vividness(picture)) for picture in (a, b)
    )
    return second > first
