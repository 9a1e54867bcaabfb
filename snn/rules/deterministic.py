"""Deterministic STDP: every change that the pairing allows is certain."""

from typing import TYPE_CHECKING

from snn.registries import register_rule
from snn.rules.base import Rule

if TYPE_CHECKING:
    from torch import Tensor


@register_rule("deterministic")
class Deterministic(Rule):
    """Probability 1: the limit of Eq. 5 for gamma = 1 and tau to infinity."""

    def ltp(self, lag: "Tensor", fn: "Tensor") -> "Tensor":
        return ((lag >= 0) & ~self.beyond_window(lag)).to(fn.dtype)

    def ltd(self, lag: "Tensor", fn: "Tensor") -> "Tensor":
        return self.can_depress(lag).to(fn.dtype)

    @property
    def peaks(self) -> tuple[float, float]:
        return 1.0, 1.0
