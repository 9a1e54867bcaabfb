"""Parts of a long measurement, each in a process of its own, within a time.

A part that fails, hangs or takes its process down loses neither what it has recorded nor the other parts: on a GPU, a
faulty kernel spoils all later work of its process.
"""

import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import monotonic
from typing import Any

Row = dict[str, Any]
Record = Callable[[Row], None]
NO_TIME = "no time left"
"""Note of what was left out."""
STARTING = 30.0
"""Seconds, at most, that a part keeps in hand: a measurement that has begun goes on to its end."""
SHARE_IN_HAND = 0.1


class Job:
    """What a part is given: how long it may take, and where its results go."""

    def __init__(self, record: Record, seconds: float) -> None:
        self.record, self._end = record, monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left."""
        return max(0.0, self._end - monotonic())

    @contextmanager
    def caught(self, row: Row) -> Iterator[None]:
        """Record an error inside as ``row`` with it, and go on: whatever one measurement meets, the next may work."""
        try:
            yield
        except Exception as error:
            self.record(row | {"note": short(error), "traceback": traceback.format_exc()})

    def attempt(self, row: Row, measure: Callable[[], Row]) -> None:
        """Record ``row`` with what ``measure`` returns, or with a note why there is nothing: no time, an error."""
        if self.left == 0:
            self.record(row | {"note": NO_TIME})
            return
        with self.caught(row):
            self.record(row | measure())


def short(error: Exception) -> str:
    """An error in a line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:200]


def run_part(work: Callable[..., None], seconds: float, record: Record, *arguments: Any) -> str:
    """Call ``work(job, *arguments)`` in another process and ``record`` its rows; return why it did not end, or "".

    After ``seconds`` it is ended, with all processes that it started.
    """
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, work, seconds, arguments))
    end = monotonic() + seconds
    process.start()
    # Once the other process is gone, too, receiving fails.
    sender.close()
    try:
        while receiver.poll(max(0.0, end - monotonic())):
            row, problem = receiver.recv()
            if row is None:
                return problem
            record(row)
        return f"stopped after {seconds:.0f} s"
    except EOFError:
        process.join()
        return f"its process ended with status {process.exitcode}"
    finally:
        # Until it leads a group of its own, it has started nothing.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def _work(sender: Connection, work: Callable[..., None], seconds: float, arguments: tuple) -> None:
    """In the other process."""
    # A group of its own, so that it ends with all that it starts.
    os.setsid()
    in_hand = min(STARTING, SHARE_IN_HAND * seconds)
    try:
        work(Job(lambda row: sender.send((row, "")), seconds - in_hand), *arguments)
        sender.send((None, ""))
    except Exception:
        sender.send((None, traceback.format_exc()))
