"""Registers, memory on chip and instructions of the GPU engine's kernels, compiled for a GPU that need not be there.

Usage::

    python -m benchmarks.kernel_resources --architecture 90

Triton and the assembler that comes with it compile each kernel as the layers of a preset launch it. A value that does
not fit into the registers is spilled: every access goes to memory. Programs that share a multiprocessor hide each
other's waiting; registers and memory on chip limit their number.
"""

import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from snn.engines.gpu import kernels, launch
from snn.engines.gpu.packed import words_of
from snn.engines.gpu.tiles import REGISTERS, THREADS, Tile, pair_constants, pair_options
from snn.geometry import ConvGeometry
from snn.learning import PRESETS, Learning
from snn.runtime.cli import run_command
from snn.runtime.errors import check
from snn.runtime.random import AFTER, BEFORE, ENCODE, TIES
from snn.runtime.ranges import check_fields

WARPS_OF_MULTIPROCESSOR = 64
"""Most warps on a multiprocessor (compute capability 8.0 and 9.0)."""
SHARED, SHARED_BY_SYSTEM = {80: 164 * 2**10, 90: 228 * 2**10}, 2**10
"""Bytes on chip of a multiprocessor, by compute capability, and those that each program gives to the system."""
SIDE = 32
"""Of the images, in pixels."""
KINDS = {
    "*u8": ("images",),
    "*i8": ("weights",),
    "*i16": ("levels",),
    "*fp32": ("unit", "scale", "threshold", "drive"),
    "*i64": ("seeds", "chosen"),
    "fp32": ("v_init", "v_leak", "v_reset", "rate"),
    "*i32": ("held", "offsets", "spikes", "trains", "chances", "pre", "post", "before", "after"),
}
"""Types of arguments by name; ``out`` differs, and the others are whole numbers."""
OUT = {"count_spikes": "*i16", "sample_drive": "*fp32"}


class Launch(NamedTuple):
    """A kernel as a layer launches it."""

    layer: str
    kernel: Any
    constants: Mapping[str, int]
    numbers: Mapping[str, int] = MappingProxyType({})
    """Arguments that are whole numbers, where they are the same at every launch: whether they are 1 or multiples of 16
    decides what is compiled."""
    options: Mapping[str, int] = MappingProxyType({})
    """Warps and registers, where they are not the compiler's own."""


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel needs and does."""

    registers: int
    """Of a thread."""
    spilled: int
    """Bytes of a thread in memory."""
    shared: int
    """Bytes of a program in the memory on chip."""
    products: str
    """Instruction of the matrix units: wgmma, mma.sync, or none."""
    fused: int
    """Fused multiply-adds in float32, which round otherwise than a CPU."""
    warps: int
    programs: int
    """Programs that share a multiprocessor, by registers, warps and memory on chip."""


def launches(p: Learning, channels: int = 3) -> Iterator[Launch]:
    """All kernels as the layers of ``p`` launch them, for images of so many channels and :data:`SIDE` pixels."""
    block, inputs = {"BLOCK": launch.BLOCK}, channels * (1 if p.retina.kind == "none" else 2)
    words, shape = words_of(p.encoding.n_steps), (inputs, SIDE, SIDE)
    times = {"words": words, "steps": p.encoding.n_steps}
    encoded = {**times, "active": p.encoding.active_steps, "neurons": inputs * SIDE**2, "purpose": ENCODE}
    yield Launch("images", kernels.encode_regular, block, encoded)
    yield Launch("images", kernels.encode_poisson, block, encoded)
    for number in range(len(p.maps)):
        parameters, layer = p.geometry(number), f"layer {number + 1}"
        g, (pulse, blocked) = ConvGeometry.of(parameters, shape), parameters.steps(p.encoding.dt)
        around, tile = g.width + 2 * g.padding, Tile.of(g.channels_out, g.channels_in * g.kernel_size**2)
        row, row_out = g.width * g.channels_in, around * g.channels_in
        padded = {"row": row, "row_out": row_out, "begin_out": g.padding * (row_out + g.channels_in)}
        sheet = {"neurons": g.height * row, "neurons_out": around * row_out}
        yield Launch(layer, kernels.hold, {**block, "PULSE": pulse}, times | padded | sheet)
        fields = {"neurons_in": around * row_out, "stride_y": g.stride * row_out, "stride_x": g.stride * g.channels_in}
        sizes = {**times, **fields, "places": g.places_out, "width_out": g.width_out, "channels": g.channels_out}
        neuron = {"blocked_steps": blocked, "purpose": TIES}
        for inhibition in (False, True):
            constants = {**tile.constants, "INHIBITION": inhibition}
            yield Launch(layer, kernels.simulate, constants, sizes | neuron, tile.options)
        yield Launch(layer, kernels.sample_drive, tile.constants, sizes, tile.options)
        yield Launch(layer, kernels.count_driven, block, {"channels": g.channels_out, "steps": p.encoding.n_steps})
        yield Launch(layer, kernels.count_spikes, block, {"words": words, "neurons": math.prod(g.shape_out)})
        two_sided = p.rule.pairing == "two-sided"
        constants = pair_constants(g.kernel_size, g.stride, g.padding, g.channels_in, two_sided)
        image = {"height": g.height, "width": g.width, "channels_in": g.channels_in, "channels": g.channels_out}
        image |= {
            "height_out": g.height_out,
            "width_out": g.width_out,
            "purpose_before": BEFORE,
            "purpose_after": AFTER,
        }
        yield Launch(layer, kernels.count_pairs, constants, times | image, pair_options(constants["SYNAPSES"]))
        shape = g.shape_out


def compile_kernel(what: Launch, architecture: int) -> Resources:
    """Compile for a compute capability, such as 90."""
    types = {name: kind for kind, names in KINDS.items() for name in names}
    name, arguments = what.kernel.__name__, what.kernel.arg_names
    signature = {each: types.get(each, "i32") for each in arguments}
    if "out" in signature:
        signature["out"] = OUT.get(name, "*i32")
    numbers = {each: value for each, value in what.numbers.items() if each in arguments}
    fixed = {**what.constants, **{each: 1 for each, value in numbers.items() if value == 1}}
    signature |= dict.fromkeys(fixed, "constexpr")
    # PyTorch's memory begins at multiples of more than 16 bytes.
    multiples = [each for each in arguments if signature[each][0] == "*" or (numbers.get(each, 1) % 16 == 0)]
    compiled = triton.compile(
        ASTSource(
            what.kernel,
            signature,
            {(arguments.index(each),): value for each, value in fixed.items()},
            {(arguments.index(each),): [["tt.divisibility", 16]] for each in multiples},
        ),
        target=GPUTarget("cuda", architecture, THREADS),
        options={**what.options, **launch.OPTIONS},
    )
    program, tools = compiled.asm["ptx"], Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage, assembly = (
            subprocess.run([tools / tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for tool, flag in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    registers, warps, shared = int(found[1]), compiled.metadata.num_warps, compiled.metadata.shared
    # Registers are given to a warp in units of 256.
    of_program = -(-registers * THREADS // 256) * 256 * warps
    on_chip = SHARED[90 if architecture >= 90 else 80] // (shared + SHARED_BY_SYSTEM)
    return Resources(
        registers=registers,
        spilled=int(found[2]),
        shared=shared,
        products=next((each for each in ("wgmma", "mma.sync") if each in program), "none"),
        fused=len(re.findall(r"\bFFMA\b", assembly)),
        warps=warps,
        programs=min(REGISTERS // of_program, WARPS_OF_MULTIPROCESSOR // warps, on_chip),
    )


@dataclass(frozen=True)
class ResourcesConfig:
    """Resources of the GPU engine's kernels, compiled without a GPU."""

    preset: str = "cifar10"
    """Whose layers launch them."""
    architecture: Literal[80, 90] = 90
    """Compute capability: 80 (A100) or 90 (H100, H200)."""

    def __post_init__(self) -> None:
        check_fields(self)
        check(self.preset in PRESETS, f"`preset` {self.preset}: choose from {', '.join(PRESETS)}")


def run(config: ResourcesConfig) -> None:
    """The command: a table in Markdown."""
    print("| layer | kernel | warps | registers | spilled | on chip | programs | products | fused |")
    print("|---|---|---:|---:|---:|---:|---:|---|---:|")
    for what in launches(PRESETS[config.preset]):
        r = compile_kernel(what, config.architecture)
        inhibited = ", inhibited" if what.constants.get("INHIBITION") else ""
        name = what.kernel.__name__ + inhibited
        row = what.layer, name, r.warps, r.registers, r.spilled, r.shared, r.programs, r.products, r.fused
        print("|", " | ".join(map(str, row)), "|")


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m benchmarks.kernel_resources``."""
    return run_command(ResourcesConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
