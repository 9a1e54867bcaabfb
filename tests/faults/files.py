"""Damaged, forged and hostile files: what a stranger may hand over."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from snn.runtime.h5 import BLOCK, PROVENANCE, Schema, content_digest, hdf5_bytes, read_file, with_block
from snn.runtime.tree import Stored, Tree

NONSENSE = ["x", "", -1, 0, 1.5, -2.5, 10**9, 10**15, 1e300, 1e-300, float("nan"), float("inf"), True, [], [1e9], {}]
"""Values of settings that are of another type, out of range or both, in most places."""


@dataclass(frozen=True)
class Kind:
    """A kind of file, with a whole one of it."""

    name: str
    schema: Schema
    load: Callable[[Path], Any]
    tree: Tree
    """Content of the whole file."""
    file: bytes

    @classmethod
    def of(cls, name: str, schema: Schema, load: Callable[[Path], Any], path: Path) -> "Kind":
        return cls(name, schema, load, read_file(path, schema, Stored.loaded), path.read_bytes())


def stamped(tree: Tree, schema: Schema) -> bytes:
    """A file of this content whose digests are right, as anybody can make it."""
    tree = {**tree, "digest": content_digest(tree, schema.unhashed)}
    return with_block(hdf5_bytes(tree))


def damaged(file: bytes, random: np.random.Generator) -> bytes:
    """Bytes changed, set to 0, moved, doubled or cut off."""
    data, size = bytearray(file), len(file)
    at = int(random.integers(size))
    length = int(min(size - at, 2 ** random.integers(0, 12)))
    way = random.integers(6)
    if way == 0:
        data[at] ^= 1 << int(random.integers(8))
    elif way == 1:
        data[at : at + length] = random.bytes(length)
    elif way == 2:
        data[at : at + length] = bytes(length)
    elif way == 3:
        other = int(random.integers(size - length + 1))
        data[at : at + length], data[other : other + length] = data[other : other + length], data[at : at + length]
    elif way == 4:
        data[at:at] = data[at : at + length]
    else:
        del data[at:]
    return bytes(data)


def reproved(file: bytes) -> bytes:
    """The same HDF5 part behind a block that fits it."""
    return with_block(file[BLOCK:])


def leaves(tree: Tree, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of a tree, and every group, with its path."""
    for name, value in tree.items():
        if not prefix and name in (*PROVENANCE, "schema"):
            continue
        yield (*prefix, name), value
        if isinstance(value, dict):
            yield from leaves(value, (*prefix, name))


def with_value(tree: Tree, path: tuple[str, ...], value: Any) -> Tree:
    """A copy of the tree with another value (None: without it)."""
    name, *rest = path
    copied = dict(tree)
    copied[name] = with_value(tree[name], tuple(rest), value) if rest else value
    return {key: kept for key, kept in copied.items() if kept is not None}


def forged_value(value: Any, random: np.random.Generator) -> Any:
    """Another value in the place of one: never one of the same type, shape and range."""
    if isinstance(value, np.ndarray) and value.size:
        flat = value.copy().reshape(-1)
        at = int(random.integers(flat.size))
        if value.dtype.kind == "f" and random.integers(2):
            flat[at] = [np.nan, np.inf, -np.inf][random.integers(3)]
            return flat.reshape(value.shape)
        others = [
            value.astype(np.complex64).real.astype(np.float16),
            value.astype(np.int32) if value.dtype != np.int32 else value.astype(np.int64),
            np.atleast_1d(value)[:0],
            value[None],
            np.concatenate([np.atleast_1d(value)] * 2),
            np.zeros((0,), value.dtype),
            np.float64(3.0) * np.ones((2, 2, 2, 2, 2)),
            "text",
            7,
        ]
        return others[random.integers(len(others))]
    return NONSENSE[random.integers(len(NONSENSE))]


def hostile(folder: Path) -> dict[str, bytes]:
    """Files with valid digests whose structure is a trap, by what the trap is."""

    def file(name: str, build: Callable[[h5py.File], Any], libver: Any = None) -> bytes:
        path = folder / "hostile.h5"
        with h5py.File(path, "w", libver=libver) as made:
            build(made)
        return with_block(path.read_bytes())

    def schema(made: h5py.File) -> None:
        made.attrs["schema"], made.attrs["digest"] = "snn/3", "0" * 64

    def soft_cycle(made: h5py.File) -> None:
        schema(made)
        made["layers"] = h5py.SoftLink("/layers")
        made["input"] = h5py.SoftLink("/")

    def hard_cycle(made: h5py.File) -> None:
        schema(made)
        made.create_group("layers")["again"] = made["/"]

    def paths(made: h5py.File) -> None:
        schema(made)
        group = made
        for _ in range(39):
            inner = made.create_group(None)
            group["a"] = group["b"] = inner
            group = inner

    def external(target: str) -> Callable[[h5py.File], None]:
        def build(made: h5py.File) -> None:
            schema(made)
            made["layers"] = h5py.ExternalLink(target, "/")

        return build

    def huge(shape: tuple[int, ...], **options: Any) -> Callable[[h5py.File], None]:
        def build(made: h5py.File) -> None:
            schema(made)
            made.create_dataset("layers/conv1/conductance", shape, "f4", **options)

        return build

    def many(count: int) -> Callable[[h5py.File], None]:
        def build(made: h5py.File) -> None:
            schema(made)
            for number in range(count):
                made.create_dataset(f"layers/{number}", (2**20,), "f4", chunks=(2**20,), compression="gzip")
                made[f"layers/{number}"][:10] = 1

        return build

    def virtual(made: h5py.File) -> None:
        schema(made)
        layout = h5py.VirtualLayout((2**36,), "f4")
        layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (2**36,))
        made.create_virtual_dataset("layers", layout)

    def outside(made: h5py.File) -> None:
        schema(made)
        made.create_dataset("layers", (100,), "u1", external=[("/etc/passwd", 0, 100)])

    def typed(dtype: Any, shape: Any = (2,)) -> Callable[[h5py.File], None]:
        def build(made: h5py.File) -> None:
            schema(made)
            made.create_dataset("layers", shape, dtype)

        return build

    def deep(made: h5py.File) -> None:
        schema(made)
        made.create_group("/".join("a" * 2000))

    def attribute(value: Any) -> Callable[[h5py.File], None]:
        def build(made: h5py.File) -> None:
            schema(made)
            made.attrs["seed"] = value

        return build

    def packed(made: h5py.File) -> None:
        schema(made)
        made.create_dataset("layers", data=np.zeros(5000), compression="lzf")

    def named_type(made: h5py.File) -> None:
        schema(made)
        made["layers"] = np.dtype("f8")

    os.mkfifo(folder / "pipe")
    nested = "json:" + "[" * 100_000
    return {
        "soft links in a circle": file("soft", soft_cycle),
        "hard links in a circle": file("hard", hard_cycle),
        "2^39 paths": file("paths", paths),
        "external link to itself": file("external", external("hostile.h5")),
        "external link to a pipe": file("pipe", external(str(folder / "pipe"))),
        "2^40 numbers": file("huge", huge((2**40,), chunks=(2**20,), compression="gzip")),
        "2^29 numbers": file("large", huge((2**29,), chunks=(2**20,), compression="gzip")),
        "2^29 numbers that are not there": file("absent", huge((2**29,))),
        "lengths whose product overflows": file("overflow", huge((2**33, 2**33), chunks=(2**10, 2**10))),
        "300 arrays of 4 MiB": file("many", many(300)),
        "virtual array": file("virtual", virtual),
        "array in another file": file("outside", outside),
        "compound values": file("compound", typed(np.dtype([("a", "f4"), ("b", "i8")]))),
        "references": file("references", typed(h5py.ref_dtype)),
        "texts of any length": file("vlen", typed(h5py.string_dtype())),
        "numbers of the other byte order": file("order", typed(">f4")),
        "complex numbers": file("complex", typed("c16")),
        "array without a shape": file("null", typed("f4", h5py.Empty("f4").shape)),
        "2000 groups within groups": file("deep", deep),
        "attribute with a shape": file("array attribute", attribute(np.zeros(1000))),
        "attribute without a value": file("empty attribute", attribute(h5py.Empty("f4"))),
        "attribute that is a reference": file("reference", lambda made: attribute(made.ref)(made)),
        "list within lists": file("nested", attribute(nested), ("v110", "v110")),
        "list that is none": file("broken", attribute("json:[1, 2")),
        "packed by another filter": file("filter", packed),
        "type in place of a group": file("named type", named_type),
        "no content": file("empty", lambda made: None),
        "JSON": json.dumps({"schema": "snn/3"}).encode(),
        "nothing": b"",
    }
