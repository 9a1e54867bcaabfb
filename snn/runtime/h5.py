"""HDF5 files with a stamp: who made them, from what, and digests that the reader checks.

A file's content is a tree of dictionaries: arrays become datasets, numbers, strings and tuples of them attributes,
dictionaries groups. Nothing that could execute on load is ever stored.

The file begins with a block of :data:`BLOCK` bytes that holds a SHA-256 of all bytes behind it. The HDF5 format leaves
room for such a block, and other readers skip it. So damage is found before the HDF5 library sees the file. As anybody
can make such a block, the library runs in a process of its own (:mod:`snn.runtime.h5_guard`), and what it finds is
checked part by part (:class:`snn.runtime.tree.Stored`). Older files lack the block.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import h5py
import numpy as np

from snn.runtime.errors import UserError, check
from snn.runtime.h5_child import MOST_BYTES
from snn.runtime.h5_guard import Damaged, parsed
from snn.runtime.locks import held_by_another
from snn.runtime.outputs import write_bytes
from snn.runtime.provenance import git_commit, versions
from snn.runtime.registry import UnknownName
from snn.runtime.tree import Stored, Tree

Content = TypeVar("Content")

PROVENANCE = ("command", "git_commit", "versions", "created", "digest")
"""How a file was made, not what it says: left out of the digest, so that equal results have equal digests."""
PARENT = "source_digest"
"""Attribute that holds the digest of the file that this one was made from ("": the first in the chain)."""

LARGEST_CHUNK = 2**22
"""Most bytes of an array that is compressed as a whole."""
BLOCK = 512
"""Bytes of the block at the start of a file; HDF5 allows 512 and powers of two above it."""
BLOCK_TITLE = b"safe-dnn file; bytes and SHA-256 of what follows: "
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
FORMAT = ("v110", "v110")
"""Versions of the HDF5 format, lowest and highest: of 2016, the first whose structures all have checksums."""
CHANGED = "does not match its digest: it was made by something else, or changed or damaged after writing"


class Schema(NamedTuple):
    """One kind of file."""

    name: str
    """With its version, for example "snn/2"."""
    remedy: str
    """Command that makes such a file, for messages."""
    unhashed: tuple[str, ...] = ()
    """Further paths that the digest leaves out, such as where images lie."""
    older: tuple[str, ...] = ()
    """Names of older schemas that are still read; what their files lack has a default."""


def content_digest(tree: Tree, unhashed: Iterable[str] = ()) -> str:
    """SHA-256 over arrays (name, type, shape, bytes) and attributes, independent of order and of time."""
    digest = hashlib.sha256()
    left_out = {*PROVENANCE, *unhashed}
    for path, value in sorted(_leaves(tree)):
        if path in left_out:
            continue
        digest.update(path.encode() + b"\0")
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype.str}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        else:
            digest.update(json.dumps(value).encode())
    return digest.hexdigest()


def _leaves(tree: Tree, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield prefix + name, value


def write_file(
    path: str | Path, schema: Schema, tree: Tree, *, seed: int, command: str, parent_digest: str = ""
) -> str:
    """Write ``tree`` to ``path`` whole or not at all; return its digest.

    ``None`` values are left out. ``parent_digest`` belongs to the file this one was made from, "" for the first in the
    chain. Raises :class:`UserError` for arrays of more bytes than are read (:func:`check_size`), and where the system
    refuses to write.
    """
    check_size(sum(value.nbytes for _, value in _leaves(tree) if isinstance(value, np.ndarray)), str(path), "save less")
    tree = _plain({**tree, "schema": schema.name, "seed": seed, PARENT: parent_digest})
    tree["digest"] = content_digest(tree, schema.unhashed)
    tree |= {
        "command": command,
        "git_commit": git_commit(),
        "versions": json.dumps(versions()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }

    write_bytes(Path(path), with_block(hdf5_bytes(tree)))
    return tree["digest"]


def check_size(size: int, what: str, remedy: str) -> None:
    """Raise :class:`UserError` if ``what``, with ``size`` bytes in arrays, is more than a file may hold."""
    most = MOST_BYTES / 2**30
    check(size <= MOST_BYTES, f"{what} would have {size / 2**30:.3g} GiB, files have at most {most:g} GiB; {remedy}")


def with_block(hdf5: bytes) -> bytes:
    """An HDF5 file behind the block that proves it whole."""
    return _block(len(hdf5), hashlib.sha256(hdf5).hexdigest()) + hdf5


def _block(size: int, digest: str) -> bytes:
    return (BLOCK_TITLE + f"{size} {digest}\n".encode()).ljust(BLOCK, b"\0")


def hdf5_bytes(tree: Tree) -> bytes:
    """The tree as an HDF5 file, made in memory: the library does not survive a disk that refuses to take it."""
    with h5py.File("memory", "w", driver="core", backing_store=False, libver=FORMAT) as file:
        _write_group(file, tree)
        file.flush()
        return file.id.get_file_image()


def read_file(path: str | Path, schema: Schema, parse: Callable[[Stored], Content]) -> Content:
    """Read and check a file written by :func:`write_file`, and return what ``parse`` makes of its tree.

    Anybody may have made the file: ``parse`` takes each part through the methods of :class:`Stored`, which check it.

    Raises :class:`UserError` (with the command that makes such a file) for a missing, truncated or foreign file,
    another schema, content that does not match its digest, and where ``parse`` misses a part or refuses a value. Other
    errors of ``parse`` are errors of this program, and pass.
    """
    path, remedy, known = Path(path), schema.remedy, (schema.name, *schema.older)
    check(path.exists(), f"{path} does not exist; make it with: {remedy}")
    check(path.is_file(), f"{path} is not a file; give one made with: {remedy}")
    check(os.access(path, os.R_OK), f"{path} cannot be read: permission denied; change its permissions")
    _check_block(path, remedy)
    try:
        with parsed(path) as tree:
            stored = tree.text("schema")
            check(stored in known, f"it has schema {stored!r}, expected {schema.name!r}")
            for name in ("digest", PARENT):
                tree.text(name)
            content = parse(tree)
            intact = tree["digest"] == content_digest(tree.loaded(), schema.unhashed)
    except Damaged as error:
        check(path.exists(), f"{path} was removed while it was read; make it again with: {remedy}")
        raise UserError(f"{path} is truncated or not an HDF5 file; make it again with: {remedy}") from error
    except UnknownName as error:
        raise UserError(f"{path} was made with a plugin that is missing here: {error}") from error
    except UserError as error:
        raise UserError(f"{path} is not of schema {schema.name!r}: {error}; make it again with: {remedy}") from error
    check(intact, f"{path} {CHANGED}; make it again with: {remedy}")
    return content


class Stamp(NamedTuple):
    """How a file was made."""

    schema: str
    command: str
    seed: int
    created: str
    """Time in ISO 8601, UTC."""
    git_commit: str
    versions: dict[str, str]
    """Of the packages that results depend on."""
    digest: str
    parent_digest: str
    """Digest of the file that it was made from ("": the first in the chain)."""


def read_stamp(path: str | Path) -> Stamp:
    """How a file of any schema was made, without its content.

    Raises :class:`UserError` for a file that is missing, damaged, or none of this project.
    """
    path, remedy = Path(path), "the command that made it"
    check(path.is_file(), f"{path} is not a file; give one of this project")
    _check_block(path, remedy)
    try:
        with parsed(path) as tree:
            texts = {name: tree.text(name) for name in ("schema", "command", "created", "git_commit", "digest")}
            seed, parent = tree.whole("seed", 0, 2**64), tree.text(PARENT)
            found = json.loads(tree.text("versions"))
    except (Damaged, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no whole file of this project: {error or 'it cannot be read'}") from error
    known = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    check(known, f"{path} is no whole file of this project: its versions are no texts by name")
    return Stamp(**texts, seed=seed, versions=found, parent_digest=parent)


def _check_block(path: Path, remedy: str) -> None:
    """Raise :class:`UserError` for a file that another process writes, or whose bytes are not those once written."""
    with open(path, "rb") as file:
        check(not held_by_another(file), f"{path} is open for writing in another process; close it there and try again")
        start = file.read(BLOCK)
        # Files written before there was a block.
        if start.startswith(HDF5_SIGNATURE):
            return
        size = os.fstat(file.fileno()).st_size - BLOCK
        stated = re.match(re.escape(BLOCK_TITLE) + rb"(\d{1,18}) ", start)
        check(stated is not None, f"{path} is truncated or not an HDF5 file of this project; make it with: {remedy}")
        assert stated is not None
        check(
            size >= int(stated[1]),
            f"{path} is truncated: of {int(stated[1])} bytes {max(size, 0)} are left; make it again with: {remedy}",
        )
        intact = start == _block(size, hashlib.file_digest(file, "sha256").hexdigest())
        check(intact, f"{path} {CHANGED}; make it again with: {remedy}")


def _plain(tree: Tree) -> Tree:
    """The tree as it will be read back: None dropped, paths as text, NumPy scalars and lists as Python's own."""
    plain: Tree = {}
    for name, value in tree.items():
        if value is None:
            continue
        if isinstance(value, dict):
            value = _plain(value)
        elif isinstance(value, np.generic):
            value = value.item()
        elif isinstance(value, Path):
            value = str(value)
        elif isinstance(value, list | tuple):
            value = list(value)
        plain[name] = value
    return plain


def _write_group(group: h5py.Group, tree: Tree) -> None:
    for name, value in tree.items():
        if isinstance(value, dict):
            _write_group(group.create_group(name), value)
        elif isinstance(value, np.ndarray):
            # Histories are long and compress well; small arrays would only grow.
            # The small chunks that h5py chooses for kernels hardly compress.
            chunks = value.shape if value.nbytes <= LARGEST_CHUNK else True
            packed = {"compression": "gzip", "shuffle": True, "chunks": chunks} if value.size > 1000 else {}
            group.create_dataset(name, data=value, **packed)
        elif isinstance(value, list):
            # An attribute holds no empty list of strings; JSON holds every list alike.
            group.attrs[name] = "json:" + json.dumps(value)
        else:
            group.attrs[name] = value
