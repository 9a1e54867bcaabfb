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
MEMORY = 2 * 2**30
"""Address space of the child, in bytes."""


class Damaged(Exception):
    """The HDF5 library cannot read the file, or does not end, or ended itself."""


class _Child:
    """The child process, which serves one file after another."""

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
        self.owner = os.getpid()
        self.alive = True

    def exchange(self, message: bytes, length: int | None = None) -> bytes:
        """Send ``message`` and return the reply, which has ``length`` bytes (None: any).

        Raises :class:`Damaged` if there is none in time.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # On systems without alarms the child cannot end itself.
        timer = threading.Timer(SECONDS + 5, self._process.kill)
        timer.daemon = True
        timer.start()
        try:
            self._process.stdin.write(message)
            self._process.stdin.flush()
            prefix = self._process.stdout.read(LENGTH.size)
            size = LENGTH.unpack(prefix)[0] if len(prefix) == LENGTH.size else REFUSED
            reply = self._process.stdout.read(size) if size != REFUSED and length in (None, size) else b""
        except OSError:
            size, reply = REFUSED, b""
        except BaseException:
            # Interrupted in the middle of a message: the next one could not be told from its rest.
            self.end()
            raise
        finally:
            timer.cancel()
        if size == REFUSED or len(reply) != size:
            self.end()
            raise Damaged
        return reply

    def tell(self, message: bytes) -> None:
        """Send ``message``, to which there is no reply."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(message)
            self._process.stdin.flush()
        except OSError:
            self.end()

    def end(self) -> None:
        """End the child, at once."""
        self.alive = False
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                assert pipe is not None
                pipe.close()
        self._process.wait()


_lock = threading.Lock()
_current: _Child | None = None


def _child() -> _Child:
    global _current
    # After a fork the pipes belong to the parent of this process.
    if _current is None or not _current.alive or _current.owner != os.getpid():
        _current = _Child()
    return _current


@atexit.register
def _end() -> None:
    if _current is not None and _current.alive and _current.owner == os.getpid():
        _current.end()


if hasattr(os, "register_at_fork"):

    def _new_lock() -> None:
        global _lock
        # It may have been held when the process was forked.
        _lock = threading.Lock()

    os.register_at_fork(after_in_child=_new_lock)


@contextlib.contextmanager
def parsed(path: Path) -> Iterator[Stored]:
    """The content of an HDF5 file as a tree whose arrays are read when they are asked for, inside this context.

    Raises :class:`UserError` for what is not in any file of this project (links, types, sizes), and :class:`Damaged`.
    """
    with _lock:
        child = _child()
        reply = json.loads(child.exchange(_framed(json.dumps(str(path.resolve())).encode())))
        if "damaged" in reply:
            raise Damaged
        if "foreign" in reply:
            raise UserError(reply["foreign"])
        try:
            yield _tree(reply, "", partial(_read_array, child))
        finally:
            if child.alive:
                child.tell(LENGTH.pack(DONE))


def _framed(message: bytes) -> bytes:
    return LENGTH.pack(len(message)) + message


def _read_array(child: _Child, number: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    size = dtype.itemsize * int(np.prod(shape, dtype=object))
    if not child.alive:
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
