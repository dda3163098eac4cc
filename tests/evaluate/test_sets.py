"""Distribution metrics: the contract of all there are, then each against a closed form or its original."""

import json
import math
import os
import pickle
import subprocess
import sys
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub import Hub
from torch import Tensor

from evaluate import distribution, scorers
from evaluate.distribution.diversity import WithinPrompt, mean_cosine_distance
from evaluate.distribution.fd_shapes import RENDERS, fd_shapes
from evaluate.distribution.frechet import FrechetMetric, Moments, frechet_distance
from evaluate.distribution.jackknife import group_of
from prompts.io.errors import UserError
from prompts.shapes import render, sample_captions

OTHERS = ("/coco-sdxl-10k", "/mjhq-30k")
CAPTIONS = sample_captions(30, split="test", seed=0) * 2
IMAGES = torch.from_numpy(render(CAPTIONS, seed=0))


#: Statistics on Inception's features differ by what prepares them, which is FID's to test.
NAMES = [name for name in distribution.variants() if not name.endswith(OTHERS) or name.startswith("fid/")]


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, tiny_clip: None, tiny_networks: Hub) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def fresh(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> distribution.DistributionMetric:
    """The metric with nothing gathered."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    if name not in distribution.references():
        return distribution.load(name)
    save_images(tmp_path / "real", 20)
    return distribution.load(name, reference=str(tmp_path / "real"))


def save_images(folder: Path, n: int, *, seed: int = 0) -> None:
    from PIL import Image

    folder.mkdir()
    for i, image in enumerate(np.random.default_rng(seed).integers(0, 256, (n, 40, 50, 3), dtype=np.uint8)):
        Image.fromarray(image).save(folder / f"{i}.png")


def filled(
    metric: distribution.DistributionMetric, rows: slice = slice(None), step: int = 100
) -> distribution.DistributionMetric:
    import copy

    metric = copy.copy(metric)
    images, captions = IMAGES[rows], CAPTIONS[rows]
    for i in range(0, len(images), step):
        metric.update(images[i : i + step], captions[i : i + step])
    return metric


def test_a_metric_gathers_in_any_order_and_in_parts(fresh: distribution.DistributionMetric) -> None:
    whole = filled(fresh).compute()
    assert whole.n == len(IMAGES)
    assert whole.low <= whole.value <= whole.high
    assert sum(n for n, _ in whole.left_out.values()) == whole.n
    json.dumps(asdict(whole), allow_nan=False)
    backwards = filled(fresh, slice(40, None), step=7)
    backwards.merge(filled(fresh, slice(0, 0)))
    backwards.merge(filled(fresh, slice(0, 40), step=11))
    merged = backwards.compute()
    assert (merged.value, merged.low, merged.high) == pytest.approx((whole.value, whole.low, whole.high), rel=1e-5)


def test_a_state_travels_and_is_never_changed_in_place(fresh: distribution.DistributionMetric) -> None:
    part = filled(fresh, slice(0, 45))
    value, state = part.compute(), part.state
    other = filled(fresh, slice(45, None))
    other.state = pickle.loads(pickle.dumps(other.state))
    part.merge(other)
    part.update(IMAGES[:5], CAPTIONS[:5])
    part.compute()
    again = filled(fresh, slice(0, 0))
    again.state = state
    assert again.compute() == value
    assert distribution.gather(again) is again


def test_bytes_and_lists_are_taken(fresh: distribution.DistributionMetric) -> None:
    quantised = (IMAGES * 255).round().byte()
    values = []
    for images in (quantised, list(quantised), quantised.float() / 255):
        metric = filled(fresh, slice(0, 0))
        metric.update(images, CAPTIONS)
        values.append(metric.compute().value)
    assert values == pytest.approx([values[0]] * 3, rel=1e-5)


def test_too_little_is_refused(fresh: distribution.DistributionMetric) -> None:
    with pytest.raises(ValueError, match=fresh.protocol):
        fresh.compute()
    with pytest.raises(ValueError, match=r"prompts|shorter|longer"):
        fresh.update(IMAGES, CAPTIONS[:-1])


def test_names_and_arguments(tiny_clip: None, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there are .*fd-shapes"):
        distribution.load("fid/imagenet")
    with pytest.raises(UserError, match="leave out real"):
        distribution.load("fd-shapes", reference="real")
    with pytest.raises(UserError, match="leave out real"):
        distribution.load("diversity", reference="real")
    with pytest.raises(UserError, match="give their folder as the reference"):
        distribution.load("fid/coco2014-30k")


@pytest.mark.slow
def test_two_processes_gather_what_one_would(tmp_path: Path, quick_programs: None) -> None:
    code = """
        import sys, torch
        from torch import distributed
        from evaluate import distribution
        from evaluate.distribution.diversity import WithinPrompt
        from evaluate.distribution.frechet import FrechetMetric, Moments
        from evaluate.distribution.samples import SampleMetric
        from evaluate.distribution.vendi import vendi, vendi_statistic
        rank, world, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
        features = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)).double()
        metric = FrechetMetric("f", lambda x: x, lambda: Moments(9, torch.zeros(3).double(), 8 * torch.eye(3).double()),
        n_images=60, weights_sha256="")
        others = [SampleMetric("s", lambda x: x, vendi_statistic, weights_sha256=""),
        WithinPrompt("w", lambda x: x, vendi, weights_sha256="")]
        if world > 1:
            distributed.init_process_group("gloo", f"file://{store}", rank=rank, world_size=world)
        for each in (metric, *others):
            each.update(features[rank::world], [f"{i // 3}" for i in range(rank, 60, world)])
            whole, own = distribution.gather(each).compute(), each.compute()
            print(whole.n, whole.value, whole.low, whole.high, own.n)
    """

    def start(rank: int, world: int) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", textwrap.dedent(code), str(rank), str(world), str(tmp_path / "store")]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)

    runs = [start(0, 2), start(1, 2), start(0, 1)]
    first, second, alone = ([float(word) for word in run.communicate(timeout=120)[0].split()] for run in runs)
    # Moments, features, features by prompt: of those of which a process has one image alone nothing can be said.
    for i, own in {0: 30, 5: 30, 10: 20}.items():
        assert first[i : i + 4] == second[i : i + 4] == pytest.approx(alone[i : i + 4], rel=1e-10)
        assert alone[i] == first[i] == 60
        assert [first[i + 4], second[i + 4], alone[i + 4]] == [own, own, 60]


# Fréchet distance


def test_a_singular_covariance_has_a_factor_too() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(5, 9, generator=generator, dtype=torch.float64)
    thin, full = (torch.randn(40, d, generator=generator, dtype=torch.float64) for d in (5, 9))
    a, b = Moments.of(thin @ mixing), Moments.of(full)
    torch.testing.assert_close(a.factor @ a.factor.T, a.covariance)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def metric_of(reference: Moments, n_images: int = 0) -> FrechetMetric:
    return FrechetMetric(
        "f", lambda features: torch.as_tensor(features), lambda: reference, n_images=n_images, weights_sha256=""
    )


STANDARD = Moments(10**6, torch.zeros(4).double(), (10**6 - 1) * torch.eye(4).double())


@pytest.mark.parametrize("shared", [0.0, 0.9], ids=["independent", "images of a prompt alike"])
def test_the_interval_covers_as_often_as_it_says(shared: float) -> None:
    rng = np.random.default_rng(0)
    prompts = [f"prompt {i // 2}" for i in range(400)]
    estimates = []
    for _ in range(300):
        common, own = rng.normal(size=(200, 1, 4)), rng.normal(size=(200, 2, 4))
        features = (math.sqrt(shared) * common + math.sqrt(1 - shared) * own).reshape(400, 4) * [
            0.7,
            0.9,
            1.1,
            1.3,
        ] + 0.2
        metric = metric_of(STANDARD)
        metric.update(torch.from_numpy(features), prompts)
        estimates.append(metric.compute())
    # What the interval is for: the distance that n images have on average.
    expected = np.mean([estimate.value for estimate in estimates])
    covered = np.mean([estimate.low <= expected <= estimate.high for estimate in estimates])
    assert 0.92 <= covered <= 0.985


def test_too_few_images_are_said_so() -> None:
    wide = Moments(1000, torch.zeros(64).double(), 999 * torch.eye(64).double())
    features = torch.randn(60, 64, generator=torch.Generator().manual_seed(0))
    metric = metric_of(wide, n_images=100)
    metric.update(features, [f"{i}" for i in range(60)])
    assert (
        metric.compute().note
        == "rank-deficient: 60 images for 64 dimensions, so the value is far too high; 60 images where the protocol"
        " takes 100"
    )
    metric = metric_of(Moments(40, wide.mean, wide.scatter), n_images=60)
    metric.n_real = 50
    metric.update(features, [f"{i}" for i in range(60)])
    assert metric.compute().note.endswith(
        "the reference's 40 images are too few for 64 dimensions; a reference of 40 images where the protocol's has 50"
    )
    single = metric_of(STANDARD, n_images=8)
    single.update(torch.randn(8, 4), ["one prompt"] * 8)
    estimate = single.compute()
    assert math.isnan(estimate.low)
    assert estimate.note == "no interval: too few prompts"


def test_groups_are_even_and_fixed() -> None:
    counts = np.bincount([group_of(f"{i}") for i in range(2000)])
    assert len(counts) == 10
    assert counts.min() > 150
    # Baselines keep them: they may never change.
    assert [group_of(prompt) for prompt in "abc"] == [0, 6, 0]
    assert [group_of(prompt, 50) for prompt in "abc"] == [0, 46, 30]


# fd-shapes


def test_fd_shapes_is_the_distance_to_renders_of_the_same_captions(tiny_clip: None, clip_folder: Path) -> None:
    clip: Any = scorers.load("shapes/clip", weights=str(clip_folder))
    with torch.no_grad():
        renders = torch.from_numpy(render(sorted(CAPTIONS) * RENDERS, seed=0))
        expected = frechet_distance(Moments.of(clip.features(IMAGES)), Moments.of(clip.features(renders)))
    assert fd_shapes(IMAGES, CAPTIONS) == pytest.approx(expected, rel=1e-6)
    assert fd_shapes(IMAGES, CAPTIONS) < fd_shapes(IMAGES * 0.5, CAPTIONS)


# Diversity


def diversity(features: Tensor, prompts: list[str]) -> distribution.Estimate:
    metric = WithinPrompt("d", lambda images: torch.as_tensor(images), mean_cosine_distance, weights_sha256="")
    metric.update(features, prompts)
    return metric.compute()


def test_diversity_is_the_mean_over_pairs_then_over_prompts() -> None:
    features = torch.randn(9, 5, generator=torch.Generator().manual_seed(0)).double()
    prompts = ["a", "b", "a", "a", "b", "c", "a", "d", "d"]
    by_prompt = []
    for prompt in "abd":
        rows = [features[i] for i, p in enumerate(prompts) if p == prompt]
        pairs = [1 - torch.cosine_similarity(x, y, dim=0) for i, x in enumerate(rows) for y in rows[:i]]
        by_prompt.append(torch.stack(pairs).mean().item())
    estimate = diversity(features, prompts)
    assert estimate.value == pytest.approx(np.mean(by_prompt), rel=1e-12)
    assert estimate.high - estimate.value == pytest.approx(
        4.302653 * np.std(by_prompt, ddof=1) / math.sqrt(3), rel=1e-6
    )
    assert estimate.n == 8
    assert estimate.note == "1 prompts of a single image left out"


def test_diversity_of_copies_is_nothing_and_of_opposites_two() -> None:
    one = torch.tensor([[3.0, 4.0]])
    assert diversity(torch.cat([one, 2 * one, one, one]), ["a", "a", "b", "b"]).value == pytest.approx(0, abs=1e-12)
    assert diversity(torch.cat([one, -one, one, -one]), ["a", "a", "b", "b"]).value == pytest.approx(2)
    with pytest.raises(ValueError, match="from several seeds"):
        diversity(torch.eye(3), ["a", "b", "c"])


def test_the_interval_of_diversity_is_clustered_by_prompt() -> None:
    rng = np.random.default_rng(1)
    estimates = []
    for _ in range(400):
        # Prompts differ in how far their images spread; each has six, whose fifteen pairs say little more than one.
        spread = rng.uniform(0.1, 2, (30, 1, 1))
        features = rng.normal(size=(30, 1, 6)) + spread * rng.normal(size=(30, 6, 6))
        estimates.append(diversity(torch.from_numpy(features.reshape(180, 6)), [f"{i // 6}" for i in range(180)]))
    truth = np.mean([estimate.value for estimate in estimates])
    assert 0.92 <= np.mean([estimate.low <= truth <= estimate.high for estimate in estimates]) <= 0.975
