"""How the work of a layer is cut into programs, and what its kernels are compiled for."""

from dataclasses import dataclass

NEURONS = 2**12
"""Most neurons of a program that simulates them: their state and the sums of their inputs stay in registers."""
ROWS, MOST_ROWS = 16, 64
"""Rows of a product in a GPU's matrix units: at least, and as its largest instructions take them."""
LARGEST_SUM = 2**24
"""No sum of a layer's weights is larger, as whole numbers (:meth:`snn.layer.SpikingConv2d.whole_weight`)."""
MOST_CHANNELS = 1024
"""Of more, the sums of a place would not fit into the registers of a program."""
THREADS, REGISTERS = 32, 2**16
"""Of a warp; of a multiprocessor."""
SPIKES, TILES, SYNAPSES = 128, 8, 512
"""Of a program that draws the rule's events: words of one load, loads, and most synapses."""


@dataclass(frozen=True)
class Tile:
    """The part of a layer that a program simulates."""

    places: int
    channels: int
    """All of the layer, and more up to a power of two."""
    inputs: int
    """Synapses of a neuron, in whole chunks."""
    chunk: int
    """Synapses that are summed at once."""
    digits: int
    """Of a weight: 8 bits each, -128 to 127."""

    @classmethod
    def of(cls, channels: int, fan_in: int) -> "Tile":
        """For a layer of so many channels, each neuron of which has ``fan_in`` synapses."""
        padded = max(ROWS, power_of_two(channels))
        # Larger chunks take fewer instructions, and more registers.
        chunk = 32 if fan_in <= 32 or padded <= 32 else 64
        places = min(MOST_ROWS, max(ROWS, NEURONS // padded))
        return cls(places, padded, -(-fan_in // chunk) * chunk, chunk, digits(fan_in))

    @property
    def warps(self) -> int:
        """Of 32 threads, in a program: the fewest with which compute capability 9.0 spills no register."""
        neurons = self.places * self.channels
        return 4 if neurons <= NEURONS // 4 else 8 if neurons <= NEURONS else 16

    @property
    def fetches(self) -> int:
        """How often a program fetches an open synapse: warps that share rows each do."""
        return max(1, self.warps * ROWS // self.places)

    @property
    def options(self) -> dict[str, int]:
        """Of the compiler: warps, and registers of a thread. With half of them, two programs share a multiprocessor."""
        small = self.places * self.channels <= NEURONS // 2
        return {"num_warps": self.warps, "maxnreg": 128 if small else min(255, REGISTERS // (THREADS * self.warps))}

    @property
    def constants(self) -> dict[str, int]:
        """What kernels that sum weights are compiled for."""
        return {
            "DIGITS": self.digits,
            "PLACES": self.places,
            "CHANNELS": self.channels,
            "INPUTS": self.inputs,
            "CHUNK": self.chunk,
        }


def digits(fan_in: int) -> int:
    """Digits that hold every weight of a neuron with so many synapses."""
    # Half a unit more by rounding.
    largest = LARGEST_SUM // fan_in + 1
    return next(number for number in range(1, 5) if largest <= 127 * (256**number - 1) // 255)


def pair_constants(kernel: int, stride: int, padding: int, channels_in: int, two_sided: bool) -> dict[str, int]:
    """What the kernel that draws the rule's events is compiled for."""
    return {
        "KERNEL": kernel,
        "STRIDE": stride,
        "PADDING": padding,
        "TWO_SIDED": two_sided,
        "SPIKES": SPIKES,
        "TILES": TILES,
        "SYNAPSES": min(SYNAPSES, max(32, power_of_two(channels_in * kernel**2))),
    }


def pair_options(synapses: int) -> dict[str, int]:
    """Of the compiler, for a program that looks at so many synapses, four of them for each thread."""
    return {"num_warps": max(1, synapses // 128)}


def power_of_two(number: int) -> int:
    """The smallest power of two that is not less."""
    return 1 << (number - 1).bit_length()
