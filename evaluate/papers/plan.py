"""What a table lacks of ours, and running it."""

import math
from pathlib import Path
from typing import NamedTuple

from evaluate import distribution
from evaluate.console import console
from evaluate.papers.figures import SECONDS
from evaluate.papers.match import Leaderboards, Ours, cells, lacking, only_part, runnable, suite_card
from prompts.io.errors import UserError

TO_BE_TIMED = "they are the hardware's: run 'evaluate time --model NAME' where you want them measured"
NEEDS_FILES = "it needs files that may not be passed on: 'evaluate run' with --weights and --reference"


class Work(NamedTuple):
    """What is to be run for a table: models and metrics by suite; and what is skipped, with the reason."""

    runs: dict[str, tuple[list[str], list[str]]]
    skipped: dict[str, list[str]]


def missing(name: str, folder: Path, *, limit: int | None = None) -> Work:
    """What is missing in `folder`: with `limit`, of the first so many prompts."""
    table, results, compared = cells(name, folder), Leaderboards(folder), distribution.references()
    runs: dict[str, tuple[list[str], list[str]]] = {}
    skipped: dict[str, list[str]] = {}

    def skip(what: str, why: str) -> None:
        if what not in skipped.setdefault(why, []):
            skipped[why].append(what)

    for cell in table:
        model, suite, metric = cell.figure.model, cell.column.suite, runnable(cell.column)
        if why := lacking(cell.column):
            skip(cell.column.metric, why)
        elif not model or results.recipe(model).reported_only:
            if not cell.column.is_setting:
                skip(model or cell.figure.row, cell.missing)
        elif cell.column.ours == (SECONDS,) and cell.ours is None:
            skip(f"seconds of {model}", TO_BE_TIMED)
        elif suite and metric in compared:
            if cell.ours is None or cell.ours.apart:
                skip(f"{metric} of {model}", NEEDS_FILES)
        elif suite and not _there(results.score(model, cell.column), suite, limit):
            models, metrics = runs.setdefault(suite, ([], []))
            models += [] if model in models else [model]
            # All metrics of the suite together: what is scored is kept, and a model has one row.
            wanted = filter(None, (runnable(each.column) for each in table if each.column.suite == suite))
            metrics[:] = [each for each in dict.fromkeys(wanted) if each not in compared]
    return Work(runs, skipped)


def _there(ours: Ours | str, suite: str, limit: int | None) -> bool:
    """Whether it is all that a run would make: of the whole suite, or with `limit` of at least so many prompts."""
    if isinstance(ours, str):
        return False
    card = suite_card(suite)
    short = ours.apart == (only_part(ours.n, card.n * card.per_prompt),)
    part = limit is not None and short and ours.n >= min(limit, card.n) * card.per_prompt
    return not ours.apart or part


def run_missing(name: str, folder: Path, *, limit: int | None = None, device: str | None = None) -> bool:
    """Run what is missing and can be run, after saying what that is.

    Returns False where something failed; the rest is run all the same.
    """
    from evaluate.runs import run
    from evaluate.runs.settings import from_options

    work, say = missing(name, folder, limit=limit), console.print
    for suite, (models, metrics) in work.runs.items():
        count = min(limit or math.inf, suite_card(suite).n)
        say(f"to run: {suite}, {count:,} prompts, {', '.join(metrics)}: {', '.join(models)}", highlight=False)
    for why, what in work.skipped.items():
        say(f"skipped: {', '.join(what)}: {why}", highlight=False)
    if not work.runs:
        say("nothing to run")
    whole = True
    for suite, (models, metrics) in work.runs.items():
        for model in models:
            try:
                (settings,) = from_options(
                    suite,
                    [model],
                    metrics,
                    prompts=None,
                    images=None,
                    limit=limit,
                    seed=0,
                    per_prompt=None,
                    batch=16,
                    dtype=None,
                    device=device,
                    output=folder,
                    shard="1/1",
                )
                records = run.run_and_tell(settings)
                whole &= records is None or records.complete
            except UserError as error:  # of this model, for example its terms not accepted: the others go on
                say(f"{model} on {suite}: {error}", highlight=False)
                whole = False
    return whole
