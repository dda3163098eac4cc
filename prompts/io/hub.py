"""Files by hub id and pinned revision, or from a local path in their place. No token is ever part of what is said."""

import re
from collections.abc import Sequence
from pathlib import Path

from prompts.io.errors import UserError


def fetch(repo: str, filename: str, revision: str, *, local: str | None = None) -> Path:
    """Where `filename` of the hub repository `repo` at `revision` lies on this machine, fetched if it must be.

    local: a file to be used instead, or a folder that holds one called `filename`. Raises UserError with the remedy.
    """
    if local is not None:
        path = Path(local) / filename if Path(local).is_dir() else Path(local)
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; give a local copy of {filename} of {repo}, or the folder it lies in"
            )
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, filename, revision=revision))
    except Exception as error:  # what a broken line raises is its HTTP library's, which changes between its versions
        raise refusal(error, repo, filename, revision) from None


def find(repo: str, filename: str, revision: str) -> Path | None:
    """`fetch`, or None where the repository has no such file; or where nobody can know, HF_HUB_OFFLINE being set."""
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(repo, filename, revision=revision))
    except LocalEntryNotFoundError as error:  # the hub has not answered
        seen = try_to_load_from_cache(repo, filename, revision=revision)
        if constants.HF_HUB_OFFLINE or (seen is not None and not isinstance(seen, str)):  # it has said before: no
            return None
        raise refusal(error, repo, filename, revision) from None
    except EntryNotFoundError:
        return None
    except Exception as error:  # as above
        raise refusal(error, repo, filename, revision) from None


def fetch_folder(repo: str, revision: str, *, allow: Sequence[str], ignore: Sequence[str] = ()) -> Path:
    """The folder with the files of `repo` at `revision` that match a pattern of `allow` and none of `ignore`.

    They are fetched if they must be; others may lie there too, from earlier. Raises UserError with the remedy.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(repo, revision=revision, allow_patterns=list(allow), ignore_patterns=list(ignore))
        )
    except Exception as error:  # as above
        raise refusal(error, repo, "its files", revision) from None


def refusal(error: Exception, repo: str, what: str, revision: str) -> UserError:
    """The sentence for what the hub client raised: why `what` of `repo` is unavailable, and what to do."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        why = "the repository is gated"
        remedy = f"accept its terms at https://huggingface.co/{repo} and sign in with 'hf auth login'"
    elif isinstance(error, errors.RepositoryNotFoundError):
        why = "the hub has no such repository, or keeps it private"
        remedy = "check its name, or sign in with 'hf auth login'"
    elif isinstance(error, errors.RevisionNotFoundError):
        why = f"the repository has no revision {revision}"
        remedy = "it has moved: look at what changed there and name another revision"
    elif isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        why = f"there is no such file at revision {revision}"
        remedy = "check the file's name and the revision"
    else:
        why = f"{type(error).__name__}: {reason(error)}"
        remedy = "connect to the hub, or give the path of a local copy"
    return UserError(f"{repo}: {what} cannot be fetched ({why}); {remedy}")


#: Credentials, by what stands around them: HTTP libraries quote headers and addresses that they cannot use.
SECRET = re.compile(r"(?<=bearer )[^'\"]+|hf_\w+|(?<=//)[^/@\s]+(?=@)", re.IGNORECASE)
#: The same where text is our own or a user's: the hub's tokens, and what stands before the host of an address.
TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}|(?<=://)[^/@\s]+(?=@)")
SHORTEST = 8  # characters of a token, below which it is too likely a word


def reason(error: Exception) -> str:
    """The error's first line, without credentials."""
    text = (str(error).strip().splitlines() or ["no reason given"])[0].rstrip(".")
    return SECRET.sub("***", text.replace(_token() or "***", "***"))


def redact(text: str) -> str:
    """The text without tokens of the hub, the one in use among them, and without passwords in addresses."""
    token = _token()
    return TOKEN.sub("***", text.replace(token, "***") if len(token) >= SHORTEST else text)


def _token() -> str:
    from huggingface_hub import get_token

    return get_token() or ""
