"""Draws what a caption says, jittered, so that every caption has a distribution of images.

Shapes are signed distance functions evaluated for a whole batch at once; coverage of a pixel is the distance clipped to
one pixel, which antialiases the edges.
"""

from collections.abc import Sequence

import numpy as np

from prompts.shapes.grammar import SHAPES, Scene, parse

RESOLUTION = 32
PALETTE = {
    "red": (0.90, 0.10, 0.10),
    "green": (0.10, 0.70, 0.15),
    "blue": (0.10, 0.25, 0.90),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.65, 0.10, 0.80),
    "cyan": (0.10, 0.80, 0.90),
}
BACKGROUND_LEVEL = {"white": 0.96, "black": 0.04, "grey": 0.5}
#: Radius in pixels, drawn uniformly. Sizes do not touch, so a size can be read back.
RADIUS = {"small": (3.0, 3.8), "large": (5.2, 6.2), None: (3.0, 4.2)}
#: Colours are mixed towards mid-grey by up to this much.
VIVIDNESS = (0.6, 1.0)
ROTATION = np.deg2rad(8.0)
GAP = 1.5  # least distance between two objects' boxes, pixels
MARGIN = 0.5  # least distance of a box to the edge, pixels
EXTENT = 1.15  # half a box's side, in radii, enough for every shape at every rotation
MAX_OBJECTS = 3
#: Half the side of a square and the circumradius of a triangle, in radii.
SQUARE, TRIANGLE = 0.9, 1.3
#: Area in squared radii.
AREA = {"circle": np.pi, "square": 4 * SQUARE**2, "triangle": 3 * np.sqrt(3) / 4 * TRIANGLE**2}


def coverage(
    shape: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray, angle: np.ndarray, resolution: int = RESOLUTION
) -> np.ndarray:
    """How much of each pixel each shape covers.

    shape: [N] index into SHAPES; x, y, radius: [N] in pixels; angle: [N] in radians. Returns [N,
    resolution, resolution] in [0, 1].
    """
    grid = np.arange(resolution, dtype=np.float32) + 0.5
    dx = grid[None, None, :] - x[:, None, None]
    dy = grid[None, :, None] - y[:, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    u, v, r = cos * dx + sin * dy, cos * dy - sin * dx, radius[:, None, None]
    circle = np.hypot(u, v) - r
    square = np.maximum(abs(u), abs(v)) - SQUARE * r
    # Half-planes of an equilateral triangle standing on its base, its centroid at the origin; y points down.
    inradius = TRIANGLE * r / 2
    triangle = np.maximum(v, abs(u) * np.sqrt(3) / 2 - v / 2) - inradius
    distance = np.choose(shape[:, None, None], [circle, square, triangle])
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def _place(scenes: Sequence[Scene], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres and radii `[B, MAX_OBJECTS]` in pixels, drawn again until nothing touches and relations hold."""
    n = len(scenes)
    bounds = np.ones((n, MAX_OBJECTS, 2))
    present = np.zeros((n, MAX_OBJECTS), bool)
    axis, sign = np.full(n, -1), np.zeros(n)  # the relation: sign * (first - second)[axis] > 0
    for i, scene in enumerate(scenes):
        for j, thing in enumerate(scene.objects):
            bounds[i, j], present[i, j] = RADIUS[thing.size], True
        if scene.relation:
            axis[i] = scene.relation in ("above", "below")
            sign[i] = 1 if scene.relation in ("right of", "below") else -1
    centre, radius = np.zeros((n, MAX_OBJECTS, 2)), np.ones((n, MAX_OBJECTS))
    todo = np.arange(n)
    while len(todo):
        r = rng.uniform(bounds[todo, :, 0], bounds[todo, :, 1])
        extent = EXTENT * r[..., None]
        c = rng.uniform(MARGIN + extent, RESOLUTION - MARGIN - extent, (len(todo), MAX_OBJECTS, 2))
        ok = np.ones(len(todo), bool)
        for a in range(MAX_OBJECTS):
            for b in range(a + 1, MAX_OBJECTS):
                apart = (abs(c[:, a] - c[:, b]) >= extent[:, a] + extent[:, b] + GAP).any(-1)
                ok &= apart | ~(present[todo, a] & present[todo, b])
        delta = c[:, 0] - c[:, 1]
        along = np.where(axis[todo] == 1, delta[:, 1], delta[:, 0])
        across = np.where(axis[todo] == 1, delta[:, 0], delta[:, 1])
        # The named direction dominates, so that 'left of' cannot also be read as 'above'.
        ok &= (axis[todo] < 0) | (along * sign[todo] > 1.5 * abs(across))
        centre[todo[ok]], radius[todo[ok]] = c[ok], r[ok]
        todo = todo[~ok]
    return centre, radius, present


def render(captions: Sequence[str], *, seed: int) -> np.ndarray:
    """Images `[B, 3, 32, 32]`, float32 in [0, 1], one per caption; the same arguments give the same images."""
    scenes = [parse(caption) for caption in captions]
    rng = np.random.default_rng(seed)
    centre, radius, present = _place(scenes, rng)
    n = len(scenes)
    level = np.array([BACKGROUND_LEVEL[s.background] for s in scenes])
    canvas = (level[:, None] + rng.uniform(-0.04, 0.04, (n, 1)))[:, :, None, None] * np.ones(
        (1, 3, RESOLUTION, RESOLUTION)
    )
    vividness = rng.uniform(*VIVIDNESS, (n, 1, 1))  # one light for the whole image
    angle = rng.uniform(-ROTATION, ROTATION, (n, MAX_OBJECTS))
    for j in range(MAX_OBJECTS):
        here = np.flatnonzero(present[:, j])
        things = [scenes[i].objects[j] for i in here]
        if not things:
            continue
        colour = np.array([PALETTE[t.colour] for t in things]) + rng.uniform(-0.03, 0.03, (len(here), 3))
        colour = 0.5 + vividness[here, 0] * (colour - 0.5)
        kind = np.array([SHAPES.index(t.shape) for t in things])
        mask = coverage(kind, centre[here, j, 0], centre[here, j, 1], radius[here, j], angle[here, j])[:, None]
        canvas[here] = canvas[here] * (1 - mask) + colour[:, :, None, None] * mask
    return np.clip(canvas, 0, 1).astype(np.float32)
