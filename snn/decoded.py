"""Pixels of images in a folder: decoded into memory, or from a cache."""

import hashlib
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from snn.data_source import Split
from snn.image_cache import CacheFile, Pixels, Rows, peek, say_not_kept
from snn.image_files import DECODER, Layout, Listing, read_images, read_measured
from snn.runtime.memory import check_memory

MANY = 1000
"""Images that take about a second to decode, even if they are small."""
LARGE = 2**24
"""Bytes of files that take about a second to decode, even if they are few."""
PIXELS = 2**25
"""Pixels of files that take about a second to decode, even if they compress well."""
LARGE_DECODED = 2**26
"""Bytes of decoded images of which not every process needs its own copy."""

_mapped = WeakIdKeyDictionary()
"""What tensors are mapped from."""


def read_pixels(
    files: Listing, chosen: np.ndarray, layout: Layout, split: Split, size: int | None, folder: Path | None
) -> Pixels:
    """The images of rows ``chosen`` of ``files``, in their order.

    Args:
        files: all images of the split.
        chosen: rows, ascending.
        layout: where they lie.
        split: that they belong to.
        size: as of :func:`snn.image_files.read_image`.
        folder: where decoded images are kept (None: nowhere). It has up to two files for one ``size``: of all images,
            and of those that were last chosen among them. The latter are read from the former if it is there. What is
            not :func:`worth_keeping` is not written.
    """
    wanted = files if len(chosen) == len(files) else files.take(chosen)

    def decode() -> Rows:
        return read_images(wanted.paths, size, split)

    if folder is None:
        return _in_memory(decode, len(wanted))
    file, whole = (_cache_file(folder, each, layout, split, size, each is files) for each in (wanted, files))
    if found := file.read():
        return found
    rows, decoded = decode, whole.read()
    if decoded:
        rows = partial(_taken, decoded, chosen)
        kept = len(wanted) * decoded.values[0].nbytes >= LARGE_DECODED
    else:
        kept = worth_keeping(wanted, *read_measured(wanted.paths[0], size))
    if not kept:
        return _in_memory(rows, len(wanted))
    try:
        return file.read_or_write(rows)
    except OSError as error:
        say_not_kept(error, folder)
        return _in_memory(rows, len(wanted))


def worth_keeping(files: Listing, first: np.ndarray, pixels: int) -> bool:
    """Whether images are kept: not those that take less than a second to decode, and little memory.

    ``first`` is the first of them, uint8 (C, H, W), and ``pixels`` those of its file.
    """
    quick = len(files) < MANY and int(files.sizes.sum()) < LARGE and len(files) * pixels < PIXELS
    return not quick or len(files) * first.nbytes >= LARGE_DECODED


def as_tensor(pixels: Pixels) -> Tensor:
    """The values as a tensor, uint8 (N, C, H, W), without a copy."""
    with warnings.catch_warnings():
        # PyTorch has no tensors that are only to be read. Nothing here writes into images; who did would be killed by
        # the system. A mapping that takes writes would count as memory, and a cache never changes.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensor = torch.from_numpy(pixels.values)
    if pixels.file:
        _mapped[tensor] = pixels
    return tensor


def known_digest(images: Tensor) -> str | None:
    """Digest of mapped images as of :func:`snn.storage.images_digest`, without reading them; None for any others.

    It was computed when the images were written. Only the tensor that was loaded is known, no part or copy of it.
    """
    pixels = _mapped.get(images)
    return pixels.digest if pixels else None


def _cache_file(folder: Path, files: Listing, layout: Layout, split: Split, size: int | None, whole: bool) -> CacheFile:
    """The cache of these files. Its name is that of any files of this kind: one of others, or of these before a change,
    is replaced.
    """
    place = str(layout.place)
    kind = (os.path.realpath(place), split, bool(layout.classes), size, whole)
    name = hashlib.blake2b(repr(kind).encode(errors="surrogateescape"), digest_size=10).hexdigest()
    key = hashlib.blake2b(repr((DECODER, size)).encode(), digest_size=32)
    for path in files.paths:
        key.update(os.fsencode(path.removeprefix(place)) + b"\0")
    key.update(files.sizes.astype("<i8").data)
    key.update(files.times.astype("<i8").data)
    return CacheFile(folder / f"{name}.images", key.digest(), len(files))


def _taken(pixels: Pixels, chosen: np.ndarray) -> Rows:
    """The images of these rows."""
    for row, has_several in zip(chosen, np.isin(chosen, pixels.several).tolist(), strict=True):
        yield pixels.values[row], has_several


def _in_memory(rows: Callable[[], Rows], count: int) -> Pixels:
    first, images = peek(rows())
    _, height, width = first.shape
    remedy = "take fewer, lower `image_size`, or give a `cache` that can hold them"
    check_memory(count * first.nbytes, f"{count} images of {width}x{height} pixels", remedy)
    values, several = np.empty((count, *first.shape), dtype=np.uint8), []
    for number, (image, has_several) in enumerate(images):
        values[number] = image
        if has_several:
            several.append(number)
    return Pixels(values, np.array(several, dtype=np.int64))
