"""What a run measured: by hand on few numbers."""

import math
from pathlib import Path

import numpy as np
import pytest
from recording import make

from evaluate.results.csv_io import read_csv
from evaluate.results.summary import show, summarise, write
from prompts.io.errors import UserError

SCORES = np.array([1.0, 2.0, 3.0, 6.0])


def test_means_and_errors_by_hand() -> None:
    whole, animals, world = summarise(make({"m": SCORES}), by="category")
    assert (whole.group, whole.n, whole.mean) == ("", 4, 3.0)
    assert whole.error == pytest.approx(SCORES.std(ddof=1) / 2)
    assert (animals.group, animals.n, animals.mean) == ("Animals", 2, 4.0)
    assert (world.group, world.n, world.mean) == ("World Knowledge", 2, 2.0)


def test_distribution_metrics_have_intervals_and_notes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    estimate = {"value": 7.0, "low": 6.0, "high": 8.0, "n": 4, "note": "too few", "weights_sha256": "a"}
    records = make({"m": SCORES}, distribution={"fid/x": estimate})
    rows = summarise(records)
    assert rows[-1][:4] == ("fid/x", "", 4, 7.0)
    assert math.isnan(rows[-1].error)
    show(records, rows)
    said = capsys.readouterr().out
    assert "[6.0000, 8.0000]" in said
    assert "fid/x: too few" in said
    write(tmp_path / "s.csv", records, rows)
    assert [row["metric"] for row in read_csv(tmp_path / "s.csv")] == ["m", "fid/x"]
    with pytest.raises(UserError, match=r"ends in \.csv"):
        write(tmp_path / "s.txt", records, rows)


def test_errors_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    records = make({"m": np.array([1.0, np.nan, 3.0, 6.0])})
    records.frame.loc[1, "error"] = "[red]it broke"
    show(records, summarise(records))
    assert "parti/0001: [red]it broke" in " ".join(capsys.readouterr().out.split())


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(UserError, match="it has category"):
        summarise(make({"m": SCORES}), by="style")
