"""What may be done to images in [0, 1] before a network sees them; written ``name`` or ``name:numbers``.

- ``none``
- ``average:N``: each pixel becomes the mean of an N x N window (paper, 5.1: 2x2); the image keeps its size.
- ``quantise`` or ``quantise:F_MIN,F_MAX,T``: intensities are rounded down to those that the encoder tells apart,
  floor(F T) spikes in a presentation of T ms at rates from F_MIN to F_MAX in Hz (default 10,30,300, as in
  :class:`snn.encode.Encoding`).
"""

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from bridge.frontend import whole_spikes
from snn.encode import Encoding
from snn.errors import UserError, check

EXPECTED = "none, average:N with a window of 1 to 16 pixels, quantise or quantise:F_MIN,F_MAX,T in Hz and ms"


class AverageFilter(nn.Module):
    """Mean of a window, at stride 1; beyond the border its nearest pixels repeat."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, images: Tensor) -> Tensor:
        before = (self.window - 1) // 2
        after = self.window - 1 - before
        return avg_pool2d(pad(images, (before, after, before, after), mode="replicate"), self.window, stride=1)


class Quantise(nn.Module):
    """The encoder's levels as intensities; the gradient is that without rounding."""

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self.encoding = encoding

    def forward(self, images: Tensor) -> Tensor:
        p, seconds = self.encoding, self.encoding.presentation / 1000
        return (whole_spikes(images, p) - p.f_min * seconds) / ((p.f_max - p.f_min) * seconds)


def parse_preprocess(text: str) -> nn.Module:
    """The module for images (B, C, H, W) in [0, 1]; :class:`UserError` for an unknown name or impossible numbers."""
    name, colon, numbers = text.partition(":")
    try:
        values = [float(part) for part in numbers.split(",")] if colon else []
    except ValueError as error:
        raise UserError(f"--preprocess {text}: {numbers!r} is not a number; expected {EXPECTED}") from error
    if name == "none" and not colon:
        return nn.Identity()
    if name == "average" and len(values) == 1 and values[0] in range(1, 17):
        return AverageFilter(int(values[0]))
    if name == "quantise" and not colon:
        return Quantise(Encoding())
    if name == "quantise" and len(values) == 3:
        f_min, f_max, presentation = values
        return Quantise(Encoding(f_min=f_min, f_max=f_max, presentation=presentation))
    check(False, f"--preprocess {text}: unknown; expected {EXPECTED}")
