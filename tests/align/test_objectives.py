"""Every loss's gradient against closed forms, in float64.

A student `G(z) = A z + b` makes the images of N(b, A A^T), so its assistant, its reference and the divergence between
them are all known. Expectations over z and the noise are taken by Gauss-Hermite quadrature, not sampled: nothing here
is random up to the networks' weights, and a tolerance is a bound on an error, not on luck.
"""

import math
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from oracles import Gaussian, Mixture, normal_grid
from torch import Tensor, nn

from align.objectives.denoisers import guided
from align.objectives.denoising import assistant_loss
from align.objectives.distances import DISTANCES, default_huber_c, distance_gradient, hessian_vector_product
from align.objectives.guidance import cfg_reward_loss
from align.objectives.kl import ikl_loss
from align.objectives.score_divergence import score_divergence_loss
from align.objectives.weightings import WEIGHTS

SIGMAS = (0.6, 1.5)
HUBER_C = 0.5


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@dataclass(frozen=True)
class Student:
    """G(z) = factor z + mean."""

    mean: Tensor
    factor: Tensor

    def __call__(self, z: Tensor) -> Tensor:
        return z @ self.factor.T + self.mean

    @property
    def density(self) -> Gaussian:
        return Gaussian(self.mean, self.factor @ self.factor.T)

    def moved(self, direction: "Slope", step: float) -> "Student":
        return Student(self.mean + step * direction.mean, self.factor + step * direction.factor)


class Slope(NamedTuple):
    """A gradient with respect to a student's parameters: `[D]` and `[D, D]`."""

    mean: Tensor
    factor: Tensor


class Errors(NamedTuple):
    """Relative errors of a Slope, apart: a loss can get the one right and the other wrong."""

    mean: float
    factor: float


def errors(got: Slope, want: Slope) -> Errors:
    return Errors(*(((a - b).norm() / b.norm()).item() for a, b in zip(got, want, strict=True)))


STUDENT = Student(tensor([0.5, -0.4]), tensor([[0.9, -0.3], [0.4, 0.6]]))
LEFT = Gaussian(tensor([-1.0, 0.5]), tensor([[0.4, 0.1], [0.1, 0.3]]))
RIGHT = Gaussian(tensor([1.0, -0.5]), tensor([[0.3, -0.2], [-0.2, 0.5]]))
TWO_MODES = Mixture(tensor([0.3, 0.7]), (LEFT, RIGHT))
REFERENCES: dict[str, Gaussian | Mixture] = {
    "gaussian": Gaussian(tensor([-0.3, 0.2]), tensor([[1.2, 0.5], [0.5, 0.7]])),
    "two_modes": TWO_MODES,
}
STUDENT_3D = Student(tensor([0.5, -0.4, 0.1]), tensor([[0.9, -0.3, 0.2], [0.4, 0.6, -0.1], [0.3, 0.1, 0.7]]))
MEAN_3D, COVARIANCE_3D = tensor([-0.3, 0.2, 0.6]), tensor([[1.2, 0.5, 0.1], [0.5, 0.7, -0.2], [0.1, -0.2, 0.9]])
REFERENCE_3D = Gaussian(MEAN_3D, COVARIANCE_3D)


Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x0, noise, sigma) -> [B]


def expected_gradient(loss: Loss, student: Student, *, order: int, sigmas: Sequence[float] = SIGMAS) -> Slope:
    """The gradient of the expected loss, summed over sigmas, as `backward()` leaves it on the student's parameters."""
    points, probability = normal_grid(2 * len(student.mean), order)
    z, noise = points.repeat(len(sigmas), 1).chunk(2, dim=1)
    sigma = tensor(sigmas).repeat_interleave(len(points))
    student = Student(student.mean.clone().requires_grad_(), student.factor.clone().requires_grad_())
    (probability.repeat(len(sigmas)) * loss(student(z), noise, sigma)).sum().backward()
    assert student.mean.grad is not None
    assert student.factor.grad is not None
    return Slope(student.mean.grad, student.factor.grad)


def numerical_gradient(objective: Callable[[Student], Tensor], student: Student, step: float = 1e-4) -> Slope:
    """Central differences in each of the student's parameters."""
    size = len(student.mean)
    slopes = []
    for unit in torch.eye(size + size * size, dtype=torch.float64):
        direction = Slope(unit[:size], unit[size:].view(size, size))
        slopes.append(
            (objective(student.moved(direction, step)) - objective(student.moved(direction, -step))) / (2 * step)
        )
    return Slope(torch.stack(slopes[:size]), torch.stack(slopes[size:]).view(size, size))


def inverse_variance(sigma: Tensor, x0: Tensor, u: Tensor, target: Tensor) -> Tensor:
    """A weight that tells SIGMAS apart."""
    return sigma**-2


def log_cosh(u: Tensor, c: float) -> Tensor:
    """A distance that is neither quadratic nor a function of the norm alone."""
    return (u / c).cosh().log().sum()


#: d(u) of u: [B, D], written out again here.
DISTANCE_VALUES: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda u: u[:, 0] ** 2 + u[:, 1] ** 2,
    "pseudo_huber": lambda u: torch.hypot(torch.hypot(u[:, 0], u[:, 1]), tensor(HUBER_C)) - HUBER_C,
    "log_cosh": lambda u: (u / HUBER_C).cosh().log().sum(1),
}
#: A new entry of the library's is taken at its word, so that its gradient is tested before anything is written here.
DISTANCE_VALUES |= {
    name: lambda u, d=distance: torch.vmap(d, in_dims=(0, None))(u, HUBER_C)  # type: ignore[misc]
    for name, distance in DISTANCES.items()
    if name not in DISTANCE_VALUES
}


def frozen_divergence(moved: Student, *, sampled: Student, reference: Gaussian | Mixture, distance: str) -> Tensor:
    """Sum over SIGMAS of `E_{x ~ p_sigma of sampled} sigma^-2 d(D_moved(x) - D_ref(x))`: DI* eq. 3.2, whose gradient in
    `moved` at `moved = sampled` is what Theorem 3.1 claims.
    """
    points, probability = normal_grid(2, 60)
    total = tensor(0.0)
    for level in SIGMAS:
        sigma = torch.full((len(points),), level, dtype=torch.float64)
        covariance = sampled.factor @ sampled.factor.T + level**2 * torch.eye(2, dtype=torch.float64)
        x = sampled.mean + points @ torch.linalg.cholesky(covariance).T
        u = moved.density.denoiser(x, sigma) - reference.denoiser(x, sigma)
        total = total + (probability * DISTANCE_VALUES[distance](u)).sum() / level**2
    return total


def quadratic_divergence_gradient(student: Student, mean: Tensor, covariance: Tensor) -> Slope:
    """The gradient of `frozen_divergence` for l2 and a Gaussian reference, where u = M x + k makes it
    `||M b + k||^2 + tr(M S M^T)` with S the covariance of x, in any number of dimensions.
    """
    leaves = Slope(student.mean.clone().requires_grad_(), student.factor.clone().requires_grad_())
    total = tensor(0.0)
    for level in SIGMAS:
        noise = level**2 * torch.eye(len(mean), dtype=torch.float64)
        precision = torch.linalg.inv(leaves.factor @ leaves.factor.T + noise)
        reference_precision = torch.linalg.inv(covariance + noise)
        matrix = -(level**2) * (precision - reference_precision)
        offset = level**2 * (precision @ leaves.mean - reference_precision @ mean)
        spread = student.factor @ student.factor.T + noise
        total = (
            total + ((matrix @ student.mean + offset).square().sum() + (matrix @ spread @ matrix.T).trace()) / level**2
        )
    return Slope(*torch.autograd.grad(total, leaves))


# The oracles themselves


@pytest.mark.parametrize("oracle", [REFERENCE_3D, LEFT, TWO_MODES], ids=["gaussian_3d", "gaussian_2d", "two_modes"])
def test_an_oracles_score_denoiser_and_density_agree(oracle: Gaussian | Mixture) -> None:
    size = len(oracle.mean) if isinstance(oracle, Gaussian) else 2
    x = torch.randn(6, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    sigma = tensor([0.1, 0.5, 1.0, 1.0, 2.0, 8.0])
    (slope,) = torch.autograd.grad(oracle.log_prob(x, sigma).sum(), x)
    torch.testing.assert_close(oracle.score(x, sigma), slope, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(oracle.denoiser(x, sigma), x + sigma[:, None] ** 2 * slope, rtol=1e-10, atol=1e-10)


def test_the_gaussian_oracle_has_the_density_of_torchs() -> None:
    x = tensor([[0.3, -0.7, 1.1], [0.0, 2.0, -1.0]])
    covariance = COVARIANCE_3D + 0.49 * torch.eye(3, dtype=torch.float64)
    expected = torch.distributions.MultivariateNormal(MEAN_3D, covariance).log_prob(x)
    torch.testing.assert_close(REFERENCE_3D.log_prob(x, tensor([0.7, 0.7])), expected)


def test_the_mixture_oracle_has_the_density_of_its_parts() -> None:
    x, sigma = tensor([[0.3, -0.7], [-1.0, 2.0]]), tensor([0.5, 2.0])
    expected = (0.3 * LEFT.log_prob(x, sigma).exp() + 0.7 * RIGHT.log_prob(x, sigma).exp()).log()
    torch.testing.assert_close(TWO_MODES.log_prob(x, sigma), expected)


# The score divergence: exact is Theorem 3.1, and nothing less is


@pytest.mark.parametrize("gradient", ["exact", "exact_sequential"])
def test_exact_l2_gradient_is_the_closed_form_between_gaussians(gradient: Any) -> None:
    loss = partial(
        score_divergence_loss,
        assistant=STUDENT_3D.density.denoiser,
        reference=REFERENCE_3D.denoiser,
        distance="l2",
        gradient=gradient,
        weight=inverse_variance,
    )
    truth = quadratic_divergence_gradient(STUDENT_3D, MEAN_3D, COVARIANCE_3D)
    assert max(errors(expected_gradient(loss, STUDENT_3D, order=2), truth)) < 1e-12


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("distance", DISTANCE_VALUES)
def test_exact_gradient_is_the_numerical_gradient_of_the_frozen_divergence(
    distance: str, reference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For log_cosh too, known to the library by its value alone."""
    monkeypatch.setitem(DISTANCES, "log_cosh", log_cosh)
    loss = partial(
        score_divergence_loss,
        assistant=STUDENT.density.denoiser,
        reference=REFERENCES[reference].denoiser,
        distance=distance,
        huber_c=HUBER_C,
        weight=inverse_variance,
    )
    divergence = partial(frozen_divergence, sampled=STUDENT, reference=REFERENCES[reference], distance=distance)
    truth = numerical_gradient(divergence, STUDENT)
    assert max(errors(expected_gradient(loss, STUDENT, order=18), truth)) < (1e-6 if reference == "gaussian" else 1e-4)


@pytest.mark.parametrize("reference", REFERENCES)
@pytest.mark.parametrize("distance", ["l2", "pseudo_huber"])
def test_detached_gets_mean_and_covariance_wrong_at_any_step_size(distance: str, reference: str) -> None:
    """Why `exact` exists: `detached` is cheaper and not the gradient of this divergence, nor a multiple of it.

    Off by hundreds of times what `exact` may be off by, at the best step size for each parameter too.
    """
    loss = partial(
        score_divergence_loss,
        assistant=STUDENT.density.denoiser,
        reference=REFERENCES[reference].denoiser,
        distance=distance,
        huber_c=HUBER_C,
        gradient="detached",
        weight=inverse_variance,
    )
    divergence = partial(frozen_divergence, sampled=STUDENT, reference=REFERENCES[reference], distance=distance)
    found, truth = expected_gradient(loss, STUDENT, order=18), numerical_gradient(divergence, STUDENT)
    assert min(errors(found, truth)) > 0.2
    best = [(a * b).sum() / a.square().sum() for a, b in zip(found, truth, strict=True)]
    assert min(errors(Slope(best[0] * found.mean, best[1] * found.factor), truth)) > 0.05


def test_detaching_d_prime_alone_gets_the_mean_right_and_the_covariance_wrong() -> None:
    """The half-way reading of DI*'s listing, which a test of the mean would let pass."""
    assistant = STUDENT_3D.density.denoiser

    def half_detached(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        x = x0 + sigma[:, None] * noise
        prediction = assistant(x, sigma)
        d_prime = 2 * (prediction - REFERENCE_3D.denoiser(x, sigma)).detach()
        return -(sigma**-2) * (d_prime * (prediction - x0)).sum(1)

    truth = quadratic_divergence_gradient(STUDENT_3D, MEAN_3D, COVARIANCE_3D)
    found = errors(expected_gradient(half_detached, STUDENT_3D, order=2), truth)
    assert found.mean < 1e-12
    assert found.factor > 0.2


def test_descending_the_exact_divergence_brings_the_student_to_its_reference() -> None:
    """The sign, seen from far away: the assistant follows the student, and the student ends as the reference."""
    student = STUDENT_3D
    for _ in range(300):
        loss = partial(
            score_divergence_loss, assistant=student.density.denoiser, reference=REFERENCE_3D.denoiser, distance="l2"
        )
        student = student.moved(expected_gradient(loss, student, order=2), -0.05)
    torch.testing.assert_close(student.mean, MEAN_3D, rtol=0, atol=1e-3)
    torch.testing.assert_close(student.factor @ student.factor.T, COVARIANCE_3D, rtol=0, atol=1e-2)


# IKL


def test_ikl_gradient_is_that_of_the_kl_divergence_between_gaussians() -> None:
    """KL(N(b, S) || N(m, R)) has the gradients R^-1 (b - m) and (R^-1 - S^-1) A, with S = A A^T + sigma^2."""
    mean, factor = torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64)
    for level in SIGMAS:
        noise = level**2 * torch.eye(3, dtype=torch.float64)
        precision = torch.linalg.inv(STUDENT_3D.factor @ STUDENT_3D.factor.T + noise)
        reference_precision = torch.linalg.inv(COVARIANCE_3D + noise)
        mean += level**2 * reference_precision @ (STUDENT_3D.mean - MEAN_3D)
        factor += level**2 * (reference_precision - precision) @ STUDENT_3D.factor
    loss = partial(ikl_loss, assistant=STUDENT_3D.density.denoiser, reference=REFERENCE_3D.denoiser)
    assert max(errors(expected_gradient(loss, STUDENT_3D, order=2), Slope(mean, factor))) < 1e-12


def test_ikl_gradient_is_that_of_the_kl_divergence_to_two_modes() -> None:
    def divergence(student: Student) -> Tensor:
        points, probability = normal_grid(2, 60)
        total = tensor(0.0)
        for level in SIGMAS:
            sigma = torch.full((len(points),), level, dtype=torch.float64)
            covariance = student.factor @ student.factor.T + level**2 * torch.eye(2, dtype=torch.float64)
            x = student.mean + points @ torch.linalg.cholesky(covariance).T
            gap = student.density.log_prob(x, sigma) - TWO_MODES.log_prob(x, sigma)
            total = total + level**2 * (probability * gap).sum()
        return total

    loss = partial(ikl_loss, assistant=STUDENT.density.denoiser, reference=TWO_MODES.denoiser)
    truth = numerical_gradient(divergence, STUDENT)
    assert max(errors(expected_gradient(loss, STUDENT, order=18), truth)) < 2e-5


@pytest.mark.parametrize("distance", ["l2", "pseudo_huber"])
def test_detached_is_a_weighted_ikl_step(distance: str) -> None:
    """d'(u) = 2 u for l2 and u / sqrt(||u||^2 + c^2) for pseudo-Huber: the same direction, another length."""
    assistant, reference = STUDENT.density.denoiser, TWO_MODES.denoiser

    def factor(sigma: Tensor, x0: Tensor, u: Tensor, target: Tensor) -> Tensor:
        return torch.full_like(sigma, 2.0) if distance == "l2" else (u.square().sum(1) + HUBER_C**2).rsqrt()

    detached = partial(
        score_divergence_loss,
        assistant=assistant,
        reference=reference,
        distance=distance,
        huber_c=HUBER_C,
        gradient="detached",
    )
    ikl = partial(ikl_loss, assistant=assistant, reference=reference, weight=factor)
    assert max(errors(expected_gradient(detached, STUDENT, order=4), expected_gradient(ikl, STUDENT, order=4))) < 1e-12


# A terminal reward


VARIANCE, SLOPE, ALPHA = 1.7, 0.6, 0.8  # of the reference N(0, VARIANCE), and of the reward SLOPE * x0 at scale ALPHA
#: DI++'s by the weight's power and the noise levels, as `docs/which-method.md` quotes them.
OPTIMA = {
    2: {(1.0,): 1.30, (0.3, 1.0, 3.0): 1.41, (1.0, 3.0): 2.07},
    0: {(1.0,): 1.30, (0.3, 1.0, 3.0): 1.14, (1.0, 3.0): 0.79},
}


def terminal_optimum(objective: str, sigmas: Sequence[float], power: int) -> float:
    """The mean at which the divergence's pull, linear in the mean, balances ALPHA * SLOPE, with w =
    sigma^-power averaged over sigmas.

    There the student's variance is the reference's. DI++: `E[u] = sigma^2 m / (VARIANCE + sigma^2)`; DI* with l2: the
    derivative in m of `u^2` at frozen x is `2 u` times `sigma^2 / (VARIANCE + sigma^2)`.
    """
    ratios = [level**2 / (VARIANCE + level**2) for level in sigmas]
    pulls = [
        level**-power * (ratio if objective == "di++" else 2 * ratio**2)
        for level, ratio in zip(sigmas, ratios, strict=True)
    ]
    return ALPHA * SLOPE * len(sigmas) / sum(pulls)


@pytest.mark.parametrize("power", [0, 2])
@pytest.mark.parametrize("sigmas", [(1.0,), (0.3, 1.0, 3.0), (1.0, 3.0)], ids=str)
@pytest.mark.parametrize("objective", ["di++", "di*"])
def test_the_optimum_with_a_terminal_reward_depends_on_noise_levels_and_weight(
    objective: str, sigmas: tuple[float, ...], power: int
) -> None:
    """It is not the reference tilted by the reward, `N(ALPHA SLOPE VARIANCE, VARIANCE)`, which RLHF aims at."""
    mean = terminal_optimum(objective, sigmas, power)
    if objective == "di++":
        assert mean == pytest.approx(OPTIMA[power][sigmas], abs=5e-3)
    optimum, tilted = (Student(tensor([m]), tensor([[math.sqrt(VARIANCE)]])) for m in (mean, ALPHA * SLOPE * VARIANCE))
    reference = Gaussian(tensor([0.0]), tensor([[VARIANCE]]))
    found = {}
    for name, student in (("optimum", optimum), ("tilted", tilted)):
        networks = {"assistant": student.density.denoiser, "reference": reference.denoiser}
        distance = {} if objective == "di++" else {"distance": "l2"}
        divergence: Any = partial(ikl_loss if objective == "di++" else score_divergence_loss, **networks, **distance)

        def loss(x0: Tensor, noise: Tensor, sigma: Tensor, divergence: Any = divergence) -> Tensor:
            return divergence(x0, noise, sigma, weight=sigma**-power) - ALPHA * SLOPE * x0[:, 0]

        found[name] = expected_gradient(loss, student, order=2, sigmas=sigmas)
    assert abs(found["optimum"].mean) < 1e-12
    assert abs(found["optimum"].factor) < 1e-12
    assert abs(found["tilted"].mean) > 0.01


# Guidance


def log_class_probability(student: Student) -> Tensor:
    """Sum over SIGMAS of `sigma^2 E log p_sigma(c | x)` for the right one of TWO_MODES, x of this student."""
    points, probability = normal_grid(4, 12)
    z, noise = points.chunk(2, dim=1)
    total = tensor(0.0)
    for level in SIGMAS:
        sigma = torch.full((len(points),), level, dtype=torch.float64)
        log_posterior = TWO_MODES.log_posterior(student(z) + level * noise, sigma)[:, 1]
        total = total + level**2 * (probability * log_posterior).sum()
    return total


CFG_REWARD: Loss = partial(cfg_reward_loss, conditional=RIGHT.denoiser, unconditional=TWO_MODES.denoiser)


def test_cfg_reward_gradient_is_minus_that_of_the_log_class_probability() -> None:
    ascent = numerical_gradient(log_class_probability, STUDENT)
    found = expected_gradient(CFG_REWARD, STUDENT, order=12)
    assert max(errors(found, Slope(-ascent.mean, -ascent.factor))) < 1e-7


def test_descending_the_cfg_reward_raises_the_class_probability_and_the_papers_sign_lowers_it() -> None:
    slope, step = expected_gradient(CFG_REWARD, STUDENT, order=12), 1e-3
    gain = step * sum(part.square().sum().item() for part in slope)
    down, start, up = (log_class_probability(STUDENT.moved(slope, by)).item() for by in (-step, 0, step))
    assert down - start == pytest.approx(gain, rel=0.05)
    assert up - start == pytest.approx(-gain, rel=0.05)


@pytest.mark.parametrize(
    ("weight", "holds"),
    [
        (None, True),
        (inverse_variance, True),
        (WEIGHTS["edm"], True),
        (WEIGHTS["dmd"], False),
        (WEIGHTS["inverse_norm"], False),
    ],
    ids=["constant", "inverse_variance", "edm", "dmd", "inverse_norm"],
)
def test_guidance_inside_equals_guidance_outside_unless_the_weight_depends_on_the_reference(
    weight: Any, holds: bool
) -> None:
    """DI++ Theorem 3.4."""
    scale, assistant = 4.5, STUDENT.density.denoiser
    inside = partial(
        ikl_loss, assistant=assistant, reference=guided(RIGHT.denoiser, TWO_MODES.denoiser, scale), weight=weight
    )

    def outside(x0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
        divergence = ikl_loss(x0, noise, sigma, assistant=assistant, reference=RIGHT.denoiser, weight=weight)
        return divergence + (scale - 1) * CFG_REWARD(x0, noise, sigma, weight=weight)

    found = errors(expected_gradient(inside, STUDENT, order=6), expected_gradient(outside, STUDENT, order=6))
    assert max(found) < 1e-12 if holds else min(found) > 0.1


def test_guided_runs_from_unconditional_to_conditional_and_beyond() -> None:
    x, sigma = tensor([[0.3, -0.7], [-1.0, 2.0]]), tensor([0.5, 2.0])
    conditional, unconditional = RIGHT.denoiser(x, sigma), TWO_MODES.denoiser(x, sigma)
    at = {scale: guided(RIGHT.denoiser, TWO_MODES.denoiser, scale)(x, sigma) for scale in (0.0, 1.0, 3.0)}
    torch.testing.assert_close(at[0.0], unconditional)
    torch.testing.assert_close(at[1.0], conditional)
    torch.testing.assert_close(at[3.0], 3 * conditional - 2 * unconditional)


# The assistant


def test_the_exact_denoiser_is_where_the_assistants_loss_is_flat_and_lowest() -> None:
    """There `E||D(x) - x0||^2` is the trace of the posterior covariance, `C - C (C + sigma^2)^-1 C`."""
    covariance = STUDENT_3D.factor @ STUDENT_3D.factor.T
    points, probability = normal_grid(6, 2)
    z, noise = points.chunk(2, dim=1)
    sigma = torch.full((len(points),), SIGMAS[0], dtype=torch.float64)
    gain = covariance @ torch.linalg.inv(covariance + SIGMAS[0] ** 2 * torch.eye(3, dtype=torch.float64))
    matrix, offset = gain.clone().requires_grad_(), ((torch.eye(3) - gain) @ STUDENT_3D.mean).requires_grad_()
    loss = assistant_loss(STUDENT_3D(z), noise, sigma, assistant=lambda x, sigma: x @ matrix.T + offset)
    expected = (probability * loss).sum()
    assert expected.item() == pytest.approx((covariance - gain @ covariance).trace().item(), rel=1e-12)
    for slope in torch.autograd.grad(expected, (matrix, offset)):
        assert slope.abs().max() < 1e-12


# Any networks: what holds without a closed form

SHAPE = (2, 3, 3)


class Network(nn.Module):
    """A small random nonlinear denoiser of `[B, 2, 3, 3]`; as a student, of latents at sigma = 1."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        size = math.prod(SHAPE)
        self.body = nn.Sequential(
            nn.Linear(size + 1, 16), nn.Tanh(), nn.Linear(16, 16), nn.SiLU(), nn.Linear(16, size)
        ).double()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.body(torch.cat([x.flatten(1), sigma[:, None]], 1)).view_as(x)


class Batch(NamedTuple):
    """Networks and one batch for them."""

    student: Network
    first: Network
    second: Network
    z: Tensor
    noise: Tensor
    sigma: Tensor

    @property
    def x0(self) -> Tensor:
        return self.student(self.z, torch.ones_like(self.sigma))


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    z, noise = torch.randn(2, 5, *SHAPE, dtype=torch.float64, generator=generator)
    return Batch(Network(1), Network(2), Network(3), z, noise, tensor([0.1, 0.5, 1.0, 3.0, 10.0]))


#: (x0, noise, sigma, first, second, weight=None) -> [B]. u = first - second, but for
#: `guided`, whose reference is of both.
LOSSES: dict[str, Callable[..., Tensor]] = {
    "ikl": lambda *at, weight=None: ikl_loss(*at[:3], assistant=at[3], reference=at[4], weight=weight),
    "cfg_reward": lambda *at, weight=None: cfg_reward_loss(
        *at[:3], conditional=at[3], unconditional=at[4], weight=weight
    ),
    "guided": lambda *at, weight=None: ikl_loss(
        *at[:3], assistant=at[3], reference=guided(at[4], at[3], 3.0), weight=weight
    ),
} | {
    gradient: lambda *at, gradient=gradient, weight=None: score_divergence_loss(
        *at[:3], assistant=at[3], reference=at[4], huber_c=HUBER_C, gradient=gradient, weight=weight
    )
    for gradient in ("exact", "exact_sequential", "detached")
}


def gradients(module: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]


def student_gradient(loss: Callable[..., Tensor], batch: Batch, **options: Any) -> tuple[Tensor, Tensor]:
    """The `[B]` losses, and the gradient of their mean with respect to all of the student's parameters, flat."""
    values = loss(batch.x0, batch.noise, batch.sigma, batch.first, batch.second, **options)
    slopes = torch.autograd.grad(values.mean(), list(batch.student.parameters()))
    return values.detach(), torch.cat([slope.flatten() for slope in slopes])


@pytest.mark.parametrize("weight", [None, "tensor", "edm", "dmd", "inverse_norm"])
@pytest.mark.parametrize("distance", ["l2", "pseudo_huber", "log_cosh"])
def test_exact_sequential_is_exact_in_value_and_gradient(
    batch: Batch, distance: str, weight: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(DISTANCES, "log_cosh", log_cosh)
    weight = tensor([0.3, 1.0, 2.0, 0.7, 5.0]) if weight == "tensor" else weight and WEIGHTS[weight]
    found = {}
    for gradient in ("exact", "exact_sequential", "detached"):

        def loss(*at: Any, gradient: Any = gradient) -> Tensor:
            return score_divergence_loss(
                *at[:3],
                assistant=at[3],
                reference=at[4],
                distance=distance,
                huber_c=HUBER_C,
                gradient=gradient,
                weight=weight,
            )

        found[gradient] = student_gradient(loss, batch)
    (values, slope), (other_values, other_slope), (detached_values, detached_slope) = found.values()
    torch.testing.assert_close(other_values, values, rtol=1e-12, atol=0)
    torch.testing.assert_close(detached_values, values, rtol=1e-12, atol=0)
    assert (other_slope - slope).norm() < 1e-12 * slope.norm()
    assert (detached_slope - slope).norm() > 1e-2 * slope.norm()


def test_exact_sequential_has_freed_the_assistants_activations_when_the_reference_is_differentiated(
    batch: Batch,
) -> None:
    """What it is for. Whatever autograd keeps for the assistant is kept through `Held`, so that its end can be seen."""

    class Held:
        def __init__(self, value: Tensor) -> None:
            self.value = value

    alive: dict[str, int] = {}
    for gradient in ("exact", "exact_sequential"):
        held: weakref.WeakSet[Held] = weakref.WeakSet()

        def pack(value: Tensor, held: weakref.WeakSet[Held] = held) -> Held:
            held.add(kept := Held(value))
            return kept

        def assistant(x: Tensor, sigma: Tensor, pack: Any = pack) -> Tensor:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.value):
                return batch.first(x, sigma)

        def reference(x: Tensor, sigma: Tensor, gradient: str = gradient, held: weakref.WeakSet[Held] = held) -> Tensor:
            if torch.is_grad_enabled():
                alive[gradient] = len(held)
            return batch.second(x, sigma)

        LOSSES[gradient](batch.x0, batch.noise, batch.sigma, assistant, reference)
    assert alive["exact"] > 0
    assert alive["exact_sequential"] == 0


@pytest.mark.parametrize(
    ("loss", "passes"),
    [
        ("exact_sequential", [("reference", False), ("assistant", True), ("reference", True)]),
        ("detached", [("reference", False), ("assistant", False)]),
        ("ikl", [("reference", False), ("assistant", False)]),
    ],
)
def test_a_graph_is_built_only_where_it_is_needed(batch: Batch, loss: str, passes: list[tuple[str, bool]]) -> None:
    """A graph that nothing reads changes no number, and fills the memory of a card."""
    seen = []

    def watched(name: str, network: Network) -> Callable[[Tensor, Tensor], Tensor]:
        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            seen.append((name, torch.is_grad_enabled()))
            return network(x, sigma)

        return denoiser

    LOSSES[loss](
        batch.x0, batch.noise, batch.sigma, watched("assistant", batch.first), watched("reference", batch.second)
    )
    assert seen == passes


@pytest.mark.parametrize("loss", LOSSES)
def test_only_the_student_receives_a_gradient(batch: Batch, loss: str) -> None:
    LOSSES[loss](batch.x0, batch.noise, batch.sigma, batch.first, batch.second).mean().backward()
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients(batch.student))
    assert gradients(batch.first) == [None] * len(gradients(batch.first))
    assert gradients(batch.second) == [None] * len(gradients(batch.second))


def test_only_the_assistant_receives_a_gradient_from_its_loss(batch: Batch) -> None:
    x0 = batch.x0
    x0.retain_grad()
    assistant_loss(x0, batch.noise, batch.sigma, assistant=batch.first).mean().backward()
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in gradients(batch.first))
    assert x0.grad is None
    assert gradients(batch.student) == [None] * len(gradients(batch.student))


@pytest.mark.parametrize("loss", LOSSES)
def test_a_frozen_network_a_leaf_and_no_graph_at_all_do(batch: Batch, loss: str) -> None:
    """Training hands over images with a graph; memory-saving loops a leaf; monitoring has gradients off."""
    for module in (batch.first, batch.second):
        module.requires_grad_(False)
    rest = batch.noise, batch.sigma, batch.first, batch.second
    x0 = batch.x0
    x0.retain_grad()
    values = LOSSES[loss](x0, *rest)
    values.mean().backward()
    leaf = x0.detach().requires_grad_()
    LOSSES[loss](leaf, *rest).mean().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad, x0.grad, rtol=0, atol=0)
    for value in (LOSSES[loss](x0.detach(), *rest), torch.no_grad()(LOSSES[loss])(x0, *rest)):
        assert not value.requires_grad
        torch.testing.assert_close(value, values.detach(), rtol=1e-14, atol=0)


@pytest.mark.parametrize("loss", [*LOSSES, "assistant"])
def test_each_images_loss_is_its_own(batch: Batch, loss: str) -> None:
    """[B] out, summed over C, H, W: nothing is averaged over the batch or shared between images."""

    def call(at: slice) -> Tensor:
        x0, noise, sigma = batch.x0[at], batch.noise[at], batch.sigma[at]
        if loss == "assistant":
            return assistant_loss(x0, noise, sigma, assistant=batch.first)
        return LOSSES[loss](x0, noise, sigma, batch.first, batch.second)

    values = call(slice(None))
    assert values.shape == batch.sigma.shape
    torch.testing.assert_close(values, torch.cat([call(slice(i, i + 1)) for i in range(5)]), rtol=1e-12, atol=1e-12)


# Values and weights


def test_values_are_the_formulas(batch: Batch) -> None:
    x0 = batch.x0.detach()
    x = x0 + batch.sigma[:, None, None, None] * batch.noise
    first, second = batch.first(x, batch.sigma).detach(), batch.second(x, batch.sigma).detach()
    u = first - second
    c = 0.00054 * 18**0.5
    expected = {
        "ikl": u * x,
        "cfg_reward": -u * x,
        "l2": -2 * u * (first - x0),
        "pseudo_huber": -u / (u.square().sum((1, 2, 3), keepdim=True) + c**2).sqrt() * (first - x0),
        "assistant": (first - x0) ** 2,
    }
    at = x0, batch.noise, batch.sigma
    found = {
        "ikl": ikl_loss(*at, assistant=batch.first, reference=batch.second),
        "cfg_reward": cfg_reward_loss(*at, conditional=batch.first, unconditional=batch.second),
        "l2": score_divergence_loss(*at, assistant=batch.first, reference=batch.second, distance="l2"),
        "pseudo_huber": score_divergence_loss(*at, assistant=batch.first, reference=batch.second),
        "assistant": assistant_loss(*at, assistant=batch.first).detach(),
    }
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name].sum((1, 2, 3)), rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("loss", [*LOSSES, "assistant"])
def test_a_weight_is_given_what_it_is_promised_scales_the_loss_and_is_not_differentiated(
    batch: Batch, loss: str
) -> None:
    rest = batch.noise, batch.sigma
    given: list[tuple[Tensor, ...]] = []

    def weight(*arguments: Tensor) -> Tensor:
        given.append(arguments)
        return sum(argument.flatten(1).norm(dim=1) for argument in arguments[1:]) + arguments[0]

    def call(weight: Any) -> tuple[Tensor, Tensor]:
        if loss == "assistant":
            trained, values = batch.first, assistant_loss(batch.x0, *rest, assistant=batch.first, weight=weight)
        else:
            trained, values = batch.student, LOSSES[loss](batch.x0, *rest, batch.first, batch.second, weight=weight)
        values.sum().backward()
        slope = torch.cat([parameter.grad.flatten() for parameter in trained.parameters()])
        trained.zero_grad()
        return values.detach(), slope

    found = call(weight)
    x0 = batch.x0.detach()
    x = x0 + batch.sigma[:, None, None, None] * batch.noise
    first, second = batch.first(x, batch.sigma).detach(), batch.second(x, batch.sigma).detach()
    reference = 3 * second - 2 * first
    u, target = {
        "assistant": (first - x0, x0),
        "cfg_reward": (first - second, first),
        "guided": (first - reference, reference),
    }.get(loss, (first - second, second))
    for argument, promised in zip(given[0], (batch.sigma, x0, u, target), strict=True):
        assert not argument.requires_grad
        torch.testing.assert_close(argument, promised, rtol=1e-12, atol=1e-12)

    numbers = weight(batch.sigma, x0, u, target).requires_grad_()
    for a, b in zip(found, call(numbers), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert numbers.grad is None
    torch.testing.assert_close(found[0], numbers.detach() * call(None)[0], rtol=1e-10, atol=1e-12)


def test_named_weights_are_their_papers_formulas(batch: Batch) -> None:
    x0, target, sigma = batch.z, batch.noise, batch.sigma
    gap = x0 - target
    expected = {
        "edm": (sigma**2 + 1) / sigma**2,
        "dmd": 1 / (18 * gap.abs().mean((1, 2, 3))),
        "inverse_norm": 1 / gap.square().sum((1, 2, 3)).sqrt(),
    }
    assert WEIGHTS["constant"] is None
    for name, numbers in expected.items():
        weight = WEIGHTS[name]
        assert callable(weight)
        torch.testing.assert_close(weight(sigma, x0, torch.zeros_like(x0), target), numbers)


@pytest.mark.parametrize("name", ["dmd", "inverse_norm"])
def test_an_image_that_equals_its_target_has_a_finite_weight(name: str) -> None:
    x0 = torch.ones(2, *SHAPE)
    weight = WEIGHTS[name]
    assert callable(weight)
    assert weight(torch.ones(2), x0, x0, x0).isfinite().all()


def test_l2_is_twice_sids_loss_at_its_alpha_1(batch: Batch) -> None:
    """SiD (Zhou et al. 2024) with its alpha: `(D_ref - D_psi)^T ((D_ref - x0) - alpha (D_ref - D_psi))`.

    Through x0 and x.
    """

    def sid(x0: Tensor, noise: Tensor, sigma: Tensor, first: Any, second: Any) -> Tensor:
        x = x0 + sigma[:, None, None, None] * noise
        fake, real = first(x, sigma), second(x, sigma)
        return ((real - fake) * ((real - x0) - 1.0 * (real - fake))).sum((1, 2, 3))

    def half(*at: Any) -> Tensor:
        return score_divergence_loss(*at[:3], assistant=at[3], reference=at[4], distance="l2") / 2

    for found, want in zip(student_gradient(half, batch), student_gradient(sid, batch), strict=True):
        assert (found - want).norm() < 1e-12 * want.norm()


# Distances


@pytest.mark.parametrize("name", ["l2", "pseudo_huber", "log_cosh"])
def test_derivatives_of_a_distance_are_the_analytic_ones(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DISTANCES, "log_cosh", log_cosh)
    u, v = torch.randn(2, 4, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    squares = u.square().sum((1, 2, 3), keepdim=True)
    radius = (squares + HUBER_C**2).sqrt()
    along = (u * v).sum((1, 2, 3), keepdim=True)
    d_prime, hv = {
        "l2": (2 * u, 2 * v),
        "pseudo_huber": (u / radius, v / radius - u * along / radius**3),
        "log_cosh": ((u / HUBER_C).tanh() / HUBER_C, v * (u / HUBER_C).cosh() ** -2 / HUBER_C**2),
    }[name]
    torch.testing.assert_close(distance_gradient(name, u, HUBER_C), d_prime, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(hessian_vector_product(name, u, v, HUBER_C), hv, rtol=1e-12, atol=1e-12)
    step = 1e-5
    numerical = (distance_gradient(name, u + step * v, HUBER_C) - distance_gradient(name, u - step * v, HUBER_C)) / (
        2 * step
    )
    torch.testing.assert_close(hv, numerical, rtol=1e-7, atol=1e-7)


def test_distances_are_zero_at_zero_with_no_slope() -> None:
    zero = torch.zeros(2, *SHAPE, dtype=torch.float64)
    for name, distance in DISTANCES.items():
        assert distance(zero[0], HUBER_C) == 0, name
        assert distance_gradient(name, zero, HUBER_C).abs().max() == 0, name


def test_default_huber_c_follows_one_images_size() -> None:
    assert default_huber_c(torch.zeros(7, 4, 64, 64)) == pytest.approx(0.06912, rel=1e-12)


@pytest.mark.parametrize("gradient", ["exact", "exact_sequential", "detached"])
def test_huber_c_defaults_and_counts(batch: Batch, gradient: Any) -> None:
    call = partial(
        score_divergence_loss,
        batch.x0.detach(),
        batch.noise,
        batch.sigma,
        assistant=batch.first,
        reference=batch.second,
        gradient=gradient,
    )
    torch.testing.assert_close(call(), call(distance="pseudo_huber", huber_c=0.00054 * 18**0.5), rtol=1e-12, atol=0)
    assert (call() - call(huber_c=0.5)).abs().min() > 1e-3


def test_unknown_names_are_refused_with_the_choices(batch: Batch) -> None:
    call = partial(
        score_divergence_loss, batch.x0, batch.noise, batch.sigma, assistant=batch.first, reference=batch.second
    )
    with pytest.raises(ValueError, match="unknown distance 'l3'; choose one of l2, pseudo_huber"):
        call(distance="l3")
    with pytest.raises(ValueError, match="unknown gradient 'half'; choose exact, exact_sequential or detached"):
        call(gradient="half")
