"""The one exception that users see."""


class UserError(ValueError):
    """Something a user gave that cannot be used: one sentence naming the file, the field and the remedy."""


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its kind where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
