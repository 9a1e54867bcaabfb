"""Random patches of images, or of any sheets of neurons."""

import torch
from torch import Tensor


def random_patches(sheets: Tensor, size: int, count: int, generator: torch.Generator) -> Tensor:
    """``count`` windows of ``size`` pixels a side from sheets (N, C, H, W) on the CPU: (count, C, size, size).

    All windows that fit are equally likely.
    """
    images, _, height, width = sheets.shape
    limits = (images, height - size + 1, width - size + 1)
    image, y, x = (torch.randint(limit, (count,), generator=generator) for limit in limits)
    return sheets.unfold(2, size, 1).unfold(3, size, 1)[image, :, y, x]
