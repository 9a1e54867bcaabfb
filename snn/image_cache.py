"""Decoded images in files, which later commands map into memory in place of decoding the images again.

A file holds a header, the values of all images one after another, and which images come from files of several frames.
Mapped, the values take no memory of their own: the system reads them as they are used, and drops them as it likes. All
processes that map a file share them.

A cache is never changed in place. New content is written beside it and renamed, so that it is another file to the
system, and whoever has mapped the older one goes on with that. This must stay so: a process that reads from a mapping
beyond the end of its file, because that was shortened, is killed (SIGBUS).
"""

import contextlib
import hashlib
import mmap
import os
import shutil
import struct
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, BinaryIO, NamedTuple

import numpy as np
import tyro

from snn.data_source import LENGTHS
from snn.runtime.errors import check
from snn.runtime.locks import remove_abandoned, turn
from snn.runtime.outputs import remove_leftovers, replacing
from snn.runtime.progress import warn, warn_once
from snn.runtime.ranges import check_fields

AUTO, NONE = "auto", "none"
"""Values of a ``cache`` that are no folder."""
PROGRAM = "safe-dnn"
"""Name of the folder within the user's cache folder."""
MAGIC = b"safe-dnn images\x01"
"""First bytes of a file; the last of them is the version of its form."""
FIELDS = struct.Struct("<16s32s5q16s")
"""Header: magic, key, number, channels, height and width of the images, how many have several frames, digest."""
START = 4096
"""Where the values begin, in bytes."""
KEPT_FREE = 2**30
"""Bytes of a disk that are left to others."""

Row = tuple[np.ndarray, bool]
"""An image, uint8 (C, H, W), and whether its file has several frames."""
Rows = Generator[Row, None, None]


@dataclass(frozen=True)
class Caching:
    """Where decoded images are kept."""

    cache: Annotated[str, tyro.conf.arg(metavar="auto|none|DIR")] = AUTO
    """Folder in which decoded images of folder:PATH are kept, so that the next command need not decode them; auto:
    safe-dnn in the user's cache folder; none: decode them every time, into memory."""

    def __post_init__(self) -> None:
        check_fields(self)
        check(self.cache != "", "`cache`: give a folder, auto or none")


class Pixels(NamedTuple):
    """N decoded images."""

    values: np.ndarray
    """uint8 (N, C, H, W); read only if it is mapped."""
    several: np.ndarray
    """Which of them come from files of several frames, int64, ascending."""
    file: "CacheFile | None" = None
    """The file that is mapped; None: the values lie in memory."""
    digest: str = ""
    """Digest of shape and values, known for those of a file alone."""


OWN = "[0-9a-f]{20}"
"""Names of files and locks, without suffix: others in the folder are not touched."""


@dataclass(frozen=True)
class CacheFile:
    """A file for certain images, whether it is there or not."""

    path: Path
    key: bytes
    """Digest of all that decides its content, 32 bytes. A file with another key counts as none."""
    count: int
    """Number of images."""

    def read(self) -> Pixels | None:
        """What the file holds, mapped; None if there is none, or if it is damaged, incomplete or of other images."""
        try:
            if not self.path.is_file():
                return None
            with open(self.path, "rb") as file:
                return self._map(file)
        except (OSError, ValueError):
            return None

    def read_or_write(self, rows: Callable[[], Rows]) -> Pixels:
        """What the file holds, mapped; it is written with ``rows`` if it has to be.

        Of several processes that want the same images, one writes and the others wait: each would take as long as all,
        and as much of the disk. Where files cannot be locked, each writes its own, and the last one stays.

        Raises :class:`OSError` where the system refuses, as on a full disk; then nothing is left.
        """
        if found := self.read():
            return found
        # A folder in a home that others may read holds what perhaps lay in one that they may not.
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with turn(self.path.with_name(f".{self.key.hex()[:20]}.lock"), _say_who):
            if found := self.read():
                return found
            # Its progress bar must be gone before an error is told of.
            with contextlib.closing(rows()) as images:
                return self._write(images)

    def _write(self, rows: Iterator[Row]) -> Pixels:
        remove_leftovers(self.path.parent, name=OWN)
        remove_abandoned(self.path.parent, OWN)
        with replacing(self.path) as temporary, open(temporary, "w+b", buffering=2**20) as file:
            first, rows = peek(rows)
            shape, several = (self.count, *first.shape), []
            _reserve(file, START + first.nbytes * self.count)
            digest = new_digest(shape)
            for number, (image, has_several) in enumerate(rows):
                values = np.ascontiguousarray(image).data
                file.write(values)
                digest.update(values)
                if has_several:
                    several.append(number)
            tail = np.array(several, dtype="<i8").tobytes()
            file.write(tail)
            header = FIELDS.pack(MAGIC, self.key, *shape, len(several), digest.digest())
            file.seek(0)
            file.write(header + _checksum(header, tail))
            file.flush()
            # The file itself, not its name: another process may write there next.
            made = self._map(file)
        if made is None:
            raise OSError(f"{self.path} is not as it was written")
        return made

    def _map(self, file: BinaryIO) -> Pixels | None:
        """Values of an open file; None if it is not whole, or of other images."""
        size = os.fstat(file.fileno()).st_size
        file.seek(0)
        header, checksum = file.read(FIELDS.size), file.read(len(_checksum(b"", b"")))
        if len(header) < FIELDS.size:
            return None
        magic, key, count, channels, height, width, several, digest = FIELDS.unpack(header)
        sides = (channels, height, width)
        if (magic, key, count) != (MAGIC, self.key, self.count) or not all(side in LENGTHS for side in sides):
            return None
        end = START + count * channels * height * width
        if not 0 <= several <= count or size != end + 8 * several:
            return None
        file.seek(end)
        tail = file.read(8 * several)
        if _checksum(header, tail) != checksum:
            return None
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        values = np.frombuffer(mapped, np.uint8, end - START, START).reshape(count, *sides)
        return Pixels(values, np.frombuffer(tail, "<i8"), self, digest.hex())


def cache_folder(cache: str | Path, images: Path) -> Path | None:
    """The folder that a ``cache`` means, for files of the folder ``images``; None: decoded images are not kept.

    Raises :class:`snn.runtime.errors.UserError` for a folder among the images.
    """
    if str(cache) == NONE:
        return None
    folder = user_folder() if str(cache) == AUTO else Path(os.path.expanduser(cache))
    if folder is None or not folder.resolve().is_relative_to(images.resolve()):
        return folder
    check(str(cache) == AUTO, f"`cache` {cache}: it lies in {images}, whose images are read; choose another folder")
    # As where all of a home folder is read.
    return None


def user_folder() -> Path | None:
    """The folder for caches of this program, where systems other than Windows have it; None if there is no home."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    usual = os.path.expanduser("~/Library/Caches" if sys.platform == "darwin" else "~/.cache")
    # XDG base directory specification: a path that is not absolute is to be ignored.
    base = Path(given if os.path.isabs(given) else usual)
    return base / PROGRAM if base.is_absolute() else None


def say_not_kept(error: OSError, folder: Path) -> None:
    """Say, once in a command and in one process of a group, why decoded images are not kept in ``folder``."""
    # Imported here: --help must not wait for PyTorch.
    from snn.runtime.processes import first_process

    if first_process():
        reason = error.strerror or error
        warn_once(f"decoded images are not kept in {folder} ({reason}): give another `cache`, or `cache` none")


def _say_who(holder: str) -> None:
    from snn.runtime.processes import first_process

    if first_process():
        warn(f"waiting for {holder}, which decodes these images")


def _reserve(file: BinaryIO, size: int) -> None:
    """Give a new file its size before the work, and go to where the values begin; :class:`OSError` if it is too large.

    Values are written, not copied into a mapping: of a disk that is full a mapping tells by killing the process.
    """
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(file.name))).free
    if size + KEPT_FREE > free:
        raise OSError(f"they take {size / 2**30:.3g} GiB, and {free / 2**30:.3g} GiB of the disk are free")
    file.truncate(size)
    file.seek(START)


def peek(rows: Iterator[Row]) -> tuple[np.ndarray, Iterator[Row]]:
    """The first image, by which the others' size is known, and all of them."""
    first = next(rows)
    return first[0], chain([first], rows)


def new_digest(shape: tuple[int, ...]) -> "hashlib.blake2b":
    """A digest of uint8 images of this shape (N, C, H, W), to be updated with their values."""
    return hashlib.blake2b(str(shape).encode(), digest_size=16)


def _checksum(header: bytes, tail: bytes) -> bytes:
    """Of all that is not values."""
    return hashlib.blake2b(header + tail, digest_size=32).digest()
