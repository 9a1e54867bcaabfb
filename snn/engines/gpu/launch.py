"""Launches of the kernels: what is allocated, how work is cut into programs, and what each is given."""

import contextlib
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from snn.engines.gpu import kernels
from snn.engines.gpu.packed import WORD, PackedSpikes, pack, words_of
from snn.engines.gpu.tiles import Tile, pair_constants, pair_options
from snn.geometry import ConvGeometry
from snn.layer import SpikingConv2d
from snn.neuron import cell_constants, norse_parameters
from snn.parameters import Encoding, LIFParameters
from snn.runtime.random import AFTER, BEFORE, ENCODE, TIES

BLOCK = 256
"""Neurons of a program that looks at each by itself."""
MOST_COUNTS = 2**31
"""A count of the rule's events stays below."""
OPTIONS = {"enable_fp_fusion": False}
"""Of the compiler: a fused multiply-add rounds once where a CPU rounds twice."""


class Synapses(NamedTuple):
    """Weights of a layer, as the kernels take them."""

    digits: Tensor
    """int8 (digits, channels, inputs) of the tile: balanced digits of base 256, the highest first."""
    unit: Tensor
    """A number, float32."""
    tile: Tile

    @classmethod
    def of(cls, layer: SpikingConv2d) -> "Synapses":
        # On the CPU, whose rounding is the one that all engines share; and these are many small steps.
        whole, unit = layer.with_values(conductance=layer.conductance.cpu()).whole_weight()
        # Synapses are numbered (ky, kx, c): those of a row of the kernel lie side by side in the image, too.
        whole = whole.permute(0, 2, 3, 1).flatten(1)
        channels, fan_in = whole.shape
        tile = Tile.of(channels, fan_in)
        digits = whole.new_zeros((tile.digits, tile.channels, tile.inputs), dtype=torch.int8)
        for digit in reversed(range(len(digits))):
            low = ((whole + 128) & 255) - 128
            digits[digit, :channels, :fan_in] = low
            whole = (whole - low) >> 8
        device = layer.conductance.device
        return cls(digits.to(device), unit.to(device), tile)


class Pulses(NamedTuple):
    """Words in which each spike lasts for a pulse, and how receptive fields lie in them."""

    words: Tensor
    """int32 (B, words, height, width, channels) with the convolution's padding."""
    offsets: Tensor
    """From the first neuron of a receptive field to each one, int32 (inputs,); 0 for synapses that do not exist."""
    geometry: ConvGeometry

    @classmethod
    def of(cls, spikes: PackedSpikes, layer: SpikingConv2d, tile: Tile) -> "Pulses":
        geometry, (pulse, _) = layer.convolution(spikes.shape), layer.geometry.steps(layer.dt)
        batch, words, height, width, channels = spikes.words.shape
        padding = geometry.padding
        make = spikes.words.new_zeros if padding else spikes.words.new_empty
        held = make((batch, words, height + 2 * padding, width + 2 * padding, channels))
        row, row_out = width * channels, held[0, 0, 0].numel()
        neurons = height * row
        _run(kernels.hold, [batch * triton.cdiv(neurons, BLOCK)],
             spikes.words, held, neurons, words, row, row_out, padding * (row_out + channels), held[0, 0].numel(),
             PULSE=min(pulse, WORD * words), BLOCK=BLOCK)  # fmt: skip
        return cls(held, field_offsets(geometry.kernel_size, channels, row_out, tile.inputs, held.device), geometry)

    @property
    def sizes(self) -> tuple[int, ...]:
        """What kernels of a layer take: words, neurons, distances of fields, places, their width, and channels."""
        g, row = self.geometry, self.words[0, 0, 0].numel()
        fields = g.stride * row, g.stride * g.channels_in
        return self.words.shape[1], self.words[0, 0].numel(), *fields, g.places_out, g.width_out, g.channels_out


@cache
def field_offsets(kernel: int, channels: int, row: int, inputs: int, device: torch.device) -> Tensor:
    """:attr:`Pulses.offsets`, where neurons of a row of the image are ``row`` apart from those of the next."""
    offsets = torch.zeros(inputs, dtype=torch.int32)
    along = torch.arange(kernel * channels, dtype=torch.int32)
    offsets[: kernel * len(along)] = (torch.arange(kernel, dtype=torch.int32)[:, None] * row + along).flatten()
    return offsets.to(device)


@cache
def cell_numbers(lif: LIFParameters, dt: float) -> tuple[float, ...]:
    """:func:`snn.neuron.cell_constants` in float32, from the CPU: read from a GPU, each would be waited for."""
    neuron = norse_parameters(lif, torch.zeros(()))
    return tuple(value.item() for value in cell_constants(neuron, lif.v_init, dt))


@cache
def regular_words(p: Encoding, device: torch.device) -> Tensor:
    """Regular trains of all 8-bit intensities at phase 0, int32 (256, words)."""
    from snn.encoding import intensity_rates, regular_trains

    return pack(regular_trains(intensity_rates(p), p)).T.contiguous().to(device)


def encode(images: Tensor, kernel: Any, table: Tensor, p: Encoding, seeds: Tensor) -> PackedSpikes:
    """Spikes of uint8 images (B, C, H, W) by an encoder's ``kernel``, which reads its ``table`` by intensity."""
    values = images.permute(0, 2, 3, 1).contiguous()
    words = values.new_empty((len(values), words_of(p.n_steps), *values.shape[1:]), dtype=torch.int32)
    neurons = values[0].numel()
    _run(kernel, [len(values) * triton.cdiv(neurons, BLOCK)],
         values, table, seeds, words, neurons, words.shape[1], p.active_steps, ENCODE, BLOCK=BLOCK)  # fmt: skip
    return PackedSpikes(words, p.n_steps)


def count_spikes(words: Tensor) -> Tensor:
    """Spikes of each neuron of int32 (B, words, ...): int16 (B, ...)."""
    counts = words.new_empty((len(words), *words.shape[2:]), dtype=torch.int16)
    neurons = counts[0].numel()
    _run(kernels.count_spikes, [len(words) * triton.cdiv(neurons, BLOCK)],
         words, counts, neurons, words.shape[1], BLOCK=BLOCK)  # fmt: skip
    return counts


def simulate(
    layer: SpikingConv2d, synapses: Synapses, pre: PackedSpikes, *, inhibition: bool, seeds: Tensor
) -> PackedSpikes:
    """Spikes of a layer (:meth:`snn.engines.base.Engine.simulate`)."""
    tile, pulses = synapses.tile, Pulses.of(pre, layer, synapses.tile)
    batch, words, geometry = *pre.words.shape[:2], pulses.geometry
    out = pre.words.new_empty((batch, words, geometry.height_out, geometry.width_out, geometry.channels_out))
    _, blocked_steps = layer.geometry.steps(layer.dt)
    blocked_steps = min(blocked_steps, len(pre))
    _run(kernels.simulate, [batch * triton.cdiv(geometry.places_out, tile.places)],
         pulses.words, pulses.offsets, synapses.digits, synapses.unit,
         layer.millivolts_per_drive, layer.v_threshold, seeds, out, len(pre), *pulses.sizes,
         *cell_numbers(layer.lif, layer.dt), blocked_steps, TIES,
         INHIBITION=inhibition, **tile.constants, **tile.options)  # fmt: skip
    return PackedSpikes(out, len(pre))


def sample_drive(layer: SpikingConv2d, synapses: Synapses, pre: PackedSpikes, places: Tensor) -> Tensor:
    """Drives of all channels at some places (:meth:`snn.engines.base.Engine.sample_drive`)."""
    tile, pulses = synapses.tile, Pulses.of(pre, layer, synapses.tile)
    drive = pre.words.new_empty((len(pre), len(places), pulses.geometry.channels_out), dtype=torch.float32)
    _run(kernels.sample_drive, [triton.cdiv(len(places), tile.places), len(pre)],
         pulses.words, pulses.offsets, synapses.digits, synapses.unit, places, drive, len(places), *pulses.sizes,
         **tile.constants, **tile.options)  # fmt: skip
    return drive


def count_driven(layer: SpikingConv2d, drive: Tensor) -> int:
    """Spikes of neurons with these drives (:meth:`snn.engines.base.Engine.count_driven`)."""
    count = drive[0].numel()
    programs = triton.cdiv(count, BLOCK)
    sums = drive.new_empty(programs, dtype=torch.int32)
    _run(kernels.count_driven, [programs],
         drive, layer.millivolts_per_drive, layer.v_threshold, sums, count, drive.shape[2],
         len(drive), *cell_numbers(layer.lif, layer.dt), BLOCK=BLOCK)  # fmt: skip
    return int(sums.sum())


def count_pairs(
    pre: PackedSpikes, post: PackedSpikes, level: Tensor, tables: Sequence[Tensor], geometry: ConvGeometry,
    seeds: Tensor,
) -> Tensor:  # fmt: skip
    """What the rule draws (:meth:`snn.engines.base.Engine.count_events`): float64 (3, C_out, C_in, k, k)."""
    device, kernel, words = pre.words.device, geometry.kernel_size, pre.words.shape[1]
    fan_in = geometry.channels_in * kernel**2
    levels = level.permute(0, 2, 3, 1).to(torch.int16)
    before, after = (tables[side].to(device) for side in (0, -1))
    total = torch.zeros((3, geometry.channels_out, fan_in), dtype=torch.float64, device=device)
    constants = pair_constants(kernel, geometry.stride, geometry.padding, geometry.channels_in, len(tables) > 1)
    synapses = constants["SYNAPSES"]
    # So many images that no count leaves 32 bits, whose most is one for each spike and table.
    most = len(tables) * words * WORD * geometry.places_out + 1
    for images in torch.arange(len(seeds)).split(max(1, MOST_COUNTS // most)):
        part, batch = slice(int(images[0]), int(images[-1]) + 1), len(images)
        counts = torch.zeros((3, geometry.channels_out, fan_in), dtype=torch.int32, device=device)
        tiles = triton.cdiv(batch * words * geometry.places_out, constants["SPIKES"] * constants["TILES"])
        _run(kernels.count_pairs, [tiles, geometry.channels_out, triton.cdiv(fan_in, synapses)],
             pre.words[part], post.words[part], levels[part], before, after, seeds[part], counts,
             batch, len(pre), words, before.shape[1], geometry.height, geometry.width, geometry.channels_in,
             geometry.height_out, geometry.width_out, geometry.channels_out, BEFORE, AFTER,
             **constants, **pair_options(synapses))  # fmt: skip
        total += counts
    return total.unflatten(2, (kernel, kernel, -1)).permute(0, 1, 4, 2, 3)


def _run(kernel: Any, grid: Sequence[int], first: Tensor, *arguments: Any, **constants: Any) -> None:
    """Launch a kernel on the device of its first argument."""
    on_device = torch.cuda.device(first.device) if first.is_cuda else contextlib.nullcontext()
    # Kernels know no strides. What they write to is contiguous, as it was made here.
    plain = (value.contiguous() if isinstance(value, Tensor) else value for value in (first, *arguments))
    with on_device:
        kernel[tuple(grid)](*plain, **constants, **OPTIONS)
