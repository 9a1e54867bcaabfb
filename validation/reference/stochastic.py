"""Reference of the plain stochastic rule: Eq. 5 without the presynaptic rate."""

import numpy as np

from validation.reference.base import register_reference
from validation.reference.fd import FrequencyDependentReference


@register_reference("stochastic")
class StochasticReference(FrequencyDependentReference):
    """Windows of one width for all rates."""

    P_p = "in_window*gamma_p*exp(-lag/tau_p)"
    P_d_post = "(1 - in_window)*gamma_d*exp(clip((lag - ltd_delay)/tau_d, -700, 0))"
    P_d_two_sided = "gamma_d*exp(-wait/tau_d)"

    def probabilities(self, lag: np.ndarray, fn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return super().probabilities(lag, np.zeros_like(fn))
