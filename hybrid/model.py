"""All networks of the paper from one description, and ``hybrid.h5``.

A model takes raw images in [0, 1] and normalises inside, so that a saved model needs no recipe beside it.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bridge.activation import SpecialActivationUnit
from bridge.frontend import FrontEndSpec, SpikingFrontEnd, empty_activation, spec_from_tree
from hybrid.backbones import check_backbone, full_backbone, last_linear, main_cnn
from hybrid.preprocess import parse_preprocess
from snn.data import DataSource
from snn.errors import check
from snn.h5file import Tree, from_tree, input_tree, read_file, read_input, write_file

SCHEMA = "hybrid/4"
REMEDY = "python -m hybrid.train --out FILE"

Variant = Literal["safe", "baseline", "mu", "lambda"]
Paths = Literal["both", "spiking", "auxiliary"]
AuxiliaryActivation = Literal["relu6", "steps"]
AUXILIARY_STEPS = 8
"""Of the auxiliary CNN's step function, from 0 to 6 (ours)."""


@dataclass(frozen=True)
class Architecture:
    """Which network."""

    backbone: str = "mobilenet_v2"
    """Main CNN from torchvision: mobilenet_v2, resnet101, densenet121 (paper), resnet18, or mobilenet_v2_shallow, which
    has one block in each stage."""
    variant: str = "safe"
    """safe: spiking front end and auxiliary CNN before the main CNN; baseline: the backbone as it is; mu: safe with
    trainable layers in the shape of the front end; lambda (made by hybrid.swap): mu with step functions."""
    width: float = 1.0
    """Multiplier of the backbone's channels."""
    auxiliary_maps: int = 8
    """Feature maps of the auxiliary CNN (all but baseline; ours, the paper says smaller than the spiking module); 0:
    none."""
    auxiliary_kernel: int = 3
    """Side of its two layers' kernels, in pixels, odd."""
    auxiliary_activation: AuxiliaryActivation = "relu6"
    """relu6, or steps: 8 equal steps from 0 to 6, as small deviations vanish in."""
    auxiliary_input: str = "none"
    """What becomes of its images first, as --preprocess, which both paths see."""
    auxiliary_drop: float = 0.0
    """Share of training images whose auxiliary features are 0, so that the main CNN learns to do without them."""
    variability: bool = False
    """While training, add to each layer's spike counts deviations drawn from the simulated neurons' (safe)."""
    feature_norm: bool = False
    """Normalise the front end's features over batches where they join the auxiliary CNN's, as those are (all but
    baseline; the paper normalises before activations alone)."""
    embedding: int | None = None
    """Units between two fully connected layers at the end; 0: torchvision's head with one layer; None: 128 for images
    below 96 pixels, else 0."""
    preprocess: str = "none"
    """What becomes of images first, in training and ever after: average:N (mean of N x N pixels), quantise (to the
    levels that the encoder tells apart) or quantise:F_MIN,F_MAX,T (Hz, ms), spikes or spikes:F_MIN,F_MAX,T (the same
    at random phase, while training alone); several joined by +."""

    def __post_init__(self) -> None:
        check_backbone(self.backbone, self.width)
        check(
            self.variant in get_args(Variant),
            f"--variant {self.variant}: unknown; choose from {', '.join(get_args(Variant))}",
        )
        check(self.auxiliary_maps >= 0, f"--auxiliary-maps {self.auxiliary_maps}: must be 0 or more")
        check(
            self.auxiliary_kernel >= 1 and self.auxiliary_kernel % 2 == 1,
            f"--auxiliary-kernel {self.auxiliary_kernel}: expected an odd number",
        )
        check(
            self.auxiliary_activation in get_args(AuxiliaryActivation),
            f"--auxiliary-activation {self.auxiliary_activation}: unknown; choose relu6 or steps",
        )
        check(0 <= self.auxiliary_drop < 1, f"--auxiliary-drop {self.auxiliary_drop}: expected 0 to below 1")
        check(
            self.variant == "safe" or not self.variability,
            f"--variability is of spiking neurons: it goes with --variant safe, not {self.variant}",
        )
        check(
            self.variant != "baseline" or not self.feature_norm,
            "--feature-norm is of a front end's features, which --variant baseline does not have",
        )
        check(self.embedding is None or self.embedding >= 0, f"--embedding {self.embedding}: must be 0 or more")
        parse_preprocess(self.preprocess)
        parse_preprocess(self.auxiliary_input, "--auxiliary-input")


@dataclass(frozen=True)
class ModelSpec:
    """Everything that determines a network's shape."""

    architecture: Architecture
    input_shape: tuple[int, int, int]
    """(C, H, W)."""
    classes: tuple[str, ...]
    frontend: FrontEndSpec | None
    """Of the spiking front end (safe), or of the one whose shape or steps are taken (mu, lambda)."""

    def __post_init__(self) -> None:
        variant = self.architecture.variant
        if variant == "baseline":
            check(self.frontend is None, "--variant baseline has no place for --frontend; leave one of them out")
            return
        check(
            self.frontend is not None,
            f"--variant {variant} needs --frontend FILE, made by python -m bridge.convert; the conventional network is "
            "--variant baseline",
        )
        check(
            self.input_shape == self.frontend.input_shape,
            f"--frontend is for images of shape {self.frontend.input_shape}, these have {self.input_shape} (channels, "
            "height, width); convert one learned on this data, or set --image-size",
        )


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
        for number, maps in enumerate(spec.maps):
            size, stride, padding = spec.kernel_sizes[number], spec.strides[number], spec.paddings[number]
            conv = nn.Conv2d(c_in, maps, size, stride, padding, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            activation = empty_activation(spec.edges_shape(number)) if stepped else nn.ReLU()
            layers.append(nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(maps), activation=activation)))
            c_in = maps
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
        self.feature_norm = nn.BatchNorm2d(spec.frontend.maps[-1]) if a.feature_norm else nn.Identity()
        self.auxiliary_input, self.auxiliary_drop = parse_preprocess(a.auxiliary_input), a.auxiliary_drop
        self.auxiliary = auxiliary_cnn(channels, a, stride) if a.auxiliary_maps else None
        features = spec.frontend.maps[-1] + a.auxiliary_maps
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


@dataclass(frozen=True)
class TrainedModel:
    """Content of ``hybrid.h5``."""

    spec: ModelSpec
    network: nn.Module
    """In evaluation mode, on the CPU."""
    source: DataSource
    """Data it was trained on."""
    seed: int
    history: dict[str, np.ndarray]
    """Per epoch: train_loss, train_accuracy, val_loss, val_accuracy, learning_rate."""
    recipe: dict
    """Training settings."""
    digest: str = ""
    source_digest: str = ""
    """Of the file of its front end ("": none)."""


def history_rows(history: Mapping[str, Iterable[float]]) -> list[dict]:
    """A row per epoch, counted from 1, of the columns of a training's history."""
    rows = zip(*history.values(), strict=True)
    return [{"epoch": number, **dict(zip(history, row, strict=True))} for number, row in enumerate(rows, 1)]


def save_model(path: Path, model: TrainedModel, command: str, source_digest: str) -> str:
    """Write ``hybrid.h5``; return its digest. ``source_digest``: of the front end's file, "" for a baseline."""
    spec = asdict(model.spec)
    shape = spec.pop("input_shape")
    if spec["frontend"] is not None:
        del spec["frontend"]["input_shape"]
    tree = {
        "state": {key: value.cpu().numpy() for key, value in model.network.state_dict().items()},
        "config": spec,
        "recipe": model.recipe,
        "history": model.history,
        "input": input_tree(model.source, shape),
    }
    return write_file(path, SCHEMA, tree, seed=model.seed, command=command, source_digest=source_digest)


def load_model(path: Path) -> TrainedModel:
    """Read ``hybrid.h5``. Raises :class:`snn.errors.UserError` for missing, truncated, foreign or altered files."""
    return read_file(path, SCHEMA, REMEDY, _model_from_tree)


def _model_from_tree(tree: Tree) -> TrainedModel:
    source, shape = read_input(tree["input"])
    config = tree["config"]
    frontend = spec_from_tree(config["frontend"], shape) if "frontend" in config else None
    architecture = from_tree(Architecture, config["architecture"])
    spec = from_tree(ModelSpec, config, architecture=architecture, input_shape=shape, frontend=frontend)
    network = build_model(spec)
    network.load_state_dict({key: torch.from_numpy(value) for key, value in tree["state"].items()})
    return TrainedModel(
        spec=spec,
        network=network.eval(),
        source=source,
        seed=tree["seed"],
        history=tree["history"],
        recipe=tree["recipe"],
        digest=tree["digest"],
        source_digest=tree["source_digest"],
    )
