"""Locks on files: of two processes that would write the same, the second is refused at once, or waits.

The operating system drops the lock of a process that ends, however it ends. The file that bears the lock then stays
until the next command takes and removes it. On a file system without locks there is none.
"""

import contextlib
import os
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from snn.runtime.errors import UserError

try:
    import fcntl
except ImportError:
    # Not a POSIX system: there are no locks.
    fcntl = None  # type: ignore[assignment]

_held = contextlib.ExitStack()


def hold(path: Path) -> None:
    """Lock the output ``path`` until :func:`release_all`; :class:`UserError` if another process holds it."""
    place = path.resolve()
    lock = place.with_name(f".{place.name}.lock")
    _held.enter_context(locked(lock, f"{{holder}} is writing {path}: wait for it, end it, or give another `out`"))


def check_not_held(folder: Path) -> None:
    """Raise :class:`UserError` if another process holds ``folder`` as its output (:func:`hold`)."""
    place = folder.resolve()
    with contextlib.suppress(OSError), open(place.with_name(f".{place.name}.lock"), "rb") as file:
        if held_by_another(file):
            holder = file.read().decode(errors="replace") or "another process"
            raise UserError(f"{holder} is writing into {folder}: wait for it, end it, or give another `out`")


def release_all() -> None:
    """Release all locks of :func:`hold`, at the end of a command."""
    _held.close()


@contextlib.contextmanager
def locked(lock: Path, refusal: str, *, remove: bool = True) -> Iterator[int | None]:
    """Hold a lock on the file ``lock``, which is made; yield its descriptor, or None on a system without locks.

    Processes that inherit the descriptor hold the lock, too; if they may outlive this one, the file must not be
    removed at the end. Raises :class:`UserError` with ``refusal``, in which
    ``{holder}`` is replaced by who holds it.
    """

    def refuse(holder: str) -> None:
        raise UserError(refusal.replace("{holder}", holder))

    try:
        file = _open_locked(lock, refuse)
    except OSError as error:
        raise UserError(f"cannot open {lock} ({error.strerror}), which locks an output; remove that file") from error
    with _marked(lock, file, remove) as descriptor:
        yield descriptor


@contextlib.contextmanager
def turn(lock: Path, waits: Callable[[str], object]) -> Iterator[None]:
    """Hold a lock on the file ``lock``, which is made, once no other process does.

    ``waits`` is called with who holds it, if somebody does. On a file system without locks all hold it at once. Raises
    :class:`OSError` where the file cannot be made.
    """
    with _marked(lock, _open_locked(lock, waits), remove=True):
        yield


def remove_abandoned(folder: Path, name: str) -> None:
    """Remove the files of locks (``.NAME.lock``) in a folder that no process holds, as killed ones leave them.

    ``name`` is a regular expression: other programs lock by files of which nobody needs to hold anything.
    """
    for lock in folder.glob(".*.lock"):
        if re.fullmatch(rf"\.{name}\.lock", lock.name):
            with contextlib.suppress(UserError), locked(lock, "{holder} holds it"):
                pass


@contextlib.contextmanager
def _marked(lock: Path, file: TextIO | None, remove: bool) -> Iterator[int | None]:
    """Write into a locked file who holds it; at the end release it, and ``remove`` it if wanted."""
    if file is None:
        yield None
        return
    with file:
        try:
            # Only for messages: a disk may be full.
            with contextlib.suppress(OSError):
                file.truncate(0)
                file.write(f"process {os.getpid()} on {platform.node()} ({shlex.join(sys.orig_argv)[:200]})")
                file.flush()
            yield file.fileno()
        finally:
            if remove:
                lock.unlink(missing_ok=True)


def held_by_another(file: BinaryIO) -> bool:
    """Whether another process has a lock on this file, as the HDF5 library takes one on a file that it writes."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    except OSError:
        # A file system without locks.
        return False
    return False


def _open_locked(lock: Path, held: Callable[[str], object]) -> TextIO | None:
    """The file, locked; None on a system without locks. ``held`` is called with who holds it; if it returns, wait."""
    if fcntl is None:
        return None
    while True:
        with contextlib.ExitStack() as opened:
            file = opened.enter_context(open(lock, "a+", encoding="utf-8", errors="backslashreplace"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                file.seek(0)
                held(file.read() or "another process")
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                # A file system without locks.
                opened.pop_all()
                return file
            # Who held it may have removed it in between.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                    opened.pop_all()
                    return file
