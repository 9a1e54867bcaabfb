"""HDF5 files with a stamp: who made them, from what, and a digest that the reader checks.

A file's content is a tree of dictionaries: arrays become datasets, numbers, strings and tuples of them attributes,
dictionaries groups. Nothing that could execute on load is ever stored.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import h5py
import numpy as np

from snn.runtime.errors import UserError, check
from snn.runtime.outputs import write_atomically
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
    chain.
    """
    tree = _plain({**tree, "schema": schema.name, "seed": seed, PARENT: parent_digest})
    tree["digest"] = content_digest(tree, schema.unhashed)
    tree |= {
        "command": command,
        "git_commit": git_commit(),
        "versions": json.dumps(versions()),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }

    def write(temporary: Path) -> None:
        try:
            with h5py.File(temporary, "w") as file:
                _write_group(file, tree)
        except RuntimeError as error:
            # So h5py reports that it could not extend a file.
            raise OSError(str(error)) from error

    write_atomically(Path(path), write)
    return tree["digest"]


def read_file(path: str | Path, schema: Schema, parse: Callable[[Tree], Content]) -> Content:
    """Read and check a file written by :func:`write_file`, and return what ``parse`` makes of its tree.

    Raises :class:`UserError` (with the command that makes such a file) for a missing, truncated or foreign file,
    another schema, content that does not match its digest, and where ``parse`` misses a part or refuses a value. Other
    errors of ``parse`` are errors of this program, and pass.
    """
    path, remedy, known = Path(path), schema.remedy, (schema.name, *schema.older)
    check(path.exists(), f"{path} does not exist; make it with: {remedy}")
    check(path.is_file(), f"{path} is not a file; give one made with: {remedy}")
    check(os.access(path, os.R_OK), f"{path} cannot be read: permission denied; change its permissions")
    # A damaged file can fail at any place in the HDF5 library, and hold anything until its digest is checked.
    failures = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError)
    tree: Tree = {}
    try:
        with h5py.File(path, "r") as file:
            stored = file.attrs.get("schema")
            other = isinstance(stored, str) and stored not in known
            if not other:
                tree = _read_group(file)
    except failures as error:
        raise UserError(f"{path} is truncated or not an HDF5 file; make it again with: {remedy}") from error
    check(not other, f"{path} has schema {stored!r}, expected {schema.name!r}; make such a file with: {remedy}")
    try:
        intact = tree.get("schema") in known and tree.get("digest") == content_digest(tree, schema.unhashed)
    except failures:
        intact = False
    check(
        intact,
        f"{path} does not match its digest: it was made by something else or changed after writing; make it again "
        f"with: {remedy}",
    )
    try:
        return parse(tree)
    except UnknownName as error:
        raise UserError(f"{path} was made with a plugin that is missing here: {error}") from error
    except UserError as error:
        raise UserError(f"{path} is not of schema {schema.name!r}: {error}; make it again with: {remedy}") from error


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


def _read_group(group: h5py.Group) -> Tree:
    tree = Stored()
    for name, value in group.attrs.items():
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, str) and value.startswith("json:"):
            value = json.loads(value.removeprefix("json:"))
        tree[name] = value
    for name, item in group.items():
        tree[name] = _read_group(item) if isinstance(item, h5py.Group) else np.asarray(item[()])
    return tree
