"""HDF5 files from anybody, read by a child process with limits of time and memory.

A damaged or hostile file makes the child end, not this process. Nothing that comes back can execute: it is JSON and
the bytes of arrays.
"""

import atexit
import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from snn.runtime.errors import UserError
from snn.runtime.h5_child import DONE, LENGTH, REFUSED
from snn.runtime.tree import Stored, StoredArray

CHILD = Path(__file__).with_name("h5_child.py")
SECONDS = 30
"""Time in which the structure of a file, or one of its arrays, has to be read (usually milliseconds)."""
STARTING = 120
"""Time in which the child has to start, where its modules lie on a slow disk."""
MEMORY = 2 * 2**30
"""Address space of the child, in bytes."""


class Damaged(Exception):
    """The HDF5 library cannot read the file, or does not end, or ended itself."""


class _Child:
    """A child process, which serves one file after another."""

    def __init__(self) -> None:
        # Whatever made h5py importable here does so there; its numerical libraries need no threads.
        paths = os.pathsep.join(path for path in sys.path if path)
        environment = {**os.environ, "PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(CHILD), str(SECONDS), str(MEMORY)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._replies = self._process.stdin, self._process.stdout
        self.owner = os.getpid()
        self.waiting = False
        """In the middle of an exchange; it stays so if that is interrupted."""
        try:
            self._receive(0, STARTING)
        except Damaged as error:
            raise OSError(
                f"cannot start the process that reads HDF5 files: {sys.executable} {CHILD} does not answer"
            ) from error

    @property
    def usable(self) -> bool:
        """Whether it lives, and belongs to this process rather than to the one that this was forked from."""
        return self.owner == os.getpid() and self._process.poll() is None

    def exchange(self, message: bytes, length: int | None = None) -> bytes:
        """Send ``message`` and return the reply, which has ``length`` bytes (None: any).

        Raises :class:`Damaged` if there is none in time; the child has ended then.
        """
        self.waiting = True
        self.tell(message)
        reply = self._receive(length, SECONDS + 5)
        self.waiting = False
        return reply

    def tell(self, message: bytes) -> None:
        """Send ``message``; if the child has ended, that shows when it is to reply."""
        with contextlib.suppress(OSError, ValueError):
            self._requests.write(message)
            self._requests.flush()

    def _receive(self, length: int | None, seconds: float) -> bytes:
        # Also on systems without alarms, on which the child cannot end itself.
        timer = threading.Timer(seconds, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            prefix = self._replies.read(LENGTH.size)
            size = LENGTH.unpack(prefix)[0] if len(prefix) == LENGTH.size else REFUSED
            reply = self._replies.read(size) if size != REFUSED and length in (None, size) else None
        finally:
            timer.cancel()
        if reply is None or len(reply) != size:
            self.end()
            raise Damaged
        return reply

    def end(self) -> None:
        """End the child, at once."""
        self._process.kill()
        for pipe in (self._requests, self._replies):
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.wait()


idle: list[_Child] = []
"""Children that serve nobody."""


def _take() -> _Child:
    """A child that serves nobody else."""
    while True:
        try:
            child = idle.pop()
        except IndexError:
            return _Child()
        if child.usable:
            return child


@atexit.register
def _end() -> None:
    for child in idle:
        if child.usable:
            child.end()


@contextlib.contextmanager
def parsed(path: Path) -> Iterator[Stored]:
    """The content of an HDF5 file as a tree whose arrays are read when they are asked for, inside this context.

    Raises :class:`UserError` for what is not in any file of this project (links, types, sizes), and :class:`Damaged`.
    """
    child = _take()
    try:
        reply = json.loads(child.exchange(_framed(json.dumps(str(path.resolve())).encode())))
        if "damaged" in reply:
            raise Damaged
        if "foreign" in reply:
            raise UserError(reply["foreign"])
        try:
            yield _tree(reply, "", partial(_read_array, child))
        finally:
            child.tell(LENGTH.pack(DONE))
    finally:
        if child.usable and not child.waiting:
            idle.append(child)
        else:
            child.end()


def _framed(message: bytes) -> bytes:
    return LENGTH.pack(len(message)) + message


def _read_array(child: _Child, number: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    size = dtype.itemsize * int(np.prod(shape, dtype=object))
    if not child.usable:
        raise Damaged
    return np.frombuffer(bytearray(child.exchange(LENGTH.pack(number), size)), dtype).reshape(shape)


def _tree(reply: dict[str, Any], path: str, read: Callable[[int, np.dtype, tuple[int, ...]], np.ndarray]) -> Stored:
    tree = Stored(path)
    for name, value in reply["attributes"].items():
        if isinstance(value, str) and value.startswith("json:"):
            try:
                value = json.loads(value.removeprefix("json:"))
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}{name} is no list") from error
        tree[name] = value
    for name, (number, kind, shape) in reply["arrays"].items():
        dtype = np.dtype(kind)
        tree[name] = StoredArray(f"{path}{name}", dtype, tuple(shape), partial(read, number, dtype, tuple(shape)))
    for name, group in reply["groups"].items():
        tree[name] = _tree(group, f"{path}{name}/", read)
    return tree
