"""The front end in operators that every runtime has, with the same outputs, from the retina on if there is one.

Two things could make a runtime's results differ by whole steps: another order of sums, and the rounding of batch
normalisation. Sums are exact (:mod:`bridge.frontend`, :mod:`snn.retina`). Normalisation is folded into the steps. It is
monotone, so a normalised drive reaches an edge exactly when the drive itself reaches a certain number, which a search
finds.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from bridge.frontend import ConvertedLayer, FrozenStatisticsBatchNorm, SpikingFrontEnd, first_input
from bridge.sau import SpecialActivationUnit


class PlainSteps(nn.Module):
    """A step function of :class:`bridge.sau.SpecialActivationUnit` as comparisons; the same bits, except for NaN.

    Args:
        edges: increasing, (n,), or (C, n) where each channel of drives (B, C, H, W) has its own.
        heights: (n + 1,) or (C, n + 1), likewise.
    """

    edges: Tensor
    heights: Tensor

    def __init__(self, edges: Tensor, heights: Tensor) -> None:
        super().__init__()
        # One step of all channels after the other: a number, or (C, 1, 1).
        for name, table in (("edges", edges), ("heights", heights)):
            self.register_buffer(name, table.T[..., None, None].clone() if table.ndim == 2 else table.clone())

    @classmethod
    def of(cls, activation: SpecialActivationUnit) -> "PlainSteps":
        """The same function of an activation."""
        return cls(activation.edges, activation.heights)

    def forward(self, drive: Tensor) -> Tensor:
        out = self.heights[0]
        for edge, height in zip(self.edges, self.heights[1:], strict=True):
            out = torch.where(drive >= edge, height, out)
        return out


class FoldedLayer(nn.Module):
    """A converted layer without normalisation; its outputs are divided by ``unit``."""

    weight: Tensor
    sign: Tensor

    def __init__(self, layer: ConvertedLayer, unit: Tensor | float = 1.0) -> None:
        super().__init__()
        # Under a falling normalisation, the drive changes its sign, so that all steps go up.
        sign = torch.where(layer.norm.weight.detach() < 0, -1.0, 1.0)
        self.stride, self.padding = layer.stride, layer.padding
        self.register_buffer("weight", layer.weight)
        self.register_buffer("sign", sign.reshape(-1, 1, 1))
        edges = reach(layer.norm, layer.activation.edges.expand(len(sign), -1), sign)
        self.steps = PlainSteps(edges, layer.activation.heights / unit)

    def forward(self, spikes: Tensor) -> Tensor:
        return self.steps(conv2d(spikes, self.weight, stride=self.stride, padding=self.padding) * self.sign)


class FoldedFrontEnd(nn.Module):
    """:class:`bridge.frontend.SpikingFrontEnd` of folded layers, without variability."""

    takes_images = True
    """Not normalised ones."""

    def __init__(self, frontend: SpikingFrontEnd) -> None:
        super().__init__()
        self.spec, self.retina = frontend.spec, frontend.retina
        *lower, last = frontend.layers
        top = last.activation.heights.amax()
        self.layers = nn.Sequential(*map(FoldedLayer, lower), FoldedLayer(last, top))

    def forward(self, images: Tensor) -> Tensor:
        images = images.contiguous(memory_format=torch.channels_last)
        return self.layers(first_input(images, self.spec.encoding, self.spec.quantise_input, self.retina))


def reach(norm: FrozenStatisticsBatchNorm, edges: Tensor, sign: Tensor) -> Tensor:
    """The smallest float32 numbers x, (C, n), for which ``norm(sign x)`` is not below ``edges`` (C, n); sign (C,).

    Infinity where no number reaches the edge, minus infinity where all do.
    """
    # The search runs over the bits of floats, in the order of the floats, as 64-bit integers that cannot overflow.
    top = int(torch.tensor(torch.finfo(torch.float32).max).view(torch.int32).item())
    low, high = torch.full(edges.shape, -top - 1), torch.full(edges.shape, top + 1)
    with torch.no_grad():
        for _ in range(33):
            middle = (low + high) // 2
            drive = _from_order(middle) * sign[:, None]
            sheet = drive[None, ..., None].contiguous(memory_format=torch.channels_last)
            reached = norm(sheet)[0, ..., 0] >= edges
            high = torch.where(reached, middle, high)
            low = torch.where(reached, low, middle)
    lowest = torch.where(high > top, torch.inf, _from_order(high.clamp(-top, top)))
    return torch.where(high <= -top, -torch.inf, lowest)


def _from_order(order: Tensor) -> Tensor:
    size = order.abs().to(torch.int32).view(torch.float32)
    return torch.where(order < 0, -size, size)
