"""Samplers that diffusers lacks and published models need.

A recipe's `scheduler` names one of these, or one of diffusers.
"""

from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor


class RectifiedFlowScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Euler steps along a velocity that points from noise at t = 1000 to data at t = 0 (InstaFlow, arXiv
    2309.06380).
    """

    order = 1
    init_noise_sigma = 1.0

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, num_train_timesteps: int = 1000):
        self.timesteps = torch.arange(num_train_timesteps, 0, -1)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Times T, T (1 - 1 / n), ..., T / n for n steps."""
        share = torch.arange(num_inference_steps, 0, -1, device=device) / num_inference_steps
        self.timesteps = self.config.num_train_timesteps * share

    def scale_model_input(self, sample: Tensor, timestep: Tensor | None = None) -> Tensor:
        """The sample as it is."""
        return sample

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """The sample 1 / n further."""
        return (sample + model_output / len(self.timesteps),)


class PiecewiseRectifiedFlowScheduler(DDIMScheduler):  # type: ignore[misc]
    """One step across each window of time, from a network that tells the window's noise (PeRFlow, arXiv 2405.07510).

    With abar_s and abar_e at a window's start and end, x_s = g x_e + sqrt(1 - g^2) noise, g^2 = abar_s / abar_e. The
    network counts time from 1, abar from 0. There are as many windows as steps; published models have been trained for
    4.
    """

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """The windows' starts: 1000, 750, 500, 250 for 4."""
        width = self.config.num_train_timesteps // num_inference_steps
        self.timesteps = width * torch.arange(num_inference_steps, 0, -1, device=device)

    def step(self, model_output: Tensor, timestep: Tensor, sample: Tensor, **_: Any) -> tuple[Tensor]:
        """The sample at the window's end."""
        start, width = int(timestep), int(self.timesteps[-1])
        g2 = self.alphas_cumprod[start - 1] / self.alphas_cumprod[max(start - width - 1, 0)]
        return ((sample - (1 - g2).sqrt() * model_output) / g2.sqrt(),)
