"""Noise schedules, sigma <-> timestep, and what a network's output means.

Everything is in variance-exploding coordinates: `x = x0 + sigma * noise`, and a *denoiser* maps `(x, sigma)` to its
estimate of x0, so that the score is `(D(x) - x) / sigma^2` (Karras et al. 2022, eq. 3; Diff-Instruct++ eq. C.3). A
flow-matching network's time t, of which it sees `(1 - t) x0 + t noise`, is the noise level `sigma = t / (1 - t)`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

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


class NoiseLevels(Protocol):
    """The noise levels a network was trained at, as its time counts them."""

    @property
    def prediction(self) -> str:
        """What the network predicts, one of `PREDICTIONS`."""

    @property
    def sigma_min(self) -> float:
        """Lowest noise level of a loss."""

    @property
    def sigma_max(self) -> float:
        """Highest noise level of a loss."""

    def timestep(self, sigma: Tensor) -> Tensor:
        """What the network is told of each sigma `[B]`, between 0 and 1000."""

    def holds(self, sigma: float) -> bool:
        """Whether a generator may start from noise of this level, or come by it."""

    def snap(self, sigma: float) -> float:
        """The nearest noise level that the network knows, finite."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """Of T timesteps.

    sigmas: [T] float64, increasing, `sigma(t) = sqrt((1 - abar_t) / abar_t)`.
    """

    sigmas: Tensor
    prediction: str = "epsilon"

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
        return cls(((1 - abar) / abar).sqrt(), config.get("prediction_type", "epsilon"))

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


@dataclass(frozen=True)
class FlowSchedule:
    """Of continuous time, from data at t = 0 to noise alone at t = 1 (Liu et al. 2022, arXiv 2209.03003).

    shift: what the model's own scheduler multiplies sigma by, `t' = s t / (1 + (s - 1) t)` (Esser et al. 2024, eq. 23).
    Losses stay a thousandth of the time away from both ends, where a score is 0 / 0.
    """

    #: The level of noise alone, t = 1: so high that `1 + sigma` is sigma in float32, and no level is infinite.
    NOISE: ClassVar[float] = 2.0**30

    shift: float = 1.0
    prediction: ClassVar[str] = "flow_prediction"
    sigma_min: ClassVar[float] = 1 / 999
    sigma_max: ClassVar[float] = 999.0

    @classmethod
    def from_scheduler(cls, scheduler: Any, *, tokens: int) -> "FlowSchedule":
        """Read a diffusers scheduler's shift, where it depends on an image's size that of an image of `tokens`."""
        config = scheduler.config
        if config.get("use_dynamic_shifting"):
            slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
            mu = config.base_shift + slope * (tokens - config.base_image_seq_len)
            return cls(mu if config.get("time_shift_type") == "linear" else math.exp(mu))
        # A scheduler made of another's config keeps what it has no use for, as an exported one does `flow_shift`.
        return cls(float(config.get("shift") or config.get("flow_shift") or 1.0))

    def timestep(self, sigma: Tensor) -> Tensor:
        """`1000 t` `[B]`, of the dtype of sigma."""
        return 1000 * sigma / (1 + sigma)

    def holds(self, sigma: float) -> bool:
        """Whether it is at least the lowest level of a loss; noise alone, infinity, counts."""
        return sigma >= self.sigma_min

    def snap(self, sigma: float) -> float:
        """The level itself, there being no bins; `NOISE` for infinity."""
        return min(sigma, self.NOISE)


def is_flow(scheduler: Any) -> bool:
    """Whether a diffusers scheduler is one of flow matching."""
    config = scheduler.config
    # EDM's have no betas either, and are none.
    return ("beta_schedule" not in config and "sigma_schedule" not in config) or bool(config.get("use_flow_sigmas"))


def denoise(network: Callable[[Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, *, schedule: NoiseLevels) -> Tensor:
    """Turn a network's output into a prediction of x0.

    network: `(input [B, ...], timestep [B]) -> output [B, ...]`, already bound to its prompt.
    x: `[B, ...]` at noise level sigma: `[B]`. The arithmetic around the network is done in float32 or better.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    x, level = x.to(wide), append_dims(sigma.to(wide), x)
    kind = PREDICTIONS[schedule.prediction]
    return kind.to_x0(x, level, network(x * kind.scale_input(level), schedule.timestep(sigma)).to(wide))


def lognormal(schedule: NoiseLevels, *, mean: float, std: float) -> Callable[[int, torch.Generator], Tensor]:
    """sigma = exp(N(mean, std^2)), clamped to the schedule's range (Diff-Instruct++ eq. C.5, mean -2, std 2)."""

    def sample(n: int, generator: torch.Generator) -> Tensor:
        draw = torch.randn(n, generator=generator, dtype=torch.float64) * std + mean
        return draw.exp().clamp(schedule.sigma_min, schedule.sigma_max)

    return sample


def uniform(schedule: NoiseLevels, *, low: float, high: float) -> Callable[[int, torch.Generator], Tensor]:
    """sigma of a timestep drawn uniformly from {low, ..., high} (DMD2: 20 to 980)."""
    if not isinstance(schedule, Schedule):
        raise UserError("noise_levels: uniform counts timesteps, and this model's time is continuous; use flow_uniform")
    steps, first, last = len(schedule.sigmas), int(low), int(high)
    if (first, last) != (low, high) or not 0 <= first <= last < steps:
        raise UserError(
            f"noise_levels: uniform takes low and high from the whole numbers 0 to {steps - 1}, low first; not {low:g}"
            f" and {high:g}"
        )

    def sample(n: int, generator: torch.Generator) -> Tensor:
        return schedule.sigmas[torch.randint(first, last + 1, (n,), generator=generator)]

    return sample


def logit_normal(
    schedule: NoiseLevels, *, mean: float = 0.0, std: float = 1.0, shift: float | None = None
) -> Callable[[int, torch.Generator], Tensor]:
    """sigma = shift exp(N(mean, std^2)): t is logit-normal, then shifted (Esser et al. 2024, section 3.1 and eq. 23).

    shift: by default the model's own.
    """
    return lognormal(schedule, mean=mean + math.log(_shift(schedule, shift)), std=std)


def flow_uniform(
    schedule: NoiseLevels, *, low: float = 0.0, high: float = 1.0, shift: float | None = None
) -> Callable[[int, torch.Generator], Tensor]:
    """sigma = shift t / (1 - t) for t uniform between low and high. shift: by default the model's own."""
    factor = _shift(schedule, shift)
    if not 0 <= low < high <= 1:
        raise UserError(f"noise_levels: flow_uniform takes times, 0 <= low < high <= 1; not {low:g} and {high:g}")

    def sample(n: int, generator: torch.Generator) -> Tensor:
        t = low + (high - low) * torch.rand(n, generator=generator, dtype=torch.float64)
        return (factor * t / (1 - t)).clamp(schedule.sigma_min, schedule.sigma_max)

    return sample


def _shift(schedule: NoiseLevels, shift: float | None) -> float:
    if shift is not None and shift <= 0:
        raise UserError(f"noise_levels: shift = {shift:g}; take one above 0")
    return getattr(schedule, "shift", 1.0) if shift is None else shift


#: Distributions of sigma: name -> (schedule, **parameters) -> ((n, generator) -> [n] float64 on the CPU).
NOISE_LEVELS: dict[str, Callable[..., Callable[[int, torch.Generator], Tensor]]] = {
    "lognormal": lognormal,
    "uniform": uniform,
    "logit_normal": logit_normal,
    "flow_uniform": flow_uniform,
}
