"""Homeostasis of a layer between two updates (ours). :class:`snn.learning.Homeostasis` explains each part."""

import torch
from torch import Tensor

from snn.calibration import LOWEST_ABOVE_REST
from snn.layer import SpikingConv2d
from snn.learning import Homeostasis

LARGEST_LTD_FACTOR = 20.0
"""Largest factor by which the LTD magnitude of a channel is raised or lowered (ours)."""


def balance(layer: SpikingConv2d, start: SpikingConv2d, wins: Tensor, p: Homeostasis) -> SpikingConv2d:
    """A layer with new conductances, its gains and thresholds moved by homeostasis.

    ``start`` is the layer before its first update, ``wins`` the spikes of each channel in this one, (C_out,).
    """
    if p.synaptic_scaling:
        usual = start.weight.abs().sum((1, 2, 3)).mean()
        # Bounded: otherwise one event could drive a channel that has lost almost all conductance.
        total = layer.weight.abs().sum((1, 2, 3)).clamp(min=0.02 * usual)
        layer = layer.with_values(gain=start.gain * (usual / total))
    share = wins * (len(wins) / wins.sum().clamp(min=1))
    threshold = layer.v_threshold + p.threshold_step * (share - 1)
    neuron, floor = layer.lif.v_threshold, layer.lif.v_leak + LOWEST_ABOVE_REST
    low = min(neuron, max(neuron - p.threshold_range, floor))
    return layer.with_values(v_threshold=threshold.clamp(low, neuron + p.threshold_range))


def balance_ltd(factor: Tensor, g: Tensor, p: Homeostasis) -> Tensor:
    """LTD factors (C_out, 1, 1, 1) for the next update; ``g``: conductances as shares of their range."""
    if p.mean_conductance == 0:
        return factor
    moved = factor * torch.exp(p.ltd_step * (g.double().mean((1, 2, 3), keepdim=True) - p.mean_conductance))
    # Bounded: otherwise it would grow without end in a channel that has no events.
    return moved.clamp(1 / LARGEST_LTD_FACTOR, LARGEST_LTD_FACTOR)
