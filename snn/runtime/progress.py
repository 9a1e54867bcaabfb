"""What long work shows while it runs: progress bars with an estimate, and warnings."""

import sys
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from typing import TypeVar

from tqdm import tqdm

from snn.runtime.errors import visible

Item = TypeVar("Item")

SHOWN: ContextVar[Callable[[str], str]] = ContextVar("SHOWN", default=str)
"""How messages are shown; a command sets it, so that they name its flags in place of arguments."""


def progress(items: Iterable[Item] | None, what: str, unit: str, total: int | None = None, initial: int = 0) -> tqdm:
    """A progress bar with an estimate on stderr; loops of under two seconds stay silent. ``initial``: done before."""
    # A log file gets a line now and then instead of a redrawn bar.
    interval = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(items, desc=what, unit=unit, total=total, initial=initial, delay=2.0, mininterval=interval, leave=False)


_said: set[str] = set()


def forget_warnings() -> None:
    """Let :func:`warn_once` say everything again, as at the start of a command."""
    _said.clear()


def warn_once(message: str) -> None:
    """:func:`warn`, unless the command has said so."""
    if message not in _said:
        _said.add(message)
        warn(message)


def warn(message: str) -> None:
    """Show a warning on stderr, beside any progress bar; names of arguments stand in backticks."""
    tqdm.write(f"warning: {visible(SHOWN.get()(message))}", file=sys.stderr)
