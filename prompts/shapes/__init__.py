"""The world `shapes`: captions, images of them, and an oracle that reads captions' facts off pixels.

>>> from prompts.shapes import render, sample_captions
>>> captions = sample_captions(2, split="train", seed=0)
>>> render(captions, seed=0).shape
(2, 3, 32, 32)
"""

from prompts.shapes.grammar import BACKGROUNDS, COLOURS, SHAPES, Object, Scene, captions, parse, sample_captions
from prompts.shapes.oracle import FACTS, read, verify
from prompts.shapes.renderer import RESOLUTION, render

__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "FACTS",
    "RESOLUTION",
    "SHAPES",
    "Object",
    "Scene",
    "captions",
    "parse",
    "read",
    "render",
    "sample_captions",
    "verify",
]
