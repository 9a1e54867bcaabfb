"""What a simulator of spiking layers does, and which one is taken.

An engine of your own is one file: a class with the methods of :class:`Engine`, registered by
``@register_engine("name")``. ``auto`` takes it where its :meth:`Engine.preference` is the highest.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from snn.geometry import ConvGeometry
from snn.layer import SpikingConv2d
from snn.parameters import Encoding
from snn.registries import ENGINES
from snn.runtime.errors import check
from snn.spikes import Spikes


class EventCounts(NamedTuple):
    """Synaptic events of a presentation, per shared synapse: float64 (C_out, C_in, kH, kW) each."""

    events: Tensor
    """Postsynaptic spikes seen by the synapse (a synapse that falls on padding does not exist and sees none)."""
    ltp: Tensor
    """Potentiations drawn."""
    ltd: Tensor
    """Depressions drawn."""


class Engine(Protocol):
    """Simulates encoders, layers and the draws of the learning rule.

    Spikes are taken in any form, and returned as the engine keeps them or, where dense ones were given, dense.
    """

    def preference(self, device_type: str) -> int:
        """How well the engine suits "cpu" or "cuda": 0 if it cannot simulate there; the highest is taken."""

    def encode(self, images: Tensor, p: Encoding, seeds: Tensor) -> Spikes:
        """Spike trains of uint8 images (B, C, H, W), drawn from the images' seeds (B,)."""

    def simulate(self, layer: SpikingConv2d, pre: Spikes, *, inhibition: bool, seeds: Tensor | None = None) -> Spikes:
        """Spikes of a layer over one presentation, from v_init: bool (T, B, C_out, H_out, W_out), or events.

        Args:
            layer: learned or learning.
            pre: presynaptic spikes, bool (T, B, C_in, H, W) or events.
            inhibition: cross-depth inhibition on (learning) or off (learned layers).
            seeds: of the images, for draws between channels with equal potential; needed with inhibition.
        """

    def count_events(
        self, pre: Spikes, post: Spikes, level: Tensor, tables: list[Tensor], geometry: ConvGeometry, seeds: Tensor
    ) -> EventCounts:
        """Draw every synapse's change at every postsynaptic spike of a presentation.

        Args:
            pre, post: spikes.
            level: index of each presynaptic neuron's rate in the columns of ``tables``, integers (B, C_in, H, W).
            tables: chances by lag and level (:meth:`snn.rules.base.Rule.chances`).
            geometry, seeds: of the convolution, and of the images.
        """

    def sample_drive(self, layer: SpikingConv2d, pre: Spikes, places: Tensor) -> Tensor:
        """Drive before the gain of all channels at some places of the batch: (T, P, C_out).

        ``places`` are numbered through the batch, ``(image * H_out + y) * W_out + x``, int64 (P,).
        """

    def count_driven(self, layer: SpikingConv2d, drive: Tensor) -> int:
        """Spikes, without inhibition, of all neurons together that receive ``drive`` (T, P, C_out) before the gain."""


def choose_engine(name: str = "auto", device: torch.device | str = "cpu") -> Engine:
    """The engine of this name; ``auto``: the one that suits the device best.

    Raises:
        UserError: unknown name, or an engine that cannot simulate on this device.
    """
    kind = torch.device(device).type
    if name == "auto":
        return max((ENGINES[each]() for each in ENGINES), key=lambda engine: engine.preference(kind))
    engine: Engine = ENGINES[name]()
    check(engine.preference(kind) > 0, f"`engine` {name}: it does not simulate on `device` {kind}; choose auto")
    return engine


def feed_forward(engine: Engine, layers: Iterable[SpikingConv2d], spikes: Spikes) -> Spikes:
    """Spikes of the last of ``layers``, inhibition off, for input bool (T, B, C, H, W) or events."""
    for layer in layers:
        spikes = engine.simulate(layer, spikes, inhibition=False)
    return spikes
