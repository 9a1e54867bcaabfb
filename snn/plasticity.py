"""What a learning rule's draws do to conductances (paper, Eq. 2 and 4).

With g = (G - G_min)/(G_max - G_min), a synapse of conductance G changes by

    dG_p = alpha_p exp(-beta_p g)        (LTP)        dG_d = alpha_d exp(-beta_d (1 - g))        (LTD)      (2)

each time a draw of the rule succeeds (:mod:`snn.rules`). Draws of a mini-batch are counted for each shared synapse by
an engine, and applied together.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from snn.engines.base import Engine, EventCounts
from snn.layer import SpikingConv2d
from snn.parameters import STDPParameters
from snn.registries import RULES
from snn.rules.base import Rule
from snn.spikes import Spikes, spike_shape


class Rates(NamedTuple):
    """Rates of presynaptic neurons for Eq. 5; few values occur, because spikes are counted."""

    level: Tensor
    """Index into ``fn`` of each neuron, integers (B, C_in, H, W)."""
    fn: Tensor
    """(f - f_min)/(f_max - f_min) clipped to [0, 1], (L,)."""


def magnitude(conductance: Tensor, p: STDPParameters) -> tuple[Tensor, Tensor]:
    """Eq. 2: (dG_p, dG_d), both positive, the shape of ``conductance``."""
    g = (conductance - p.g_min) / (p.g_max - p.g_min)
    return p.alpha_p * torch.exp(-p.beta_p * g), p.alpha_d * torch.exp(-p.beta_d * (1 - g))


def count_events(
    engine: Engine, layer: SpikingConv2d, pre: Spikes, post: Spikes, rates: Rates, p: STDPParameters, seeds: Tensor
) -> EventCounts:
    """Draw every synapse's change at every postsynaptic spike of a presentation, by the rule of ``p``.

    ``pre`` and ``post`` are the layer's spikes, ``rates`` those of its presynaptic neurons. The Bernoulli trials of
    Eq. 5 are drawn from the ``seeds`` of the images.
    """
    rule: Rule = RULES[p.rule](p)
    tables = rule.chances(len(pre), layer.dt, rates.fn)
    return engine.count_events(pre, post, rates.level, tables, layer.convolution(spike_shape(pre)), seeds)


def saturated_share(
    engine: Engine, layer: SpikingConv2d, pre: Spikes, post: Spikes, rates: Rates, p: STDPParameters
) -> tuple[float, float]:
    """Shares of the synaptic events whose probability of LTP, or of LTD, is at its peak, where rates act no more.

    Arguments as for :func:`count_events`.
    """
    rule: Rule = RULES[p.rule](p)
    tables = rule.saturated_chances(len(pre), layer.dt, rates.fn)
    seeds = torch.zeros(len(rates.level), dtype=torch.int64, device=rates.level.device)
    counts = engine.count_events(pre, post, rates.level, tables, layer.convolution(spike_shape(pre)), seeds)
    events = counts.events.sum().clamp(min=1)
    return (counts.ltp.sum() / events).item(), (counts.ltd.sum() / events).item()


def update(conductance: Tensor, counts: EventCounts, p: STDPParameters, ltd_factor: Tensor | float = 1.0) -> Tensor:
    """Eq. 4 over a mini-batch: dG = (mean change per event) x min(events, n_cap), clipped to [g_min, g_max].

    ``ltd_factor`` multiplies dG_d (homeostasis; 1 is the plain rule) and broadcasts against the conductances.
    """
    increase, decrease = magnitude(conductance.double(), p)
    scale = counts.events.clamp(max=p.n_cap) / counts.events.clamp(min=1)
    change = (increase * counts.ltp - ltd_factor * decrease * counts.ltd) * scale
    return (conductance.double() + change).clamp(p.g_min, p.g_max).to(conductance.dtype)
