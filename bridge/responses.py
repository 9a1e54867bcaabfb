"""Simulated spike counts and their drives: the data to which a Special Activation Unit is fitted.

The simulation uses the learner's own neuron, encoder and presentation time. Thresholds are those after learning, and
inhibition is off.
"""

import torch
from torch import Tensor

from snn.engines.base import choose_engine
from snn.engines.norse import simulate_drive
from snn.layer import SpikingConv2d
from snn.network import SpikingNetwork
from snn.parameters import Encoding
from snn.runtime.progress import progress
from snn.runtime.random import draw_seeds
from snn.spikes import spike_counts


def simulate_counts(
    network: SpikingNetwork, images: Tensor, generator: torch.Generator, batch_size: int = 16
) -> list[Tensor]:
    """Spikes in a presentation of every neuron: int16 (N, C, H, W) of the encoder, then of each layer, on the CPU.

    Images, uint8 (N, C, H, W), lie on the network's device. ``generator`` draws their seeds; ``batch_size`` of them are
    simulated together.
    """
    engine = choose_engine("auto", images.device)
    parts: list[list[Tensor]] = [[] for _ in range(len(network.layers) + 1)]
    for batch in progress(images.split(batch_size), "simulating responses", "batch"):
        seeds = draw_seeds(len(batch), generator).to(batch.device)
        spikes = network.encode(engine, batch, seeds)
        for part, layer_spikes in zip(parts, [spikes, *network.simulate(engine, spikes)], strict=True):
            part.append(spike_counts(layer_spikes).cpu())
    return [torch.cat(part) for part in parts]


def neuron_response(layer: SpikingConv2d, currents: Tensor, encoding: Encoding) -> Tensor:
    """Spikes in a presentation, int64 (N,), of one neuron at constant currents, whose means over it are ``currents``.

    A current flows while input spikes come, not in the quiet time at the end. The threshold is the first channel's.
    """
    neuron = layer.with_values(gain=torch.ones_like(layer.gain[:1]), v_threshold=layer.v_threshold[:1])
    drive = (currents * (encoding.n_steps / encoding.active_steps)).reshape(1, 1, 1, -1)
    quiet = torch.zeros_like(drive)
    steps = [drive if step < encoding.active_steps else quiet for step in range(encoding.n_steps)]
    return simulate_drive(neuron, steps, inhibition=False).sum(0).flatten()
