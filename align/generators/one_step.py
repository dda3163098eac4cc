"""One step: `G(z, c) = D(k z, sigma_init, c)` (DI++ eq. C.4)."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from align.data.batches import Batch, everywhere
from align.generators import GeneratorOptions
from align.networks.preconditioning import Preconditioning
from prompts.io.errors import UserError


class OneStep:
    """Noise to latents in one evaluation of the network."""

    options: GeneratorOptions

    def __init__(self, options: GeneratorOptions, preconditioning: Preconditioning, *, source: str):
        """source: what to call the reference in an error."""
        self.options, self.preconditioning = options, preconditioning
        schedule = preconditioning.schedule
        if not schedule.holds(options.sigma_init):
            raise UserError(
                f"generator.sigma_init = {options.sigma_init:g}: the noise levels of {source} "
                f"are {schedule.sigma_min:.4g} to {schedule.sigma_max:.4g}; choose one between them"
            )
        self.flow = schedule.prediction == "flow_prediction"
        if self.flow and options.input_scale == "sigma_init" and math.isfinite(options.sigma_init):
            raise UserError(
                "generator.input_scale sigma_init: no stock scheduler draws a flow from scaled noise; set"
                " unit_variance, or sigma_init to .inf"
            )
        self.sigma_init = schedule.snap(options.sigma_init)
        unit = 1 + self.sigma_init if self.flow else math.sqrt(1 + self.sigma_init**2)
        self.k = unit if options.input_scale == "unit_variance" else self.sigma_init

    def sample(self, network: nn.Module, batch: Batch) -> Tensor:
        """x0 of the batch's noise `z`, standard normal `[B, C, H, W]`."""
        z = batch.noise("z")
        sigma = torch.full((len(z),), self.sigma_init, dtype=z.dtype, device=z.device)
        return self.preconditioning.denoiser(network, batch.cond)(self.k * z, sigma)

    def interval(self, batch_number: int | None, seed: int) -> tuple[float, float]:
        """Every noise level."""
        return everywhere(batch_number, seed)

    def is_rewarded(self, batch: Batch) -> bool:
        """Always."""
        return True

    def export(self, scheduler: Any) -> tuple[Any, dict[str, Any]]:
        """The scheduler whose single step this is, and its recipe."""
        import diffusers

        name, options, guidance = self.options.stock_scheduler(flow=self.flow)
        recipe = self.times([self.sigma_init]) | {"guidance_scale": self.preconditioning.embedded_guidance or guidance}
        if self.flow:  # in half precision some of their networks overflow
            recipe["dtype"] = "bf16"
        if self.preconditioning.size:
            recipe |= dict(zip(("height", "width"), self.preconditioning.size, strict=True))
        if arguments := dict(self.preconditioning.family.arguments):
            recipe["arguments"] = arguments
        return getattr(diffusers, name).from_config(scheduler.config, **options), recipe

    def times(self, levels: Sequence[float]) -> dict[str, Any]:
        """A recipe's steps at these noise levels: a flow's times in [0, 1], or timesteps."""
        t = self.preconditioning.schedule.timestep(torch.tensor(levels, dtype=torch.float64)).tolist()
        return {"steps": len(t)} | ({"sigmas": [each / 1000 for each in t]} if self.flow else {"timesteps": t})


Options, build = GeneratorOptions, OneStep
