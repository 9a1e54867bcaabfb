"""Learn spiking convolution layers without labels, one after another, and write ``snn.h5``.

While it learns, the file holds the layers learned so far and the state of the one that is learning: it is written anew
every ``--checkpoint-interval`` seconds and after each layer, and ``--resume`` goes on from it.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated

import tyro

from snn.data_source import DataSource
from snn.learning import PRESETS, Learning, PresetName
from snn.runtime.cli import RunOptions, check_left_out, command_line, note_unused, run_command
from snn.runtime.outputs import Outputs, beside, hold_log_folder, log_folder
from snn.runtime.ranges import INTERVAL, NODES, PROCESSES, Range, check_fields


@dataclass(frozen=True)
class LearnConfig:
    """Learn spiking convolution layers by STDP and write snn.h5."""

    out: Path
    """File to write, for example runs/demo/snn.h5."""
    preset: PresetName = "cifar10"
    """Where settings start from: cifar10 is the paper's configuration for images of 32 pixels; imagenet is one for 224
    pixels whose cost is that of the paper's Table 1; retina and retina-imagenet learn one layer on the contrast of such
    images, with feed-forward inhibition; retina-digits does so on digits of 8 pixels. Other flags override it."""
    engine: str = "auto"
    """Simulator: events (event-driven, CPU), norse (dense, any device), one of a plugin, or auto, the fastest for the
    device. All learn the same bits."""
    resume: bool = False
    """Go on from an unfinished --out (if there is none, start)."""
    checkpoint_interval: Annotated[float, INTERVAL] = 60.0
    """Seconds between two checkpoints; an interruption costs at most this much."""
    image_interval: Annotated[int, Range(0, 10**6)] = 50
    """Updates between two pictures of the kernels for TensorBoard, in the folder OUT_learning; 0: none."""
    devices: Annotated[int, PROCESSES] = 1
    """Processes (each with a GPU or a share of the CPU's cores) on each node, which share every mini-batch."""
    num_nodes: Annotated[int, NODES] = 1
    """Nodes; start the command on each, for example with torchrun."""
    data_source: Annotated[DataSource, tyro.conf.arg(name="")] = field(default_factory=DataSource)
    learning: Annotated[Learning, tyro.conf.arg(name="")] = field(default_factory=Learning)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.learning.stdp.pairing == "two-sided":
            check_left_out(self.learning.stdp, ("ltd_delay",), "it belongs to `pairing` post, not two-sided")


def note_without_effect(p: Learning, preset: Learning) -> None:
    """Say which settings differ from the preset's and yet decide nothing."""
    if not p.stop_when_converged:
        note_unused(p, preset, {"convergence_tolerance": "`stop_when_converged`"})
    if p.homeostasis.threshold_step == 0:
        note_unused(p.homeostasis, preset.homeostasis, {"threshold_range": "`threshold_step`"})
    if p.homeostasis.mean_conductance == 0:
        note_unused(p.homeostasis, preset.homeostasis, {"ltd_step": "`mean_conductance`"})
    if p.stdp.rule == "deterministic":
        constants = ("gamma_p", "gamma_d", "phi_p", "phi_d", "tau_p", "tau_d", "ltd_delay")
        note_unused(p.stdp, preset.stdp, dict.fromkeys(constants, "a `rule` with chance"))
    elif p.stdp.rule == "stochastic":
        note_unused(p.stdp, preset.stdp, dict.fromkeys(("phi_p", "phi_d"), "`rule` fd"))
    if p.retina.kind != "whiten":
        note_unused(p.retina, preset.retina, dict.fromkeys(("epsilon", "noise", "patches"), "`retina` whiten"))
    if p.retina.kind != "dog":
        note_unused(p.retina, preset.retina, dict.fromkeys(("centre", "surround"), "`retina` dog"))
    if p.retina.kind == "none":
        note_unused(p.retina, preset.retina, dict.fromkeys(("kernel_size", "quantile"), "a `retina`"))


def run(config: LearnConfig) -> None:
    """The command: load, learn, write, report."""
    # Imported here: --help must not wait for PyTorch.
    from snn.board import Board
    from snn.checkpointing import checkpoint_writer, load_unfinished
    from snn.data import image_folders, load_images
    from snn.engines.base import choose_engine
    from snn.figures import draw_kernels
    from snn.learner import learn
    from snn.monitor import layer_figures, peak_memory
    from snn.network import SpikingNetwork
    from snn.runtime.processes import start_processes
    from snn.storage import check_file, images_digest, save

    seed = config.options.seed
    pictures, folders = [beside(config.out, "_kernels.png")], image_folders(config.data_source)
    outputs = Outputs(config.out, options=config.options, figures=pictures, inputs=folders, group=True)
    hold_log_folder(logs := log_folder(config.out, "_learning"), (config.out, config.options.json), folders)
    processes, device = start_processes(config.options.device, config.devices, config.num_nodes)
    engine = choose_engine(config.engine, device)
    # The first process alone downloads, reads and decides; a message is shown once.
    data = processes.share(lambda: load_images(config.data_source, "train", seed, labels=False))
    images = data.images
    check_file(config.learning, data.shape[0], len(images))
    fresh = SpikingNetwork(data.shape, config.learning, (), seed, images_digest=images_digest(images))
    unfinished = processes.share(lambda: load_unfinished(config.out, fresh, config.resume))
    if processes.first:
        maps = ", ".join(map(str, config.learning.maps))
        several = f", {processes.size} processes" if processes.size > 1 else ""
        note_without_effect(config.learning, PRESETS[config.preset])
        note_unused(config.data_source, DataSource(), config.data_source.unused)
        print(f"learning layers of {maps} maps on {len(images)} images ({device.type}{several})", flush=True)
        if unfinished:
            updates = unfinished.unfinished.updates if unfinished.unfinished else 0
            print(f"resuming after {len(unfinished.layers)} layers and {updates} updates of the next", flush=True)
    command, began = command_line("snn.learn", config), perf_counter()

    board = Board(logs, config.image_interval)

    def write(network: SpikingNetwork) -> str:
        board.flush()
        return save(network, config.out, config.data_source, command=command)

    checkpoint = checkpoint_writer(write, config.checkpoint_interval, processes)

    def keep(network: SpikingNetwork) -> None:
        if processes.first:
            board(network)
        checkpoint(network)

    network = learn(
        images,
        config.learning,
        seed=seed,
        device=device,
        engine=engine,
        resume=unfinished or fresh,
        save=keep,
        processes=processes,
    )
    if not processes.first:
        return
    seconds, digest = perf_counter() - began, write(network)
    print(
        f"learned {len(network.layers)} layer{'s' * (len(network.layers) > 1)} on {len(images)} images in "
        f"{seconds:.0f} s on {device.type}, "
        f"peak memory {peak_memory():.1f} GiB"
    )
    figures = {f"conv{number}": layer_figures(learned) for number, learned in enumerate(network.layers, 1)}
    for name, layer in figures.items():
        print(
            f"  {name}: {layer['winning_maps_share']:.0%} of {layer['maps']} maps win a fifth of their fair share, "
            f"none more than {layer['largest_share_of_spikes_over_fair_share']:.1f} times it; mean |G - G0| "
            f"{layer['mean_conductance_change_from_start']:.3f}; probability at its peak in "
            f"{layer['saturated_ltp_share_of_events']:.0%} (LTP) and {layer['saturated_ltd_share_of_events']:.0%} "
            f"(LTD) of events; threshold {layer['v_threshold_mV']:.1f} mV, passes on "
            f"{layer['mean_output_rate_Hz']:.1f} Hz"
        )
    for figure in outputs.figures:
        draw_kernels(network, figure)
    note = f"; kernels and activity over time are in {logs}: tensorboard --logdir {logs}"
    outputs.finish({"layers": figures, "seconds": seconds, "seed": seed, "digest": digest}, note=note)


def with_preset(config: LearnConfig) -> LearnConfig:
    """What flags are applied to, once ``--preset`` is known."""
    return replace(config, learning=PRESETS[config.preset])


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m snn.learn``."""
    return run_command(LearnConfig, run, argv, with_preset)


if __name__ == "__main__":
    sys.exit(main())
