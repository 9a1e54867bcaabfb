"""An engine whose calls are watched: timed, or left out of a count."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from snn.engines.base import Engine, EventCounts
from snn.geometry import ConvGeometry
from snn.layer import SpikingConv2d
from snn.parameters import Encoding
from snn.spikes import Spikes

ENCODE, BELOW, SIMULATE, EVENTS, CALIBRATE = "encode", "layers below", "simulate", "events", "calibrate"
"""Parts of learning that an engine does; the layer that learns is the one with inhibition."""


class WatchedEngine:
    """Another engine; ``run(part, call, *arguments, **options)`` makes each of its calls and returns what it returns.

    An :class:`snn.engines.base.Engine`.
    """

    def __init__(self, engine: Engine, run: Callable[..., Any]) -> None:
        self.engine, self.run = engine, run

    def preference(self, device_type: str) -> int:
        return self.engine.preference(device_type)

    def encode(self, images: Tensor, p: Encoding, seeds: Tensor) -> Spikes:
        return self.run(ENCODE, self.engine.encode, images, p, seeds)

    def simulate(self, layer: SpikingConv2d, pre: Spikes, *, inhibition: bool, seeds: Tensor | None = None) -> Spikes:
        part = SIMULATE if inhibition else BELOW
        return self.run(part, self.engine.simulate, layer, pre, inhibition=inhibition, seeds=seeds)

    def count_events(
        self, pre: Spikes, post: Spikes, level: Tensor, tables: list[Tensor], geometry: ConvGeometry, seeds: Tensor
    ) -> EventCounts:
        return self.run(EVENTS, self.engine.count_events, pre, post, level, tables, geometry, seeds)

    def sample_drive(self, layer: SpikingConv2d, pre: Spikes, places: Tensor) -> Tensor:
        return self.run(CALIBRATE, self.engine.sample_drive, layer, pre, places)

    def count_driven(self, layer: SpikingConv2d, drive: Tensor) -> int:
        return self.run(CALIBRATE, self.engine.count_driven, layer, drive)
