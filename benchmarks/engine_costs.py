"""What the GPU engine's kernels have to do: operations and bytes, from a layer's geometry, and the time these need.

Counts are those of the kernels' source (``snn/engines/gpu``), for a batch of images, padding of matrices included. The
least time of a kernel is that of whichever it keeps busiest: the memory, the tensor cores or the other arithmetic.
Integers and floats that no tensor core takes share the slots in which a processor starts instructions.
"""

import math
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import NamedTuple

from snn.engines.gpu.tiles import Tile
from snn.geometry import ConvGeometry
from snn.learning import Learning
from snn.parameters import LayerParameters

WORD = 32
"""Steps in a word of spikes."""
BYTES_OF_WORD = 4
ENCODE = 12
"""Integer operations for a step of a neuron: its place in the intensity's train, the bit there, and its place here."""
POPULATION = 12
"""Integer operations to count the spikes of a word."""
HOLD = 16
"""Integer operations for a word, without those that widen its pulses (two for each doubling)."""
GATHER = 6
"""Integer operations for a synapse at a step: address and load of its word, its bit, and that as a number."""
FREE = 4
"""Integer operations for a step of a neuron without inhibition: reset, and its bit of the word."""
INHIBITED = 16
"""The same with inhibition: the largest margin, the winner, who is blocked."""
LIF = 8
"""Float operations for a step of a neuron: the drive as a float and in mV, Eq. 1, the threshold."""
MARGIN = 1
"""More of them with inhibition."""
PAIR = 34
"""Integer operations for a synapse at a postsynaptic spike: its neuron, the draw, the chance, and what is counted."""
PAIR_WORD = 14
"""More of them for each word in which the presynaptic spike is sought."""


@dataclass(frozen=True)
class Work:
    """Operations and bytes of a kernel."""

    int8: float = 0.0
    """Operations of int8 matrix products; a multiply-accumulate is two."""
    int32: float = 0.0
    """Other integer operations, comparisons and selections included."""
    float32: float = 0.0
    """Float operations; none are fused, as results must be those of a CPU."""
    bytes: float = 0.0
    """Read from the card's memory and written to it, each number once: what is read again comes from caches."""

    def __add__(self, other: "Work") -> "Work":
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def operations(self) -> float:
        """All operations together."""
        return self.int8 + self.int32 + self.float32

    @property
    def intensity(self) -> float:
        """Operations for each byte."""
        return self.operations / self.bytes


class Ceilings(NamedTuple):
    """The most that a card does in a second."""

    int8: float
    """Operations of int8 matrix products."""
    int32: float
    """Operations on 32-bit integers."""
    float32: float
    """Float operations that are not fused: half of the usual figure, which counts a fused one as two."""
    bytes: float
    """Bytes read from and written to the memory."""


H100 = Ceilings(int8=1979e12, int32=67e12 / 4, float32=67e12 / 2, bytes=3.35e12)
"""H100 SXM, by NVIDIA's data sheet: int8 without sparsity 1,979 TOPS, float32 67 TFLOPS, memory 3.35 TB/s. A
multiprocessor starts half as many integer operations as float ones (CUDA C++ programming guide, compute capability
9.0)."""
H100_BF16 = 989e12
"""Operations of its bfloat16 matrix products, without sparsity, in a second."""


class Bound(NamedTuple):
    """The least time of a kernel, and what sets it."""

    resource: str
    seconds: float


def bound(work: Work, most: Ceilings) -> Bound:
    """The resource that keeps ``work`` longest, on a card that does everything else meanwhile."""
    arithmetic = max(work.int32 / most.int32, (work.int32 + work.float32) / most.float32)
    needs = {"memory": work.bytes / most.bytes, "int8": work.int8 / most.int8, "int32 and float32": arithmetic}
    resource = max(needs, key=needs.__getitem__)
    return Bound(resource, needs[resource])


def total(works: Iterable[Work]) -> Work:
    """Work of one after another."""
    return sum(works, Work())


def words(steps: int) -> int:
    """Words of a neuron's presentation."""
    return -(-steps // WORD)


def tile_of(geometry: ConvGeometry) -> Tile:
    """What a program simulates."""
    return Tile.of(geometry.channels_out, geometry.channels_in * geometry.kernel_size**2)


def synapses(geometry: ConvGeometry) -> int:
    """Synapses of one channel at all places that do not fall on padding."""

    def inside(size: int, size_out: int) -> int:
        starts = (place * geometry.stride - geometry.padding for place in range(size_out))
        return sum(min(start + geometry.kernel_size, size) - max(start, 0) for start in starts)

    rows, columns = inside(geometry.height, geometry.height_out), inside(geometry.width, geometry.width_out)
    return rows * columns * geometry.channels_in


def neurons(shape: tuple[int, int, int]) -> int:
    """Neurons of a sheet (C, H, W)."""
    return math.prod(shape)


def shape_in(geometry: ConvGeometry) -> tuple[int, int, int]:
    """(C_in, H, W)."""
    return geometry.channels_in, geometry.height, geometry.width


def encode_work(shape: tuple[int, int, int], steps: int, images: int) -> Work:
    """Kernel ``encode_regular``: uint8 images of ``shape`` (C, H, W) to words."""
    inputs = images * neurons(shape)
    return Work(int32=ENCODE * WORD * words(steps) * inputs, bytes=inputs * (1 + BYTES_OF_WORD * words(steps)))


def count_work(shape: tuple[int, int, int], steps: int, images: int) -> Work:
    """Kernel ``count_spikes``: words to int16 counts."""
    counted = images * neurons(shape)
    return Work(int32=POPULATION * words(steps) * counted, bytes=counted * (2 + BYTES_OF_WORD * words(steps)))


def hold_work(shape: tuple[int, int, int], steps: int, images: int, pulse: int) -> Work:
    """Kernel ``hold``: words of spikes to words of pulses of ``pulse`` steps."""
    held = images * neurons(shape) * words(steps)
    doublings = math.ceil(math.log2(min(pulse, WORD))) if pulse > 1 else 0
    return Work(int32=(HOLD + 2 * doublings) * held, bytes=2 * BYTES_OF_WORD * held)


def simulate_work(geometry: ConvGeometry, steps: int, images: int, *, inhibition: bool) -> Work:
    """Kernel ``simulate``: words of pulses, with padding, to words of spikes, by exact products of bits and weights."""
    tile = tile_of(geometry)
    rows, columns, planes = tile.inputs, tile.channels, tile.digits
    places, sides = steps * images * geometry.places_out, (geometry.height, geometry.width)
    pulses = images * geometry.channels_in * math.prod(side + 2 * geometry.padding for side in sides)
    spikes = images * neurons(geometry.shape_out)
    of_neuron = planes - 1 + (INHIBITED if inhibition else FREE)
    return Work(
        int8=2.0 * places * rows * columns * planes,
        int32=GATHER * tile.fetches * places * rows + of_neuron * places * columns,
        float32=(LIF + (MARGIN if inhibition else 0)) * places * columns,
        bytes=BYTES_OF_WORD * words(steps) * (pulses + spikes) + planes * rows * columns,
    )


def pairs_work(geometry: ConvGeometry, steps: int, images: int, spikes: float, tables: int = 1) -> Work:
    """Kernel ``count_pairs``: what synapses do at ``spikes`` postsynaptic spikes of an image, spread over all places.

    ``tables``: 1 with pairing post, 2 with pairing two-sided. A spike lies in the middle of the words on average.
    """
    events = images * spikes * synapses(geometry) / geometry.places_out
    sheets = neurons(shape_in(geometry)), neurons(geometry.shape_out)
    counts = 3 * 4 * geometry.channels_out * geometry.channels_in * geometry.kernel_size**2
    return Work(
        int32=tables * events * (PAIR + PAIR_WORD * (words(steps) + 1) / 2),
        bytes=images * (sum(sheets) * words(steps) * BYTES_OF_WORD + 2 * sheets[0]) + counts,
    )


class Kernel(NamedTuple):
    """A launch of a kernel in an update."""

    name: str
    layer: int
    """Whose neurons it simulates or counts, from 1; 0: the images."""
    work: Work


def layers_of(p: Learning, shape: tuple[int, int, int]) -> list[ConvGeometry]:
    """Geometries of all layers on images of ``shape`` (C, H, W)."""
    if p.retina.kind != "none":
        shape = (2 * shape[0], *shape[1:])
    found: list[ConvGeometry] = []
    for number in range(len(p.maps)):
        found.append(ConvGeometry.of(p.geometry(number), found[-1].shape_out if found else shape))
    return found


def update_kernels(p: Learning, shape: tuple[int, int, int], number: int, spikes: float) -> list[Kernel]:
    """What the engine launches in an update in which layer ``number``, from 1, learns.

    ``shape`` is that of the images, ``spikes`` what the layer fires for one of them.
    """
    steps, images, geometries = p.encoding.n_steps, p.batch_size, layers_of(p, shape)
    tables = 2 if p.stdp.pairing == "two-sided" else 1

    def simulated(layer: int) -> list[Kernel]:
        geometry, settings = geometries[layer - 1], p.geometry(layer - 1)
        held = hold_work(shape_in(geometry), steps, images, pulse_steps(settings, p.encoding.dt))
        work = simulate_work(geometry, steps, images, inhibition=layer == number)
        return [Kernel("hold", layer, held), Kernel("simulate", layer, work)]

    own = geometries[number - 1]
    return [
        Kernel("encode", 0, encode_work(shape_in(geometries[0]), steps, images)),
        *(kernel for layer in range(1, number + 1) for kernel in simulated(layer)),
        Kernel("count spikes", number - 1, count_work(shape_in(own), steps, images)),
        Kernel("count pairs", number, pairs_work(own, steps, images, spikes, tables)),
        Kernel("count spikes", number, count_work(own.shape_out, steps, images)),
    ]


def pulse_steps(settings: LayerParameters, dt: float) -> int:
    """Steps of a pulse."""
    return settings.steps(dt)[0]


KERNEL_NAMES = {
    "encode": "encode_regular",
    "hold": "hold",
    "simulate": "simulate",
    "count spikes": "count_spikes",
    "count pairs": "count_pairs",
}
"""What the functions of the kernels are called, of which a profile tells the times."""
