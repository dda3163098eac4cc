"""The one exception that users see."""


class UserError(ValueError):
    """Something a user gave that cannot be used: one sentence naming the file, the field and the remedy."""
