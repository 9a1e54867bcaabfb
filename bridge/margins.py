"""How much pixels and drives can change before any spike count does (paper, 4.3)."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from bridge.activation import SpecialActivationUnit
from bridge.frontend import FLOOR_MARGIN, ConvertedLayer, input_spikes
from snn.encode import Encoding


def pixel_margin(images: Tensor, p: Encoding) -> Tensor:
    """Change of intensities in [0, 1] below which the encoder's floor(F T) stays as it is, in the shape of ``images``.

    The paper's ``delta / (T (f_max - f_min))`` with delta the distance, in spikes, of F T to the nearest edge.
    """
    spikes = input_spikes(images, p) + FLOOR_MARGIN
    above = spikes - spikes.floor()
    return torch.minimum(above, 1 - above) / (p.presentation / 1000 * (p.f_max - p.f_min))


def drive_margin(drive: Tensor, activation: SpecialActivationUnit) -> Tensor:
    """Distance of normalised drives (B, C, H, W) to the nearest edge of the SAU, below which its output stays."""
    margin = torch.full_like(drive, torch.inf)
    edges = activation.edges
    for edge in edges.unbind(-1):
        torch.minimum(margin, (drive - edge.reshape(-1, 1, 1)).abs(), out=margin)
    return margin


def summed_change(layer: ConvertedLayer, change: Tensor) -> Tensor:
    """The most, sum_j |w_j change_j|, that changes of the input can change normalised drives (B, C, H, W)."""
    largest = conv2d(change.abs(), layer.weight.abs(), stride=layer.stride, padding=layer.padding)
    slope = layer.norm.weight / (layer.norm.running_var + layer.norm.eps).sqrt()
    return largest * slope.abs().reshape(-1, 1, 1)
