"""Conversion of learned spiking layers into a frozen front end.

Each layer is fitted on the drive that it will see in the converted network, that is fed by the converted layers before
it, against the spike counts of the whole spiking simulation on the same training images.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bridge.fit import Fit, Neurons, fit_response, with_even_steps
from bridge.frontend import (
    ConvertedLayer,
    FrontEndSpec,
    Response,
    SpikingFrontEnd,
    deviations,
    first_input,
    spikes_per_step,
)
from bridge.responses import neuron_response, simulate_counts
from bridge.sau import SpecialActivationUnit
from snn.layer import SpikingConv2d, round_for_exact_sums
from snn.network import SpikingNetwork
from snn.parameters import Encoding
from snn.runtime.errors import check
from snn.runtime.progress import progress
from snn.runtime.random import stream

FIT_SAMPLE = 1_000_000


STORED_SAMPLE = 20_000


SINGLE_DRIVES = 1000


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
            f"{told}: learning was interrupted; repeat the command that made it, with `resume`, "
            + (f"or convert what there is, with `layers` {learned}" if learned else "and then convert it"),
        )
        return network
    if not network.complete:
        told += ": learning was interrupted; repeat the command that made it, with --resume"
        told += f", or give --layers {learned} or less" if learned else ""
    else:
        told += f"; give --layers {learned} or less"
    check(wanted <= learned, f"`layers` {wanted}: {told}")
    return replace(network, layers=network.layers[:wanted])
