"""Regular spike trains with exact counts (paper, 4.3)."""

from functools import cache
from typing import TYPE_CHECKING

from snn.encoders.base import Encoder
from snn.parameters import Encoding
from snn.registries import register_encoder

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from snn.engines.gpu.packed import PackedSpikes
    from snn.spikes import SpikeEvents


@register_encoder("regular")
class Regular(Encoder):
    """Trains of exactly floor(F T) spikes, each turned in time, end to start, by a random phase.

    Without the phase, equal pixels would spike together.
    """

    def dense(self, images: "Tensor", p: Encoding, seeds: "Tensor") -> "Tensor":
        import torch

        from snn.encoding import intensity_rates, neuron_keys, regular_trains
        from snn.runtime.random import draw_bits, event_key

        key, neuron = neuron_keys(images, seeds)
        shift = draw_bits(event_key(key, 0), neuron) * p.active_steps >> 32
        trains = regular_trains(intensity_rates(p), p).T.to(images.device)
        # For each pixel, the steps of its intensity's train, turned by its phase.
        b, pixel, step = trains[images.flatten(1).long()].nonzero().T
        step = (step + shift.flatten(1)[b, pixel]) % p.active_steps
        spikes = torch.zeros((p.n_steps, *images.shape), dtype=torch.bool, device=images.device)
        spikes.flatten(2)[step, b, pixel] = True
        return spikes

    def events(self, images: "Tensor", p: Encoding, seeds: "Tensor") -> "SpikeEvents":
        from snn.engines import kernels
        from snn.spikes import encode_rasters

        return encode_rasters(images, kernels.encode_regular, seeds, *_spike_times(p), p.n_steps, p.active_steps)

    def packed(self, images: "Tensor", p: Encoding, seeds: "Tensor") -> "PackedSpikes":
        from snn.engines.gpu import kernels, launch

        return launch.encode(images, kernels.encode_regular, launch.regular_words(p, images.device), p, seeds)


@cache
def _spike_times(p: Encoding) -> "tuple[np.ndarray, np.ndarray]":
    """Steps of the spikes of all intensities in turn, at phase 0, and where those of each intensity begin (257,)."""
    import torch

    from snn.encoding import intensity_rates, regular_trains

    level, step = regular_trains(intensity_rates(p), p).T.nonzero().T
    return step.numpy(), torch.searchsorted(level, torch.arange(257)).numpy()
