"""Locks on files: of two processes that would write the same, the second is refused at once.

The operating system drops the lock of a process that ends, however it ends. The file that bears the lock then stays
until the next command takes and removes it. On a file system without locks there is none.
"""

import contextlib
import os
import platform
import shlex
import sys
from collections.abc import Iterator
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
    if fcntl is None:
        yield None
        return
    with _open_locked(lock, refusal) as file:
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


def _open_locked(lock: Path, refusal: str) -> TextIO:
    while True:
        try:
            file = open(lock, "a+", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
        except OSError as error:
            raise UserError(
                f"cannot open {lock} ({error.strerror}), which locks an output; remove that file"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            with file:
                file.seek(0)
                raise UserError(refusal.replace("{holder}", file.read() or "another process")) from error
        except OSError:
            # A file system without locks.
            return file
        # Who held it may have removed it in between.
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                return file
        file.close()
