"""Conversion of learned spiking layers into a frozen front end.

Each layer is fitted on the drive that it will receive in the converted network, from the converted layers before it. It
is fitted to the spike counts of the whole spiking simulation on the same training images.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bridge.fit import Fit, Neurons, fit_response, with_even_steps
from bridge.frontend import (
    ConvertedLayer,
    FrontEndSpec,
    LayerSpec,
    Response,
    SpikingFrontEnd,
    deviations,
    first_input,
    spikes_per_step,
)
from bridge.responses import neuron_response, simulate_counts
from bridge.sau import SpecialActivationUnit
from snn.data import Array, Images, as_images
from snn.data_source import UNNAMED, DataSource
from snn.exact import round_for_exact_sums
from snn.geometry import ConvGeometry
from snn.layer import SpikingConv2d
from snn.network import SpikingNetwork
from snn.parameters import Encoding
from snn.runtime.errors import check
from snn.runtime.memory import check_memory
from snn.runtime.progress import progress
from snn.runtime.random import stream
from snn.storage import load_network

FIT_SAMPLE = 1_000_000
"""Neurons to which a layer's steps are fitted, at most."""
STORED_SAMPLE = 20_000
"""Neurons of a layer whose responses are kept."""
BYTES_OF_COUNT, BYTES_OF_DRIVE = 2, 12
"""Held of each neuron and image: its spike count; while its layer is fitted, its input, drive and normalised drive."""
SINGLE_DRIVES = 1000
"""Constant currents into a single neuron whose response is kept."""


class FittedLayer(NamedTuple):
    """How one layer was converted."""

    spiking: SpikingConv2d
    """The spiking layer, on the CPU."""
    response: Response
    """A sample of the responses to which its SAU was fitted."""
    fit: Fit


@dataclass(frozen=True)
class Conversion:
    """A front end with the record of its conversion; :func:`bridge.save` writes both."""

    frontend: SpikingFrontEnd
    """On the CPU."""
    layers: tuple[FittedLayer, ...]
    seed: int
    """Seed of spike trains and samples."""
    data_source: DataSource = UNNAMED
    """Data that the images come from: that of the network's file, unless set otherwise."""
    parent_digest: str = ""
    """Digest of ``snn.h5`` ("": the network came from memory)."""


def convert(
    network: SpikingNetwork | str | Path,
    images: Array | Images,
    *,
    layers: int | None = None,
    quantise_input: bool = False,
    steps: int | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Conversion:
    """Convert learned spiking layers into a frozen front end.

    Args:
        network: learned layers, or their file: a path of ``snn.h5`` or ``pretrained:cifar10-fd``.
        images: training images, uint8 (N, C, H, W), a tensor or NumPy array, for normalisation statistics and SAUs;
            256 suffice. The responses to all of them are held in memory: of a large set, give a part.
        layers: number of layers to convert, from the first; None: all.
        quantise_input: keep the encoder's rounding to whole spikes.
        steps: number of equal steps of every SAU; None: the steps of the neuron.
        seed: of spike trains and samples.
        device: where to compute. The result is on the CPU.

    Raises:
        UserError: for an unusable file, unfinished learning, images of another type or shape, responses that do not
            fit into the memory, more layers than have learned, or a layer whose neurons all fire at the same rate.
    """
    images = as_images(images)
    data_source, parent_digest, name = UNNAMED, "", "the network"
    if not isinstance(network, SpikingNetwork):
        name = str(network)
        network, data_source, parent_digest = load_network(network)
        network = choose_layers(network, layers, name)
    elif layers is not None:
        network = choose_layers(network, layers, name)
    check(
        tuple(images.shape[1:]) == network.input_shape,
        f"images have shape {tuple(images.shape)}; expected (N, C, H, W) with (C, H, W) = {network.input_shape}, as "
        f"{name} learned on",
    )
    check_responses(network, len(images))
    network, images = network.to(device), images.to(device)
    counts = simulate_counts(network, images, stream("responses", seed))[1:]
    conversion = fit_frontend(network, images, counts, quantise_input=quantise_input, steps=steps, seed=seed)
    return replace(conversion, data_source=data_source, parent_digest=parent_digest)


def check_responses(network: SpikingNetwork, count: int) -> None:
    """Raise :class:`UserError` if the responses of ``network`` to so many images do not fit into the memory."""
    shape = (network.input_shape[0] * (2 if network.retina else 1), *network.input_shape[1:])
    neurons = [math.prod(shape)]
    for learned in network.layers:
        shape = ConvGeometry.of(learned.layer.geometry, shape).shape_out
        neurons.append(math.prod(shape))
    needed = count * (BYTES_OF_COUNT * sum(neurons) + BYTES_OF_DRIVE * max(neurons))
    check_memory(needed, f"the responses of {len(network.layers)} layers to {count} images", "give fewer `images`")


def choose_layers(network: SpikingNetwork, layers: int | None, name: str | Path) -> SpikingNetwork:
    """The network with its first ``layers`` only (None: all that it plans); messages call it ``name``.

    Raises :class:`snn.runtime.errors.UserError` if fewer layers have learned.
    """
    learned, planned = len(network.layers), len(network.learning.maps)
    wanted = planned if layers is None else layers
    reason = "" if network.complete else ": learning was interrupted"
    remedies = [] if network.complete else ["repeat the command that made it, with --resume"]
    if learned:
        remedies.append(f"give `layers` {learned} or less (at least 1)")
    check(
        1 <= wanted <= learned,
        ("" if layers is None else f"`layers` {layers}: ")
        + f"{name} holds {learned} of the {planned} layers it was to learn{reason}; {', or '.join(remedies)}",
    )
    return replace(network, layers=network.layers[:wanted])


def fit_frontend(
    network: SpikingNetwork,
    images: Tensor,
    counts: Sequence[Tensor],
    *,
    quantise_input: bool,
    seed: int,
    steps: int | None = None,
) -> Conversion:
    """:func:`convert` from simulated spikes of each layer: ``counts``, int16 (N, C_out, H, W) on the CPU.

    The images, uint8 (N, C, H, W), are those of the simulation and lie on the network's device.
    """
    random = np.random.default_rng(seed)
    p = network.learning.encoding
    unit = 1.0 if quantise_input else spikes_per_step(p)
    with torch.no_grad():
        spikes = first_input(images / 255, p, quantise_input, network.retina)
    top = p.f_max * p.presentation / 1000 / unit
    converted, fitted = [], []
    for learned, count in progress(list(zip(network.layers, counts, strict=True)), "fitting", "layer"):
        layer = convert_weights(learned.layer, p.presentation, top, unit).to(images.device)
        with torch.no_grad():
            drive = layer.drive(spikes)
            variance, mean = torch.var_mean(drive, dim=(0, 2, 3), correction=0)
            layer.norm.pass_through(mean, variance)
            drive = layer.norm(drive)
        neurons = _sample(drive, count, random)
        fit = fit_response(neurons, learned.layer, p, random)
        if steps is not None:
            fit = with_even_steps(fit, steps, neurons)
        layer.activation = SpecialActivationUnit(fit.steps.edges, fit.steps.heights).to(images.device)
        with torch.no_grad():
            spikes, unit, top = layer.activation(drive), 1.0, fit.steps.heights.max().item()
        spiking = learned.layer.to("cpu")
        response = _response(neurons.take(slice(STORED_SAMPLE)), spiking, fit, p)
        layer.deviations = deviations(layer.activation, response)
        converted.append(layer)
        fitted.append(FittedLayer(spiking, response, fit))
    shapes = tuple(
        LayerSpec.of(spiking.geometry, fit.steps.edges.shape[-1], fit.steps.per_channel) for spiking, _, fit in fitted
    )
    retina = network.retina and network.retina.copy_to("cpu")
    spec = FrontEndSpec(network.input_shape, shapes, p, quantise_input, retina.kernel_size if retina else 0)
    return Conversion(SpikingFrontEnd(spec, converted, retina).cpu(), tuple(fitted), seed)


def convert_weights(layer: SpikingConv2d, presentation: float, top: float, unit: float = 1.0) -> ConvertedLayer:
    """The frozen convolution whose output is the layer's mean current; its SAU is fitted later.

    ``presentation`` is T in ms, ``top`` the largest input. An input of 1 stands for ``unit`` presynaptic spikes.
    """
    per_conductance = layer.gain * (unit * layer.geometry.pulse_width / presentation)
    weight = layer.weight * per_conductance.reshape(-1, 1, 1, 1)
    # Rounding itself may raise a sum a little.
    largest = 1.01 * top * weight.abs().sum((1, 2, 3), keepdim=True)
    weight = round_for_exact_sums(weight, largest)
    return ConvertedLayer(weight, stride=layer.geometry.stride, padding=layer.geometry.padding)


def _sample(drive: Tensor, counts: Tensor, random: np.random.Generator) -> Neurons:
    """All neurons of drives (N, C, H, W) in random order, or :data:`FIT_SAMPLE` drawn from more."""
    many = drive.numel() > FIT_SAMPLE
    sample = random.integers(drive.numel(), size=FIT_SAMPLE) if many else random.permutation(drive.numel())
    channel = sample // drive[0, 0].numel() % drive.shape[1]
    return Neurons(drive.flatten().cpu().numpy()[sample], counts.flatten().numpy()[sample], channel)


def _response(neurons: Neurons, layer: SpikingConv2d, fit: Fit, encoding: Encoding) -> Response:
    """The responses to keep: those of ``neurons``, and of a single neuron at constant currents."""
    finite = fit.steps.edges[fit.steps.edges.isfinite()]
    highest = max(1.1 * finite.max().item(), neurons.drive.max())
    currents = torch.linspace(0, highest, SINGLE_DRIVES)
    return Response(
        drive=neurons.drive.astype(np.float32),
        count=neurons.count.astype(np.int16),
        channel=neurons.channel.astype(np.int16),
        single_drive=currents.numpy(),
        single_count=neuron_response(layer, currents, encoding).numpy().astype(np.int16),
    )
