"""Learn spiking convolution layers without labels, one after another, and write ``snn.h5``.

Each layer learns on all training images while the layers below it are frozen, without inhibition and with lowered
thresholds (paper, 4.2). Images are presented in mini-batches; conductances are held during a presentation.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import tyro
from torch import Tensor

from snn.calibrate import (
    LOWEST_ABOVE_REST,
    calibrate_gain,
    lower_threshold,
    mean_count,
    normalised_rates,
    rate_range,
    sample_drive,
)
from snn.command import (
    RunOptions,
    beside,
    check_outputs,
    choose_device,
    command_line,
    progress,
    run_command,
    write_json,
)
from snn.data import DataSource, load_images
from snn.encode import encode
from snn.figures import draw_kernels
from snn.layer import LayerParameters, SpikingConv2d, feed_forward
from snn.settings import Homeostasis, Learning
from snn.stdp import STDPParameters, count_events, update
from snn.weights import LayerHistory, LearnedLayer, SpikingNetwork, save_network


@dataclass(frozen=True)
class LearnConfig:
    """Learn spiking convolution layers by STDP and write snn.h5."""

    out: Path
    """File to write, for example runs/demo/snn.h5."""
    source: Annotated[DataSource, tyro.conf.arg(name="")] = field(default_factory=DataSource)
    learning: Annotated[Learning, tyro.conf.arg(name="")] = field(default_factory=Learning)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)


def learn(
    images: Tensor, p: Learning | None = None, *, seed: int = 0, device: torch.device | str = "cpu"
) -> SpikingNetwork:
    """Learn all layers of ``p`` (None: defaults) on uint8 ``images`` (N, C, H, W).

    Returns the network, on the CPU. The same arguments give the same bits on the same machine.
    """
    p = p or Learning()
    generator = torch.Generator(device).manual_seed(seed)
    chosen = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    calibration = images[chosen[: p.calibration_images]].to(device)
    layers: list[LearnedLayer] = []
    for _ in p.maps:
        layers.append(_learn_layer(images, calibration, layers, p, generator))
    shape = tuple(images.shape[1:])
    return SpikingNetwork(shape, p, tuple(layers), seed).to("cpu")


def _learn_layer(
    images: Tensor,
    calibration: Tensor,
    below: list[LearnedLayer],
    p: Learning,
    generator: torch.Generator,
) -> LearnedLayer:
    """Learn one layer on top of the learned layers ``below``."""
    device, number, maps = calibration.device, len(below) + 1, p.maps[len(below)]
    encoding, presentation = p.encoding, p.encoding.presentation

    def presynaptic(batch: Tensor) -> Tensor:
        return feed_forward([learned.layer for learned in below], encode(batch, encoding, generator))

    pre = presynaptic(calibration)
    # The encoder's limits are exact; a hidden layer's are measured.
    limits = rate_range(pre, presentation) if below else (encoding.f_min, encoding.f_max)
    shape = (maps, pre.shape[2], p.kernel_size, p.kernel_size)
    g_min, g_range = p.stdp.g_min, p.stdp.g_max - p.stdp.g_min
    low, span = g_min + p.initial_low * g_range, (p.initial_high - p.initial_low) * g_range
    initial = low + span * torch.rand(shape, generator=generator, device=device)
    layer = SpikingConv2d(
        conductance=initial,
        gain=torch.ones(maps, device=device),
        v_threshold=torch.full((maps,), p.lif.v_threshold, device=device),
        geometry=LayerParameters(
            maps,
            p.kernel_size,
            stride=1 if below else p.first_stride,
            padding=p.kernel_size // 2,
            pulse_width=p.pulse_width,
            inhibition_time=p.inhibition_time,
        ),
        lif=p.lif,
        dt=encoding.dt,
    )
    layer = calibrate_gain(layer, sample_drive(layer, pre, generator), p.start_count)
    start = layer

    history: list[tuple[int, Tensor, float]] = []
    ltd_factor = torch.ones((maps, 1, 1, 1), dtype=torch.float64, device=device)
    batches = list(_batches(len(images), p, generator))
    for chosen in progress(batches, f"layer {number} of {len(p.maps)}", "update"):
        pre = presynaptic(images[chosen].to(device))
        post, conductance = learn_batch(layer, pre, limits, p.stdp, generator, ltd_factor)
        change = (conductance - layer.conductance).abs().mean().item()
        wins = post.sum((0, 1, 3, 4))
        layer = balance(layer.with_values(conductance=conductance), start, wins, p.homeostasis)
        ltd_factor = balance_ltd(ltd_factor, (conductance - g_min) / g_range, p.homeostasis)
        seen = len(chosen) + (history[-1][0] if history else 0)
        history.append((seen, wins.cpu(), change))

    drive = sample_drive(layer, presynaptic(calibration), generator)
    layer = lower_threshold(layer, drive, p.output_rate * presentation / 1000)
    seen, wins, change = zip(*history, strict=True)
    return LearnedLayer(
        layer=layer,
        initial_conductance=initial,
        learning_gain=start.gain[0].item(),
        rate_limits=limits,
        mean_rate=mean_count(layer, drive) * 1000 / presentation,
        history=LayerHistory(torch.tensor(seen), torch.stack(wins), torch.tensor(change, dtype=torch.float64)),
    )


def learn_batch(
    layer: SpikingConv2d,
    pre_spikes: Tensor,
    rate_limits: tuple[float, float],
    p: STDPParameters,
    generator: torch.Generator,
    ltd_factor: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """One update: a mini-batch is presented, with inhibition, and the rule applied.

    Args:
        layer: as it is before the update.
        pre_spikes: bool (T, B, C_in, H, W).
        rate_limits: f_min and f_max of Eq. 5, in Hz.
        p: the rule.
        generator: draws between maps with equal potential, then the trials of Eq. 5.
        ltd_factor: multiplies dG_d (:func:`snn.stdp.update`).

    Returns:
        Postsynaptic spikes bool (T, B, C_out, H_out, W_out), and the new conductances (C_out, C_in, kH, kW).
    """
    post = layer.simulate(pre_spikes, inhibition=True, generator=generator)
    fn = normalised_rates(pre_spikes, len(pre_spikes) * layer.dt, rate_limits)
    geometry = layer.geometry
    window = (geometry.kernel_size, geometry.stride, geometry.padding)
    counts = count_events(pre_spikes, post, fn, *window, layer.dt, p, generator)
    return post, update(layer.conductance, counts, p, ltd_factor)


def _batches(n_images: int, p: Learning, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled mini-batches of indices for all passes."""
    per_pass = -(-n_images // p.batch_size)
    passes = max(p.epochs, -(-p.min_updates // per_pass))
    for _ in range(passes):
        yield from torch.randperm(n_images, generator=generator, device=generator.device).cpu().split(p.batch_size)


def balance(layer: SpikingConv2d, start: SpikingConv2d, wins: Tensor, p: Homeostasis) -> SpikingConv2d:
    """The layer with its gains and thresholds moved as :class:`Homeostasis` says, after one update."""
    if p.synaptic_scaling:
        total = layer.conductance.sum((1, 2, 3)).clamp(min=1e-6)
        layer = layer.with_values(gain=start.gain * (start.conductance.sum((1, 2, 3)).mean() / total))
    share = wins * (len(wins) / wins.sum().clamp(min=1))
    threshold = layer.v_threshold + p.threshold_step * (share - 1)
    neuron, floor = layer.lif.v_threshold, layer.lif.v_leak + LOWEST_ABOVE_REST
    low = min(neuron, max(neuron - p.threshold_range, floor))
    return layer.with_values(v_threshold=threshold.clamp(low, neuron + p.threshold_range))


def balance_ltd(factor: Tensor, g: Tensor, p: Homeostasis) -> Tensor:
    """LTD factors of the maps (C_out, 1, 1, 1) for the next update; ``g``: conductances as shares of their range."""
    if p.mean_conductance == 0:
        return factor
    return factor * torch.exp(p.ltd_step * (g.double().mean((1, 2, 3), keepdim=True) - p.mean_conductance))


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
            "largest_share_of_spikes_over_fair_share": (wins.sum(0) * wins.shape[1] / wins.sum()).max().item(),
            "spikes_per_image": wins.sum().item() / learned.history.images[-1].item(),
            "gain_at_start_current_per_conductance": learned.learning_gain,
            "v_threshold_mV": learned.layer.v_threshold[0].item(),
            "mean_output_rate_Hz": learned.mean_rate,
        }
    return figures


def run(config: LearnConfig) -> None:
    """The command: load, learn, write, report."""
    kernels = beside(config.out, "_kernels.png") if config.options.figures else None
    check_outputs(config.out, config.options.json, kernels)
    device = choose_device(config.options.device)
    images = load_images(config.source, "train", config.options.seed)
    maps = ", ".join(map(str, config.learning.maps))
    print(f"learning layers of {maps} maps on {len(images.images)} images ({device.type})", flush=True)
    began = perf_counter()
    network = learn(images.images, config.learning, seed=config.options.seed, device=device)
    seconds = perf_counter() - began
    digest = save_network(config.out, network, config.source, command_line("snn.learn", config))
    figures = summary(network)
    print(f"learned {len(network.layers)} layers on {len(images.images)} images in {seconds:.0f} s on {device.type}")
    for name, layer in figures.items():
        print(
            f"  {name}: {layer['winning_maps_share']:.0%} of {layer['maps']} maps win, "
            f"mean |G - G0| {layer['mean_conductance_change_from_start']:.3f}, "
            f"threshold {layer['v_threshold_mV']:.1f} mV, passes on {layer['mean_output_rate_Hz']:.1f} Hz"
        )
    write_json(
        config.options.json, {"layers": figures, "seconds": seconds, "seed": config.options.seed, "digest": digest}
    )
    if kernels:
        draw_kernels(network, kernels)
    print(f"wrote {config.out}" + (f" and {kernels}" if kernels else ""))


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m snn.learn``."""
    return run_command(LearnConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
