"""Some images of a set, which are read when they are asked for.

A set may be larger than memory (a mapped file). Whoever works on a part of it, as training does on all images that are
not held out, keeps the numbers of these images and no copy of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from snn.data import Images
from snn.data_source import DataSource

PORTION = 2**22
"""Bytes of images that are read at once, where all of a set are gone through."""


@dataclass(frozen=True, eq=False)
class Subset:
    """Images of a set, in an order of their own; ``subset[places]`` reads a mini-batch."""

    data: Images
    """The whole set."""
    rows: Tensor | None = None
    """Which images of the set, int64 (N,); None: all."""

    def __len__(self) -> int:
        return len(self.data.labels) if self.rows is None else len(self.rows)

    def __getitem__(self, places: Tensor | slice) -> Images:
        """Images and labels at these places, of 0 to N - 1: a copy, or of a slice of all images a view."""
        rows = places if self.rows is None else self.rows[places]
        return self.data._replace(images=self.data.images[rows], labels=self.data.labels[rows])

    def split(self, size: int) -> Iterator[Images]:
        """The images in their order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]

    def portions(self) -> Iterator[Images]:
        """The images in their order, about :data:`PORTION` bytes at a time."""
        return self.split(max(1, PORTION * len(self) // self.nbytes))

    @property
    def nbytes(self) -> int:
        """Bytes of the images."""
        return len(self) * self.data.images[:1].nbytes

    @property
    def labels(self) -> Tensor:
        """int64 (N,)."""
        return self.data.labels if self.rows is None else self.data.labels[self.rows]

    @property
    def images(self) -> Tensor:
        """uint8 (N, C, H, W): all of them, in memory."""
        return self.data.images if self.rows is None else self.data.images[self.rows]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.data.shape

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.data.classes

    @property
    def data_source(self) -> DataSource:
        """Where the images came from."""
        return self.data.data_source

    def copy_to(self, device: torch.device | str) -> "Subset":
        """The images on ``device``, and no others."""
        images = torch.empty(len(self), *self.shape, dtype=self.data.images.dtype, device=device)
        done = 0
        for part in self.portions():
            images[done : done + len(part.images)] = part.images
            done += len(part.images)
        return Subset(self.data._replace(images=images, labels=self.labels.to(device)))
