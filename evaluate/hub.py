"""Files by hub id and pinned revision, or from a local path in their place."""

from pathlib import Path

from prompts.errors import UserError


def fetch(repo: str, filename: str, revision: str, *, local: str | None = None) -> Path:
    """Where `filename` of the hub repository `repo` at `revision` lies on this machine, fetched if it must be.

    local: a file to be used instead, or a folder that holds one called `filename`. Raises UserError with the remedy.
    """
    if local is not None:
        path = Path(local) / filename if Path(local).is_dir() else Path(local)
        if not path.is_file():
            raise UserError(f"{path}: no such file; give a local copy of {filename} of {repo}, or the folder it lies in")
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, filename, revision=revision))
    except Exception as error:  # what a broken line raises is its HTTP library's, which changes between its versions
        reason = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
        raise UserError(
            f"{repo}: {filename} cannot be fetched ({type(error).__name__}: {reason}); connect to the hub, or give the path of a local copy"
        ) from None
