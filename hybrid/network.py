"""The networks of the paper as modules; :mod:`hybrid.architecture` builds them from a description.

A network takes images in [0, 1] and normalises them inside, so that a saved model needs no recipe beside it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from bridge.frontend import FrontEndSpec, SpikingFrontEnd, empty_activation
from hybrid.backbones import initialise_convolutions, last_linear
from snn.retina import INTENSITY_STEPS, Retina

Paths = Literal["both", "spiking", "auxiliary"]
"""Which features reach the main CNN; the others are replaced by zeros."""


class Normalise(nn.Module):
    """(x - mean) / std per channel, with the statistics of the training images (until measured: 0 and 1)."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def measure(self, portions: Iterable[Tensor]) -> None:
        """Take the statistics of uint8 images, which come in portions (B, C, H, W)."""
        # Counts of the 256 intensities: exact, in whatever portions.
        total = torch.zeros(len(self.mean), 256, dtype=torch.int64)
        for images in portions:
            for channel, counts in enumerate(total):
                counts += torch.bincount(images[:, channel].flatten(), minlength=256)
        levels = torch.arange(256, dtype=torch.float64) / 255
        for channel, counts in enumerate(total.double()):
            mean = (counts * levels).sum() / counts.sum()
            variance = (counts * (levels - mean) ** 2).sum() / counts.sum()
            self.mean[channel], self.std[channel] = mean, variance.sqrt().clamp(min=1e-3)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class Network(nn.Module):
    """What all networks share. Images (B, C, H, W) in [0, 1] to logits (B, classes).

    ``preprocess`` maps images in [0, 1] to such images, which ``normalise`` then normalises.
    """

    has_two_paths = False
    """Whether ``forward`` takes :data:`Paths`."""
    spec: object = None
    """The :class:`hybrid.architecture.ModelSpec` that the network was built from, without which it cannot be saved."""

    def __init__(self, main: nn.Module, normalise: Normalise, preprocess: nn.Module) -> None:
        super().__init__()
        self.preprocess, self.normalise, self.main = preprocess, normalise, main


class BaselineNetwork(Network):
    """A backbone behind normalisation."""

    def forward(self, images: Tensor) -> Tensor:
        return self.main(self.normalise(self.preprocess(images)))


class TrainableFrontEnd(nn.Module):
    """Trainable layers in the shape of the spiking ones (the paper's mu), or these with step functions (its lambda).

    Normalised images (B, C, H, W), or images in [0, 1] where the spiking layers have a retina, to features
    (B, channels[-1], H', W'). The retina is part of the encoder: it stays as it is, that of the spiking layers.
    """

    def __init__(self, spec: FrontEndSpec, stepped: bool, retina: Retina | None = None) -> None:
        super().__init__()
        self.retina = retina or (Retina.empty(spec.input_shape[0], spec.retina_size) if spec.retina_size else None)
        layers, c_in = [], spec.channels_in
        for layer in spec.layers:
            conv = nn.Conv2d(c_in, layer.channels, layer.kernel_size, layer.stride, layer.padding, bias=False)
            initialise_convolutions(conv, "fan_out")
            activation = empty_activation(layer.edges_shape, conv.weight.device) if stepped else nn.ReLU()
            norm = nn.BatchNorm2d(layer.channels)
            layers.append(nn.Sequential(OrderedDict(conv=conv, norm=norm, activation=activation)))
            c_in = layer.channels
        self.layers = nn.Sequential(*layers)

    def encode(self, images: Tensor) -> Tensor:
        """Input of the first layer."""
        return contrast(images, self.retina) if self.retina else images

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(self.encode(images))


def contrast(images: Tensor, retina: Retina) -> Tensor:
    """What a retina makes of images (B, C, H, W) in [0, 1]: ON and OFF contrast in [0, 1], (B, 2 C, H, W)."""
    # Rounded to bfloat16, its sums would not be exact.
    with torch.autocast(images.device.type, enabled=False):
        return retina(images) / INTENSITY_STEPS


def auxiliary_cnn(
    in_channels: int, channels: int, stride: int, kernel_size: int = 3, activation: Callable[[], nn.Module] = nn.ReLU6
) -> nn.Sequential:
    """Two small convolutions with the stride of the front end (ours; the paper says "several").

    Normalised images (B, in_channels, H, W) to features (B, channels, H', W').
    """

    def block(c_in: int, step: int) -> list[nn.Module]:
        conv = nn.Conv2d(c_in, channels, kernel_size, step, padding=kernel_size // 2, bias=False)
        initialise_convolutions(conv, "fan_out")
        return [conv, nn.BatchNorm2d(channels), activation()]

    # An even stride is divided between the two: the first then works on four times fewer places.
    first = 2 if stride % 2 == 0 else stride
    return nn.Sequential(*block(in_channels, first), *block(channels, stride // first))


class Join(nn.Module):
    """Concatenates the front end's features (B, C1, H, W) and the auxiliary CNN's (B, C2, H, W) in depth.

    Without an auxiliary CNN (None), the front end's features pass as they are.
    """

    def forward(self, features: Tensor, auxiliary: Tensor | None, paths: Paths = "both") -> Tensor:
        if auxiliary is None:
            return features
        if paths == "spiking":
            auxiliary = torch.zeros_like(auxiliary)
        elif paths == "auxiliary":
            features = torch.zeros_like(features)
        return torch.cat((features, auxiliary), dim=1)


class HybridNetwork(Network):
    """Front end beside an auxiliary CNN, joined, in front of the main CNN (paper, Fig. 2).

    Args:
        frontend: a :class:`bridge.frontend.SpikingFrontEnd` or another module that ``takes_images`` or has a
            ``retina``, which is given images in [0, 1], or a module without, which is given normalised images; to
            features (B, C1, H', W').
        auxiliary: normalised images to features (B, C2, H', W'); None: there is no auxiliary CNN.
        join: both features and :data:`Paths` to the input of ``main``.
        main: joined features to logits (B, classes).
        normalise, preprocess: as in :class:`Network`.
        auxiliary_input: what else is done to preprocessed images before the auxiliary CNN; None: nothing.
        auxiliary_behind_retina: the auxiliary CNN is given the contrast of the front end's retina.
    """

    def __init__(
        self,
        frontend: nn.Module,
        auxiliary: nn.Module | None,
        join: Join,
        main: nn.Module,
        *,
        normalise: Normalise,
        preprocess: nn.Module,
        auxiliary_input: nn.Module | None = None,
        auxiliary_behind_retina: bool = False,
    ) -> None:
        super().__init__(main, normalise, preprocess)
        self.frontend, self.auxiliary, self.join = frontend, auxiliary, join
        self.auxiliary_input = auxiliary_input or nn.Identity()
        self.auxiliary_behind_retina = auxiliary_behind_retina
        self.has_two_paths = auxiliary is not None

    def frontend_input(self, images: Tensor) -> Tensor:
        """What the front end is given of preprocessed images."""
        if getattr(self.frontend, "takes_images", False) or getattr(self.frontend, "retina", None) is not None:
            return images
        return self.normalise(images)

    def auxiliary_features(self, images: Tensor) -> Tensor | None:
        """What the auxiliary CNN makes of preprocessed images, (B, C2, H', W'); None where there is none."""
        if self.auxiliary is None:
            return None
        images = self.auxiliary_input(images)
        if self.auxiliary_behind_retina:
            return self.auxiliary(contrast(images, self.frontend.retina))  # type: ignore[arg-type]
        return self.auxiliary(self.normalise(images))

    def forward(self, images: Tensor, paths: Paths = "both") -> Tensor:
        images = self.preprocess(images)
        if isinstance(self.frontend, SpikingFrontEnd):
            # Rounded to bfloat16, drives would cross the edges of the steps.
            with torch.autocast(images.device.type, enabled=False):
                features = self.frontend(images)
        else:
            features = self.frontend(self.frontend_input(images))
        return self.main(self.join(features, self.auxiliary_features(images), paths))


def embed(network: Network, images: Tensor) -> tuple[Tensor, Tensor]:
    """The embedding (B, D), which the last linear layer is given, and the logits (B, classes)."""
    inputs: list[Tensor] = []
    with last_linear(network.main).register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0])):
        logits = network(images)
    return inputs[0], logits
