"""What the reference of a learning rule is: its probabilities (Eq. 5), written a second time without :mod:`snn.rules`.

A reference gives the probabilities of LTP and LTD twice, as expressions of a Brian2 synapse and as NumPy functions. The
commands of :mod:`validation` compare every registered rule with the reference of the same name. A reference of your own
derives from :class:`RuleReference` and is registered by ``@register_reference("name of the rule")``.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from snn.parameters import STDPParameters
from snn.runtime.registry import Registry


class RuleReference:
    """A reference with its constants.

    The expressions may use the constants of Eq. 5 by their names in :class:`snn.parameters.STDPParameters` (times with
    units), those of :meth:`constants`, ``fn`` (normalised presynaptic rate), ``lag`` (time since the last presynaptic
    spike, 10^6 s if there was none) and ``in_window`` (1 if ``lag`` lies in the LTP window, else 0).

    Args:
        p: constants of Eq. 2 and 5, with ``ltd_delay`` set for pairing ``post``.
    """

    P_p: str
    """Brian2 expression of the probability of LTP at a postsynaptic spike."""
    P_d_post: str
    """Brian2 expression of the probability of LTD at a postsynaptic spike, with pairing ``post``."""
    P_d_two_sided: str
    """Brian2 expression of the probability of LTD at the first presynaptic spike after a postsynaptic one, which came
    ``wait`` before, with pairing ``two-sided``."""

    def __init__(self, p: STDPParameters) -> None:
        self.p = p

    @property
    def delay(self) -> float:
        """T_d in ms with pairing ``post``, else 0."""
        return self.p.ltd_delay or 0.0 if self.p.pairing == "post" else 0.0

    def constants(self) -> dict[str, Any]:
        """Further constants of the expressions: numbers, or Brian2 quantities with units."""
        return {}

    def probabilities(self, lag: np.ndarray, fn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """P_p and P_d of one pair of spikes.

        Args:
            lag: t_post - t_pre in ms, float64; ``inf``: there was no presynaptic spike before, ``-inf``: there is none
                after.
            fn: normalised presynaptic rate in [0, 1], float64; broadcasts against ``lag``.
        """
        raise NotImplementedError

    def in_window(self, lag: np.ndarray) -> np.ndarray:
        """Whether the postsynaptic spike follows within the LTP window, the end included."""
        return (lag > -1e-6) & (lag < self.p.ltp_window + 1e-6)

    def can_depress(self, lag: np.ndarray) -> np.ndarray:
        """Whether the pairing allows LTD: after the LTP window (``post``), or for a later spike (``two-sided``)."""
        if self.p.pairing == "post":
            return (lag > 0) & ~self.in_window(lag)
        return (lag < -1e-6) & np.isfinite(lag)


REFERENCES: Registry[Callable[[STDPParameters], RuleReference]] = Registry(
    "reference of a rule", "validation.reference"
)
"""References by the name of their rule: classes made of :class:`snn.parameters.STDPParameters`."""

register_reference = REFERENCES.register


def reference_of(p: STDPParameters) -> RuleReference:
    """The reference of the rule ``p.rule`` with these constants; a ``UserError`` if none is registered."""
    return REFERENCES[p.rule](p)
