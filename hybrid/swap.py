"""Make the paper's lambda: a trained mu whose first activations become step functions, without retraining.

Two forms. ``literal``: the SAUs of a converted front end as they are, with edges in units of a spiking layer's drive,
which batch-normalised activations do not fit. ``range``: last edge and top height are moved to each activation's 99.9th
percentile on training images, the other edges and heights with them.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from bridge.frontend import SpikingFrontEnd
from bridge.storage import SHIPPED_FRONTENDS, load_frontend
from hybrid.network import build_model
from hybrid.storage import TrainedModel, load_model, save_model
from snn.data import balanced_subset, load_images
from snn.runtime.cli import RunOptions, command_line, run_command
from snn.runtime.errors import check
from snn.runtime.outputs import check_outputs, write_json
from snn.runtime.pretrained import resolve

Scale = Literal["range", "literal"]
QUANTILE = 0.999
SAMPLE = 1_000_000
"""Activations from which a percentile is taken, at most."""


@dataclass(frozen=True)
class SwapConfig:
    """Replace the first activations of a trained mu by the step functions of a front end; write a lambda."""

    model: tyro.conf.Positional[Path]
    """File written by hybrid.train --variant mu."""
    frontend: Path
    """File written by bridge.convert, or pretrained:cifar10-fd: whose step functions."""
    out: Path
    """File to write, for example lambda.h5."""
    scale: Scale = "range"
    """range: edges and heights fitted to each activation's 99.9th percentile; literal: as they are."""
    images: int = 1000
    """Training images on which activations are measured (range)."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the training run."""
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check(self.images >= 1, f"`images` {self.images}: give 1 or more")


@torch.no_grad()
def swap(model: TrainedModel, frontend: SpikingFrontEnd, images: Tensor, scale: Scale) -> TrainedModel:
    """The lambda of a trained mu.

    Args:
        model: a mu.
        frontend: whose step functions; of the same maps in each layer.
        images: uint8 (N, C, H, W), to measure activations on (range).
        scale: see the module.

    Raises:
        UserError: another variant, or a front end of another shape.
    """
    spec = model.spec
    check(spec.architecture.variant == "mu", f"a {spec.architecture.variant} network is no mu; train one: `variant` mu")
    check(
        spec.frontend.channels == frontend.spec.channels,
        f"`frontend` has layers of {frontend.spec.channels} channels, the model of {spec.frontend.channels}; give the "
        "front end whose shape the model was trained with",
    )
    architecture = replace(spec.architecture, variant="lambda")
    layers = zip(spec.frontend.layers, frontend.spec.layers, strict=True)
    stepped = tuple(replace(own, steps=other.steps, per_channel=other.per_channel) for own, other in layers)
    shape = replace(spec.frontend, layers=stepped)
    network = build_model(replace(spec, architecture=architecture, frontend=shape)).eval()
    network.load_state_dict(model.network.state_dict(), strict=False)
    x = network.normalise(network.preprocess(images.float() / 255))
    last = frontend.layers[-1]
    for layer, converted in zip(network.frontend.layers, frontend.layers, strict=True):
        edges, heights = converted.activation.edges.clone(), converted.activation.heights.clone()
        drive = layer.norm(layer.conv(x))
        if scale == "range":
            top = percentile(drive.relu()).clamp(min=1e-6)
            edges = edges * (top / edges[edges.isfinite()].amax())
            heights = heights * (top / heights.amax())
        elif converted is last:
            # A front end passes on shares of its top height.
            heights = heights / heights.amax()
        state = layer.activation.state_dict() | {"edges": edges, "heights": heights}
        layer.activation.load_state_dict(state)
        x = layer.activation(drive)
    return replace(model, spec=replace(spec, architecture=architecture, frontend=shape), network=network, digest="")


def percentile(values: Tensor) -> Tensor:
    """The 99.9th, of at most :data:`SAMPLE` values at equal distances."""
    flat = values.flatten()
    return flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE].quantile(QUANTILE)


def run(config: SwapConfig) -> None:
    """The command: load, swap, write, report."""
    file = resolve(config.frontend, SHIPPED_FRONTENDS)
    check_outputs(config.out, config.options.json, inputs=[config.model, file])
    model = load_model(config.model)
    frontend, _, _ = load_frontend(file)
    # Of the images that the mu was trained on.
    data = load_images(model.source.override(root=config.root), "train", model.seed)
    chosen = balanced_subset(data.labels.numpy(), config.images, config.options.seed)
    made = swap(model, frontend, data.images[chosen], config.scale)
    recipe = model.recipe | {"swapped": config.scale}
    digest = save_model(config.out, replace(made, recipe=recipe), command_line("hybrid.swap", config), model.digest)
    write_json(config.options.json, {"scale": config.scale, "digest": digest, "source_digest": model.digest})
    print(f"replaced {len(frontend.layers)} activations by step functions ({config.scale})\nwrote {config.out}")


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.swap``."""
    return run_command(SwapConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
