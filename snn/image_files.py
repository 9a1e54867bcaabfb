"""Image files of a data set folder:PATH: which are read and in what order, and how each becomes an array.

Files are found as by torchvision's ImageFolder: in PATH/SPLIT/CLASS and all folders in it, through links, too.
:func:`find_layout` says which other forms a folder may have.
"""

import os
import stat
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image, ImageOps, features
from PIL import __version__ as pillow

from snn.data_source import Split
from snn.runtime.errors import UserError, check
from snn.runtime.progress import progress

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Pillow's names of these. Others are not tried, whatever a file poses as: some start other programs."""
RESAMPLING = Image.Resampling.BILINEAR
"""With antialiasing, as Pillow does it."""
DECODER = ("1", pillow, *(str(features.version(codec)) for codec in ("libjpeg_turbo", "jpg", "libtiff", "webp")))
"""Version of what :func:`read_image` makes of a file: of this module (to be raised when any pixel changes), of Pillow,
and of the libraries that decode for it."""
SMALLEST = 4
"""Smallest side of an image, in pixels."""
Fit = Literal["crop", "pad", "squash"]
"""How a photograph of another shape becomes an image of a given one: the middle is cut out ("crop"), black borders are
added ("pad"), or it is distorted ("squash")."""
SHARE = 10
"""Of so many images without labels one is a test image."""
UNLABELLED = "; images without labels serve snn.learn and bridge.convert alone"
SEVERAL_FRAMES = "images of several frames, of which the first is read"


class Layout(NamedTuple):
    """Where the images of one split of a folder lie."""

    place: Path
    """The folder that holds the class folders, or the images themselves."""
    classes: tuple[str, ...] = ()
    """Names of the class folders, in the order of the labels; none: the images have no labels."""
    untested: tuple[str, ...] = ()
    """Those among them that have no folder in ``test``."""
    apart: tuple[Path, ...] = ()
    """Folders in which no image without a label is looked for."""
    shared: bool = False
    """Whether the images without labels serve both splits (:func:`kept_apart`)."""

    def files(self, skipped: Counter[str] | None = None) -> "Listing":
        """Image files, class by class and in the order of ImageFolder.

        ``skipped`` counts what is not read, by reason.
        """
        skipped = Counter() if skipped is None else skipped
        if not self.classes:
            files = Listing.of([_listed(self.place, skipped, self.apart)])
            return replace(files, labels=np.full(len(files), -1, dtype=np.int64))
        for entry in self.place.iterdir():
            if entry.name.startswith("."):
                skipped["names that start with a dot"] += 1
            elif entry.name not in self.classes:
                skipped["files outside the class folders"] += 1
        return Listing.of(_listed_in_class(self.place / name, skipped) for name in self.classes)


Listed = tuple[str, os.stat_result]
"""Path of an image file, and what the system says of it."""


@dataclass(frozen=True, eq=False)
class Listing:
    """N image files."""

    paths: list[str]
    sizes: np.ndarray
    """Bytes of each file, int64 (N,)."""
    times: np.ndarray
    """When each was modified, in ns since 1970, int64 (N,)."""
    labels: np.ndarray
    """Class of each, int64 (N,); -1 without classes."""

    @classmethod
    def of(cls, groups: Iterable[Iterable[Listed]]) -> "Listing":
        """Files of each class."""
        paths: list[str] = []
        # Packed: of a million files, an object for each number would take 100 MB.
        sizes, times, labels = array("q"), array("q"), array("q")
        for label, group in enumerate(groups):
            for path, status in group:
                paths.append(path)
                sizes.append(status.st_size)
                times.append(status.st_mtime_ns)
                labels.append(label)
        return cls(paths, *(np.frombuffer(values, np.int64) for values in (sizes, times, labels)))

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Sequence[int] | np.ndarray) -> "Listing":
        """The files of these rows."""
        return Listing([self.paths[row] for row in rows], self.sizes[rows], self.times[rows], self.labels[rows])


def find_layout(folder: Path, split: Split, labels: bool = True) -> Layout:
    """Where the images of one split of ``folder`` lie.

    A folder has one of these forms:

    - ``train/CLASS`` and ``test/CLASS``: both splits, with labels;
    - ``test/CLASS`` alone: a test split, whose classes are its folders;
    - ``CLASS`` folders alone: a test split, whose classes are these; without labels both splits;
    - ``train`` without class folders, or without ``test``, or images and nothing else: no labels, both splits.

    The names ``train`` and ``test`` count as the splits' unless neither has a folder in it and other folders lie beside
    them: then all are classes.

    Args:
        folder: that is to be read.
        split: of its images.
        labels: whether they are needed. Where they are not, images of every form can be taken.

    Raises:
        UserError: there is no such folder, or not this split with labels in it; less than two classes in ``train``, or
            a class that is in ``test`` alone.
    """
    name = f"`data` folder:{folder}"
    check(folder.is_dir(), f"{name}: there is no such folder; give one that holds train/ and test/")
    train, test = folder / "train", folder / "test"
    inside = {part: _folder_names(part) for part in (train, test) if part.is_dir()}
    others = [other for other in _folder_names(folder) if other not in ("train", "test")]
    if not inside or (others and not any(inside.values())):
        classes = tuple(_folder_names(folder))
        if not labels:
            return Layout(folder, shared=True)
        check(split == "test", f"{name}: it has no folder 'train'; expected train/CLASS and test/CLASS{UNLABELLED}")
        check(bool(classes), f"{name}: its images have no labels; expected test/CLASS, or folders CLASS directly in it")
        return Layout(folder, classes)
    names = inside.get(train, [])
    if len(names) >= 2 and test in inside and (labels or split == "train" or inside[test]):
        return _with_both(train, test, inside, split)
    if not labels:
        check(train in inside or split == "test", f"{name}: it holds test images only; expected images in train/, too")
        if test in inside:
            return Layout(train, apart=(folder, test)) if split == "train" else Layout(test, apart=(folder, train))
        return Layout(train, apart=(folder,), shared=True)
    if split == "test" and test in inside and not names:
        check(bool(inside[test]), f"{test} holds no class folders; expected test/CLASS")
        return Layout(test, tuple(inside[test]))
    for part in (train, test):
        check(
            part in inside, f"{name}: it has no folder {part.name!r}; expected train/CLASS and test/CLASS{UNLABELLED}"
        )
    check(bool(names), f"{train} holds no class folders; expected train/CLASS{UNLABELLED}")
    return _with_both(train, test, inside, split)


def _with_both(train: Path, test: Path, inside: dict[Path, list[str]], split: Split) -> Layout:
    """The layout of a folder with ``train/CLASS`` and ``test/CLASS``; ``inside`` has the names of their folders."""
    names = inside[train]
    check(len(names) >= 2, f"{train} holds {len(names)} class folders; at least 2 are needed")
    stray = sorted(set(inside[test]) - set(names))
    check(
        not stray,
        f"class {', '.join(stray)} is in {test} but not in {train}; add training images for it or remove it",
    )
    untested = tuple(name for name in names if name not in inside[test])
    return Layout(train if split == "train" else test, tuple(names), untested)


def _folder_names(folder: Path) -> list[str]:
    try:
        return sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    except OSError as error:
        raise _unreadable(error) from error


def kept_apart(files: Sequence[str | Path], split: Split) -> list[int]:
    """Rows of one split of images without labels, all of which lie together: a tenth, at least one, are test images.

    They are drawn once, whatever the seed, so that all stages agree on them. Raises :class:`UserError` for one image.
    """
    check(len(files) >= 2, f"{files[0]} is the only image: give 2 or more, of which one is kept for tests")
    chosen = np.random.default_rng(0).permutation(len(files))[: max(1, len(files) // SHARE)]
    tested = set(chosen.tolist())
    return [row for row in range(len(files)) if (row in tested) == (split == "test")]


def class_files(folder: Path, skipped: Counter[str] | None = None) -> Iterator[Path]:
    """Image files in ``folder`` and all folders in it (none if it is not there), in the order of ImageFolder.

    ``skipped`` counts what is not read, by reason.
    """
    return (Path(path) for path, _ in _listed_in_class(folder, Counter() if skipped is None else skipped))


def image_files(folder: Path, skipped: Counter[str], apart: Iterable[Path] = ()) -> Iterator[Path]:
    """Image files in ``folder`` and all folders in it but those of ``apart``, in the order of ImageFolder.

    ``skipped`` counts what is not read, by reason.
    """
    return (Path(path) for path, _ in _listed(folder, skipped, apart))


def _listed_in_class(folder: Path, skipped: Counter[str]) -> Iterator[Listed]:
    # Through a link to another class, or to what lies above, its images would be taken for this one's.
    if not folder.is_dir():
        return
    others = [folder.parent, *(path for path in folder.parent.iterdir() if path != folder and not path.is_symlink())]
    yield from _listed(folder, skipped, apart=others)


def _listed(folder: Path, skipped: Counter[str], apart: Iterable[Path] = ()) -> Iterator[Listed]:
    for place, names in sorted(_folders(folder, skipped, apart)):
        for name in sorted(names):
            path = os.path.join(place, name)
            if name.startswith("."):
                skipped["names that start with a dot"] += 1
            elif os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:
                skipped["files that are no images"] += 1
            elif status := _status(path):
                yield path, status
            else:
                skipped["broken links" if os.path.islink(path) else "files that are no images"] += 1


def _status(path: str) -> os.stat_result | None:
    """What the system says of a regular file; None of anything else."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def linked_folders(folder: Path) -> list[Path]:
    """``folder``, and all folders to which links in it lead: images are read from them."""
    return [folder, *(Path(place) for place, _ in _folders(folder, Counter()) if os.path.islink(place))]


def _folders(folder: Path, skipped: Counter[str], apart: Iterable[Path] = ()) -> Iterator[tuple[str, list[str]]]:
    """``folder`` and all folders in it, each with the names of its files; every folder once, however links lead to it.

    Those of ``apart`` are left out. Several links to one folder would make a tree that grows without bounds, or has no
    end.
    """

    def unreadable(error: OSError) -> None:
        raise _unreadable(error) from error

    if not folder.is_dir():
        return
    own = _identity(folder)
    seen = {_identity(path) for path in apart if path.is_dir()} - {own}
    for place, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        identity = _identity(place)
        if identity in seen:
            skipped["links to folders that are read already"] += 1
            folders.clear()
            continue
        seen.add(identity)
        skipped["names that start with a dot"] += sum(name.startswith(".") for name in folders)
        # In a fixed order: of several links to a folder the first counts.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield place, names


def _unreadable(error: OSError) -> UserError:
    return UserError(f"cannot read the folder {error.filename}: {error.strerror}; make it readable or remove it")


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def read_images(paths: Sequence[str], size: int | None, split: Split) -> Generator[tuple[np.ndarray, bool], None, None]:
    """Each file as by :func:`read_image`, and whether it has several frames.

    Raises :class:`UserError` as that does, and for images of less than 4 pixels a side or of different sizes.
    """
    shape: tuple[int, ...] = ()
    for path in progress(paths, f"reading {split} images", "image"):
        frames = Counter[str]()
        image = read_image(path, size, frames)
        _, height, width = image.shape
        check(
            bool(shape) or min(height, width) >= SMALLEST,
            f"{path} is {width}x{height} pixels: images need a side of at least {SMALLEST} pixels; enlarge them with "
            "`image_size`",
        )
        shape = shape or image.shape
        check(
            image.shape == shape,
            f"{path} is {width}x{height} pixels, {paths[0]} is {shape[2]}x{shape[1]}; bring them to one size with "
            "`image_size`",
        )
        yield image, bool(frames)


def read_image(path: str | Path, size: int | None, skipped: Counter[str] | None = None) -> np.ndarray:
    """RGB image, uint8 (3, H, W), turned as its EXIF orientation says, of ``size`` x ``size`` pixels (None: its own).

    ``skipped`` counts images of several frames. Raises :class:`UserError` for a file that cannot be read.
    """
    return read_as(path, lambda image: to_array(image, size), skipped)


def read_measured(path: str | Path, size: int | None) -> tuple[np.ndarray, int]:
    """:func:`read_image`, and how many pixels the file has."""
    pixels = 0

    def convert(image: Image.Image) -> np.ndarray:
        nonlocal pixels
        pixels = image.width * image.height
        return to_array(image, size)

    return read_as(path, convert), pixels


def read_fitted(
    path: Path, width: int, height: int, fit: Fit, grey: bool, skipped: Counter[str] | None = None
) -> np.ndarray:
    """:func:`read_image` for photographs of any shape: uint8 (3, ``height``, ``width``), or (1, ...) if ``grey``.

    Where the size changes, by the same filter. See :data:`Fit`.
    """

    def fitted(image: Image.Image) -> np.ndarray:
        image = FITS[fit](image, (width, height))
        return to_array(image.convert("L") if grey else image, None)

    return read_as(path, fitted, skipped)


def _crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return ImageOps.fit(image, size, RESAMPLING)


def _pad(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    share = min(new / old for new, old in zip(size, image.size, strict=True))
    # Of a very narrow photograph at least one pixel is left.
    width, height = (min(new, max(1, round(old * share))) for new, old in zip(size, image.size, strict=True))
    canvas = Image.new(image.mode, size)
    canvas.paste(image.resize((width, height), RESAMPLING), ((size[0] - width) // 2, (size[1] - height) // 2))
    return canvas


def _squash(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, RESAMPLING)


FITS: dict[Fit, Callable[[Image.Image, tuple[int, int]], Image.Image]] = {
    "crop": _crop,
    "pad": _pad,
    "squash": _squash,
}


def read_as(
    path: str | Path, convert: Callable[[Image.Image], np.ndarray], skipped: Counter[str] | None = None
) -> np.ndarray:
    """What ``convert`` makes of an image file, given as 8-bit RGB, turned as its EXIF orientation says.

    Raises :class:`UserError` for a file that cannot be read; see :func:`read_image`.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of oddities in files that it reads all the same.
            warnings.simplefilter("ignore")
            # What it calls a bomb would take gigabytes.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if skipped is not None and getattr(image, "is_animated", False):
                    skipped[SEVERAL_FRAMES] += 1
                ImageOps.exif_transpose(image, in_place=True)
                return convert(_to_rgb(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        largest = f"{(Image.MAX_IMAGE_PIXELS or 0) // 10**6} million pixels"
        raise UserError(
            f"{path} is not a readable image (more than {largest}, as of a decompression bomb); make it smaller"
        ) from error
    except Exception as error:  # damaged files end in one of many, struct.error and IndexError among them
        reason = str(error) or type(error).__name__
        raise UserError(f"{path} is not a readable image ({reason}); repair or remove it") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB; 16-bit grey is scaled, transparent parts become black."""
    # Pillow reads files of more than 8 bits of the Netpbm formats as I, from 0 to 65535.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode}: the range of its values is unknown; store it with 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
    return image.convert("RGB")


def to_array(image: Image.Image, size: int | None) -> np.ndarray:
    """uint8 (C, H, W); bilinear with antialiasing where the size changes."""
    if size is not None and image.size != (size, size):
        image = image.resize((size, size), RESAMPLING)
    array = np.asarray(image)
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
