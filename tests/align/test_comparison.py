"""What is shown of a run's start and result, and whether a person can read it."""

import json
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import SMALL_RUN

from align.config.train import TrainConfig
from align.training import compare as report
from align.training import compare_image as comparison
from align.training.compare_image import COLUMNS, Scores, Section, sections
from align.training.validation import compared_captions
from evaluate import embedded, families, pipelines, scorers
from evaluate.pipelines.recipe import Recipe
from prompts.io.errors import UserError
from prompts.io.validate import validate
from prompts.shapes import sample_captions

CAPTIONS = [
    "two cyan squares on a white background",
    "A very long caption about a castle with $x^2$ & <b>towers</b>, " * 5,
    "猫が座っている",
    "W" * 200,
    "",
]


def scores(change: list[float]) -> Scores:
    before = np.linspace(90, 92, len(change))
    return Scores("shapes/preference", "the reward", before, before + change)


def images(n: int, height: int = 16, width: int = 16) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(n))


# ---- what it starts from ---------------------------------------------------------------------------------------------


def test_a_start_without_a_recipe_is_drawn_as_it_was_trained_with(tiny: Path, tmp_path: Path) -> None:
    result = tmp_path / "result"
    shutil.copytree(tiny, result)
    weights = result / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(weights).items()}, weights)
    (result / "recipe.yaml").write_text("timesteps: [625]\nguidance_scale: 1.0\n")
    content = SMALL_RUN | {"reference": str(tiny), "held_out": {}, "rewards": []}
    guided = {"method": "sim", "guidance": {"where": "reference", "scale": 3.0}, "size": [64, 32]}

    def start(**changes: Any) -> tuple[Any, Recipe]:
        return report.beginning(validate(TrainConfig, content | changes, "test"), str(result))

    _, many = start(**guided)
    assert (many.steps, many.guidance_scale, many.height, many.width) == (50, 3.0, 64, 32)
    pipeline, one = start(initial=str(tiny))
    assert one.timesteps == (625,) and one.guidance_scale == 1.0
    reference = pipelines.load(str(tiny)).unet.state_dict()
    assert all(tensor.equal(reference[key]) for key, tensor in pipeline.unet.state_dict().items())
    assert families.load("zimage").guided(1.0) == {"guidance_scale": 0.0}
    assert families.load("qwenimage").guided(4.0)["true_cfg_scale"] == 4.0


# ---- what is shown ---------------------------------------------------------------------------------------------------


def test_the_largest_rises_and_falls_and_captions_at_random() -> None:
    change = np.random.default_rng(0).normal(size=40).tolist()
    order = sorted(range(40), key=lambda i: change[i])
    largest, drawn = sections(40, scores(change), seed=3)
    assert largest.rows == [order[: -COLUMNS - 1 : -1], order[:COLUMNS]]
    assert largest.heading == "Largest changes of shapes/preference"
    assert drawn.heading == "Drawn at random"
    picks = [i for row in drawn.rows for i in row]
    assert len(set(picks)) == len(picks) == 2 * COLUMNS
    assert sections(40, scores(change), seed=3)[1] == sections(40, scores(change[::-1]), seed=3)[1] == drawn
    assert sections(40, scores(change), seed=4)[1] != drawn
    assert (
        comparison.said([largest, drawn])
        == "largest changes of shapes/preference (4 largest rises and 4 largest falls of the reward, among 40"
        " captions); "
        "drawn at random (8 of 40 captions)"
    )


def test_what_did_not_fall_is_no_fall() -> None:
    largest = sections(20, scores([0.0] * 10 + [1.0] * 7 + [float("nan")] + [-1.0] * 2), seed=0)[0]
    assert largest.rows == [[10, 11, 12, 13], [19, 18]]
    assert largest.note == "4 largest rises and 2 largest falls of the reward, among 20 captions"


def test_few_captions_are_shown_once_and_those_without_scores_at_random() -> None:
    assert sections(3, scores([0.0, -1.0, 2.0]), seed=0) == [
        Section("All 3 captions", "by the change of shapes/preference, the reward", [[2, 0, 1]])
    ]
    (drawn,) = sections(100, None, seed=0)
    assert drawn.heading == "Drawn at random"
    assert list(map(len, drawn.rows)) == [COLUMNS] * 4


# ---- how it is drawn -------------------------------------------------------------------------------------------------


def drawn(
    monkeypatch: pytest.MonkeyPatch, path: Path, n: int, said: Scores | None, size: tuple[int, int], *, dots: int = 60
) -> Any:
    """The figure of a comparison of n captions."""
    sheets = []
    png = comparison.Sheet.png
    monkeypatch.setattr(comparison, "DOTS", dots)  # few are quick
    monkeypatch.setattr(comparison.Sheet, "png", lambda sheet: sheets.append(sheet) or png(sheet))
    prompts = [CAPTIONS[i % len(CAPTIONS)] for i in range(n)]
    shown = sections(n, said, seed=0)
    start = f"owner/name/weights.bin@{'1' * 40}"
    comparison.draw(path, images(n, *size), 1 - images(n, *size), prompts, shown, said, start=start, result="run")
    return sheets[0].figure


@pytest.mark.filterwarnings("ignore:Glyph .* missing")
@pytest.mark.parametrize(
    ("n", "scored", "size"),
    [(16, True, (16, 16)), (16, True, (24, 16)), (2, True, (16, 24)), (2, True, (16, 16)), (16, False, (16, 16)),
    (1, False, (24, 8))],
)  # fmt: skip
def test_nothing_overlaps_or_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, n: int, scored: bool, size: tuple[int, int]
) -> None:
    said = scores(np.linspace(-2, 3, n).tolist()) if scored else None
    figure = drawn(monkeypatch, tmp_path / "c.png", n, said, size)
    renderer = FigureCanvasAgg(figure).get_renderer()
    texts = [text for text in figure.texts if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts] + [
        axes.get_window_extent(renderer) for axes in figure.axes
    ]
    assert len(figure.axes) == 2 * n if n < 16 else len(figure.axes) == 2 * 16
    whole = figure.bbox
    for box in boxes:
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    for a, b in combinations(boxes, 2):
        inside = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(inside) < 0.02 * figure.dpi, (a, b)  # a line's box has room for letters that are taller
    words = " ".join(" ".join(text.get_text().split()) for text in texts)
    for said_there in (
        CAPTIONS[0],
        "Left of each pair: owner/name/",
        "Drawn at random" if not scored or n == 16 else "All 2 captions",
    ):
        assert said_there in words
    with Image.open(tmp_path / "c.png") as image:
        assert image.width >= 300


def test_scores_and_their_change_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = Scores("x", "the reward", np.array([0.5, 0.25, 1e-9]), np.array([0.75, 0.125, 0.0]))
    figure = drawn(monkeypatch, tmp_path / "c.png", 3, said, (16, 16))
    texts = {text.get_text(): text.get_color() for text in figure.texts}
    assert {"0.5000 → 0.7500", "0.2500 → 0.1250", "0.0000 → 0.0000"} <= texts.keys()
    assert texts["+0.2500"] == comparison.RISE
    assert texts["−0.1250"] == comparison.FALL
    assert texts["+0.0000"] == comparison.FAINT


def test_the_left_of_a_pair_is_the_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figure = drawn(monkeypatch, tmp_path / "c.png", 2, None, (16, 16))
    shown = [axes.images[0].get_array() for axes in figure.axes]
    first, second = images(2).permute(0, 2, 3, 1).numpy()
    for array, expected in zip(shown, (first, 1 - first, second, 1 - second), strict=True):
        np.testing.assert_allclose(array, expected, atol=1e-6)


def test_a_file_of_noise_is_not_large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn(monkeypatch, tmp_path / "c.png", 16, scores(np.linspace(-2, 3, 16).tolist()), (128, 128), dots=120)
    assert (tmp_path / "c.png").stat().st_size <= 1_000_000
    with Image.open(tmp_path / "c.png") as image:
        assert image.width > 800


@pytest.mark.parametrize(
    ("held_out", "rewards", "line"),
    [
        ({}, [], "drawn at random (9 of 9 captions)"),
        ({"shapes/oracle": 0.1, "shapes/clip": 1.0}, [], "4 largest rises and 4 largest falls of a held-out scorer"),
        (
            {"shapes/oracle": 0.1},
            [{"scorer": "shapes/clip", "scale": 1.0}],
            "largest changes of shapes/clip (4 largest rises",
        ),
    ],
)
def test_a_report_shows_the_reward_or_a_held_out_scorer(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    held_out: dict[str, float],
    rewards: list[dict[str, Any]],
    line: str,
) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"caption {i}\n" for i in range(9)))
    (tmp_path / "run.json").write_text(json.dumps({"step": 4}))
    changes: dict[str, Any] = {
        "prompts": str(tmp_path / "prompts.txt"),
        "reference": "a/b",
        "final_comparison": {"prompts": 9},
        "rewards": rewards,
    }
    changes |= {
        "method": "di++" if rewards else "di",
        "held_out": {"scorers": held_out, "prompts": str(tmp_path / "prompts.txt"), "guard": "off"},
    }
    config = validate(TrainConfig, SMALL_RUN | changes, "test")
    monkeypatch.setattr(report, "beginning", lambda config, result: (None, None))
    monkeypatch.setattr(report, "draw", lambda *_, **__: images(9))
    monkeypatch.setattr(report, "images_of", lambda *_, **__: 1 - images(9))
    two = (np.zeros(9), np.linspace(-1, 1, 9))
    given: list[torch.Tensor] = []

    def scored(before: torch.Tensor, after: torch.Tensor, prompts: list[str], weights: Any) -> dict[str, Any]:
        given.extend((before, after))
        return dict.fromkeys(weights, two)

    monkeypatch.setattr(report, "score", scored)
    report.final_comparison(config, tmp_path)
    assert given[0].equal(images(9)) and given[1].equal(1 - images(9))
    assert line in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "comparison.png").is_file()


def test_a_report_on_the_world_has_the_distance_of_start_and_result(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"step": 4}))
    changes = {"reference": "a/b", "final_comparison": {"prompts": 9, "source": "shapes:test"}, "held_out": {}}
    monkeypatch.setattr(report, "beginning", lambda config, result: (None, None))
    monkeypatch.setattr(report, "draw", lambda *_, **__: images(9) / 4)
    monkeypatch.setattr(report, "images_of", lambda *_, **__: images(9) / 2)
    monkeypatch.setattr(report, "fd_shapes", lambda drawn, prompts: drawn.mean().item() if len(prompts) == 9 else -1)
    report.final_comparison(validate(TrainConfig, SMALL_RUN | changes, "test"), tmp_path)
    found, mean = json.loads((tmp_path / "comparison.json").read_text())["fd-shapes"], images(9).mean().item()
    assert found == {key: pytest.approx(x) for key, x in {"start": mean / 4, "result": mean / 2, "ratio": 2}.items()}
    assert f"{mean / 4:.4f} │ {mean / 2:.4f} │ x 2.000" in " ".join(capsys.readouterr().err.split())


def test_captions_of_a_comparison_are_held_out_and_distinct(tmp_path: Path) -> None:
    (tmp_path / "held-out.txt").write_text("a\nb\na\nc\n")
    (tmp_path / "one.txt").write_text("a\na\n")

    def captions(n: int, source: str | None = None, watched: str | None = None) -> list[str]:
        changes = {"final_comparison": {"prompts": n, "source": source}, "held_out": {"prompts": watched}}
        return compared_captions(validate(TrainConfig, SMALL_RUN | {"reference": "a/b"} | changes, "test"))

    held_out = str(tmp_path / "held-out.txt")
    assert captions(9, held_out) == captions(9, None, held_out) == ["a", "b", "c"]
    assert captions(2, held_out) == ["a", "b"]
    assert captions(0, held_out) == []
    with pytest.raises(UserError, match="has one caption"):
        captions(9, str(tmp_path / "one.txt"))
    with pytest.raises(UserError, match="captions that are not trained on"):
        captions(9)


def test_scores_are_those_of_the_weights_that_were_trained_on() -> None:
    prompts = sample_captions(70, split="test", seed=3)
    before, after = torch.rand(2, 70, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    other = str(embedded.folder("shapes/preference-weak"))
    own, weak = (report.score(before, after, prompts, {"shapes/preference": path}) for path in (None, other))
    expected = scorers.load("shapes/preference-weak").score(after, prompts).double().numpy()
    np.testing.assert_allclose(weak["shapes/preference"][1], expected, atol=1e-3)
    assert abs(own["shapes/preference"][1] - expected).max() > 1


def test_drawing_goes_on_with_fewer_where_memory_runs_short(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Narrow:
        def draw(self, pipeline: Any, recipe: Any, prompts: list[str], *, keys: list[str], **_: Any) -> torch.Tensor:
            asked.append(len(prompts))
            if len(prompts) > 3:
                raise torch.OutOfMemoryError
            return torch.tensor([float(key) for key in keys]).view(-1, 1, 1, 1).expand(-1, 3, 2, 2)

    monkeypatch.setattr(report.samplers, "make", lambda recipe: Narrow())
    drawn = report.draw(torch.nn.Identity(), None, ["a"] * 10, title="test")
    assert drawn[:, 0, 0, 0].tolist() == [*range(10)]
    assert asked[0] == 10 and max(asked[1:]) <= 5
