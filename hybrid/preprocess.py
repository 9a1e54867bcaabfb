"""What may be done to images in [0, 1] before a network sees them; written ``name`` or ``name:numbers``.

- ``none``
- ``average:N``: each pixel becomes the mean of an N x N window (paper, 5.1: 2x2); the image keeps its size.
- ``quantise`` or ``quantise:F_MIN,F_MAX,T``: intensities are rounded down to those that the encoder tells apart,
  floor(F T) spikes in a presentation of T ms at rates from F_MIN to F_MAX in Hz (default 10,30,300, as in
  :class:`snn.parameters.Encoding`).
- ``spikes`` or ``spikes:F_MIN,F_MAX,T``: while a network is trained, intensities become those of the spikes counted in
  a window that opens at a random phase of each pixel's regular train, floor(F T + u) with u uniform in [0, 1); their
  mean is F T, which is what evaluation takes.

Several are joined by ``+`` and done in this order: ``average:3+quantise``.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from bridge.frontend import input_spikes, whole_spikes
from snn.parameters import Encoding
from snn.runtime.errors import UserError, check

EXPECTED = (
    "none, average:N with a window of 1 to 16 pixels, quantise or spikes, also followed by :F_MIN,F_MAX,T in Hz and "
    "ms, or several joined by +"
)


class AverageFilter(nn.Module):
    """Mean of a window, at stride 1; beyond the border its nearest pixels repeat."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, images: Tensor) -> Tensor:
        before = (self.window - 1) // 2
        after = self.window - 1 - before
        return avg_pool2d(pad(images, (before, after, before, after), mode="replicate"), self.window, stride=1)


class Spikes(nn.Module):
    """Intensities that whole spikes stand for; the gradient is that without rounding.

    Args:
        encoding: rates and presentation time.
        random_phase: round up or down by chance while training, and not at all in evaluation; else always down.
    """

    def __init__(self, encoding: Encoding, random_phase: bool) -> None:
        super().__init__()
        self.encoding, self.random_phase = encoding, random_phase

    def forward(self, images: Tensor) -> Tensor:
        p, seconds = self.encoding, self.encoding.presentation / 1000
        if not self.random_phase:
            return (whole_spikes(images, p) - p.f_min * seconds) / ((p.f_max - p.f_min) * seconds)
        if not self.training:
            return images
        spikes = input_spikes(images, p)
        # Drawn, as torchvision's dropout is, from the generator that training seeds at each step.
        counted = torch.floor(spikes + torch.rand_like(spikes))
        return images + (counted - spikes).detach() / ((p.f_max - p.f_min) * seconds)


def parse_preprocess(text: str, flag: str = "`preprocess`") -> nn.Module:
    """The module for images (B, C, H, W) in [0, 1]; :class:`UserError` for an unknown name or impossible numbers."""
    found = [_parse_one(part, f"{flag} {text}") for part in text.split("+")]
    return found[0] if len(found) == 1 else nn.Sequential(*found)


def _parse_one(text: str, told: str) -> nn.Module:
    name, colon, numbers = text.partition(":")
    try:
        values = [float(part) for part in numbers.split(",")] if colon else []
    except ValueError as error:
        raise UserError(f"{told}: {numbers!r} is not a number; expected {EXPECTED}") from error
    if name == "none" and not colon:
        return nn.Identity()
    if name == "average" and len(values) == 1 and values[0] in range(1, 17):
        return AverageFilter(int(values[0]))
    if name in ("quantise", "spikes") and not colon:
        return Spikes(Encoding(), random_phase=name == "spikes")
    if name in ("quantise", "spikes") and len(values) == 3:
        f_min, f_max, presentation = values
        encoding = Encoding(f_min=f_min, f_max=f_max, presentation=presentation)
        return Spikes(encoding, random_phase=name == "spikes")
    check(False, f"{told}: unknown; expected {EXPECTED}")
