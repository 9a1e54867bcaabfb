"""What can be chosen by name in spiking layers, and added by users: rules, encoders, engines.

Each of them is one file of the package named here, or a user's own module given with ``--plugin``.
"""

from collections.abc import Callable
from typing import Any

from snn.runtime.registry import Registry

RULES: Registry[Callable[..., Any]] = Registry("rule", "snn.rules")
"""Learning rules: subclasses of :class:`snn.rules.base.Rule`, made of :class:`snn.parameters.STDPParameters`."""
ENCODERS: Registry[Callable[[], Any]] = Registry("encoder", "snn.encoders")
"""Encoders: subclasses of :class:`snn.encoders.base.Encoder`."""
ENGINES: Registry[Callable[[], Any]] = Registry("engine", "snn.engines")
"""Simulators: classes with the methods of :class:`snn.engines.base.Engine`."""

register_rule = RULES.register
register_encoder = ENCODERS.register
register_engine = ENGINES.register
