"""Spikes as bits, 32 steps of a neuron in a word: what the GPU engine reads and writes."""

from dataclasses import dataclass

import torch
from torch import Tensor

WORD = 32
"""Steps in a word."""


def words_of(steps: int) -> int:
    """Words that hold so many steps."""
    return -(-steps // WORD)


@dataclass(frozen=True)
class PackedSpikes:
    """Spikes of a batch, on any device; a :class:`snn.spikes.CompactSpikes`."""

    words: Tensor
    """int32 (B, words, H, W, C), contiguous. The earliest step of a word is its lowest bit."""
    steps: int
    """T. Bits beyond are 0."""

    def __len__(self) -> int:
        """Steps T."""
        return self.steps

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        height, width, channels = self.words.shape[2:]
        return channels, height, width

    @property
    def batch_size(self) -> int:
        """Images B."""
        return len(self.words)

    @classmethod
    def from_dense(cls, spikes: Tensor) -> "PackedSpikes":
        """From bool (T, B, C, H, W)."""
        return cls(pack(spikes.permute(0, 1, 3, 4, 2)).transpose(0, 1).contiguous(), len(spikes))

    def to_dense(self) -> Tensor:
        """As bool (T, B, C, H, W)."""
        steps = [self.words[:, step // WORD] >> step % WORD & 1 for step in range(self.steps)]
        return torch.stack(steps).bool().permute(0, 1, 4, 2, 3)

    def counts(self) -> Tensor:
        """Spikes of each neuron over the presentation, int16 (B, C, H, W)."""
        # Imported here: Triton comes with PyTorch's builds for CUDA alone.
        from snn.engines.gpu.launch import count_spikes

        return count_spikes(self.words).permute(0, 3, 1, 2)


def pack(steps: Tensor) -> Tensor:
    """Bits of bool (T, ...), int32 (words, ...)."""
    words = torch.zeros((words_of(len(steps)), *steps.shape[1:]), dtype=torch.int32, device=steps.device)
    for step, spiked in enumerate(steps):
        words[step // WORD] |= spiked.int() << step % WORD
    return words
