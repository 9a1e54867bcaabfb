"""Reference of the frequency-dependent stochastic rule (paper, Eq. 5)."""

import numpy as np

from validation.reference.base import RuleReference, register_reference


@register_reference("fd")
class FrequencyDependentReference(RuleReference):
    """Eq. 5 as printed, but for pairing ``post``, where P_d grows with dt until it reaches its peak at T_d."""

    P_p = "in_window*gamma_p*exp(-lag/(tau_p*(1 + phi_p*fn)))"
    P_d_post = "(1 - in_window)*gamma_d*exp(clip((lag - ltd_delay)/(tau_d*(1 + phi_d*fn)), -700, 0))"
    P_d_two_sided = "gamma_d*exp(-wait/(tau_d*(1 + phi_d*fn)))"

    def probabilities(self, lag: np.ndarray, fn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = self.p
        ltp = p.gamma_p * np.exp(-np.maximum(lag, 0) / (p.tau_p * (1 + p.phi_p * fn)))
        ltd = p.gamma_d * np.exp(np.minimum(lag - self.delay, 0) / (p.tau_d * (1 + p.phi_d * fn)))
        return self.in_window(lag) * ltp, self.can_depress(lag) * ltd
