"""Random shifts, flips and covers of batches of uint8 images, computed on the device that holds them."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

Augmentation = Literal["auto", "none", "shift", "shift-flip"]
GREY = 128
"""Intensity of a cover."""


def resolve_augmentation(name: Augmentation, data: str) -> Augmentation:
    """``auto`` is ``shift`` for digits, which mirrored are other signs, and ``shift-flip`` for other data."""
    if name != "auto":
        return name
    return "shift" if data == "digits" else "shift-flip"


def augment(
    images: Tensor,
    name: Augmentation,
    generator: torch.Generator,
    mirrored: Tensor | None = None,
    border: str = "black",
) -> Tensor:
    """Shift each image by up to an eighth of its shorter side; with shift-flip, mirror each with a chance of one half.

    Images are uint8 (B, C, H, W), the generator is on the CPU. ``mirrored``, bool (B,), says which images to mirror, in
    place of chance. The border that a shift uncovers is black, or, with "reflect", the reflected image.
    """
    if name == "none":
        return images
    batch, _, height, width = images.shape
    margin = max(1, min(height, width) // 8)
    top, left = torch.randint(2 * margin + 1, (2, batch, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    if name == "shift-flip":
        flip = torch.rand((batch, 1), generator=generator) < 0.5 if mirrored is None else mirrored[:, None]
        columns = torch.where(flip, columns.flip(1), columns)
    index = torch.arange(batch)[:, None, None]
    padded = pad(images, (margin,) * 4, mode="reflect" if border == "reflect" else "constant").permute(0, 2, 3, 1)
    shifted = padded[index.to(images.device), rows[:, :, None].to(images.device), columns[:, None].to(images.device)]
    return shifted.permute(0, 3, 1, 2).contiguous()


def cover(images: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """Cover a square of each image, at a random place, with grey (DeVries and Taylor 2017).

    Images are uint8 (B, C, H, W). Its centre lies anywhere in the image, so that a part of the square may lie outside.
    """
    batch, _, height, width = images.shape
    covered = []
    for size in (height, width):
        start = torch.randint(size, (batch, 1), generator=generator) - side // 2
        places = torch.arange(size)
        covered.append((places >= start) & (places < start + side))
    square = (covered[0][:, :, None] & covered[1][:, None]).to(images.device)
    return images.masked_fill(square[:, None], GREY)
