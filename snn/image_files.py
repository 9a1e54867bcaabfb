"""Image files of a data set folder:PATH: which are read and in what order, and how each becomes an array.

Files are found as by torchvision's ImageFolder: in PATH/SPLIT/CLASS and all folders in it, through links, too.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from snn.runtime.errors import UserError, check

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp"}
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
"""Pillow's names of these. Others are not tried, whatever a file poses as: some start other programs."""
RESAMPLING = Image.Resampling.BILINEAR
"""With antialiasing, as Pillow does it."""
Fit = Literal["crop", "pad", "squash"]
"""How a photograph of another shape becomes an image of a given one: the middle is cut out ("crop"), black borders are
added ("pad"), or it is distorted ("squash")."""
SEVERAL_FRAMES = "images of several frames, of which the first is read"


def folder_classes(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the classes of ``folder``, sorted, and of those among them that have no folder in its ``test``.

    Raises :class:`UserError` without ``train`` or ``test``, for less than two classes, and for one in ``test`` alone.
    """
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
    return train, [name for name in train if name not in test]


def split_files(part: Path, classes: list[str]) -> tuple[list[list[Path]], Counter[str]]:
    """Image files of each class in ``part``, a folder PATH/SPLIT, and how many entries are not read, by reason."""
    skipped: Counter[str] = Counter()
    for entry in part.iterdir():
        if entry.name.startswith("."):
            skipped["names that start with a dot"] += 1
        elif entry.name not in classes:
            skipped["files outside the class folders"] += 1
    return [list(class_files(part / name, skipped)) for name in classes], skipped


def class_files(folder: Path, skipped: Counter[str] | None = None) -> Iterator[Path]:
    """Image files in ``folder`` and all folders in it (none if it is not there), in the order of ImageFolder.

    ``skipped`` counts what is not read, by reason.
    """
    skipped = Counter() if skipped is None else skipped
    # Through a link to another class, or to what lies above, its images would be taken for this one's.
    if not folder.is_dir():
        return
    others = [folder.parent, *(path for path in folder.parent.iterdir() if path != folder and not path.is_symlink())]
    yield from image_files(folder, skipped, apart=others)


def image_files(folder: Path, skipped: Counter[str], apart: Iterable[Path] = ()) -> Iterator[Path]:
    """Image files in ``folder`` and all folders in it but those of ``apart``, in the order of ImageFolder.

    ``skipped`` counts what is not read, by reason.
    """
    for place, names in sorted(_folders(folder, skipped, apart)):
        for name in sorted(names):
            path = os.path.join(place, name)
            if name.startswith("."):
                skipped["names that start with a dot"] += 1
            elif Path(name).suffix.lower() not in IMAGE_SUFFIXES:
                skipped["files that are no images"] += 1
            elif os.path.isfile(path):
                yield Path(path)
            else:
                skipped["broken links" if os.path.islink(path) else "files that are no images"] += 1


def linked_folders(folder: Path) -> list[Path]:
    """``folder``, and all folders to which links in it lead: images are read from them."""
    return [folder, *(Path(place) for place, _ in _folders(folder, Counter()) if os.path.islink(place))]


def _folders(folder: Path, skipped: Counter[str], apart: Iterable[Path] = ()) -> Iterator[tuple[str, list[str]]]:
    """``folder`` and all folders in it, each with the names of its files; every folder once, however links lead to it.

    Those of ``apart`` are left out. Several links to one folder would make a tree that grows without bounds, or has no
    end.
    """

    def unreadable(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename}: {error.strerror}; make it readable or remove it")

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


def _identity(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def read_image(path: Path, size: int | None, skipped: Counter[str] | None = None) -> np.ndarray:
    """RGB image, uint8 (3, H, W), turned as its EXIF orientation says, of ``size`` x ``size`` pixels (None: its own).

    ``skipped`` counts images of several frames. Raises :class:`UserError` for a file that cannot be read.
    """
    return read_as(path, lambda image: to_array(image, size), skipped)


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
    path: Path, convert: Callable[[Image.Image], np.ndarray], skipped: Counter[str] | None = None
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
    except Exception as error:  # damaged files end in one of many, struct.error and IndexError among them
        raise UserError(f"{path} is not a readable image ({error}); repair or remove it") from error


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
