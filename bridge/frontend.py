"""``SpikingFrontEnd``: the learned layers as frozen convolutions that answer in one step.

The drive of a neuron is its mean current, ``I = i_syn w/T sum_j G_j n_j``, with n_j presynaptic spikes in a
presentation of duration T and pulses of width w. With ``weight = i_syn w/T G``, one convolution computes it. Batch
normalisation follows (paper, 4.1). Its statistics are those of the training images and stay frozen. Its affine part can
train; at first it undoes the normalisation, so that the Special Activation Unit receives the drive unchanged.

Layers pass on spikes in a presentation, not Hz. The first layer receives intensities in steps four times finer than
those of 8-bit images or, with ``quantise_input``, the encoder's whole spikes. All inputs are therefore whole numbers.
The weights of each channel are rounded to the finest power-of-two grid on which every sum of products is exact in
float32. The order of a sum then does not change it, so drives are the same for every batch, memory order and library.
This matters near an edge of a step function, where a difference in the last bit costs a whole step. (On GPUs, PyTorch
convolves in TF32, which rounds weights further, unless ``torch.backends.cudnn.allow_tf32`` is off.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d

from bridge.drawing import Drawing
from bridge.sau import SpecialActivationUnit, steps_of_neurons
from snn.data_source import LENGTHS
from snn.parameters import CHANNELS, KERNEL, Encoding, LayerParameters
from snn.retina import INTENSITY_STEPS, LEVELS, Retina, rounded
from snn.runtime.errors import check
from snn.runtime.ranges import Range, check_fields

FLOOR_MARGIN = 1e-5
"""F T counts as a whole number of spikes if it falls short of it by at most this much."""
DRAWS = 1024
"""Resolution of the distribution of deviations: so many equally likely values per step."""


class Response(NamedTuple):
    """Simulated response of a layer, to which its SAU was fitted."""

    drive: np.ndarray
    """Mean currents of a sample of neurons, float32 (N,)."""
    count: np.ndarray  # type: ignore[assignment]
    """Their spikes in a presentation, int16 (N,)."""
    channel: np.ndarray
    """Their channels, int16 (N,)."""
    single_drive: np.ndarray
    """Constant currents into a single neuron, float32 (M,)."""
    single_count: np.ndarray
    """Its spikes in a presentation at each of them, int16 (M,)."""


@dataclass(frozen=True)
class LayerSpec:
    """Shape of a converted layer."""

    channels: Annotated[int, CHANNELS]
    """C_out."""
    kernel_size: Annotated[int, KERNEL]
    stride: Annotated[int, KERNEL]
    padding: Annotated[int, Range(0, 1022, unit="pixels")]
    """In pixels, as kernel size and stride are."""
    steps: Annotated[int, Range(1, 2**20)]
    """Edges of the SAU (of the channel with most, if each channel has its own)."""
    per_channel: bool = False
    """Whether each channel has edges of its own."""

    def __post_init__(self) -> None:
        check_fields(self)
        check(
            self.padding < self.kernel_size,
            f"converted layer with padding {self.padding}: expected less than its kernel size {self.kernel_size}",
        )

    @classmethod
    def of(cls, geometry: LayerParameters, steps: int, per_channel: bool = False) -> "LayerSpec":
        """The shape of a spiking layer once it is converted."""
        return cls(geometry.maps, geometry.kernel_size, geometry.stride, geometry.padding, steps, per_channel)

    @property
    def edges_shape(self) -> tuple[int, ...]:
        """Shape of the SAU's edges: (steps,), or (channels, steps) if each channel has its own."""
        return (self.channels, self.steps) if self.per_channel else (self.steps,)


@dataclass(frozen=True)
class FrontEndSpec:
    """Everything that determines the shape of a front end and its encoding of images."""

    input_shape: Annotated[tuple[int, int, int], LENGTHS]
    """(C, H, W) of the images."""
    layers: tuple[LayerSpec, ...]
    encoding: Encoding
    """Rates of intensities 0 and 1, and the presentation time."""
    quantise_input: bool = False
    """Round the input down to whole spikes, floor(F T), as the encoder does (the paper drops this)."""
    retina_size: Annotated[int, Range(0, 255, unit="pixels")] = 0
    """Side of the retina's filter, in pixels (:class:`snn.retina.Retina`); 0: there is none."""

    def __post_init__(self) -> None:
        check_fields(self)
        check(len(self.layers) >= 1, "front end without layers: expected at least one")
        check(
            self.retina_size == 0 or self.retina_size % 2 == 1,
            f"front end with a retina of {self.retina_size} pixels: expected an odd number",
        )
        side = min(self.input_shape[1:])
        for layer in self.layers:
            side = (side + 2 * layer.padding - layer.kernel_size) // layer.stride + 1
            check(side >= 1, f"front end for images of shape {self.input_shape}: its layers leave nothing of them")

    @property
    def stride(self) -> int:
        """Stride of the whole front end."""
        return math.prod(layer.stride for layer in self.layers)

    @property
    def channels(self) -> tuple[int, ...]:
        """C_out of each layer."""
        return tuple(layer.channels for layer in self.layers)

    @property
    def channels_in(self) -> int:
        """Channels that the first layer receives: those of the images, or ON and OFF of each."""
        return self.input_shape[0] * (2 if self.retina_size else 1)


def input_spikes(images: Tensor, p: Encoding) -> Tensor:
    """F T: spikes in a presentation for intensities in [0, 1], in the shape of ``images``."""
    seconds = p.presentation / 1000
    return images * ((p.f_max - p.f_min) * seconds) + p.f_min * seconds


def whole_spikes(images: Tensor, p: Encoding) -> Tensor:
    """floor(F T), as the encoder computes it. The gradient ignores the rounding."""
    spikes = input_spikes(images, p)
    # float32 resolves 1e-6 of a spike here; without the margin, whole numbers would lose a spike.
    return spikes + (torch.floor(spikes + FLOOR_MARGIN) - spikes).detach()


def fine_steps(images: Tensor, p: Encoding) -> Tensor:
    """F T in units of :func:`spikes_per_step`, rounded. The gradient ignores the rounding."""
    return with_lowest_rate(images * INTENSITY_STEPS, p)


def with_lowest_rate(steps: Tensor, p: Encoding) -> Tensor:
    """F T of intensities or contrasts in steps, in units of :func:`spikes_per_step`, rounded."""
    return rounded(steps + p.f_min / (p.f_max - p.f_min) * INTENSITY_STEPS)


def spikes_per_step(p: Encoding) -> float:
    """Spikes in a presentation that one step of intensity adds."""
    return (p.f_max - p.f_min) * p.presentation / 1000 / INTENSITY_STEPS


def first_input(images: Tensor, p: Encoding, quantise: bool, retina: Retina | None = None) -> Tensor:
    """Input of the first layer, whole numbers, for images in [0, 1]. It includes f_min, so that padding is silence."""
    if retina is None:
        return (whole_spikes if quantise else fine_steps)(images, p)
    return whole_spikes(retina(images, LEVELS) / LEVELS, p) if quantise else with_lowest_rate(retina(images), p)


class FrozenStatisticsBatchNorm(nn.BatchNorm2d):
    """Batch normalisation whose statistics stay fixed, also in training; only the affine part learns.

    Batch statistics would shift drives across the edges of the SAU from batch to batch.
    """

    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def pass_through(self, mean: Tensor, variance: Tensor) -> None:
        """Set the statistics (C,), and the affine part that undoes them."""
        with torch.no_grad():
            self.running_mean.copy_(mean)
            self.running_var.copy_(variance)
            self.weight.copy_((variance + self.eps).sqrt())
            self.bias.copy_(mean)


def empty_activation(edges_shape: tuple[int, ...], device: torch.device) -> SpecialActivationUnit:
    """An SAU into which edges of this shape, and their heights, can be loaded."""
    *channels, steps = edges_shape
    # Counted on the CPU: on the device meta that would import the half of PyTorch.
    edges = torch.arange(float(steps), device="cpu").expand(edges_shape).to(device)
    return SpecialActivationUnit(edges, torch.zeros(*channels, steps + 1, device=device))


class ConvertedLayer(nn.Module):
    """Frozen convolution, batch normalisation and SAU: whole numbers to spikes in a presentation, (B, C, H, W).

    Weights (C_out, C_in, k, k) are currents per spike in a presentation (in the first layer: per step of its input).
    Padding is silence. Conversion and loading set the values of the SAU and ``deviations`` (:func:`deviations`).
    """

    weight: Tensor
    deviations: Tensor

    def __init__(self, weight: Tensor, stride: int, padding: int, edges_shape: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.register_buffer("weight", weight.to(torch.float32).clone())
        self.stride, self.padding = stride, padding
        self.norm = FrozenStatisticsBatchNorm(len(weight), device=weight.device)
        self.activation = empty_activation(edges_shape, weight.device)
        # Most networks do not use them, so they are not part of the state of trained networks.
        self.register_buffer("deviations", torch.zeros(1, DRAWS), persistent=False)

    def drive(self, spikes: Tensor) -> Tensor:
        """Mean current of each neuron, before normalisation."""
        return conv2d(spikes, self.weight, stride=self.stride, padding=self.padding)

    def forward(self, spikes: Tensor, unit: Tensor | float = 1.0) -> Tensor:
        return self.activation(self.norm(self.drive(spikes)), unit)

    def draw(self, spikes: Tensor, integers: Callable[[Tensor, int], Tensor] = torch.randint_like) -> Tensor:
        """:meth:`forward` with the variability of the simulated neurons: each count deviates at random from its step.

        ``integers(like, high)`` draws whole numbers below ``high``; the default draws from torch's global generator, as
        dropout does.
        """
        counts = self(spikes)
        level = counts.detach().round().int().clamp(max=len(self.deviations) - 1)
        return counts + self.deviations.flatten()[level * DRAWS + integers(level, DRAWS)]

    @property
    def has_deviations(self) -> bool:
        """Whether conversion or loading has set the deviations: there is a row for each step then."""
        return len(self.deviations) > 1


def deviations(activation: SpecialActivationUnit, response: Response) -> Tensor:
    """Deviations of simulated counts from the step function, float32 (levels, :data:`DRAWS`).

    Row n belongs to neurons whose step is n spikes high (or nearest to n). It holds equally likely deviations in
    increasing order.
    """
    edges, heights = activation.edges.cpu().numpy(), activation.heights.cpu().numpy()
    expected = steps_of_neurons(edges, heights, response.drive, response.channel)
    deviation, level = response.count - expected, np.rint(expected).astype(int)
    chances = (np.arange(DRAWS) + 0.5) / DRAWS
    rows = np.zeros((round(heights.max().item()) + 1, DRAWS), np.float32)
    for n in np.unique(level):
        rows[n] = np.quantile(deviation[level == n], chances, method="inverted_cdf")
    return torch.from_numpy(rows)


class SpikingFrontEnd(Drawing):
    """The converted spiking layers. Images in [0, 1], (B, C, H, W), become features in [0, 1], (B, C_out, H', W').

    Features of several channels come in channels_last memory order, whatever the order of the images.
    """

    takes_images = True
    """Not normalised ones."""
    layers: Sequence[ConvertedLayer]

    def __init__(self, spec: FrontEndSpec, layers: Sequence[ConvertedLayer], retina: Retina | None = None) -> None:
        super().__init__()
        self.spec, self.retina = spec, retina
        self.layers = nn.ModuleList(layers)  # type: ignore[assignment]
        self.variability = False
        """Whether training, and evaluation inside :func:`bridge.drawing.drawing`, draw spike counts.

        Otherwise their means are used.
        """

    @classmethod
    def empty(cls, spec: FrontEndSpec, device: str | None = None) -> "SpikingFrontEnd":
        """A front end of this shape, into which values can be loaded (on the device meta: shapes alone)."""
        layers, c_in = [], spec.channels_in
        for layer in spec.layers:
            weight = torch.zeros(layer.channels, c_in, layer.kernel_size, layer.kernel_size, device=device)
            layers.append(ConvertedLayer(weight, layer.stride, layer.padding, layer.edges_shape))
            c_in = layer.channels
        return cls(spec, layers, Retina.empty(spec.input_shape[0], spec.retina_size) if spec.retina_size else None)

    @property
    def is_random(self) -> bool:
        return self.variability

    def encode(self, images: Tensor) -> Tensor:
        """Input of the first layer (:func:`first_input`)."""
        # In this order, a CPU convolves few channels in half the time; results are the same.
        images = images.contiguous(memory_format=torch.channels_last)
        return first_input(images, self.spec.encoding, self.spec.quantise_input, self.retina)

    def spikes(self, images: Tensor) -> list[Tensor]:
        """Output of every layer, in spikes in a presentation."""
        outputs = [self.encode(images)]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        return outputs[1:]

    def rates(self, images: Tensor) -> list[Tensor]:
        """Output of every layer, in Hz."""
        return [spikes * (1000 / self.spec.encoding.presentation) for spikes in self.spikes(images)]

    def forward(self, images: Tensor) -> Tensor:
        x, (*lower, last) = self.encode(images), self.layers
        top = last.activation.heights.amax()
        if self.draws_now:
            check(
                self.training or all(layer.has_deviations for layer in self.layers),
                "the deviations of the front end's neurons are unknown, as the file was written before files held "
                "them: train the network anew, or evaluate it with `draws` 1",
            )
            for layer in self.layers:
                x = layer.draw(x, self.integers)
            return x / top
        for layer in lower:
            x = layer(x)
        return last(x, top)
