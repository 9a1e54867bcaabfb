"""Gain and threshold of a layer, set by measured firing rates.

Fan-in differs tenfold between layers, so a layer's gain i_syn is found by simulation: at the start of its learning, a
neuron fires a stated number of times a presentation. Once learned, its threshold is lowered (paper, 4.2), but kept
above rest so that no input means no spike, and the gain is set again so that the next layer receives a stated mean
rate. Inhibition is off in all these measurements.
"""

import torch
from torch import Tensor

from snn.engines.base import Engine
from snn.layer import SpikingConv2d
from snn.plasticity import Rates
from snn.runtime.errors import check
from snn.spikes import Spikes, batch_size, spike_counts, spike_shape

BISECTIONS = 14
PLACES = 4096
"""Places (of all calibration images together) at which rates are measured."""
LOWEST_ABOVE_REST = 1.0
"""The lowest threshold lies this far above rest, in mV (ours)."""


def sample_drive(engine: Engine, layer: SpikingConv2d, pre: Spikes, generator: torch.Generator) -> Tensor:
    """Drive before the gain of all channels at up to :data:`PLACES` random places: (T, P, C_out).

    ``pre`` holds presynaptic spikes. ``generator``, on the CPU, chooses the places.
    """
    places = batch_size(pre) * layer.convolution(spike_shape(pre)).places_out
    chosen = torch.randperm(places, generator=generator, device=generator.device)[:PLACES]
    return engine.sample_drive(layer, pre, chosen)


def mean_count(engine: Engine, layer: SpikingConv2d, drive: Tensor) -> float:
    """Mean spikes per neuron and presentation, inhibition off; ``drive`` from :func:`sample_drive`."""
    return engine.count_driven(layer, drive) / drive[0].numel()


def calibrate_gain(engine: Engine, layer: SpikingConv2d, drive: Tensor, target: float) -> SpikingConv2d:
    """Scale ``gain`` (all channels alike) so that :func:`mean_count` is ``target`` spikes."""
    # A channel whose conductances are all 0 receives nothing, whatever its gain.
    peak = (drive.amax((0, 1)) * layer.gain).amax().item()
    check(peak > 0, "no presynaptic spike arrives, so no gain makes this layer fire; raise the rates of its input")

    def scaled(factor: float) -> SpikingConv2d:
        return layer.with_values(gain=layer.gain * factor)

    def too_weak(factor: float) -> bool:
        return mean_count(engine, scaled(factor), drive) < target

    # At this factor the strongest drive of all just reaches the threshold: nothing fires yet.
    rheobase = (layer.v_threshold.amin().item() - layer.lif.v_leak) / layer.lif.millivolts_per_current
    silent = rheobase / peak
    low, high = 0.0, 2 * silent
    while too_weak(high):
        high *= 2
        check(high < silent * 2**20, f"no gain gives {target} spikes a presentation; lower the target")
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if too_weak(middle) else (low, middle)
    return scaled(high)


def finalise(engine: Engine, layer: SpikingConv2d, drive: Tensor, target: float, lowering: float) -> SpikingConv2d:
    """A learned layer as it drives the next one: threshold lowered, gain set so that it fires ``target`` spikes.

    ``target`` is the mean per neuron and presentation, on ``drive`` from :func:`sample_drive`. All channels get the
    neuron's threshold less ``lowering`` (mV), but at least :data:`LOWEST_ABOVE_REST` above rest.
    """
    threshold = max(layer.lif.v_threshold - lowering, layer.lif.v_leak + LOWEST_ABOVE_REST)
    lowered = layer.with_values(v_threshold=torch.full_like(layer.v_threshold, threshold))
    return calibrate_gain(engine, lowered, drive, target)


def rate_range(counts: Tensor, presentation: float) -> tuple[float, float]:
    """1st and 99th percentile of the neurons' rates in Hz: f_min and f_max of Eq. 5 for a hidden layer.

    ``counts`` holds each neuron's spikes in a presentation (ms), integers of any shape.
    """
    rates = counts.flatten().float() * (1000 / presentation)
    low, high = (rates.kthvalue(1 + round(q * (len(rates) - 1))).values.item() for q in (0.01, 0.99))
    check(high > low, f"the rates of the layer below all lie at {low:.1f} Hz: its neurons carry no information")
    return low, high


def normalised_rates(spikes: Spikes, presentation: float, limits: tuple[float, float]) -> Rates:
    """fn of Eq. 5 of every presynaptic neuron, from its rate measured over the presentation (ms); limits in Hz."""
    low, high = limits
    counts = spike_counts(spikes)
    rates = torch.arange(int(counts.amax()) + 1) * (1000 / presentation)
    return Rates(counts, ((rates - low) / (high - low)).clamp(0, 1))
