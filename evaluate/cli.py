"""The command `evaluate`. Nothing heavy is imported before a command runs."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from prompts.errors import UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Score text-to-image models under named protocols.",
)


@app.command()
def metrics() -> None:
    """List the scorers."""
    from rich.console import Console
    from rich.table import Table

    from evaluate.scorers import variants

    table = Table()
    table.add_column("scorer", no_wrap=True)
    table.add_column("what it is")
    for name, text in variants().items():
        table.add_row(name, text)
    Console().print(table)


@app.command()
def models() -> None:
    """List the models that ship with the package."""
    from evaluate import embedded

    print("\n".join(embedded.names()))


@app.command()
def suites() -> None:
    """List the prompt suites."""
    from rich.console import Console
    from rich.table import Table

    from prompts import suites as known

    table = Table("suite", "prompts", "source", "licence")
    for name in known.names():
        card = known.card(name)
        table.add_row(name, f"{card.n:,}", card.source, card.licence)
    Console().print(table)


@app.command()
def overlap(
    prompts: Annotated[str, typer.Argument(help="A file of prompts, or a suite's name.")],
    suite: Annotated[str, typer.Option(help="The suite they should not be in.")],
    file: Annotated[Path | None, typer.Option(help="A local copy of the suite's file, in place of fetching it.")] = None,
    near: Annotated[float, typer.Option(min=0.05, max=1, help="Least similarity that is shown; 1 is the same words.")] = 0.8,
) -> None:
    """Tell which prompts are in a suite, word for word or nearly. Exit code 0 none, 1 some."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from prompts import suites as known

    given = [prompt.text for prompt in known.load(prompts).prompts]
    matches = known.overlap(given, known.load(suite, path=file), near=near)
    exact = {match.prompt for match in matches if match.exact}
    if matches:
        table = Table("similarity", "prompt", "id", "the suite's prompt")
        for match in matches:
            table.add_row(
                "same" if match.exact else f"{match.similarity:.2f}", *map(escape, (match.prompt, match.id, match.text))
            )
        Console().print(table)
    nearly = {match.prompt for match in matches} - exact
    print(f"{len(set(given)):,} distinct prompts: {len(exact):,} are in {suite}, {len(nearly):,} more nearly")
    raise typer.Exit(bool(matches))


@app.command()
def inception(
    torchscript: Annotated[Path, typer.Option(help="inception-2015-12-05.pt, as clean-fid fetches it.")],
    output: Annotated[Path, typer.Option(help="The .safetensors file to write.")],
) -> None:
    """Make the file of weights that FID needs from clean-fid's TorchScript file."""
    from evaluate import weights
    from evaluate.sets.inception import convert

    convert(torchscript, output)
    print(f"{output}: sha256 {weights.sha256(output)}")


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
