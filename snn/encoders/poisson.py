"""Poisson spike trains: each step draws independently."""

from typing import TYPE_CHECKING

from snn.encoders.base import Encoder
from snn.parameters import Encoding
from snn.registries import register_encoder

if TYPE_CHECKING:
    from torch import Tensor

    from snn.engines.gpu.packed import PackedSpikes
    from snn.spikes import SpikeEvents


@register_encoder("poisson")
class Poisson(Encoder):
    """Trains whose steps spike independently, F T spikes on average."""

    def dense(self, images: "Tensor", p: Encoding, seeds: "Tensor") -> "Tensor":
        import torch

        from snn.encoding import neuron_keys
        from snn.runtime.random import draw_bits, event_key, happens

        key, neuron = neuron_keys(images, seeds)
        chance = self.chances(p).to(images.device)[images.long()]
        spikes = torch.zeros((p.n_steps, *images.shape), dtype=torch.bool, device=images.device)
        for t in range(p.active_steps):
            spikes[t] = happens(draw_bits(event_key(key, t), neuron), chance)
        return spikes

    def events(self, images: "Tensor", p: Encoding, seeds: "Tensor") -> "SpikeEvents":
        from snn.engines import kernels
        from snn.spikes import encode_rasters

        chance = self.chances(p).numpy()
        return encode_rasters(images, kernels.encode_poisson, seeds, chance, p.n_steps, p.active_steps)

    def packed(self, images: "Tensor", p: Encoding, seeds: "Tensor") -> "PackedSpikes":
        from snn.engines.gpu import kernels, launch

        return launch.encode(images, kernels.encode_poisson, self.chances(p).to(images.device), p, seeds)

    def chances(self, p: Encoding) -> "Tensor":
        """Chance of a spike in a step by 8-bit intensity, int32 (256,) (:func:`snn.runtime.random.as_chance`)."""
        from snn.encoding import intensity_rates
        from snn.runtime.random import as_chance

        return as_chance(intensity_rates(p) * (p.presentation / 1000 / p.active_steps))
