"""What ``python -m benchmarks.gpu`` measures on: device, sizes, images."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from snn.data import load_images
from snn.data_source import DataSource
from snn.runtime.device import choose_device
from snn.runtime.errors import check

SIDE = 32
"""Of images, in pixels."""


class Setting(NamedTuple):
    """What is measured, and where."""

    device_name: Literal["cpu", "cuda"]
    tiny: bool
    """Sizes that take seconds on a CPU, to try the code."""
    data: str | None
    """Images, as :class:`snn.data_source.DataSource` names them; None: synthetic ones."""

    @property
    def device(self) -> torch.device:
        """Set up as commands set it up."""
        return choose_device(self.device_name)

    @property
    def on_gpu(self) -> bool:
        """Whether what only a GPU can do is measured."""
        return self.device_name == "cuda"

    @property
    def engines(self) -> tuple[str, ...]:
        """Engines that are measured, the faster one first."""
        return ("gpu", "norse") if self.on_gpu else ("events", "norse")

    def images(self, count: int) -> Tensor:
        """So many images, uint8 (count, 3, 32, 32), of a tiny setting a corner of 8 pixels; on the CPU."""
        if self.data is None:
            found = synthetic_images(count)
        else:
            loaded = load_images(DataSource().override(data=self.data, limit_train=count), "train").images
            check(
                len(loaded) >= count and loaded.shape[1:] == (3, SIDE, SIDE),
                f"`data` {self.data} has {len(loaded)} images of shape {tuple(loaded.shape[1:])}: expected {count} of "
                f"shape (3, {SIDE}, {SIDE}); leave it out",
            )
            found = loaded
        return found[:, :, :8, :8].contiguous() if self.tiny else found


def synthetic_images(count: int) -> Tensor:
    """Smooth random images, uint8 (count, 3, 32, 32)."""
    coarse = torch.randint(256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # In parts: floats of many images would fill the memory.
    parts = (interpolate(part.float(), size=(SIDE, SIDE), mode="bilinear").byte() for part in coarse.split(4096))
    return torch.cat(list(parts))
