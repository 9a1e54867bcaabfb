"""Progress bars with an estimate."""

import sys
from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item] | None, what: str, unit: str, total: int | None = None, initial: int = 0) -> tqdm:
    """A progress bar with an estimate on stderr; loops of under two seconds stay silent. ``initial``: done before."""
    # A log file gets a line now and then instead of a redrawn bar.
    interval = 0.2 if sys.stderr.isatty() else 15.0
    return tqdm(items, desc=what, unit=unit, total=total, initial=initial, delay=2.0, mininterval=interval, leave=False)
