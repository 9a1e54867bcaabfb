"""``hybrid.h5``: writing and reading of trained networks."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bridge.storage import spec_from_tree, spec_tree
from hybrid.architecture import Architecture, ModelSpec
from hybrid.network import build_model
from snn.data_source import LOCATION, DataSource, input_tree, read_input
from snn.runtime.h5 import PARENT, Schema, read_file, write_file
from snn.runtime.tree import Tree, from_tree

SCHEMA = Schema("hybrid/4", "python -m hybrid.train --out FILE", LOCATION)


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
    parent_digest: str = ""
    """Of the file of its front end ("": none)."""


def history_rows(history: Mapping[str, Iterable[float]]) -> list[dict]:
    """A row per epoch, counted from 1, of the columns of a training's history."""
    rows = zip(*history.values(), strict=True)
    return [{"epoch": number, **dict(zip(history, row, strict=True))} for number, row in enumerate(rows, 1)]


def save_model(path: Path, model: TrainedModel, command: str, parent_digest: str) -> str:
    """Write ``hybrid.h5``; return its digest. ``parent_digest``: of the front end's file, "" for a baseline."""
    spec = asdict(model.spec)
    shape = spec.pop("input_shape")
    spec["frontend"] = model.spec.frontend and spec_tree(model.spec.frontend)
    tree = {
        "state": {key: value.cpu().numpy() for key, value in model.network.state_dict().items()},
        "config": spec,
        "recipe": model.recipe,
        "history": model.history,
        "input": input_tree(model.source, shape),
    }
    return write_file(path, SCHEMA, tree, seed=model.seed, command=command, parent_digest=parent_digest)


def load_model(path: Path) -> TrainedModel:
    """Read ``hybrid.h5``. Raises :class:`UserError` for a missing, damaged, foreign or altered file."""
    return read_file(path, SCHEMA, _model_from_tree)


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
        parent_digest=tree[PARENT],
    )
