"""Whether this environment is one in which the package's names are its own."""

from importlib.metadata import packages_distributions

from prompts.errors import UserError


def check() -> None:
    """Raise UserError where another distribution installs a top-level `evaluate` too: pip merges the two without a word."""
    owners = sorted(set(packages_distributions().get("evaluate", ())) - {"onestep-align"})
    if owners:
        raise UserError(
            f"the distribution {owners[0]!r} installs a package called 'evaluate' as well; uninstall it or use a separate environment"
        )
