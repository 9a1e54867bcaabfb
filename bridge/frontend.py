"""``SpikingFrontEnd``: the learned layers as frozen convolutions that answer in one step, and ``frontend.h5``.

A layer's drive is the mean current of its neurons, ``I = i_syn w/T sum_j G_j n_j`` with n_j presynaptic spikes in a
presentation T and pulse width w; ``weight = i_syn w/T G`` makes it one convolution. Batch normalisation follows (paper,
4.1): its statistics are those of the training images and stay frozen, and its affine part starts by undoing them, so
that before any training the layer passes its drive on unchanged to the Special Activation Unit. The affine part can
train.

Layers pass on spikes in a presentation, not Hz, and the first is given intensities in steps four times finer than those
of 8-bit images (or, with ``quantise_input``, the encoder's whole spikes): whole numbers. Each map's weights are rounded
to the finest power-of-two grid on which every sum of products is exact in float32. A drive then does not depend on the
order of its sum, and so not on batch, memory order or library: near an edge of a step function a difference in the last
bit would be one of a whole step. (On GPUs PyTorch convolves in TF32 unless ``torch.backends.cudnn.allow_tf32`` is off,
which rounds weights further.)
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d

from bridge.sau import SpecialActivationUnit
from snn.parameters import Encoding

INTENSITY_STEPS = 4 * 255
"""Steps of intensity from 0 to 1 in the input of the first layer: 8-bit images lose nothing."""


FLOOR_MARGIN = 1e-5
"""Spikes that F T may fall short of a whole number and still count as it."""


DRAWS = 1024
"""Deviations of a spike count from its step that are told apart by their chance."""


class Response(NamedTuple):
    """Simulated response of a layer to which its SAU was fitted."""

    drive: np.ndarray
    """Mean currents of a sample of neurons, float32 (N,)."""
    count: np.ndarray
    """Their spikes in a presentation, int16 (N,)."""
    channel: np.ndarray
    """Their maps, int16 (N,)."""
    single_drive: np.ndarray
    """Constant currents given to a single neuron, float32 (M,)."""
    single_count: np.ndarray
    """Its spikes, int16 (M,)."""


@dataclass(frozen=True)
class FrontEndSpec:
    """What is needed to build a front end before its values are loaded."""

    input_shape: tuple[int, int, int]
    """(C, H, W) of the images."""
    maps: tuple[int, ...]
    """C_out of each layer."""
    kernel_sizes: tuple[int, ...]
    strides: tuple[int, ...]
    paddings: tuple[int, ...]
    steps: tuple[int, ...]
    """Edges of each layer's SAU (the most of any channel)."""
    per_channel: tuple[bool, ...]
    """Whether each channel of a layer has edges of its own."""
    encoding: Encoding
    """Rates of intensities 0 and 1, and the presentation time."""
    quantise_input: bool = False
    """Round input down to whole spikes, floor(F T), as the encoder does (the paper drops this)."""

    @property
    def stride(self) -> int:
        """Stride of the whole front end."""
        return int(np.prod(self.strides))

    def edges_shape(self, number: int) -> tuple[int, ...]:
        """Of the edges of layer ``number``, counted from 0: (steps,), or (maps, steps) if each channel has its own."""
        steps = self.steps[number]
        return (self.maps[number], steps) if self.per_channel[number] else (steps,)


def input_spikes(images: Tensor, p: Encoding) -> Tensor:
    """F T, the spikes in a presentation that intensities in [0, 1] stand for, in their shape."""
    seconds = p.presentation / 1000
    return images * ((p.f_max - p.f_min) * seconds) + p.f_min * seconds


def whole_spikes(images: Tensor, p: Encoding) -> Tensor:
    """floor(F T), as the encoder has it; the gradient is that without rounding."""
    spikes = input_spikes(images, p)
    # float32 resolves 1e-6 of a spike here; without the margin, whole numbers would lose one.
    return spikes + (torch.floor(spikes + FLOOR_MARGIN) - spikes).detach()


def fine_steps(images: Tensor, p: Encoding) -> Tensor:
    """F T in units of :func:`spikes_per_step`, rounded; the gradient is that without rounding."""
    steps = images * INTENSITY_STEPS + p.f_min / (p.f_max - p.f_min) * INTENSITY_STEPS
    return steps + (torch.round(steps) - steps).detach()


def spikes_per_step(p: Encoding) -> float:
    """Spikes in a presentation that a step of intensity adds."""
    return (p.f_max - p.f_min) * p.presentation / 1000 / INTENSITY_STEPS


def first_input(images: Tensor, p: Encoding, quantise: bool) -> Tensor:
    """What the first layer is given for images in [0, 1]: whole numbers. f_min is folded in, so padding is silence."""
    return (whole_spikes if quantise else fine_steps)(images, p)


class FrozenStatisticsBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with fixed statistics, also in training; only the affine part learns.

    Batch statistics would shift drives across the edges of the SAU from batch to batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def pass_through(self, mean: Tensor, variance: Tensor) -> None:
        """Set statistics (C,) and the affine part that undoes them."""
        with torch.no_grad():
            self.running_mean.copy_(mean)
            self.running_var.copy_(variance)
            self.weight.copy_((variance + self.eps).sqrt())
            self.bias.copy_(mean)


def empty_activation(steps: tuple[int, ...]) -> SpecialActivationUnit:
    """An SAU with edges of this shape, to load values into."""
    edges = torch.arange(float(steps[-1])).expand(steps)
    return SpecialActivationUnit(edges, torch.zeros(*steps[:-1], steps[-1] + 1))


class ConvertedLayer(nn.Module):
    """Frozen convolution, batch normalisation, SAU: whole numbers to spikes in a presentation, (B, C, H, W).

    Args:
        weight: current per spike in a presentation (or, in the first layer, step of its input), (C_out, C_in, k, k).
        stride, padding: of the convolution. Padding is silence.
        steps: shape of the SAU's edges, which are to be fitted or loaded.

    ``deviations`` (:func:`deviations`) is set by conversion and loading.
    """

    def __init__(self, weight: Tensor, stride: int, padding: int, steps: tuple[int, ...] = (1,)) -> None:
        super().__init__()
        self.register_buffer("weight", weight.to(torch.float32).clone())
        self.stride, self.padding = stride, padding
        self.norm = FrozenStatisticsBatchNorm(len(weight))
        self.activation = empty_activation(steps)
        # Of use in training alone, so not part of the state of trained networks.
        self.register_buffer("deviations", torch.zeros(1, DRAWS), persistent=False)

    def drive(self, spikes: Tensor) -> Tensor:
        """Mean current of each neuron, before normalisation."""
        return conv2d(spikes, self.weight, stride=self.stride, padding=self.padding)

    def forward(self, spikes: Tensor, unit: Tensor | float = 1.0) -> Tensor:
        return self.activation(self.norm(self.drive(spikes)), unit)

    def draw(self, spikes: Tensor) -> Tensor:
        """:meth:`forward` with the simulated neurons' variability: a deviation drawn for each neuron, by its step.

        Drawn, as torchvision's dropout is, from torch's global generator.
        """
        counts = self(spikes)
        level = counts.detach().round().int().clamp(max=len(self.deviations) - 1)
        return counts + self.deviations.flatten()[level * DRAWS + torch.randint_like(level, DRAWS)]


def deviations(activation: SpecialActivationUnit, response: Response) -> Tensor:
    """How simulated counts depart from the step function: float32 (levels, :data:`DRAWS`).

    Row n holds equally likely deviations, in increasing order, of neurons whose step is n spikes high (or nearest to).
    """
    drive, channel = torch.from_numpy(response.drive), torch.from_numpy(response.channel).long()
    per_channel = activation.edges.ndim == 2
    expected = torch.empty(len(drive))
    for number in channel.unique() if per_channel else [0]:
        mine = channel == number if per_channel else torch.ones_like(channel, dtype=torch.bool)
        edges, heights = (t.cpu()[number] if per_channel else t.cpu() for t in (activation.edges, activation.heights))
        expected[mine] = heights[torch.searchsorted(edges, drive[mine], right=True)]
    deviation = (torch.from_numpy(response.count) - expected).numpy()
    level, chances = expected.round().int().numpy(), (np.arange(DRAWS) + 0.5) / DRAWS
    rows = np.zeros((int(activation.heights.max().round()) + 1, DRAWS), np.float32)
    for n in np.unique(level):
        rows[n] = np.quantile(deviation[level == n], chances, method="inverted_cdf")
    return torch.from_numpy(rows)


class SpikingFrontEnd(nn.Module):
    """The converted spiking layers. Images in [0, 1], (B, C, H, W), to features in [0, 1], (B, maps[-1], H', W').

    Features of images with several channels are in channels_last memory order, whatever order the images have.
    """

    def __init__(self, spec: FrontEndSpec, layers: list[ConvertedLayer]) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList(layers)
        self.variability = False
        """Whether training (never evaluation) draws spike counts in place of their means."""

    @classmethod
    def empty(cls, spec: FrontEndSpec) -> "SpikingFrontEnd":
        """A front end of the right shape, to load values into."""
        layers, c_in = [], spec.input_shape[0]
        for number, (maps, size) in enumerate(zip(spec.maps, spec.kernel_sizes, strict=True)):
            weight = torch.zeros(maps, c_in, size, size)
            strides, paddings = spec.strides[number], spec.paddings[number]
            layers.append(ConvertedLayer(weight, strides, paddings, spec.edges_shape(number)))
            c_in = maps
        return cls(spec, layers)

    def encode(self, images: Tensor) -> Tensor:
        """:func:`first_input` of images."""
        # In this order a CPU's convolutions of few channels take half the time; results are the same.
        images = images.contiguous(memory_format=torch.channels_last)
        return first_input(images, self.spec.encoding, self.spec.quantise_input)

    def spikes(self, images: Tensor) -> list[Tensor]:
        """Output of every layer: spikes in a presentation."""
        outputs = [self.encode(images)]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        return outputs[1:]

    def rates(self, images: Tensor) -> list[Tensor]:
        """Output of every layer, in Hz."""
        return [spikes * (1000 / self.spec.encoding.presentation) for spikes in self.spikes(images)]

    def forward(self, images: Tensor) -> Tensor:
        x, *layers, last = self.encode(images), *self.layers
        if self.training and self.variability:
            for layer in self.layers:
                x = layer.draw(x)
            return x / last.activation.heights.amax()
        for layer in layers:
            x = layer(x)
        return last(x, last.activation.heights.amax())
