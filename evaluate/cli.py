"""The command `evaluate`. Nothing heavy is imported before a command runs."""

import sys

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
