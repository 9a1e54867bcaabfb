"""Images to spike trains (paper, sections 4.2 and 4.3).

An intensity x in [0, 1] becomes a train of rate F = f_min + x (f_max - f_min). How its spikes lie in time is up to the
encoder (:mod:`snn.encoders`).

The presentation may end with a quiet time without input. The same spikes then come in the time before it, so that what
the last of them start (their pulses, and those of the layers above) ends with the presentation and counts in full.
"""

import torch
from torch import Tensor

from snn.parameters import Encoding
from snn.registries import ENCODERS
from snn.runtime.errors import check
from snn.runtime.random import ENCODE, image_key


def encode(images: Tensor, p: Encoding, seeds: Tensor) -> Tensor:
    """Spike trains of uint8 images (B, C, H, W): bool (T, B, C, H, W), at most one spike a step.

    ``seeds`` of the images (:func:`snn.runtime.random.draw_seeds`) give phases or Poisson spikes.
    """
    check_images(images)
    return ENCODERS[p.kind]().dense(images, p, seeds)


def check_images(images: Tensor) -> None:
    """Raise :class:`UserError` unless images are uint8."""
    check(images.dtype == torch.uint8, f"`images` are {images.dtype}: expected uint8 values 0 to 255")


def intensity_rates(p: Encoding) -> Tensor:
    """Rates of all 8-bit intensities, in Hz, float64 (256,)."""
    return p.rate(torch.arange(256, dtype=torch.float64) / 255)


def neuron_keys(images: Tensor, seeds: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Key of each image's draws, two of (B, 1, 1, 1), and number of each neuron (C, H, W), place by place."""
    first, second = (half.reshape(-1, 1, 1, 1) for half in image_key(seeds, ENCODE))
    channels, height, width = images.shape[1:]
    neuron = torch.arange(channels * height * width, device=images.device).reshape(height, width, channels)
    return (first, second), neuron.permute(2, 0, 1)


def regular_trains(rates: Tensor, p: Encoding) -> Tensor:
    """The paper's regular trains: the n-th spike lies in the step in which F t reaches n, so T holds floor(F T) spikes.

    With a quiet time, t runs from 0 to T in the time before it. Rates F are in Hz, float64, of any shape; the result is
    bool (T, *rates.shape).
    """
    step = torch.arange(p.n_steps + 1, dtype=torch.float64, device=rates.device).reshape(-1, *[1] * rates.dim())
    seconds = step.clamp(max=p.active_steps) * (p.presentation / 1000 / p.active_steps)
    # Without the margin, rounding would lose the last spike where F T is a whole number, as 20 Hz x 300 ms.
    reached = torch.floor(rates * seconds + 1e-9)
    return reached[1:] > reached[:-1]
