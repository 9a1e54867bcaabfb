"""What can be chosen by name in spiking layers, and added by users: rules, encoders, engines.

Each of them is one file of the package named here, or a user's own module given with ``--plugin``.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from snn.runtime.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor


class ChanceTables(Protocol):
    """A learning rule with its constants; :class:`snn.rules.base.Rule` is the class to derive from."""

    def chances(self, steps: int, dt: float, fn: "Tensor") -> "list[Tensor]":
        """Chances of LTP and LTD for all time differences and rates."""

    def saturated_chances(self, steps: int, dt: float, fn: "Tensor") -> "list[Tensor]":
        """1 and -1 where the chance of LTP or LTD is at its peak, else 0."""


RULES: Registry[Callable[..., ChanceTables]] = Registry("rule", "snn.rules")
"""Learning rules: classes made of :class:`snn.parameters.STDPParameters`."""
ENCODERS: Registry[Callable[[], Any]] = Registry("encoder", "snn.encoders")
"""Encoders: subclasses of :class:`snn.encoders.base.Encoder`."""
ENGINES: Registry[Callable[[], Any]] = Registry("engine", "snn.engines")
"""Simulators: classes with the methods of :class:`snn.engines.base.Engine`."""

register_rule = RULES.register
register_encoder = ENCODERS.register
register_engine = ENGINES.register
