"""A scorer as a torchmetrics.Metric: moments that merge across batches and processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evaluate import scorers
from evaluate.metric import ScorerMetric, merge_moments
from prompts.shapes import render, sample_captions

CAPTIONS = sample_captions(24, split="test", seed=1)
IMAGES = torch.from_numpy(render(CAPTIONS, seed=1))


@pytest.fixture
def scorer(clip_folder: Path) -> scorers.Scorer:
    return scorers.load("shapes/clip", weights=str(clip_folder))


def moments(values: torch.Tensor) -> torch.Tensor:
    return torch.stack([values.new_tensor(len(values)), values.mean(), (values - values.mean()).square().sum()])


def test_moments_merge_to_those_of_the_whole() -> None:
    values = 1e4 + torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = [moments(part) for part in values.split([1, 40, 59])]
    torch.testing.assert_close(merge_moments(torch.stack(parts)), moments(values), rtol=1e-12, atol=0)
    nothing = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(merge_moments(torch.stack([nothing, moments(values), nothing])), moments(values))
    assert torch.equal(merge_moments(torch.stack([nothing, nothing])), nothing)


def test_mean_and_standard_error_over_batches(scorer: scorers.Scorer) -> None:
    metric = ScorerMetric(scorer)
    for first, last in ((0, 5), (5, 6), (6, 24)):
        metric.update(IMAGES[first:last], CAPTIONS[first:last])
    scores = scorer.score(IMAGES, CAPTIONS).double()
    result = metric.compute()
    torch.testing.assert_close(result["mean"], scores.mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(result["standard_error"], scores.std() / 24**0.5, rtol=1e-4, atol=0)
    assert result["n"] == 24
    metric.reset()
    metric.update(IMAGES[:1], CAPTIONS[:1])
    assert metric.compute()["standard_error"].isnan()


def test_its_own_ways_of_merging(scorer: scorers.Scorer) -> None:
    whole, a, b = (ScorerMetric(scorer) for _ in range(3))
    whole.update(IMAGES, CAPTIONS)
    a.update(IMAGES[:10], CAPTIONS[:10])
    batch = b(IMAGES[10:20], CAPTIONS[10:20])
    assert batch["n"] == 10
    b(IMAGES[20:], CAPTIONS[20:])
    a.merge_state(b)
    torch.testing.assert_close(a.moments, whole.moments, rtol=1e-5, atol=0)


def test_a_score_that_is_no_number_is_refused(scorer: scorers.Scorer) -> None:
    metric = ScorerMetric(scorer)
    images = IMAGES[:3].clone()
    images[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="image 1 is nan"):
        metric.update(images, CAPTIONS[:3])
    assert metric.moments[0] == 0


WORKER = """
import json, sys
import torch
from torch import distributed
from evaluate import scorers
from evaluate.metric import ScorerMetric
from prompts.shapes import render, sample_captions

rank, where, weights = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.init_process_group("gloo", init_method=f"file://{where}", rank=rank, world_size=2)
captions = sample_captions(24, split="test", seed=1)
images = torch.from_numpy(render(captions, seed=1))
metric = ScorerMetric(scorers.load("shapes/clip", weights=weights))
mine = slice(0, 7) if rank == 0 else slice(7, 24)
metric.update(images[mine], captions[mine])
print(json.dumps({key: float(value) for key, value in metric.compute().items()}))
distributed.destroy_process_group()
"""


def test_two_processes_equal_one(
    scorer: scorers.Scorer, clip_folder: Path, tmp_path: Path, quick_programs: None
) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", WORKER]
    both = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "meet"), str(clip_folder)],
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    answers = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in both]
    metric = ScorerMetric(scorer)
    metric.update(IMAGES, CAPTIONS)
    expected = {key: float(value) for key, value in metric.compute().items()}
    assert answers[0] == answers[1]
    assert answers[0] == pytest.approx(expected, rel=1e-5)
    assert answers[0]["n"] == 24
