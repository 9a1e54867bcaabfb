"""Tensors to which rows are added one by one, in a time that does not grow with the rows that are there."""

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

    Joining tensors would copy all rows for each that is added: of 80,000 updates, 3 billion.
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

    def append(self, row: Tensor | float) -> "Growing":
        """The tensor with one more row, (N + 1, ...)."""
        memory, count = self.memory, self.count
        # Another tensor has grown from this one, or all room is taken: these rows get memory of their own.
        if memory.filled > count or count == len(memory.rows):
            room = torch.empty(max(16, 2 * count), *memory.rows.shape[1:], dtype=memory.rows.dtype)
            room[:count] = self.values
            memory = _Memory(room, count)
        memory.rows[count] = row
        memory.filled = count + 1
        return Growing(memory, count + 1)
