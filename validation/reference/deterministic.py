"""Reference of the deterministic rule: every change that the pairing allows is certain."""

import numpy as np

from validation.reference.base import RuleReference, register_reference


@register_reference("deterministic")
class DeterministicReference(RuleReference):
    """Probability 1 inside and outside of the LTP window."""

    P_p = "in_window"
    P_d_post = "1 - in_window"
    P_d_two_sided = "1"

    def probabilities(self, lag: np.ndarray, fn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.in_window(lag).astype(float), self.can_depress(lag).astype(float)
