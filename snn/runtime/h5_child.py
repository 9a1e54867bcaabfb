"""What a child process runs that parses HDF5 files for others (:mod:`snn.runtime.h5_guard`), within limits.

The HDF5 library was not made for files from strangers: a few bytes can make it loop, crash or take all memory. Here,
that ends this process alone. It takes requests from standard input until that ends, and imports nothing but NumPy and
h5py, so that it starts in a fraction of a second.

It follows hard links to distinct objects, reads scalar attributes, and numeric arrays that lie in the file itself.
Whatever else a file holds is a reason to refuse it.
"""

import contextlib
import json
import math
import os
import signal
import struct
import sys
from typing import Any, BinaryIO

import h5py
import numpy as np

MOST_OBJECTS = 20_000
"""Groups and arrays in a file (ResNet101 has 626)."""
MOST_ATTRIBUTES = 1_000
"""Attributes of one object."""
MOST_BYTES = 2**30
"""Bytes of all arrays of a file."""
LONGEST_TEXT = 2**24
"""Bytes of one attribute."""
DEEPEST = 10
"""Groups within groups."""
DEFLATE = 1_100
"""Bytes that a compressed byte can stand for, about (zlib: at most 1,032)."""
FILTERS = {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32}
LAYOUTS = {h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS, h5py.h5d.CHUNKED}
LENGTH = struct.Struct("<Q")
DONE = REFUSED = 2**64 - 1
"""In place of the number of an array: no more of this file. In place of a length: it could not be read."""


class Foreign(Exception):
    """What a file holds that no file of this project does."""


def limit_memory(size: int) -> None:
    """Let this process have at most ``size`` bytes of address space, where the system can do that."""
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def serve(requests: BinaryIO, replies: BinaryIO, seconds: int) -> None:
    """Answer requests until ``requests`` ends; one that takes longer than ``seconds`` ends this process."""
    while request := _receive(requests):
        _alarm(seconds)
        path, walk = json.loads(request), None
        with contextlib.ExitStack() as opened:
            try:
                # Read as it is: that another process has it open is the caller's concern.
                file = h5py.File(path, "r", locking=False)
                # Its end may fail, too.
                opened.enter_context(contextlib.suppress(Exception))
                opened.callback(file.close)
                walk = _Walk(file, os.path.getsize(path))
                reply = walk.group(file)
            except Foreign as problem:
                reply = {"foreign": str(problem)}
            except Exception as problem:
                # A damaged file can fail at any place in the HDF5 library, with any error.
                reply = {"damaged": type(problem).__name__}
            _send(replies, json.dumps(reply).encode())
            _alarm(0)
            if walk and "groups" in reply:
                _send_arrays(requests, replies, walk.arrays, seconds)


def _send_arrays(requests: BinaryIO, replies: BinaryIO, arrays: list[h5py.Dataset], seconds: int) -> None:
    """Send the bytes of each array that is asked for by its number, until :data:`DONE`."""
    while (wanted := requests.read(LENGTH.size)) and (number := LENGTH.unpack(wanted)[0]) != DONE:
        _alarm(seconds)
        try:
            values = np.ascontiguousarray(arrays[number][()])
        except Exception:
            replies.write(LENGTH.pack(REFUSED))
            replies.flush()
        else:
            # Without a copy, which would not fit beside a large array.
            _send(replies, values.reshape(-1).view(np.uint8).data)
        _alarm(0)


def _alarm(seconds: int) -> None:
    """End this process in so many seconds (0: not), even within the HDF5 library, and if the other process has died."""
    if hasattr(signal, "alarm"):
        signal.alarm(seconds)


def _receive(stream: BinaryIO) -> bytes:
    size = stream.read(LENGTH.size)
    return stream.read(LENGTH.unpack(size)[0]) if len(size) == LENGTH.size else b""


def _send(stream: BinaryIO, message: bytes | memoryview) -> None:
    stream.write(LENGTH.pack(len(message)))
    stream.write(message)
    stream.flush()


def _identity(item: h5py.h5g.GroupID | h5py.h5d.DatasetID) -> tuple[int, int]:
    info = h5py.h5o.get_info(item)
    return info.fileno, info.addr


def _refuse(condition: bool, problem: str) -> None:
    if condition:
        raise Foreign(problem)


class _Walk:
    """A walk through all groups of a file."""

    def __init__(self, file: h5py.File, size: int) -> None:
        self.file_size, self.bytes = size, 0
        self.arrays: list[h5py.Dataset] = []
        self.seen = {_identity(file.id)}

    def group(self, group: h5py.Group, path: str = "") -> dict[str, Any]:
        """Attributes, groups and headers of arrays, by name."""
        count, links = len(group.id), group.id.links
        _refuse(count > MOST_OBJECTS, f"group {path or '/'} has {count} parts, more than {MOST_OBJECTS}")
        _refuse(path.count("/") > DEEPEST, f"group {path} lies deeper than {DEEPEST} groups")
        tree: dict[str, Any] = {"attributes": _attributes(group, path), "groups": {}, "arrays": {}}
        for raw in list(group.id):
            key = raw.decode()
            name = f"{path}{key}"
            _refuse(links.get_info(raw).type != h5py.h5l.TYPE_HARD, f"{name} is a soft or external link")
            item = h5py.h5o.open(group.id, raw)
            is_group = isinstance(item, h5py.h5g.GroupID)
            _refuse(not is_group and not isinstance(item, h5py.h5d.DatasetID), f"{name} is neither group nor array")
            identity = _identity(item)
            _refuse(identity in self.seen, f"{name} is a second link to one object")
            self.seen.add(identity)
            _refuse(len(self.seen) > MOST_OBJECTS, f"it has more than {MOST_OBJECTS} groups and arrays")
            if is_group:
                tree["groups"][key] = self.group(h5py.Group(item), f"{name}/")
            else:
                tree["arrays"][key] = self._header(h5py.Dataset(item), name)
        return tree

    def _header(self, dataset: h5py.Dataset, name: str) -> list[Any]:
        """Number, type and shape of an array, after all that can be known without reading it was checked."""
        made = dataset.id.get_create_plist()
        filters = {made.get_filter(n)[0] for n in range(made.get_nfilters())}
        _refuse(made.get_layout() not in LAYOUTS or made.get_external_count() > 0, f"{name} lies in other files")
        _refuse(not filters <= FILTERS, f"{name} is packed by filters other than gzip")
        _refuse(dataset.shape is None, f"{name} has no shape")
        dtype, shape = dataset.dtype, list(map(int, dataset.shape))
        known = dtype.kind in "fiub" and dtype.itemsize <= 8 and not dtype.str.startswith(">")
        _refuse(not known, f"{name} holds values of type {dtype}")
        # Of Python's numbers, as the library's product of a shape may overflow.
        size, most = dtype.itemsize * math.prod(shape), DEFLATE * self.file_size
        _refuse(size > most, f"{name} declares {size} bytes, more than a file of {self.file_size} can hold")
        self.bytes += size
        _refuse(self.bytes > MOST_BYTES, f"its arrays have {self.bytes} bytes or more; at most {MOST_BYTES} are read")
        self.arrays.append(dataset)
        return [len(self.arrays) - 1, dtype.str, shape]


def _attributes(item: Any, path: str) -> dict[str, Any]:
    count = h5py.h5a.get_num_attrs(item.id)
    _refuse(count > MOST_ATTRIBUTES, f"{path or '/'} has {count} attributes, more than {MOST_ATTRIBUTES}")
    values: dict[str, Any] = {}
    for number in range(count):
        attribute = h5py.h5a.open(item.id, index=number)
        name = attribute.name.decode(errors="replace")
        kind = attribute.get_type()
        _refuse(
            attribute.shape != () or attribute.get_storage_size() > LONGEST_TEXT,
            f"attribute {path}{name} is no single value",
        )
        text = isinstance(kind, h5py.h5t.TypeStringID)
        _refuse(
            not text and attribute.dtype.kind not in "fiub",
            f"attribute {path}{name} holds a value of type {attribute.dtype}",
        )
        value = item.attrs[name]
        if isinstance(value, bytes):
            value = value.decode()
        values[name] = value.item() if isinstance(value, np.generic) else value
    return values


def main() -> None:
    seconds, memory = map(int, sys.argv[1:])
    if hasattr(signal, "SIGINT"):
        # Ctrl-C reaches all processes of a terminal; the other one ends this one.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    limit_memory(memory)
    # Ready.
    _send(sys.stdout.buffer, b"")
    serve(sys.stdin.buffer, sys.stdout.buffer, seconds)


if __name__ == "__main__":
    main()
