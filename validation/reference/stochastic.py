"""Reference of the plain stochastic rule: Eq. 5 without the presynaptic rate."""

import numpy as np

from validation.reference.base import RuleReference, register_reference


@register_reference("stochastic")
class StochasticReference(RuleReference):
    """Windows of one width for all rates."""

    P_p = "in_window*gamma_p*exp(-lag/tau_p)"
    P_d_post = "(1 - in_window)*gamma_d*exp(clip((lag - ltd_delay)/tau_d, -700, 0))"
    P_d_two_sided = "gamma_d*exp(-wait/tau_d)"

    def probabilities(self, lag: np.ndarray, fn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        p = self.p
        ltp = p.gamma_p * np.exp(-np.maximum(lag, 0) / p.tau_p)
        ltd = p.gamma_d * np.exp(np.minimum(lag - self.delay, 0) / p.tau_d)
        return self.in_window(lag) * ltp, self.can_depress(lag) * ltd
