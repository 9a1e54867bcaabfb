"""Convert ``snn.h5`` into ``frontend.h5``: rescale conductances, fit each layer's SAU, measure how well it answers.

Each layer is fitted on the drive that it will see in the converted network, that is fed by the converted layers before
it, against the spike counts of the whole spiking simulation on the same training images.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from bridge.activation import SpecialActivationUnit, fit_steps
from bridge.figures import draw_responses
from bridge.frontend import (
    ConvertedLayer,
    FrontEndSpec,
    Response,
    SpikingFrontEnd,
    input_rates,
    save_frontend,
)
from bridge.response import simulate_counts
from snn.command import (
    RunOptions,
    beside,
    check_outputs,
    choose_device,
    command_line,
    run_command,
    write_json,
)
from snn.data import load_images
from snn.errors import check
from snn.layer import SpikingConv2d
from snn.pretrained import resolve
from snn.weights import SHIPPED_NETWORKS, SpikingNetwork, load_network

FIT_SAMPLE = 1_000_000
STORED_SAMPLE = 20_000


@dataclass(frozen=True)
class ConvertConfig:
    """Convert learned spiking layers into a frozen front end and write frontend.h5."""

    snn: tyro.conf.Positional[Path]
    """File written by snn.learn, or pretrained:cifar10-fd."""
    out: Path
    """File to write, for example runs/demo/frontend.h5."""
    data: str | None = None
    """Images to measure responses on, if not those of the learning run: digits, cifar10 or folder:PATH."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the learning run."""
    images: int = 128
    """Training images on which responses are simulated; half fit the SAU, half measure the fit."""
    quantise_input: bool = False
    """Keep the encoder's rounding to whole spikes in the converted network (the paper drops it)."""
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check(
            self.images >= 2,
            f"images = {self.images}: at least 2 are needed, half to fit and half to measure",
        )


@dataclass(frozen=True)
class Conversion:
    """A front end with the responses it was fitted to and its fidelity on images not used for the fit."""

    frontend: SpikingFrontEnd
    responses: list[Response]
    fidelity: list[dict[str, float]]


def convert(
    network: SpikingNetwork,
    images: Tensor,
    *,
    quantise_input: bool = False,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Conversion:
    """Convert all layers of ``network`` with responses to uint8 ``images`` (N, C, H, W), N at least 2.

    One half of the images, drawn with ``seed``, gives normalisation statistics and SAUs; the other measures how well
    the converted layers (each fed by the converted layer before it) match the spike counts of the simulation.
    """
    generator = torch.Generator(device).manual_seed(seed)
    random = np.random.default_rng(seed)
    p = network.learning.encoding
    # Images may come ordered by class: both halves must hold all of them.
    order = torch.from_numpy(random.permutation(len(images)))
    network, images = network.to(device), images[order].to(device)
    half = len(images) // 2
    rates = input_rates(images / 255, p, quantise_input)
    converted, responses, fidelity = [], [], []
    for learned, count in zip(network.layers, simulate_counts(network, images, generator), strict=True):
        layer = convert_weights(learned.layer).to(device)
        drive = layer.drive(rates)
        variance, mean = torch.var_mean(drive[:half], dim=(0, 2, 3), correction=0)
        layer.norm.pass_through(mean, variance)
        sample = _sample(drive[:half], count[:half], FIT_SAMPLE, random)
        layer.activation = SpecialActivationUnit(*fit_steps(*sample, p.presentation)).to(device)
        with torch.no_grad():
            rates = layer.activation(layer.norm(drive))
        fidelity.append(measure_fidelity(rates[half:], count[half:], p.presentation))
        x, k = _sample(drive[:half], count[:half], STORED_SAMPLE, random)
        responses.append(Response(x.astype(np.float32), (k * 1000 / p.presentation).astype(np.float32)))
        converted.append(layer)
    geometries = [learned.layer.geometry for learned in network.layers]
    spec = FrontEndSpec(
        input_shape=network.input_shape,
        maps=tuple(g.maps for g in geometries),
        kernel_sizes=tuple(g.kernel_size for g in geometries),
        strides=tuple(g.stride for g in geometries),
        paddings=tuple(g.padding for g in geometries),
        steps=tuple(len(layer.activation.edges) for layer in converted),
        encoding=p,
        quantise_input=quantise_input,
    )
    return Conversion(SpikingFrontEnd(spec, converted).cpu(), responses, fidelity)


def convert_weights(layer: SpikingConv2d) -> ConvertedLayer:
    """The frozen convolution whose output is the layer's mean current, with an SAU yet to be fitted."""
    seconds = layer.geometry.pulse_width / 1000
    return ConvertedLayer(
        weight=layer.conductance * (layer.gain * seconds).reshape(-1, 1, 1, 1),
        stride=layer.geometry.stride,
        padding=layer.geometry.padding,
    )


def measure_fidelity(rates: Tensor, counts: Tensor, presentation: float) -> dict[str, float]:
    """How well converted rates (Hz) match simulated spike counts; both (N, C, H, W), ``presentation`` in ms."""
    converted, simulated = rates.double().flatten(), counts.double().flatten() * (1000 / presentation)
    error = (converted - simulated).abs()
    return {
        "mean_error_Hz": error.mean().item(),
        "count_off_by_one_or_more_share": (error > 500 / presentation).double().mean().item(),
        "correlation": torch.corrcoef(torch.stack((converted, simulated)))[0, 1].item(),
        "mean_simulated_rate_Hz": simulated.mean().item(),
    }


def _sample(drive: Tensor, counts: Tensor, size: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Drives and counts of at most ``size`` neurons."""
    x, k = drive.detach().flatten().cpu().numpy(), counts.flatten().cpu().numpy()
    if len(x) > size:
        chosen = random.choice(len(x), size, replace=False)
        x, k = x[chosen], k[chosen]
    return x, k


def run(config: ConvertConfig) -> None:
    """The command: load, convert, write, report."""
    figure = beside(config.out, "_response.png") if config.options.figures else None
    file = resolve(config.snn, SHIPPED_NETWORKS)
    check_outputs(config.out, config.options.json, figure, inputs=[file])
    device = choose_device(config.options.device)
    network, source, source_digest = load_network(file)
    learned, wanted = len(network.layers), len(network.learning.maps)
    check(
        network.complete,
        f"learning of {config.snn} was interrupted: {learned} of {wanted} layers have learned; repeat the command that "
        "made it, with --resume",
    )
    source = source.override(data=config.data, root=config.root)
    images = load_images(replace(source, limit_train=config.images), "train", config.options.seed)
    check(
        images.shape == network.input_shape,
        f"images of {source.data} have shape {images.shape}, {config.snn} was learned on {network.input_shape} "
        "(channels, height, width); give the data it was learned on with --data",
    )
    conversion = convert(
        network, images.images, quantise_input=config.quantise_input, seed=config.options.seed, device=device
    )
    digest = save_frontend(
        config.out,
        conversion.frontend,
        conversion.responses,
        conversion.fidelity,
        source,
        seed=config.options.seed,
        command=command_line("bridge.convert", config),
        source_digest=source_digest,
    )
    figures = {}
    print(f"converted {len(network.layers)} layers; measured on {len(images.images) // 2} images not used for the fit:")
    for number, (layer, fidelity) in enumerate(zip(conversion.frontend.layers, conversion.fidelity, strict=True), 1):
        figures[f"conv{number}"] = {"sau_steps": len(layer.activation.edges), **fidelity}
        print(
            f"  conv{number}: {len(layer.activation.edges)} steps, "
            f"mean rate {fidelity['mean_simulated_rate_Hz']:.1f} Hz, "
            f"mean error {fidelity['mean_error_Hz']:.2f} Hz, correlation {fidelity['correlation']:.3f}, "
            f"spike count off in {fidelity['count_off_by_one_or_more_share']:.1%} of neurons"
        )
    write_json(config.options.json, {"layers": figures, "seed": config.options.seed, "digest": digest})
    if figure:
        draw_responses(conversion.frontend, conversion.responses, network, figure)
    print(f"wrote {config.out}" + (f" and {figure}" if figure else ""))


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m bridge.convert``."""
    return run_command(ConvertConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
