"""Frequency-dependent stochastic STDP (paper, Eq. 2, 4 and 5) as functions on tensors.

With g = (G - G_min)/(G_max - G_min), a synapse of conductance G changes by

    dG_p = alpha_p exp(-beta_p g)        (LTP)        dG_d = alpha_d exp(-beta_d (1 - g))        (LTD)      (2)

each time a draw with the following probability succeeds; f is the presynaptic rate, fn = (f - f_min)/(f_max - f_min)
clipped to [0, 1], dt = t_post - t_pre:

    P_p = gamma_p exp(-dt / (tau_p (1 + phi_p fn)))      P_d = gamma_d exp(dt / (tau_d (1 + phi_d fn)))     (5)

Pairing ``post`` (default): at each postsynaptic spike, a last presynaptic spike within ``ltp_window`` gives LTP with
P_p; an older one gives LTD with ``gamma_d min(1, exp((dt - T_d)/(tau_d (1 + phi_d fn))))``, T_d = 1/f_min; none at
all gives LTD with gamma_d. Pairing ``two-sided``: LTP as above, and LTD with Eq. 5 as printed for the next
presynaptic spike after the postsynaptic one (dt < 0).

Rule ``fd`` is Eq. 5; ``stochastic`` sets phi = 0; ``deterministic`` makes every change certain.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from snn.engines.events import count_event_pairs
from snn.engines.norse import count_events_dense
from snn.parameters import LayerParameters, STDPParameters
from snn.rules import chances, saturated_chances
from snn.runtime.errors import check
from snn.spikes import SpikeEvents, Spikes

MOST_STEPS = 2**14
"""A presentation is shorter: lags are 16-bit numbers in places."""


class Rates(NamedTuple):
    """Rates of presynaptic neurons for Eq. 5; few values occur, because spikes are counted."""

    level: Tensor
    """Index into ``fn`` of each neuron, integers (B, C_in, H, W)."""
    fn: Tensor
    """(f - f_min)/(f_max - f_min) clipped to [0, 1], (L,)."""


class EventCounts(NamedTuple):
    """Synaptic events of a presentation, per shared synapse: float64 (C_out, C_in, kH, kW) each."""

    events: Tensor
    """Postsynaptic spikes seen by the synapse (a synapse that falls on padding does not exist and sees none)."""
    ltp: Tensor
    """Potentiations drawn."""
    ltd: Tensor
    """Depressions drawn."""


def magnitude(conductance: Tensor, p: STDPParameters) -> tuple[Tensor, Tensor]:
    """Eq. 2: (dG_p, dG_d), both positive, the shape of ``conductance``."""
    g = (conductance - p.g_min) / (p.g_max - p.g_min)
    return p.alpha_p * torch.exp(-p.beta_p * g), p.alpha_d * torch.exp(-p.beta_d * (1 - g))


def count_events(
    pre: Spikes,
    post: Spikes,
    rates: Rates,
    kernel_size: int,
    stride: int,
    padding: int,
    dt: float,
    p: STDPParameters,
    seeds: Tensor,
    tables: list[Tensor] | None = None,
) -> EventCounts:
    """Draw every synapse's change at every postsynaptic spike of a presentation.

    Args:
        pre: bool (T, B, C_in, H, W), or events.
        post: bool (T, B, C_out, H_out, W_out), or events as ``pre``.
        rates: of the presynaptic neurons.
        kernel_size, stride, padding: of the square convolution.
        dt: time step in ms.
        p: the rule.
        seeds: of the images, for the Bernoulli trials of Eq. 5.
        tables: in place of :func:`chances`.
    """
    check(len(pre) < MOST_STEPS, f"a presentation of {len(pre)} steps: expected fewer than {MOST_STEPS}; raise dt")
    tables = tables or chances(p, len(pre), dt, rates.fn)
    if not isinstance(pre, SpikeEvents):
        if pre.device.type != "cpu":
            counts = count_events_dense(pre, post, rates.level, tables, kernel_size, stride, padding, seeds)
            return EventCounts(*counts)
        pre, post = SpikeEvents.from_dense(pre), SpikeEvents.from_dense(post)
    shape = (post.shape[0], kernel_size, stride, padding)
    counts = count_event_pairs(shape, pre, post, rates.level, tables, seeds)
    return EventCounts(*torch.from_numpy(counts).double())


def saturated_share(
    pre: Spikes, post: Spikes, rates: Rates, geometry: LayerParameters, dt: float, p: STDPParameters
) -> tuple[float, float]:
    """Shares of the synaptic events whose probability of LTP, or of LTD, is at its peak, where rates act no more."""
    tables = saturated_chances(p, len(pre), dt, rates.fn)
    window = (geometry.kernel_size, geometry.stride, geometry.padding)
    seeds = torch.zeros(len(rates.level), dtype=torch.int64, device=rates.level.device)
    counts = count_events(pre, post, rates, *window, dt, p, seeds, tables)
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
