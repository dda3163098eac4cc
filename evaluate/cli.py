"""The command `evaluate`. Nothing heavy is imported before a command runs."""

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

from prompts.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Score text-to-image models under named protocols.",
)


@app.command()
def run(
    suite: Annotated[str, typer.Option("--suite", metavar="NAME|FILE", help="A suite ('evaluate suites' lists them), or a file of prompts.")],
    model: Annotated[list[str], typer.Option("--model", metavar="NAME|DIR|FILE", help="An embedded model, a folder that diffusers loads, a hub id, or a recipe; with --images a name for who made them. Repeat it for more.")],
    metric: Annotated[Optional[list[str]], typer.Option("--metric", metavar="NAME", help="'evaluate metrics' lists them; by default the suite's own. Repeat it for more.")] = None,
    prompts: Annotated[Optional[Path], typer.Option("--prompts", metavar="FILE", help="A local copy of the suite's file; its hash is checked.")] = None,
    images: Annotated[Optional[Path], typer.Option("--images", metavar="DIR", help="Score these pictures, named by prompt id or number, in place of drawing.")] = None,
    limit: Annotated[Optional[int], typer.Option("--limit", min=1, help="Only the first prompts of the suite.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    per_prompt: Annotated[int, typer.Option("--per-prompt", min=1, help="Pictures a prompt, from seeds that follow --seed.")] = 1,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Pictures drawn at once; part of what makes a picture, to its last bits.")] = 16,
    dtype: Annotated[str, typer.Option("--dtype", help="fp32, fp16 or bf16, of the model.")] = "fp32",
    device: Annotated[Optional[str], typer.Option("--device", help="By default cuda where there is one, else cpu.")] = None,
    output: Annotated[Path, typer.Option("--output", metavar="DIR", help="Where leaderboards, records and pictures go.")] = Path("leaderboards"),
    shard: Annotated[str, typer.Option("--shard", metavar="I/N", help="Do the I-th of N parts, 1 <= I <= N; the last to end writes the row.")] = "1/1",
) -> None:  # fmt: skip
    """Draw a suite's pictures, score them, and write records and a leaderboard row. Run it again after an interruption."""
    from evaluate import run as runner

    settings = runner.settings(
        suite, model, metric or (), prompts=prompts, images=images, limit=limit, seed=seed, per_prompt=per_prompt, batch=batch,
        dtype=dtype, device=device, output=output, shard=shard,
    )  # fmt: skip
    outcomes = [runner.run_and_tell(each) for each in settings]
    if not all(outcomes):
        raise typer.Exit(4)


@app.command()
def metrics() -> None:
    """List what can be measured: scorers of a picture, and metrics of a whole set."""
    from rich.console import Console
    from rich.table import Table

    from evaluate import scorers, sets

    table = Table("metric", "of", "what it is")
    for kind, of in ((scorers, "a picture"), (sets, "a set")):
        for name, text in kind.variants().items():
            table.add_row(name, of, text)
    Console().print(table)


@app.command()
def models() -> None:
    """List the models that ship with the package."""
    from evaluate import embedded

    print("\n".join(embedded.names()))


@app.callback()
def _check_environment() -> None:
    from evaluate.environment import check

    check()


def main() -> None:
    """Entry point: a user's error is one sentence on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"evaluate: {error}", file=sys.stderr)
        sys.exit(2)
