"""The one image loader of all stages: bundled digits, CIFAR-10, or any folder of images sorted by class.

Images are uint8 tensors (N, C, H, W), labels int64 tensors (N,); intensity x = value / 255 lies in [0, 1].
"""

import math
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from snn.data_source import LENGTHS, UNNAMED, DataSource, Split, check_data
from snn.decoded import as_tensor, read_pixels
from snn.image_cache import AUTO, NONE, cache_folder
from snn.image_files import (
    IMAGE_SUFFIXES,
    SEVERAL_FRAMES,
    SMALLEST,
    Layout,
    class_files,
    find_layout,
    kept_apart,
    linked_folders,
    read_image,
    to_array,
)
from snn.runtime.errors import UserError, check
from snn.runtime.memory import check_memory
from snn.runtime.processes import first_process
from snn.runtime.progress import warn, warn_once

Array = Tensor | np.ndarray

MOST_CLASSES = 100_000
"""Largest number of classes that labels without names of their classes can mean."""
DIGEST_ROWS = 64
"""Rows of a tensor that are added to a digest at once."""
SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}
"""(C, H, W) of data sets whose images all have one size."""


class Images(NamedTuple):
    """Images of one split, with or without labels."""

    images: Tensor
    """uint8 (N, C, H, W)."""
    labels: Tensor
    """int64 (N,), indices into ``classes``; -1 without labels."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the labels; none: the images have no labels."""
    data_source: DataSource = UNNAMED
    """Where they came from; the files of all stages record it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def split(self, size: int) -> "Iterator[Images]":
        """The images in their order, ``size`` at a time."""
        for images, labels in zip(self.images.split(size), self.labels.split(size), strict=True):
            yield self._replace(images=images, labels=labels)


def load_images(
    source: DataSource | str,
    split: Split,
    seed: int = 0,
    *,
    limit: int | None = None,
    labels: bool = True,
    cache: str | Path = NONE,
) -> Images:
    """Load one split of a data set.

    Args:
        source: which images, or only the name of the data set: "digits", "cifar10" or "folder:PATH".
        split: of the data set.
        seed: draws the class-balanced part when a limit is set.
        limit: at most so many images, in place of the source's limit on this split.
        labels: whether they are needed. If not, a folder may hold images that are not sorted by class, which come
            without labels: all of its images, or those of ``train`` or ``test``. Where there is no ``test``, a tenth of
            the images are the test split (:func:`snn.image_files.kept_apart`).
        cache: folder in which the decoded images of "folder:PATH" are kept. The next call maps them from there into
            memory: ``images`` is then a tensor that is only to be read, and can be larger than the memory. "auto": the
            folder ``safe-dnn`` in the user's cache folder, as the commands do; "none": a call writes nothing, and
            ``images`` lies in memory. Few images lie there in any case (:func:`snn.decoded.worth_keeping`).

    Raises:
        UserError: an unknown or missing data set, a folder of another form (:func:`snn.image_files.find_layout`), and
            images that cannot be read, differ in size or have less than 4 pixels a side; images without a cache that
            do not fit into the memory; a cache among the images.

    Said on stderr are what a folder holds but is not read, classes without test images, and why a cache cannot be
    written, in which case the images are decoded into memory.
    """
    check(split in ("train", "test"), f"`split` {split!r}: expected 'train' or 'test'")
    source = DataSource(source) if isinstance(source, str) else source
    source = source.override(**{f"limit_{split}": limit})
    if folder := _folder(source):
        return _load_folder(source, folder, split, seed, labels, cache)
    if str(cache) not in (AUTO, NONE):
        warn_once(f"`cache` {cache} has no effect without `data` folder:PATH")
    arrays, targets, classes = _digits(split) if source.data == "digits" else _cifar10(source, split)
    chosen = balanced_subset(targets, source.limit(split), seed)
    _, height, width = shape = image_shape(source, split)
    what = f"{len(chosen)} images of {width}x{height} pixels"
    # Once as a list, and once as an array.
    check_memory(2 * len(chosen) * math.prod(shape), what, "take fewer, or lower `image_size`")
    images = np.stack([to_array(Image.fromarray(arrays[i]), source.image_size) for i in chosen])
    return Images(torch.from_numpy(images), torch.from_numpy(targets[chosen]), classes, source)


def image_shape(source: DataSource, split: Split) -> tuple[int, int, int]:
    """(C, H, W) of the images of one split, of which at most one is read; errors as of :func:`load_images`."""
    size, folder = source.image_size, _folder(source)
    if folder is None:
        channels, height, width = SHAPES[source.data]
        return channels, size or height, size or width
    layout = find_layout(folder, split)
    first = next((file for name in layout.classes for file in class_files(layout.place / name)), None)
    if first is None:
        raise UserError(_empty(folder, layout, split))
    channels, height, width = read_image(first, size).shape
    return channels, height, width


def image_folders(source: DataSource) -> list[Path]:
    """Folders of the image files of a data set; a command that reads them writes nothing there."""
    if source.data == "cifar10":
        return [source.root / "cifar-10-batches-py"]
    return linked_folders(source.image_folder) if source.image_folder else []


def _folder(source: DataSource) -> Path | None:
    """PATH of a data set folder:PATH, None for one of :data:`SHAPES`."""
    check_data("data", source.data)
    return source.image_folder


def as_images(images: Images | Array) -> Tensor:
    """Images as all stages take them, of a tensor or NumPy array, whose memory they share: uint8 (N, C, H, W).

    Raises :class:`UserError` for another type or shape, for no images, and for sides of less than 4 pixels.
    """
    pixels = images.images if isinstance(images, Images) else images
    check(isinstance(pixels, Array), f"images are of type {type(pixels).__name__}; give a tensor or NumPy array")
    _check_plain(pixels, "images")
    kind, shape = _kind(pixels), tuple(pixels.shape)
    check(kind == "uint8", f"images are {kind}; give uint8, from 0 to 255 (intensities in [0, 1] times 255, rounded)")
    # So narrow an image with so many channels is one whose channels stand last.
    swapped = len(shape) == 4 and shape[3] <= 4 < shape[1]
    remedy = "; channels come before height: give permute(0, 3, 1, 2) of these" if swapped else ""
    check(
        len(shape) == 4 and not swapped and shape[1] >= 1,
        f"images have shape {shape}; expected (N, C, H, W), of N images with C channels{remedy}",
    )
    check(len(pixels) >= 1, f"images have shape {shape}: there are none; give at least one")
    check(
        min(shape[2:]) >= SMALLEST and max(shape[2:]) <= LENGTHS.high,
        f"images have {shape[3]}x{shape[2]} pixels; expected sides of {SMALLEST} to {LENGTHS.high} pixels",
    )
    return _shared(pixels)


def as_labelled(data: Images | tuple[Array, Array]) -> Images:
    """Images with their labels, int64 (N,), of tensors or NumPy arrays, on the CPU.

    Where classes have no names, these are their numbers.

    Raises :class:`UserError` as :func:`as_images`, and for labels that are not one whole number for each image, from 0
    to below the number of classes.
    """
    check(isinstance(data, tuple) and len(data) >= 2, f"data of type {type(data).__name__}: give images and labels")
    images, labels = as_images(data[0]).cpu(), data[1]
    if isinstance(data, Images):
        check(bool(data.classes), f"images of {data.data_source.data} have no labels; sort them into folders CLASS")
    check(isinstance(labels, Array), f"labels are of type {type(labels).__name__}; give a tensor or NumPy array")
    _check_plain(labels, "labels")
    kind, shape = _kind(labels), tuple(labels.shape)
    check("int" in kind, f"labels are {kind}; give whole numbers as int64, the index of each image's class")
    check(shape == (len(images),), f"labels have shape {shape} for {len(images)} images; give one for each, (N,)")
    labels = _tensor(labels).long().cpu()
    low, high = int(labels.min()), int(labels.max())
    classes = data.classes if isinstance(data, Images) else tuple(map(str, range(min(high + 1, MOST_CLASSES))))
    expected = f"0 to {len(classes) - 1}, indices of {len(classes)} classes" if classes else "0 or more"
    check(low >= 0 and high < len(classes), f"labels go from {low} to {high}; expected {expected}")
    return Images(images, labels, classes, data.data_source if isinstance(data, Images) else UNNAMED)


def _check_plain(values: Array, what: str) -> None:
    """Raise :class:`UserError` for an array without a value in each place, or with values that stand for others."""
    if isinstance(values, Tensor):
        plain = values.layout == torch.strided and not (values.is_meta or values.is_nested or values.is_quantized)
    else:
        plain = not isinstance(values, np.ma.MaskedArray)
    check(plain, f"{what} are sparse, masked, nested, quantized or without values; give a plain array of all")


def _kind(values: Array) -> str:
    """Name of the type of the elements."""
    return str(values.dtype).removeprefix("torch.") if isinstance(values, Tensor) else values.dtype.name


def _tensor(values: Array) -> Tensor:
    if isinstance(values, Tensor):
        return values
    # A copy: not every array has a layout and byte order that a tensor can have, and some are only to be read.
    return torch.from_numpy(np.array(values, dtype=values.dtype.newbyteorder("="), order="C"))


def _shared(values: Array) -> Tensor:
    """A tensor over the memory of an array, which may be a file that is only mapped; a copy of one in another order."""
    if isinstance(values, Tensor) or not values.flags.c_contiguous:
        return _tensor(values)
    with warnings.catch_warnings():
        # Of an array that is only to be read: nothing here writes to images.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


def in_bytes(values: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor on the CPU, in the order of its elements, for a digest; it is not copied as a whole."""
    for part in values.split(DIGEST_ROWS) if values.ndim else (values,):
        yield part.contiguous().numpy().data


def few(names: Sequence[str]) -> str:
    """Names for a message, at most five of them."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def balanced_subset(labels: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """Sorted indices of at most ``limit`` items, class counts as equal as the data allow (None: all)."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    rank, _, tie_break = _drawn_ranks(labels, seed)
    # Taking by rank fills all classes evenly.
    return np.sort(np.lexsort((tie_break, rank))[:limit])


def proportional_subset(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Sorted indices of at most ``count`` items, class counts in proportion to those of all.

    Of each class at least one item is left. Of classes of one size, the items are those of :func:`balanced_subset`.
    """
    rank, size, tie_break = _drawn_ranks(labels, seed)
    # Webster's method: of shares between two whole numbers it takes the nearer one.
    order = np.lexsort((tie_break, (rank + 0.5) / size))
    return np.sort(order[(rank < size - 1)[order]][:count])


def _drawn_ranks(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each item: its rank within its class in drawn order, the size of its class, and a drawn number for ties."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    rank, size = np.empty(len(labels), dtype=np.int64), np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members], size[members] = np.arange(len(members)), len(members)
    return rank, size, random.permutation(len(labels))


def _digits(split: Split) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    # Values 0..16 become 0..255. The split is fixed: every run and every stage must agree on it.
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    parts = train_test_split(np.arange(len(images)), test_size=600, stratify=digits.target, random_state=0)
    chosen = np.sort(parts[0] if split == "train" else parts[1])
    return images[chosen], digits.target[chosen].astype(np.int64), tuple(str(d) for d in range(10))


def _cifar10(source: DataSource, split: Split) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    from torchvision.datasets import CIFAR10

    try:
        dataset = CIFAR10(source.root, train=split == "train", download=source.download)
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"`data` cifar10: cannot load it from {source.root} ({error}); give its folder with `root`, or fetch it: "
            "python -m snn.learn --data cifar10 --download"
        ) from error
    return dataset.data, np.array(dataset.targets, dtype=np.int64), tuple(dataset.classes)


def _load_folder(source: DataSource, folder: Path, split: Split, seed: int, labels: bool, cache: str | Path) -> Images:
    layout, kept = find_layout(folder, split, labels), cache_folder(cache, folder)
    part, classes, skipped = layout.place, layout.classes, Counter[str]()
    files = layout.files(skipped)
    counts = np.bincount(files.labels, minlength=len(classes)) if classes else ()
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    check(
        not empty or split == "test",
        f"{part} holds no images of class {few(empty)} ({', '.join(sorted(IMAGE_SUFFIXES))}); add some or remove it",
    )
    check(len(files) > 0, _empty(folder, layout, split))
    if layout.shared:
        total, files = len(files), files.take(kept_apart(files.paths, split))
        if split == "train" and first_process():
            warn(f"{part}: {total - len(files)} of {total} images without labels are kept apart, as test images")
    chosen = balanced_subset(files.labels, source.limit(split), seed)
    pixels = read_pixels(files, chosen, layout, split, source.image_size, kept)
    skipped[SEVERAL_FRAMES] = len(pixels.several)
    if first_process():
        _tell(part, skipped, folder / "test" if layout.untested else part, empty or layout.untested)
    return Images(as_tensor(pixels), torch.from_numpy(files.labels[chosen]), classes, source)


def _empty(folder: Path, layout: Layout, split: Split) -> str:
    """Message for a folder without images."""
    if not layout.classes:
        return f"{layout.place} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); add some"
    return f"{layout.place} holds no images; expected files under {'' if layout.place == folder else f'{split}/'}CLASS"


def _tell(part: Path, skipped: Counter[str], test: Path, untested: Sequence[str]) -> None:
    """Say what of a folder of images is not read, and which classes have no test images in the folder ``test``."""
    frames = skipped.pop(SEVERAL_FRAMES, 0)
    counts = [f"{reason}: {count}" for reason, count in skipped.items() if count]
    if counts:
        warn(f"{part}: not read are {', '.join(counts)}")
    if frames:
        warn(f"{part}: {SEVERAL_FRAMES}: {frames}")
    if untested:
        warn(f"{test} holds no images of class {few(untested)}: results on it say nothing about that")
