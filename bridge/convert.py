"""Convert ``snn.h5`` into ``frontend.h5``: rescale conductances, fit each layer's SAU, measure how well it answers.

Each layer is fitted on the drive that it will see in the converted network, that is fed by the converted layers before
it, against the spike counts of the whole spiking simulation on the same training images. How well the result answers
is measured on test images, which neither learning nor fit has seen, with the encoder's floor and without.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from torch import Tensor

from bridge.activation import SpecialActivationUnit
from bridge.fidelity import Fidelity, measure_fidelity
from bridge.figures import draw_fidelity, draw_responses
from bridge.fit import Fit, Neurons, fit_response, with_even_steps
from bridge.frontend import (
    ConvertedLayer,
    FrontEndSpec,
    Response,
    SpikingFrontEnd,
    deviations,
    first_input,
    save_frontend,
    spikes_per_step,
)
from bridge.response import neuron_response, simulate_counts
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
from snn.controls import Conductances, control
from snn.data import load_images
from snn.draws import stream
from snn.encode import Encoding
from snn.errors import check
from snn.layer import SpikingConv2d, round_for_exact_sums
from snn.pretrained import resolve
from snn.weights import SHIPPED_NETWORKS, SpikingNetwork, layer_tree, load_network

FIT_SAMPLE = 1_000_000
STORED_SAMPLE = 20_000
SINGLE_DRIVES = 1000
MODES = ("without_quantise_input", "with_quantise_input")


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
    images: int = 256
    """Training images on which responses are simulated to fit the SAU."""
    test_images: int = 256
    """Test images on which the result is measured; no choice depends on them."""
    layers: int | None = None
    """Convert only so many layers, the first; None: all."""
    quantise_input: bool = False
    """Keep the encoder's rounding to whole spikes in the converted network (the paper drops it)."""
    conductances: Conductances = "learned"
    """What to convert: learned; shuffled (values permuted within each map) or random (uniform) for a control that has
    not learned; balanced: learned less each kernel's mean. But for learned, gains are set to the same rates again."""
    steps: int | None = None
    """Give every SAU so many equal steps along the line through its own, to learn what steps do: 256 are as good as
    none (a ReLU that saturates). None: those of the neuron."""
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        for name in ("images", "test_images"):
            check(getattr(self, name) >= 1, f"--{name.replace('_', '-')} {getattr(self, name)}: give 1 or more")
        check(self.layers is None or self.layers >= 1, f"--layers {self.layers}: give 1 or more")
        check(self.steps is None or 1 <= self.steps <= 1024, f"--steps {self.steps}: expected 1 to 1024")


@dataclass(frozen=True)
class Conversion:
    """A front end with the responses to which it was fitted."""

    frontend: SpikingFrontEnd
    """On the CPU."""
    responses: list[Response]
    fits: list[Fit]


def convert(
    network: SpikingNetwork,
    images: Tensor,
    *,
    quantise_input: bool = False,
    steps: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Conversion:
    """Convert all layers of ``network`` with responses to uint8 training images (N, C, H, W).

    Args:
        network: learned layers.
        images: on which normalisation statistics and SAUs rest.
        quantise_input: keep the encoder's rounding to whole spikes.
        steps: of every SAU, equal ones (None: those of the neuron).
        seed: of spike trains and samples.
        device: where to compute.
    """
    network, images = network.to(device), images.to(device)
    counts = simulate_counts(network, images, stream("responses", seed))
    return fit_frontend(network, images, counts[1:], quantise_input=quantise_input, steps=steps, seed=seed)


def fit_frontend(
    network: SpikingNetwork,
    images: Tensor,
    counts: list[Tensor],
    *,
    quantise_input: bool,
    seed: int,
    steps: int | None = None,
) -> Conversion:
    """:func:`convert`, given simulated spikes of each layer, int16 (N, C_out, H, W), on the CPU."""
    random = np.random.default_rng(seed)
    p, device = network.learning.encoding, images.device
    spikes, unit = first_input(images / 255, p, quantise_input), 1.0 if quantise_input else spikes_per_step(p)
    top = p.f_max * p.presentation / 1000 / unit
    converted, responses, fits = [], [], []
    for learned, count in progress(list(zip(network.layers, counts, strict=True)), "fitting", "layer"):
        layer = convert_weights(learned.layer, p.presentation, top, unit).to(device)
        with torch.no_grad():
            drive = layer.drive(spikes)
            variance, mean = torch.var_mean(drive, dim=(0, 2, 3), correction=0)
            layer.norm.pass_through(mean, variance)
            drive = layer.norm(drive)
        neurons = _sample(drive, count, random)
        fit = fit_response(neurons, learned.layer, p, random)
        if steps is not None:
            fit = with_even_steps(fit, steps, neurons)
        layer.activation = SpecialActivationUnit(fit.steps.edges, fit.steps.heights).to(device)
        with torch.no_grad():
            spikes = layer.activation(drive)
        unit, top = 1.0, fit.steps.heights.max().item()
        converted.append(layer)
        fits.append(fit)
        responses.append(_response(neurons.take(slice(STORED_SAMPLE)), learned.layer, fit, p))
        layer.deviations = deviations(layer.activation, responses[-1])
    geometries = [learned.layer.geometry for learned in network.layers]
    spec = FrontEndSpec(
        input_shape=network.input_shape,
        maps=tuple(g.maps for g in geometries),
        kernel_sizes=tuple(g.kernel_size for g in geometries),
        strides=tuple(g.stride for g in geometries),
        paddings=tuple(g.padding for g in geometries),
        steps=tuple(fit.steps.edges.shape[-1] for fit in fits),
        per_channel=tuple(fit.steps.per_channel for fit in fits),
        encoding=p,
        quantise_input=quantise_input,
    )
    return Conversion(SpikingFrontEnd(spec, converted).cpu(), responses, fits)


def convert_weights(layer: SpikingConv2d, presentation: float, top: float, unit: float = 1.0) -> ConvertedLayer:
    """The frozen convolution whose output is the layer's mean current, with an SAU yet to be fitted.

    Args:
        layer: learned.
        presentation: T in ms.
        top: largest input, in units.
        unit: presynaptic spikes in a presentation that an input of 1 stands for.
    """
    per_conductance = layer.gain * (unit * layer.geometry.pulse_width / presentation)
    weight = layer.conductance * per_conductance.reshape(-1, 1, 1, 1)
    # Rounding itself may raise a sum a little.
    largest = 1.01 * top * weight.abs().sum((1, 2, 3), keepdim=True)
    weight = round_for_exact_sums(weight, largest)
    return ConvertedLayer(weight, stride=layer.geometry.stride, padding=layer.geometry.padding)


def _sample(drive: Tensor, counts: Tensor, random: np.random.Generator) -> Neurons:
    """Of (N, C, H, W), all neurons in random order, or :data:`FIT_SAMPLE` drawn from more."""
    many = drive.numel() > FIT_SAMPLE
    chosen = random.integers(drive.numel(), size=FIT_SAMPLE) if many else random.permutation(drive.numel())
    channel = chosen // drive[0, 0].numel() % drive.shape[1]
    return Neurons(drive.flatten().cpu().numpy()[chosen], counts.flatten().numpy()[chosen], channel)


def _response(neurons: Neurons, layer: SpikingConv2d, fit: Fit, encoding: Encoding) -> Response:
    finite = fit.steps.edges[fit.steps.edges.isfinite()]
    highest = max(1.1 * finite.max().item(), neurons.drive.max())
    drives = torch.linspace(0, highest, SINGLE_DRIVES)
    return Response(
        drive=neurons.drive.astype(np.float32),
        count=neurons.count.astype(np.int16),
        channel=neurons.channel.astype(np.int16),
        single_drive=drives.numpy(),
        single_count=neuron_response(layer.to("cpu"), drives, encoding).numpy().astype(np.int16),
    )


def choose_layers(network: SpikingNetwork, wanted: int | None, name: Path) -> SpikingNetwork:
    """The first ``wanted`` layers (None: all, which must have learned)."""
    learned, planned = len(network.layers), len(network.learning.maps)
    told = f"{name} holds {learned} of the {planned} layers it was to learn"
    if wanted is None:
        check(
            network.complete,
            f"{told}: learning was interrupted; repeat the command that made it, with --resume, "
            + (f"or convert what there is, with --layers {learned}" if learned else "and then convert it"),
        )
        return network
    if not network.complete:
        told += ": learning was interrupted; repeat the command that made it, with --resume"
        told += f", or give --layers {learned} or less" if learned else ""
    else:
        told += f"; give --layers {learned} or less"
    check(wanted <= learned, f"--layers {wanted}: {told}")
    return replace(network, layers=network.layers[:wanted])


def run(config: ConvertConfig) -> None:
    """The command: load, convert, write, report."""
    endings = ("_response.png", "_fidelity.png") if config.options.figures else ()
    figures = [beside(config.out, ending) for ending in endings]
    file = resolve(config.snn, SHIPPED_NETWORKS)
    check_outputs(config.out, config.options.json, *figures, inputs=[file])
    device = choose_device(config.options.device)
    network, source, source_digest = load_network(file)
    network = choose_layers(network, config.layers, config.snn)
    source = source.override(data=config.data, root=config.root)
    seed = config.options.seed
    limited = replace(source, limit_train=config.images, limit_test=config.test_images)
    train, test = (load_images(limited, split, seed) for split in ("train", "test"))
    for split, found in (("training", train), ("test", test)):
        check(
            found.shape == network.input_shape,
            f"{split} images of {source.data} have shape {found.shape}, {config.snn} was learned on "
            f"{network.input_shape} (channels, height, width); give the data it was learned on with --data",
        )
    network = control(network.to(device), train.images.to(device), config.conductances, seed)
    images = [split.images.to(device) for split in (train, test)]
    fit_counts, test_counts = (
        simulate_counts(network, part, stream(purpose, seed))[1:]
        for part, purpose in zip(images, ("responses", "test responses"), strict=True)
    )
    conversions = [
        fit_frontend(network, images[0], fit_counts, quantise_input=quantised, steps=config.steps, seed=seed)
        for quantised in (False, True)
    ]
    fidelities = [measure_fidelity(found.frontend.to(device), images[1], test_counts) for found in conversions]
    chosen = conversions[config.quantise_input]
    chosen.frontend.cpu()
    reports = [
        {
            "spiking": layer_tree(learned.layer.to("cpu")),
            "fit": {"kind": fit.kind, "residual": fit.residual},
            "candidates": {name.replace(" ", "_"): value for name, value in fit.residuals.items()},
            "residual_unit": "spikes in a presentation",
            "fidelity": {mode: fidelity.figures() for mode, fidelity in zip(MODES, both, strict=True)},
        }
        for learned, fit, *both in zip(network.layers, chosen.fits, *fidelities, strict=True)
    ]
    digest = save_frontend(
        config.out,
        chosen.frontend,
        chosen.responses,
        reports,
        source,
        seed=seed,
        command=command_line("bridge.convert", config),
        source_digest=source_digest,
    )
    print(
        f"converted {len(network.layers)} layers of {config.conductances} conductances, fitted on {len(images[0])} "
        f"training images; on {len(images[1])} test images:"
    )
    told = {}
    for number in range(len(network.layers)):
        told[f"conv{number + 1}"] = _tell(number, conversions, fidelities)
    write_json(config.options.json, {"layers": told, "quantise_input": config.quantise_input, "digest": digest})
    if figures:
        draw_responses(chosen.frontend, chosen.responses, network, figures[0])
        draw_fidelity(fidelities[config.quantise_input], chosen.frontend.spec.encoding.presentation, figures[1])
    print("wrote " + ", ".join(map(str, [config.out, *figures])))


def _tell(number: int, conversions: list[Conversion], fidelities: list[list[Fidelity]]) -> dict:
    """Print what became of a layer, without and with the encoder's floor; return the figures."""
    told, simulated = {}, fidelities[0][number]
    print(f"  conv{number + 1}: {simulated.mean_rate:.1f} Hz; {simulated.levels} counts hold 5% of the neurons each")
    for mode, conversion, layers in zip(MODES, conversions, fidelities, strict=True):
        fit, fidelity = conversion.fits[number], layers[number]
        steps = int(fit.steps.edges.isfinite().sum(-1).max())
        print(
            f"    {mode.partition('_')[0]:7} --quantise-input: {steps} steps ({fit.kind}), residual {fit.residual:.3f} "
            f"spikes; correlation {fidelity.correlation:.3f}, error {fidelity.mean_error:.2f} Hz, count off in "
            f"{fidelity.off_share:.1%} of neurons"
        )
        told[mode] = {
            "sau_steps": steps,
            "sau_kind": fit.kind,
            "residual_spikes": fit.residual,
            "candidate_residuals_spikes": fit.residuals,
            **fidelity.figures(),
        }
    return told


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m bridge.convert``."""
    return run_command(ConvertConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
