"""Tensors to which rows are added, in a time that does not grow with the rows that are there."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class _Memory:
    """Room for rows, of which the first ``filled`` are written and never change."""

    rows: Tensor
    filled: int


@dataclass(frozen=True, eq=False)
class Growing:
    """A tensor (N, ...) on the CPU, which never changes; one with a further row shares its memory.

    Joining tensors at each addition would copy all rows: of 80,000 updates, 3 billion. Keeping a list of small tensors,
    to join them at the end, leaves each in a hole between large blocks of memory, which then cannot be used again.
    """

    memory: _Memory
    count: int

    @classmethod
    def of(cls, values: Tensor) -> "Growing":
        """The tensor with these values."""
        return cls(_Memory(values, len(values)), len(values))

    @property
    def values(self) -> Tensor:
        """All rows, (N, ...)."""
        return self.memory.rows[: self.count]

    def extend(self, rows: Tensor) -> "Growing":
        """The tensor with these rows (M, ...) behind its own, (N + M, ...)."""
        memory, before, count = self.memory, self.count, self.count + len(rows)
        # Another tensor has grown from this one, or there is no room: these rows get memory of their own.
        if memory.filled > before or count > len(memory.rows):
            room = torch.empty(max(16, 2 * count), *memory.rows.shape[1:], dtype=memory.rows.dtype)
            room[:before] = self.values
            memory = _Memory(room, before)
        memory.rows[before:count] = rows
        memory.filled = count
        return Growing(memory, count)
