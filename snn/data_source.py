"""Which images a stage works on, and how its files record that."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from snn.runtime.tree import Stored, Tree, from_tree

Split = Literal["train", "test"]


@dataclass(frozen=True)
class DataSource:
    """Which images a stage works on."""

    data: str = "digits"
    """digits (bundled with scikit-learn, 8x8, grey), cifar10 (torchvision's), or folder:PATH with train/CLASS and
    test/CLASS folders of images."""
    root: Path = Path("data")
    """Folder that holds, or with --download receives, CIFAR-10."""
    download: bool = False
    """Fetch CIFAR-10 into --root if it is not there."""
    image_size: int | None = None
    """Resize images to this height and width, in pixels; None keeps their own size."""
    limit_train: int | None = None
    """Take at most this many training images, balanced over classes and drawn with --seed; None takes all."""
    limit_test: int | None = None
    """The same for test images; the stages before hybrid.evaluate only record it, as its default."""

    def limit(self, split: Split) -> int | None:
        """The limit on one split."""
        return self.limit_train if split == "train" else self.limit_test

    @property
    def image_folder(self) -> Path | None:
        """PATH of folder:PATH, with ~ as the home folder; None for another data set."""
        kind, _, path = self.data.partition(":")
        return Path(os.path.expanduser(path)) if kind == "folder" else None

    def override(self, **values: Any) -> "DataSource":
        """A copy with those fields replaced that are not None."""
        return replace(self, **{name: value for name, value in values.items() if value is not None})


LARGEST_SIDE = 2**14
"""Most pixels of an image in height and width."""
UNNAMED = DataSource(data="unnamed")
"""Of images that did not come from a loader of this project."""
LOCATION = ("input/root", "input/download")
"""Paths in a file that say where images lie, not which they are: no part of its digest."""


def input_tree(data_source: DataSource, shape: tuple[int, int, int]) -> Tree:
    """The ``/input`` group of all files: data and image shape (C, H, W)."""
    return asdict(data_source) | dict(zip(("channels", "height", "width"), shape, strict=True))


def read_input(tree: Stored) -> tuple[DataSource, tuple[int, int, int]]:
    """What :func:`input_tree` stored."""
    channels, height, width = (tree.whole(name, 1, LARGEST_SIDE) for name in ("channels", "height", "width"))
    return from_tree(DataSource, tree, root=Path(tree.text("root"))), (channels, height, width)
