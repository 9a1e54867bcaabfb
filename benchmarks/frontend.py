"""Speed of the converted front end beside the simulations that it replaces and an ordinary convolutional front end.

    python -m benchmarks.frontend --data folder:cifar10

The same images go through

- the converted layers (``bridge.convert``), in one step;
- conv-BN-ReLU layers of the same shapes: the cost of a front end without spikes;
- the plain norse time loop, as a user of norse writes it: a convolution and norse's cell for each layer and time step;
- this project's event-driven simulator.

The first two take turns, and so do the simulations, so that other load on the machine affects them alike. The table
shows medians and ranges.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
import torch
import tyro
from norse.torch.functional.lif_box import LIFBoxFeedForwardState
from norse.torch.module.lif_box import LIFBoxCell
from torch import Tensor, nn

from bridge import SpikingFrontEnd, convert
from snn.data import load_images
from snn.data_source import DataSource
from snn.encoding import encode
from snn.engines.base import choose_engine
from snn.layer import SpikingConv2d
from snn.neuron import norse_parameters
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs, write_csv
from snn.runtime.random import draw_seeds
from snn.spikes import spike_counts
from snn.storage import load_network

FITTED = 128
"""Images to which the converted layers are fitted."""


@dataclass(frozen=True)
class FrontEndConfig:
    """Measure the converted front end's speed."""

    snn: Path = Path("pretrained:cifar10-fd")
    """File written by snn.learn."""
    batch_size: int = 64
    """Images that go through together."""
    repeats: int = 20
    """Repeats of the one-step front ends."""
    loop_repeats: int = 3
    """Repeats of the simulations."""
    out: Path | None = None
    """Also write the table to this CSV file."""
    data_source: Annotated[DataSource, tyro.conf.arg(name="")] = field(default_factory=lambda: DataSource("cifar10"))

    def __post_init__(self) -> None:
        for name in ("batch_size", "repeats", "loop_repeats"):
            check(getattr(self, name) >= 1, f"`{name}` {getattr(self, name)}: give 1 or more")


class NorseLoop(nn.Module):
    """The spiking layers as a user of norse writes them."""

    def __init__(self, layers: list[SpikingConv2d]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        self.cells = nn.ModuleList()
        for layer in layers:
            p = layer.geometry
            _, scale = layer.neurons()
            weight = layer.conductance * scale.reshape(-1, 1, 1, 1)
            convolution = nn.Conv2d(weight.shape[1], p.maps, p.kernel_size, p.stride, p.padding, bias=False)
            convolution.weight = nn.Parameter(weight, requires_grad=False)
            self.convolutions.append(convolution)
            cell = norse_parameters(layer.lif, layer.v_threshold.reshape(1, -1, 1, 1))
            # norse resets, as in its own examples.
            self.cells.append(LIFBoxCell(cell._replace(reset_method=reset), dt=layer.dt))
        self.v_init = layers[0].lif.v_init
        self.pulse, _ = layers[0].geometry.steps(layers[0].dt)

    def forward(self, spikes: Tensor) -> Tensor:
        """Spike counts of the last layer for spikes (T, B, C, H, W)."""
        states: list[LIFBoxFeedForwardState | None] = [None] * len(self.cells)
        held: list[Tensor | None] = [None] * len(self.cells)
        counts = torch.zeros(())
        for z in spikes:
            for number, (convolution, cell) in enumerate(zip(self.convolutions, self.cells, strict=True)):
                before = held[number]
                left = torch.zeros_like(z, dtype=torch.int8) if before is None else (before - 1).clamp(min=0)
                pulses = held[number] = torch.where(z.bool(), self.pulse, left).to(torch.int8)
                current = convolution((pulses > 0).float())
                state = states[number] or LIFBoxFeedForwardState(v=torch.full_like(current, self.v_init))
                z, states[number] = cell(current, state)
            counts = counts + z
        return counts


def reset(z: Tensor, v: Tensor, reset: Tensor, threshold: Tensor) -> Tensor:
    """v_reset where a neuron spiked."""
    return torch.where(z > 0, reset, v)


def ordinary(frontend: SpikingFrontEnd) -> nn.Sequential:
    """conv-BN-ReLU layers of the same shapes."""
    layers: list[nn.Module] = []
    for layer in frontend.layers:
        channels, c_in, size, _ = layer.weight.shape
        convolution = nn.Conv2d(c_in, channels, size, layer.stride, layer.padding, bias=False)
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers).eval()


def measure(functions: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, in turns, after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(repeats + 1):
        for name, function in functions.items():
            began = perf_counter()
            function()
            if number:
                times[name].append(perf_counter() - began)
    return times


@torch.inference_mode()
def run(config: FrontEndConfig) -> None:
    """The command: measure, print, write."""
    outputs = Outputs(config.out, options=RunOptions())
    network, _, _ = load_network(config.snn)
    fitted, images = choose_images(config, network.input_shape)
    frontends = {
        "converted": convert(network, fitted).frontend.eval(),
        "converted, quantised input": convert(network, fitted, quantise_input=True).frontend.eval(),
    }
    # The memory order that the front end chooses itself, for the others too.
    pixels = (images / 255).contiguous(memory_format=torch.channels_last)
    plain = ordinary(frontends["converted"])
    times = measure(
        {name: lambda frontend=frontend: frontend(pixels) for name, frontend in frontends.items()}
        | {"conv-BN-ReLU": lambda: plain(pixels)},
        config.repeats,
    )
    encoding, seeds = network.learning.encoding, draw_seeds(len(images), torch.Generator().manual_seed(1))
    loop = NorseLoop([learned.layer for learned in network.layers])
    engine = choose_engine()
    counts: dict[str, Tensor] = {}

    def simulate() -> None:
        counts["simulator"] = spike_counts(network.simulate(engine, engine.encode(images, encoding, seeds))[-1])

    def simulate_in_norse() -> None:
        counts["norse"] = loop(encode(images, encoding, seeds).float())

    simulations = {"event-driven simulator": simulate, "plain norse time loop": simulate_in_norse}
    times |= measure(simulations, config.loop_repeats)
    rows = speed_rows(times, config.batch_size)
    print("| front end | images/s (range) | ms per batch | converted is faster by |\n|---|---:|---:|---:|")
    for row in rows:
        print(
            f"| {row['front_end']} | {row['images_per_s']:.4g} ({row['lowest']:.4g} to {row['highest']:.4g}) "
            f"| {1000 * row['seconds']:.4g} | {row['converted_is_faster_by']:.3g} |"
        )
    agree = (counts["simulator"] == counts["norse"]).double().mean().item()
    print(f"\nnorse's loop and the simulator give the same spike count in {agree:.3%} of the last layer's neurons")
    print(f"{torch.get_num_threads()} threads, batch {config.batch_size}, {config.data_source.data}")
    write_csv(config.out, rows)
    outputs.finish({})


def choose_images(config: FrontEndConfig, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Random training images, uint8 (N, C, H, W): :data:`FITTED` for the fit, and a batch to measure."""
    name, loaded = config.data_source.data, load_images(config.data_source, "train", 0)
    check(
        loaded.shape == shape,
        f"images of {name} have shape {loaded.shape}, {config.snn} is for {shape}; give others with `data`",
    )
    needed = FITTED + config.batch_size
    check(
        len(loaded.images) >= needed, f"{name} has {len(loaded.images)} images: {needed} are needed to fit and measure"
    )
    order = torch.randperm(len(loaded.images), generator=torch.Generator().manual_seed(0))
    return loaded.images[order[:FITTED]], loaded.images[order[FITTED:needed]]


def speed_rows(times: dict[str, list[float]], batch_size: int) -> list[dict]:
    """A row for each front end: medians and ranges, and how much faster the converted layers are."""
    rows, fastest = [], np.median(times["converted"])
    for name, seconds in times.items():
        speeds, middle = batch_size / np.array(seconds), np.median(seconds)
        rows.append(
            {
                "front_end": name,
                "batch_size": batch_size,
                "images_per_s": batch_size / middle,
                "lowest": speeds.min(),
                "highest": speeds.max(),
                "seconds": middle,
                "converted_is_faster_by": middle / fastest,
            }
        )
    return rows


if __name__ == "__main__":
    sys.exit(run_command(FrontEndConfig, run, None))
