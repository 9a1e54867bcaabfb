"""Images on which exported files are run."""

import torch
from torch import Tensor
from torch.nn.functional import interpolate


def check_images(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """``count`` uint8 images of ``shape`` (C, H, W): half of independent pixels, half with smooth areas and borders.

    A retina answers to the two quite differently: to most of the first with its largest contrast.
    """
    _, height, width = shape
    noise = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    coarse = torch.randint(256, (count, shape[0], 4, 4), generator=generator).float()
    smooth = interpolate(coarse, (height, width), mode="bilinear", align_corners=True)
    # A darker half, whose border runs through the middle.
    smooth[..., width // 2 :] *= 0.5
    return torch.cat([noise[: (count + 1) // 2], smooth[: count // 2].round().to(torch.uint8)])
