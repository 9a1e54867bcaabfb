"""``hybrid.h5``: writing and reading of trained networks."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from bridge.frontend import DRAWS, SpikingFrontEnd
from bridge.storage import spec_from_tree, spec_tree, state_from_tree
from hybrid.architecture import LATER, Architecture, ModelSpec, build_model
from hybrid.conditions import Noise
from hybrid.network import Network
from hybrid.preprocess import Preprocess
from hybrid.recipe import Recipe
from hybrid.variations import Variations
from snn.data_source import LOCATION, DataSource, input_tree, read_input
from snn.runtime.errors import UserError, check
from snn.runtime.h5 import PARENT, Schema, check_size, read_file, write_file
from snn.runtime.pretrained import resolve
from snn.runtime.ranges import SEED, THREADS
from snn.runtime.tree import Stored, Tree, from_tree, tree_without

OLDER = ("hybrid/5", "hybrid/4")
SCHEMA = Schema("hybrid/6", "python -m hybrid.train --out FILE", (*LOCATION, "threads"), older=OLDER)

SHIPPED_NETWORKS = Path(__file__).parent / "shipped"
"""Trained networks that ship with the package (:func:`snn.runtime.pretrained.resolve`)."""
RETINA_FILTERS = "frontend.retina.filters"
"""Name of the retina's filters in the state of a network that has one."""
Bits = Literal[32, 16, 8]
"""Of a trainable weight in a file (:func:`save`)."""
LARGEST = {16: torch.finfo(torch.float16).max, 8: torch.finfo(torch.float32).max}
"""Largest weight that so many bits can hold."""
STORED = ("join.norm.", "feature_norm.")
"""Start of a parameter's name in the network, and in the file."""
WATCHED = "val_accuracy_"
"""Start of the names of columns of a training's history that hold accuracies under watched noise."""


TRAINED_AUXILIARY_INPUT = "trained_auxiliary_input"
"""Entry of a recipe: what the auxiliary CNN saw in training, if it sees something else now (hybrid.swap)."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained network with its description: the content of ``hybrid.h5``."""

    spec: ModelSpec
    network: Network
    """In evaluation mode, on the CPU."""
    data_source: DataSource
    """Data that it was trained on."""
    seed: int
    history: dict[str, np.ndarray]
    """Per epoch: train_loss, train_accuracy, val_loss, val_accuracy, learning_rate, and val_accuracy_NOISE of each
    noise that was watched."""
    recipe: dict[str, Any]
    """Settings of the training, by field of :class:`hybrid.recipe.Recipe`."""
    digest: str = ""
    """Digest of the file that the model was read from ("": none)."""
    parent_digest: str = ""
    """Digest of the file that it was made from, the front end's or a trained network's ("": none)."""
    threads: int = 0
    """CPU threads of the training, on whose number its last bits depend; 0: not known."""
    cycles: tuple[int, ...] = ()
    """Epochs of each cycle of the learning rate, of a training that was continued; (): there was one cycle."""
    weights: str = ""
    """What the training started from ("imagenet", or the name of a file); "": random weights."""
    weights_digest: str = ""
    """Digest of these weights (:attr:`hybrid.pretrained.Weights.digest`)."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, classes) for images (B, C, H, W) in [0, 1]; ``network`` gives the same with gradients."""
        return self.network(images)


def watched_column(noise: Noise) -> str:
    """Name, in a training's history, of the accuracy on held-out images under ``noise``."""
    return f"{WATCHED}{noise}"


def history_rows(history: Mapping[str, Iterable[float]]) -> list[dict]:
    """The columns of a training's history as one row for each epoch, counted from 1."""
    rows = zip(*history.values(), strict=True)
    return [{"epoch": number, **dict(zip(history, row, strict=True))} for number, row in enumerate(rows, 1)]


def check_like_training(images: Tensor, model: TrainedModel, source: DataSource) -> None:
    """Raise :class:`UserError` for images (N, C, H, W) of ``source`` that have another shape than the network takes."""
    check(
        images.shape[1:] == model.spec.input_shape,
        f"`data` {source.data}: its images have shape {tuple(images.shape[1:])}, the network is for "
        f"{model.spec.input_shape}; give images like those of its training",
    )


def check_file(spec: ModelSpec) -> None:
    """Raise :class:`UserError` if the file of such a network would be too large."""
    with torch.device("meta"):
        size = sum(values.nbytes for values in build_model(spec).state_dict().values())
    check_size(size, f"the file of {spec.architecture.backbone}", "choose a smaller network, or lower `width`")


def save_model(path: str | Path, model: TrainedModel, command: str, parent_digest: str, *, bits: Bits = 32) -> str:
    """Write ``hybrid.h5``; return its digest.

    ``command`` made the model, ``parent_digest`` is that of the file that it was made from ("": none). ``bits`` below
    32 rounds weights (:func:`save`).
    """
    spec, architecture = asdict(model.spec), model.spec.architecture
    shape = spec.pop("input_shape")
    spec["frontend"] = model.spec.frontend and spec_tree(model.spec.frontend)
    # One flat group: the variations had no record of their own when the schema was made.
    variations = spec["architecture"].pop("variations")
    spec["architecture"] = tree_without(spec["architecture"], LATER) | variations
    spec["architecture"]["preprocess"] = str(architecture.preprocess)
    spec["architecture"]["auxiliary_input"] = str(architecture.variations.auxiliary_input)
    rounded, scales = round_weights(model.network, bits)
    state = model.network.state_dict() | rounded
    tree = {
        "state": {_renamed(key, *STORED): value.cpu().numpy() for key, value in state.items()},
        "scales": {_renamed(key, *STORED): scale.cpu().numpy() for key, scale in scales.items()},
        "deviations": _deviations(model.network),
        "config": spec,
        "recipe": model.recipe,
        "history": model.history,
        "input": input_tree(model.data_source, shape),
        "threads": model.threads,
    }
    # Files without them are as they were before there were such trainings.
    if model.cycles:
        tree["cycles"] = np.array(model.cycles, dtype=np.int64)
    if model.weights:
        tree["weights"] = {"name": model.weights, "digest": model.weights_digest}
    return write_file(Path(path), SCHEMA, tree, seed=model.seed, command=command, parent_digest=parent_digest)


def round_weights(network: Network, bits: Bits) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Trainable kernels and matrices of a network in few bits, by their names in its state, and their scales.

    With 16 bits they are float16, with 8 they are int8, to be multiplied by a scale (float32) for each output channel:
    the largest weight of the channel is 127. With 32 there are none. Weights of this kind are nearly all of a file. The
    front end, whose steps turn the smallest change of a drive into a whole spike, normalisation, and all that is not
    trained are left out: files keep every bit of them. Raises :class:`UserError` for a weight beyond the range of
    float16, or for 8 bits one that is not finite.
    """
    check(bits in get_args(Bits), f"`bits` {bits}: choose 32, 16 or 8")
    rounded, scales = {}, {}
    for name, parameter in network.named_parameters():
        if bits == 32 or not parameter.requires_grad or parameter.ndim < 2 or name.startswith("frontend."):
            continue
        weight = parameter.detach()
        largest = weight.abs().max().item()
        check(largest <= LARGEST[bits], f"weight {largest:g} of {name} is beyond {bits} bits: keep 32")
        if bits == 16:
            rounded[name] = weight.half()
        else:
            # A channel of zeros stays one.
            scale = (weight.flatten(1).abs().amax(1) / 127).clamp(min=torch.finfo(weight.dtype).tiny)
            scales[name] = scale
            rounded[name] = (weight / _for_rows(scale, weight)).round().to(torch.int8)
    return rounded, scales


def _for_rows(scale: Tensor, weight: Tensor) -> Tensor:
    """Scales (C,) in a shape in which they multiply the rows of a weight (C, ...)."""
    return scale.view(-1, *[1] * (weight.ndim - 1))


def save(model: TrainedModel, path: str | Path, *, bits: Bits = 32) -> str:
    """Write a trained model to ``hybrid.h5``; return the file's digest.

    With 16 ``bits`` the trainable weights are rounded to float16, with 8 to 255 values for each output channel
    (:func:`hybrid.storage.round_weights`). The file is then about a half or a quarter as large. It is read as float32
    again.

    Raises:
        UserError: what is no trained model, weights that so few bits cannot hold, or a file that cannot be written.
    """
    check(
        isinstance(model, TrainedModel),
        f"`model` is of type {type(model).__name__}: give what hybrid.train or hybrid.load returned, then the path",
    )
    return save_model(path, model, "hybrid.save", model.parent_digest, bits=bits)


def model_file(path: str | Path) -> Path:
    """The file of a trained network, or of one that ships with the package (``pretrained:NAME``)."""
    return resolve(path, SHIPPED_NETWORKS)


def load_model(path: str | Path) -> TrainedModel:
    """Read ``hybrid.h5``, or a trained network that ships with the package (``pretrained:NAME``).

    Raises :class:`UserError` for a missing, damaged, foreign or altered file.
    """
    return read_file(model_file(path), SCHEMA, _model_from_tree)


def _deviations(network: Network) -> Tree:
    """Deviations of the layers of a front end that draws them, by the layers' names; they are no part of its state."""
    frontend = getattr(network, "frontend", None)
    if not isinstance(frontend, SpikingFrontEnd) or not frontend.variability:
        return {}
    layers = enumerate(frontend.layers, 1)
    return {f"conv{number}": layer.deviations.cpu().numpy() for number, layer in layers if layer.has_deviations}


def _renamed(key: str, old: str, new: str) -> str:
    return new + key.removeprefix(old) if key.startswith(old) else key


def _model_from_tree(tree: Stored) -> TrainedModel:
    data_source, shape = read_input(tree.group("input"))
    spec = _spec_from_tree(tree.group("config"), shape)
    with torch.device("meta"):
        expected = build_model(spec).state_dict()
    state = _state_from_tree(tree, expected, spec)
    network = build_model(spec)
    network.load_state_dict(state)
    # Files of networks that draw none, and older ones, lack them.
    if "deviations" in tree and (deviations := tree.group("deviations")):
        _set_deviations(network, deviations)
    stored = tree.group("history")
    history = {name: stored.array(name, np.float64, (None,)) for name in stored}
    check(len({len(values) for values in history.values()}) <= 1, f"the columns of {stored.path} differ in length")
    recipe = tree.group("recipe")
    # A network trained elsewhere has none of these settings.
    epochs = Recipe.from_tree(recipe).epochs
    cycles = tuple(tree.array("cycles", np.int64, (None,), low=1, high=epochs).tolist()) if "cycles" in tree else ()
    check(not cycles or sum(cycles) == epochs, f"its cycles, {cycles}, are not the {epochs} epochs of its recipe")
    weights = tree.group("weights") if "weights" in tree else None
    return TrainedModel(
        spec=spec,
        network=network.eval(),
        data_source=data_source,
        seed=tree.whole("seed", int(SEED.low), int(SEED.high)),
        history=history,
        recipe=recipe,
        digest=tree.text("digest"),
        parent_digest=tree.text(PARENT),
        threads=tree.whole("threads", 0, int(THREADS.high)) if "threads" in tree else 0,
        cycles=cycles,
        weights=weights.text("name") if weights else "",
        weights_digest=weights.text("digest") if weights else "",
    )


def _spec_from_tree(config: Stored, shape: tuple[int, int, int]) -> ModelSpec:
    frontend = spec_from_tree(config.group("frontend"), shape) if "frontend" in config else None
    stored = config.group("architecture")
    options: Tree = dict(stored)
    options |= {name: Preprocess(stored.text(name)) for name in ("preprocess", "auxiliary_input") if name in stored}
    architecture = from_tree(Architecture, options, variations=from_tree(Variations, options))
    return from_tree(ModelSpec, config, architecture=architecture, input_shape=shape, frontend=frontend)


def _state_from_tree(tree: Stored, expected: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """The state of a network whose parts have these names, types and shapes; rounded weights become float32."""
    names = {_renamed(name, *STORED): name for name in expected}
    stored, scales = tree.group("state"), tree.group("scales") if "scales" in tree else Stored()
    check(
        RETINA_FILTERS in stored or RETINA_FILTERS not in expected,
        f"it was trained when {spec.architecture.variant} had no retina, which it now shares with the spiking layers; "
        "train it anew",
    )
    roundable = {
        name
        for name, key in names.items()
        if name in stored and expected[key].ndim >= 2 and not name.startswith("frontend.")
    }
    check(scales.keys() <= roundable, f"{scales.path} scales {', '.join(sorted(scales.keys() - roundable)[:3])}")
    types: dict[str, type[np.generic]] = dict.fromkeys(scales, np.int8)
    halves = (name for name in roundable - scales.keys() if getattr(stored[name], "dtype", None) == np.float16)
    types |= dict.fromkeys(halves, np.float16)
    try:
        state = state_from_tree(stored, {name: expected[key] for name, key in names.items()}, spec.frontend, types)
    except UserError as error:
        # A plugin's backbone may have changed since.
        raise UserError(
            f"its weights do not fit the network that {spec.architecture.backbone} is here ({error})"
        ) from error
    deviation = state["normalise.std"].min().item()
    smallest = torch.finfo(torch.float32).tiny
    check(deviation >= smallest, f"{stored.path}normalise.std is {deviation:g}, expected a positive number")
    for name in scales:
        scale = torch.from_numpy(scales.array(name, np.float32, state[name].shape[:1], low=0))
        state[name] = state[name] * _for_rows(scale, state[name])
    return {names[name]: values for name, values in state.items()}


def _set_deviations(network: Network, stored: Stored) -> None:
    frontend = network.frontend
    check(isinstance(frontend, SpikingFrontEnd), f"{stored.path} belongs to spiking layers, of which there are none")
    assert isinstance(frontend, SpikingFrontEnd)
    for number, layer in enumerate(frontend.layers, 1):
        levels = round(layer.activation.heights.max().item()) + 1
        layer.deviations = torch.from_numpy(stored.array(f"conv{number}", np.float32, (levels, DRAWS)))


load = load_model
"""Published as ``hybrid.load``."""
