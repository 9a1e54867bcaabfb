"""Learn spiking convolution layers without labels, one after another, and write ``snn.h5``.

While it learns, the file holds the layers learned so far and the state of the one that is learning: it is written anew
every ``--checkpoint-interval`` seconds and after each layer, and ``--resume`` goes on from it.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated

import tyro

from snn.data import load_images
from snn.data_source import DataSource
from snn.figures import draw_kernels
from snn.learner import learn
from snn.learning import PRESETS, Learning, PresetName
from snn.monitor import peak_memory
from snn.network import SpikingNetwork
from snn.runtime.cli import RunOptions, command_line, run_command
from snn.runtime.errors import UserError, check
from snn.runtime.outputs import beside, check_outputs, write_json
from snn.runtime.processes import Processes, start_processes
from snn.storage import images_digest, load_network, save_network


@dataclass(frozen=True)
class LearnConfig:
    """Learn spiking convolution layers by STDP and write snn.h5."""

    out: Path
    """File to write, for example runs/demo/snn.h5."""
    preset: PresetName = "cifar10"
    """Where settings start from: cifar10 is the paper's configuration for images of 32 pixels, imagenet one for 224
    pixels that is as cheap as the paper's Table 1 tells. Other flags override it."""
    resume: bool = False
    """Go on from an unfinished --out (if there is none, start)."""
    checkpoint_interval: float = 60.0
    """Seconds between two checkpoints; an interruption costs at most this much."""
    devices: int = 1
    """Processes (each with a GPU or a share of the CPU's cores) on each node, which share every mini-batch."""
    num_nodes: int = 1
    """Nodes; start the command on each, for example with torchrun."""
    source: Annotated[DataSource, tyro.conf.arg(name="")] = field(default_factory=DataSource)
    learning: Annotated[Learning, tyro.conf.arg(name="")] = field(default_factory=Learning)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check(self.checkpoint_interval >= 0, f"`checkpoint_interval` {self.checkpoint_interval}: expected 0 or more")


def summary(network: SpikingNetwork) -> dict:
    """The figures of a learned network, one entry per layer."""
    figures = {}
    for number, learned in enumerate(network.layers, 1):
        wins = learned.history.wins
        figures[f"conv{number}"] = {
            "maps": learned.layer.geometry.maps,
            "updates": len(wins),
            "mean_conductance_change_from_start": learned.mean_move,
            "winning_maps_share": learned.winning_share,
            "smallest_share_of_spikes_over_fair_share": learned.fair_shares.min().item(),
            "largest_share_of_spikes_over_fair_share": learned.fair_shares.max().item(),
            "spikes_per_image": wins.sum().item() / learned.history.images[-1].item(),
            "saturated_ltp_share_of_events": learned.saturated[0],
            "saturated_ltd_share_of_events": learned.saturated[1],
            "gain_at_start_current_per_conductance": learned.learning_gain,
            "v_threshold_mV": learned.layer.v_threshold[0].item(),
            "mean_output_rate_Hz": learned.mean_rate,
        }
    return figures


def unfinished(config: LearnConfig, fresh: SpikingNetwork) -> SpikingNetwork | None:
    """What is to be gone on from, or None to start; a :class:`snn.runtime.errors.UserError` if it is of another run."""
    if not config.out.exists():
        return None
    try:
        found, _, _ = load_network(config.out)
    except UserError:
        if config.resume:
            raise
        # Not a network, or an older one: it is replaced, as any --out is.
        return None
    if not config.resume:
        where = f"layer {len(found.layers) + 1}, update {found.unfinished.updates if found.unfinished else 0}"
        check(
            found.complete,
            f"{config.out} holds unfinished learning ({where}): go on with `resume`, remove it, or give another `out`",
        )
        return None
    same = replace(found, layers=(), unfinished=None)
    check(
        same == fresh,
        f"{config.out} was learned with other settings, images or seed ({_difference(same, fresh)}): go on with those "
        "it was started with, or give another `out`",
    )
    return found


def _difference(found: SpikingNetwork, wanted: SpikingNetwork) -> str:
    """The first settings that differ, by name."""
    for one, other in ((found.learning, wanted.learning), (found, wanted)):
        for name in one.__dataclass_fields__:
            if name != "learning" and getattr(one, name) != getattr(other, name):
                return f"{name}: {getattr(one, name)} there, {getattr(other, name)} here"
    return "learning"


def checkpoints(
    write: Callable[[SpikingNetwork], None], interval: float, processes: Processes
) -> Callable[[SpikingNetwork], None]:
    """What :func:`snn.learner.learn` calls after every update: the first process writes every ``interval`` seconds.

    A complete network is left to the command, which writes it with its digest.
    """
    last, layers = perf_counter(), 0

    def save(network: SpikingNetwork) -> None:
        nonlocal last, layers
        if not processes.first or network.complete:
            return
        if len(network.layers) > layers or perf_counter() - last >= interval:
            write(network.to("cpu"))
            last, layers = perf_counter(), len(network.layers)

    return save


def run(config: LearnConfig) -> None:
    """The command: load, learn, write, report."""
    kernels = beside(config.out, "_kernels.png") if config.options.figures else None
    check_outputs(config.out, config.options.json, kernels)
    processes, device = start_processes(config.options.device, config.devices, config.num_nodes)
    # The first process alone downloads, reads and decides; a message is shown once.
    data = processes.share(lambda: load_images(config.source, "train", config.options.seed))
    images = data.images
    fresh = SpikingNetwork(
        tuple(images.shape[1:]), config.learning, (), config.options.seed, images_digest=images_digest(images)
    )
    network = processes.share(lambda: unfinished(config, fresh))
    maps = ", ".join(map(str, config.learning.maps))
    if processes.first:
        several = f", {processes.size} processes" if processes.size > 1 else ""
        print(f"learning layers of {maps} maps on {len(images)} images ({device.type}{several})", flush=True)
        if network:
            done = network.unfinished.updates if network.unfinished else 0
            print(f"resuming after {len(network.layers)} layers and {done} updates of the next", flush=True)
    command, began = command_line("snn.learn", config), perf_counter()

    def write(network: SpikingNetwork) -> str:
        return save_network(config.out, network, config.source, command)

    network = learn(
        images,
        config.learning,
        seed=config.options.seed,
        device=device,
        resume=network or fresh,
        save=checkpoints(write, config.checkpoint_interval, processes),
        processes=processes,
    )
    if not processes.first:
        return
    seconds, digest = perf_counter() - began, write(network)
    figures = summary(network)
    print(
        f"learned {len(network.layers)} layers on {len(images)} images in {seconds:.0f} s on {device.type}, "
        f"peak memory {peak_memory():.1f} GiB"
    )
    for name, layer in figures.items():
        print(
            f"  {name}: {layer['winning_maps_share']:.0%} of {layer['maps']} maps win a fifth of their fair share, "
            f"none more than {layer['largest_share_of_spikes_over_fair_share']:.1f} times it; mean |G - G0| "
            f"{layer['mean_conductance_change_from_start']:.3f}; probability at its peak in "
            f"{layer['saturated_ltp_share_of_events']:.0%} (LTP) and {layer['saturated_ltd_share_of_events']:.0%} "
            f"(LTD) of events; threshold {layer['v_threshold_mV']:.1f} mV, passes on "
            f"{layer['mean_output_rate_Hz']:.1f} Hz"
        )
    write_json(
        config.options.json, {"layers": figures, "seconds": seconds, "seed": config.options.seed, "digest": digest}
    )
    if kernels:
        draw_kernels(network, kernels)
    print(f"wrote {config.out}" + (f" and {kernels}" if kernels else ""))


def with_preset(config: LearnConfig) -> LearnConfig:
    """What flags are applied to, once ``--preset`` is known."""
    return replace(config, learning=PRESETS[config.preset])


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m snn.learn``."""
    return run_command(LearnConfig, run, argv, with_preset)


if __name__ == "__main__":
    sys.exit(main())
