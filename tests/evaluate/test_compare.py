"""Comparing two runs: by hand on few numbers, and what is refused."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recording import make
from scipy import stats

from evaluate.results.compare import ComparedMetric, compare, show, write
from evaluate.results.csv_io import read_csv
from evaluate.results.records import Records
from evaluate.results.side_by_side import show as show_all
from evaluate.results.side_by_side import side_by_side
from evaluate.results.side_by_side import write as write_all
from evaluate.stats import wilson
from prompts.io.errors import UserError

A = np.array([1.0, 2.0, 3.0, 4.0])
B = np.array([2.0, 2.0, 5.0, 3.5])


def test_differences_by_hand() -> None:
    (row,) = compare(make({"m": A}), make({"m": B}))
    t = stats.ttest_rel(B, A)
    interval = t.confidence_interval(0.95)
    expected = ComparedMetric(
        "m", "", 4, 2.5, 3.125, 0.625, interval.low, interval.high, (2 + 0.5) / 4, *wilson(0.625, 4)
    )
    assert row[:3] == expected[:3]
    assert row[3:] == pytest.approx(expected[3:])


def test_prompts_are_paired_by_id_whatever_the_order() -> None:
    b = make({"m": B})
    shuffled = make({"m": B})
    shuffled = type(b)(shuffled.frame.sample(frac=1, random_state=0), shuffled.meta)
    assert compare(make({"m": A}), shuffled) == compare(make({"m": A}), b)


def test_several_images_of_a_prompt_count_as_one() -> None:
    # Each score twice: twice the images, and not a bit more certainty.
    twice = compare(make({"m": A.repeat(2)}, seeds=2), make({"m": B.repeat(2)}, seeds=2))
    assert twice == compare(make({"m": A}), make({"m": B}))


def test_by_category_and_with_scores_missing() -> None:
    b = B.copy()
    b[3] = np.nan
    rows = compare(make({"m": A}), make({"m": b}), by="category")
    assert [(row.group, row.n) for row in rows] == [("", 3), ("Animals", 1), ("World Knowledge", 2)]
    animals, world = rows[1:]
    assert animals.difference == 0
    assert np.isnan([animals.low, animals.high, animals.win_rate, animals.win_low, animals.win_high]).all()
    assert world.difference == 1.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"suite": "hpsv2"}, "suite is parti in one and hpsv2"),
        ({"suite_sha256": "6" * 64}, "suite_sha256"),
        ({"protocols": {"m": "b" * 64}}, "m was computed with weights"),
        ({"protocols": {}}, "no protocol is in both"),
    ],
)
def test_what_differs_is_refused_in_a_sentence(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        compare(make({"m": A}), make({"m": B}, **change))
    assert "\n" not in str(caught.value)


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(UserError, match="has category"):
        compare(make({"m": A}), make({"m": B}), by="challenge")


def test_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = make({"m": A}, model="=base"), make({"m": B, "extra": B}, n_expected=9)
    rows = compare(a, b, by="category")
    write(tmp_path / "c.json", a, b, [rows[0], rows[1]._replace(low=float("nan"))])
    content = json.loads((tmp_path / "c.json").read_text())
    assert content["rows"][0]["difference"] == rows[0].difference
    assert content["rows"][1]["low"] is None
    write(tmp_path / "c.csv", a, b, rows)
    table = read_csv(tmp_path / "c.csv")
    assert [(row["model_a"], float(row["difference"])) for row in table] == [("=base", row.difference) for row in rows]
    with pytest.raises(UserError, match=r"ends in \.json or \.csv"):
        write(tmp_path / "c.xlsx", a, b, rows)
    show(a, b, rows)
    said = capsys.readouterr().out
    assert "B is incomplete: 4 of 9 records" in said
    assert "only in B: extra" in said


def test_why_runs_have_nothing_side_by_side() -> None:
    a, b = make({"m": A}), make({"m": np.full(4, np.nan)}, model="b")
    with pytest.raises(UserError, match="b has no score of any prompt"):
        side_by_side([a, b])
    pairs = [make({one: A, other: B}, model=one + other) for one, other in ("mn", "no", "om")]
    with pytest.raises(UserError, match="share no metric"):
        side_by_side(pairs)


def test_sets_of_unequal_numbers_of_images_do_not_stand_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    def of_set(model: str, n: int, low: int = 0) -> Records:
        estimate = {
            "value": 1.0,
            "low": 0.9,
            "high": 1.1,
            "n": n,
            "note": "",
            "left_out": {},
            "weights_sha256": "b" * 64,
        }
        run = make({"m": A}, model=model, distribution={"fd-shapes": estimate})
        run.frame["id"] = [f"parti/{i:04d}" for i in range(low, low + 4)]
        return run

    runs = [of_set("one", 4), of_set("two", 4), of_set("three", 16)]
    assert {figure.metric for figure in side_by_side(runs[:2])} == {"m", "fd-shapes"}
    assert {figure.metric for figure in side_by_side(runs)} == {"m"}
    show_all(runs, side_by_side(runs))
    assert "fd-shapes is left out" in " ".join("".join(capsys.readouterr()).split())
    same, other = (compare(runs[0], of_set("two", 4, low))[-1] for low in (0, 2))
    assert same.difference == 0 and math.isnan(other.difference), "of other prompts"


def test_several_runs_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    c = np.array([5.0, 2.0, 2.0, 9.0])
    runs = [make({"m": a, "n": a}, model=name) for name, a in (("one", A), ("two", B))]
    runs.append(make({"m": c}, model="three"))
    figures = side_by_side(runs)
    assert {figure.metric for figure in figures} == {"m"}, "a metric that one lacks is left out"
    means = {figure.model: figure.value for figure in figures if not figure.over}
    assert means == {"one": A.mean(), "two": B.mean(), "three": c.mean()}
    wins = {(figure.over, figure.model): (figure.value, figure.low, figure.high) for figure in figures if figure.over}
    assert wins == {
        ("one", "two"): (0.625, *wilson(0.625, 4)),
        ("one", "three"): (0.625, *wilson(0.625, 4)),
        ("two", "three"): (0.625, *wilson(0.625, 4)),
    }
    wins_of_two = {(f.over, f.model): f.value for f in side_by_side([runs[2], runs[0], runs[1]]) if f.over}
    assert wins_of_two == {("three", "one"): 0.375, ("three", "two"): 0.375, ("one", "two"): 0.625}

    short = Records(runs[1].frame.iloc[1:], runs[1].meta)
    fewer = {figure.model: figure.value for figure in side_by_side([runs[0], short]) if not figure.over}
    assert fewer == {"one": A[1:].mean(), "two": B[1:].mean()}, "of the prompts that both have"
    show_all([runs[0], short], side_by_side([runs[0], short]))
    shown = capsys.readouterr()
    assert "one: 1 prompts are left out that others lack" in " ".join((shown.out + shown.err).split())
    failed = make({"m": B.copy()}, model="two")
    failed.frame.loc[0, "score.m"] = math.nan
    means = {figure.model: figure.value for figure in side_by_side([runs[0], failed]) if not figure.over}
    assert means == fewer
    with pytest.raises(UserError, match="two has no score of any prompt"):
        side_by_side([runs[0], Records(runs[1].frame.iloc[:0], runs[1].meta)])

    # What failed wholly in one run takes nothing from what all have.
    half = make({"m": B, "n": np.full(4, np.nan)}, model="two")
    found = {figure.metric: figure.value for figure in side_by_side([runs[0], half]) if figure.model == "two"}
    assert found["m"] == 0.625 and math.isnan(found["n"])

    show_all(runs, figures)
    shown = capsys.readouterr()
    assert "ahead of two" in shown.out + shown.err
    write_all(tmp_path / "t.md", runs, figures)
    text = (tmp_path / "t.md").read_text()
    assert text.splitlines()[0] == "|  | one | two | three |"
    assert "| m, ahead of one |  | 62% [" in text and "| m | 2.500 (" in text
    write_all(tmp_path / "t.csv", runs, figures)
    assert len(read_csv(tmp_path / "t.csv")) == 6
    with pytest.raises(UserError, match="two runs are both called one"):
        side_by_side([runs[0], runs[0]])
    with pytest.raises(UserError, match="one and four: suite is parti in one and hpsv2"):
        side_by_side([runs[0], make({"m": A}, model="four", suite="hpsv2")])
    with pytest.raises(UserError, match=r"\.csv or \.md"):
        write_all(tmp_path / "t.txt", runs, figures)
