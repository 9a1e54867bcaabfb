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
    calibrate_gain,
    lower_threshold,
    mean_count,
    normalised_rates,
    rate_range,
    sample_drive,
)
from snn.command import (
    DeviceName,
    check_outputs,
    choose_device,
    command_line,
    progress,
    run_command,
    write_json,
)
from snn.data import DataSource, load_images
from snn.encode import Encoding, encode
from snn.errors import check
from snn.figures import draw_kernels
from snn.layer import LayerParameters, SpikingConv2d
from snn.neuron import LIFParameters
from snn.stdp import STDPParameters, count_events, update
from snn.weights import LayerHistory, LearnedLayer, SpikingNetwork, save_network


@dataclass(frozen=True)
class Homeostasis:
    """Keeps maps from dying or monopolising (ours; both off: the paper's plain rule)."""

    synaptic_scaling: bool = True
    """Scale each map's drive so that the sum of its conductances acts as at the start of learning."""
    threshold_step: float = 0.2
    """While a layer learns, a map's threshold moves by this times (its share of the spikes / fair share - 1) at each
    update, in mV; 0 keeps all thresholds equal."""
    threshold_range: float = 4.0
    """Largest departure of a map's threshold from the neuron's, in mV."""

    def __post_init__(self) -> None:
        check(self.threshold_step >= 0, f"threshold_step {self.threshold_step} mV: must not be negative")
        check(self.threshold_range >= 0, f"threshold_range {self.threshold_range} mV: must not be negative")


@dataclass(frozen=True)
class Learning:
    """What is learned, and how."""

    maps: tuple[int, ...] = (32, 40, 56)
    """Feature maps of each layer (paper: ParallelSpikeSim's CIFAR-10 configuration)."""
    kernel_size: int = 3
    """Side of all kernels, in pixels; padding keeps the image size."""
    epochs: int = 1
    """Passes over the training images for each layer."""
    min_updates: int = 200
    """Further passes are made over small data sets until a layer has had this many updates."""
    batch_size: int = 16
    """Images per update; 1 is the paper's online setting."""
    start_count: float = 3.0
    """Spikes per neuron and presentation to which a layer's gain is set when its learning starts."""
    output_rate: float = 15.0
    """Mean rate, in Hz, that a learned layer passes on; set through its lowered threshold."""
    calibration_images: int = 32
    """Training images on which gains, thresholds and rate limits are measured."""
    encoding: Encoding = field(default_factory=Encoding)
    lif: LIFParameters = field(default_factory=LIFParameters)
    stdp: STDPParameters = field(default_factory=STDPParameters)
    homeostasis: Homeostasis = field(default_factory=Homeostasis)

    def __post_init__(self) -> None:
        check(len(self.maps) >= 1, "--maps: give at least one layer, for example --maps 32 40 56")
        for name in ("epochs", "batch_size", "calibration_images"):
            check(getattr(self, name) >= 1, f"{name} = {getattr(self, name)}: must be 1 or more")
        check(self.kernel_size % 2 == 1, f"kernel_size {self.kernel_size}: must be odd, to keep the image size")
        for name in ("start_count", "output_rate"):
            check(getattr(self, name) > 0, f"{name} = {getattr(self, name)}: must be positive")


@dataclass(frozen=True)
class LearnConfig:
    """Learn spiking convolution layers by STDP and write snn.h5."""

    out: Path
    """File to write, for example runs/demo/snn.h5."""
    source: Annotated[DataSource, tyro.conf.arg(name="")] = field(default_factory=DataSource)
    learning: Annotated[Learning, tyro.conf.arg(name="")] = field(default_factory=Learning)
    seed: int = 0
    """Seed of all random draws."""
    device: DeviceName = "auto"
    """Where to compute."""
    figures: bool = True
    """Draw the learned kernels beside --out."""
    json: Path | None = None
    """Also write the printed figures to this file."""


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
    return SpikingNetwork(shape, p.encoding, p.stdp, tuple(layers), seed).to("cpu")


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
        spikes = encode(batch, encoding, generator)
        for learned in below:
            spikes = learned.layer.simulate(spikes, inhibition=False)
        return spikes

    pre = presynaptic(calibration)
    # The encoder's limits are exact; a hidden layer's are measured.
    limits = rate_range(pre, presentation) if below else (encoding.f_min, encoding.f_max)
    shape = (maps, pre.shape[2], p.kernel_size, p.kernel_size)
    initial = 0.2 + 0.6 * torch.rand(shape, generator=generator, device=device)
    layer = SpikingConv2d(
        conductance=initial,
        gain=torch.ones(maps, device=device),
        v_threshold=torch.full((maps,), p.lif.v_threshold, device=device),
        geometry=LayerParameters(maps, p.kernel_size, padding=p.kernel_size // 2),
        lif=p.lif,
        dt=encoding.dt,
    )
    layer = calibrate_gain(layer, sample_drive(layer, pre, generator), p.start_count)
    start = layer

    history: list[tuple[int, Tensor, float]] = []
    batches = list(_batches(len(images), p, generator))
    for chosen in progress(batches, f"layer {number} of {len(p.maps)}", "update"):
        pre = presynaptic(images[chosen].to(device))
        post = layer.simulate(pre, inhibition=True, generator=generator)
        fn = normalised_rates(pre, presentation, limits)
        g = layer.geometry
        counts = count_events(pre, post, fn, g.kernel_size, g.stride, g.padding, encoding.dt, p.stdp, generator)
        conductance = update(layer.conductance, counts, p.stdp)
        change = (conductance - layer.conductance).abs().mean().item()
        wins = post.sum((0, 1, 3, 4))
        layer = _balance(layer.with_values(conductance=conductance), start, wins, p.homeostasis)
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


def _batches(n_images: int, p: Learning, generator: torch.Generator) -> Iterator[Tensor]:
    """Shuffled mini-batches of indices for all passes."""
    per_pass = -(-n_images // p.batch_size)
    passes = max(p.epochs, -(-p.min_updates // per_pass))
    for _ in range(passes):
        yield from torch.randperm(n_images, generator=generator, device=generator.device).cpu().split(p.batch_size)


def _balance(layer: SpikingConv2d, start: SpikingConv2d, wins: Tensor, p: Homeostasis) -> SpikingConv2d:
    """The layer with its gains and thresholds moved as :class:`Homeostasis` says, after one update."""
    if p.synaptic_scaling:
        total = layer.conductance.sum((1, 2, 3)).clamp(min=1e-6)
        layer = layer.with_values(gain=start.gain * (start.conductance.sum((1, 2, 3)).mean() / total))
    share = wins * (len(wins) / wins.sum().clamp(min=1))
    threshold = layer.v_threshold + p.threshold_step * (share - 1)
    low, high = start.v_threshold - p.threshold_range, start.v_threshold + p.threshold_range
    return layer.with_values(v_threshold=threshold.clamp(low, high))


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
    kernels = config.out.with_name(f"{config.out.stem}_kernels.png") if config.figures else None
    check_outputs(config.out, config.json, kernels)
    device = choose_device(config.device)
    images = load_images(config.source, "train", config.seed)
    began = perf_counter()
    network = learn(images.images, config.learning, seed=config.seed, device=device)
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
    write_json(config.json, {"layers": figures, "seconds": seconds, "seed": config.seed, "digest": digest})
    if kernels:
        draw_kernels(network, kernels)
    print(f"wrote {config.out}" + (f" and {kernels}" if kernels else ""))


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m snn.learn``."""
    return run_command(LearnConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
