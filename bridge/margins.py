"""How much pixels (or contrasts) and drives can change before any spike count does (paper, 4.3)."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from bridge.frontend import FLOOR_MARGIN, ConvertedLayer, input_spikes
from bridge.sau import SpecialActivationUnit
from snn.parameters import Encoding


def pixel_margin(images: Tensor, p: Encoding) -> Tensor:
    """Change of each intensity below which the encoder's floor(F T) stays the same, in the shape of ``images``.

    Behind a retina the encoder is given contrasts, and so are ``images``: (B, 2 C, H, W), in [0, 1].

    This is the paper's ``delta / (T (f_max - f_min))``. Delta is the distance of F T, in spikes, to the nearest edge
    that an intensity in [0, 1] can reach. The margin is 1 where there is no such edge.
    """
    seconds = p.presentation / 1000
    spikes = input_spikes(images, p) + FLOOR_MARGIN
    whole = spikes.floor()
    down = torch.where(whole > p.f_min * seconds + 2 * FLOOR_MARGIN, spikes - whole, torch.inf)
    up = torch.where(whole + 1 <= p.f_max * seconds + 2 * FLOOR_MARGIN, whole + 1 - spikes, torch.inf)
    return (torch.minimum(down, up) / (seconds * (p.f_max - p.f_min))).clamp(max=1)


def drive_margin(drive: Tensor, activation: SpecialActivationUnit) -> Tensor:
    """Distance of normalised drives (B, C, H, W) to the nearest edge of the SAU: smaller changes keep its output."""
    margin = torch.full_like(drive, torch.inf)
    for edge in activation.edges.unbind(-1):
        margin = torch.minimum(margin, (drive - edge.reshape(-1, 1, 1)).abs())
    return margin


def summed_change(layer: ConvertedLayer, change: Tensor) -> Tensor:
    """Upper bound of the change of normalised drives, sum_j |w_j change_j|, (B, C_out, H', W').

    ``change`` is that of the layer's input, (B, C_in, H, W).
    """
    largest = conv2d(change.abs(), layer.weight.abs(), stride=layer.stride, padding=layer.padding)
    slope = layer.norm.weight / (layer.norm.running_var + layer.norm.eps).sqrt()
    return largest * slope.abs().reshape(-1, 1, 1)
