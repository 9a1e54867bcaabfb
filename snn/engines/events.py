"""The event-driven engine: what layers and rule do on a CPU.

Few neurons spike in a step, so work per spike is far less than work per neuron and step. Images are independent of each
other until their synaptic events are added up: each is simulated by one thread, in its processor's cache.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn.encoding import check_images
from snn.engines import kernels
from snn.engines.base import EventCounts
from snn.geometry import ConvGeometry
from snn.layer import SpikingConv2d
from snn.neuron import cell_constants
from snn.parameters import Encoding
from snn.registries import ENCODERS, register_engine
from snn.runtime.random import AFTER, BEFORE, TIES, numpy_keys
from snn.runtime.threads import for_each
from snn.spikes import Raster, SpikeEvents, Spikes, as_dense


@register_engine("events")
class EventEngine:
    """Simulates lists of spikes on the CPU, by as many threads as PyTorch uses; an :class:`snn.engines.base.Engine`."""

    def preference(self, device_type: str) -> int:
        return 2 if device_type == "cpu" else 0

    def encode(self, images: Tensor, p: Encoding, seeds: Tensor) -> SpikeEvents:
        check_images(images)
        return ENCODERS[p.kind]().events(images, p, seeds)

    def simulate(self, layer: SpikingConv2d, pre: Spikes, *, inhibition: bool, seeds: Tensor | None = None) -> Spikes:
        spikes = simulate_events(layer, as_events(pre), inhibition=inhibition, seeds=seeds)
        return spikes.to_dense() if isinstance(pre, Tensor) else spikes

    def count_events(
        self, pre: Spikes, post: Spikes, level: Tensor, tables: list[Tensor], geometry: ConvGeometry, seeds: Tensor
    ) -> EventCounts:
        counts = count_pairs(as_events(pre), as_events(post), level, tables, geometry, seeds)
        return EventCounts(*torch.from_numpy(counts).double())

    def sample_drive(self, layer: SpikingConv2d, pre: Spikes, places: Tensor) -> Tensor:
        events, numbers = as_events(pre), places.numpy()
        synapses = Synapses.of(layer, events.shape)
        per_image = synapses.geometry.places_out
        drive = np.empty((len(events), len(numbers), synapses.geometry.channels_out), synapses.weights.dtype)

        def sample(image: int) -> None:
            chosen = np.flatnonzero(numbers // per_image == image)
            part = np.empty((len(events), len(chosen), drive.shape[2]), drive.dtype)
            kernels.sample_drive(*events.rasters[image], *synapses, numbers[chosen] % per_image, part)
            drive[:, chosen] = part

        for_each(sample, range(len(events.rasters)))
        return torch.from_numpy(drive)

    def count_driven(self, layer: SpikingConv2d, drive: Tensor) -> int:
        cell, scale, threshold = Neurons.of(layer)
        parts = np.array_split(drive.numpy(), max(1, min(64, drive.shape[1])), axis=1)
        return sum(for_each(lambda part: kernels.count_driven(part, cell, scale, threshold), parts))


def as_events(spikes: Spikes) -> SpikeEvents:
    """Spikes in any form, as events."""
    return spikes if isinstance(spikes, SpikeEvents) else SpikeEvents.from_dense(as_dense(spikes))


def simulate_events(
    layer: SpikingConv2d, pre: SpikeEvents, *, inhibition: bool, seeds: Tensor | None = None
) -> SpikeEvents:
    """:meth:`snn.engines.base.Engine.simulate` on events."""
    synapses, neurons = Synapses.of(layer, pre.shape), Neurons.of(layer)
    width = synapses.geometry.width_out
    along_row = np.tile(neurons.scale, width), np.tile(neurons.threshold, width)
    blocked_steps, keys = 0, []
    if inhibition:
        assert seeds is not None, "inhibition draws between channels of equal potential"
        _, blocked_steps = layer.geometry.steps(layer.dt)
        blocked_steps = min(blocked_steps, len(pre))
        keys = numpy_keys(seeds, TIES)

    def simulate(image: int) -> Raster:
        arguments = (*pre.rasters[image], *synapses, neurons.cell, *along_row)
        if inhibition:
            return Raster(*kernels.simulate_inhibited(*arguments, blocked_steps, *keys[image]))
        return Raster(*kernels.simulate_free(*arguments))

    rasters = for_each(simulate, range(len(pre.rasters)))
    return SpikeEvents(tuple(rasters), synapses.geometry.shape_out)


def count_pairs(
    pre: SpikeEvents, post: SpikeEvents, level: Tensor, tables: list[Tensor], geometry: ConvGeometry, seeds: Tensor
) -> np.ndarray:
    """:meth:`snn.engines.base.Engine.count_events` on events: events, LTP, LTD, int64 (3, C_out, C_in, k, k)."""
    channels, c_in, kernel = geometry.channels_out, geometry.channels_in, geometry.kernel_size
    levels = level.permute(0, 2, 3, 1).contiguous().flatten(1).to(torch.int16).numpy()
    passes = [
        (bool(backward), np.ascontiguousarray(table.numpy()), numpy_keys(seeds, purpose))
        for backward, (purpose, table) in enumerate(zip((BEFORE, AFTER), tables, strict=False))
    ]

    def count(image: int) -> tuple[np.ndarray, np.ndarray]:
        changes = np.zeros((2, channels, kernel**2, c_in), np.int32)
        for backward, table, keys in passes:
            # The synapses of both passes are the same.
            events = np.zeros((channels, kernel**2), np.int32)
            spikes = (*pre.rasters[image], *post.rasters[image])
            kernels.count_pairs(*spikes, backward, table, levels[image], geometry, *keys[image], events, *changes)
        return events, changes

    total = np.zeros((3, channels, kernel**2, c_in), np.int64)
    for events, changes in for_each(count, range(len(pre.rasters))):
        total[0] += events[..., None]
        total[1:] += changes
    return total.transpose(0, 1, 3, 2).reshape(3, channels, c_in, kernel, kernel)


class Synapses(NamedTuple):
    """Convolution of a layer, as the kernels take it."""

    pulse: int
    weights: np.ndarray
    """Flat, in the order (C_in, ky, kx, C_out): kx falls within each class of equal remainder by the stride; then the
    same negative, and a row of zeros."""
    columns: np.ndarray
    """For each presynaptic x: index of the first place in a row of drives that it reaches, of its weight in a row of
    the kernel, and how many numbers follow each other there; int64 (width, 3)."""
    rows: np.ndarray
    """For each presynaptic y and row of the kernel: index of the row of drives that it reaches, or -1; int64."""
    geometry: ConvGeometry

    @classmethod
    def of(cls, layer: SpikingConv2d, shape: tuple[int, int, int]) -> "Synapses":
        p, geometry = layer.geometry, layer.convolution(shape)
        order: list[int] = []
        columns, begin = np.zeros((geometry.width, 3), np.int64), 0
        for remainder in range(p.stride):
            # Places next to each other have weights in descending order of kx, ``stride`` apart.
            own = list(range(remainder, p.kernel_size, p.stride))[::-1]
            for x in range(geometry.width):
                last, x_remainder = divmod(x + p.padding, p.stride)
                if x_remainder == remainder and own:
                    first = last - len(own) + 1
                    left, right = max(first, 0), min(last, geometry.width_out - 1)
                    columns[x] = left, begin + left - first, max(0, right - left + 1)
            order += own
            begin += len(own)
        rows = np.full((geometry.height, p.kernel_size), -1)
        for y, ky in np.ndindex(rows.shape):
            row, y_remainder = divmod(y + p.padding - ky, p.stride)
            if y_remainder == 0 and 0 <= row < geometry.height_out:
                rows[y, ky] = row * geometry.width_out * p.maps
        weights = layer.exact_weight().numpy()[:, :, :, order].transpose(1, 2, 3, 0)
        weights = np.concatenate([weights, -weights, np.zeros_like(weights[:1])])
        pulse, _ = p.steps(layer.dt)
        return cls(pulse, _aligned(weights), columns * p.maps, rows, geometry)


def _aligned(values: np.ndarray) -> np.ndarray:
    """A flat copy that begins a cache line (64 bytes)."""
    raw = np.empty(values.size + 64 // values.itemsize, values.dtype)
    skip = -raw.ctypes.data % 64 // values.itemsize
    flat = raw[skip : skip + values.size]
    flat[:] = values.ravel()
    return flat


class Neurons(NamedTuple):
    """Neurons of a layer, as the kernels take them: numbers of the layer's own precision."""

    cell: tuple
    """v_init, v_leak, v_reset in mV, dt / tau."""
    scale: np.ndarray
    """mV per unit of drive, (C_out,)."""
    threshold: np.ndarray
    """(C_out,) in mV."""

    @classmethod
    def of(cls, layer: SpikingConv2d) -> "Neurons":
        neuron, scale = layer.neurons()
        cell = tuple(value.numpy()[()] for value in cell_constants(neuron, layer.lif.v_init, layer.dt))
        return cls(cell, scale.flatten().numpy(), neuron.v_th.flatten().numpy())
