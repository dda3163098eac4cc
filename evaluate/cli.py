"""The command `evaluate`. Nothing heavy is imported before a command runs."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Optional

import typer

from prompts.io.errors import UserError
from prompts.io.files import writable, write_json

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Score text-to-image models under named protocols.",
)


SuiteName = Annotated[
    str,
    typer.Option("--suite", metavar="NAME|FILE", help="A suite ('evaluate suites' lists them), or a file of prompts."),
]
Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        metavar="NAME|DIR|FILE",
        help=(
            "An embedded model, a folder that diffusers loads, a hub id, or a recipe; with --images a name for who"
            " made them. Repeat it for more."
        ),
    ),
]
MetricNames = Annotated[
    Optional[list[str]],
    typer.Option(
        "--metric",
        metavar="NAME",
        help="'evaluate metrics' lists them; by default the suite's own. Repeat it for more.",
    ),
]
PromptsFile = Annotated[
    Optional[Path],
    typer.Option("--prompts", metavar="FILE", help="A local copy of the suite's file; its hash is checked."),
]
ImagesFolder = Annotated[
    Optional[Path],
    typer.Option(
        "--images", metavar="DIR", help="Score these images, named by prompt id or number, in place of drawing."
    ),
]
PerPrompt = Annotated[
    Optional[int],
    typer.Option(
        "--per-prompt",
        min=1,
        help="Images per prompt, from seeds that follow --seed; by default as many as the suite's.",
    ),
]
BatchSize = Annotated[
    int, typer.Option("--batch", min=1, help="Images drawn at once; part of what makes an image, to its last bits.")
]
ModelDtype = Annotated[
    Optional[str],
    typer.Option("--dtype", help="fp32, fp16 or bf16, of the model; by default its recipe's on a GPU, else fp32."),
]
Device = Annotated[Optional[str], typer.Option("--device", help="By default cuda where there is one, else cpu.")]
WeightsFiles = Annotated[
    Optional[list[str]],
    typer.Option(
        "--weights",
        metavar="METRIC=PATH",
        help="A local copy of a metric's weights, in place of the hub's. Repeat it for more.",
    ),
]
ReferenceFolder = Annotated[
    Optional[Path],
    typer.Option(
        "--reference",
        metavar="DIR|FILE",
        help="The real images that FID and its like compare with, or a file of their moments: see 'evaluate moments'.",
    ),
]
Leaderboards = Annotated[
    Path, typer.Option("--output", metavar="DIR", help="Where leaderboards, records and images go.")
]
Shard = Annotated[
    str,
    typer.Option("--shard", metavar="I/N", help="Do the I-th of N parts, 1 <= I <= N; the last to end writes the row."),
]


@app.command()
def run(
    suite: SuiteName,
    model: Models,
    metric: MetricNames = None,
    prompts: PromptsFile = None,
    images: ImagesFolder = None,
    limit: Annotated[
        Optional[int], typer.Option("--limit", min=1, help="Only the first prompts of the suite, often of one kind.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    per_prompt: PerPrompt = None,
    batch: BatchSize = 16,
    dtype: ModelDtype = None,
    device: Device = None,
    weights: WeightsFiles = None,
    reference: ReferenceFolder = None,
    output: Leaderboards = Path("leaderboards"),
    shard: Shard = "1/1",
) -> None:
    """Draw a suite's images, score them, and write records and a leaderboard row.

    Started again after an interruption it goes on where it was.

    Several models are shown side by side at the end, each with its wins over those named before it.
    """
    from evaluate.console import console
    from evaluate.results import side_by_side
    from evaluate.runs import run as runner
    from evaluate.runs.settings import from_options

    settings = from_options(
        suite,
        model,
        metric or (),
        prompts=prompts,
        images=images,
        limit=limit,
        seed=seed,
        per_prompt=per_prompt,
        batch=batch,
        dtype=dtype,
        device=device,
        output=output,
        shard=shard,
        weights=weights or (),
        reference=reference,
    )
    runs = [records for each in settings if (records := runner.run_and_tell(each))]
    if len(runs) > 1:
        try:
            side_by_side.show(runs, side_by_side.side_by_side(runs))
        except UserError as error:  # of runs that are not whole; what is missing has been told above
            if all(records.complete for records in runs):
                raise
            console.print(f"no comparison: {error}")
    if not all(records.complete for records in runs):
        raise typer.Exit(4)


@app.command()
def metrics() -> None:
    """List what can be measured, scorers of an image and distribution metrics, and what each was verified against."""
    from rich.table import Table

    from evaluate import distribution, scorers
    from evaluate.console import printer

    table = Table()
    table.add_column("metric", no_wrap=True)
    table.add_column("of", no_wrap=True)
    table.add_column("verified by")
    table.add_column("what it is")
    for kind, of in ((scorers, "an image"), (distribution, "a set")):
        verified = kind.verified()
        for name, text in kind.variants().items():
            table.add_row(name, of, verified.get(name, "not verified"), text)
    printer().print(table)


@app.command()
def moments(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Real images, in it or below it.")],
    metric: Annotated[str, typer.Option("--metric", metavar="NAME", help="A Fréchet distance, e.g. fid/coco2014-30k.")],
    weights: Annotated[
        Optional[str], typer.Option("--weights", metavar="PATH", help="A local copy of the metric's weights.")
    ] = None,
    device: Device = None,
    output: Annotated[
        Optional[Path],
        typer.Option("--output", metavar="FILE", help="By default FOLDER-METRIC.safetensors, where you are."),
    ] = None,
) -> None:
    """Measure real images once: write the moments that a Fréchet distance compares with, for '--reference FILE'."""
    from evaluate import distribution
    from evaluate.distribution import reference
    from evaluate.distribution.frechet import FrechetMetric
    from evaluate.environment import device_of
    from evaluate.runs.settings import slug

    if not folder.is_dir():
        raise UserError(f"{folder}: no folder; give the one that the real images are in")
    where = device_of(device)
    loaded = distribution.load(metric, device=where, weights=weights, reference=str(folder))
    if not isinstance(loaded, FrechetMetric):
        raise UserError(f"--metric {metric}: compares with every image, not with moments; choose a fid or fd-dinov2")
    target = output or Path(f"{folder.resolve().name}-{slug(loaded.protocol)}.safetensors")
    if target.suffix != ".safetensors":
        raise UserError(f"--output {target}: moments are written as .safetensors")
    measured = loaded.reference()
    reference.write_moments(target, measured, protocol=loaded.protocol, weights_sha256=loaded.weights_sha256)
    print(f"moments of {measured.n:,} images in {target}; '--reference {target}' reads them")


@app.command()
def models() -> None:
    """List the models that ship with the package, and the published ones: which can be
    run, and why the others cannot.
    """
    from rich.table import Table

    from evaluate import embedded, pipelines
    from evaluate.console import printer
    from evaluate.pipelines import address
    from evaluate.pipelines.recipe import describe

    recipes = {name: pipelines.read_recipe(name) for name in (*embedded.models(), *address.names())}
    runnable = Table(title="can be run")
    reported = Table(title="reported only")
    for table, columns in (
        (runnable, ("steps", "guidance", "size", "parameters", "licence")),
        (reported, ("what it is", "why")),
    ):
        table.add_column("model", no_wrap=True)
        for column in columns:
            table.add_column(
                column, overflow="fold", justify="left" if table is reported or column == "licence" else "right"
            )
    for name, recipe in recipes.items():
        title, *details, licence = describe(recipe)
        if recipe.reported_only:
            reported.add_row(name, title, recipe.reported_only)
        else:
            runnable.add_row(name, *details, licence)
    for table in (runnable, reported):
        printer().print(table)


@app.command()
def suites() -> None:
    """List the prompt suites."""
    from rich.table import Table

    from evaluate.console import printer
    from prompts import suites as known

    table = Table()
    for column in ("suite", "prompts", "source", "licence"):
        table.add_column(
            column, overflow="fold", no_wrap=column == "suite", justify="right" if column == "prompts" else "left"
        )
    for name in known.names():
        card = known.card(name)
        table.add_row(name, f"{card.n:,}", card.source, card.licence)
    printer().print(table)


@app.command()
def overlap(
    prompts: Annotated[
        str,
        typer.Argument(
            help="A file of prompts, a suite's name, or what a run is trained on: FILE:COLUMN, OWNER/NAME:COLUMN."
        ),
    ],
    suite: Annotated[str, typer.Option(help="The suite they should not be in.")],
    file: Annotated[
        Path | None, typer.Option(help="A local copy of the suite's file, in place of fetching it.")
    ] = None,
    near: Annotated[
        float, typer.Option(min=0.05, max=1, help="Least similarity that is shown; 1 is the same words.")
    ] = 0.8,
) -> None:
    """Tell which prompts are in a suite, word for word or nearly. Exit code 0 none, 1 some."""
    from rich.table import Table

    from evaluate.console import printer
    from prompts import readers
    from prompts import suites as known

    # What is trained on may be a text file of any name.
    if readers.is_named_by_column(prompts) or (Path(prompts).is_file() and Path(prompts).suffix not in known.SUFFIXES):
        texts = list(readers.read_prompts(prompts))
    else:
        texts = [prompt.text for prompt in known.load(prompts).prompts]
    matches = known.overlap(texts, known.load(suite, path=file), near=near)
    exact = {match.prompt for match in matches if match.exact}
    if matches:
        table = Table("similarity", "prompt", "id", "the suite's prompt")
        for match in matches:
            table.add_row("same" if match.exact else f"{match.similarity:.2f}", match.prompt, match.id, match.text)
        printer().print(table)
    nearly = {match.prompt for match in matches} - exact
    print(f"{len(set(texts)):,} distinct prompts: {len(exact):,} are in {suite}, {len(nearly):,} more nearly")
    raise typer.Exit(bool(matches))


RecordsPath = Annotated[Path, typer.Argument(metavar="RECORDS", help="A records file, or the folder of a run.")]


@app.command()
def summary(
    records: RecordsPath,
    by: Annotated[
        Optional[str],
        typer.Option("--by", metavar="GROUP", help="By a group of the suite's prompts too, e.g. category or style."),
    ] = None,
    output: Annotated[Optional[Path], typer.Option("--output", metavar="FILE", help="Write it too: .csv.")] = None,
) -> None:
    """Tell what a run measured, of all prompts and by a group of them."""
    from evaluate.results import summary as summarising
    from evaluate.results.records import Records

    run = Records.load(records)
    rows = summarising.summarise(run, by=by)
    summarising.show(run, rows)
    if output:
        summarising.write(output, run, rows)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="A records file, or the folder of a run.")],
    others: Annotated[
        list[Path], typer.Argument(metavar="B...", help="Another of the same suite and metrics, or several.")
    ],
    by: Annotated[
        Optional[str],
        typer.Option("--by", metavar="GROUP", help="By a group of the suite's prompts too, e.g. category."),
    ] = None,
    output: Annotated[
        Optional[Path],
        typer.Option("--output", metavar="FILE", help="Write it too: .json or .csv; of several runs .csv or .md."),
    ] = None,
) -> None:
    """Compare runs prompt by prompt: difference B - A, its 95 % interval, and win rate.

    Of more than two: every mean, and each one's wins over those named before it.
    """
    from evaluate.results import compare as comparison
    from evaluate.results import side_by_side
    from evaluate.results.records import Records

    if len(others) > 1:
        if by:
            raise UserError(f"--by {by}: groups are compared between two runs; name two")
        runs = [Records.load(path) for path in (a, *others)]
        figures = side_by_side.side_by_side(runs)
        side_by_side.show(runs, figures)
        if output:
            side_by_side.write(output, runs, figures)
        return
    one, other = Records.load(a), Records.load(others[0])
    rows = comparison.compare(one, other, by=by)
    comparison.show(one, other, rows)
    if output:
        comparison.write(output, one, other, rows)


@app.command()
def rank(
    runs: Annotated[list[Path], typer.Argument(metavar="A B...", help="Runs of one suite, records files or folders.")],
    output: Annotated[
        Optional[Path], typer.Option("--output", metavar="FILE", help="Write it too: .csv, or .json with all of it.")
    ] = None,
) -> None:
    """Rank models by every metric: places that cannot be told apart, strengths, and how far metrics agree."""
    from evaluate.results import rank as ranking
    from evaluate.results.records import Records

    records = [Records.load(path) for path in runs]
    found = ranking.rank(records)
    ranking.show(records, found)
    if output:
        ranking.write(output, records, found)


@app.command()
def baseline(
    records: RecordsPath,
    accept: Annotated[
        bool, typer.Option("--accept", help="Write it; without this the command only says what it would write.")
    ] = False,
    output: Annotated[
        Optional[Path],
        typer.Option("--output", metavar="FILE", help="By default leaderboards/baselines/SUITE-MODEL.parquet."),
    ] = None,
) -> None:
    """Accept a run as what 'evaluate check' judges later ones by. Exit code 4 if it is incomplete."""
    from evaluate.results import gate
    from evaluate.results.records import Records

    run = Records.load(records)
    if run.missing:
        print(f"evaluate: {records} makes no baseline: {run.missing}; run 'evaluate run' again", file=sys.stderr)
        raise typer.Exit(gate.EXIT_CODES[gate.Verdict.INCOMPLETE])
    path = output or gate.baseline_path(run)
    what = f"{run.meta['model']} on {run.meta['suite']}, {len(run.frame):,} records, {', '.join(run.meta['protocols'])}"
    if accept:
        gate.baseline_of(run).save(path)
        print(f"{path}: {what}")
    else:
        print(f"{path} would {'be replaced' if path.exists() else 'be written'}: {what}; add --accept to do it")


@app.command()
def report(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Folders of runs, of 'evaluate run' on one suite and of 'align train'."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FILE", help="The page; its images go into FILE's name with _files."),
    ] = Path("report.html"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a page that is no report.")] = False,
) -> None:
    """Write a page to look at: leaderboard, distributions, images side by side, and training curves.

    It needs no network.
    """
    from evaluate import report as reporting

    written = reporting.report(runs, output, overwrite=overwrite)
    print(f"{written.page}: {written.images:,} images beside it; open it in a browser")


class Inconclusive(StrEnum):
    """What an inconclusive run counts as."""

    PASS = "pass"
    FAIL = "fail"


@app.command()
def check(
    records: RecordsPath,
    baseline: Annotated[
        Path, typer.Option("--baseline", metavar="RECORDS", help="What 'evaluate baseline --accept' wrote.")
    ],
    min_effect: Annotated[
        Optional[list[str]],
        typer.Option(
            "--min-effect",
            metavar="SHARE|METRIC=MARGIN",
            help=(
                "Smallest drop that matters: a share of the baseline's mean (0.01), or in a metric's own units"
                " (imagereward=0.05). Repeat it for more."
            ),
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option("--alpha", min=0.001, max=0.2, help="Chance of a false alarm, over all metrics together.")
    ] = 0.05,
    inconclusive: Annotated[
        Optional[Inconclusive],
        typer.Option("--inconclusive", help="Count an inconclusive run as one or the other; by default exit code 3."),
    ] = None,
    json_file: Annotated[
        Optional[Path], typer.Option("--json", metavar="FILE", help="Write the result as JSON.")
    ] = None,
    junit: Annotated[
        Optional[Path], typer.Option("--junit", metavar="FILE", help="Write the result as JUnit XML.")
    ] = None,
) -> None:
    """Has a run become worse than its baseline? Exit code 0 no, 1 yes, 2 usage, 3 cannot tell,
    4 incomplete or not comparable.
    """
    from evaluate.results import gate, verdict
    from evaluate.results.records import Records

    current, known = Records.load(records), Records.load(baseline)
    share, margins = gate.parse_min_effect(min_effect or ())
    outcome = gate.check(current, known, min_effect=share, margins=margins, alpha=alpha)
    counts_as = {
        None: gate.Verdict.INCONCLUSIVE,
        Inconclusive.PASS: gate.Verdict.PASS,
        Inconclusive.FAIL: gate.Verdict.REGRESSED,
    }
    code = verdict.exit_code(outcome, counts_as[inconclusive])
    verdict.show(outcome, current, known)
    if json_file:
        verdict.write_json(json_file, outcome, current, known, code)
    if junit:
        verdict.write_junit(junit, outcome, current, counts_as[inconclusive])
    raise typer.Exit(code)


@app.command("time")
def time_model(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="NAME|DIR|FILE",
            help="An embedded model, a folder that diffusers loads, a hub id, or a recipe.",
        ),
    ],
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Initialise the weights at random: only the model's configs and tokenizers are needed.",
        ),
    ] = False,
    device: Device = None,
    dtype: Annotated[str, typer.Option("--dtype", help="fp32, fp16 or bf16.")] = "fp32",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images per call.")] = 1,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed calls, after two that are not counted.")] = 5,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the network's repeated blocks and the decoder (torch.compile).")
    ] = False,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="Keep the channels of convolutions last in memory.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Where timings.csv is.")] = Path(
        "leaderboards"
    ),
) -> None:
    """Time a model: seconds for 10 images, by stage, and peak memory. Writes a row of timings.csv."""
    from evaluate.bench import timing
    from evaluate.environment import device_of

    where = device_of(device)
    settings = timing.TimingSettings(
        model=model,
        random_weights=random_weights,
        device=where,
        dtype=dtype,
        batch=batch,
        repeats=repeats,
        compiled=compiled,
        channels_last=channels_last,
    )
    writable(output / "timings.csv")  # where the row cannot be kept, the time is not taken
    timing.rows_of(output / "timings.csv")
    row = timing.measure(settings)
    timing.show(row)
    timing.record(row, output / "timings.csv")
    print(f"row in {output / 'timings.csv'}")


@app.command()
def table(
    name: Annotated[
        Optional[str], typer.Argument(metavar="TABLE", help="For example di-star/1; without it, the tables are listed.")
    ] = None,
    leaderboards: Annotated[Path, typer.Option("--leaderboards", metavar="DIR", help="Where our results are.")] = Path(
        "leaderboards"
    ),
    output: Annotated[
        Optional[Path], typer.Option("--output", metavar="FILE", help="Write it too: .csv, .md or .html.")
    ] = None,
    run: Annotated[
        bool,
        typer.Option(
            "--run",
            help="First run what is missing and can be run, into --leaderboards. Run it again after an interruption.",
        ),
    ] = False,
    limit: Annotated[
        Optional[int],
        typer.Option(
            "--limit",
            min=1,
            help=(
                "With --run: only the first prompts of each suite. Such rows are shown as what they are and not"
                " compared."
            ),
        ),
    ] = None,
    device: Annotated[
        Optional[str], typer.Option("--device", help="With --run: by default cuda where there is one, else cpu.")
    ] = None,
) -> None:
    """Show a table of the papers beside what was measured here. Exit code 4 if --run left something undone."""
    from evaluate.papers import figures, files, match, plan, render

    if not run and (limit is not None or device is not None):
        raise UserError("--limit and --device belong to --run; add that, or leave them out")
    if name is None:
        render.listing()
        raise typer.Exit
    figures.read_figures(name)
    if output:
        files.writer(output)
    whole = not run or plan.run_missing(name, leaderboards, limit=limit, device=device)
    cells = match.cells(name, leaderboards)
    render.show(name, cells)
    if output:
        files.write(output, name, cells)
    if not whole:
        raise typer.Exit(4)


@app.command()
def bench(
    scorer: Annotated[
        Optional[list[str]],
        typer.Option(
            "--scorer",
            metavar="NAME[=PATH]",
            help="A scorer, with the path of its weights if they are not its own. Repeat it for more.",
        ),
    ] = None,
    originals: Annotated[
        Optional[Path],
        typer.Option(
            "--originals", metavar="FILE", help="Timings of the originals, from their own environment on this machine."
        ),
    ] = None,
    frechet: Annotated[
        bool,
        typer.Option("--frechet", help="The Fréchet distance at 2,048 dimensions: minutes, most the original's."),
    ] = False,
    harness: Annotated[
        bool,
        typer.Option("--harness", help="What 10,000 records cost outside the networks, which only sleep: minutes."),
    ] = False,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights",
            help="Initialise the scorers at random: what they cost, where weights are not available.",
        ),
    ] = False,
    device: Device = None,
    dtype: Annotated[
        Optional[str], typer.Option("--dtype", help="fp32, fp16 or bf16, of the scorers; by default each one's own.")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed calls, after two that are not counted.")] = 5,
    images: Annotated[int, typer.Option("--images", min=1, help="Images per call.")] = 32,
    output: Annotated[Optional[Path], typer.Option("--output", metavar="FILE", help="JSON to write.")] = None,
) -> None:
    """Time the evaluator: scorers and the Fréchet distance beside the originals, and the harness itself."""
    from evaluate.bench import scorers as benchmark
    from evaluate.environment import device_of
    from evaluate.precision import dtype_of

    names = {name: path or None for name, _, path in (each.partition("=") for each in scorer or ())}
    if output:
        writable(output)
    result = benchmark.bench(
        names,
        device=device_of(device),
        dtype=dtype_of(dtype) if dtype else None,
        repeats=repeats,
        images=images,
        random_weights=random_weights,
        originals=originals,
        frechet=frechet,
        harness=harness,
    )
    benchmark.show(result)
    if output:
        write_json(output, result)


@app.callback()
def _check_environment() -> None:
    from evaluate.environment import check

    check()


def main() -> None:
    """Entry point: a user's error is one sentence on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        from prompts.io.hub import redact

        print(f"evaluate: {redact(str(error))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":  # for torchrun -m evaluate.cli
    main()
