"""The one exception that commands turn into a single line and exit status 2."""


class UserError(Exception):
    """Something the user can put right; the message names the value, what was expected, and the remedy.

    Not a ``ValueError``: the command-line parser would catch that and print it in its own, longer form.
    """


def check(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)
