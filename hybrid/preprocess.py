"""What is done to images in [0, 1] before a network sees them; written ``name`` or ``name:numbers``.

- ``none``
- ``average:N``: each pixel becomes the mean of an N x N window (paper, 5.1: 2x2); the image keeps its size.
- ``median:N``, N 3 or 5: each pixel becomes, in each channel, the median of the N x N window around it, which a few
  wrong pixels do not move.
- ``trimmed:N,K``, N 3 or 5: each pixel becomes, in each channel, the mean of the N x N window around it without the K
  lowest and the K highest values (alpha-trimmed mean), K 1 to 3 or 11: between ``average`` and ``median``.
- ``quantise`` or ``quantise:F_MIN,F_MAX,T``: each intensity is rounded down to the nearest one that the encoder can
  represent. At a rate F between F_MIN and F_MAX (Hz), a presentation of T ms holds floor(F T) spikes. The default is
  10,30,300, as in :class:`snn.parameters.Encoding`.
- ``spikes`` or ``spikes:F_MIN,F_MAX,T``: while a network is trained, each intensity is replaced by the one that a
  random spike count stands for. The count is floor(F T + u) with u uniform in [0, 1), as in a window that opens at a
  random phase of the pixel's regular spike train. Its mean F T stands for the intensity itself, which evaluation uses
  unless it averages over draws of the counts (:mod:`hybrid.evaluate`, ``draws``).
  ``spikes:F_MIN,F_MAX,T,LONGEST``: each image is presented for a time of its own between T and LONGEST ms (or inf),
  whose inverse, to which the deviations are proportional, is uniform.

Steps joined by ``+`` are done in the order written: ``average:3+quantise``.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, pad

from bridge.drawing import Drawing
from bridge.frontend import input_spikes, whole_spikes
from snn.parameters import Encoding
from snn.runtime.errors import UserError, check
from snn.runtime.text_flag import TextFlag, read_number

EXPECTED = (
    "none, average:N with a window of 1 to 16 pixels, median:N with one of 3 or 5, trimmed:3,K with K of 1 to 3, "
    "trimmed:5,K with K of 1 to 11, quantise or spikes, also "
    "followed by :F_MIN,F_MAX,T in Hz and ms (spikes: or :F_MIN,F_MAX,T,LONGEST), or several joined by +"
)


class WindowFilter(nn.Module):
    """Part of filters by a window at stride 1, for which pixels on the border are repeated beyond it."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def padded(self, images: Tensor) -> Tensor:
        """Images that a window can be moved over, with as many places as pixels before."""
        before = (self.window - 1) // 2
        after = self.window - 1 - before
        return pad(images, (before, after, before, after), mode="replicate")


class AverageFilter(WindowFilter):
    """Mean of a window. The image keeps its size."""

    def forward(self, images: Tensor) -> Tensor:
        return avg_pool2d(self.padded(images), self.window, stride=1)


class RankFilter(WindowFilter):
    """Part of filters by the order of the values in a window of 3 or 5 pixels, in each channel."""

    def values(self, images: Tensor) -> list[Tensor]:
        """What the places of the window see, each an image."""
        padded, (height, width) = self.padded(images), images.shape[-2:]
        places = range(self.window)
        return [padded[..., row : row + height, column : column + width] for row in places for column in places]

    @staticmethod
    def largest_last(values: list[Tensor], count: int) -> list[Tensor]:
        """The values at each pixel, of which the ``count`` largest stand at the end, in their order.

        Comparisons of whole images are faster than sorting at each pixel, and every exported format has them. With
        gradients each keeps its results, which is too much memory for larger windows.
        """
        values = list(values)
        for end in range(len(values) - 1, len(values) - 1 - count, -1):
            for place in range(end):
                low, high = values[place], values[place + 1]
                values[place], values[place + 1] = torch.minimum(low, high), torch.maximum(low, high)
        return values


class MedianFilter(RankFilter):
    """Median of a window of 3 or 5 pixels, in each channel. The image keeps its size."""

    def forward(self, images: Tensor) -> Tensor:
        middle = self.window**2 // 2
        return self.largest_last(self.values(images), middle + 1)[middle]


class TrimmedFilter(RankFilter):
    """Mean of a window of 3 or 5 pixels, in each channel, without its ``trimmed`` lowest and as many highest values.

    The image keeps its size.
    """

    def __init__(self, window: int, trimmed: int) -> None:
        super().__init__(window)
        self.trimmed = trimmed

    def forward(self, images: Tensor) -> Tensor:
        kept = self.largest_last(self.values(images), self.trimmed)[: -self.trimmed]
        kept = self.largest_last([-value for value in kept], self.trimmed)[: -self.trimmed]
        return -torch.stack(kept).mean(0)


class Spikes(Drawing):
    """Intensities that whole numbers of spikes stand for. The gradient ignores the rounding.

    With ``random_phase`` they are rounded at random while training, and not at all in evaluation, unless inside
    :func:`bridge.drawing.drawing`; else always down.
    ``longest`` is the longest presentation of an image, in ms (None: all last as long as that of ``encoding``).
    """

    def __init__(self, encoding: Encoding, random_phase: bool, longest: float | None = None) -> None:
        super().__init__()
        self.encoding, self.random_phase = encoding, random_phase
        self.shortest_share = 1.0 if longest is None else encoding.presentation / longest
        """Inverse of the longest presentation, as a share of that of the shortest."""

    @property
    def is_random(self) -> bool:
        return self.random_phase

    def forward(self, images: Tensor) -> Tensor:
        p, seconds = self.encoding, self.encoding.presentation / 1000
        if not self.random_phase:
            return (whole_spikes(images, p) - p.f_min * seconds) / ((p.f_max - p.f_min) * seconds)
        if not self.draws_now:
            return images
        # In training from the global generator, which is seeded at each step.
        times = 1.0 if self.shortest_share == 1 else self._presentations(images)
        spikes = input_spikes(images, p) * times
        counted = torch.floor(spikes + self.uniform(spikes))
        return images + ((counted - spikes) / ((p.f_max - p.f_min) * seconds * times)).detach()

    def _presentations(self, images: Tensor) -> Tensor:
        """Presentation of each image over that of the encoding, (B, 1, 1, 1)."""
        share = self.uniform(images.new_empty(len(images), 1, 1, 1))
        inverse = self.shortest_share + (1 - self.shortest_share) * share
        # An endless presentation would count endless spikes.
        return 1 / inverse.clamp(min=1e-4)


@dataclass(frozen=True)
class Preprocess:
    """What is done to images before a network sees them; its text form, such as ``average:3+quantise``, is ``str``.

    ``Preprocess("average:3+quantise")`` reads the text. Raises :class:`UserError` for an unknown name or impossible
    numbers.
    """

    text: str = "none"

    def __post_init__(self) -> None:
        # No wrong text is ever held.
        self.build()

    def __str__(self) -> str:
        return self.text

    def build(self) -> nn.Module:
        """A new module that maps images (B, C, H, W) in [0, 1] to such images."""
        modules = [_read_step(part, self.text) for part in self.text.split("+")]
        return modules[0] if len(modules) == 1 else nn.Sequential(*modules)

    @classmethod
    def parse(cls, text: str, argument: str = "preprocess") -> "Preprocess":
        """Read the text of an argument, which errors name."""
        try:
            return cls(text)
        except UserError as error:
            raise UserError(f"`{argument}` {error}") from error


def check_preprocess(value: object, argument: str) -> None:
    """Raise :class:`UserError` unless ``value`` is a :class:`Preprocess`."""
    example = f"Preprocess({value!r})" if isinstance(value, str) else "Preprocess('average:2')"
    check(isinstance(value, Preprocess), f"`{argument}` {value!r}: expected an object, for example {example}")


def preprocess_flag(argument: str = "preprocess") -> TextFlag[Preprocess]:
    """Annotation of a command's field that holds a :class:`Preprocess`."""
    forms = "none|average:N|median:N|trimmed:N,K|quantise[:F_MIN,F_MAX,T]|spikes[:F_MIN,F_MAX,T[,LONGEST]]"
    return TextFlag(lambda text: Preprocess.parse(text, argument), lambda: forms)


def _read_step(text: str, whole: str) -> nn.Module:
    name, colon, numbers = text.partition(":")
    try:
        values = list(map(read_number, numbers.split(","))) if colon else []
    except ValueError as error:
        raise UserError(f"{whole}: {numbers!r} is not a number; expected {EXPECTED}") from error
    if name == "none" and not colon:
        return nn.Identity()
    if name == "average" and len(values) == 1 and values[0] in range(1, 17):
        return AverageFilter(int(values[0]))
    if name == "median" and len(values) == 1 and values[0] in (3, 5):
        return MedianFilter(int(values[0]))
    if (
        name == "trimmed"
        and len(values) == 2
        and values[0] in (3, 5)
        and values[1] in range(1, int(values[0] ** 2 // 2))
    ):
        return TrimmedFilter(int(values[0]), int(values[1]))
    lengths = {"quantise": (0, 3), "spikes": (0, 3, 4)}
    if len(values) in lengths.get(name, ()) and bool(values) == bool(colon):
        encoding = Encoding(f_min=values[0], f_max=values[1], presentation=values[2]) if values else Encoding()
        longest = values[3] if len(values) == 4 else None
        check(
            longest is None or longest >= encoding.presentation,
            f"{whole}: LONGEST, {longest} ms, must be at least T, {encoding.presentation} ms",
        )
        return Spikes(encoding, name == "spikes", longest)
    raise UserError(f"{whole}: unknown; expected {EXPECTED}")


UNCHANGED = Preprocess()
"""Images as they are."""
