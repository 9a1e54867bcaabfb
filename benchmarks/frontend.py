"""Speed of the converted front end beside the simulations that it replaces and an ordinary convolutional front end.

    python -m benchmarks.frontend --data folder:cifar10
    python -m benchmarks.frontend --data folder:cifar10 --presets

The same images go through

- the converted layers (``bridge.convert``), in one step;
- conv-BN-ReLU layers of the same shapes: the cost of a front end without spikes (for a retina, a convolution of its
  size and both halves of its rectification);
- the plain norse time loop, as a user of norse writes it: a convolution and norse's cell for each layer and time step;
- this project's event-driven simulator.

The first two take turns, and so do the simulations, so that other load on the machine affects them alike. The table
shows medians and ranges. ``--presets`` measures the first layers of the presets cifar10 and retina, which learn a
little beforehand.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from benchmarks.norse_loop import NorseLoop
from benchmarks.presets import first_layers
from bridge import SpikingFrontEnd, convert
from snn.data import image_folders, load_images
from snn.data_source import DataSource
from snn.encoding import encode
from snn.engines.base import choose_engine
from snn.image_cache import Caching
from snn.learner import learn
from snn.network import SpikingNetwork
from snn.retina import encoder_input
from snn.runtime.cli import RunOptions, check_left_out, run_command
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs, write_csv
from snn.runtime.random import draw_seeds
from snn.spikes import spike_counts
from snn.storage import load_network

FITTED = 128
"""Images to which the converted layers are fitted."""
UPDATES = 50
"""Updates by which the layers of presets learn."""
CONVERTED = "converted"
SIMULATORS = "event-driven simulator", "plain norse time loop"


class Case(NamedTuple):
    """What is measured."""

    network: str
    front_end: str


@dataclass(frozen=True)
class FrontEndConfig:
    """Measure the converted front end's speed."""

    snn: tuple[Path, ...] = (Path("pretrained:cifar10-fd"),)
    """Files written by snn.learn, for images of one shape."""
    presets: bool = False
    """Measure the first layers of presets instead."""
    batch_size: int = 64
    """Images that go through together."""
    repeats: int = 20
    """Repeats of the one-step front ends."""
    loop_repeats: int = 3
    """Repeats of the simulations."""
    out: Path | None = None
    """Also write the table to this CSV file."""
    data_source: Annotated[DataSource, tyro.conf.arg(name="")] = field(default_factory=lambda: DataSource("cifar10"))
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)

    def __post_init__(self) -> None:
        for name in ("batch_size", "repeats", "loop_repeats"):
            check(getattr(self, name) >= 1, f"`{name}` {getattr(self, name)}: give 1 or more")
        check(len(self.snn) > 0, "`snn`: give at least one file")
        if self.presets:
            check_left_out(self, ("snn",), "`presets` learns networks of its own")


class BothHalves(nn.Module):
    """Rectification into two channels, as ON and OFF."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -x], dim=1).relu()


def ordinary(frontend: SpikingFrontEnd) -> nn.Sequential:
    """conv-BN-ReLU layers of the same shapes."""
    layers: list[nn.Module] = []
    if retina := frontend.retina:
        colours, size = retina.filters.shape[0], retina.filters.shape[-1]
        layers += [nn.Conv2d(colours, colours, size, padding=size // 2), BothHalves()]
    for layer in frontend.layers:
        channels, c_in, size, _ = layer.weight.shape
        convolution = nn.Conv2d(c_in, channels, size, layer.stride, layer.padding, bias=False)
        layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(*layers).eval()


def measure(functions: Mapping[Case, Callable[[], object]], repeats: int) -> dict[Case, list[float]]:
    """Seconds of each call, in turns, after one to warm up."""
    times: dict[Case, list[float]] = {case: [] for case in functions}
    for number in range(repeats + 1):
        for case, function in functions.items():
            began = perf_counter()
            function()
            if number:
                times[case].append(perf_counter() - began)
    return times


@torch.inference_mode()
def run(config: FrontEndConfig) -> None:
    """The command: measure, print, write."""
    outputs = Outputs(config.out, options=RunOptions(), inputs=image_folders(config.data_source))
    networks = {} if config.presets else {str(path): load_network(path)[0] for path in config.snn}
    fitted, images = choose_images(config, networks)
    if config.presets:
        networks = {name: learn(fitted, replace(p, min_updates=UPDATES)) for name, p in first_layers().items()}
    # The memory order that the front end chooses itself, for the others too.
    pixels = (images / 255).contiguous(memory_format=torch.channels_last)
    one_step: dict[Case, Callable[[], object]] = {}
    simulations: dict[Case, Callable[[], object]] = {}
    counts: dict[Case, Tensor] = {}
    for name, network in networks.items():
        frontend = convert(network, fitted).frontend.eval()
        others = {
            CONVERTED: frontend,
            "converted, quantised input": convert(network, fitted, quantise_input=True).frontend.eval(),
            "conv-BN-ReLU": ordinary(frontend),
        }
        one_step |= {Case(name, kind): partial(module, pixels) for kind, module in others.items()}
        for kind, simulate in simulators(network, images).items():
            case = Case(name, kind)

            def count(case: Case = case, simulate: Callable[[], Tensor] = simulate) -> None:
                counts[case] = simulate()

            simulations[case] = count
    times = measure(one_step, config.repeats) | measure(simulations, config.loop_repeats)
    rows = speed_rows(times, config.batch_size)
    print("| network | front end | images/s (range) | ms per batch | converted is faster by |")
    print("|---|---|---:|---:|---:|")
    for row in sorted(rows, key=lambda row: list(networks).index(row["network"])):
        print(
            f"| {row['network']} | {row['front_end']} | {row['images_per_s']:.4g} ({row['lowest']:.4g} to "
            f"{row['highest']:.4g}) | {1000 * row['seconds']:.4g} | {row['converted_is_faster_by']:.3g} |"
        )
    print()
    for name in networks:
        ours, theirs = (counts[Case(name, kind)] for kind in SIMULATORS)
        agree = (ours == theirs).double().mean().item()
        print(f"{name}: norse's loop and the simulator give the same count in {agree:.3%} of the last layer's neurons")
    print(f"{torch.get_num_threads()} threads, batch {config.batch_size}, {config.data_source.data}")
    write_csv(config.out, rows)
    outputs.finish({})


def simulators(network: SpikingNetwork, images: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Functions that simulate the network on images and give the last layer's spike counts; :data:`SIMULATORS`."""
    engine, seeds = choose_engine(), draw_seeds(len(images), torch.Generator().manual_seed(1))
    loop = NorseLoop([learned.layer for learned in network.layers])

    def simulate() -> Tensor:
        return spike_counts(network.simulate(engine, network.encode(engine, images, seeds))[-1])

    def simulate_in_norse() -> Tensor:
        return loop(encode(encoder_input(images, network.retina), network.learning.encoding, seeds).float())

    return dict(zip(SIMULATORS, (simulate, simulate_in_norse), strict=True))


def choose_images(config: FrontEndConfig, networks: Mapping[str, SpikingNetwork]) -> tuple[Tensor, Tensor]:
    """Random training images, uint8 (N, C, H, W): :data:`FITTED` for the fit, and a batch to measure."""
    name, loaded = config.data_source.data, load_images(config.data_source, "train", 0, cache=config.caching.cache)
    for path, network in networks.items():
        check(
            loaded.shape == network.input_shape,
            f"images of {name} have shape {loaded.shape}, {path} is for {network.input_shape}; give others with `data`",
        )
    needed = FITTED + config.batch_size
    check(
        len(loaded.images) >= needed, f"{name} has {len(loaded.images)} images: {needed} are needed to fit and measure"
    )
    order = torch.randperm(len(loaded.images), generator=torch.Generator().manual_seed(0))
    return loaded.images[order[:FITTED]], loaded.images[order[FITTED:needed]]


def speed_rows(times: Mapping[Case, list[float]], batch_size: int) -> list[dict]:
    """A row for each front end: medians and ranges, and how much faster the network's converted layers are."""
    rows = []
    for case, seconds in times.items():
        speeds, middle = batch_size / np.array(seconds), np.median(seconds)
        rows.append(
            {
                "network": case.network,
                "front_end": case.front_end,
                "batch_size": batch_size,
                "images_per_s": batch_size / middle,
                "lowest": speeds.min(),
                "highest": speeds.max(),
                "seconds": middle,
                "converted_is_faster_by": middle / np.median(times[Case(case.network, CONVERTED)]),
            }
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m benchmarks.frontend``."""
    return run_command(FrontEndConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
