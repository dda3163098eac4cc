"""Records and tables come back as they were written, or say what is wrong."""

import csv
import errno
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from recording import make

from evaluate.results.csv_io import read_csv, write_csv
from evaluate.results.records import Records
from prompts.io.errors import UserError

SCORES = {"hpsv2.1/aa": np.array([27.5, 28.25, np.nan, 31.0]), "pickscore": np.array([0.21, 0.22, 0.23, 0.1 + 0.2])}
#: What a spreadsheet would take for a formula, or might.
FORMULAS = [
    "=1+1", "+1+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n=1", "＝1", "'=1", "''", "=", "-",
    "-inf", "+1e5e5",
]  # fmt: skip
PLAIN = [
    "a cat, 3 dogs",
    'he said "no"',
    " edge blanks ",
    "",
    "0",
    "-0.5",
    "+3",
    "1e-7",
    "naïve 猫",
    "a\nb",
    "a\rb",
    "a = b",
    "a'b",
]


def test_records_come_back(tmp_path: Path) -> None:
    records = make(SCORES, distribution={"fd-shapes": {"value": 1.5}})
    records.frame.loc[2, "error"] = "the model drew NaN"
    records.save(tmp_path / "deep" / "records-a.parquet")
    for path in (tmp_path / "deep", tmp_path / "deep" / "records-a.parquet"):
        again = Records.load(path)
        pd.testing.assert_frame_equal(again.frame, records.frame, check_exact=True, check_dtype=False)
        assert again.meta == records.meta
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["records-a.parquet"]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda r: None, None),
        (lambda r: r.meta.update(n_expected=5), "4 of 5 records"),
        (lambda r: r.meta.update(complete=False), "did not finish"),
        (lambda r: r.frame.__setitem__("error", [None, "torn", None, None]), "1 of 4 records have errors"),
        (
            lambda r: r.frame.__setitem__("score.pickscore", [0.1, np.nan, np.inf, 0.2]),
            "2 of 4 records have no score pickscore",
        ),
    ],
)
def test_what_is_missing_is_said(damage: object, words: str | None) -> None:
    records = make({"pickscore": SCORES["pickscore"]})
    damage(records)  # type: ignore[operator]
    assert records.complete == (words is None)
    assert words is None or words in str(records.missing)


def test_a_prompts_score_is_the_mean_of_its_images() -> None:
    table = make({"m": np.array([1.0, 3.0, 10.0, np.nan])}, seeds=2).by_prompt()
    assert table["m"].to_dict() == {"parti/0000": 2.0, "parti/0001": 10.0}


def refused(path: Path, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        Records.load(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_torn_and_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    refused(path, "no such file")
    refused(tmp_path, "no files records*.parquet")
    make(SCORES).save(path)
    whole = path.read_bytes()
    for content in (b"", b"PAR1", whole[: len(whole) // 2], whole[:-1], b"x" * 100):
        path.write_bytes(content)
        refused(path, "torn")
    pq.write_table(pa.table({"id": ["a"]}), path)
    refused(path, "no field 'suite'")
    records = make(SCORES)
    Records(records.frame.drop(columns="seed"), records.meta).save(path)
    refused(path, "no column 'seed'")
    Records(records.frame.drop(columns="score.pickscore"), records.meta).save(path)
    refused(path, "no column 'score.pickscore'")
    Records(pd.concat([records.frame, records.frame.iloc[[2]]]), records.meta).save(path)
    refused(path, "parti/0002", "twice")
    records.save(tmp_path / "records-2.parquet")
    refused(tmp_path, "2 files", "give one of them")


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "records.parquet"
    make(SCORES, model="old").save(path)

    def full(table: pa.Table, draft: Path) -> None:
        draft.write_bytes(b"PAR1")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(UserError, match="No space left"):
        make(SCORES, model="new").save(path)
    assert Records.load(path).meta["model"] == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_text_turns_into_a_formula(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    texts = FORMULAS + PLAIN
    write_csv([{"=name": text, "n": -i, "x": -0.1 * i, "none": None} for i, text in enumerate(texts)], path)
    with path.open(encoding="utf-8", newline="") as file:
        header, *cells = csv.reader(file)
    assert header[0] == "'=name"
    for text, line in zip(texts, cells, strict=True):
        assert line[0] == (f"'{text}" if text in FORMULAS else text)
    rows = read_csv(path)
    assert [row["=name"] for row in rows] == texts
    assert [(float(row["x"]), row["none"]) for row in rows] == [(-0.1 * i, "") for i in range(len(texts))]


def test_a_broken_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    for content, words in (
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"a,b\n1,2\n1\n", "row 3 has 1 cells"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            read_csv(path)
