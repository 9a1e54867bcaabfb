"""Perturbations of images in [0, 1], before any normalisation (paper, 5.1 and 5.3).

A condition is written ``name`` or ``name:level``:

- ``clean``
- ``awgn:DB``: white Gaussian noise at a signal-to-noise ratio in dB, ``sigma = sqrt(mean(x^2) / 10^(DB/10))`` with the
  mean over the whole image.
- ``salt-pepper:SHARE``: each pixel (all its channels) becomes white or black with this probability, half and half.
- ``poisson:PEAK``: ``poisson(x PEAK) / PEAK``.
- ``wald:MEAN,SCALE``: an inverse Gaussian value in 8-bit units is added to every channel value.

Results are clipped to [0, 1]. Three more conditions are no draws on given images; see :mod:`hybrid.conditions.perturb`:

- ``fgsm:EPS``: a step of EPS 8-bit units along the sign of a source model's gradient (:mod:`hybrid.conditions.attack`).
- ``corruption:NAME,SEVERITY``: a common corruption, computed on the fly (:mod:`hybrid.conditions.corruptions`).
- ``cifar10-c:NAME,SEVERITY``: the same from the published files of CIFAR-10-C.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hybrid.conditions.corruptions import CORRUPTIONS
from snn.runtime.errors import UserError, check

Noise = Callable[[Tensor, tuple[float, ...], torch.Generator], Tensor]


def awgn_sigma(images: Tensor, decibel: float) -> Tensor:
    """Standard deviation (B, 1, 1, 1) that gives each image in [0, 1], (B, C, H, W), this signal-to-noise ratio."""
    power = images.square().mean(dim=(1, 2, 3), keepdim=True)
    return (power / 10 ** (decibel / 10)).sqrt()


def _clean(images: Tensor, levels: tuple[float, ...], generator: torch.Generator) -> Tensor:
    return images


def _awgn(images: Tensor, levels: tuple[float, ...], generator: torch.Generator) -> Tensor:
    normal = torch.randn(images.shape, generator=generator, device=images.device)
    return images + awgn_sigma(images, levels[0]) * normal.to(images.dtype)


def _salt_pepper(images: Tensor, levels: tuple[float, ...], generator: torch.Generator) -> Tensor:
    batch, _, height, width = images.shape
    draw = torch.rand((batch, 1, height, width), generator=generator, device=images.device)
    (share,) = levels
    return images.masked_fill(draw < share, 0.0).masked_fill(draw < share / 2, 1.0)


def _poisson(images: Tensor, levels: tuple[float, ...], generator: torch.Generator) -> Tensor:
    (peak,) = levels
    return torch.poisson(images * peak, generator=generator) / peak


def _wald(images: Tensor, levels: tuple[float, ...], generator: torch.Generator) -> Tensor:
    return images + inverse_gaussian(images.shape, *levels, generator).to(images) / 255


def inverse_gaussian(shape: torch.Size, mean: float, scale: float, generator: torch.Generator) -> Tensor:
    """Draws from the inverse Gaussian distribution, float64, on the generator's device.

    By the transformation of Michael, Schucany and Haas (1976): a squared normal number y determines two candidates,
    whose product is mean^2; the smaller is taken with probability mean / (mean + it). Written so that nothing cancels.
    """
    options = {"generator": generator, "device": generator.device, "dtype": torch.float64}
    r = torch.randn(shape, **options).square() * (mean / (2 * scale))
    larger = 1 + r + (r * (r + 2)).sqrt()
    small = torch.rand(shape, **options) * (1 + 1 / larger) <= 1
    return mean * torch.where(small, 1 / larger, larger)


@dataclass(frozen=True)
class _Kind:
    function: Noise | None
    """None: not a draw on given images."""
    expected: str
    """The form of the level, for messages."""
    ranges: tuple[tuple[float, float], ...]
    """Allowed smallest and largest value of each number."""


_NAMES = ", ".join(CORRUPTIONS)


_KINDS = {
    "clean": _Kind(_clean, "clean takes no level", ()),
    "awgn": _Kind(_awgn, "awgn:DB with a signal-to-noise ratio of -20 to 100 dB", ((-20, 100),)),
    "salt-pepper": _Kind(_salt_pepper, "salt-pepper:SHARE with a share of pixels from 0 to 1", ((0, 1),)),
    "poisson": _Kind(_poisson, "poisson:PEAK with a peak of 1 to 1000000", ((1, 1e6),)),
    "wald": _Kind(
        _wald,
        "wald:MEAN,SCALE with a mean and a scale of 0.001 to 255 (8-bit units)",
        ((1e-3, 255), (1e-3, 255)),
    ),
    "fgsm": _Kind(None, "fgsm:EPS with a step of 0 to 255 (8-bit units)", ((0, 255),)),
    "corruption": _Kind(None, f"corruption:NAME,SEVERITY with a severity of 1 to 5 and one of {_NAMES}", ((1, 5),)),
    "cifar10-c": _Kind(None, f"cifar10-c:NAME,SEVERITY with a severity of 1 to 5 and one of {_NAMES}", ((1, 5),)),
}


DRAWN = tuple(name for name, kind in _KINDS.items() if kind.function)
"""Kinds that can be made anew with every generator."""


@dataclass(frozen=True)
class Condition:
    """A perturbation with its level."""

    name: str
    """As written, for example awgn:20."""
    kind: str
    levels: tuple[float, ...]
    corruption: str = ""
    """Its name, where the condition is one."""

    @property
    def key(self) -> str:
        """The same for different spellings of one condition, as awgn:20 and awgn:20.0."""
        return f"{self.kind}{self.corruption}{self.levels}"

    @property
    def drawn(self) -> bool:
        """Whether :meth:`apply` can make it, anew with every generator."""
        return self.kind in DRAWN

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Perturbed images.

        Args:
            images: floating point (B, C, H, W) in [0, 1].
            generator: on the device of ``images``.

        Returns:
            Like ``images``, clipped to [0, 1].
        """
        return _KINDS[self.kind].function(images, self.levels, generator).clamp(0, 1)

    @property
    def snr(self) -> float | None:
        """Nominal signal-to-noise ratio in dB, where the condition states one."""
        return self.levels[0] if self.kind == "awgn" else None


def parse_condition(text: str, flag: str = "`noise`") -> Condition:
    """Read ``name`` or ``name:level``; :class:`UserError`, naming ``flag``, for an unknown name or level."""
    kind, colon, level = text.partition(":")
    check(kind in _KINDS, f"{flag} {text}: unknown noise {kind!r}; choose from {', '.join(_KINDS)}")
    expected, corruption = _KINDS[kind], ""
    if kind in ("corruption", "cifar10-c"):
        corruption, _, level = level.partition(",")
        check(corruption in CORRUPTIONS, f"{flag} {text}: unknown corruption; expected {expected.expected}")
    try:
        levels = tuple(float(part) for part in level.split(",")) if colon else ()
    except ValueError as error:
        raise UserError(f"{flag} {text}: level {level!r} is not a number; expected {expected.expected}") from error
    valid = len(levels) == len(expected.ranges) and all(
        low <= value <= high for value, (low, high) in zip(levels, expected.ranges, strict=True)
    )
    whole = not corruption or all(value == int(value) for value in levels)
    check(valid and whole, f"{flag} {text}: level out of range; expected {expected.expected}")
    return Condition(text, kind, levels, corruption)
