"""Spikes of a batch of images, as a dense tensor or in the form of an engine."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from snn.engines import kernels
from snn.runtime.random import ENCODE, numpy_keys
from snn.runtime.threads import for_each


class Raster(NamedTuple):
    """Spikes of one image, step by step (see :mod:`snn.engines.kernels`)."""

    neuron: np.ndarray
    """Spiking neurons, int32 (n,), numbered ``(y * width + x) * channels + channel``."""
    start: np.ndarray
    """Index of the first spike of each step, and n: int64 (T + 1,)."""


class CompactSpikes(Protocol):
    """Another form of a bool tensor (T, B, C, H, W); its length is the number of steps T."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the neurons that spike."""

    @property
    def batch_size(self) -> int:
        """Images B whose spikes these are."""

    def __len__(self) -> int: ...

    def to_dense(self) -> Tensor:
        """As bool (T, B, C, H, W)."""

    def counts(self) -> Tensor:
        """Spikes of each neuron over the presentation, int16 (B, C, H, W)."""


@dataclass(frozen=True)
class SpikeEvents:
    """Spikes as lists, on the CPU; a :class:`CompactSpikes`."""

    rasters: tuple[Raster, ...]
    """One of each image."""
    shape: tuple[int, int, int]
    """(C, H, W)."""

    def __len__(self) -> int:
        """Steps T."""
        return len(self.rasters[0].start) - 1

    @property
    def batch_size(self) -> int:
        """Images B."""
        return len(self.rasters)

    @classmethod
    def from_dense(cls, spikes: Tensor) -> "SpikeEvents":
        """From bool (T, B, C, H, W)."""
        c, height, width = spikes.shape[2:]
        flat = spikes.numpy().reshape(*spikes.shape[:2], -1)

        def raster(image: int) -> Raster:
            # Whole words of eight neurons are skipped at once.
            rows = flat[:, image]
            if rows.shape[1] % 8 or rows.strides[1] != 1:
                rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 8)))
            return Raster(*kernels.list_spikes(rows.view(np.uint64), c, height * width))

        return cls(tuple(for_each(raster, range(flat.shape[1]))), (c, height, width))

    def to_dense(self) -> Tensor:
        """As bool (T, B, C, H, W)."""
        c, height, width = self.shape
        dense = np.zeros((len(self.rasters), len(self), height * width * c), dtype=bool)
        for_each(lambda image: kernels.fill_dense(*self.rasters[image], dense[image]), range(len(dense)))
        return torch.from_numpy(dense).unflatten(2, (height, width, c)).permute(1, 0, 4, 2, 3)

    def counts(self) -> Tensor:
        """Spikes of each neuron over the presentation, int16 (B, C, H, W)."""
        c, height, width = self.shape
        counts = for_each(lambda raster: kernels.count_spikes(raster.neuron, c * height * width), self.rasters)
        return torch.from_numpy(np.stack(counts)).unflatten(1, (height, width, c)).permute(0, 3, 1, 2)


Spikes = Tensor | CompactSpikes
"""Spikes of a batch over a presentation: bool (T, B, C, H, W), or the form of an engine."""


def spike_counts(spikes: Spikes) -> Tensor:
    """Spikes of each neuron over the presentation, int16 (B, C, H, W)."""
    return spikes.sum(0, dtype=torch.int16) if isinstance(spikes, Tensor) else spikes.counts()


def batch_size(spikes: Spikes) -> int:
    """Images B whose spikes these are."""
    return spikes.shape[1] if isinstance(spikes, Tensor) else spikes.batch_size


def spike_shape(spikes: Spikes) -> tuple[int, int, int]:
    """(C, H, W) of the neurons that spike."""
    if not isinstance(spikes, Tensor):
        return spikes.shape
    channels, height, width = spikes.shape[2:]
    return channels, height, width


def as_dense(spikes: Spikes) -> Tensor:
    """Spikes in any form, as bool (T, B, C, H, W)."""
    return spikes if isinstance(spikes, Tensor) else spikes.to_dense()


def encode_rasters(
    images: Tensor, kernel: Callable[..., tuple[np.ndarray, np.ndarray]], seeds: Tensor, *arguments: object
) -> SpikeEvents:
    """Spikes of uint8 ``images`` (B, C, H, W) by a compiled encoder, whose last arguments are the image's key."""
    flat = images.permute(0, 2, 3, 1).contiguous().flatten(1).numpy()
    keys = numpy_keys(seeds, ENCODE)
    rasters = for_each(lambda image: Raster(*kernel(flat[image], *arguments, *keys[image])), range(len(flat)))
    channels, height, width = images.shape[1:]
    return SpikeEvents(tuple(rasters), (channels, height, width))
