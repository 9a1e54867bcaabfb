"""Networks to set beside one that has learned: what do its conductances contribute, and what their mean?"""

from dataclasses import replace

import torch
from torch import Tensor

from snn.calibration import finalise, sample_drive
from snn.engines.base import choose_engine, feed_forward
from snn.learning import Conductances
from snn.network import LearnedLayer, SpikingNetwork
from snn.runtime.random import draw_seeds, stream


def control(network: SpikingNetwork, images: Tensor, kind: Conductances, seed: int = 0) -> SpikingNetwork:
    """``network`` with other conductances, gains and thresholds set again so that each layer passes on the same rate.

    Args:
        network: learned.
        images: uint8 (N, C, H, W), on which rates are measured.
        kind: learned (nothing changes), shuffled (values permuted within each map), random (drawn uniformly between
            g_min and g_max, each map's drive scaled by its total conductance) or balanced (learned less each kernel's
            mean, as feed-forward inhibition by all inputs alike would have it: drives follow contrast, not light).
        seed: of all draws.
    """
    if kind == "learned":
        return network
    p, engine = network.learning, choose_engine("auto", images.device)
    layers: list[LearnedLayer] = []
    images = images[: p.calibration_images]
    seeds = draw_seeds(len(images), stream("control presentation", seed)).to(images.device)
    for number, learned in enumerate(network.layers):
        old, generator = learned.layer, stream("control", kind, seed, number)
        shape = old.conductance.shape
        if kind == "shuffled":
            order = torch.rand((shape[0], old.conductance[0].numel()), generator=generator).argsort(1)
            values = old.conductance.flatten(1).gather(1, order.to(images.device)).reshape(shape)
            gain = old.gain
        elif kind == "balanced":
            old = replace(old, geometry=replace(old.geometry, feed_forward_inhibition=True))
            values, gain = old.conductance, old.gain
        else:
            uniform = torch.rand(shape, generator=generator).to(old.conductance)
            values = p.stdp.g_min + (p.stdp.g_max - p.stdp.g_min) * uniform
            gain = (1 / values.mean((1, 2, 3))).to(old.gain)
        layer = old.with_values(
            conductance=values, gain=gain, v_threshold=torch.full_like(old.v_threshold, p.lif.v_threshold)
        )
        below = [control_layer.layer for control_layer in layers]
        pre = feed_forward(engine, below, network.encode(engine, images, seeds))
        drive = sample_drive(engine, layer, pre, stream("control places", seed, number))
        layer = finalise(engine, layer, drive, p.output_rate * p.encoding.presentation / 1000, p.threshold_lowering)
        layers.append(replace(learned, layer=layer))
    return replace(network, layers=tuple(layers))
