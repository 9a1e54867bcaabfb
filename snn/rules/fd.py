"""Frequency-dependent stochastic STDP (paper, Eq. 5)."""

from typing import TYPE_CHECKING

from snn.registries import register_rule
from snn.rules.base import Rule
from snn.runtime.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor


@register_rule("fd")
class FrequencyDependent(Rule):
    """Eq. 5: windows of LTP and LTD that widen with the presynaptic rate.

        P_p = gamma_p exp(-dt / (tau_p (1 + phi_p fn)))      P_d = gamma_d exp(dt / (tau_d (1 + phi_d fn)))

    P_d holds as printed for dt < 0 (pairing ``two-sided``). With pairing ``post`` it is
    ``gamma_d min(1, exp((dt - T_d) / (tau_d (1 + phi_d fn))))``, T_d = ``ltd_delay``.
    """

    def ltp(self, lag: "Tensor", fn: "Tensor") -> "Tensor":
        p = self.p
        inside = (lag >= 0) & ~self.beyond_window(lag)
        return (p.gamma_p * (-lag / (p.tau_p * (1 + p.phi_p * fn))).exp()).where(inside, 0.0)

    def ltd(self, lag: "Tensor", fn: "Tensor") -> "Tensor":
        p, delay = self.p, 0.0
        if p.pairing == "post":
            if p.ltd_delay is None:
                raise UserError("STDP `ltd_delay` is not set; give T_d in ms, one period of the encoder's f_min")
            delay = p.ltd_delay
        exponent = ((lag - delay) / (p.tau_d * (1 + p.phi_d * fn))).clamp(max=0.0)
        return (p.gamma_d * exponent.exp()).where(self.can_depress(lag), 0.0)
