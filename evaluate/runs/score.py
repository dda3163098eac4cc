"""Scores of images, and metrics of all of them together."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from evaluate import distribution
from evaluate.console import ProgressLog, console
from evaluate.distribution import DistributionMetric, Estimate
from evaluate.features import Batch
from evaluate.preprocess import Prepare, Prepared
from evaluate.runs.blocks import Block
from evaluate.runs.prefetch import prefetch
from evaluate.runs.retry import RetryInHalves
from evaluate.runs.settings import Settings
from evaluate.runs.store import Store, StoredImage
from evaluate.scorers import Images, Scorer, prepare_all
from prompts.io.errors import UserError
from prompts.io.files import write_json
from prompts.suites import Prompt


class Scores:
    """One scorer's scores, one small file per block, which count only for the very images they were given for."""

    def __init__(self, folder: Path):
        self.folder = folder

    def read(self, block: Block, images: Sequence[StoredImage]) -> list[dict[str, Any]] | None:
        """Per row `{"image_sha256", "scores", "details", "error"}`, or None where there are none for these images.

        scores: by column, empty where the image has none.
        """
        try:
            rows: list[dict[str, Any]] = json.loads((self.folder / f"{block.key}.json").read_text(encoding="utf-8"))
            fits = [(row["image_sha256"], "scores" in row) for row in rows] == [(i.sha256, True) for i in images]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return rows if fits else None

    def failed(self, block: Block, images: Sequence[StoredImage]) -> bool:
        """Whether the block is to be tried again: it has no scores, or some of them are errors."""
        rows = self.read(block, images)
        return rows is None or any(row["error"] for row in rows)

    def write(self, block: Block, rows: list[dict[str, Any]]) -> None:
        """Keep a block's scores."""
        write_json(self.folder / f"{block.key}.json", rows)


def score_blocks(
    settings: Settings,
    blocks: Sequence[tuple[Block, Sequence[StoredImage]]],
    store: Store,
    loaded: Sequence[Scorer],
    scores: Mapping[str, Scores],
    *,
    show: bool,
) -> None:
    """Score what has no scores, by protocol; the next blocks are read and prepared meanwhile."""
    unscored = [(*pair, [s for s in loaded if scores[s.protocol].failed(*pair)]) for pair in blocks]
    todo = [each for each in unscored if each[2]]
    if not todo:
        return
    wanted = list(dict.fromkeys(scorer for _, _, which in todo for scorer in which))
    try:
        for scorer in wanted:
            scorer.to(settings.device)
    except torch.OutOfMemoryError:
        names = " and ".join(scorer.protocol for scorer in wanted)
        raise UserError(
            f"{names}: not enough memory on {settings.device} for all at once; run again with fewer --metric at a time:"
            " what is drawn is kept"
        ) from None
    score, total = BlockScorer(say=console.print), sum(len(block.rows) for block, _, _ in todo)
    with ProgressLog(f"scoring {settings.model}", total, unit="image", show=show) as progress:
        ready = prefetch(lambda each: LoadedBlock.of(*each, store, settings.device), todo)
        for (block, _, which), content in zip(todo, ready, strict=True):
            for protocol, rows in score(content, which).items():
                scores[protocol].write(block, rows)
            progress.advance(len(block.rows))


class ImagePrompt(NamedTuple):
    """An image `[3, H, W]` and the prompt that it was drawn for."""

    image: Tensor
    prompt: Prompt


class RowScores(NamedTuple):
    """A scorer's scores of one image by column, and what else it says of it."""

    scores: dict[str, float]
    details: Mapping[str, Any] | None


@dataclass(frozen=True)
class LoadedBlock:
    """A block's images, ready to be scored.

    rows: per row what is known of its image, and why one that was drawn is unavailable. available: the others, uint8
    `[3, H, W]`, with their prompts. prepared: what each `prepare` made of them; empty where one failed.
    """

    rows: Sequence[tuple[StoredImage, str | None]]
    available: Sequence[ImagePrompt]
    prepared: Mapping[Prepare, Prepared]

    @classmethod
    def of(
        cls, block: Block, images: Sequence[StoredImage], which: Sequence[Scorer], store: Store, device: str = "cpu"
    ) -> "LoadedBlock":
        """A block of `store`, prepared for the scorers. images: what the store says of its rows."""
        rows: list[tuple[StoredImage, str | None]] = []
        available = []
        for row, image in zip(block.rows, images, strict=True):
            pixels, error = None if image.file is None else store.open(block, image), image.error
            if pixels is not None:
                available.append(ImagePrompt(torch.from_numpy(pixels).permute(2, 0, 1).to(device), row.prompt))
            elif image.file is not None:
                error = f"{store.path(block, image)}: not the image that was drawn; delete it and run again"
            rows.append((image, error))
        try:
            prepared = prepare_all(which, _batch(available)) if available else {}
        except Exception:  # whose it is comes out when each is scored by itself
            prepared = {}
        return cls(rows, available, prepared)


def _batch(pairs: Sequence[ImagePrompt]) -> Images:
    images = [pair.image for pair in pairs]
    return torch.stack(images) if len({image.shape for image in images}) == 1 else images


class BlockScorer:
    """Scores blocks: from what is prepared where that works, else in halves, so that an error finds its image."""

    def __init__(self, *, say: Callable[[str], Any]):
        self.say = say
        self.alone: dict[str, RetryInHalves[ImagePrompt, RowScores]] = {}

    def __call__(self, content: LoadedBlock, which: Sequence[Scorer]) -> dict[str, list[dict[str, Any]]]:
        """Rows by protocol. An image that is unavailable has no score; a scorer that fails leaves its error."""
        return {scorer.protocol: self._rows(scorer, content) for scorer in which}

    def _rows(self, scorer: Scorer, content: LoadedBlock) -> list[dict[str, Any]]:
        scores = iter(self._score(scorer, content) if content.available else ())
        rows = []
        for image, error in content.rows:
            row = _row(*next(scores)) if error is None else _row(None, error if image.file else None)
            rows.append({"image_sha256": image.sha256, **row})
        return rows

    def _score(self, scorer: Scorer, content: LoadedBlock) -> Sequence[tuple[RowScores | None, str | None]]:
        in_halves = self.alone.get(scorer.protocol)
        if scorer.prepare in content.prepared and (in_halves is None or in_halves.largest == math.inf):
            try:
                return [(row, None) for row in _assess(scorer, content.prepared[scorer.prepare], content.available)]
            except UserError:
                raise
            except Exception:  # which image's it is, or whether memory is short, comes out below
                pass
        if in_halves is None:
            in_halves = RetryInHalves(partial(_score_together, scorer), name=scorer.protocol, say=self.say)
            self.alone[scorer.protocol] = in_halves
        return [(value, error) for value, error, _ in in_halves(content.available)]


def _score_together(scorer: Scorer, pairs: Sequence[ImagePrompt]) -> list[RowScores]:
    return _assess(scorer, scorer.prepare(_batch(pairs)), pairs)


def _assess(scorer: Scorer, prepared: Prepared, pairs: Sequence[ImagePrompt]) -> list[RowScores]:
    texts, meta = [pair.prompt.text for pair in pairs], [pair.prompt.meta for pair in pairs]
    with torch.inference_mode():
        said = scorer.assess(prepared, texts, meta)
    columns = {name: said.columns[name].cpu().double().tolist() for name in scorer.columns}
    details = said.details or [None] * len(pairs)
    return [RowScores({name: values[i] for name, values in columns.items()}, each) for i, each in enumerate(details)]


def _row(said: RowScores | None, error: str | None) -> dict[str, Any]:
    """Scores as they are kept: JSON knows no NaN, and a score that is none is an error."""
    scores, details = (said.scores, said.details) if said else ({}, None)
    if bad := next((value for value in scores.values() if not math.isfinite(value)), None):
        why = f": {reason}" if (reason := (details or {}).get("reason")) else ""
        return {"scores": {}, "details": details, "error": f"the score is {bad}{why}"}
    return {"scores": scores, "details": details, "error": error}


def measure_blocks(
    metrics: Sequence[DistributionMetric],
    blocks: Sequence[tuple[Block, Sequence[StoredImage]]],
    store: Store,
    *,
    show: bool,
) -> dict[str, Any]:
    """Value and interval of each distribution metric, from the images in the suite's order."""
    if not metrics:
        return {}
    failed: dict[str, str] = {}
    names, total = ", ".join(metric.protocol for metric in metrics), sum(len(block.rows) for block, _ in blocks)
    with ProgressLog(f"measuring {names}", total, unit="image", show=show) as progress:
        for content in prefetch(lambda pair: LoadedBlock.of(*pair, (), store), blocks):
            # Metrics on the same features share them.
            images = Batch([pair.image for pair in content.available])
            texts = [pair.prompt.text for pair in content.available]
            for metric in metrics if content.available else ():
                if metric.protocol in failed:
                    continue
                try:
                    metric.update(images, texts)
                except (ValueError, RuntimeError) as error:  # images that it does not take, or of several sizes
                    failed[metric.protocol] = str(error)
            progress.advance(len(content.rows))
    return {metric.protocol: _estimate(metric, failed.get(metric.protocol)) for metric in metrics}


def _estimate(metric: DistributionMetric, failed: str | None) -> dict[str, Any]:
    """A distribution metric, as records hold it; one that is unavailable says why in its note.

    failed: why it could not take in all images.
    """
    try:
        estimate = Estimate(math.nan, math.nan, math.nan, 0, failed) if failed else metric.compute()
    except Exception as error:  # what has been drawn and scored is not lost with it
        estimate = Estimate(math.nan, math.nan, math.nan, 0, str(error) or type(error).__name__)
    lower = distribution.lower_is_better(metric.protocol)
    return asdict(estimate) | {"weights_sha256": metric.weights_sha256, "lower_is_better": lower}
