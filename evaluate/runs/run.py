"""A suite, a model and metrics in; per-picture records and one row of a leaderboard out.

Everything is a function of the settings: an interrupted run goes on where it was, shards fill one folder between them, and whoever
finds it full writes the row, which is the same row each way.
"""

import copy
import json
import math
import os
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import replace as change
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from evaluate import distribution, environment, pipelines, samplers, scorers
from evaluate.console import Watch, console
from evaluate.distribution import Estimate, SetMetric
from evaluate.preprocess import Preprocess
from evaluate.results import leaderboard, summary
from evaluate.results.records import Records
from evaluate.runs.generate import (
    Block,
    Drawer,
    Drawn,
    Halves,
    Store,
    StoredImage,
    adopter,
    ahead,
    blocks,
    digest,
    drawer,
    painter,
    pictures_digest,
    pictures_in,
)
from evaluate.scorers import Images, Scorer, prepare_all
from prompts import suites
from prompts.io import hub
from prompts.io.errors import UserError
from prompts.io.files import replace
from prompts.suites import Suite

#: What is measured where nothing is named.
METRICS = ("hpsv2.1/aa", "imagereward", "aesthetic/v2", "pickscore", "clipscore/vit-g-14-dmd2")
SUITE_METRICS = {
    "shapes": ("shapes/oracle", "shapes/rule", "shapes/clip", "shapes/preference", "fd-shapes"),
    "coco2014-30k": ("fid/coco2014-30k", "clipscore/vit-g-14-dmd2"),
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a run is. `shard` alone may differ between processes that write the same row."""

    suite: Suite
    model: str
    metrics: tuple[str, ...]
    images: Path | None = None
    seeds: tuple[int, ...] = (0,)
    batch: int = 16
    dtype: str = "fp32"
    device: str = "cpu"
    output: Path = Path("leaderboards")
    shard: tuple[int, int] = (0, 1)
    limit: int | None = None
    weights: Mapping[str, str] = field(default_factory=dict)
    reference: Path | None = None

    @property
    def command(self) -> str:
        """What makes the row again, whatever this process was asked to do of it."""
        words = ["evaluate", "run", "--suite", self.suite.name, "--model", self.model]
        for metric in self.metrics:
            words += ["--metric", metric]
        options: dict[str, object] = {
            "--images": self.images,
            "--limit": self.limit,
            "--seed": self.seeds[0],
            "--per-prompt": len(self.seeds),
        }
        options |= {"--batch": self.batch, "--dtype": self.dtype}
        for option, value in options.items():
            words += [] if value is None else [option, str(value)]
        for metric, path in self.weights.items():
            words += ["--weights", f"{metric}={path}"]
        words += ["--reference", str(self.reference)] if self.reference else []
        return hub.redact(shlex.join(words))


def settings(
    suite: str, models: Sequence[str], metrics: Sequence[str], *, prompts: Path | None, images: Path | None, limit: int | None, seed: int,
    per_prompt: int, batch: int, dtype: str | None, device: str | None, output: Path, shard: str, weights: Sequence[str] = (),
    reference: Path | None = None,
) -> list[Settings]:  # fmt: skip
    """What the command's options mean, a `Settings` a model. Raises UserError for what cannot be meant."""
    whole = suites.load(suite, path=prompts)
    asked = change(whole, prompts=whole.prompts[:limit])
    if twice := [name for name, count in Counter(map(_slug, models)).items() if count > 1]:
        raise UserError(f"--model: two models would both be called {twice[0]!r}; run them into two --output folders")
    if images and len(models) > 1:
        raise UserError("--images belongs to one --model; run the command once for each")
    if dtype not in (None, *DTYPES):
        raise UserError(f"--dtype {dtype}: unknown; choose {', '.join(DTYPES)}")
    # Processes that were launched together take a GPU each.
    device = device or (f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: no GPU there; choose cpu")
    metrics = tuple(dict.fromkeys(map(_metric, metrics or SUITE_METRICS.get(whole.name, METRICS))))
    paths = dict(_weights(text, metrics) for text in weights)
    return [
        Settings(
            suite=asked, model=model, metrics=metrics, images=images, seeds=tuple(range(seed, seed + per_prompt)), batch=batch,
            dtype=dtype or _dtype(model, device, images), device=device, output=output, shard=_shard(shard), limit=limit, weights=paths, reference=reference,
        )
        for model in models
    ]  # fmt: skip


def _metric(name: str) -> str:
    variant = scorers.resolve(name) or distribution.resolve(name)
    if variant is None:
        known = [*scorers.variants(), *distribution.variants()]
        close = get_close_matches(name, known, 1, 0)[0]
        raise UserError(f"no metric {name!r}; did you mean {close!r}? 'evaluate metrics' lists them")
    return variant


def _dtype(model: str, device: str, images: Path | None) -> str:
    """What a model is drawn in where nobody says: what its recipe was published with, on a GPU."""
    recipe = None if images or not device.startswith("cuda") else pipelines.recipe(model)
    return recipe.dtype if recipe and recipe.dtype else "fp32"


def _weights(text: str, metrics: Sequence[str]) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    name = scorers.resolve(name) or distribution.resolve(name) or name
    if not equals or name not in metrics:
        raise UserError(f"--weights {text}: give METRIC=PATH with one of the metrics asked for ({', '.join(metrics)})")
    return name, path


def _shard(text: str) -> tuple[int, int]:
    """Position from 0, and number of shards: of `I/N`, or of this process among those that `torchrun` started."""
    first, _, last = text.partition("/")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise UserError(f"--shard {text}: give I/N with 1 <= I <= N, for example 2/8")
    i, n = int(first) - 1, int(last)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    return i * world + rank, n * world


def run_and_tell(settings: Settings) -> bool:
    """Run, and print the row. Returns False where pictures or scores are missing for good."""
    path = run(settings)
    if path is None:
        return True
    records = Records.load(path)
    summary.show(records, summary.summarise(records))
    console.print(f"row in {settings.output / settings.suite.name}.csv, records in {path}")
    return bool(records.complete)


def run(
    settings: Settings, *, show: bool = True, make: Drawer = drawer, load: Callable[..., Scorer] = scorers.load
) -> Path | None:
    """Draw what is not drawn and score what is not scored; with all of it there, write the records and the leaderboard's row.

    What cannot be measured is refused before the first image is drawn, so scorers are loaded first, once. They wait in the host's
    memory while the model has the GPU, and go there when something is to be scored.

    make, load: what makes a model's drawer and what loads a scorer. Returns the records' file, or None where blocks are left to other shards.
    """
    loaded, measures = _load(settings, load)
    made_by = identity(settings)
    folder = settings.output / "runs" / f"{_slug(settings.model)}-{digest(json.dumps(made_by, sort_keys=True))[:12]}"
    _keep(folder / "made-by.json", made_by)
    store = Store(folder / "pictures")
    work = blocks(settings.suite.prompts, settings.seeds, settings.batch)
    mine = work[settings.shard[0] :: settings.shard[1]]

    _draw(settings, [block for block in mine if store.failed(block)], store, make, show=show)
    parts = {
        s.protocol: Scores(folder / "scores" / _slug(f"{s.protocol}-{(s.weights_sha256 or '')[:12]}"), store) for s in loaded
    }
    unscored = [(block, [s for s in loaded if parts[s.protocol].failed(block)]) for block in mine]
    _score(settings, [(block, which) for block, which in unscored if which], store, parts, show=show)

    missing = [b for b in work if store.read(b) is None or any(part.read(b) is None for part in parts.values())]
    if missing:
        console.print(f"{folder}: {len(missing)} of {len(work)} blocks are left to other shards; the last one writes the row")
        return None
    frame = pd.DataFrame([row for block in work for row in _rows(block, store, parts)])
    estimates = _measure_set(measures, work, store, show=show)
    hashes = {s.protocol: s.weights_sha256 for s in loaded}
    records = Records(
        frame,
        {
            "suite": settings.suite.name, "suite_sha256": settings.suite.sha256, "model": settings.model, "made_by": made_by,
            "n_expected": len(frame), "protocols": hashes, "complete": not frame.filter(like="score.").isna().to_numpy().any()
            and not frame["error"].notna().any(), "sets": estimates, "command": settings.command,
        },
    )  # fmt: skip
    path = folder / f"records-{settings.suite.name}-{digest(settings.command)[:8]}.parquet"
    records.save(path)
    leaderboard.upsert(settings.output / f"{settings.suite.name}.csv", leaderboard.row(records, settings.device))
    return path


def identity(settings: Settings) -> dict[str, Any]:
    """Everything a picture of this run depends on besides its prompt and seed."""
    if settings.images:
        return {"pictures": pictures_digest(settings.images)}
    recipe = pipelines.recipe(settings.model)
    read = samplers.make(recipe).weights_sha256
    return {
        "model_sha256": pipelines.digest(settings.model),
        **({"sampler_sha256": read} if read else {}),
        "recipe": recipe.record(),
        "dtype": settings.dtype,
        "hardware": environment.processor(settings.device),
        "batch": settings.batch,
        "versions": environment.versions("onestep-align", "torch", "diffusers", "transformers"),
    }


# ---- what is needed ------------------------------------------------------------------------------------------------------


def _load(settings: Settings, load: Callable[..., Scorer]) -> tuple[list[Scorer], list[SetMetric]]:
    """Scorers, on the CPU, and metrics of the whole set. Raises UserError for what is not to be had, or cannot measure such images.

    The model itself is fetched later: a name that stands for none is refused before, its weights after what is small.
    """
    if settings.images:
        pictures_in(settings.images)
    else:
        pipelines.runnable(settings.model)
    names = {kind: [name for name in settings.metrics if kind.resolve(name)] for kind in (scorers, distribution)}
    measures = [
        distribution.load(
            name,
            device=settings.device,
            weights=settings.weights.get(name),
            reference=str(settings.reference) if settings.reference and name.startswith("fid/") else None,
        )
        for name in names[distribution]
    ]
    loaded = [load(name, device="cpu", weights=settings.weights.get(name)) for name in names[scorers]]
    size = None if settings.images else pipelines.size(settings.model)
    if size:
        _check_size(settings, size, loaded, measures)
    return loaded, measures


def _check_size(settings: Settings, size: tuple[int, int], loaded: Sequence[Scorer], measures: Sequence[SetMetric]) -> None:
    """Raise UserError for a metric that takes no images of the height and width that the model draws."""
    image, prompts = torch.zeros(1, 3, *size, dtype=torch.uint8), [settings.suite.prompts[0].text]
    takes: dict[str, Callable[[], object]] = {s.protocol: partial(s.prepare, image) for s in loaded}
    # A copy takes the image in: what the metric itself has gathered stays as it is.
    takes |= {measure.protocol: partial(copy.copy(measure).update, image, prompts) for measure in measures}
    for protocol, take in takes.items():
        try:
            take()
        except ValueError as error:
            height, width = size
            raise UserError(
                f"--metric {protocol}: cannot measure the {width} x {height} images of {settings.model} ({error}); leave it out"
            ) from None


# ---- pictures ------------------------------------------------------------------------------------------------------------


def _draw(settings: Settings, todo: Sequence[Block], store: Store, make: Drawer, *, show: bool) -> None:
    """Draw blocks; files are written while the next ones are drawn."""
    if not todo:
        return
    with Watch(f"drawing {settings.model}", sum(len(b.rows) for b in todo), unit="picture", show=show) as watch:
        if settings.images:
            source = adopter(settings.images, settings.suite.prompts, seeds=len(settings.seeds))
        else:
            draw = make(settings.model, device=settings.device, dtype=DTYPES[settings.dtype])
            source = painter(draw, name=settings.model, say=console.print)

        def keep(drawn: tuple[Block, list[Drawn]]) -> int:
            store.write(*drawn)
            return len(drawn[1])

        for n in ahead(keep, ((block, source(block)) for block in todo)):
            watch.advance(n)


# ---- scores --------------------------------------------------------------------------------------------------------------


class Scores:
    """One scorer's scores, a small file a block, which count only for the very pictures they were given for."""

    def __init__(self, folder: Path, store: Store):
        self.folder, self.store = folder, store

    def read(self, block: Block) -> list[dict[str, Any]] | None:
        """Per row `{"picture", "score", "error"}`, or None where they are not there."""
        pictures = self.store.read(block)
        try:
            found: list[dict[str, Any]] = json.loads((self.folder / f"{block.key}.json").read_text(encoding="utf-8"))
            fits = [row["picture"] for row in found] == [picture.sha256 for picture in pictures or ()]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return found if fits else None

    def failed(self, block: Block) -> bool:
        """Whether the block is to be tried again: it has no scores, or some of them are errors."""
        rows = self.read(block)
        return rows is None or any(row["error"] for row in rows)

    def write(self, block: Block, rows: list[dict[str, Any]]) -> None:
        """Keep a block's scores."""
        _keep(self.folder / f"{block.key}.json", rows)


def _score(
    settings: Settings,
    todo: Sequence[tuple[Block, Sequence[Scorer]]],
    store: Store,
    parts: Mapping[str, Scores],
    *,
    show: bool,
) -> None:
    """Score blocks; the next ones are read and prepared meanwhile."""
    if not todo:
        return
    for scorer in dict.fromkeys(scorer for _, which in todo for scorer in which):
        scorer.to(settings.device)
    judge = Judge(say=console.print)
    with Watch(f"scoring {settings.model}", sum(len(block.rows) for block, _ in todo), unit="picture", show=show) as watch:
        opened = ahead(lambda pair: Opened.of(*pair, store, settings.device), todo)
        for (block, which), pictures in zip(todo, opened, strict=True):
            for protocol, rows in judge(pictures, which).items():
                parts[protocol].write(block, rows)
            watch.advance(len(block.rows))


@dataclass(frozen=True)
class Opened:
    """A block's pictures, ready to be scored.

    rows: per row what is known of its picture, and why one that was drawn cannot be had. there: those that can be had, uint8
    `[3, H, W]`, with their prompts. prepared: what each `Preprocess` made of them; empty where one failed.
    """

    rows: Sequence[tuple[StoredImage, str | None]]
    there: Sequence[tuple[Tensor, str]]
    prepared: Mapping[Preprocess, Tensor]

    @classmethod
    def of(cls, block: Block, which: Sequence[Scorer], store: Store, device: str = "cpu") -> "Opened":
        """A block of `store`, prepared for the scorers."""
        rows: list[tuple[StoredImage, str | None]] = []
        there = []
        for row, picture in zip(block.rows, store.read(block) or (), strict=True):
            pixels = None if picture.file is None else store.open(block, picture)
            if pixels is not None:
                there.append((torch.from_numpy(pixels).permute(2, 0, 1).to(device), row.prompt.text))
            lost = picture.file is not None and pixels is None
            error = f"{store.path(block, picture)}: not the picture that was drawn; delete it and run again" if lost else None
            rows.append((picture, error or picture.error))
        try:
            prepared = prepare_all(which, _batch(there)) if there else {}
        except Exception:  # whose it is comes out when each is scored by itself
            prepared = {}
        return cls(rows, there, prepared)


def _batch(pairs: Sequence[tuple[Tensor, str]]) -> Images:
    images = [image for image, _ in pairs]
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images


class Judge:
    """Scores blocks: from what is prepared where that works, else scorer by scorer and in halves, so that errors find their owner."""

    def __init__(self, *, say: Callable[[str], Any]):
        self.say = say
        self.alone: dict[str, Halves[tuple[Tensor, str], float]] = {}

    def __call__(self, opened: Opened, which: Sequence[Scorer]) -> dict[str, list[dict[str, Any]]]:
        """Rows by protocol. A picture that is not there has no score; a scorer that fails leaves its error."""
        result = {}
        for scorer in which:
            found = iter(self._score(scorer, opened) if opened.there else ())
            result[scorer.protocol] = [
                {"picture": picture.sha256, **(_row(None, error if picture.file else None) if error else _row(*next(found)))}
                for picture, error in opened.rows
            ]
        return result

    def _score(self, scorer: Scorer, opened: Opened) -> Sequence[tuple[float | None, str | None]]:
        halves = self.alone.get(scorer.protocol)
        if scorer.prepare in opened.prepared and (halves is None or halves.largest == math.inf):
            try:
                with torch.inference_mode():
                    scores = scorer.score_prepared(opened.prepared[scorer.prepare], [text for _, text in opened.there])
                return [(value, None) for value in scores.double().tolist()]
            except UserError:
                raise
            except Exception:  # which picture's it is, or whether memory is short, comes out below
                pass
        if halves is None:
            halves = self.alone[scorer.protocol] = Halves(partial(_score_one, scorer), name=scorer.protocol, say=self.say)
        return [(value, error) for value, error, _ in halves(opened.there)]


def _score_one(scorer: Scorer, pairs: Sequence[tuple[Tensor, str]]) -> list[float]:
    with torch.inference_mode():
        scores: list[float] = scorer.score(_batch(pairs), [text for _, text in pairs]).double().tolist()
    return scores


def _row(value: float | None, error: str | None) -> dict[str, Any]:
    """A score as it is kept: JSON knows no NaN, and a score that is none is an error."""
    if value is not None and not math.isfinite(value):
        return {"score": None, "error": f"the score is {value}"}
    return {"score": value, "error": error}


# ---- the whole -----------------------------------------------------------------------------------------------------------


def _rows(block: Block, store: Store, parts: Mapping[str, Scores]) -> list[dict[str, Any]]:
    pictures = store.read(block) or []
    scores = {protocol: part.read(block) or [] for protocol, part in parts.items()}
    rows = []
    for i, (asked, picture) in enumerate(zip(block.rows, pictures, strict=True)):
        errors = [picture.error, *(f"{name}: {each[i]['error']}" for name, each in scores.items() if each[i]["error"])]
        row: dict[str, Any] = {"id": asked.prompt.id, "prompt": asked.prompt.text}
        row |= {f"group.{name}": value for name, value in asked.prompt.group.items()}
        row |= {"seed": asked.seed, "image_sha256": picture.sha256, "batch": picture.batch}
        row["error"] = "; ".join(filter(None, errors)) or None
        row |= {f"score.{name}": np.nan if each[i]["score"] is None else each[i]["score"] for name, each in scores.items()}
        rows.append(row)
    return rows


def _measure_set(measures: Sequence[SetMetric], work: Sequence[Block], store: Store, *, show: bool) -> dict[str, Any]:
    """Value and interval of each metric of the whole set, from the pictures in the suite's order."""
    if not measures:
        return {}
    names = ", ".join(measure.protocol for measure in measures)
    with Watch(f"measuring {names}", sum(len(b.rows) for b in work), unit="picture", show=show) as watch:
        for opened in ahead(lambda block: Opened.of(block, (), store), work):
            for measure in measures if opened.there else ():
                measure.update([image for image, _ in opened.there], [text for _, text in opened.there])
            watch.advance(len(opened.rows))
    return {measure.protocol: _estimate(measure) for measure in measures}


def _estimate(measure: SetMetric) -> dict[str, Any]:
    """A metric of the whole set, as records hold it; one that cannot be had says why in its note."""
    try:
        estimate = measure.compute()
    except ValueError as error:
        estimate = Estimate(math.nan, math.nan, math.nan, 0, str(error))
    return asdict(estimate) | {"weights_sha256": measure.weights_sha256}


def _keep(path: Path, content: Any) -> None:
    text = json.dumps(content, indent=0, sort_keys=True)
    replace(path, lambda draft: draft.write_text(text, encoding="utf-8"))


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "._" else "-" for c in text).strip("-.")[-60:]
