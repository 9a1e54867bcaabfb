"""Baseline and SAFE networks from one description, and ``hybrid.h5``.

A model takes raw images in [0, 1] and normalises inside, so that a saved model needs no recipe beside it.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from bridge.frontend import FrontEndSpec, SpikingFrontEnd, spec_from_tree
from hybrid.backbones import check_backbone, full_backbone, main_cnn
from snn.data import DataSource
from snn.errors import check
from snn.h5file import Tree, from_tree, input_tree, read_file, read_input, write_file

SCHEMA = "hybrid/2"
REMEDY = "python -m hybrid.train --out FILE"

Variant = Literal["safe", "baseline"]
Paths = Literal["both", "spiking", "auxiliary"]


@dataclass(frozen=True)
class Architecture:
    """Which network."""

    backbone: str = "mobilenet_v2"
    """Main CNN from torchvision: mobilenet_v2 (paper)."""
    variant: str = "safe"
    """safe: spiking front end and auxiliary CNN before the main CNN; baseline: the backbone as it is."""
    width: float = 1.0
    """Multiplier of the backbone's channels."""
    auxiliary_maps: int = 8
    """Feature maps of the auxiliary CNN (safe; ours, the paper says smaller than the spiking module)."""

    def __post_init__(self) -> None:
        check_backbone(self.backbone, self.width)
        check(
            self.variant in get_args(Variant),
            f"--variant {self.variant}: unknown; choose from {', '.join(get_args(Variant))}",
        )
        check(self.auxiliary_maps >= 1, f"--auxiliary-maps {self.auxiliary_maps}: must be 1 or more")


@dataclass(frozen=True)
class ModelSpec:
    """Everything that determines a network's shape."""

    architecture: Architecture
    input_shape: tuple[int, int, int]
    """(C, H, W)."""
    classes: tuple[str, ...]
    frontend: FrontEndSpec | None
    """Of the spiking front end (safe)."""

    def __post_init__(self) -> None:
        if self.architecture.variant == "baseline":
            check(self.frontend is None, "--variant baseline has no place for --frontend; leave one of them out")
            return
        check(
            self.frontend is not None,
            "--variant safe needs --frontend FILE, made by python -m bridge.convert; the conventional network is "
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
        values = images.float() / 255
        std, mean = torch.std_mean(values, dim=(0, 2, 3))
        self.mean.copy_(mean.reshape(-1, 1, 1))
        self.std.copy_(std.clamp(min=1e-3).reshape(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std


class BaselineNetwork(nn.Module):
    """The backbone as it is, behind normalisation. Images (B, C, H, W) in [0, 1] to logits (B, classes)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        channels, height, _ = spec.input_shape
        self.normalise = Normalise(channels)
        a = spec.architecture
        self.main = full_backbone(a.backbone, channels, len(spec.classes), height, a.width)

    def forward(self, images: Tensor) -> Tensor:
        return self.main(self.normalise(images))


class SafeNetwork(nn.Module):
    """Spiking front end beside an auxiliary CNN, concatenated in depth, in front of the main CNN (paper, Fig. 2).

    The front end reads raw images, the auxiliary CNN normalised ones. ``forward`` takes ``paths`` to silence one of the
    two: its features are replaced by zeros.
    """

    def __init__(self, spec: ModelSpec, frontend: SpikingFrontEnd | None = None) -> None:
        super().__init__()
        channels, height, _ = spec.input_shape
        self.normalise = Normalise(channels)
        self.frontend = frontend if frontend is not None else SpikingFrontEnd.empty(spec.frontend)
        a = spec.architecture
        self.auxiliary = auxiliary_cnn(channels, a.auxiliary_maps, spec.frontend.stride)
        features = spec.frontend.maps[-1] + a.auxiliary_maps
        self.main = main_cnn(a.backbone, features, len(spec.classes), height, a.width)

    def forward(self, images: Tensor, paths: Paths = "both") -> Tensor:
        spiking = self.frontend(images)
        auxiliary = self.auxiliary(self.normalise(images))
        if paths == "spiking":
            auxiliary = torch.zeros_like(auxiliary)
        elif paths == "auxiliary":
            spiking = torch.zeros_like(spiking)
        return self.main(torch.cat((spiking, auxiliary), dim=1))


def auxiliary_cnn(channels: int, maps: int, stride: int) -> nn.Sequential:
    """Two small convolutions whose output has the height and width of the front end's (ours; paper: "several")."""

    def block(c_in: int, step: int) -> list[nn.Module]:
        conv = nn.Conv2d(c_in, maps, 3, step, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out")
        return [conv, nn.BatchNorm2d(maps), nn.ReLU6()]

    return nn.Sequential(*block(channels, stride), *block(maps, 1))


def build_model(spec: ModelSpec, frontend: SpikingFrontEnd | None = None) -> nn.Module:
    """The network of ``spec``; ``frontend`` gives the converted layers' values (safe), else they are to be loaded.

    Weights are drawn from torch's global generator.
    """
    return SafeNetwork(spec, frontend) if spec.architecture.variant == "safe" else BaselineNetwork(spec)


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
    )
