"""Reads shapes, colours, sizes and places off the pixels and compares them with a caption.

Nothing here is learned and nothing may be trained on it: it is what catches a generator that pleases a reward without
doing what the caption says.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import ndimage

from prompts.shapes.grammar import BACKGROUNDS, COLOURS, SHAPES, parse
from prompts.shapes.renderer import AREA, BACKGROUND_LEVEL, PALETTE, RADIUS, RESOLUTION, ROTATION, coverage

#: What `verify` checks, each a yes or no. `correct` is all of the others at once.
FACTS = ("background", "count", "colour", "shape", "size", "relation", "correct")
CONTRAST = 0.18  # least distance of a foreground pixel from the background, in RGB units
MIN_AREA = 10.0  # pixels; a smaller speck is dirt
MAX_DIRT = 6.0  # pixels of such specks that a correct image may hold
MIN_OVERLAP = 0.72  # intersection over union with the nearest ideal shape, or it is no shape
MIN_COLOUR = 0.9  # cosine to the nearest palette colour, both seen from mid-grey, or it is no colour
SIZE_THRESHOLD = (RADIUS["small"][1] + RADIUS["large"][0]) / 2  # radius in pixels


@dataclass(frozen=True, kw_only=True)
class Found:
    """An object read off an image: centre and radius in pixels; colour and shape None where they are no known ones."""

    x: float
    y: float
    radius: float
    colour: str | None
    shape: str | None


def _nearest_colour(rgb: np.ndarray) -> str | None:
    # Mixing with mid-grey, which is what the renderer's vividness does, keeps the direction seen from mid-grey.
    palette = np.array([PALETTE[c] for c in COLOURS]) - 0.5
    seen = rgb - 0.5
    cosine = palette @ seen / (np.linalg.norm(palette, axis=1) * max(float(np.linalg.norm(seen)), 1e-6))
    best = int(cosine.argmax())
    return COLOURS[best] if cosine[best] >= MIN_COLOUR else None


def _nearest_shape(cover: np.ndarray, x: float, y: float, area: float) -> tuple[str | None, float]:
    kinds, angles = range(len(SHAPES)), (-ROTATION, -ROTATION / 2, 0.0, ROTATION / 2, ROTATION)
    kind = np.array([k for k in kinds for _ in angles])
    angle = np.array([a for _ in kinds for a in angles])
    radius = np.sqrt(area / np.array([AREA[SHAPES[k]] for k in kind]))
    ideal = coverage(kind, np.full(len(kind), x), np.full(len(kind), y), radius, angle)
    overlap = np.minimum(ideal, cover).sum((1, 2)) / np.maximum(ideal, cover).sum((1, 2))
    best = int(overlap.argmax())
    return (SHAPES[kind[best]] if overlap[best] >= MIN_OVERLAP else None), float(radius[best])


def read(image: np.ndarray) -> tuple[str, tuple[Found, ...], float]:
    """What one image `[3, 32, 32]`, float in [0, 1], shows: its background, its objects, and pixels of dirt."""
    if image.shape != (3, RESOLUTION, RESOLUTION):
        raise ValueError(f"the oracle reads images of shape (3, {RESOLUTION}, {RESOLUTION}), got {image.shape}")
    return _read(image.tobytes(), image.dtype.str)


@lru_cache(1024)  # three scorers read the same images
def _read(content: bytes, dtype: str) -> tuple[str, tuple[Found, ...], float]:
    pixels = np.frombuffer(content, dtype).reshape(3, RESOLUTION, RESOLUTION).transpose(1, 2, 0)
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    ground = np.median(border, axis=0)
    background = min(BACKGROUNDS, key=lambda b: float(np.abs(ground - BACKGROUND_LEVEL[b]).sum()))
    distance = np.linalg.norm(pixels - ground, axis=2)
    labels, n = ndimage.label(distance > CONTRAST)
    objects, dirt = [], 0.0
    for k in range(1, n + 1):
        core = labels == k
        if core.sum() < MIN_AREA:
            dirt += float(core.sum())
            continue
        # The colour is that of the pixels furthest from the background: the rest are edges.
        colour = np.median(pixels[core & (distance >= np.quantile(distance[core], 0.6))], axis=0)
        region = ndimage.binary_dilation(core, iterations=1) & ((labels == 0) | core)
        direction = colour - ground
        cover = np.clip((pixels - ground) @ direction / (direction @ direction), 0, 1) * region
        area = float(cover.sum())
        rows, columns = np.mgrid[:RESOLUTION, :RESOLUTION] + 0.5
        x, y = float((cover * columns).sum() / area), float((cover * rows).sum() / area)
        shape, radius = _nearest_shape(cover, x, y, area)
        objects.append(Found(x=x, y=y, radius=radius, colour=_nearest_colour(colour), shape=shape))
    return background, tuple(objects), dirt


def _holds(relation: str, a: Found, b: Found) -> bool:
    dx, dy = a.x - b.x, a.y - b.y
    along, across = (dx, dy) if relation in ("left of", "right of") else (dy, dx)
    return (along > 0) == (relation in ("right of", "below")) and abs(along) > abs(across)


def verify(image: np.ndarray, caption: str) -> dict[str, bool]:
    """Which of the caption's FACTS hold in an image `[3, 32, 32]`, float in [0, 1].

    Objects are matched to the caption by colour first, then by shape. A fact about objects that are not all there is
    False; a fact the caption does not state (a relation, a size) is True.
    """
    scene = parse(caption)
    background, objects, dirt = read(image)
    facts = {
        "background": background == scene.background,
        "count": len(objects) == len(scene.objects) and dirt <= MAX_DIRT,
    }
    pool, matched = list(objects), []
    for thing in scene.objects:
        best = max(pool, key=lambda f: 2 * (f.colour == thing.colour) + (f.shape == thing.shape), default=None)
        if best is not None:
            pool.remove(best)
            matched.append((thing, best))
    complete = len(matched) == len(scene.objects)
    facts["colour"] = complete and all(f.colour == t.colour for t, f in matched)
    facts["shape"] = complete and all(f.shape == t.shape for t, f in matched)
    facts["size"] = complete and all(
        t.size in (None, "large" if f.radius > SIZE_THRESHOLD else "small") for t, f in matched
    )
    facts["relation"] = complete and (not scene.relation or _holds(scene.relation, matched[0][1], matched[1][1]))
    return facts | {"correct": all(facts.values())}


def accuracy(images: np.ndarray, captions: Sequence[str]) -> dict[str, float]:
    """The share of images `[B, 3, 32, 32]` in which each of the FACTS holds."""
    rows = [verify(image, caption) for image, caption in zip(images, captions, strict=True)]
    return {fact: float(np.mean([row[fact] for row in rows])) for fact in FACTS}
