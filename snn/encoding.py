"""Images to spike trains (paper, sections 4.2 and 4.3).

An intensity x in [0, 1] becomes a train of rate F = f_min + x (f_max - f_min). A regular train holds exactly
``floor(F T)`` spikes in a presentation of duration T and is turned in time, end to start, by a random phase, so that
equal pixels do not spike together; a Poisson train draws each step independently.

The presentation may end with a quiet time without input. The same spikes then come in the time before it, so that what
the last of them start (their pulses, and those of the layers above) ends with the presentation and counts in full.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from snn.engines import kernels
from snn.engines.events import encode_events
from snn.parameters import Encoding
from snn.runtime.errors import check
from snn.runtime.random import ENCODE, as_chance, draw_bits, event_key, happens, image_key
from snn.spikes import SpikeEvents, Spikes


def encode(images: Tensor, p: Encoding, seeds: Tensor) -> Tensor:
    """Spike trains of uint8 images.

    Args:
        images: uint8 (B, C, H, W).
        p: rates and time grid.
        seeds: of the images (:func:`snn.runtime.random.draw_seeds`), for phases or Poisson spikes.

    Returns:
        bool (T, B, C, H, W), at most one spike a step.
    """
    _check_images(images)
    key = tuple(half.reshape(-1, 1, 1, 1) for half in image_key(seeds, ENCODE))
    maps, height, width = images.shape[1:]
    # Neurons are numbered place by place, as in SpikeEvents.
    neuron = torch.arange(maps * height * width, device=images.device).reshape(height, width, maps).permute(2, 0, 1)
    spikes = torch.zeros((p.n_steps, *images.shape), dtype=torch.bool, device=images.device)
    if p.kind == "poisson":
        chance = as_chance(_spike_probability(p)).to(images.device)[images.long()]
        for t in range(p.active_steps):
            spikes[t] = happens(draw_bits(event_key(key, t), neuron), chance)
        return spikes
    shift = draw_bits(event_key(key, 0), neuron) * p.active_steps >> 32
    level = images.flatten(1).long()
    trains = regular_trains(_all_rates(p), p).T.to(images.device)
    # For each pixel, the steps of its intensity's train, turned by its phase.
    b, pixel, step = trains[level].nonzero().T
    step = (step + shift.flatten(1)[b, pixel]) % p.active_steps
    spikes.flatten(2)[step, b, pixel] = True
    return spikes


def encode_sparse(images: Tensor, p: Encoding, seeds: Tensor) -> SpikeEvents:
    """The spikes of :func:`encode` as events, on the CPU."""
    _check_images(images)
    if p.kind == "poisson":
        chance = as_chance(_spike_probability(p)).numpy()
        return encode_events(images, kernels.encode_poisson, seeds, chance, p.n_steps, p.active_steps)
    return encode_events(images, kernels.encode_regular, seeds, *_spike_times(p), p.n_steps, p.active_steps)


@cache
def _spike_times(p: Encoding) -> tuple[np.ndarray, np.ndarray]:
    """Steps of the spikes of all intensities in turn, at phase 0, and where those of each intensity begin (257,)."""
    level, step = regular_trains(_all_rates(p), p).T.nonzero().T
    return step.numpy(), torch.searchsorted(level, torch.arange(257)).numpy()


def encode_for(images: Tensor, p: Encoding, seeds: Tensor) -> Spikes:
    """The form in which the device of ``images`` simulates: events on a CPU, else a tensor."""
    return (encode_sparse if images.device.type == "cpu" else encode)(images, p, seeds)


def _check_images(images: Tensor) -> None:
    check(images.dtype == torch.uint8, f"images are {images.dtype}, expected uint8 values 0 to 255")


def _all_rates(p: Encoding) -> Tensor:
    """Rates of all 8-bit intensities, in Hz, float64 (256,)."""
    return p.rate(torch.arange(256, dtype=torch.float64) / 255)


def _spike_probability(p: Encoding) -> Tensor:
    return _all_rates(p) * (p.presentation / 1000 / p.active_steps)


def regular_trains(rates: Tensor, p: Encoding) -> Tensor:
    """The paper's regular trains: the n-th spike lies in the step in which F t reaches n, so T holds floor(F T) spikes.

    With a quiet time, t runs from 0 to T in the time before it.

    Args:
        rates: F in Hz, float64, any shape.
        p: time grid.

    Returns:
        bool (T, *rates.shape).
    """
    step = torch.arange(p.n_steps + 1, dtype=torch.float64, device=rates.device).reshape(-1, *[1] * rates.dim())
    seconds = step.clamp(max=p.active_steps) * (p.presentation / 1000 / p.active_steps)
    # Without the margin, rounding would lose the last spike where F T is a whole number, as 20 Hz x 300 ms.
    reached = torch.floor(rates * seconds + 1e-9)
    return reached[1:] > reached[:-1]
