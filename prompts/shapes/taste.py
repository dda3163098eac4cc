"""The stated rule that labels preference pairs, and that reward models can be held to: first, more of the
caption's facts; then, more vivid colours. It is to this world what people are to the real one; nothing is
trained on it but through pairs.
"""

import numpy as np

from prompts.shapes.oracle import FACTS, verify

COLOURED = 0.2  # least spread over the channels of a pixel that counts as coloured
TIE = 0.01  # least difference in vividness that is a preference, among images of as many facts


def vividness(image: np.ndarray) -> float:
    """Mean spread over the colour channels of the coloured pixels of an image `[3, 32,
    32]`, in [0, 1]; 0 without any.
    """
    spread = image.max(0) - image.min(0)
    coloured = spread > COLOURED
    return float(spread[coloured].mean()) if coloured.any() else 0.0


def facts(image: np.ndarray, caption: str) -> int:
    """How many of the caption's facts, 0 to 6, are read off an image `[3, 32, 32]`, float in [0, 1]."""
    holds = verify(image, caption)
    return sum(holds[fact] for fact in FACTS if fact != "correct")


def rule(image: np.ndarray, caption: str) -> float:
    """Facts plus half the vividness, 0 to 6.5: a fact always outweighs colours."""
    return facts(image, caption) + vividness(image) / 2


def preference(a: np.ndarray, b: np.ndarray, caption: str) -> int:
    """1 where the rule prefers image `b` to image `a`, -1 where it prefers `a`, 0 where it is a tie."""
    difference = facts(b, caption) - facts(a, caption) or _beyond(vividness(b) - vividness(a))
    return int(np.sign(difference))


def _beyond(difference: float) -> float:
    return difference if abs(difference) >= TIE else 0.0
