"""A sweep's options: its cells, what is measured of them, and what is claimed."""

import re
from collections import Counter
from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from align.options import Config
from prompts.io.validate import nearest

#: The cell that all others are compared with: what a sweep starts from, unchanged.
CENTRE = "centre"
#: Before a scorer's name: the share of images that it prefers to those of `Measure.over`.
WIN = "win/"
#: What else is in a sweep's folder: no cell can be called so.
TAKEN = ("baselines", "over.json")


class EqualReward(Config):
    """The claim that at equal reward, read off the curves, `better` is ahead of `than`. Both are curves,
    or one is a cell or a baseline.
    """

    better: str
    than: str
    metrics: tuple[str, ...] = Field((), description="where it is ahead; by default in every metric but the reward")


class LessStable(Config):
    """The claim that the cells `worse`, pooled, vary more over seeds than `than`, and are stopped more often."""

    worse: tuple[str, ...] = Field(min_length=1)
    than: tuple[str, ...] = Field(min_length=1)
    metrics: tuple[str, ...] = Field((), description="that vary more; by default all")

    @model_validator(mode="after")
    def _consistent(self) -> "LessStable":
        if len(self.worse) != len(self.than):
            raise ValueError(
                f"less_stable pairs {len(self.worse)} cells with {len(self.than)}; give each its counterpart"
            )
        return self


class Measure(Config):
    """What is measured of every finished run, on the same captions and the same noise."""

    prompts: str
    captions: PositiveInt
    images: PositiveInt = Field(2, description="of each caption")
    over: str | None = Field(None, description="the model that win/SCORER is over, ties counting half")
    over_seed: int | None = Field(
        None,
        ge=0,
        description=(
            "of its images' noise; by default that of the images themselves, with which the best of several of its own"
            " would meet itself"
        ),
    )
    metrics: dict[str, Literal["higher", "lower"]] = Field(
        min_length=2,
        description=(
            "scorer, win/SCORER or distribution metric -> which is better; the first is the reward, a scorer, over"
            " which the others are drawn"
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Measure":
        if any(name.startswith(WIN) for name in self.metrics) and not self.over:
            raise ValueError(f"{WIN}SCORER is a share of wins over a model; name it with measure.over")
        return self


class Baseline(Config):
    """What the runs of a sweep are compared with, without training: a model as it is, or the
    best of several of its images.
    """

    model: str
    best_of: PositiveInt = Field(
        1, description="images per caption, of which the one that the reward likes best is measured"
    )
    steps: PositiveInt | None = Field(None, description="in place of the model's own")
    guidance_scale: PositiveFloat | None = Field(None, description="in place of the model's own")


class SweepConfig(Config):
    """Stage `sweep`: runs of `align train` that differ from a centre in one thing each, several seeds of every one."""

    stage: Literal["sweep"]
    centre: str = Field(description="preset of 'align train', or a YAML file in its place")
    common: dict[str, Any] = Field(
        {}, description="laid over the centre in every cell; in a file over a sweep it replaces that sweep's whole"
    )
    cells: dict[str, dict[str, Any]] = Field(description="name -> what is laid over the centre")
    seeds: PositiveInt
    seeds_of: dict[str, PositiveInt] = Field({}, description="cell -> its seeds, where they are fewer")
    baselines: dict[str, Baseline] = Field({}, description="name -> what is measured without training")
    measure: Measure
    curves: dict[str, tuple[str, ...]] = Field(
        {}, description="name -> cells that differ in the reward's scale alone, or baselines"
    )
    equal_reward: tuple[EqualReward, ...] = ()
    less_stable: tuple[LessStable, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> "SweepConfig":
        for name in (*self.cells, *self.baselines):
            if name in (CENTRE, *TAKEN) or not re.fullmatch(r"[\w.+*-]*\w[\w.+*-]*", name):
                raise ValueError(
                    f"{name!r} cannot name a cell; choose letters, digits and + - . *, other than"
                    f" {', '.join(map(repr, (CENTRE, *TAKEN)))}"
                )
        names = Counter([CENTRE, *self.cells, *self.baselines, *self.curves])
        if twice := [name for name, n in names.items() if n > 1]:
            raise ValueError(f"{twice[0]!r} is the name of two among cells, baselines and curves; rename one")
        for name, seeds in self.seeds_of.items():
            if seeds > self.seeds:
                raise ValueError(
                    f"seeds_of.{name} = {seeds} is more than seeds = {self.seeds}; raise seeds, or lower it"
                )
        trained = [CENTRE, *self.cells]
        known = [*trained, *self.baselines]
        stable = [cell for claim in self.less_stable for cell in (*claim.worse, *claim.than)]
        claims: list[EqualReward | LessStable] = [*self.equal_reward, *self.less_stable]
        for name, choices in [
            *((name, known) for curve in self.curves.values() for name in curve),
            *((name, trained) for name in (*self.seeds_of, *stable)),
            *((name, [*self.curves, *known]) for claim in self.equal_reward for name in (claim.better, claim.than)),
            *((name, list(self.measure.metrics)) for claim in claims for name in claim.metrics),
        ]:
            if name not in choices:
                raise ValueError(
                    f"no {'metric' if choices == list(self.measure.metrics) else 'cell or curve'} {name!r};"
                    f" {nearest(name, choices)}"
                )
        reward = next(iter(self.measure.metrics))
        for claim in self.equal_reward:
            if reward in claim.metrics:
                raise ValueError(
                    f"equal_reward: {reward} is the reward, which is the same where it is equal; leave it out"
                )
            sides = [self.curves.get(name, (name,)) for name in (claim.better, claim.than)]
            if max(map(len, sides)) == 1:
                raise ValueError(
                    f"equal_reward: {claim.better} and {claim.than} are single cells; one side must be a curve"
                )
            if all(name in self.baselines for side in sides for name in side):
                raise ValueError(
                    f"equal_reward: {claim.better} and {claim.than} are baselines, which have no seeds; one must be"
                    " trained"
                )
        return self


#: Stage -> the model that validates it.
SWEEP: dict[str, type[Config]] = {"sweep": SweepConfig}
