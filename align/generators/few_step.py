"""A few steps: from noise level to falling noise level, with what lies between them drawn as it will be when the
student is used (backward simulation, DMD2, arXiv 2405.14867 section 4.5).

With sigma_1 > ... > sigma_K and `x_1 = k z`, step j makes `x0_j = D(x_j, sigma_j, c)` and goes on from

    x_{j+1} = x0_j + sigma_{j+1} (cos(eta pi / 2) (x_j - x0_j) / sigma_j + sin(eta pi / 2) n_j)

so eta = 1 noises afresh, as a consistency model does, and eta = 0 is an Euler step. Training draws one step of each
batch, the same for all of its rows and on every process, and only that step has a gradient.
"""

import math
from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor, nn

from align.data.batches import Batch
from align.generators import AS_GIVEN, UNGUIDED, UNSHIFTED, GeneratorOptions
from align.generators.one_step import OneStep
from align.networks.preconditioning import Preconditioning
from evaluate import keyed
from prompts.io.errors import UserError


class FewStepOptions(GeneratorOptions):
    """levels: noise levels of the steps after the first, whose level is `sigma_init`, falling."""

    name: Literal["few_step"] = "few_step"
    levels: tuple[PositiveFloat, ...] = Field(description="of the steps after the first, falling from sigma_init")
    eta: float = Field(1.0, ge=0, le=1, description="1 noises afresh between steps, 0 is an Euler step")
    rewards: Literal["last", "all"] = Field("last", description="which steps' images rewards judge")
    losses_at: Literal["own", "all"] = Field(
        "own",
        description=(
            "noise levels of the losses: own, from the next step's level to the step's, the first's up to every "
            "higher one and the last's down to none; all, every one. With own the "
            "assistant meets one step's images alone at a noise level, so each step ends at the reference; with all it "
            "sees the mixture of all steps' images, and a later step makes up for what an earlier one lacks"
        ),
    )

    @model_validator(mode="after")
    def _consistent(self) -> "FewStepOptions":
        levels = (self.sigma_init, *self.levels)
        for before, after in pairwise(levels):
            if after >= before:
                raise ValueError(f"generator.levels: {after:g} follows {before:g}; let them fall from sigma_init on")
        if self.levels and self.eta not in (0.0, 1.0):
            raise ValueError(f"generator.eta {self.eta:g}: no stock scheduler draws that; set it to 0 or 1")
        if self.levels and self.eta == 1.0 and self.input_scale != "unit_variance":
            raise ValueError(
                "generator.eta 1 takes input_scale unit_variance, as LCMScheduler has it; set that, or eta 0"
            )
        return self

    def stock_scheduler(self, *, flow: bool) -> tuple[str, dict[str, Any], float]:
        """One step's, but for Euler steps from noise of unit variance, which is scaled by sqrt(sigma_max^2 + 1), and
        for a flow that is noised afresh.
        """
        if flow and self.levels and self.eta == 1:
            return "FlowMatchLCMScheduler", UNSHIFTED, UNGUIDED
        if not flow and self.levels and self.eta == 0 and self.input_scale == "unit_variance":
            return "EulerDiscreteScheduler", {"timestep_spacing": "leading", **AS_GIVEN}, 1.0
        return super().stock_scheduler(flow=flow)


class FewStep(OneStep):
    """Noise to latents in as many evaluations as there are levels; of one level, `OneStep` to the bit."""

    options: FewStepOptions

    def __init__(self, options: FewStepOptions, preconditioning: Preconditioning, *, source: str):
        """source: what to call the reference in an error."""
        super().__init__(options, preconditioning, source=source)
        schedule = preconditioning.schedule
        for sigma in options.levels:
            if not schedule.holds(sigma):
                raise UserError(
                    f"generator.levels: {sigma:g} is outside the noise levels of {source}, {schedule.sigma_min:.4g} to"
                    f" {schedule.sigma_max:.4g}; choose one between them"
                )
        self.levels = (self.sigma_init, *map(schedule.snap, options.levels))
        if len(set(self.levels)) < len(self.levels):
            raise UserError(f"generator.levels: two of them are one noise level of {source}; set them further apart")

    def step_of(self, number: int | None, seed: int) -> int:
        """Which step, from 0, a global batch trains: drawn by (seed, number); for what is only looked at the last."""
        if number is None:
            return len(self.levels) - 1
        generator = keyed.generator(seed, f"{number}/step")
        return int(torch.randint(len(self.levels), (1,), generator=generator))

    def interval(self, batch_number: int | None, seed: int) -> tuple[float, float]:
        """From the next step's level to this one's, the first reaching up to every higher one and the last down."""
        if self.options.losses_at == "all":
            return super().interval(batch_number, seed)
        step = self.step_of(batch_number, seed)
        bounds = (math.inf, *self.levels[1:], 0.0)
        return bounds[step + 1], bounds[step]

    def is_rewarded(self, batch: Batch) -> bool:
        """Of all steps or of the last."""
        return self.options.rewards == "all" or self.step_of(batch.number, batch.seed) == len(self.levels) - 1

    def sample(self, network: nn.Module, batch: Batch) -> Tensor:
        """x0 of the batch's step, whose evaluation alone has a graph."""
        z = batch.noise("z")
        denoiser = self.preconditioning.denoiser(network, batch.cond)

        def level(j: int) -> Tensor:
            return torch.full((len(z),), self.levels[j], dtype=z.dtype, device=z.device)

        last, x = self.step_of(batch.number, batch.seed), self.k * z
        straight, afresh = math.cos(self.options.eta * math.pi / 2), math.sin(self.options.eta * math.pi / 2)
        with torch.no_grad():
            for j in range(last):
                x0 = denoiser(x, level(j))
                noise = straight * (x - x0) / self.levels[j]
                if self.options.eta:
                    noise = noise + afresh * batch.noise(f"step/{j + 1}")
                x = x0 + self.levels[j + 1] * noise
        return denoiser(x, level(last))

    def export(self, scheduler: Any) -> tuple[Any, dict[str, Any]]:
        """The scheduler whose steps these are, and its recipe."""
        stock, recipe = super().export(scheduler)
        return stock, recipe | self.times(self.levels)


Options, build = FewStepOptions, FewStep
