"""Fréchet distance and paired intervals, against closed forms."""

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from evaluate.distribution.frechet import Moments, frechet_distance
from evaluate.stats import paired_difference, wilson


def test_moments_merge_to_those_of_the_whole() -> None:
    features = torch.randn(1000, 7, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 8)
    whole = Moments.of(features)
    merged = Moments.of(features[:100]).merge(Moments.of(features[100:450])).merge(Moments.of(features[450:]))
    torch.testing.assert_close(merged.mean, whole.mean)
    torch.testing.assert_close(merged.covariance, torch.cov(features.double().T))


def test_frechet_distance_of_commuting_covariances() -> None:
    # For diagonal covariances it is ||mu_a - mu_b||^2 + sum (sqrt(s_a) - sqrt(s_b))^2.
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 4.0, 1.0]).double()
    shift = torch.tensor([0.5, 0.0, -2.0]).double()
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    n = 10

    def moments(mean: torch.Tensor, variances: torch.Tensor) -> Moments:
        return Moments(n, rotation @ mean, rotation @ torch.diag(variances) @ rotation.T * (n - 1))

    expected = shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert frechet_distance(moments(shift * 0, a), moments(shift, b)) == pytest.approx(expected.item(), rel=1e-12)
    assert frechet_distance(moments(shift, a), moments(shift, a)) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_of_any_covariances_against_scipy() -> None:
    from scipy.linalg import sqrtm

    generator = torch.Generator().manual_seed(2)
    a, b = (
        Moments.of(torch.randn(50, 6, generator=generator) @ torch.randn(6, 6, generator=generator)) for _ in range(2)
    )
    root = np.real(sqrtm(a.covariance.numpy() @ b.covariance.numpy()))
    expected = (a.mean - b.mean).square().sum().item() + np.trace(
        a.covariance.numpy() + b.covariance.numpy() - 2 * root
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_the_paired_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = []
    for _ in range(1000):
        a = rng.normal(size=40)
        row = paired_difference(a, a + rng.normal(0.3, 1, size=40))
        covered.append(row.low <= 0.3 <= row.high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_wins_count_ties_by_half() -> None:
    assert paired_difference(np.array([0.0, 0, 0, 0]), np.array([1.0, 1, 0, -1])).win_rate == 0.625


@pytest.mark.slow
def test_the_interval_of_the_win_rate_covers_it_as_often_as_it_says() -> None:
    """Also near one, where an interval from the standard error is often a single point."""
    rng = np.random.default_rng(4)
    for share, n in ((0.5, 40), (0.95, 40), (0.75, 200)):
        rows = [
            paired_difference(np.zeros(n), rng.choice([1.0, -1.0], p=[share, 1 - share], size=n)) for _ in range(3000)
        ]
        covered = np.mean([row.win_low <= share <= row.win_high for row in rows])
        assert 0.93 <= covered <= 0.985, (share, n, covered)


def test_the_interval_of_a_share_is_wilsons() -> None:
    assert wilson(0.75, 20) == pytest.approx(tuple(binomtest(15, 20).proportion_ci(method="wilson")), rel=1e-12)
    assert wilson(1.0, 10)[1] == pytest.approx(1) and wilson(0.0, 10)[0] == pytest.approx(0)


def test_too_few_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        paired_difference(np.array([1.0]), np.array([1.0]))
