"""Which images a stage works on, and how its files record that."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from snn.runtime.errors import check
from snn.runtime.progress import warn
from snn.runtime.ranges import Range, check_fields
from snn.runtime.tree import Stored, Tree, from_tree

Split = Literal["train", "test"]

DATA_SETS = ("digits", "cifar10")
FOLDER = "folder:"
"""Starts the name of a data set that is a folder of images."""
IMAGES = Range(1, 10**9)
"""A number of images."""
SIDE = Range(4, 4096, unit="pixels")
"""Of images that are resized: all values of a layer on a larger one would not fit into memory."""
LENGTHS = Range(1, 2**14)
"""Channels, height and width of images, which are not resized."""


@dataclass(frozen=True)
class DataSource:
    """Which images a stage works on."""

    data: str = "digits"
    """digits (bundled with scikit-learn, 8x8, grey), cifar10 (torchvision's), or folder:PATH with train/CLASS and
    test/CLASS folders of images; snn.learn also takes a folder of images that are not sorted."""
    root: Path = Path("data")
    """Folder that holds, or with --download receives, CIFAR-10."""
    download: bool = False
    """Fetch CIFAR-10 into --root if it is not there."""
    image_size: Annotated[int | None, SIDE] = None
    """Resize images to this height and width, in pixels; None keeps their own size."""
    limit_train: Annotated[int | None, IMAGES] = None
    """Take at most this many training images, balanced over classes and drawn with --seed; None takes all."""
    limit_test: Annotated[int | None, IMAGES] = None
    """The same for test images; the stages before hybrid.evaluate only record it, as its default."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def unused(self) -> dict[str, str]:
        """Names of fields that have no effect here, each with what it would need."""
        return {} if self.data == "cifar10" else dict.fromkeys(("root", "download"), "`data` cifar10")

    def limit(self, split: Split) -> int | None:
        """The limit on one split."""
        return self.limit_train if split == "train" else self.limit_test

    @property
    def image_folder(self) -> Path | None:
        """PATH of folder:PATH, with ~ as the home folder; None for another data set."""
        path = self.data.removeprefix(FOLDER)
        check(path != "", f"`data` {self.data}: give {FOLDER}PATH")
        return Path(os.path.expanduser(path)) if path != self.data else None

    def override(self, **values: Any) -> "DataSource":
        """A copy with those fields replaced that are not None."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})


def check_data(argument: str, data: str) -> None:
    """Raise :class:`UserError` unless ``data``, the value of an argument, is the form of a data set's name."""
    check(
        data in DATA_SETS or (data.startswith(FOLDER) and data != FOLDER),
        f"`{argument}` {data}: unknown data set; give {', '.join(DATA_SETS)} or {FOLDER}PATH",
    )


def check_recorded(
    source: DataSource, data: str | None, file: object, remedy: str = "say with `data` where they are"
) -> None:
    """Raise :class:`UserError` if ``file`` was made with a folder of images that is not here, and ``data`` is None."""
    folder = source.image_folder
    check(
        data is not None or folder is None or folder.is_dir(),
        f"{file} was made with the images of {source.data}, and there is no such folder here: {remedy}",
    )


def note_root(source: DataSource, root: Path | None) -> None:
    """Warn of a ``root`` that was given for images that do not lie there."""
    if root is not None and "root" in source.unused:
        warn(f"`root` {root} has no effect without {source.unused['root']}")


UNNAMED = DataSource(data="unnamed")
"""Of images that did not come from a loader of this project."""
LOCATION = ("input/root", "input/download")
"""Paths in a file that say where images lie, not which they are: no part of its digest."""


def input_tree(data_source: DataSource, shape: tuple[int, int, int]) -> Tree:
    """The ``/input`` group of all files: data and image shape (C, H, W)."""
    return asdict(data_source) | dict(zip(("channels", "height", "width"), shape, strict=True))


def read_input(tree: Stored) -> tuple[DataSource, tuple[int, int, int]]:
    """What :func:`input_tree` stored."""
    channels, height, width = (
        tree.whole(name, int(LENGTHS.low), int(LENGTHS.high)) for name in ("channels", "height", "width")
    )
    return from_tree(DataSource, tree, root=Path(tree.text("root"))), (channels, height, width)
