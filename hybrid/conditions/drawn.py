"""Noise that a generator draws (paper, 5.1 and 5.3).

- ``clean``: none.
- ``awgn:DB``: white Gaussian noise at a signal-to-noise ratio in dB, ``sigma = sqrt(mean(x^2) / 10^(DB/10))`` with the
  mean over the whole image.
- ``salt-pepper:SHARE``: each pixel (all its channels) becomes white or black with this probability, half and half.
- ``poisson:PEAK``: ``poisson(x PEAK) / PEAK``.
- ``wald:MEAN,SCALE``: an inverse Gaussian value in 8-bit units is added to every channel value.

Results are clipped to [0, 1].
"""

import torch
from torch import Tensor

from hybrid.conditions import Noise, register_condition


def mean_power(images: Tensor) -> Tensor:
    """Mean square (B, 1, 1, 1) of each image in [0, 1], (B, C, H, W)."""
    return images.square().mean(dim=(1, 2, 3), keepdim=True)


def sigma_at(power: Tensor, decibel: float) -> Tensor:
    """Standard deviation of noise that gives images of this mean power this signal-to-noise ratio."""
    return (power / 10 ** (decibel / 10)).sqrt()


def awgn_sigma(images: Tensor, decibel: float) -> Tensor:
    """Standard deviation (B, 1, 1, 1) that gives each image in [0, 1], (B, C, H, W), this signal-to-noise ratio."""
    return sigma_at(mean_power(images), decibel)


def inverse_gaussian(shape: torch.Size, mean: float, scale: float, generator: torch.Generator) -> Tensor:
    """Draws from the inverse Gaussian distribution, float64, on the generator's device.

    By the transformation of Michael, Schucany and Haas (1976): a squared normal number y determines two candidates,
    whose product is mean^2; the smaller is taken with probability mean / (mean + it). Written so that nothing cancels.
    """
    device, dtype = generator.device, torch.float64
    normal = torch.randn(shape, generator=generator, device=device, dtype=dtype)
    r = normal.square() * (mean / (2 * scale))
    larger = 1 + r + (r * (r + 2)).sqrt()
    uniform = torch.rand(shape, generator=generator, device=device, dtype=dtype)
    small = uniform * (1 + 1 / larger) <= 1
    return mean * torch.where(small, 1 / larger, larger)


@register_condition("clean")
class Clean(Noise):
    """Images as they are."""

    draws = False

    def add(self, images: Tensor, generator: torch.Generator) -> Tensor:
        return images


CLEAN = Clean("clean")


@register_condition("awgn")
class WhiteGaussianNoise(Noise):
    """White Gaussian noise of a stated signal-to-noise ratio."""

    form, meaning, ranges = "DB", "a signal-to-noise ratio of -20 to 100 dB", ((-20, 100),)

    @property
    def snr(self) -> float:
        return self.levels[0]

    def add(self, images: Tensor, generator: torch.Generator) -> Tensor:
        normal = torch.randn(images.shape, generator=generator, device=images.device)
        return images + awgn_sigma(images, self.snr) * normal.to(images.dtype)


@register_condition("salt-pepper")
class SaltAndPepper(Noise):
    """White and black pixels."""

    form, meaning, ranges = "SHARE", "a share of pixels from 0 to 1", ((0, 1),)

    def add(self, images: Tensor, generator: torch.Generator) -> Tensor:
        batch, _, height, width = images.shape
        draw = torch.rand((batch, 1, height, width), generator=generator, device=images.device)
        (share,) = self.levels
        return images.masked_fill(draw < share, 0.0).masked_fill(draw < share / 2, 1.0)


@register_condition("poisson")
class PoissonNoise(Noise):
    """Counts of photons."""

    form, meaning, ranges = "PEAK", "a peak of 1 to 1000000", ((1, 1e6),)

    def add(self, images: Tensor, generator: torch.Generator) -> Tensor:
        (peak,) = self.levels
        return torch.poisson(images * peak, generator=generator) / peak


@register_condition("wald")
class WaldNoise(Noise):
    """Inverse Gaussian values, which are all positive."""

    form = "MEAN,SCALE"
    meaning = "a mean and a scale of 0.001 to 255 (8-bit units)"
    ranges = ((1e-3, 255), (1e-3, 255))

    def add(self, images: Tensor, generator: torch.Generator) -> Tensor:
        mean, scale = self.levels
        return images + inverse_gaussian(images.shape, mean, scale, generator).to(images) / 255
