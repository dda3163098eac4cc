"""Putting a model's folder on the hub, in one commit.

The token is the hub client's own and is part of nothing that is said.
"""

import re
from pathlib import Path

from evaluate.pipelines.address import locate, split
from evaluate.pipelines.recipe import Recipe, Weights
from prompts.io import hub
from prompts.io.errors import UserError

NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def check(repository: str) -> None:
    """Raise UserError where `repository` is no `OWNER/NAME`, or there is no token to write with."""
    from huggingface_hub import get_token

    if not NAME.fullmatch(repository) or "--" in repository or ".." in repository:
        raise UserError(f"--push-to-hub {repository}: not of the form OWNER/NAME; name a model's repository on the hub")
    if get_token() is None:
        raise UserError(
            f"--push-to-hub {repository}: no token to write with; sign in with 'hf auth login', or set HF_TOKEN"
        )


def check_recipe(recipe: Recipe, repository: str) -> None:
    """Raise UserError where a recipe leans on a folder of this machine, which nobody else has."""
    local = [
        str(source.file)
        for source in (recipe.unet, recipe.delta)
        if isinstance(source, Weights) and source.repo is None
    ]
    if recipe.pipeline and (
        recipe.pipeline.startswith(("/", ".")) or locate(split(recipe.pipeline)[0]) == Path(recipe.pipeline)
    ):
        local.append(recipe.pipeline)
    if local:
        raise UserError(
            f"--push-to-hub {repository}: the recipe would lean on {local[0]}, which lies on this machine alone; push"
            " the whole checkpoint"
        )


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Add the files of `folder` to the repository, which is made if it must be, and return its address.

    Raises UserError with the remedy.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        # Not upload_folder, which may spread large folders over several commits.
        additions = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in files]
        api.create_commit(repository, additions, commit_message="Add a model made with onestep-align")
    except Exception as error:  # what a broken line raises is its HTTP library's
        raise _refusal(error, repository) from None
    return hub.redact(str(address))


def _refusal(error: BaseException, repository: str) -> UserError:
    from huggingface_hub import errors

    # The client wraps what an upload of one file raises.
    cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
    response = getattr(cause, "response", None)
    status = getattr(response, "status_code", None)
    if status == 401:
        why, remedy = (
            "the hub does not know the token",
            "sign in again with 'hf auth login', or set HF_TOKEN to a valid one",
        )
    elif status == 403:
        why, remedy = "the token may not write there", "use one with the right to write, or a repository of your own"
    elif isinstance(cause, errors.RepositoryNotFoundError):
        why = "the hub has no such repository of models, or the token may not see it"
        remedy = "choose another name, or a token that may"
    elif status == 400:
        why, remedy = f"the hub does not take it: {hub.reason(Exception(str(cause)))}", "fix what it names"
    else:
        why = f"{type(cause).__name__}: {hub.reason(Exception(str(cause)))}"
        remedy = "try again, or keep it with --output and push that later"
    return UserError(f"--push-to-hub {repository}: not pushed ({why}); {remedy}")
