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

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from snn.draws import ONE, as_chance
from snn.errors import check
from snn.events import SpikeEvents, Spikes, count_event_pairs
from snn.layer import LayerParameters
from snn.stdp_dense import count_events_dense

MOST_STEPS = 2**14
"""A presentation is shorter: lags are 16-bit numbers in places."""
WINDOW_ROUNDING = 1e-5
"""Relative slack of the LTP window: multiples of the time step are rounded, the window includes its end."""


@dataclass(frozen=True)
class STDPParameters:
    """Constants of Eq. 2 and 5 and of the mini-batch update."""

    rule: Literal["fd", "stochastic", "deterministic"] = "fd"
    """fd: Eq. 5; stochastic: Eq. 5 with phi = 0; deterministic: probability 1."""
    pairing: Literal["post", "two-sided"] = "post"
    """Which presynaptic spikes a postsynaptic spike is paired with (see module)."""
    alpha_p: float = 0.005
    """LTP magnitude, conductance units (ParallelSpikeSim 2020)."""
    alpha_d: float = 0.01
    """LTD magnitude, conductance units (ParallelSpikeSim 2020)."""
    beta_p: float = 0.4
    """LTP saturation, Eq. 2 (ours; the simulator's 3 squeezes all conductances together, below 0.3 they are almost
    all driven to the limits: see docs/learning.md)."""
    beta_d: float = 0.4
    """LTD saturation, Eq. 2 (ours, as beta_p)."""
    gamma_p: float = 0.7
    """Peak probability of LTP (ParallelSpikeSim 2020)."""
    gamma_d: float = 0.6
    """Peak probability of LTD (ParallelSpikeSim 2020)."""
    phi_p: float = 0.6
    """Frequency dependence of the LTP window (ParallelSpikeSim 2020)."""
    phi_d: float = 0.6
    """Frequency dependence of the LTD window (ParallelSpikeSim 2020)."""
    tau_p: float = 10.0
    """Time constant of P_p, in ms (ours: the simulator's 100 makes P_p flat over the window)."""
    tau_d: float = 40.0
    """Time constant of P_d, in ms (ours: the simulator's 5 makes P_d = 1 wherever LTD happens)."""
    ltp_window: float = 15.0
    """Longest dt that gives LTP, in ms (ParallelSpikeSim 2020)."""
    ltd_delay: float | None = None
    """T_d of pairing ``post``, in ms; None: one period of the encoder's f_min (ours: P_d reaches gamma_d for a synapse
    whose input spikes no faster than a black pixel's)."""
    g_min: float = 0.0
    """Smallest conductance (paper: free; ours)."""
    g_max: float = 1.0
    """Largest conductance (paper: free; ours, the scale is set by the gain)."""
    n_cap: int = 20
    """Events of one synapse that a mini-batch may count for: dG = mean change per event x min(events, n_cap) (ours: a
    batch's thousands of events would carry G across its whole range)."""

    def __post_init__(self) -> None:
        for name in ("alpha_p", "alpha_d", "tau_p", "tau_d", "ltp_window"):
            check(getattr(self, name) > 0, f"STDP {name} = {getattr(self, name)}: must be positive")
        check(self.ltd_delay is None or self.ltd_delay >= 0, f"STDP ltd_delay = {self.ltd_delay}: must not be negative")
        for name in ("gamma_p", "gamma_d"):
            check(0 <= getattr(self, name) <= 1, f"STDP {name} = {getattr(self, name)}: must lie in [0, 1]")
        for name in ("phi_p", "phi_d"):
            check(getattr(self, name) >= 0, f"STDP {name} = {getattr(self, name)}: must not be negative")
        check(self.g_min < self.g_max, f"STDP g_min {self.g_min}, g_max {self.g_max}: expected g_min < g_max")
        check(self.n_cap >= 1, f"STDP n_cap = {self.n_cap}: must be 1 or more")

    def with_ltd_delay(self, f_min: float) -> "STDPParameters":
        """A copy with T_d set to one period of ``f_min`` (Hz), unless it was given or the pairing has none."""
        if self.ltd_delay is not None or self.pairing == "two-sided":
            return self
        check(f_min > 0, f"f_min = {f_min} Hz has no period to take for --stdp.ltd-delay; give one in ms")
        return replace(self, ltd_delay=1000 / f_min)


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


def ltp_probability(dt: Tensor, fn: Tensor, p: STDPParameters) -> Tensor:
    """P_p of Eq. 5 within the LTP window, 0 outside; ``dt`` = t_post - t_pre in ms, ``fn`` in [0, 1]."""
    inside = (dt >= 0) & ~_beyond_window(dt, p)
    if p.rule == "deterministic":
        return inside.to(fn.dtype)
    phi = p.phi_p if p.rule == "fd" else 0.0
    return torch.where(inside, p.gamma_p * torch.exp(-dt / (p.tau_p * (1 + phi * fn))), 0.0)


def ltd_probability(dt: Tensor, fn: Tensor, p: STDPParameters) -> Tensor:
    """P_d: pairing ``post``: for the last presynaptic spike, outside the LTP window (``inf``: there was none);
    pairing ``two-sided``: Eq. 5 for dt < 0 (``-inf``: there is none). Arguments as :func:`ltp_probability`."""
    outside = _beyond_window(dt, p) if p.pairing == "post" else (dt < 0) & torch.isfinite(dt)
    if p.rule == "deterministic":
        return outside.to(fn.dtype)
    phi = p.phi_d if p.rule == "fd" else 0.0
    delay = 0.0
    if p.pairing == "post":
        check(p.ltd_delay is not None, "STDP ltd_delay is not set; give T_d in ms, one period of the encoder's f_min")
        delay = p.ltd_delay
    exponent = ((dt - delay) / (p.tau_d * (1 + phi * fn))).clamp(max=0.0)
    return torch.where(outside, p.gamma_d * torch.exp(exponent), 0.0)


def _beyond_window(dt: Tensor, p: STDPParameters) -> Tensor:
    return dt > p.ltp_window * (1 + WINDOW_ROUNDING)


def chances(p: STDPParameters, steps: int, dt: float, fn: Tensor) -> list[Tensor]:
    """Probabilities of the rule for every time difference and rate, as whole numbers (:func:`snn.draws.as_chance`).

    Args:
        p: the rule.
        steps: of a presentation, T.
        dt: time step in ms.
        fn: levels of the normalised rate, float32 (L,).

    Returns:
        int32 (T + 1, L) each, for a presynaptic spike so many steps away, the last row for none: chances of LTP or,
        negative, of LTD for the last spike before a postsynaptic one; with pairing ``two-sided``, those of LTD for the
        next one after it.
    """
    elapsed = torch.arange(steps + 1, dtype=torch.float32) * dt
    elapsed[-1] = torch.inf
    lag, fn = elapsed[:, None].expand(-1, len(fn)), fn.float().cpu().expand(steps + 1, -1)
    ltp = as_chance(ltp_probability(lag, fn, p))
    if p.pairing == "two-sided":
        return [ltp, -as_chance(ltd_probability(-lag, fn, p))]
    ltd = as_chance(ltd_probability(lag, fn, p))
    check(not ((ltp > 0) & (ltd > 0)).any(), "pairing post: one spike can give a synapse either LTP or LTD, not both")
    return [ltp - ltd]


def saturated_chances(p: STDPParameters, steps: int, dt: float, fn: Tensor) -> list[Tensor]:
    """As :func:`chances`, but 1 (LTP) and -1 (LTD) where the probability is at its peak, 0 elsewhere."""
    peaks = (1.0, 1.0) if p.rule == "deterministic" else (p.gamma_p, p.gamma_d)
    ltp, ltd = (as_chance(torch.tensor(peak)) for peak in peaks)
    return [ONE * (table == ltp).int() - ONE * (table == -ltd).int() for table in chances(p, steps, dt, fn)]


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
