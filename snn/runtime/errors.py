"""The one exception for what a caller or user can put right, and how names are shown."""

from collections.abc import Iterable


class UserError(ValueError):
    """A value that cannot be used; the message names the value, what was expected, and the remedy.

    Names of arguments stand in backticks (``UserError("`limit_train` 0: give 1 or more")``). A command shows them as
    its flags, in a single line, and ends with exit status 2.
    """

    status = 2


def check(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raise :class:`UserError` unless ``value``, which the argument ``name`` has, is one of ``choices``."""
    choices = tuple(choices)
    check(value in choices, f"`{name}` {value}: unknown; choose from {', '.join(choices)}")


def visible(text: str) -> str:
    """Text in one line for terminals and pictures: "?" for line breaks, control characters and bytes of no UTF-8.

    Names may be those of a stranger's file, and could steer a terminal.
    """
    return "".join(letter if letter.isprintable() else "?" for letter in text)
