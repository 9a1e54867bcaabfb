"""Mini-batches of a training: which images each has, and how these reach the device.

Images that fit into the GPU's memory are copied there once, and a mini-batch is an index into them. Others stay where
they are, which may be a mapped file larger than memory: processes read the mini-batches ahead of the step, into pinned
memory, from which they are copied while the GPU computes. Both ways give the same mini-batches.
"""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from snn.runtime.errors import check
from snn.runtime.random import stream
from snn.subset import Subset

RESIDENT_SHARE = 0.5
"""Share of a GPU's free memory that images may take; the network's activations need the rest."""
MOST_WORKERS = 4
"""Processes that read ahead, where their number is not given: each copies more than a GPU takes of such images."""
READ_AHEAD = 2
"""Mini-batches that each of them holds ready."""
CAN_FORK = "fork" in multiprocessing.get_all_start_methods()
"""Whether workers share the images of this process; others would be sent a copy of them."""


class MiniBatch(NamedTuple):
    """Some images of a part of a training's images."""

    rows: Tensor
    """Their numbers within this part, int64 (B,)."""
    images: Tensor
    """uint8 (B, C, H, W)."""
    labels: Tensor
    """int64 (B,)."""


class Batches:
    """Numbers of the images of each mini-batch, from where training stands to the end of that pass.

    Of ``count`` images, the last, smaller mini-batch is left out. Their order differs from pass to pass. ``step``
    returns the number of steps that are done. Of each mini-batch, this process takes its ``share``.
    """

    def __init__(
        self, count: int, batch_size: int, seed: int, step: Callable[[], int], share: slice = slice(None)
    ) -> None:
        self.count, self.batch_size, self.seed, self.step, self.share = count, batch_size, seed, step, share

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        epoch, first = divmod(self.step(), len(self))
        order = torch.randperm(self.count, generator=stream(self.seed, "order", epoch))
        for rows in order.split(self.batch_size)[first : len(self)]:
            # Its own memory: a view would be sent to a worker with the whole order.
            yield rows[self.share].clone()


class Loader(DataLoader[MiniBatch]):
    """Mini-batches, of which training needs no more than its step to go on in the middle of a pass."""

    # Lightning asks loaders that can do so for a state.
    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class _Reader(Dataset[MiniBatch]):
    """A part of the images, by the numbers of a mini-batch."""

    def __init__(self, supply: "Supply", part: str) -> None:
        self.supply, self.part = supply, part

    def __getitem__(self, rows: Tensor) -> MiniBatch:
        read = self.supply.parts[self.part][rows]
        return MiniBatch(rows, read.images, read.labels)


class Supply:
    """The parts of a training's images, and how mini-batches of them are made.

    Args:
        parts: by name, on the CPU.
        workers: processes that read ahead. None: none on a CPU, and none where all parts fit into the GPU's memory,
            which are then copied there; else as many as there are threads, :data:`MOST_WORKERS` at most.
    """

    def __init__(self, parts: Mapping[str, Subset], workers: int | None = None) -> None:
        self.parts, self.workers, self.pinned = dict(parts), workers, False

    def __deepcopy__(self, memo: dict[int, Any]) -> "Supply":
        """This one: an average of weights has a copy of the module, which shares the images."""
        return self

    def prepare(self, device: torch.device) -> None:
        """Copy the images to ``device``, or choose how they are read from where they are.

        Raises :class:`UserError` for workers on a system that cannot have them.
        """
        check(
            CAN_FORK or not self.workers, f"`workers` {self.workers}: this system cannot fork processes; leave it out"
        )
        self.pinned = device.type == "cuda"
        if self.pinned and self.workers is None and fits(self.parts.values(), device):
            self.parts = {name: part.copy_to(device) for name, part in self.parts.items()}
            self.pinned = False
        if self.workers is None:
            self.workers = min(torch.get_num_threads(), MOST_WORKERS) if self.pinned and CAN_FORK else 0

    def loader(self, part: str, order: Iterable[Tensor]) -> Loader:
        """Mini-batches of one part, by the numbers of their images, in this order; :meth:`prepare` comes before."""
        workers = self.workers or 0
        return Loader(
            _Reader(self, part),
            sampler=order,
            batch_size=None,
            num_workers=workers,
            pin_memory=self.pinned,
            multiprocessing_context=multiprocessing.get_context("fork") if workers else None,
            prefetch_factor=READ_AHEAD if workers else None,
            # Otherwise it would draw from the global generator.
            generator=torch.Generator(),
        )


def fits(parts: Iterable[Subset], device: torch.device) -> bool:
    """Whether the images of all parts fit into the memory of a GPU beside the network."""
    free, _ = torch.cuda.mem_get_info(device)
    return sum(part.nbytes for part in parts) <= RESIDENT_SHARE * free
