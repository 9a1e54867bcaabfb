"""Learning rules: the chances of LTP and LTD (paper, Eq. 5)."""

import torch
from torch import Tensor

from snn.parameters import STDPParameters
from snn.runtime.errors import check
from snn.runtime.random import ONE, as_chance

WINDOW_ROUNDING = 1e-5
"""Relative slack of the LTP window: multiples of the time step are rounded, the window includes its end."""


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
    """Probabilities of the rule for every time difference and rate, as whole numbers (:func:`as_chance`).

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
