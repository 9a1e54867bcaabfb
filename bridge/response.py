"""How simulated neurons answer their drive: the data to which an SAU is fitted."""

import torch
from torch import Tensor

from snn.command import progress
from snn.draws import draw_seeds
from snn.encode import encode_for
from snn.events import spike_counts
from snn.layer import SpikingConv2d
from snn.weights import SpikingNetwork


def simulate_counts(
    network: SpikingNetwork, images: Tensor, generator: torch.Generator, batch_size: int = 16
) -> list[Tensor]:
    """Spike counts of every neuron of every layer, inhibition off, thresholds as after learning.

    Args:
        network: learned layers.
        images: uint8 (N, C, H, W).
        generator: draws the seeds of the images.

    Returns:
        One int16 tensor (N, C_out, H, W) per layer.
    """
    parts: list[list[Tensor]] = [[] for _ in network.layers]
    for batch in progress(images.split(batch_size), "simulating responses", "batch"):
        spikes = encode_for(batch, network.learning.encoding, draw_seeds(len(batch), generator))
        for part, layer_spikes in zip(parts, network.simulate(spikes), strict=True):
            part.append(spike_counts(layer_spikes))
    return [torch.cat(part) for part in parts]


def neuron_response(layer: SpikingConv2d, currents: Tensor, presentation: float) -> Tensor:
    """Rates in Hz (N,) of one neuron with the first map's threshold at constant currents (N,), over T in ms."""
    neuron = layer.with_values(gain=torch.ones_like(layer.gain[:1]), v_threshold=layer.v_threshold[:1])
    drive = currents.reshape(1, 1, 1, -1)
    spikes = neuron.simulate_drive([drive] * round(presentation / layer.dt), inhibition=False)
    return spikes.sum(0).flatten() * (1000 / presentation)
