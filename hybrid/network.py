"""All networks of the paper from one description, and ``hybrid.h5``.

A model takes raw images in [0, 1] and normalises inside, so that a saved model needs no recipe beside it.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn

from bridge.frontend import FrontEndSpec, SpikingFrontEnd, empty_activation
from bridge.sau import SpecialActivationUnit
from hybrid.architecture import Architecture, ModelSpec, Paths
from hybrid.backbones.torchvision import full_backbone, last_linear, main_cnn
from hybrid.preprocess import parse_preprocess

AUXILIARY_STEPS = 8
"""Of the auxiliary CNN's step function, from 0 to 6 (ours)."""


class Normalise(nn.Module):
    """(x - mean) / std per channel, with the training images' statistics."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def measure(self, images: Tensor) -> None:
        """Take the statistics of uint8 images (N, C, H, W)."""
        # Counts of the 256 intensities: exact, and no copy of all images in a wider type.
        levels = torch.arange(256, dtype=torch.float64) / 255
        for channel in range(images.shape[1]):
            counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
            mean = (counts * levels).sum() / counts.sum()
            variance = (counts * (levels - mean) ** 2).sum() / counts.sum()
            self.mean[channel], self.std[channel] = mean, variance.sqrt().clamp(min=1e-3)

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class BaselineNetwork(nn.Module):
    """The backbone as it is, behind normalisation. Images (B, C, H, W) in [0, 1] to logits (B, classes)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        channels, height, _ = spec.input_shape
        a = spec.architecture
        self.preprocess = parse_preprocess(a.preprocess)
        self.normalise = Normalise(channels)
        self.main = full_backbone(a.backbone, channels, len(spec.classes), height, a.width, a.embedding)

    def forward(self, images: Tensor) -> Tensor:
        return self.main(self.normalise(self.preprocess(images)))


class TrainableFrontEnd(nn.Module):
    """Trainable layers in the shape of the spiking ones (the paper's mu), or these with step functions (its lambda).

    Normalised images (B, C, H, W) to features (B, maps[-1], H', W').
    """

    def __init__(self, spec: FrontEndSpec, stepped: bool) -> None:
        super().__init__()
        layers, c_in = [], spec.input_shape[0]
        for layer in spec.layers:
            conv = nn.Conv2d(c_in, layer.channels, layer.kernel_size, layer.stride, layer.padding, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            activation = empty_activation(layer.edges_shape) if stepped else nn.ReLU()
            norm = nn.BatchNorm2d(layer.channels)
            layers.append(nn.Sequential(OrderedDict(conv=conv, norm=norm, activation=activation)))
            c_in = layer.channels
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class HybridNetwork(nn.Module):
    """Front end beside an auxiliary CNN, concatenated in depth, in front of the main CNN (paper, Fig. 2).

    A spiking front end reads raw images; a trainable one, and the auxiliary CNN, normalised ones. ``forward`` takes
    ``paths`` to silence one of the two: its features are replaced by zeros.
    """

    def __init__(self, spec: ModelSpec, frontend: SpikingFrontEnd | None = None) -> None:
        super().__init__()
        channels, height, _ = spec.input_shape
        a = spec.architecture
        self.preprocess = parse_preprocess(a.preprocess)
        self.normalise = Normalise(channels)
        if a.variant == "safe":
            self.frontend = frontend if frontend is not None else SpikingFrontEnd.empty(spec.frontend)
        else:
            self.frontend = TrainableFrontEnd(spec.frontend, stepped=a.variant == "lambda")
        if isinstance(self.frontend, SpikingFrontEnd):
            self.frontend.variability = a.variability
        stride = spec.frontend.stride
        self.feature_norm = nn.BatchNorm2d(spec.frontend.channels[-1]) if a.feature_norm else nn.Identity()
        self.auxiliary_input, self.auxiliary_drop = parse_preprocess(a.auxiliary_input), a.auxiliary_drop
        self.auxiliary = auxiliary_cnn(channels, a, stride) if a.auxiliary_maps else None
        features = spec.frontend.channels[-1] + a.auxiliary_maps
        self.main = main_cnn(a.backbone, features, len(spec.classes), height, a.width, a.embedding, stride)

    def forward(self, images: Tensor, paths: Paths = "both") -> Tensor:
        images = self.preprocess(images)
        normalised = self.normalise(images)
        if isinstance(self.frontend, SpikingFrontEnd):
            # Rounded to bfloat16, drives would cross the edges of the steps.
            with torch.autocast(images.device.type, enabled=False):
                features = self.frontend(images)
        else:
            features = self.frontend(normalised)
        features = self.feature_norm(features)
        if self.auxiliary is None:
            return self.main(features)
        auxiliary = self.auxiliary(self.normalise(self.auxiliary_input(images)))
        if paths == "spiking":
            auxiliary = torch.zeros_like(auxiliary)
        elif paths == "auxiliary":
            features = torch.zeros_like(features)
        elif self.training and self.auxiliary_drop:
            # Whole images, and no scaling of the others: in evaluation features are as large as here.
            kept = torch.rand(len(images), 1, 1, 1, device=images.device) >= self.auxiliary_drop
            auxiliary = auxiliary * kept
        return self.main(torch.cat((features, auxiliary), dim=1))

    @property
    def has_two_paths(self) -> bool:
        """Whether ``paths`` has a choice."""
        return self.auxiliary is not None


def auxiliary_cnn(channels: int, a: Architecture, stride: int) -> nn.Sequential:
    """Two small convolutions whose output has the height and width of the front end's (ours; paper: "several")."""
    maps, size = a.auxiliary_maps, a.auxiliary_kernel

    def block(c_in: int, step: int) -> list[nn.Module]:
        conv = nn.Conv2d(c_in, maps, size, step, padding=size // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out")
        return [conv, nn.BatchNorm2d(maps), nn.ReLU6() if a.auxiliary_activation == "relu6" else even_steps()]

    # The stride is divided between the two where it can be: the first then works on four times fewer places.
    first = 2 if stride % 2 == 0 else stride
    return nn.Sequential(*block(channels, first), *block(maps, stride // first))


def even_steps() -> SpecialActivationUnit:
    """:data:`AUXILIARY_STEPS` steps along ReLU6, which it never leaves by more than half a step."""
    height = 6 / AUXILIARY_STEPS
    heights = height * torch.arange(AUXILIARY_STEPS + 1)
    return SpecialActivationUnit(heights[1:] - height / 2, heights)


def embed(network: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The embedding (B, D), which the last linear layer is given, and the logits (B, classes)."""
    found = []
    with last_linear(network.main).register_forward_pre_hook(lambda _, inputs: found.append(inputs[0])):
        logits = network(images)
    return found[0], logits


def build_model(spec: ModelSpec, frontend: SpikingFrontEnd | None = None) -> nn.Module:
    """The network of ``spec``; ``frontend`` gives the converted layers' values (safe), else they are to be loaded.

    Weights are drawn from torch's global generator.
    """
    return BaselineNetwork(spec) if spec.architecture.variant == "baseline" else HybridNetwork(spec, frontend)
