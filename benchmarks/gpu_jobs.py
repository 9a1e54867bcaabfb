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
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from snn.data import load_images
from snn.data_source import DataSource
from snn.runtime.device import choose_device
from snn.runtime.errors import check

Row = dict[str, Any]
Record = Callable[[Row], None]
SIDE = 32
"""Of images, in pixels."""
NO_TIME = "no time left"
"""Note of what was left out."""
STARTING = 30.0
"""Seconds, at most, that a part keeps in hand: a measurement that has begun goes on to its end."""
SHARE_IN_HAND = 0.1


class Setting(NamedTuple):
    """What is measured, and where."""

    device_name: Literal["cpu", "cuda"]
    tiny: bool
    """Sizes that take seconds on a CPU, to try the code."""
    data: str | None
    """Images, as :class:`snn.data_source.DataSource` names them; None: synthetic ones."""

    @property
    def device(self) -> torch.device:
        """Set up as commands set it up."""
        return choose_device(self.device_name)

    @property
    def on_gpu(self) -> bool:
        """Whether what only a GPU can do is measured."""
        return self.device_name == "cuda"

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines that are measured, the faster one first."""
        return ("gpu", "norse") if self.on_gpu else ("events", "norse")

    def images(self, count: int) -> Tensor:
        """So many images, uint8 (count, 3, 32, 32), of a tiny setting a corner of 8 pixels; on the CPU."""
        if self.data is None:
            found = synthetic_images(count)
        else:
            loaded = load_images(DataSource().override(data=self.data), "train").images
            check(
                len(loaded) >= count and loaded.shape[1:] == (3, SIDE, SIDE),
                f"`data` {self.data} has {len(loaded)} images of shape {tuple(loaded.shape[1:])}: expected {count} or "
                f"more of shape (3, {SIDE}, {SIDE}); leave it out",
            )
            found = loaded[torch.randperm(len(loaded), generator=torch.Generator().manual_seed(0))[:count]]
        return found[:, :, :8, :8].contiguous() if self.tiny else found


def synthetic_images(count: int) -> Tensor:
    """Smooth random images, uint8 (count, 3, 32, 32)."""
    coarse = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # In parts: floats of many images would fill the memory.
    parts = (interpolate(part.float(), size=(SIDE, SIDE), mode="bilinear").byte() for part in coarse.split(4096))
    return torch.cat(list(parts))


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
