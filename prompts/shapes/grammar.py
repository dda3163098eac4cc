"""Captions of the world `shapes`: three families, each split into compositions to train on and compositions held out,
and these in two halves: `validation` to tune and to watch by, `test` for tables alone.

one    "a small red circle on a white background"
count  "two blue squares on a grey background"
pair   "a small red circle left of a large blue square on a black background"
"""

import functools
import hashlib
import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

SIZES = ("small", "large")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")
SHAPES = ("circle", "square", "triangle")
BACKGROUNDS = ("white", "black", "grey")
RELATIONS = ("left of", "right of", "above", "below")
COUNTS = {"two": 2, "three": 3}
FAMILIES = ("one", "count", "pair")
#: Share of each family's captions that no training ever sees.
HELD_OUT = 0.2
#: How often each family is drawn by `sample_captions`.
MIX = {"one": 0.3, "count": 0.2, "pair": 0.5}

Split = Literal["train", "validation", "test"]


@dataclass(frozen=True, kw_only=True)
class Object:
    """One thing a caption names. `size` is None where the caption leaves it open (the family `count`)."""

    colour: str
    shape: str
    size: str | None = None

    def __str__(self) -> str:
        return " ".join(filter(None, ("a", self.size, self.colour, self.shape)))


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a caption says. `relation` places the first of two objects relative to the second."""

    objects: tuple[Object, ...]
    background: str
    relation: str | None = None

    @property
    def family(self) -> str:
        """One of FAMILIES."""
        return "one" if len(self.objects) == 1 else "pair" if self.relation else "count"

    @property
    def caption(self) -> str:
        """The sentence that says it."""
        first = self.objects[0]
        match self.family:
            case "one":
                subject = f"{first}"
            case "count":
                number = {n: word for word, n in COUNTS.items()}[len(self.objects)]
                subject = f"{number} {first.colour} {first.shape}s"
            case _:
                subject = f"{first} {self.relation} {self.objects[1]}"
        return f"{subject} on a {self.background} background"


@functools.cache
def _scenes() -> dict[str, Scene]:
    sized = [Object(size=s, colour=c, shape=h) for s, c, h in itertools.product(SIZES, COLOURS, SHAPES)]
    unsized = [Object(colour=c, shape=h) for c, h in itertools.product(COLOURS, SHAPES)]
    scenes = [Scene(objects=(o,), background=b) for o, b in itertools.product(sized, BACKGROUNDS)]
    scenes += [
        Scene(objects=(o,) * n, background=b) for o, n, b in itertools.product(unsized, COUNTS.values(), BACKGROUNDS)
    ]
    scenes += [
        Scene(objects=(a, o), relation=r, background=b)
        for a, o, r, b in itertools.product(sized, sized, RELATIONS, BACKGROUNDS)
        if a.colour != o.colour
    ]
    return {scene.caption: scene for scene in scenes}


def parse(caption: str) -> Scene:
    """The scene a caption describes. Raises ValueError for a sentence outside the grammar."""
    try:
        return _scenes()[caption]
    except KeyError:
        raise ValueError(
            f"{caption!r} is not a caption of the world 'shapes'; write it like {next(iter(_scenes()))!r}"
        ) from None


@functools.cache
def captions(split: Split, family: str) -> tuple[str, ...]:
    """All captions of one family and split, in an order fixed for good.

    The halves of what is held out are told apart by hash.
    """
    if split not in get_args(Split) or family not in FAMILIES:
        raise ValueError(
            f"no captions for split {split!r}, family {family!r}; splits: {get_args(Split)}; families: {FAMILIES}"
        )
    members = [caption for caption, scene in _scenes().items() if scene.family == family]
    random.Random(f"shapes/{family}").shuffle(members)
    held_out = round(HELD_OUT * len(members))
    if split == "train":
        return tuple(members[held_out:])
    hashed = sorted(members[:held_out], key=lambda caption: hashlib.sha256(caption.encode()).digest())
    half = held_out // 2
    return tuple(hashed[:half] if split == "validation" else hashed[half:])


def sample_captions(
    n: int, *, split: Split, seed: int, family: str | None = None, mix: Mapping[str, float] = MIX
) -> list[str]:
    """`n` captions drawn with replacement, families in the proportions of `mix` unless one is named."""
    rng = random.Random(f"shapes/{split}/{seed}")
    families = [family] * n if family else rng.choices(list(mix), weights=list(mix.values()), k=n)
    return [rng.choice(captions(split, f)) for f in families]


def edited(caption: str, rng: random.Random) -> str:
    """Another training caption that says the same but for one thing: a size, a colour, a shape, the number, the
    relation, the background.

    The same caption where `rng` finds no such one that is trained on.
    """
    scene = parse(caption)
    things, counted = scene.objects, scene.family == "count"
    parts = {"colour": COLOURS, "shape": SHAPES} | ({} if counted else {"size": SIZES})
    what = ["background", *parts, *(["relation"] if scene.relation else []), *(["count"] if counted else [])]
    for _ in range(8):
        match rng.choice(what):
            case "background":
                other = replace(scene, background=rng.choice(BACKGROUNDS))
            case "relation":
                other = replace(scene, relation=rng.choice(RELATIONS))
            case "count":
                other = replace(scene, objects=things[:1] * rng.choice(list(COUNTS.values())))
            case part:
                which, value = rng.randrange(len(things)), rng.choice(parts[part])
                # Objects that are counted are all of one kind.
                changed = (
                    replace(thing, **{part: value}) if counted or i == which else thing
                    for i, thing in enumerate(things)
                )
                other = replace(scene, objects=tuple(changed))
        if other.caption != caption and other.caption in _trained():
            return other.caption
    return caption


@functools.cache
def _trained() -> frozenset[str]:
    return frozenset(caption for family in FAMILIES for caption in captions("train", family))
