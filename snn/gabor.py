"""A bank of Gabor functions in the shape of simple cells of the primary visual cortex (V1), as a control.

Each kernel is a grating under a Gaussian envelope. What is known of the macaque's simple cells fixes its shape:

- Orientations and phases are uniform.
- The envelope gives the median bandwidths: 1.4 octaves of spatial frequency (De Valois, Albrecht and Thorell 1982) and
  about 40 degrees of orientation (De Valois, Yund and Hepler 1982), both full widths at half height.
- Preferred frequencies spread over several octaves (the same authors). A pixel has no size in degrees of visual angle,
  so here they are uniform in octaves over all that a kernel can show.
- Of the cells, 60 % follow luminance alone, and the others colour as well (Johnson, Hawken and Shapley 2001). Here
  these are opponent, red against green or blue against yellow, half and half.

The parameters are drawn, as V1 has no regular grid, but in strata: of n kernels, one has an orientation in each n-th
part of the half circle, and so on for phase and frequency. So a few kernels already cover all orientations.
"""

import math

import torch
from torch import Tensor

from snn.runtime.errors import check

OCTAVES = 1.4
"""Bandwidth of spatial frequency."""
DEGREES = 40.0
"""Bandwidth of orientation."""
LUMINANCE = 0.6
"""Share of kernels that follow luminance alone, in images of three colours."""
HIGHEST = 0.4
"""Highest spatial frequency, in cycles per pixel; at 0.5 a grating of odd phase would vanish."""
COLOURS = {"luminance": (1.0, 1.0, 1.0), "red-green": (1.0, -1.0, 0.0), "blue-yellow": (-1.0, -1.0, 2.0)}
"""Weight of red, green and blue."""


def gabor_bank(maps: int, colours: int, size: int, generator: torch.Generator) -> Tensor:
    """Signed kernels, float64 (``maps``, ``colours``, ``size``, ``size``); the sum of each is 0, its largest value 1.

    Kernels for three colours are red, green and blue, and come in the order of :data:`COLOURS`; for any other number,
    all of them follow luminance. Raises :class:`UserError` for kernels of less than 3 pixels a side.
    """
    check(size >= 3, f"gabor kernels of {size} x {size} pixels: too small for an orientation, 3 or more are needed")
    opponent = maps - round(LUMINANCE * maps)
    groups = [(torch.ones(colours).double(), maps)]
    if colours == 3:
        counts = (maps - opponent, opponent - opponent // 2, opponent // 2)
        groups = [(torch.tensor(w).double(), n) for w, n in zip(COLOURS.values(), counts, strict=True)]
    kernels = torch.cat([_gratings(n, size, generator)[:, None] * w.reshape(-1, 1, 1) for w, n in groups])
    return kernels / kernels.abs().amax((1, 2, 3), keepdim=True)


def _gratings(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Gabor functions of mean 0, float64 (count, size, size)."""

    def strata() -> Tensor:
        order = torch.randperm(count, generator=generator)
        return ((order + torch.rand(count, generator=generator)) / count).double().reshape(-1, 1, 1)

    orientation, phase = math.pi * strata(), 2 * math.pi * strata()
    # At least one cycle in a kernel.
    frequency = (1 / size) * (HIGHEST * size) ** strata()
    across, along = (width / frequency for width in envelope())
    place = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = place[:, None], place
    u, v = x * orientation.cos() + y * orientation.sin(), y * orientation.cos() - x * orientation.sin()
    kernels = torch.exp(-((u / across) ** 2 + (v / along) ** 2) / 2) * torch.cos(2 * math.pi * frequency * u + phase)
    # A simple cell does not answer to uniform light.
    return kernels - kernels.mean((1, 2), keepdim=True)


def envelope() -> tuple[float, float]:
    """Standard deviations of the envelope across and along the bars, in periods of the grating."""
    half_height = math.sqrt(2 * math.log(2)) / (2 * math.pi)
    across = half_height * (2**OCTAVES + 1) / (2**OCTAVES - 1)
    return across, half_height / math.tan(math.radians(DEGREES / 2))
