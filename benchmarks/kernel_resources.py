"""Registers, memory on chip and instructions of the GPU engine's kernels, compiled for a GPU that need not be there.

Usage::

    python -m benchmarks.kernel_resources --architecture 90

Triton and the assembler that comes with it compile each kernel as the layers of a preset launch it. A value that does
not fit into the registers is spilled: every access goes to memory. Programs that share a multiprocessor hide each
other's waiting; registers and memory on chip limit their number.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from snn.engines.gpu import kernels, launch
from snn.engines.gpu.tiles import Tile, pair_constants, pair_options
from snn.learning import PRESETS, Learning
from snn.runtime.cli import run_command
from snn.runtime.errors import check
from snn.runtime.ranges import Range, check_fields

THREADS, REGISTERS, WARPS_OF_MULTIPROCESSOR = 32, 2**16, 64
"""Of a warp; registers of a multiprocessor, and most warps on it (compute capability 8.0 and 9.0)."""
KINDS = {
    "*u8": ("images",),
    "*i8": ("weights",),
    "*i16": ("levels",),
    "*fp32": ("grid", "scale", "threshold", "drive"),
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

    @property
    def programs(self) -> int:
        """Programs that share a multiprocessor, by registers and warps."""
        # Registers are given to a warp in units of 256.
        warp = -(-self.registers * THREADS // 256) * 256
        return min(REGISTERS // (warp * self.warps), WARPS_OF_MULTIPROCESSOR // self.warps)


def launches(p: Learning, channels: int = 3) -> Iterator[Launch]:
    """All kernels as the layers of ``p`` launch them, for images of so many channels."""
    block = {"BLOCK": launch.NEURONS}
    yield Launch("images", kernels.encode_regular, block)
    yield Launch("images", kernels.encode_poisson, block)
    yield Launch("all", kernels.count_spikes, block)
    yield Launch("all", kernels.count_driven, block)
    inputs = channels * (1 if p.retina.kind == "none" else 2)
    for number in range(len(p.maps)):
        geometry, layer = p.geometry(number), f"layer {number + 1}"
        fan_in = inputs * geometry.kernel_size**2
        pulse, _ = geometry.steps(p.encoding.dt)
        yield Launch(layer, kernels.hold, {**block, "PULSE": pulse})
        tile = Tile.of(geometry.maps, fan_in)
        for inhibition in (False, True):
            yield Launch(layer, kernels.simulate, {**tile.constants, "INHIBITION": inhibition}, tile.options)
        yield Launch(layer, kernels.sample_drive, tile.constants, tile.options)
        two_sided = p.rule.pairing == "two-sided"
        constants = pair_constants(geometry.kernel_size, geometry.stride, geometry.padding, inputs, two_sided)
        yield Launch(layer, kernels.count_pairs, constants, pair_options(constants["SYNAPSES"]))
        inputs = geometry.maps


def compile_kernel(what: Launch, architecture: int) -> Resources:
    """Compile for a compute capability, such as 90."""
    types = {name: kind for kind, names in KINDS.items() for name in names}
    name, arguments = what.kernel.__name__, what.kernel.arg_names
    signature = {each: types.get(each, "i32") for each in arguments}
    if "out" in signature:
        signature["out"] = OUT.get(name, "*i32")
    signature |= dict.fromkeys(what.constants, "constexpr")
    constants = {(arguments.index(each),): value for each, value in what.constants.items()}
    compiled = triton.compile(
        ASTSource(what.kernel, signature, constants),
        target=GPUTarget("cuda", architecture, THREADS),
        options={**what.options, **launch.OPTIONS},
    )
    program = compiled.asm["ptx"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    return Resources(
        registers=int(found[1]),
        spilled=int(found[2]),
        shared=compiled.metadata.shared,
        products=next((each for each in ("wgmma", "mma.sync") if each in program), "none"),
        fused=len(re.findall(r"\bfma\.rn(\.ftz)?\.f32", program)),
        warps=compiled.metadata.num_warps,
    )


@dataclass(frozen=True)
class ResourcesConfig:
    """Resources of the GPU engine's kernels, compiled without a GPU."""

    preset: str = "cifar10"
    """Whose layers launch them."""
    architecture: Annotated[int, Range(75, 120)] = 90
    """Compute capability: 80 for A100, 90 for H100 and H200."""

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
