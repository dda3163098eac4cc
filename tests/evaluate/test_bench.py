"""The benchmark measures what it says."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from clock import Hours
from hub import Hub
from typer.testing import CliRunner

from evaluate import cli, layouts, scorers, weights
from evaluate.bench import scorers as bench
from evaluate.bench.scorers import Originals, bench_frechet, bench_harness, bench_scorer
from evaluate.preprocess import CLIP_MEAN, CLIP_STD
from evaluate.scorers import Scorer
from prompts.io.errors import UserError

SHA = "a" * 64


class SlowScorer(torch.nn.Module):
    """A scorer that takes a sixteenth of a second per call."""

    protocol, prepare = "slow", None

    def __init__(self, hours: Hours) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2**19, dtype=torch.bfloat16))
        self.hours, self.seen = hours, list[str]()

    def score(self, images: torch.Tensor, prompts: list[str], meta: Any) -> torch.Tensor:
        assert images.shape == (len(prompts), 3, bench.EDGE, bench.EDGE)
        self.seen += prompts
        self.hours.sleep(0.0625)
        return torch.zeros(len(prompts))


def originals(path: Path, **changes: Any) -> Path:
    content = {
        "hardware": "here", "images": bench.IMAGES, "edge": bench.EDGE, "prompt": bench.PROMPT,
        "versions": "hpsv2 1.2.0",
        "scorers": {"slow": {"seconds": 0.5, "weights_sha256": SHA, "scores": [0.25] * bench.IMAGES}},
    }  # fmt: skip
    path.write_text(json.dumps(content | changes))
    return path


def test_a_scorer_beside_its_original(tmp_path: Path, hours: Hours) -> None:
    known = Originals.read(originals(tmp_path / "o.json"), "here")
    scorer: Any = SlowScorer(hours)
    row = bench_scorer(scorer, SHA, device="cpu", repeats=2, originals=known)
    assert row.ours == bench.IMAGES / 0.0625
    assert row.original == bench.IMAGES / 0.5
    assert row.ratio == 8
    assert row.by == "hpsv2 1.2.0"
    assert row.difference == 0.25
    assert (row.dtype, row.weights_gib, row.peak_gib) == ("bfloat16", 2**-10, None)
    timed = scorer.seen[: -bench.IMAGES]
    assert len(set(timed)) * bench.IMAGES == len(timed), "no prompt twice: nothing is remembered from call to call"
    few = bench_scorer(scorer, SHA, device="cpu", repeats=1, n=2)
    assert few.ours == 2 / 0.0625 and few.ratio is None
    with pytest.raises(UserError, match="same file"):
        bench_scorer(scorer, "b" * 64, device="cpu", repeats=1, originals=known)


def test_what_reads_captions_of_its_world_alone_is_not_timed_on_another() -> None:
    with pytest.raises(UserError, match="shapes/oracle: reads captions of its world alone"):
        bench_scorer(scorers.load("shapes/oracle"), "", device="cpu", repeats=1)


@pytest.mark.parametrize(
    ("changes", "words"), [({"hardware": "there"}, "hardware"), ({"images": 1}, "images"), ({"scorers": 1}, "scorers")]
)
def test_timings_made_elsewhere_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Originals.read(originals(tmp_path / "o.json", **changes), "here")


def test_missing_timings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="originals' environment"):
        Originals.read(tmp_path / "none.json", "here")


def test_torchmetrics_computes_what_it_is_timed_for(clip_folder: Path) -> None:
    from transformers import CLIPModel, CLIPTokenizer

    clip = CLIPModel.from_pretrained(clip_folder).eval()
    scorer = SimpleNamespace(clip=clip, tokenizer=CLIPTokenizer.from_pretrained(clip_folder))
    name, make = bench.IMPORTABLE["clipscore/vit-l-14-torchmetrics"]
    images, texts = (
        torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8),
        ["a red circle", "a blue square", "a circle"],
    )
    prepared = (images / 255 - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    with torch.no_grad():
        score = make(scorer)(images, texts)
        cosines = clip(pixel_values=prepared, **scorer.tokenizer(texts, return_tensors="pt", padding=True))
    assert name == "torchmetrics"
    assert isinstance(score, torch.Tensor)
    expected = 100 * (cosines.image_embeds * cosines.text_embeds).sum(1).mean()
    assert score.item() == pytest.approx(max(0.0, expected.item()), abs=1e-3)


@pytest.mark.parametrize("name", ["hpsv3", "mps", "aesthetic/v2.5", "geneval", "geneval2", "dpg/qwen3-vl-8b-strict"])
def test_a_scorer_without_its_weights(
    name: str, real_scorers: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the command, at the loopback hub's sizes; no file of weights is asked for."""
    monkeypatch.setattr(bench, "EDGE", 64)
    monkeypatch.setattr(layouts, "known", dict)
    real_scorers.requests.clear()
    arguments = ["bench", "--scorer", name, "--random-weights", "--device", "cpu", "--repeats", "1", "--images", "2"]
    shown = CliRunner().invoke(cli.app, [*arguments, "--output", str(tmp_path / "bench.json")])
    assert shown.exit_code == 0, shown.output
    result = json.loads((tmp_path / "bench.json").read_text())
    assert result["weights"] == "random"
    (row,) = result["scorers"]
    assert row["scorer"] == name and not row["weights"] and row["ours"] > 0
    assert result["images"] == 2 and row["dtype"] == "float32" and row["weights_gib"] > 0
    assert not [path for path in real_scorers.requests if path.endswith(weights.SUFFIXES)]


@pytest.mark.parametrize(("dtype", "computed"), [("bf16", "bfloat16"), (None, "float32")])
def test_a_scorer_in_another_precision(
    dtype: str | None, computed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """shapes/clip is defined in float32."""
    monkeypatch.setattr(bench, "EDGE", 32)
    asked = ["--dtype", dtype] if dtype else []
    arguments = ["--scorer", "shapes/clip", "--device", "cpu", "--repeats", "1", "--images", "2", *asked]
    shown = CliRunner().invoke(cli.app, ["bench", *arguments, "--output", str(tmp_path / "bench.json")])
    assert shown.exit_code == 0, shown.output
    (row,) = json.loads((tmp_path / "bench.json").read_text())["scorers"]
    assert row["dtype"] == computed


def test_nothing_to_time_is_said() -> None:
    shown = CliRunner().invoke(cli.app, ["bench"])
    assert isinstance(shown.exception, UserError) and "nothing to time" in str(shown.exception)


def test_overhead_is_what_is_outside_the_forwards(hours: Hours, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each of the three blocks takes a second to be read: by five scorers, once each.
    read = Scorer._scores
    monkeypatch.setattr(Scorer, "_scores", lambda *rest: (hours.sleep(1), read(*rest))[1])
    result = bench_harness(40, edge=64, drawing=0.01, scoring=0.001)
    assert result["scorers"] == 5
    assert result["forward_s"] == pytest.approx(40 * 0.015)
    assert result["total_s"] == pytest.approx(40 * 0.015 + 15)
    assert result["overhead"] == pytest.approx(1 - result["forward_s"] / result["total_s"])
    assert result["outside_ms"] == pytest.approx(1000 * (result["total_s"] - result["forward_s"]) / 40)


def test_the_frechet_distance_is_the_originals() -> None:
    result = bench_frechet(64, repeats=1)
    assert result["relative_difference"] < 1e-6
    assert result["original_s"] > 0
