"""Noise schedules, sigma <-> timestep, and what a network's output means.

Everything is in variance-exploding coordinates: `x = x0 + sigma * noise`, and a *denoiser* maps `(x, sigma)` to its
estimate of x0, so that the score is `(D(x) - x) / sigma^2` (Karras et al. 2022, eq. 3; Diff-Instruct++ eq. C.3).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prompts.io.errors import UserError


class Prediction(NamedTuple):
    """How a network is fed and read at noise level sigma (all tensors broadcastable to x)."""

    scale_input: Callable[[Tensor], Tensor]
    to_x0: Callable[[Tensor, Tensor, Tensor], Tensor]


def _variance_preserving(sigma: Tensor) -> Tensor:
    return (1 + sigma**2).rsqrt()


#: prediction type -> (factor on x before the network sees it, (x, sigma, output) -> x0), named as diffusers names them.
PREDICTIONS: dict[str, Prediction] = {
    "epsilon": Prediction(_variance_preserving, lambda x, sigma, out: x - sigma * out),
    "v_prediction": Prediction(
        _variance_preserving, lambda x, sigma, out: x / (1 + sigma**2) - sigma * (1 + sigma**2).rsqrt() * out
    ),
    "sample": Prediction(_variance_preserving, lambda x, sigma, out: out),
    "flow_prediction": Prediction(lambda sigma: 1 / (1 + sigma), lambda x, sigma, out: (x - sigma * out) / (1 + sigma)),
}


#: `(x [B, ...], sigma [B]) -> x0_hat [B, ...]`, bound to its prompts.
Denoiser = Callable[[Tensor, Tensor], Tensor]


def append_dims(sigma: Tensor, like: Tensor) -> Tensor:
    """Reshape `[B]` to `[B, 1, ...]` so that it broadcasts over `like`."""
    return sigma.reshape(-1, *[1] * (like.ndim - 1))


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise levels a network was trained at.

    sigmas: [T] float64, increasing, `sigma(t) = sqrt((1 - abar_t) / abar_t)`.
    """

    sigmas: Tensor

    @classmethod
    def from_scheduler(cls, scheduler: Any) -> "Schedule":
        """Read a diffusers scheduler's `betas`, in float64 where its own `alphas_cumprod` is float32."""
        config = scheduler.config
        if "beta_schedule" not in config:
            raise UserError(
                f"{type(scheduler).__name__} has no betas; give a model whose scheduler is a variance-preserving one"
            )
        if config.get("rescale_betas_zero_snr"):
            raise UserError(
                "the scheduler's rescale_betas_zero_snr is not supported, its last sigma being infinite; choose another"
                " model"
            )
        if config.get("trained_betas") is not None:
            betas = torch.as_tensor(config.trained_betas, dtype=torch.float64)
        else:
            power = {"linear": 1.0, "scaled_linear": 0.5}.get(config.beta_schedule)
            if power is None:
                raise UserError(
                    f"beta_schedule {config.beta_schedule!r} of the scheduler is not supported; use linear or"
                    " scaled_linear"
                )
            ends = (config.beta_start**power, config.beta_end**power)
            betas = torch.linspace(*ends, config.num_train_timesteps, dtype=torch.float64) ** (1 / power)
        abar = (1 - betas).cumprod(0)
        return cls(((1 - abar) / abar).sqrt())

    @property
    def sigma_min(self) -> float:
        """Lowest noise level, at timestep 0."""
        return self.sigmas[0].item()

    @property
    def sigma_max(self) -> float:
        """Highest noise level, at the last timestep."""
        return self.sigmas[-1].item()

    def timestep(self, sigma: Tensor) -> Tensor:
        """Nearest bin `[B]` (int64) to each sigma `[B]`. Only the bin is rounded; sigma stays what it is."""
        midpoints = ((self.sigmas[1:] + self.sigmas[:-1]) / 2).to(sigma.device)
        return torch.bucketize(sigma.double(), midpoints)

    def holds(self, sigma: float) -> bool:
        """Whether `sigma` is between the lowest and the highest noise level, or at most half a bin beyond."""
        low, high = ((self.sigmas[1] - self.sigmas[0]) / 2).item(), ((self.sigmas[-1] - self.sigmas[-2]) / 2).item()
        return self.sigma_min - low <= sigma <= self.sigma_max + high

    def snap(self, sigma: float) -> float:
        """The schedule's own sigma nearest to `sigma`."""
        return self.sigmas[self.timestep(torch.tensor([sigma]))].item()


def denoise(
    network: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, *, schedule: Schedule, prediction: str
) -> Tensor:
    """Turn a network's output into a prediction of x0.

    network: `(input [B, C, H, W], timestep [B]) -> output [B, C, H, W]`, already bound to its prompt.
    x: `[B, C, H, W]` at noise level sigma: `[B]`. The arithmetic around the network is done in float32 or better.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x, level = x.to(wide), append_dims(sigma.to(wide), x)
    kind = PREDICTIONS[prediction]
    # A flow-matching network's time is sigma / (1 + sigma) of the way to noise, continuous.
    time = 1000 * sigma / (1 + sigma) if prediction == "flow_prediction" else schedule.timestep(sigma)
    return kind.to_x0(x, level, network(x * kind.scale_input(level), time).to(wide))


def lognormal(schedule: Schedule, *, mean: float, std: float) -> Callable[[int, torch.Generator], Tensor]:
    """sigma = exp(N(mean, std^2)), clamped to the schedule's range (Diff-Instruct++ eq. C.5, mean -2, std 2)."""

    def sample(n: int, generator: torch.Generator) -> Tensor:
        draw = torch.randn(n, generator=generator, dtype=torch.float64) * std + mean
        return draw.exp().clamp(schedule.sigma_min, schedule.sigma_max)

    return sample


def uniform(schedule: Schedule, *, low: int, high: int) -> Callable[[int, torch.Generator], Tensor]:
    """sigma of a timestep drawn uniformly from {low, ..., high} (DMD2: 20 to 980)."""

    def sample(n: int, generator: torch.Generator) -> Tensor:
        return schedule.sigmas[torch.randint(low, high + 1, (n,), generator=generator)]

    return sample


#: Distributions of sigma: name -> (schedule, **parameters) -> ((n, generator) -> [n] float64 on the CPU).
NOISE_LEVELS: dict[str, Callable[..., Callable[[int, torch.Generator], Tensor]]] = {
    "lognormal": lognormal,
    "uniform": uniform,
}
