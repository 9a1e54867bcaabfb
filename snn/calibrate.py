"""Gain and threshold of a layer, set by measured firing rates.

Fan-in differs tenfold between layers, so a layer's gain i_syn is found by simulation: at the start of its learning, a
neuron fires a stated number of times a presentation. Once learned, its threshold is lowered (paper, 4.2), but kept
above rest so that no input means no spike, until the next layer receives a stated mean rate; where the lowest
threshold does not reach it, the gain makes up the rest. Inhibition is off in all these measurements.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from snn.errors import check
from snn.layer import SpikingConv2d

BISECTIONS = 14
PLACES = 4096
"""Places (of all calibration images together) at which rates are measured."""
LOWEST_ABOVE_REST = 1.0
"""The lowest threshold lies this far above rest, in mV (ours)."""


def sample_drive(layer: SpikingConv2d, pre_spikes: Tensor, generator: torch.Generator) -> Tensor:
    """Drive before the gain of all maps at up to :data:`PLACES` random places: (T, P, C_out, 1, 1).

    Args:
        layer: whose drive.
        pre_spikes: bool (T, B, C_in, H, W).
        generator: chooses the places.
    """
    chosen, steps = None, []
    for drive in layer.convolve(pre_spikes):
        places = drive.permute(0, 2, 3, 1).flatten(0, 2)
        if chosen is None:
            chosen = torch.randperm(len(places), generator=generator, device=places.device)[:PLACES]
        steps.append(places[chosen, :, None, None])
    return torch.stack(steps)


def mean_count(layer: SpikingConv2d, drive: Tensor) -> float:
    """Mean spikes per neuron and presentation, inhibition off; ``drive`` from :func:`sample_drive`."""
    spikes = layer.simulate_drive(drive, inhibition=False)
    return spikes.sum().item() / spikes[0].numel()


def calibrate_gain(layer: SpikingConv2d, drive: Tensor, target: float) -> SpikingConv2d:
    """Scale ``gain`` (all maps alike) so that :func:`mean_count` is ``target`` spikes."""
    peak = drive.amax().item()
    check(
        peak > 0,
        "no presynaptic spike arrives, so no gain makes this layer fire; raise the rates of its input",
    )

    def scaled(factor: float) -> SpikingConv2d:
        return layer.with_values(gain=layer.gain * factor)

    # At this factor the strongest drive of all just reaches the threshold: nothing fires yet.
    rheobase = (layer.v_threshold.amin().item() - layer.lif.v_leak) / layer.lif.millivolts_per_current
    silent = rheobase / (peak * layer.gain.amax().item())
    high = 2 * silent
    while mean_count(scaled(high), drive) < target:
        high *= 2
        check(high < silent * 2**20, f"no gain gives {target} spikes a presentation; lower the target")
    return scaled(_bisect(lambda factor: mean_count(scaled(factor), drive), 0.0, high, target))


def lower_threshold(layer: SpikingConv2d, drive: Tensor, target: float) -> SpikingConv2d:
    """Lower ``v_threshold`` (all maps alike) from ``lif.v_threshold`` until :func:`mean_count` is ``target`` spikes.

    Raises the gain instead where the lowest threshold is not enough. The threshold is never raised.
    """

    def at(threshold: float) -> SpikingConv2d:
        return layer.with_values(v_threshold=torch.full_like(layer.v_threshold, threshold))

    floor = layer.lif.v_leak + LOWEST_ABOVE_REST
    if mean_count(at(floor), drive) < target:
        return calibrate_gain(at(floor), drive, target)
    start = layer.lif.v_threshold
    if mean_count(at(start), drive) >= target:
        return at(start)
    # Bisect on the lowering, in which the count increases.
    return at(start - _bisect(lambda by: mean_count(at(start - by), drive), 0.0, start - floor, target))


def _bisect(count: Callable[[float], float], low: float, high: float, target: float) -> float:
    """Smallest argument found at which ``count`` reaches ``target``."""
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        if count(middle) < target:
            low = middle
        else:
            high = middle
    return high


def rate_range(spikes: Tensor, presentation: float) -> tuple[float, float]:
    """1st and 99th percentile of the neurons' rates in Hz: f_min and f_max of Eq. 5 for a hidden layer.

    Args:
        spikes: bool (T, B, C, H, W) of a calibration set.
        presentation: T in ms.
    """
    rates = spikes.sum(0).flatten().float() * (1000 / presentation)
    low, high = (rates.kthvalue(1 + round(q * (len(rates) - 1))).values.item() for q in (0.01, 0.99))
    check(high > low, f"the rates of the layer below all lie at {low:.1f} Hz: its neurons carry no information")
    return low, high


def normalised_rates(spikes: Tensor, presentation: float, limits: tuple[float, float]) -> Tensor:
    """fn of Eq. 5, (B, C, H, W) in [0, 1], from the rates measured over the presentation."""
    low, high = limits
    rates = spikes.sum(0).float() * (1000 / presentation)
    return ((rates - low) / (high - low)).clamp(0, 1)
