"""Generators of a few steps: against stock diffusers, and in closed form."""

import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_families
import torch
from oracles import Gaussian, Mixture, normal_grid
from scipy import optimize
from tiny import SMALL_RUN
from torch import Tensor

from align.config.train import TrainConfig
from align.export.lora import lora_recipe
from align.generators.few_step import FewStep, FewStepOptions
from align.generators.one_step import OneStep
from align.networks.preconditioning import Preconditioning
from align.objectives.kl import ikl_loss
from align.objectives.score_divergence import score_divergence_loss
from evaluate import families
from evaluate.pipelines.recipe import Recipe
from prompts.io.errors import UserError
from prompts.io.validate import validate

PROMPTS = ["a small red circle", "Nothing of the grammar, at all!", ""]
#: eta and input_scale of each stock scheduler's way -> sigma_init and further levels.
WAYS = {
    ("LCMScheduler", 1.0, "unit_variance"): (9.0, (4.0, 1.5, 0.5)),
    ("EulerDiscreteScheduler", 0.0, "sigma_init"): (9.0, (4.0, 1.5, 0.5)),
    ("EulerDiscreteScheduler", 0.0, "unit_variance"): (9.0, (4.0, 1.5, 0.5)),
}


def make(kind: Any, family: str, pipeline: Any, **options: Any) -> Any:
    name = "one_step" if kind is OneStep else "few_step"
    config = validate(TrainConfig, SMALL_RUN | {"reference": "a/b", "generator": {"name": name} | options}, "test")
    preconditioning = Preconditioning(families.load(family), pipeline, nullcontext, source="a/b")
    return kind(config.generator, preconditioning, source="a/b")


def batch_of(family: str, pipeline: Any, noise: dict[str, Tensor], number: int | None = None) -> Any:
    cond = families.load(family).encode(pipeline, PROMPTS)
    return SimpleNamespace(cond=cond, noise=noise.__getitem__, number=number, seed=5)


def normal(seed: int) -> Tensor:
    return torch.randn(len(PROMPTS), 4, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way[0]}-{way[2]}")
@pytest.mark.parametrize("family", tiny_families.FAMILIES)
def test_four_steps_are_stock_diffusers(stock: dict[str, Any], family: str, way: tuple[str, float, str]) -> None:
    scheduler_name, eta, scale = way
    first, rest = WAYS[way]
    pipeline = stock[family]
    generator = make(FewStep, family, pipeline, sigma_init=first, levels=rest, eta=eta, input_scale=scale)
    fresh = [torch.Generator().manual_seed(100 + i) for i in range(len(PROMPTS))]
    noise = {"z": normal(3)} | {
        f"step/{j}": torch.cat([torch.randn(1, 4, 8, 8, generator=each) for each in fresh]) for j in (1, 2, 3)
    }
    with torch.no_grad():
        ours = generator.sample(getattr(pipeline, families.load(family).network), batch_of(family, pipeline, noise))
    scheduler, recipe = generator.export(pipeline.scheduler)
    assert type(scheduler).__name__ == scheduler_name and recipe["steps"] == 4
    kept, pipeline.scheduler = pipeline.scheduler, scheduler
    try:
        theirs = pipeline(
            PROMPTS,
            latents=noise["z"],
            generator=[torch.Generator().manual_seed(100 + i) for i in range(len(PROMPTS))],
            output_type="latent",
            height=8 * pipeline.vae_scale_factor,
            width=8 * pipeline.vae_scale_factor,
            timesteps=recipe["timesteps"],
            guidance_scale=recipe["guidance_scale"],
            **tiny_families.OPTIONS.get(family, {}),
        ).images
    finally:
        pipeline.scheduler = kept
    assert (ours - theirs).abs().max() < 1e-4
    assert (ours - noise["z"]).abs().max() > 0.1


def test_one_level_is_one_step_to_the_bit(stock: dict[str, Any]) -> None:
    pipeline = stock["sd15"]
    z = {"z": normal(3)}
    for scale in ("sigma_init", "unit_variance"):
        one = make(OneStep, "sd15", pipeline, input_scale=scale)
        few = make(FewStep, "sd15", pipeline, input_scale=scale, levels=())
        with torch.no_grad():
            a, b = (each.sample(pipeline.unet, batch_of("sd15", pipeline, z, 7)) for each in (one, few))
        assert a.equal(b)
        (mine, recipe), (theirs, other) = (each.export(pipeline.scheduler) for each in (few, one))
        assert recipe == other and mine.config == theirs.config


def test_the_step_is_drawn_by_seed_and_number_and_alone_has_a_graph(stock: dict[str, Any]) -> None:
    pipeline = stock["sd15"]
    generator = make(FewStep, "sd15", pipeline, sigma_init=9.0, levels=(2.0,), input_scale="unit_variance")
    drawn = [generator.step_of(number, 5) for number in range(400)]
    assert drawn == [generator.step_of(number, 5) for number in range(400)]
    assert drawn != [generator.step_of(number, 6) for number in range(400)]
    assert 150 < sum(drawn) < 250
    assert generator.step_of(None, 5) == 1
    calls: list[bool] = []

    def network(*args: Any, **options: Any) -> Any:
        calls.append(torch.is_grad_enabled())
        return pipeline.unet(*args, **options)

    noise = {"z": normal(3), "step/1": normal(4)}
    for number in (drawn.index(0), drawn.index(1)):
        calls.clear()
        generator.sample(network, batch_of("sd15", pipeline, noise, number))
        assert calls == [False] * drawn[number] + [True]


@pytest.mark.parametrize(("losses_at", "rewards"), [("own", "last"), ("all", "all")])
def test_losses_and_rewards_are_those_of_the_step(stock: dict[str, Any], losses_at: str, rewards: str) -> None:
    options = {"sigma_init": 9.0, "levels": (4.0, 1.5), "eta": 0.0, "losses_at": losses_at, "rewards": rewards}
    generator = make(FewStep, "sd15", stock["sd15"], **options)
    first, second, third = generator.levels
    for number in range(60):
        step = generator.step_of(number, 5)
        own = ((second, math.inf), (third, second), (0.0, third))[step]
        assert generator.interval(number, 5) == (own if losses_at == "own" else (0.0, math.inf))
        batch: Any = SimpleNamespace(number=number, seed=5)
        assert generator.is_rewarded(batch) == (rewards == "all" or step == 2)
    assert first > second > third


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"levels": [3.0]}, "generator.levels: 3 follows 2.5; let them fall from sigma_init on"),
        ({"levels": [2.0, 2.0]}, "2 follows 2"),
        ({"levels": [1.0], "eta": 0.5}, "generator.eta 0.5: no stock scheduler draws that; set it to 0 or 1"),
        ({"levels": [1.0]}, "generator.eta 1 takes input_scale unit_variance"),
        (
            {"levels": [0.001], "eta": 0.0},
            "generator.levels: 0.001 is outside the noise levels of a/b, 0.02917 to 14.61",
        ),
        ({"levels": [2.4999], "eta": 0.0}, "two of them are one noise level of a/b; set them further apart"),
        ({}, "'generator.levels' is missing"),
    ],
)
def test_what_cannot_be_drawn_is_refused(stock: dict[str, Any], options: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        make(FewStep, "sd15", stock["sd15"], **options)
    assert "\n" not in str(caught.value)


def test_a_lora_is_drawn_by_the_same_scheduler(tmp_path: Path) -> None:
    generator = {"name": "few_step", "levels": [0.5], "input_scale": "unit_variance"}
    recipe = Recipe(steps=2, timesteps=(625, 200), guidance_scale=1.0)
    run = {"sources": {"reference": "a/b", "pipeline": None, "initial": None}}
    for eta, expected in (
        (0.0, ("EulerDiscreteScheduler", {"timestep_spacing": "leading"})),
        (1.0, ("LCMScheduler", {"clip_sample": False})),
    ):
        config = validate(TrainConfig, SMALL_RUN | {"reference": "a/b", "generator": generator | {"eta": eta}}, "test")
        scheduler = lora_recipe(config, run, recipe, "unet", tmp_path).scheduler
        name, options = expected
        assert scheduler and scheduler.name == name and scheduler.options.items() >= options.items()


# ---- in closed form --------------------------------------------------------------------------------------------------

VARIANCE, SECOND, START = 1.7, 1.0, 3.0  # of the reference; the second step's noise level, and the first's
SIGMAS = (0.5, 1.0, 2.0)
LOSSES: dict[str, Callable[..., Tensor]] = {
    "ikl": ikl_loss,
    "pseudo-huber": partial(score_divergence_loss, distance="pseudo_huber", huber_c=0.5),
    "l2": partial(score_divergence_loss, distance="l2"),
    "detached": partial(score_divergence_loss, distance="l2", gradient="detached"),
}


class Linear:
    """What `FewStep` wants to know of a network that is `c_j x` at its j-th level."""

    prediction = "epsilon"
    holds = staticmethod(lambda sigma: True)
    snap = staticmethod(lambda sigma: sigma)

    def __init__(self, factors: dict[float, Tensor]):
        self.schedule, self.factors = self, factors

    def denoiser(self, network: Any, cond: Any) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, sigma: self.factors[sigma[0].item()] * x


def of_variance(*variances: float) -> Any:
    """The denoiser of a Gaussian around 0, or of a mixture of two in equal parts."""
    parts = tuple(Gaussian(torch.zeros(1).double(), torch.tensor([[v]]).double()) for v in variances)
    return (parts[0] if len(parts) == 1 else Mixture(torch.tensor([0.5, 0.5]).double(), parts)).denoiser


class Chain:
    """Two steps, `c_1` and `c_2`, on a grid of quadrature over z, the noise between steps, and the diffusion's."""

    def __init__(self) -> None:
        self.grid, self.probability = normal_grid(3, 16)
        options = FewStepOptions(sigma_init=START, levels=(SECOND,), input_scale="unit_variance")
        self.linear = Linear({})
        self.generator = FewStep(options, self.linear, source="test")  # type: ignore[arg-type]
        numbers = {self.generator.step_of(n, 0): n for n in range(20)}
        self.number = [numbers[0], numbers[1]]

    @property
    def k(self) -> float:
        return self.generator.k

    def x0(self, c: tuple[float, float], step: int) -> tuple[Tensor, Tensor]:
        """The images `[N, 1]` of a step, and the factor that they have a graph to."""
        factors = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in c]
        self.linear.factors = {START: factors[0], SECOND: factors[1]}
        noise = {"z": self.grid[:, :1], "step/1": self.grid[:, 1:2]}
        batch: Any = SimpleNamespace(cond={}, noise=noise.__getitem__, number=self.number[step], seed=0)
        return self.generator.sample(None, batch), factors[step]  # type: ignore[arg-type]

    def variance(self, c: tuple[float, float], step: int) -> float:
        return (self.probability * self.x0(c, step)[0][:, 0].square()).sum().item()

    def slope(
        self, loss: Callable[..., Tensor], c: tuple[float, float], step: int, assistant: Any, sigmas: Any
    ) -> float:
        """The gradient of the expected loss for the step's factor."""
        x0, factor = self.x0(c, step)
        total = torch.zeros(()).double()
        for value in sigmas:
            sigma = torch.full((len(x0),), value).double()
            losses = loss(x0, self.grid[:, 2:], sigma, assistant=assistant, reference=of_variance(VARIANCE))
            total = total + (self.probability * losses).sum()
        total.backward()  # type: ignore[no-untyped-call]
        assert factor.grad is not None
        return factor.grad.item()


@pytest.fixture(scope="module")
def chain() -> Chain:
    return Chain()


def root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that crosses 0 once between `low` and `high` is 0."""
    return float(optimize.brentq(function, low, high, xtol=1e-9))


@pytest.mark.parametrize("name", LOSSES)
def test_both_steps_end_at_the_references_spread(chain: Chain, name: str) -> None:
    c = (math.sqrt(VARIANCE) / chain.k, math.sqrt(VARIANCE / (VARIANCE + SECOND**2)))
    for step in (0, 1):
        assert chain.variance(c, step) == pytest.approx(VARIANCE, abs=1e-7)
        assert chain.slope(LOSSES[name], c, step, of_variance(VARIANCE), SIGMAS) == pytest.approx(0, abs=1e-7)
    mean = (c[0], VARIANCE / (VARIANCE + SECOND**2))  # what denoising would teach the second step
    spread = chain.variance(mean, 1)
    assert spread == pytest.approx(1.07, abs=0.005)
    assert chain.slope(LOSSES[name], mean, 1, of_variance(spread), SIGMAS) < -0.01


@pytest.mark.parametrize("name", LOSSES)
def test_the_second_step_makes_up_for_the_first_in_rollouts_alone(chain: Chain, name: str) -> None:
    first = 0.8 * math.sqrt(VARIANCE) / chain.k

    def slope(c2: float) -> float:
        c = (first, c2)
        return chain.slope(LOSSES[name], c, 1, of_variance(chain.variance(c, 1)), SIGMAS)

    c2 = root(slope, 0.5, 1.5)
    assert chain.variance((first, c2), 1) == pytest.approx(1.70, abs=1e-6)
    # Trained on noised data in place of what the first step makes, the second is the one for a perfect first.
    on_data = math.sqrt(VARIANCE / (VARIANCE + SECOND**2))
    assert chain.variance((first, on_data), 1) == pytest.approx(1.31, abs=0.005)
    assert slope(on_data) < -0.01


def test_an_assistant_that_is_not_told_the_step_has_the_second_make_up_for_the_first(chain: Chain) -> None:
    first = 0.8 * math.sqrt(VARIANCE) / chain.k

    def slope(c2: float) -> float:
        variances = (chain.variance((first, c2), 0), chain.variance((first, c2), 1))
        return chain.slope(ikl_loss, (first, c2), 1, of_variance(*variances), (1.0,))

    assert chain.variance((first, root(slope, 0.5, 1.5)), 1) == pytest.approx(2.25, abs=0.01)
