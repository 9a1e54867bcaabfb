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
from torch.nn.functional import pad

from snn.errors import check

NEVER = 2**14
"""Steps reported for a presynaptic neuron that has no spike before (or after) a step; longer than any presentation."""
EVENT_CHUNK = 2**22
"""Synaptic events handled at once, to bound memory."""
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
    beta_p: float = 1.0
    """LTP saturation, Eq. 2 (ours; the simulator's 3 squeezes all conductances together)."""
    beta_d: float = 1.0
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
    n_cap: int = 100
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
        """A copy with T_d set to one period of ``f_min`` (Hz), unless it was given."""
        if self.ltd_delay is not None:
            return self
        check(f_min > 0, f"f_min = {f_min} Hz has no period to take for --stdp.ltd-delay; give one in ms")
        return replace(self, ltd_delay=1000 / f_min)


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


def steps_since_spike(spikes: Tensor) -> Tensor:
    """Steps since the last spike at or before each step, int16, the shape of ``spikes`` (T, ...); NEVER if none."""
    since = torch.empty(spikes.shape, dtype=torch.int16, device=spikes.device)
    elapsed = torch.full(spikes.shape[1:], NEVER - 1, dtype=torch.int16, device=spikes.device)
    for step, spiked in enumerate(spikes):
        elapsed = (elapsed + 1).clamp_(max=NEVER).masked_fill_(spiked, 0)
        since[step] = elapsed
    return since


def steps_until_spike(spikes: Tensor) -> Tensor:
    """Steps until the next spike after (not at) each step, int16, the shape of ``spikes``; NEVER if none."""
    until = torch.full(spikes.shape, NEVER, dtype=torch.int16, device=spikes.device)
    until[:-1] = (steps_since_spike(spikes.flip(0)).flip(0)[1:] + 1).clamp(max=NEVER)
    return until


def count_events(
    pre_spikes: Tensor,
    post_spikes: Tensor,
    fn: Tensor,
    kernel_size: int,
    stride: int,
    padding: int,
    dt: float,
    p: STDPParameters,
    generator: torch.Generator,
) -> EventCounts:
    """Draw every synapse's change at every postsynaptic spike of a presentation.

    Args:
        pre_spikes: bool (T, B, C_in, H, W).
        post_spikes: bool (T, B, C_out, H_out, W_out).
        fn: normalised presynaptic rates (B, C_in, H, W) in [0, 1].
        kernel_size, stride, padding: of the square convolution.
        dt: time step in ms.
        p: the rule.
        generator: draws the Bernoulli trials of Eq. 5.
    """
    check(len(pre_spikes) < NEVER, f"a presentation of {len(pre_spikes)} steps: expected fewer than {NEVER}; raise dt")
    c_out, c_in, device = post_spikes.shape[2], pre_spikes.shape[2], pre_spikes.device
    fan_in = c_in * kernel_size**2

    def fields(values: Tensor, outside: int) -> Tensor:
        """View of (..., H, W), padded with ``outside``, as receptive fields (..., H_out, W_out, kH, kW)."""
        padded = pad(values, (padding,) * 4, value=outside)
        return padded.unfold(-2, kernel_size, stride).unfold(-2, kernel_size, stride)

    # Times of -1 (since) and 0 (until) occur nowhere else and have probability 0: padding has no synapse.
    since = fields(steps_since_spike(pre_spikes), -1)
    until = fields(steps_until_spike(pre_spikes), 0) if p.pairing == "two-sided" else None
    rate = fields(fn.to(torch.float32), 0)

    counts = torch.zeros((3, c_out, fan_in), dtype=torch.float64, device=device)
    chunk = max(1, EVENT_CHUNK // fan_in)
    for t, b, c, y, x in zip(*(index.split(chunk) for index in post_spikes.nonzero().T), strict=True):
        fn_event = rate[b, :, y, x].flatten(1)
        dt_since = _milliseconds(since[t, b, :, y, x], dt)
        draw = torch.rand(dt_since.shape, generator=generator, device=device)
        ltp = draw < ltp_probability(dt_since, fn_event, p)
        if until is None:
            # A synapse is in the LTP window or out of it, never both: one draw decides either.
            ltd = draw < ltd_probability(dt_since, fn_event, p)
        else:
            dt_until = -_milliseconds(until[t, b, :, y, x], dt)
            draw = torch.rand(dt_since.shape, generator=generator, device=device)
            ltd = draw < ltd_probability(dt_until, fn_event, p)
        # Sums of fewer than 2^24 ones are exact in float32, so their order cannot matter.
        of_map = torch.nn.functional.one_hot(c, c_out).T.float()
        for total, seen in zip(counts, (dt_since >= 0, ltp, ltd), strict=True):
            total += of_map @ seen.float()
    return EventCounts(*counts.reshape(3, c_out, c_in, kernel_size, kernel_size))


def _milliseconds(steps: Tensor, dt: float) -> Tensor:
    """Steps (n, C_in, kH, kW) as time differences (n, fan_in) in ms; NEVER becomes infinity."""
    flat = steps.flatten(1)
    return torch.where(flat >= NEVER, torch.inf, flat.to(torch.float32) * dt)


def update(conductance: Tensor, counts: EventCounts, p: STDPParameters, ltd_factor: Tensor | float = 1.0) -> Tensor:
    """Eq. 4 over a mini-batch: dG = (mean change per event) x min(events, n_cap), clipped to [g_min, g_max].

    ``ltd_factor`` multiplies dG_d (homeostasis; 1 is the plain rule) and broadcasts against the conductances.
    """
    increase, decrease = magnitude(conductance.double(), p)
    scale = counts.events.clamp(max=p.n_cap) / counts.events.clamp(min=1)
    change = (increase * counts.ltp - ltd_factor * decrease * counts.ltd) * scale
    return (conductance.double() + change).clamp(p.g_min, p.g_max).to(conductance.dtype)
