"""The report: what it gathers, and the page itself in a headless browser."""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from scipy import stats
from typer.testing import CliRunner

from evaluate import report as reporting
from evaluate.cli import app
from evaluate.report import measured, training
from evaluate.results.records import Records
from evaluate.runs import run as runner
from evaluate.runs.settings import from_options
from evaluate.runs.store import pixels_sha256
from prompts.io.errors import UserError

SCORES = ("oracle/a", "taste/b")
HOSTILE = [
    "<img src=x onerror=\"window.hacked='img'\">",
    "</script><script>window.hacked='script'</script>",
    "\u202eRTL override\u202c and \u2028 line \u2029 paragraph end",
    "word" * 3000,
    "<!--<script>",
    "javascript:window.hacked=1 ' \" ` ${window.hacked=2} \\u003c \x07 \U0001f600 &lt;b&gt;",
]


def make_run(
    folder: Path,
    *,
    model: str,
    prompts: Sequence[str],
    scores: np.ndarray,
    side: int = 8,
    errors: dict[int, str] | None = None,
    protocols: dict[str, str | None] | None = None,
    frechet: float | None = 1.0,
    same_image: bool = False,
    **meta: Any,
) -> Path:
    """A run folder in the layout of `evaluate run`; `scores` `[N, K]`, one column a protocol."""
    errors, protocols = errors or {}, protocols or dict.fromkeys(SCORES)
    block = folder / "images" / "00000-0000000000"
    block.mkdir(parents=True)
    generator = np.random.default_rng(len(model))
    index, rows = [], []
    image = generator.integers(256, size=(side, side, 3), dtype=np.uint8)
    for i, prompt in enumerate(prompts):
        digest = None
        if i not in errors:
            image = image if same_image else generator.integers(256, size=(side, side, 3), dtype=np.uint8)
            digest = pixels_sha256(image)
            name = "0.png" if same_image else f"{i}.png"
            if i == 0 or not same_image:
                Image.fromarray(image).save(block / name)
                index.append({"file": name, "size": 0, "sha256": digest, "error": None, "batch": 1})
        row = {"id": f"s/{i:04d}", "prompt": prompt, "group.category": ("animals", "people", "")[i % 3], "seed": 0}
        row |= {"image_sha256": digest, "error": errors.get(i)}
        rows.append(row | {f"score.{p}": np.nan if i in errors else scores[i, k] for k, p in enumerate(protocols)})
    (block / "index.json").write_text(json.dumps(index))
    estimate = {"value": frechet, "low": 0.5, "high": 1.5, "n": len(rows), "note": "", "weights_sha256": "f" * 64}
    Records(
        pd.DataFrame(rows),
        {
            "suite": "s",
            "suite_sha256": "0" * 64,
            "model": model,
            "n_expected": len(rows),
            "protocols": protocols,
            "complete": not errors,
            "distribution": {} if frechet is None else {"fd-shapes": estimate},
            "command": f"evaluate run --model {model}",
            "made_by": {"dtype": "fp32"},
        }
        | meta,
    ).save(folder / "records-s-00000000.parquet")
    return folder


def make_training(folder: Path, *, steps: int = 12, name: str = "divergence") -> Path:
    """A run folder in the layout of `align train`."""
    (folder / "samples").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({"steps": steps, "prompts": "<b>bold</b>"}))
    lines = [
        {
            "step": s,
            name: 1 / s,
            "reward_ratio": None if s == 2 else s,
            "reward/x": s / 2,
            "g_gradient": 1.0,
            "note": "text",
        }
        for s in range(1, steps + 1)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in (0, 6, 12):
        for kind in ("", "-predictions"):
            Image.new("RGB", (64, 32), (step * 20, 0, 0)).save(folder / "samples" / f"step-{step:05d}{kind}.png")
    return folder


def scores_of(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(5, 1, (n, 2))


def page_data(page: Path) -> dict[str, Any]:
    found = re.search(
        r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL
    )
    assert found
    return json.loads(found[1])


PROMPTS = [
    "a red fox in the snow",
    "two people under a tree",
    "a blue cup",
    "a fox and a cup",
    "an old man",
    "nothing at all",
]


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    worse = scores_of(6, 0)
    worse[:, 1] += [0.5, -3, 1, -0.25, 2, -7]
    return [
        make_run(tmp_path / "a", model="base", prompts=PROMPTS, scores=scores_of(6, 0), frechet=2.0),
        make_run(
            tmp_path / "b", model="aligned", prompts=PROMPTS, scores=worse, errors={4: "the model drew <b>NaN</b>"}
        ),
    ]


# ---- the data


def test_a_run_of_evaluate_run_as_it_is(tmp_path: Path) -> None:
    [settings] = from_options(
        "shapes",
        ["shapes/base"],
        ["shapes/oracle", "fd-shapes"],
        prompts=None,
        images=None,
        limit=6,
        seed=0,
        per_prompt=2,
        batch=6,
        dtype=None,
        device="cpu",
        output=tmp_path / "boards",
        shard="1/1",
    )
    path = runner.run(settings, show=False)
    assert path
    reporting.report([path.parent], tmp_path / "r.html", show=False)
    data = page_data(tmp_path / "r.html")["measured"]
    frame = Records.load(path).frame
    assert data["ids"] == list(frame["id"]) and data["copy"] == [0, 1] * 6 and data["state"] == ["1" * 12]
    for row, digest in enumerate(frame["image_sha256"]):
        with Image.open(tmp_path / "r_files" / "0" / f"{row}.png") as image:
            assert pixels_sha256(np.array(image)) == digest
    assert data["scores"][0][0] == list(frame["score.shapes/oracle"])
    assert [m["frechet"] for m in data["metrics"]] == [False, True] and data["metrics"][1]["lower"]
    assert data["groups"][0]["name"] == "family"


def test_figures_have_the_interval_of_students_t(two: list[Path]) -> None:
    data, _ = measured.gather(two)
    assert data
    scores = Records.load(two[0]).scores("taste/b")
    low, high = stats.t.interval(0.95, 5, scores.mean(), stats.sem(scores))
    cell = data["board"][0][1]
    assert [cell["value"], cell["low"], cell["high"], cell["n"]] == pytest.approx(
        [scores.mean(), low, high, 6], rel=1e-5
    )
    assert data["board"][1][1]["n"] == 5


def test_a_failure_is_told_and_never_a_zero(two: list[Path]) -> None:
    data, images = measured.gather(two)
    assert data
    assert data["state"] == ["111111", "111101"] and data["errors"] == [{}, {4: "the model drew <b>NaN</b>"}]
    assert data["scores"][1][0][4] is None
    assert data["models"][0]["missing"] is None and "1 of 6 records have errors" in data["models"][1]["missing"]
    assert len(images) == 11


def test_two_protocols_never_share_a_column(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", model="m", prompts=PROMPTS, scores=scores_of(6, 0), protocols={"p": "a" * 64}),
        make_run(tmp_path / "b", model="m", prompts=PROMPTS, scores=scores_of(6, 1), protocols={"p": "b" * 64}),
    ]
    data, _ = measured.gather(runs)
    assert data
    names = [metric["name"] for metric in data["metrics"]]
    assert names == ["p, weights aaaaaaaa", "fd-shapes", "p, weights bbbbbbbb"]
    assert data["board"][0][2] is None and data["board"][1][0] is None
    assert [model["label"] for model in data["models"]] == ["m · a", "m · b"]


def test_a_shorter_run_leaves_gaps(tmp_path: Path) -> None:
    runs = [
        make_run(tmp_path / "a", model="short", prompts=PROMPTS[:2], scores=scores_of(2, 0)),
        make_run(tmp_path / "b", model="long", prompts=PROMPTS, scores=scores_of(6, 1)),
    ]
    data, _ = measured.gather(runs)
    assert data
    assert data["prompts"] == PROMPTS and data["state"] == ["11----", "111111"]


def test_a_lost_image_is_an_error(two: list[Path]) -> None:
    block = next((two[0] / "images").iterdir())
    (block / "0.png").unlink()
    (block / "1.png").write_bytes(b"no image")
    data, _ = measured.gather(two)
    assert data
    assert data["state"][0] == "001111" and "cannot be read" in data["errors"][0][0]


def test_large_images_get_thumbnails_and_originals_are_not_copied(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", model="m", prompts=PROMPTS[:1], scores=scores_of(1, 0), side=600)
    reporting.report([run], tmp_path / "r.html", show=False)
    original = next((run / "images").rglob("0.png"))
    assert (tmp_path / "r_files" / "0" / "0.png").stat().st_ino == original.stat().st_ino
    with Image.open(tmp_path / "r_files" / "0" / "0.jpg") as image:
        assert max(image.size) == measured.LARGEST <= 512
    assert page_data(tmp_path / "r.html")["measured"]["board"][0][0]["low"] is None  # one prompt has no interval


def test_a_torn_large_image_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", model="m", prompts=PROMPTS[:1], scores=scores_of(1, 0), side=600)
    image = next((run / "images").rglob("0.png"))
    image.write_bytes(image.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"0\.png: torn image"):
        reporting.report([run], tmp_path / "r.html", show=False)
    assert not (tmp_path / "r_files").exists()


def test_images_are_copied_where_links_are_refused(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert reporting.report(two, tmp_path / "r.html", show=False).images == 11
    copied = tmp_path / "r_files" / "0" / "3.png"
    assert copied.stat().st_nlink == 1 and copied.read_bytes() == next((two[0] / "images").rglob("3.png")).read_bytes()


def test_training_curves(tmp_path: Path) -> None:
    run = make_training(tmp_path / "t")
    with (run / "log.jsonl").open("a") as file:
        file.write('{"step": 13, "diver')  # killed in the middle of a line
    [data], images = training.gather([run])
    assert data["curves"]["divergence"] == [
        [float(s) for s in range(1, 13)],
        [pytest.approx(1 / s, rel=1e-5) for s in range(1, 13)],
    ]
    assert data["curves"]["reward_ratio"][1][1] is None and "note" not in data["curves"]
    assert [each["step"] for each in data["samples"]] == [0, 6, 12] and len(images) == 6


def test_long_curves_are_means_of_buckets(tmp_path: Path) -> None:
    run = make_training(tmp_path / "t", steps=4000)
    [data], _ = training.gather([run])
    assert data["per_point"] == 3
    steps, values = data["curves"]["reward/x"]
    assert len(steps) == 1334 and steps[:2] == [2, 5] and values[:2] == [1, 2.5]


def test_what_is_logged_seldom_is_shown_as_it_is_however_long_the_run(tmp_path: Path) -> None:
    run = make_training(tmp_path / "t", steps=4000)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line.pop("held_out/reward", None)
        if line["step"] % 50 == 0:
            line["held_out/reward"] = line["step"]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    [data], _ = training.gather([run])
    assert data["per_point"] == 3
    assert data["curves"]["held_out/reward"] == [[*range(50, 4001, 50)]] * 2


def test_embedded_json_ends_no_script() -> None:
    text = reporting.embed({"prompts": HOSTILE})
    assert text.isascii() and not set("<>&") & set(text)
    assert json.loads(text)["prompts"] == HOSTILE


# ---- errors


def refused(paths: Sequence[Path], output: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        reporting.report(paths, output, show=False, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_errors_are_sentences(two: list[Path], tmp_path: Path) -> None:
    out, rng = tmp_path / "r.html", scores_of(2, 0)
    (tmp_path / "empty").mkdir()
    assert "no files records" in refused([tmp_path / "empty"], out)
    assert "no such file" in refused([tmp_path / "absent"], out)
    other = make_run(tmp_path / "o", model="m", prompts=PROMPTS[:2], scores=rng, suite="other")
    assert "a report for each suite" in refused([*two, other], out)
    version = make_run(tmp_path / "v", model="m", prompts=PROMPTS[:2], scores=rng, suite_sha256="1" * 64)
    assert "suite_sha256" in refused([*two, version], out)
    assert "given twice" in refused([two[0], two[0]], out)
    assert ".html" in refused(two, tmp_path / "r.pdf")
    run = make_run(tmp_path / "e", model="m", prompts=PROMPTS[:2], scores=rng)
    records = Records.load(run)
    Records(records.frame.iloc[:0], records.meta).save(run / "records-s-00000000.parquet")
    assert "empty run" in refused([run], out)
    log = make_training(tmp_path / "t") / "log.jsonl"
    log.write_text("")
    assert "empty log" in refused([log.parent], out)
    log.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    assert "line 2" in refused([log.parent], out)
    assert not out.exists() and not list(tmp_path.glob(".r_files*"))


def test_only_a_report_is_replaced(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "r.html"
    out.write_text("<p>mine</p>")
    assert "--overwrite" in refused(two, out) and out.read_text() == "<p>mine</p>"
    reporting.report(two, out, overwrite=True, show=False)
    reporting.report(two[:1], out, show=False)
    assert sorted(path.name for path in (tmp_path / "r_files").iterdir()) == [reporting.MARKER, "0"]
    (tmp_path / "other_files").mkdir()
    assert "move it away" in refused(two, tmp_path / "other.html", overwrite=True)


def test_what_was_there_stays_where_writing_fails(
    two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.html"
    reporting.report(two, out, show=False)
    before = out.read_text(encoding="utf-8")

    def fail(path: Path, write: Any) -> None:
        raise UserError("the disk is full")

    monkeypatch.setattr(reporting, "replace", fail)
    refused(two[:1], out)
    assert out.read_text(encoding="utf-8") == before and (tmp_path / "r_files" / "1" / "0.png").is_file()
    assert not list(tmp_path.glob(".r_files*"))


def test_the_command(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    result = CliRunner().invoke(app, ["report", *map(str, two), str(make_training(tmp_path / "t")), "-o", str(out)])
    assert result.exit_code == 0 and "17 images" in result.output, result.output
    assert out.is_file() and (tmp_path / "page_files" / "t0" / "12-samples.png").is_file()


# ---- the page

#: Every colour a text has, with the first background behind it that is one: [selector, ratio].
CONTRASTS = """() => {
  const rgb = (c) => c.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (c) => {
    const [r, g, b] = rgb(c).slice(0, 3).map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (e) => {
    for (; e; e = e.parentElement) {
      const c = getComputedStyle(e).backgroundColor, v = rgb(c);
      if (v.length < 4 || v[3] > 0) return c;
    }
  };
  const written = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  const seen = (e) => written(e) && e.checkVisibility() && !e.matches("script, option");
  return [...document.querySelectorAll("body *")].filter(seen).map((e) => {
    const ink = getComputedStyle(e), own = e instanceof SVGElement ? ink.fill : ink.color;
    const [a, b] = [light(own), light(behind(e))];
    return [`${e.tagName}.${e.getAttribute("class") ?? ""}`, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05)];
  });
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here: 'apt-get install chromium' brings one")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


class Page:
    """A report opened from its file: what it said on the console, what it asked for, and what its policy refused."""

    def __init__(self, browser: Any, path: Path, **options: Any):
        self.context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.page, self.path = self.context.new_page(), path
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("dialog", lambda dialog: self.said.append(dialog.message))
        self.page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.log(`refused ${e.violatedDirective}`))"
        )
        self.page.goto(path.as_uri())

    def __enter__(self) -> Any:
        return self.page

    def __exit__(self, kind: Any, *_: Any) -> None:
        page, images = self.path.as_uri(), self.path.with_name(f"{self.path.stem}_files").as_uri()
        self.context.close()
        if kind is None:
            assert self.said == []
            assert self.asked and all(url == page or url.startswith(f"{images}/") for url in self.asked), self.asked


def column(page: Any, index: int) -> list[str]:
    return page.locator(f"#leaderboard tbody tr > *:nth-child({index})").all_inner_texts()


def shown(page: Any) -> list[str]:
    return page.locator("ol.rows > li").evaluate_all("rows => rows.map((row) => row.dataset.id)")


def wait(condition: Callable[[], bool]) -> None:
    """Until it holds. Playwright's own way of waiting is an eval in the page, which the policy refuses."""
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until, "waited 10 s"
        time.sleep(0.02)


def tells(page: Any, start: str) -> None:
    wait(lambda: page.locator("#count").inner_text().startswith(start))


@pytest.fixture
def opened(two: list[Path], tmp_path: Path, browser: Any) -> Path:
    out = tmp_path / "a report" / "page #1.html"
    reporting.report(
        [*two, make_training(tmp_path / "t"), make_training(tmp_path / "u", name="other")], out, show=False
    )
    return out


def test_sorting_the_leaderboard(browser: Any, opened: Path) -> None:
    with Page(browser, opened) as page:
        heads = page.locator("#leaderboard thead th")
        assert heads.locator("button").all_inner_texts() == ["model", "images", "complete", *SCORES, "fd-shapes"]
        assert [cell.split("\n")[0] for cell in column(page, 3)] in (
            ["complete", "incomplete"],
            ["incomplete", "complete"],
        )
        assert page.locator("tr.incomplete th").inner_text() == "aligned"
        for name, first in (("fd-shapes", "aligned"), ("taste/b", "base"), ("model", "aligned"), ("complete", "base")):
            head = heads.filter(has=page.get_by_role("button", name=name, exact=True))
            head.get_by_role("button").click()
            assert column(page, 1)[0] == first, name
            up = head.get_attribute("aria-sort")
            assert page.locator("#leaderboard [aria-sort]").count() == 1
            head.get_by_role("button").click()
            assert column(page, 1)[1] == first
            assert {up, head.get_attribute("aria-sort")} == {"ascending", "descending"}
        assert page.locator("#leaderboard [role=status]").inner_text() == "Sorted by complete, ascending."


def test_filters_and_worst_regressions_first(browser: Any, opened: Path, two: list[Path]) -> None:
    with Page(browser, opened) as page:
        said = page.locator("#count")
        assert shown(page) == [f"s/{i:04d}" for i in range(6)] and said.inner_text().startswith("6 of 6 prompts")
        assert said.get_attribute("role") == "status"
        page.get_by_label("Order").select_option("worst")
        a, b = (Records.load(path).by_prompt()["taste/b"] for path in two)
        expected = list((b - a).sort_values(na_position="last").index)
        assert shown(page) == expected and expected[-1] == "s/0004"
        assert "−7.000 taste/b" in page.locator("ol.rows > li").first.inner_text()
        assert "worst regressions in taste/b first, from base to aligned" in said.inner_text()
        page.get_by_label("Order").select_option("best")
        assert shown(page) == [*expected[:5][::-1], expected[5]]
        page.get_by_label("from", exact=True).select_option("1")
        page.get_by_label("to", exact=True).select_option("0")
        assert shown(page) == expected
        page.get_by_label("Difference in").select_option("0")
        assert shown(page)[0] == "s/0000"  # no difference at all: the suite's order
        page.get_by_label("Order").select_option("suite")
        page.get_by_label("category").select_option(label="animals")
        assert shown(page) == ["s/0000", "s/0003"]
        page.get_by_label("Prompt contains").fill("FOX cup")
        tells(page, "1 of 6")
        assert shown(page) == ["s/0003"]
        page.get_by_label("Prompt contains").fill("unicorn")
        tells(page, "No prompt")
        page.get_by_label("Prompt contains").fill("")
        page.get_by_label("category").select_option("")
        page.get_by_label("only with errors").check()
        tells(page, "1 of 6")
        assert shown(page) == ["s/0004"]
        assert page.locator("figure .error").all_inner_texts() == ["the model drew <b>NaN</b>"]


def test_images_load_and_say_what_they_are(browser: Any, opened: Path) -> None:
    with Page(browser, opened) as page:
        page.locator("#images").scroll_into_view_if_needed()
        image = page.get_by_alt_text("a red fox in the snow, by base")
        image.scroll_into_view_if_needed()
        wait(lambda: image.evaluate("e => e.naturalWidth") == 8)
        for box in page.locator("svg[role=img]").all():
            assert len(box.get_attribute("aria-label")) > 20
        names = page.locator("button, select, input").evaluate_all(
            "all => all.map((e) => e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.[0]?.textContent"
            " || e.querySelector('img')?.alt)"
        )
        assert all(names)


def test_training_section(browser: Any, opened: Path) -> None:
    with Page(browser, opened) as page:
        page.locator("#training").scroll_into_view_if_needed()
        assert page.locator("#training .panel h3").all_inner_texts()[0].startswith("divergence")
        page.wait_for_selector("#training .panel path")
        step = page.get_by_label("Step", exact=True)
        step.focus()
        step.press("Home")
        step.press("ArrowRight")
        wait(lambda: page.locator("#training .reading").first.inner_text() == "step 2: t 0.5")
        before = page.locator("#training .panel path").first.get_attribute("d")
        page.get_by_label("Smoothing").press("Home")
        wait(lambda: page.get_by_label("Smoothing").input_value() == "0")
        assert page.locator("#training .panel path").first.get_attribute("d") == before  # few points are not smoothed
        stage = page.locator("#training .stage").first
        assert stage.locator("img").get_attribute("alt") == "samples of t at step 12"
        stage.get_by_label("Step of the images").press("ArrowLeft")
        assert stage.locator("img").get_attribute("alt") == "samples of t at step 6"
        stage.get_by_label("Images", exact=True).select_option("predictions")
        assert stage.locator("img").get_attribute("src").endswith("/t0/12-predictions.png")
        stage.locator("summary").click()
        assert "<b>bold</b>" in stage.locator("pre").inner_text()


def test_keyboard_alone(browser: Any, opened: Path) -> None:
    with Page(browser, opened) as page:
        able = page.locator("a[href], button:not(:disabled), select, input, summary, [tabindex='0']").evaluate_all(
            "all => all.filter((e) => e.checkVisibility() && !e.closest('dialog')).length"
        )
        seen = 0
        for _ in range(able):
            page.keyboard.press("Tab")
            seen += page.evaluate(
                """() => { const e = document.activeElement, s = getComputedStyle(e);
                const fresh = !e.dataset.seen && e !== document.body;
                e.dataset.seen = 1; return fresh && s.outlineStyle !== "none" && parseFloat(s.outlineWidth) >= 2; }"""
            )
        assert seen == able
        page.locator("#leaderboard").get_by_role("button", name="model").focus()
        page.keyboard.press("Enter")
        assert page.locator("#leaderboard th[aria-sort=ascending]").inner_text() == "model"
        page.locator(".shot").nth(1).focus()
        page.keyboard.press("Enter")
        who = page.locator("dialog .who")
        assert who.inner_text() == "aligned" and page.locator("dialog .prompt").inner_text() == PROMPTS[0]
        page.keyboard.press("ArrowRight")
        assert who.inner_text() == "base"
        page.keyboard.press("ArrowDown")
        assert page.locator("dialog .prompt").inner_text() == PROMPTS[1]
        page.keyboard.press("Escape")
        assert not page.locator("dialog").is_visible()
        # The dialog's `close` comes after Escape has been answered.
        page.locator("[data-row='1'][data-model='0']:focus").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours(browser: Any, opened: Path, scheme: str) -> None:
    with Page(browser, opened, color_scheme=scheme) as page:
        page.get_by_label("Order").select_option("worst")
        page.wait_for_selector("#training svg text")
        paper = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
        assert paper == {"light": "rgb(252, 251, 249)", "dark": "rgb(22, 22, 23)"}[scheme]
        found = page.evaluate(CONTRASTS)
        assert len(found) > 100 and min(found, key=lambda each: each[1])[1] >= 4.5, min(found, key=lambda each: each[1])
        marks = page.evaluate(
            "[0, 1, 2, 3, 4, 5].map((i) =>"
            " getComputedStyle(document.documentElement).getPropertyValue(`--s${i}`).trim())"
        )
        assert min(contrast(mark, paper) for mark in marks) >= 3


def contrast(one: str, other: str) -> float:
    def light(text: str) -> float:
        channels = (
            [int(text[i : i + 2], 16) for i in (1, 3, 5)]
            if text.startswith("#")
            else list(map(int, re.findall(r"\d+", text)))
        )
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in channels)]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_narrow_screens_and_print(browser: Any, opened: Path) -> None:
    with Page(browser, opened, viewport={"width": 360, "height": 700}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        assert page.locator("figcaption .who").first.is_visible() and not page.locator(".heads").is_visible()
        page.emulate_media(media="print")
        assert not page.locator(".controls").first.is_visible() and page.locator("#leaderboard table").is_visible()


def test_hostile_texts_do_nothing(browser: Any, tmp_path: Path) -> None:
    runs = [
        make_run(
            tmp_path / name,
            model=f"{HOSTILE[i]}",
            prompts=HOSTILE,
            scores=scores_of(len(HOSTILE), i),
            errors={2: HOSTILE[1]},
        )
        for i, name in enumerate("ab")
    ]
    train = make_training(tmp_path / "<img src=x onerror=window.hacked=3>", name="<b>loss</b>")
    reporting.report([*runs, train], tmp_path / "r.html", show=False)
    with Page(browser, tmp_path / "r.html", viewport={"width": 700, "height": 900}) as page:
        page.wait_for_selector("#training svg text")
        page.locator(".shot").first.click()
        assert page.evaluate("window.hacked") is None
        assert page.locator("script").count() == 2 and page.locator("b:not(td b, .about b)").count() == 0
        assert page.locator("img[src=x]").count() == 0
        prompts = page.locator("ol.rows .prompt bdi").evaluate_all("all => all.map((e) => e.textContent)")
        assert prompts == HOSTILE
        assert page.evaluate("document.documentElement.scrollWidth") <= 700
        assert page.locator("ol.rows > li").nth(3).bounding_box()["height"] < 900
        assert page.locator("ol.rows .prompt").evaluate_all("all => all.every((e) => e.scrollWidth <= e.clientWidth)")
        # A direction override ends with the text that holds it.
        assert page.locator("ol.rows .prompt bdi").nth(2).evaluate("e => getComputedStyle(e).unicodeBidi") == "isolate"


def test_the_policy_refuses_what_gets_in_all_the_same(browser: Any, opened: Path) -> None:
    with pytest.raises(_Enough), Page(browser, opened) as page:
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.evaluate("""async () => {
            const box = document.createElement("div");
            document.body.append(box);
            box.innerHTML = "<img src='x' onerror='window.hacked=1'><iframe src='https://example.invalid'></iframe>";
            document.head.append(Object.assign(document.createElement("script"), { textContent: "window.hacked = 2" }));
            await fetch("https://example.invalid/").catch(() => 0);
            new Image().src = "https://example.invalid/a.png";
            await new Promise((done) => setTimeout(done, 300));
        }""")
        assert page.evaluate("window.hacked") is None
        refusals = {text.split()[1] for text in said if text.startswith("refused")}
        assert refusals >= {"script-src-attr", "script-src-elem", "connect-src", "img-src", "frame-src"}
        raise _Enough


class _Enough(Exception):
    """The console is not silent here, and is not meant to be."""


def test_1632_prompts_and_6_models(browser: Any, tmp_path: Path) -> None:
    n, names = 1632, [f"model-{m}" for m in range(6)]
    prompts = [f"prompt {i} of a {('cat', 'dog', 'house')[i % 3]} with a few more words to read" for i in range(n)]
    protocols = {f"metric-{k}": None for k in range(5)}
    runs = [
        make_run(
            tmp_path / name,
            model=name,
            prompts=prompts,
            protocols=protocols,
            same_image=True,
            scores=np.random.default_rng(m).normal(size=(n, 5)),
        )
        for m, name in enumerate(names)
    ]
    written = reporting.report(runs, tmp_path / "r.html", show=False)
    assert written.images == n * 6
    with Page(browser, tmp_path / "r.html") as page:
        page.locator("#images").get_by_label("Order").select_option("worst")
        a, b = (Records.load(run).scores("metric-4") for run in runs[:2])
        wait(lambda: shown(page)[0] == f"s/{int(np.argmin(b - a)):04d}")
        page.locator("#images").get_by_label("Prompt contains").fill("dog")
        wait(lambda: page.locator("#count").inner_text().startswith("544 of 1,632 prompts, 1 to 40"))
        page.get_by_role("button", name="Next →").first.click()
        assert "41 to 80" in page.locator("#count").inner_text()
        nodes = page.evaluate("document.querySelectorAll('*').length")
    assert nodes < 12_000, "a page has its rows alone"
