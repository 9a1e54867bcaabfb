"""Spikes as lists of events, and the event-driven engine: what layers and rule do on a CPU.

Few neurons spike in a step, so work per spike is far less than work per neuron and step. Images are independent of each
other until their synaptic events are added up: each is simulated by one thread, in its processor's cache.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn.engines import kernels
from snn.runtime.random import AFTER, BEFORE, ENCODE, TIES, image_key

if TYPE_CHECKING:
    from snn.layer import SpikingConv2d
from snn.runtime.threads import for_each
from snn.spikes import Raster, SpikeEvents


def encode_events(
    images: Tensor, kernel: Callable[..., tuple[np.ndarray, np.ndarray]], seeds: Tensor, *arguments
) -> SpikeEvents:
    """Spikes of uint8 ``images`` (B, C, H, W) by a compiled encoder, whose last arguments are the image's key."""
    flat = images.permute(0, 2, 3, 1).contiguous().flatten(1).numpy()
    keys = _keys(seeds, ENCODE)
    rasters = for_each(lambda image: Raster(*kernel(flat[image], *arguments, *keys[image])), range(len(flat)))
    return SpikeEvents(tuple(rasters), tuple(images.shape[1:]))


def simulate_events(
    layer: "SpikingConv2d", pre: SpikeEvents, *, inhibition: bool, seeds: Tensor | None = None
) -> SpikeEvents:
    """:meth:`snn.layer.SpikingConv2d.simulate` on events."""
    synapses, neurons = _Synapses.of(layer, pre.shape), _Neurons.of(layer)
    height, width, maps = synapses.geometry[6:]
    along_row = np.tile(neurons.scale, width), np.tile(neurons.threshold, width)
    if inhibition:
        _, blocked_steps = layer.geometry.steps(layer.dt)
        keys = _keys(seeds, TIES)

    def simulate(image: int) -> Raster:
        arguments = (*pre.rasters[image], *synapses, neurons.cell, *along_row)
        if inhibition:
            return Raster(*kernels.simulate_inhibited(*arguments, blocked_steps, *keys[image]))
        return Raster(*kernels.simulate_free(*arguments))

    rasters = for_each(simulate, range(len(pre.rasters)))
    return SpikeEvents(tuple(rasters), (maps, height, width))


def sample_event_drive(layer: "SpikingConv2d", pre: SpikeEvents, places: np.ndarray) -> np.ndarray:
    """Drive before the gain of all maps at some places of the batch: (T, P, C_out).

    ``places`` are numbered through the batch, ``(image * H_out + y) * W_out + x``, int64 (P,).
    """
    synapses = _Synapses.of(layer, pre.shape)
    per_image = synapses.geometry[6] * synapses.geometry[7]
    out = np.empty((len(pre), len(places), synapses.geometry[8]), synapses.weights.dtype)

    def sample(image: int) -> None:
        mine = np.flatnonzero(places // per_image == image)
        found = np.empty((len(pre), len(mine), out.shape[2]), out.dtype)
        kernels.sample_drive(*pre.rasters[image], *synapses, places[mine] % per_image, found)
        out[:, mine] = found

    for_each(sample, range(len(pre.rasters)))
    return out


def count_driven(layer: "SpikingConv2d", drive: np.ndarray) -> int:
    """Spikes, without inhibition, of all neurons together that receive ``drive`` (T, P, C_out) before the gain."""
    neurons = _Neurons.of(layer)
    parts = np.array_split(drive, max(1, min(64, drive.shape[1])), axis=1)
    return sum(for_each(lambda part: kernels.count_driven(part, neurons.cell, neurons.scale, neurons.threshold), parts))


def count_event_pairs(
    layer_shape: tuple[int, int, int, int],
    pre: SpikeEvents,
    post: SpikeEvents,
    level: Tensor,
    tables: list[Tensor],
    seeds: Tensor,
) -> np.ndarray:
    """Events, LTP and LTD of every synapse: int64 (3, C_out, C_in, k, k); see :func:`snn.plasticity.count_events`.

    Args:
        layer_shape: (C_out, k, stride, padding).
        pre, post: spikes.
        level: index of the presynaptic rates, integers (B, C_in, H, W).
        tables: chances, by lag and level, of pairing with the presynaptic spike before and (if there are two) after.
        seeds: of the images.
    """
    maps, kernel, stride, padding = layer_shape
    (c_in, height, width), (_, height_out, width_out) = pre.shape, post.shape
    geometry = (height, width, c_in, kernel, stride, padding, height_out, width_out, maps)
    levels = level.permute(0, 2, 3, 1).contiguous().flatten(1).to(torch.int16).numpy()
    passes = []
    for backward, (purpose, table) in enumerate(zip((BEFORE, AFTER), tables, strict=False)):
        passes.append((bool(backward), np.ascontiguousarray(table.numpy()), _keys(seeds, purpose)))

    def count(image: int) -> tuple[np.ndarray, np.ndarray]:
        changes = np.zeros((2, maps, kernel**2, c_in), np.int32)
        for backward, table, keys in passes:
            # The synapses of both passes are the same.
            events = np.zeros((maps, kernel**2), np.int32)
            kernels.count_pairs(
                *pre.rasters[image],
                *post.rasters[image],
                backward,
                table,
                levels[image],
                geometry,
                *keys[image],
                events,
                *changes,
            )
        return events, changes

    total = np.zeros((3, maps, kernel**2, c_in), np.int64)
    for events, changes in for_each(count, range(len(pre.rasters))):
        total[0] += events[..., None]
        total[1:] += changes
    return total.transpose(0, 1, 3, 2).reshape(3, maps, c_in, kernel, kernel)


def _keys(seeds: Tensor, purpose: int) -> list[tuple[np.uint32, np.uint32]]:
    """Key of each image, as the kernels take it."""
    first, second = (half.numpy().astype(np.uint32) for half in image_key(seeds, purpose))
    return list(zip(first, second, strict=True))


class _Synapses(NamedTuple):
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
    geometry: tuple[int, ...]
    """height, width, c_in, kernel, stride, padding, height_out, width_out, maps."""

    @classmethod
    def of(cls, layer: "SpikingConv2d", shape: tuple[int, int, int]) -> "_Synapses":
        p, (c_in, height, width) = layer.geometry, shape
        height_out, width_out = layer.output_size(height, width)
        order, columns, begin = [], np.zeros((width, 3), np.int64), 0
        for remainder in range(p.stride):
            # Places next to each other have weights in descending order of kx, ``stride`` apart.
            own = list(range(remainder, p.kernel_size, p.stride))[::-1]
            for x in range(width):
                last, x_remainder = divmod(x + p.padding, p.stride)
                if x_remainder == remainder and own:
                    first = last - len(own) + 1
                    left, right = max(first, 0), min(last, width_out - 1)
                    columns[x] = left, begin + left - first, max(0, right - left + 1)
            order += own
            begin += len(own)
        rows = np.full((height, p.kernel_size), -1)
        for y, ky in np.ndindex(rows.shape):
            row, y_remainder = divmod(y + p.padding - ky, p.stride)
            if y_remainder == 0 and 0 <= row < height_out:
                rows[y, ky] = row * width_out * p.maps
        weights = layer.exact_conductance().numpy()[:, :, :, order].transpose(1, 2, 3, 0)
        weights = np.concatenate([weights, -weights, np.zeros_like(weights[:1])])
        geometry = (height, width, c_in, p.kernel_size, p.stride, p.padding, height_out, width_out, p.maps)
        pulse, _ = p.steps(layer.dt)
        return cls(pulse, _aligned(weights), columns * p.maps, rows, geometry)


def _aligned(values: np.ndarray) -> np.ndarray:
    """A flat copy that begins a cache line (64 bytes)."""
    raw = np.empty(values.size + 64 // values.itemsize, values.dtype)
    skip = -raw.ctypes.data % 64 // values.itemsize
    flat = raw[skip : skip + values.size]
    flat[:] = values.ravel()
    return flat


class _Neurons(NamedTuple):
    """Neurons of a layer, as the kernels take them: numbers of the layer's own precision."""

    cell: tuple
    """v_init, v_leak, v_reset in mV, dt / tau."""
    scale: np.ndarray
    """mV per unit of drive, (C_out,)."""
    threshold: np.ndarray
    """(C_out,) in mV."""

    @classmethod
    def of(cls, layer: "SpikingConv2d") -> "_Neurons":
        neuron, scale = layer.neurons()
        v_init = torch.full_like(neuron.v_leak, layer.lif.v_init)
        cell = (v_init, neuron.v_leak, neuron.v_reset, layer.dt * neuron.tau_mem_inv)
        return cls(tuple(value.numpy()[()] for value in cell), scale.flatten().numpy(), neuron.v_th.flatten().numpy())
