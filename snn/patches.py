"""Random patches of images, or of any sheets of neurons."""

import torch
from torch import Tensor


def random_patches(
    sheets: Tensor, size: int, count: int, generator: torch.Generator, rows: Tensor | None = None
) -> Tensor:
    """``count`` windows of ``size`` pixels a side from sheets (N, C, H, W) on the CPU: (count, C, size, size).

    All windows that fit into the sheets of these ``rows`` (None: all) are equally likely.
    """
    height, width = sheets.shape[2:]
    limits = (len(sheets) if rows is None else len(rows), height - size + 1, width - size + 1)
    image, y, x = (torch.randint(limit, (count,), generator=generator) for limit in limits)
    if rows is not None:
        image = rows[image]
    return sheets.unfold(2, size, 1).unfold(3, size, 1)[image, :, y, x]
