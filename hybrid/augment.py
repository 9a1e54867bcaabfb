"""Random shifts and flips of batches of uint8 images, computed on the device that holds them."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Augmentation = Literal["auto", "none", "shift", "shift-flip"]


def resolve_augmentation(name: Augmentation, data: str) -> Augmentation:
    """``auto`` is ``shift`` for digits, which mirrored are other signs, and ``shift-flip`` for other data."""
    if name != "auto":
        return name
    return "shift" if data == "digits" else "shift-flip"


def augment(images: Tensor, name: Augmentation, generator: torch.Generator) -> Tensor:
    """Shift each image by up to an eighth of its shorter side; with shift-flip, mirror each with a chance of one half.

    Images are uint8 (B, C, H, W), the generator is on the CPU. The border that a shift uncovers is black.
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
    padded = pad(images, (border,) * 4).permute(0, 2, 3, 1)
    shifted = padded[index.to(images.device), rows[:, :, None].to(images.device), columns[:, None].to(images.device)]
    return shifted.permute(0, 3, 1, 2).contiguous()
