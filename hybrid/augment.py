"""Random shifts and flips of whole batches of uint8 images, on the device where they lie."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Augmentation = Literal["auto", "none", "shift", "shift-flip"]


def resolve_augmentation(name: Augmentation, data: str) -> Augmentation:
    """``auto`` is ``shift`` for digits, which a mirror would turn into others, and ``shift-flip`` for all else."""
    if name != "auto":
        return name
    return "shift" if data == "digits" else "shift-flip"


def augment(images: Tensor, name: Augmentation, generator: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its side (black comes in), and mirror half of them.

    Args:
        images: uint8 (B, C, H, W).
        name: none, shift or shift-flip.
        generator: on the CPU.

    Returns:
        Like ``images``.
    """
    if name == "none":
        return images
    batch, _, height, width = images.shape
    border = max(1, min(height, width) // 8)
    top, left = torch.randint(2 * border + 1, (2, batch, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    if name == "shift-flip":
        mirrored = torch.rand((batch, 1), generator=generator) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    index = torch.arange(batch)[:, None, None]
    moved = pad(images, (border,) * 4).permute(0, 2, 3, 1)
    picked = moved[index.to(images.device), rows[:, :, None].to(images.device), columns[:, None].to(images.device)]
    return picked.permute(0, 3, 1, 2).contiguous()
