"""The one image loader of all stages: bundled digits, CIFAR-10, or any folder of images sorted by class.

Images are uint8 tensors (N, C, H, W), labels int64 tensors (N,); intensity x = value / 255 lies in [0, 1].
"""

import math
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from snn.data_source import UNNAMED, DataSource, Split
from snn.runtime.errors import UserError, check
from snn.runtime.memory import check_memory
from snn.runtime.progress import progress

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}

SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}
"""(C, H, W) of data sets whose images all have one size."""


class Images(NamedTuple):
    """Labelled images of one split."""

    images: Tensor
    """uint8 (N, C, H, W)."""
    labels: Tensor
    """int64 (N,), indices into ``classes``."""
    classes: tuple[str, ...]
    data_source: DataSource = UNNAMED
    """Where they came from; the files of all stages record it."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width


def load_images(source: DataSource | str, split: Split, seed: int = 0, *, limit: int | None = None) -> Images:
    """Load one split of a data set.

    Args:
        source: which images, or only the name of the data set: "digits", "cifar10" or "folder:PATH".
        split: of the data set.
        seed: draws the class-balanced part when a limit is set.
        limit: at most so many images, in place of the source's limit on this split.

    Raises:
        UserError: an unknown or missing data set, a folder without ``train`` or ``test``, a class that occurs only in
            ``test``, and images that cannot be read or differ in size.
    """
    check(split in ("train", "test"), f"`split` {split!r}: expected 'train' or 'test'")
    source = DataSource(source) if isinstance(source, str) else source
    source = source.override(**{f"limit_{split}": limit})
    limit = source.limit(split)
    check(limit is None or limit >= 1, f"`limit_{split}` {limit}: at least one image is needed; give 1 or more")
    size = source.image_size
    check(size is None or size >= 4, f"`image_size` {size}: images need a side of at least 4 pixels; give 4 or more")
    if folder := _folder(source):
        return _load_folder(source, folder, split, seed)
    arrays, labels, classes = _digits(split) if source.data == "digits" else _cifar10(source, split)
    chosen = balanced_subset(labels, limit, seed)
    # Once as a list, and once as an array.
    _check_memory(2 * len(chosen), image_shape(source, split))
    images = np.stack([_to_array(Image.fromarray(arrays[i]), size) for i in chosen])
    return Images(torch.from_numpy(images), torch.from_numpy(labels[chosen]), classes, source)


def image_shape(source: DataSource, split: Split) -> tuple[int, int, int]:
    """(C, H, W) of the images of one split, of which at most one is read; errors as of :func:`load_images`."""
    size, folder = source.image_size, _folder(source)
    if folder is None:
        channels, height, width = SHAPES[source.data]
        return channels, size or height, size or width
    files = next(filter(None, (_image_files(folder / split / name) for name in _folder_classes(folder))), [])
    check(bool(files), f"{folder / split} holds no images; expected files under {split}/CLASS")
    channels, height, width = _read_image(files[0], size).shape
    return channels, height, width


def _folder(source: DataSource) -> Path | None:
    """PATH of a data set folder:PATH, None for one of :data:`SHAPES`."""
    kind, _, path = source.data.partition(":")
    if kind == "folder":
        return Path(path)
    check(source.data in SHAPES, f"`data` {source.data}: unknown data set; give digits, cifar10 or folder:PATH")
    return None


def balanced_subset(labels: np.ndarray, limit: int | None, seed: int) -> np.ndarray:
    """Sorted indices of at most ``limit`` items, class counts as equal as the data allow (None: all)."""
    if limit is None or limit >= len(labels):
        return np.arange(len(labels))
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    # Rank of each item within its class in drawn order: taking by rank fills all classes evenly.
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    tie_break = random.permutation(len(labels))
    return np.sort(np.lexsort((tie_break, rank))[:limit])


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


def _folder_classes(folder: Path) -> list[str]:
    """Names of the classes of a folder of images."""
    check(folder.is_dir(), f"`data` folder:{folder}: there is no such folder; give one that holds train/ and test/")
    names = []
    for part in (folder / "train", folder / "test"):
        check(
            part.is_dir(),
            f"`data` folder:{folder}: it has no folder {part.name!r}; expected train/CLASS and test/CLASS",
        )
        names.append(sorted(p.name for p in part.iterdir() if p.is_dir() and not p.name.startswith(".")))
    train, test = names
    check(len(train) >= 2, f"{folder / 'train'} holds {len(train)} class folders; at least 2 are needed")
    stray = sorted(set(test) - set(train))
    check(
        not stray,
        f"class {', '.join(stray)} is in {folder / 'test'} but not in {folder / 'train'}; "
        "add training images for it or remove it",
    )
    return train


def _load_folder(source: DataSource, folder: Path, split: Split, seed: int) -> Images:
    size, classes = source.image_size, _folder_classes(folder)
    files: list[Path] = []
    numbers: list[int] = []
    for label, name in enumerate(classes):
        members = _image_files(folder / split / name)
        check(
            bool(members) or split == "test",
            f"{folder / split / name} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}); add some or remove it",
        )
        files += members
        numbers += [label] * len(members)
    check(bool(files), f"{folder / split} holds no images; expected files under {split}/CLASS")
    labels = np.array(numbers, dtype=np.int64)
    chosen = balanced_subset(labels, source.limit(split), seed)
    first = _read_image(files[chosen[0]], size)
    _check_memory(len(chosen), first.shape)
    images = np.empty((len(chosen), *first.shape), dtype=np.uint8)
    for row, index in enumerate(progress(chosen, f"reading {split} images", "image")):
        image = _read_image(files[index], size)
        check(
            image.shape == first.shape,
            f"{files[index]} is {image.shape[2]}x{image.shape[1]} pixels, {files[chosen[0]]} is "
            f"{first.shape[2]}x{first.shape[1]}; bring them to one size with `image_size`",
        )
        images[row] = image
    return Images(torch.from_numpy(images), torch.from_numpy(labels[chosen]), tuple(classes), source)


def _check_memory(count: int, shape: tuple[int, ...]) -> None:
    what = f"{count} images of {shape[2]}x{shape[1]} pixels"
    check_memory(count * math.prod(shape), what, "take fewer, or lower `image_size`")


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())


def _read_image(path: Path, size: int | None) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            # Pillow warns of oddities in files that it reads all the same.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                return _to_array(_to_rgb(image), size)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} is not a readable image ({error}); repair or remove it") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; 16-bit grey is scaled, transparent parts become black."""
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: the range of its values is unknown; store it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("RGB")


def _to_array(image: Image.Image, size: int | None) -> np.ndarray:
    """uint8 (C, H, W); bilinear with antialiasing where the size changes."""
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
