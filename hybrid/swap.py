"""Exchange a part of a trained network, without retraining.

``--frontend`` makes the paper's network lambda: a trained mu whose first activations become the step functions of a
converted front end, in one of two forms:

- ``literal``: unchanged. Their edges are in units of a spiking layer's drive, which do not fit the range of
  batch-normalised activations.
- ``range``: edges and heights are scaled so that the last edge and the top height lie at the 99.9th percentile of each
  activation, measured on training images.

``--auxiliary-input`` gives the auxiliary CNN another input than the one it was trained with. Means of 3 x 3 pixels, and
such means without the lowest and the highest value, differ little on the clean images of a training; but one impulse
hardly moves the latter.
"""

import copy
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from bridge.frontend import SpikingFrontEnd
from bridge.storage import SHIPPED_FRONTENDS, load_frontend
from hybrid.architecture import build_model
from hybrid.network import HybridNetwork, TrainableFrontEnd
from hybrid.preprocess import Preprocess, preprocess_flag
from hybrid.storage import TRAINED_AUXILIARY_INPUT, TrainedModel, load_model, model_file, save_model
from snn.data import balanced_subset, image_folders, load_images
from snn.data_source import IMAGES, check_recorded, note_root
from snn.image_cache import Caching
from snn.runtime.cli import RunOptions, check_left_out, command_line, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs
from snn.runtime.pretrained import resolve
from snn.runtime.ranges import check_fields

Scale = Literal["range", "literal"]
QUANTILE = 0.999
SAMPLE = 1_000_000
"""Largest number of activations from which a percentile is computed."""


@dataclass(frozen=True)
class SwapConfig:
    """Exchange one part of a trained network, without retraining. --frontend: the first activations of a mu become step
    functions (lambda). --auxiliary-input: the auxiliary CNN sees images after another preprocessing."""

    model: tyro.conf.Positional[Path]
    """File written by hybrid.train, or pretrained:NAME."""
    out: Path
    """File to write, for example lambda.h5."""
    frontend: Path | None = None
    """Of a mu: file with the step functions, written by bridge.convert, or pretrained:cifar10-fd."""
    auxiliary_input: Annotated[Preprocess | None, preprocess_flag("auxiliary_input")] = None
    """Of a network with an auxiliary CNN: what is done to the images that it sees, in place of what was done in
    training (see hybrid.train)."""
    scale: Scale = "range"
    """range: scale edges and heights to each activation's 99.9th percentile; literal: leave them unchanged."""
    images: Annotated[int, IMAGES] = 1000
    """Training images on which activations are measured, for --scale range."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the training run."""
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_fields(self)


@torch.no_grad()
def swap(model: TrainedModel, frontend: SpikingFrontEnd, images: Tensor, scale: Scale) -> TrainedModel:
    """The network lambda of a trained mu, which is left unchanged.

    The front end has the step functions, and as many channels in each layer as the model. With ``range`` activations
    are measured on images, uint8 (N, C, H, W). Raises :class:`UserError` for a model of another variant, or a front end
    of another shape.
    """
    spec = model.spec
    check(
        spec.architecture.variant == "mu" and spec.frontend is not None,
        f"the model has variant {spec.architecture.variant}, expected mu; train one with `variant` mu",
    )
    assert spec.frontend is not None
    check(
        spec.frontend.channels == frontend.spec.channels,
        f"`frontend` has layers of {frontend.spec.channels} channels, the model of {spec.frontend.channels}; give the "
        "front end whose shape the model was trained with",
    )
    layers = zip(spec.frontend.layers, frontend.spec.layers, strict=True)
    stepped = tuple(replace(own, steps=other.steps, per_channel=other.per_channel) for own, other in layers)
    shape, architecture = replace(spec.frontend, layers=stepped), replace(spec.architecture, variant="lambda")
    spec = replace(spec, architecture=architecture, frontend=shape)
    network = build_model(spec).eval()
    assert isinstance(network, HybridNetwork)
    assert isinstance(network.frontend, TrainableFrontEnd)
    network.load_state_dict(model.network.state_dict(), strict=False)
    x = network.frontend.encode(network.frontend_input(network.preprocess(images.float() / 255)))
    last = frontend.layers[-1]
    for layer, converted in zip(network.frontend.layers, frontend.layers, strict=True):
        edges, heights = converted.activation.edges.clone(), converted.activation.heights.clone()
        convolution, norm, activation = layer.children()
        drive = norm(convolution(x))
        if scale == "range":
            top = percentile(drive.relu()).clamp(min=1e-6)
            edges = edges * (top / edges[edges.isfinite()].amax())
            heights = heights * (top / heights.amax())
        elif converted is last:
            # The output of a front end is a share of its top height.
            heights = heights / heights.amax()
        activation.load_state_dict(activation.state_dict() | {"edges": edges, "heights": heights})
        x = activation(drive)
    return replace(model, spec=spec, network=network, recipe=model.recipe | {"swapped": scale}, digest="")


def with_auxiliary_input(model: TrainedModel, auxiliary_input: Preprocess) -> TrainedModel:
    """A trained network whose auxiliary CNN sees images after another preprocessing; the model is left unchanged.

    Raises :class:`UserError` for a model without auxiliary CNN.
    """
    architecture = model.spec.architecture
    check(
        isinstance(model.network, HybridNetwork) and model.network.has_two_paths,
        f"`auxiliary_input` {auxiliary_input}: the model (variant {architecture.variant}) has no auxiliary CNN; train "
        "one with `variant` safe or mu and `auxiliary_maps` above 0",
    )
    variations = replace(architecture.variations, auxiliary_input=auxiliary_input)
    spec = replace(model.spec, architecture=replace(architecture, variations=variations))
    network = copy.deepcopy(model.network)
    assert isinstance(network, HybridNetwork)
    network.auxiliary_input, network.spec = auxiliary_input.build().eval(), spec
    trained = model.recipe.get(TRAINED_AUXILIARY_INPUT, str(architecture.variations.auxiliary_input))
    recipe = model.recipe | {TRAINED_AUXILIARY_INPUT: trained}
    return replace(model, spec=spec, network=network, recipe=recipe, digest="")


def percentile(values: Tensor) -> Tensor:
    """The 99.9th percentile of at most :data:`SAMPLE` values, taken at equal distances."""
    flat = values.flatten()
    return flat[:: max(1, len(flat) // SAMPLE)][:SAMPLE].quantile(QUANTILE)


def check_exchange(config: SwapConfig) -> None:
    """Raise :class:`UserError` unless one thing is exchanged, and no option would be ignored."""
    frontend, auxiliary_input = config.frontend, config.auxiliary_input
    check(
        frontend is not None or auxiliary_input is not None,
        "there is nothing to exchange: give `frontend` FILE or `auxiliary_input`",
    )
    check(
        frontend is None or auxiliary_input is None,
        f"`frontend` {frontend} and `auxiliary_input` {auxiliary_input}: one exchange at a time; leave one of them out",
    )
    if auxiliary_input is not None:
        reason = "`auxiliary_input` needs no images"
        check_left_out(config, ("scale", "images", "root", "caching"), reason)
        check_left_out(config.options, ("seed",), reason)
    if config.scale == "literal":
        check_left_out(config, ("images",), "`scale` literal measures no activations")


def run(config: SwapConfig) -> None:
    """The command: load, exchange, write, report."""
    check_exchange(config)
    # Computed on the CPU; a device that is not there is refused as by the other commands.
    choose_device(config.options.device)
    model = load_model(config.model)
    exchange = _with_steps if config.frontend is not None else _with_auxiliary_input
    swapped, outputs, done, told = exchange(config, model)
    digest = save_model(config.out, swapped, command_line("hybrid.swap", config), model.digest)
    print(done)
    outputs.finish({**told, "digest": digest, "parent_digest": model.digest})


def _with_steps(config: SwapConfig, model: TrainedModel) -> tuple[TrainedModel, Outputs, str, dict[str, str]]:
    """The lambda, where to write it, and what to say of it in words and as JSON."""
    assert config.frontend is not None
    file = resolve(config.frontend, SHIPPED_FRONTENDS)
    # Images that the model was trained on.
    data_source = model.data_source.override(root=config.root)
    note_root(data_source, config.root)
    inputs = [model_file(config.model), file, *image_folders(data_source)]
    outputs = Outputs(config.out, options=config.options, inputs=inputs)
    check_recorded(model.data_source, None, config.model, "swap where they are")
    frontend, _, _ = load_frontend(file)
    data = load_images(data_source, "train", model.seed, cache=config.caching.cache)
    chosen = balanced_subset(data.labels.numpy(), config.images, config.options.seed)
    swapped = swap(model, frontend, data.images[chosen], config.scale)
    done = f"replaced {len(frontend.layers)} activations by step functions ({config.scale})"
    return swapped, outputs, done, {"scale": config.scale}


def _with_auxiliary_input(config: SwapConfig, model: TrainedModel) -> tuple[TrainedModel, Outputs, str, dict[str, str]]:
    """The same of the network with another auxiliary input."""
    assert config.auxiliary_input is not None
    outputs = Outputs(config.out, options=config.options, inputs=[model_file(config.model)])
    swapped = with_auxiliary_input(model, config.auxiliary_input)
    trained = swapped.recipe[TRAINED_AUXILIARY_INPUT]
    done = f"the auxiliary CNN sees {config.auxiliary_input}; it was trained on {trained}"
    return swapped, outputs, done, {"auxiliary_input": str(config.auxiliary_input), TRAINED_AUXILIARY_INPUT: trained}


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.swap``."""
    return run_command(SwapConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
