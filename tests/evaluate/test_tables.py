"""The papers' tables: every figure counted, a difference only where protocols are
known to agree, names never markup.
"""

import functools
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import yaml
from hub import Hub
from recording import make

from evaluate import cli, distribution, pipelines, scorers
from evaluate.papers import files, match, plan, render
from evaluate.papers.figures import TABLES, Column, read_columns, read_figures, read_sources
from evaluate.papers.match import Cell, cells, lacking
from evaluate.pipelines import address
from evaluate.results import leaderboard
from evaluate.results.csv_io import read_csv, write_csv
from evaluate.results.records import file_name
from prompts import suites
from prompts.io.errors import UserError
from prompts.shapes import sample_captions

HOSTILE = "<script>alert(1)</script> [red]x[/red] | `a` **b** [c](d)"


# ---- the papers' side ------------------------------------------------------------------------------------------------


#: Rows and figures a row by part, counted in the sources; of DI++ Table 1 the text keeps 5 figures.
SHAPES: dict[str, dict[str, tuple[int, int | None]]] = {
    "di-star/1": {"parti": (11, 8), "coco": (11, 8)},
    "di-star/2": {"parti": (12, 7)},
    "di-star/3": {"hpsv2": (11, 5)},
    "di-plus-plus/1": {"hpsv2": (48, None)},
    "di-plus-plus/2": {"coco": (29, 7)},
    "didr/1": {"preference": (16, 7)},
    "rtdmd/1": {"drawbench": (4, 6)},
    "rtdmd/2": {"drawbench": (8, 6), "others": (8, 5)},
    "tdm-r1/1": {"geneval": (5, 2)},
    "tdm-r1/2": {"rewards": (3, 3)},
    "dmd2/1": {"coco": (10, 4)},
    "sana-sprint/2": {"few-step": (31, 4)},
    "known/geneval": {"authors": (6, 7), "sana": (14, 7), "few-step": (10, 8)},
    "known/hpsv2": {"v2.0": (22, 5), "v2.1": (22, 5)},
    "known/hpsv3": {"hpdv3": (11, 1)},
    "known/dpg": {"sana": (15, 1)},
    "known/vqascore": {"genai-bench": (6, 3)},
    "known/mjhq": {"playground": (3, 1), "sana": (14, 1)},
    "known/cmmd": {"coco": (6, 2)},
}
#: Those of DI* and DI++, whose rows the recipes name too.
OWN = [name for name in TABLES if name.startswith("di-")]
#: What columns name that is no suite or metric here, so that a slip in a name is noticed.
TO_COME = {"dpg", "genai-bench", "hpsv3", "mjhq-30k", "ocr"}


@pytest.mark.parametrize("name", TABLES)
def test_rows_and_figures_are_counted(name: str) -> None:
    parts = SHAPES[name]
    table = read_figures(name)
    rows = Counter((figure.part, figure.line) for figure in table)
    assert set(rows) == {(part, line) for part, (n, _) in parts.items() for line in range(1, n + 1)}
    assert all(figure.table == name for figure in table)
    for part, line in rows:
        assert len({(f.row, f.model) for f in table if (f.part, f.line) == (part, line)}) == 1
    if name != "di-plus-plus/1":
        assert all(n == parts[part][1] for (part, _), n in rows.items())
        assert all(figure.value for figure in table)
    else:
        assert [figure.value for figure in table if figure.value] == ["28.97", "28.25", "28.28", "28.50", "28.48"]
        assert {figure.metric for figure in table} == {"Average", "column unknown"}


@pytest.mark.parametrize("name", OWN)
def test_figures_are_numbers_in_the_range_of_their_metric(name: str) -> None:
    ranges = {
        "Image Reward": (-2, 2, 3), "Aes Score": (4.5, 6.5, 2), "Pick Score": (0.19, 0.24, 4),
        "CLIP Score": (27, 34, 2), "COCO-FID": (15, 25, 2),
        **dict.fromkeys(("Animation", "Concept-Art", "Painting", "Photo", "Average", "column unknown"), (26, 34, 2)),
    }  # fmt: skip
    for figure in read_figures(name):
        if figure.metric in ranges and figure.value:
            low, high, digits = ranges[figure.metric]
            assert low <= float(figure.value) <= high, figure
            fewer = name == "di-plus-plus/2" and figure.metric in ("Image Reward", "Pick Score")
            assert len(figure.value.partition(".")[2]) == digits - fewer, figure


def test_averages_are_the_means_of_their_styles() -> None:
    rows: dict[int, dict[str, float]] = {}
    for figure in read_figures("di-star/3"):
        rows.setdefault(figure.line, {})[figure.metric] = float(figure.value)
    for row in rows.values():
        average = row.pop("Average")
        assert len(row) == 4
        assert abs(np.mean(list(row.values())) - average) <= 0.005 + 1e-9


@pytest.mark.parametrize("name", [name for name in TABLES if name not in OWN])
def test_figures_of_a_column_have_as_many_digits(name: str) -> None:
    settings = {(column.part, column.metric) for column in read_columns(name) if column.is_setting}
    digits: dict[tuple[str, str], set[int]] = {}
    for figure in read_figures(name):
        if (figure.part, figure.metric) not in settings:
            float(figure.value)
            digits.setdefault((figure.part, figure.metric), set()).add(len(figure.value.partition(".")[2]))
    assert all(len(each) == 1 for each in digits.values()), digits


#: Figures looked up in the sources by hand, one or more of each table.
LOOKED_UP = [
    ("didr/1", "SDXL DIDR-longer (Ours)", "HPSv2.1", "33.89"),
    ("didr/1", "SDXL DMD2", "ImageReward", "0.83"),
    ("rtdmd/1", "RTDMD (Ours)", "PickScore", "22.8593"),
    ("rtdmd/2", "FLUX.2 4B w/ RTDMD (Ours)", "HPSv2", "0.3516"),
    ("rtdmd/2", "FLUX.2 4B w/ RTDMD (Ours)", "GenEval", "0.9046"),
    ("tdm-r1/1", "TDM-R1 (Ours)", "GenEval", "0.92"),
    ("tdm-r1/2", "TDM-R1-Zimage (Ours)", "HPSv3", "9.90"),
    ("dmd2/1", "SDXL Teacher, cfg=6", "Patch FID", "21.38"),
    ("sana-sprint/2", "PixArt-DMD", "FID", "9.59"),
    ("known/geneval", "IF-XL", "Overall", "0.61"),
    ("known/geneval", "Hyper-SDXL", "Counting", "0.48"),
    ("known/geneval", "DALLE3", "Color attribution", "0.45"),
    ("known/hpsv3", "Kolors", "Overall", "10.55"),
    ("known/dpg", "LUMINA-Next", "Overall", "74.6"),
    ("known/vqascore", "SD-XL", "overall", "0.72"),
    ("known/mjhq", "playground-v2.5-1024px-aesthetic", "Overall FID", "4.48"),
    ("known/cmmd", "stable-diffusion-xl-base-1.0", "CMMD", "0.696"),
]


@pytest.mark.parametrize(("name", "row", "metric", "value"), LOOKED_UP)
def test_figures_are_the_sources(name: str, row: str, metric: str, value: str) -> None:
    assert [f.value for f in read_figures(name) if (f.row, f.metric) == (row, metric)] == [value]


def test_hpsv2_of_both_versions() -> None:
    found = {
        (figure.part, figure.metric): figure.value for figure in read_figures("known/hpsv2") if figure.row == "GLIDE"
    }
    assert found["v2.0", "Averaged"] == "23.55"
    assert found["v2.1", "Photo"] == "16.72"


@pytest.mark.parametrize(("name", "total", "parts"), [("known/geneval", "Overall", 6), ("known/hpsv2", "Averaged", 4)])
def test_totals_are_the_means_of_their_parts(name: str, total: str, parts: int) -> None:
    rows: dict[tuple[str, int], dict[str, float]] = {}
    for figure in read_figures(name):
        if figure.metric != "Steps":
            rows.setdefault((figure.part, figure.line), {})[figure.metric] = float(figure.value)
    for row in rows.values():
        whole = row.pop(total)
        assert len(row) == parts
        assert abs(np.mean(list(row.values())) - whole) <= 0.01 + 1e-9


def test_one_figure_in_two_sources_is_one() -> None:
    def of(name: str, metric: str, row: str, part: str = "") -> str:
        (value,) = {f.value for f in read_figures(name) if (f.row, f.metric) == (row, metric) and part in ("", f.part)}
        return value

    for row in ("SDXL", "SD3-medium", "FLUX-dev", "PixArt-Σ"):
        assert of("sana-sprint/2", "FID", row) == of("known/mjhq", "FID", row)
        if row != "PixArt-Σ":  # of 512 px in the one, of 1024 in the other
            assert of("sana-sprint/2", "GenEval", row) == of("known/geneval", "Overall", row)
    authors, sana = (of("known/geneval", "Overall", row) for row in ("Stable Diffusion XL", "SDXL"))
    assert authors == sana


@pytest.mark.parametrize("name", TABLES)
def test_every_part_has_a_source(name: str) -> None:
    sources = read_sources(name)
    assert sources.keys() == SHAPES[name].keys()
    for source in sources.values():
        assert re.search(r"arXiv \d{4}\.\d{5}|huggingface\.co/", source.source)
        assert source.protocol
        assert not source.source.endswith(".")


def test_models_are_recipes_and_their_rows_are_these() -> None:
    found = {(figure.model, TABLES[name].label) for name in OWN for figure in read_figures(name) if figure.model}
    told = {
        (model, row)
        for model in address.names()
        for about in [pipelines.read_recipe(model).about]
        if about
        for row in about.rows
    }
    assert found == told
    lost = {figure.row for name in OWN for figure in read_figures(name) if not figure.model}
    assert lost == {"SD15-DI++-1Step", "DiT-DI++-1Step"}
    others = {figure.model for name in TABLES for figure in read_figures(name) if figure.model}
    assert others <= set(address.names())


def test_the_papers_settings_are_the_recipes_or_a_note_says_so(tmp_path: Path) -> None:
    for name in TABLES:
        for cell in cells(name, tmp_path):
            if cell.column.is_setting and cell.ours:
                same = render.printed_setting(cell) == cell.figure.value
                assert same or cell.figure.note, cell


def test_one_row_in_two_tables_has_one_figure_or_a_note() -> None:
    tables = [
        {(figure.model, figure.metric): figure for figure in read_figures(name) if figure.part == "parti"}
        for name in ("di-star/1", "di-star/2")
    ]
    shared = [key for key in tables[0].keys() & tables[1].keys() if key[1].endswith(("Score", "Reward"))]
    assert len(shared) == 6 * 4
    apart = [key for key in shared if tables[0][key].value != tables[1][key].value]
    assert apart == [("sdxl-dmd2-1step-1024", "Image Reward")]
    first, second = (table[apart[0]] for table in tables)
    assert (first.value, second.value) == ("0.930", "0.938")
    assert "0.938" in first.note
    assert "0.930" in second.note


@pytest.mark.parametrize("name", TABLES)
def test_what_is_known_of_columns(name: str) -> None:
    known = {(column.part, column.metric): column for column in read_columns(name)}
    table = read_figures(name)
    assert {(figure.part, figure.metric) for figure in table} == known.keys()
    metrics = {*scorers.variants(), *distribution.variants(), "geneval2/gm"}  # which is a column of `geneval2`
    for column in known.values():
        if column.suite:
            assert column.suite in {*suites.names(), *TO_COME}
            assert set(column.ours) <= metrics | TO_COME
            assert column.ours
            assert bool(lacking(column)) == (column.suite not in suites.names() or not metrics & set(column.ours))
        if not column.why:  # nothing stands against a difference, so all of this must be known
            assert len(column.suite_sha256) == 64
    for figure in table:
        column = known[figure.part, figure.metric]
        assert figure.protocol == "" or column.ours == (figure.protocol,)
        assert figure.protocol or column.why


def test_an_unknown_table_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no table 'di-star/4'; did you mean 'di-star/\d'"):
        read_figures("di-star/4")


# ---- ours ------------------------------------------------------------------------------------------------------------


def row_of(model: str, column: Column, value: float = 1.5, **changes: str) -> dict[str, str]:
    """A row of a leaderboard: a whole run of the suite with the metrics of one column."""
    n = str(suites.card(column.suite).n)
    row = dict.fromkeys(leaderboard.FIXED, "x") | {
        "model": model, "suite": column.suite, "n": n, "complete": "True",
        "suite_sha256": column.suite_sha256 or "5" * 64,
        "recipe": json.dumps(pipelines.read_recipe(model).record()),
        "command": f"evaluate run --suite {column.suite} --model {model} --metric {column.ours[0]} --seed 0"
        " --per-prompt 1",
    }  # fmt: skip
    for protocol in column.ours:
        row |= {protocol: str(value), f"{protocol} se": "0.0123", f"{protocol} n": n, f"{protocol} weights": "a"}
    return row | changes


def put(folder: Path, model: str, column: Column, value: float = 1.5, **changes: str) -> dict[str, str]:
    row = row_of(model, column, value, **changes)
    leaderboard.upsert(folder / f"{column.suite}.csv", row)
    return row


def column_of(name: str, metric: str, part: str = "parti") -> Column:
    return next(column for column in read_columns(name) if (column.part, column.metric) == (part, metric))


def cell_of(name: str, metric: str, model: str, folder: Path, part: str = "parti") -> Cell:
    (found,) = [
        cell
        for cell in cells(name, folder)
        if (cell.figure.part, cell.figure.metric, cell.figure.model) == (part, metric, model)
    ]
    return found


def test_differences_are_only_where_everything_is_known_to_agree(tmp_path: Path) -> None:
    rows: dict[str, list[dict[str, str]]] = {}
    for name in TABLES:
        for column in read_columns(name):
            for model in (
                {f.model for f in read_figures(name) if f.part == column.part and f.model}
                if column.suite and not lacking(column)
                else ()
            ):
                if not pipelines.read_recipe(model).reported_only:
                    rows.setdefault(column.suite, []).append(row_of(model, column))
    for suite, lines in rows.items():
        names = dict.fromkeys(name for line in lines for name in line)
        write_csv([{name: line.get(name, "") for name in names} for line in lines], tmp_path / f"{suite}.csv")
    found = [cell for name in TABLES for cell in cells(name, tmp_path)]
    differences = [cell for cell in found if cell.difference is not None]
    assert {(cell.figure.table, cell.figure.part, cell.figure.metric) for cell in differences} == {
        (table, "parti", metric) for table in ("di-star/1", "di-star/2") for metric in ("Image Reward", "Pick Score")
    }
    assert len(differences) == 2 * (10 + 6)
    for cell in differences:
        assert cell.difference == pytest.approx(1.5 - float(cell.figure.value))
    reported_only = functools.cache(lambda model: pipelines.read_recipe(model).reported_only)
    for cell in found:
        assert (cell.difference is None) == bool(cell.why) or cell.column.ours == ("seconds",) or cell.column.is_setting
        if cell.column.suite and cell.figure.model and not reported_only(cell.figure.model):
            assert cell.column.group or cell.ours or lacking(cell.column)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"suite_sha256": "6" * 64}, "other prompts"),
        ({"n": "8"}, "of 8 images of 1,632 only"),
        ({"complete": "False"}, "incomplete"),
        ({"recipe": "null"}, "drawn elsewhere"),
        ({"recipe": '{"steps": 2}'}, "another recipe"),
        ({"command": "evaluate run --per-prompt 2 --model x"}, "of 1,632 images of 3,264 only"),
        ({"command": "evaluate run --weights imagereward=mine.pt"}, "--weights"),
    ],
)
def test_a_row_that_repeats_something_else_is_not_compared(changes: dict[str, str], said: str, tmp_path: Path) -> None:
    put(tmp_path, "sdxl-distar", column_of("di-star/1", "Image Reward"), **changes)
    cell = cell_of("di-star/1", "Image Reward", "sdxl-distar", tmp_path)
    assert cell.ours
    assert cell.ours.value == 1.5
    assert (cell.difference is None) == bool(said)
    assert said in cell.why


@pytest.mark.parametrize("change", [{"why": "unsure"}, {"ours": ("pickscore",)}])
def test_what_is_not_known_of_a_column_takes_the_difference_away(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = column_of("di-star/1", "Image Reward")
    put(tmp_path, "sdxl-distar", column)
    put(tmp_path, "sdxl-distar", column_of("di-star/1", "Pick Score"), command="another --per-prompt 1")
    assert cell_of("di-star/1", "Image Reward", "sdxl-distar", tmp_path).difference is not None
    changed = [each._replace(**change) if each == column else each for each in read_columns("di-star/1")]
    monkeypatch.setattr(match, "read_columns", lambda name: changed)
    assert cell_of("di-star/1", "Image Reward", "sdxl-distar", tmp_path).difference is None


def test_a_whole_run_is_taken_before_any_other(tmp_path: Path) -> None:
    column = column_of("di-star/1", "Image Reward")
    put(tmp_path, "sdxl-distar", column, 1.0, n="8", command="first --per-prompt 1")
    put(tmp_path, "sdxl-distar", column, 2.0)
    put(tmp_path, "sdxl-distar", column, 3.0, complete="False", command="third --per-prompt 1")
    cell = cell_of("di-star/1", "Image Reward", "sdxl-distar", tmp_path)
    assert cell.ours
    assert cell.ours.value == 2.0
    assert cell.difference == pytest.approx(2.0 - 1.067)


@pytest.mark.parametrize(
    ("name", "metric", "model", "part", "said"),
    [
        ("di-star/1", "Image Reward", "sdxl-distar", "parti", "not run"),
        ("di-star/1", "Image Reward", "flux-dev-50step", "parti", "gated"),
        ("di-star/1", "Image Reward", "sdxl-distar-dpo-long", "parti", "reported only: no published weights are known"),
        ("di-star/1", "Infer Time per 10 Images", "sdxl-distar", "parti", "not timed"),
        ("di-star/1", "Pick Score", "sdxl-50step", "parti", "run, but not with pickscore"),
        ("di-star/3", "Photo", "sdxl-50step", "hpsv2", "no records of style=photo are under"),
        ("di-plus-plus/1", "column unknown", "sdxl-dmd2-4step-1024", "hpsv2", "does not show which style"),
    ],
)
def test_why_ours_is_missing(name: str, metric: str, model: str, part: str, said: str, tmp_path: Path) -> None:
    put(tmp_path, "sdxl-50step", column_of("di-star/1", "Image Reward"))
    put(tmp_path, "sdxl-50step", column_of("di-star/3", "Photo", "hpsv2"))
    cell = cell_of(name, metric, model, tmp_path, part)
    assert cell.ours is None
    assert said in cell.why


def test_styles_come_out_of_the_records(tmp_path: Path) -> None:
    column = column_of("di-star/3", "Photo", "hpsv2")
    row = put(tmp_path, "sdxl-50step", column, model_sha256="d" * 64)
    scores = {protocol: np.array([28.0, 29.0, 30.0, 31.0]) for protocol in column.ours}
    made_by = {"model_sha256": "d" * 64, "recipe": json.loads(row["recipe"])}
    made_by |= {name: row[name] for name in ("dtype", "hardware", "versions")}
    # The same command's, but of another model, of another recipe, and on another machine; then the row's own.
    others = ({"model_sha256": "e" * 64}, {"recipe": {"steps": 3}}, {"hardware": "another card"}, {})
    for shift, change in enumerate(others, 1):
        run = make(
            {name: each + shift % 4 for name, each in scores.items()},
            suite="hpsv2",
            model="sdxl-50step",
            made_by=made_by | change,
        )
        run.frame["group.style"] = ["photo", "photo", "anime", "anime"]
        run.save(tmp_path / "runs" / str(shift) / file_name("hpsv2", row["suite_sha256"], row["command"]))
    cell = cell_of("di-star/3", "Photo", "sdxl-50step", tmp_path, "hpsv2")
    assert cell.ours
    assert (cell.ours.value, cell.ours.error, cell.ours.n) == (28.5, 0.5, 2)
    assert cell.difference is None
    assert "antialiased" in cell.why


def timing_row(**changes: str) -> dict[str, str]:
    return {
        "model": "sdxl-distar", "weights": "its own", "total_s": "2.2", "least_s": "2.1", "most_s": "2.3",
        "dtype": "fp16",
        "repeats": "5", "hardware": "a card", "command": "evaluate time",
    } | changes  # fmt: skip


def test_times_are_shown_with_their_hardware_and_never_subtracted(tmp_path: Path) -> None:
    rows = [timing_row(total_s="9"), timing_row(), timing_row(weights="random", total_s="1")]
    write_csv(rows, tmp_path / "timings.csv")
    cell = cell_of("di-star/1", "Infer Time per 10 Images", "sdxl-distar", tmp_path)
    assert cell.ours
    assert (cell.ours.value, cell.ours.low, cell.ours.high) == (2.2, 2.1, 2.3)
    assert "a card, fp16" in cell.ours.remark
    assert cell.difference is None
    assert "hardware" in cell.why


# ---- what is shown ---------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Tags of a page that are open, all that were seen, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.links += [str(value) for name, value in attrs if name in ("href", "src")]
        self.ids += [str(value) for name, value in attrs if name == "id"]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder whose timings come from hardware with a name that means harm."""
    write_csv([timing_row(hardware=HOSTILE)], tmp_path / "timings.csv")
    put(tmp_path, "sdxl-distar", column_of("di-star/1", "Image Reward"))
    return tmp_path


def test_a_page_shows_names_as_text(hostile: Path) -> None:
    table = cells("di-star/1", hostile)
    odd = [cell._replace(figure=cell.figure._replace(row=HOSTILE)) for cell in table]
    files.write(hostile / "t.html", "di-star/1", odd)
    text = (hostile / "t.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) == 22 + 1
    assert "sdxl-50step(4)(5)" in page.text  # notes 4 and 5, not 45
    assert page.tags["table"] == 2
    assert page.tags["tr"] == 2 * 12
    assert set(page.links) == {f"#{each}" for each in page.ids}
    assert "http" not in text  # nothing is fetched
    assert "prefers-color-scheme: dark" in text
    assert "+0.433" in page.text


def test_markdown_shows_names_as_text(hostile: Path) -> None:
    table = cells("di-star/1", hostile)
    odd = [cell._replace(figure=cell.figure._replace(row=HOSTILE)) for cell in table]
    files.write(hostile / "t.md", "di-star/1", odd)
    text = (hostile / "t.md").read_text(encoding="utf-8")
    assert "<script" not in text
    assert set(re.findall(r"<[^>]*>", text)) == {"<br>", "<sup>", "</sup>"}
    bare = re.sub(r"\\.", "", text)
    assert "`" not in bare
    assert "**" not in bare
    assert "](" not in bare
    lines = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in lines} == {8}
    assert "+0.433" in text


def test_a_csv_has_a_line_a_cell(hostile: Path) -> None:
    table = cells("di-star/1", hostile)
    files.write(hostile / "t.csv", "di-star/1", table)
    rows = read_csv(hostile / "t.csv")
    assert len(rows) == len(table) == 176
    (row,) = [each for each in rows if each["difference"]]
    assert (row["model"], row["paper"], row["ours"], row["standard_error"]) == ("sdxl-distar", "1.067", "1.5", "0.0123")
    assert float(row["difference"]) == pytest.approx(0.433)
    assert all(each["why"] for each in rows if not each["difference"] and each["ours"] and each["suite"])
    (seconds,) = [each for each in rows if each["protocol"] == "evaluate time"]
    assert HOSTILE in seconds["note"]


def test_the_terminal_is_readable_in_120_columns(
    hostile: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    for name in TABLES:
        render.show(name, cells(name, hostile))
        said = capsys.readouterr().out
        assert max(map(len, said.splitlines())) <= 120
        assert "…" not in said
    table = cells("di-star/1", hostile)
    render.show("di-star/1", [cell._replace(figure=cell.figure._replace(row="[red]x[/red]")) for cell in table])
    said = capsys.readouterr().out
    for part in ("1.067", "1.500 ± 0.012", "+0.433", HOSTILE.split()[0]):
        assert part in said
    assert said.count("[red]x[/red]") == 22 + 1


# ---- the command -----------------------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr("sys.argv", ["evaluate", "table", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


def test_the_command_lists_and_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch) == 0
    said = capsys.readouterr().out
    assert all(name in said for name in TABLES)
    assert command(monkeypatch, "di-starr/1") == 2
    assert "did you mean 'di-star/1'" in capsys.readouterr().err
    assert command(monkeypatch, "di-star/1", "--limit", 3) == 2
    assert "belong to --run" in capsys.readouterr().err
    assert command(monkeypatch, "di-star/1", "--output", tmp_path / "t.pdf") == 2
    assert "ends in .csv, .md, .html" in " ".join(capsys.readouterr().err.split())
    (tmp_path / "parti.csv").write_text("a,b\n1,2\n")
    assert command(monkeypatch, "di-star/1", "--leaderboards", tmp_path) == 2
    assert "not a leaderboard" in capsys.readouterr().err


@pytest.fixture
def world(models: Hub, real_scorers: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The rows of DI* Table 2 on the loopback hub with images of few pixels, and 3 prompts called Parti's.

    Returns a folder for results.
    """
    sha256 = column_of("di-star/2", "Image Reward").suite_sha256
    prompts = tuple(
        suites.Prompt(f"parti/{i}", text, {}) for i, text in enumerate(sample_captions(3, split="test", seed=3))
    )
    monkeypatch.setattr(
        suites, "load", lambda name, *, path=None: suites.Suite(name, prompts, sha256, "drawn here", "")
    )
    recipes = tmp_path / "models"
    recipes.mkdir()
    for model in address.names():
        content = yaml.safe_load((address.MODELS / f"{model}.yaml").read_text())
        if not content.get("reported_only"):
            content |= {"width": tiny_models.SIDE, "height": tiny_models.SIDE}
        (recipes / f"{model}.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(address, "MODELS", recipes)
    return tmp_path / "results"


def test_run_fills_the_table_and_goes_on(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from evaluate.runs import run
    from evaluate.runs.settings import Settings

    done: list[str] = []
    original = run.run

    def interrupted(settings: Settings, **options: Any) -> Path | None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(settings.model)
        return original(settings, **options)

    with monkeypatch.context() as patch:
        patch.setattr(run, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            plan.run_missing("di-star/2", world, limit=2, device="cpu")
    assert len(done) == 2
    said = " ".join(capsys.readouterr().err.split())
    metrics = "imagereward, aesthetic/v2, pickscore, clipscore/vit-g-14-dmd2"
    assert f"to run: parti, 2 prompts, {metrics}: sdxl-dmd2-1step-1024, sdxl-diff-instruct, sdxl-dipp, sdxl-sim" in said
    assert "skipped: sdxl-dipp-rew0-cfg0, sdxl-distar-out-rew100-cfg7.5" in said
    assert "reported only: no published weights are known" in said

    rest = plan.missing("di-star/2", world, limit=2)
    assert rest.runs["parti"][0] == ["sdxl-dipp", "sdxl-sim", "sdxl-distar", "sdxl-distar-long"]
    page = world / "t.html"
    assert (
        command(
            monkeypatch,
            "di-star/2",
            "--run",
            "--limit",
            2,
            "--leaderboards",
            world,
            "--output",
            page,
            "--device",
            "cpu",
        )
        == 0
    )
    assert [row["model"] for row in read_csv(world / "parti.csv")] == sorted([*done, *rest.runs["parti"][0]])
    assert plan.missing("di-star/2", world, limit=2).runs == {}
    assert len(plan.missing("di-star/2", world).runs["parti"][0]) == 6  # the whole suite is another matter
    table = cells("di-star/2", world)
    measured = [cell for cell in table if cell.column.suite and cell.ours]
    assert len(measured) == 6 * 4
    assert all("of 2 images of 1,632 only" in cell.why and cell.difference is None for cell in measured)
    assert "of 2 images of 1,632 only" in page.read_text(encoding="utf-8")


def test_a_model_that_fails_leaves_the_others(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from evaluate.runs import run
    from evaluate.runs.settings import Settings

    tried: list[str] = []

    def refuse(settings: Settings) -> None:
        tried.append(settings.model)
        raise UserError(f"{settings.model}: terms are not accepted")

    monkeypatch.setattr(run, "run_and_tell", refuse)
    assert command(monkeypatch, "di-star/2", "--run", "--limit", 1, "--leaderboards", world, "--device", "cpu") == 4
    assert len(tried) == 6
    assert "sdxl-sim on parti: sdxl-sim: terms are not accepted" in " ".join(capsys.readouterr().err.split())


def test_what_cannot_be_run_is_skipped_with_the_reason(tmp_path: Path) -> None:
    work = plan.missing("di-star/1", tmp_path)
    assert set(work.runs) == {"parti", "coco2014-30k"}
    put(tmp_path, "sdxl-sim", column_of("di-star/2", "Image Reward"), n="8", complete="False")
    assert "sdxl-sim" in plan.missing("di-star/2", tmp_path, limit=8).runs["parti"][0]  # it is tried again
    assert all(not metric.startswith("fid/") for _, metrics in work.runs.values() for metric in metrics)
    reasons = " ".join(work.skipped)
    assert "evaluate time" in reasons
    assert "--reference" in reasons
    lost = plan.missing("di-plus-plus/1", tmp_path)
    assert "hpsv2-glide" in lost.skipped["reported only: known from the HPSv2 paper alone"]
    assert lost.runs["hpsv2"][1] == ["hpsv2.0/aa"]


# ---- what is not here yet --------------------------------------------------------------------------------------------


def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of GenEval is here, whatever has been built since."""
    known = [name for name in suites.names() if name != "geneval"]
    metrics = {name: what for name, what in scorers.variants().items() if not name.startswith("geneval")}
    monkeypatch.setattr(suites, "names", lambda: known)
    monkeypatch.setattr(scorers, "variants", lambda: metrics)


def test_a_suite_or_metric_that_is_not_here_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch)
    cell = cell_of("sana-sprint/2", "GenEval", "sdxl-50step", tmp_path, "few-step")
    assert cell.ours is None
    assert cell.why == "there is no suite 'geneval' here"
    work = plan.missing("sana-sprint/2", tmp_path)
    assert "geneval" not in work.runs
    assert "GenEval" in work.skipped["there is no suite 'geneval' here"]
    grids, notes = render.grids("sana-sprint/2", cells("sana-sprint/2", tmp_path))
    assert notes.count("there is no suite 'geneval' here") == 1
    head = next(head for head in grids[0].heads if head.lines[0] == "GenEval")
    assert "there is no suite 'geneval' here" in [notes[number - 1] for number in head.notes]
    monkeypatch.setattr(suites, "names", lambda: ["geneval", "parti"])
    assert cell_of("sana-sprint/2", "GenEval", "sdxl-50step", tmp_path, "few-step").why.endswith(
        "metric 'geneval' here"
    )


def test_it_is_run_and_shown_once_it_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suites, "names", lambda: ["geneval"])
    monkeypatch.setattr(suites, "card", lambda name: suites.Card(553, "", ""))
    monkeypatch.setattr(scorers, "variants", lambda: {"geneval": "six tasks"})
    match.suite_card.cache_clear()
    try:
        work = plan.missing("known/geneval", tmp_path)
        assert work.runs["geneval"][1] == ["geneval"]  # its tasks are groups of prompts, not metrics to run
        assert "sdxl-50step" in work.runs["geneval"][0]
        row = row_of("sdxl-50step", column_of("known/geneval", "Overall", "sana"), 0.55)
        leaderboard.upsert(tmp_path / "geneval.csv", row)
        cell = cell_of("known/geneval", "Overall", "sdxl-50step", tmp_path, "sana")
        assert cell.ours
        assert (cell.ours.value, cell.ours.protocol) == (0.55, "geneval")
        assert cell.difference is None
        assert "by which code" in cell.why
    finally:
        match.suite_card.cache_clear()


def test_a_distribution_metric_is_never_run_by_itself(tmp_path: Path) -> None:
    work = plan.missing("dmd2/1", tmp_path)
    assert not {*work.runs["coco2014-30k"][1]} & {*distribution.variants()}
    assert "fid/coco-sdxl-10k of sdxl-dmd2-1step-1024" in work.skipped[plan.NEEDS_FILES]


def test_the_source_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    table = cells("didr/1", tmp_path)
    render.show("didr/1", table)
    for suffix in (".md", ".html"):
        files.write(tmp_path / f"t{suffix}", "didr/1", table)
    said = [capsys.readouterr().out, *((tmp_path / f"t{suffix}").read_text("utf-8") for suffix in (".md", ".html"))]
    for text in said:
        assert "github.com/Junyi-W/DIDR" in text.replace("\\", "")
        assert "neither the prompts nor how many are named" in " ".join(text.split())
