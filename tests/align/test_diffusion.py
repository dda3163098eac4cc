"""Schedules against checked figures and stock diffusers; prediction types against networks that know the answer."""

import math
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from evaluate.diffusion import (
    NOISE_LEVELS,
    PREDICTIONS,
    FlowSchedule,
    NoiseLevels,
    Schedule,
    append_dims,
    denoise,
    is_flow,
)
from prompts.io.errors import UserError

SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PIXART_BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
SD = Schedule.from_scheduler(DDPMScheduler(**SD_BETAS))
PIXART = Schedule.from_scheduler(DDPMScheduler(**PIXART_BETAS))


def images(*, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """x0 and noise, `[4, 2, 3, 3]`."""
    x0, noise = torch.randn(2, 4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return x0.to(dtype), noise.to(dtype)


# Schedules


def test_sd_noise_levels() -> None:
    assert len(SD.sigmas) == 1000
    assert SD.sigmas.dtype == torch.float64
    for t, sigma, digits in ((20, 0.138, 3), (399, 1.1606, 4), (625, 2.5017, 4), (980, 13.0, 1), (999, 14.61, 2)):
        assert round(SD.sigmas[t].item(), digits) == sigma
    assert (SD.sigma_min, SD.sigma_max) == (SD.sigmas[0], SD.sigmas[999])


def test_pixart_noise_levels() -> None:
    assert PIXART.timestep(torch.tensor([2.5])).item() == 440
    assert round(PIXART.sigma_min, 2) == 0.01
    assert round(PIXART.sigma_max, 1) == 157.4


@pytest.mark.parametrize("betas", [SD_BETAS, PIXART_BETAS], ids=["sd", "pixart"])
def test_noise_levels_are_stock_diffusers_to_its_own_precision(betas: dict[str, Any]) -> None:
    stock = EulerDiscreteScheduler(**betas).sigmas[:-1].flip(0).double()
    torch.testing.assert_close(
        Schedule.from_scheduler(EulerDiscreteScheduler(**betas)).sigmas, stock, rtol=1e-4, atol=0
    )


def test_a_schedulers_own_betas_are_taken() -> None:
    sigmas = Schedule.from_scheduler(DDPMScheduler(num_train_timesteps=2, trained_betas=[0.2, 0.5])).sigmas
    torch.testing.assert_close(sigmas, torch.tensor([0.5, (0.6 / 0.4) ** 0.5], dtype=torch.float64))


def test_an_unknown_schedule_is_refused_with_its_name_and_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"'squaredcos_cap_v2' .* use linear or scaled_linear"):
        Schedule.from_scheduler(DDPMScheduler(beta_schedule="squaredcos_cap_v2"))


@pytest.mark.parametrize("schedule", [SD, PIXART], ids=["sd", "pixart"])
def test_timestep_is_the_nearest_bin(schedule: Schedule) -> None:
    assert schedule.timestep(schedule.sigmas).tolist() == list(range(1000))
    sigma = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.2 * schedule.sigma_max
    nearest = (sigma[:, None] - schedule.sigmas).abs().argmin(1)
    assert schedule.timestep(sigma).equal(nearest)
    assert schedule.timestep(torch.tensor([0.0, 1e6])).tolist() == [0, 999]


def test_snap_moves_sigma_init_onto_the_schedule() -> None:
    assert SD.snap(2.5) == SD.sigmas[625]
    assert PIXART.snap(2.5) == PIXART.sigmas[440]


def test_a_schedule_holds_what_is_within_half_a_bin_of_its_ends() -> None:
    few = Schedule(torch.tensor([0.2, 0.4, 1.0, 2.0], dtype=torch.float64))
    assert [sigma for sigma in (1e-9, 0.09, 0.11, 0.2, 1.0, 2.0, 2.49, 2.51, 1e9) if few.holds(sigma)] == [
        0.11,
        0.2,
        1.0,
        2.0,
        2.49,
    ]


# Prediction types

#: What a perfect network of each type puts out for (x0, noise, alpha, sigma) of `alpha x0 + sigma
#: noise`, as its papers write it.
TARGETS = {
    "epsilon": lambda x0, noise, alpha, sigma: noise,
    "v_prediction": lambda x0, noise, alpha, sigma: alpha * noise - sigma * x0,
    "sample": lambda x0, noise, alpha, sigma: x0,
    "flow_prediction": lambda x0, noise, alpha, sigma: noise - x0,
}


def schedule_of(prediction: str) -> NoiseLevels:
    """One whose networks predict that."""
    return FlowSchedule() if prediction == "flow_prediction" else replace(SD, prediction=prediction)


def interpolation(prediction: str, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """(alpha, sigma) of the path a network was trained on, at the ratio sigma: a quarter circle, or a straight line."""
    total = 1 + sigma if prediction == "flow_prediction" else (1 + sigma**2).sqrt()
    return 1 / total, sigma / total


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_gives_x0_back_and_sees_the_input_it_was_trained_on(prediction: str) -> None:
    x0, noise = images()
    sigma = torch.tensor([0.03, 0.7, 2.5, 14.0], dtype=torch.float64)
    alpha, level = (append_dims(part, x0) for part in interpolation(prediction, sigma))
    seen = []

    def network(x: Tensor, time: Tensor) -> Tensor:
        seen.append((x, time))
        return TARGETS[prediction](x0, noise, alpha, level)

    found = denoise(network, x0 + append_dims(sigma, x0) * noise, sigma, schedule=schedule_of(prediction))
    torch.testing.assert_close(found, x0, rtol=1e-12, atol=1e-12)
    ((x, time),) = seen
    torch.testing.assert_close(x, alpha * x0 + level * noise, rtol=1e-12, atol=1e-12)
    expected = (
        1000 * level.flatten() if prediction == "flow_prediction" else (sigma[:, None] - SD.sigmas).abs().argmin(1)
    )
    torch.testing.assert_close(time, expected)


def test_the_variance_preserving_path_is_stock_diffusers() -> None:
    """`add_noise` and `get_velocity` decide what a network is trained on."""
    x0, noise = images(dtype=torch.float32)
    stock = DDPMScheduler(**SD_BETAS)
    t = torch.tensor([20, 399, 625, 999])
    for prediction, target in (("epsilon", noise), ("v_prediction", stock.get_velocity(x0, noise, t)), ("sample", x0)):

        def network(x: Tensor, time: Tensor, target: Tensor = target) -> Tensor:
            assert time.equal(t)
            torch.testing.assert_close(x, stock.add_noise(x0, noise, t), rtol=0, atol=1e-5)
            return target

        x = x0 + append_dims(SD.sigmas[t].float(), x0) * noise
        torch.testing.assert_close(
            denoise(network, x, SD.sigmas[t], schedule=schedule_of(prediction)), x0, rtol=0, atol=1e-4
        )


def test_the_flow_path_is_stock_diffusers() -> None:
    """Its `scale_noise` makes what a network is fed, at its timesteps; the velocity leads from x0 to the noise."""
    x0, noise = images(dtype=torch.float32)
    stock = FlowMatchEulerDiscreteScheduler()
    at = [10, 400, 700, 990]
    level, times = stock.sigmas[at], stock.timesteps[at]

    def network(x: Tensor, time: Tensor) -> Tensor:
        torch.testing.assert_close(time, times, rtol=1e-5, atol=0)
        torch.testing.assert_close(x, stock.scale_noise(x0, times, noise), rtol=0, atol=1e-5)
        return noise - x0

    sigma = level / (1 - level)
    x = x0 + append_dims(sigma, x0) * noise
    torch.testing.assert_close(denoise(network, x, sigma, schedule=FlowSchedule()), x0, rtol=0, atol=1e-4)


def test_sigma_is_not_rounded_with_its_timestep() -> None:
    """Half-way between bins the network's time is a bin's, and x0 still comes back exactly."""
    x0, noise = images()
    sigma = (0.6 * SD.sigmas[[5, 400, 700, 998]] + 0.4 * SD.sigmas[[6, 401, 701, 999]]).double()
    times = []

    def network(x: Tensor, time: Tensor) -> Tensor:
        times.append(time.tolist())
        return noise

    found = denoise(network, x0 + append_dims(sigma, x0) * noise, sigma, schedule=SD)
    torch.testing.assert_close(found, x0, rtol=1e-12, atol=1e-12)
    assert times == [[5, 400, 700, 998]]


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(
    ("narrow", "wide"), [(torch.bfloat16, torch.float32), (torch.float64, torch.float64)], ids=["bf16", "f64"]
)
def test_arithmetic_is_float32_or_better(prediction: str, narrow: torch.dtype, wide: torch.dtype) -> None:
    """A bf16 network is fed and read in float32: rounding its output once is all that bf16 may cost."""
    x0, noise = images(dtype=narrow)
    sigma = torch.tensor([0.03, 0.7, 2.5, 14.0], dtype=torch.float64)
    seen = []

    def network(x: Tensor, time: Tensor) -> Tensor:
        seen.append(x.dtype)
        return noise

    x = (x0 + append_dims(sigma, x0) * noise).to(narrow)
    found = denoise(network, x, sigma, schedule=schedule_of(prediction))
    exact = PREDICTIONS[prediction].to_x0(x.double(), append_dims(sigma, x), noise.double())
    assert seen == [wide]
    assert found.dtype == wide
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_denoising_is_differentiable_in_x(prediction: str) -> None:
    """`exact` takes the gradient through this, network and conversion alike."""
    x = images()[0].requires_grad_()
    sigma = torch.tensor([0.03, 0.7, 2.5, 14.0], dtype=torch.float64)

    def denoiser(x: Tensor) -> Tensor:
        return denoise(lambda x, time: x.sin(), x, sigma, schedule=schedule_of(prediction))

    assert torch.autograd.gradcheck(denoiser, (x,))


# Distributions of sigma

TIME_CASES: dict[str, dict[str, Any]] = {
    "lognormal": {"mean": 0.0, "std": 6.0},
    "uniform": {"low": 0, "high": 999},
    "logit_normal": {"mean": 0.0, "std": 6.0},
    "flow_uniform": {},
}


@pytest.mark.parametrize("name", NOISE_LEVELS)
def test_draws_stay_in_the_schedules_range_and_repeat_with_their_generator(name: str) -> None:
    sample = NOISE_LEVELS[name](SD, **TIME_CASES[name])
    first, again, other = (sample(4000, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert (first.shape, first.dtype) == ((4000,), torch.float64)
    assert first.equal(again)
    assert not first.equal(other)
    assert (first.min(), first.max()) == (SD.sigma_min, SD.sigma_max)
    generator = torch.Generator().manual_seed(1)
    assert not sample(4000, generator).equal(sample(4000, generator))


def test_lognormal_has_its_logarithms_mean_and_deviation() -> None:
    """Narrow enough that nothing is clamped: within five standard errors of 40,000 draws."""
    draws = NOISE_LEVELS["lognormal"](SD, mean=-0.5, std=0.4)(40_000, torch.Generator().manual_seed(0)).log()
    assert abs(draws.mean() + 0.5) < 5 * 0.4 / 200
    assert abs(draws.std() - 0.4) < 5 * 0.4 / 200 / 2**0.5


def test_uniform_draws_timesteps_with_both_ends() -> None:
    draws = NOISE_LEVELS["uniform"](SD, low=20, high=23)(4000, torch.Generator().manual_seed(0))
    counts = SD.timestep(draws).bincount()
    assert counts[:20].sum() == 0
    assert len(counts) == 24
    assert counts[20:].min() > 1000 - 5 * 750**0.5
    assert draws.unique().equal(SD.sigmas[20:24])


def test_times_of_flows_are_shifted_as_the_model_is() -> None:
    """`t' = s t / (1 + (s - 1) t)` of a uniform and of a logit-normal t; s is the model's own, or as told."""
    flow, n = FlowSchedule(shift=3.0), 20_000
    generator = partial(torch.Generator().manual_seed, 4)
    uniform = NOISE_LEVELS["flow_uniform"](flow, low=0.1, high=0.9)(n, generator())
    t = 0.1 + 0.8 * torch.rand(n, generator=generator(), dtype=torch.float64)
    torch.testing.assert_close(flow.timestep(uniform) / 1000, 3 * t / (1 + 2 * t))
    logit = NOISE_LEVELS["logit_normal"](flow, mean=-0.3, std=0.8)(n, generator())
    t = torch.sigmoid(0.8 * torch.randn(n, generator=generator(), dtype=torch.float64) - 0.3)
    torch.testing.assert_close(flow.timestep(logit) / 1000, 3 * t / (1 + 2 * t))
    told = NOISE_LEVELS["logit_normal"](flow, mean=-0.3, std=0.8, shift=1.0)(n, generator())
    torch.testing.assert_close(flow.timestep(told) / 1000, t)
    with pytest.raises(
        UserError, match="uniform counts timesteps, and this model's time is continuous; use flow_uniform"
    ):
        NOISE_LEVELS["uniform"](flow, low=20, high=980)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_flow_starts_from_noise_alone(dtype: torch.dtype) -> None:
    """`G(z) = z - v(z, 1)`, to the rounding of the dtype; the level is infinite and the arithmetic is not."""
    flow, z = FlowSchedule(), images(dtype=dtype)[1]
    assert flow.holds(math.inf) and not SD.holds(math.inf) and not flow.holds(1e-4)
    sigma = torch.full((len(z),), flow.snap(math.inf), dtype=dtype)
    seen: list[Tensor] = []

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        seen.extend((x, time))
        return x.sin()

    found = denoise(velocity, (1 + flow.NOISE) * z, sigma, schedule=flow)
    eps = 4 * torch.finfo(torch.float32).eps if dtype == torch.float32 else 1e-8
    torch.testing.assert_close(found, z - z.sin(), rtol=eps, atol=eps)
    torch.testing.assert_close(seen[0], z, rtol=eps, atol=eps)
    torch.testing.assert_close(seen[1], torch.full_like(sigma, 1000.0), rtol=eps, atol=0)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_a_dynamic_shift_is_stock_diffusers(kind: str) -> None:
    options = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    stock = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind, **options)
    mu = calculate_shift(
        1024, *(options[name] for name in ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift"))
    )
    stock.set_timesteps(sigmas=[0.9, 0.5, 0.2], mu=mu)
    shift = FlowSchedule.from_scheduler(stock, tokens=1024).shift
    for before, after in zip((0.9, 0.5, 0.2), stock.sigmas[:-1].tolist(), strict=True):
        assert shift * before / (1 + (shift - 1) * before) == pytest.approx(after, rel=1e-5)
    assert FlowSchedule.from_scheduler(FlowMatchEulerDiscreteScheduler(shift=3.0), tokens=1).shift == 3.0
    multistep = DPMSolverMultistepScheduler(use_flow_sigmas=True, flow_shift=2.0, prediction_type="flow_prediction")
    assert is_flow(multistep) and FlowSchedule.from_scheduler(multistep, tokens=1).shift == 2.0
    assert not is_flow(DPMSolverMultistepScheduler()) and is_flow(stock)
    edm = EDMEulerScheduler()  # Playground v2.5's: no betas, and no flow
    assert not is_flow(edm)
    with pytest.raises(UserError, match="EDMEulerScheduler has no betas"):
        Schedule.from_scheduler(edm)


def test_every_prediction_type_and_distribution_is_tested_here() -> None:
    assert TARGETS.keys() == PREDICTIONS.keys()
    assert TIME_CASES.keys() == NOISE_LEVELS.keys()


def test_schedulers_that_would_be_misread_are_refused() -> None:
    with pytest.raises(UserError, match="rescale_betas_zero_snr"):
        Schedule.from_scheduler(EulerDiscreteScheduler(rescale_betas_zero_snr=True))
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler has no betas"):
        Schedule.from_scheduler(FlowMatchEulerDiscreteScheduler())
