"""``hybrid.h5``: writing and reading of trained networks."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bridge.storage import spec_from_tree, spec_tree
from hybrid.architecture import Architecture, ModelSpec, build_model
from hybrid.network import Network
from hybrid.preprocess import Preprocess
from hybrid.variations import Variations
from snn.data_source import LOCATION, DataSource, input_tree, read_input
from snn.runtime.errors import UserError
from snn.runtime.h5 import PARENT, Schema, read_file, write_file
from snn.runtime.tree import Tree, from_tree

SCHEMA = Schema("hybrid/5", "python -m hybrid.train --out FILE", (*LOCATION, "threads"), older=("hybrid/4",))

STORED = ("join.norm.", "feature_norm.")
"""Start of a parameter's name in the network, and in the file."""


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
    """Per epoch: train_loss, train_accuracy, val_loss, val_accuracy, learning_rate."""
    recipe: dict[str, Any]
    """Settings of the training, by field of :class:`hybrid.recipe.Recipe`."""
    digest: str = ""
    """Digest of the file that the model was read from ("": none)."""
    parent_digest: str = ""
    """Digest of the front end's file ("": none)."""
    threads: int = 0
    """CPU threads of the training, on whose number its last bits depend; 0: not known."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, classes) for images (B, C, H, W) in [0, 1]; ``network`` gives the same with gradients."""
        return self.network(images)


def history_rows(history: Mapping[str, Iterable[float]]) -> list[dict]:
    """The columns of a training's history as one row for each epoch, counted from 1."""
    rows = zip(*history.values(), strict=True)
    return [{"epoch": number, **dict(zip(history, row, strict=True))} for number, row in enumerate(rows, 1)]


def save_model(path: str | Path, model: TrainedModel, command: str, parent_digest: str) -> str:
    """Write ``hybrid.h5``; return its digest.

    ``command`` made the model, ``parent_digest`` is that of the file that it was made from ("": none).
    """
    spec, architecture = asdict(model.spec), model.spec.architecture
    shape = spec.pop("input_shape")
    spec["frontend"] = model.spec.frontend and spec_tree(model.spec.frontend)
    # One flat group: the variations had no record of their own when the schema was made.
    spec["architecture"] |= spec["architecture"].pop("variations")
    spec["architecture"]["preprocess"] = str(architecture.preprocess)
    spec["architecture"]["auxiliary_input"] = str(architecture.variations.auxiliary_input)
    tree = {
        "state": {_renamed(key, *STORED): value.cpu().numpy() for key, value in model.network.state_dict().items()},
        "config": spec,
        "recipe": model.recipe,
        "history": model.history,
        "input": input_tree(model.data_source, shape),
        "threads": model.threads,
    }
    return write_file(Path(path), SCHEMA, tree, seed=model.seed, command=command, parent_digest=parent_digest)


def save(model: TrainedModel, path: str | Path) -> str:
    """Write a trained model to ``hybrid.h5``; return the file's digest."""
    return save_model(path, model, "hybrid.save", model.parent_digest)


def load_model(path: str | Path) -> TrainedModel:
    """Read ``hybrid.h5``. Raises :class:`UserError` for a missing, damaged, foreign or altered file."""
    return read_file(Path(path), SCHEMA, _model_from_tree)


def _renamed(key: str, old: str, new: str) -> str:
    return new + key.removeprefix(old) if key.startswith(old) else key


def _model_from_tree(tree: Tree) -> TrainedModel:
    data_source, shape = read_input(tree["input"])
    config = tree["config"]
    frontend = spec_from_tree(config["frontend"], shape) if "frontend" in config else None
    options: Tree = dict(config["architecture"])
    options |= {name: Preprocess(options[name]) for name in ("preprocess", "auxiliary_input") if name in options}
    architecture = from_tree(Architecture, options, variations=from_tree(Variations, options))
    spec = from_tree(ModelSpec, config, architecture=architecture, input_shape=shape, frontend=frontend)
    network = build_model(spec)
    state = {_renamed(key, *reversed(STORED)): torch.from_numpy(value) for key, value in tree["state"].items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        # A plugin's backbone may have changed since.
        problem = " ".join(str(error).split())[:300]
        raise UserError(
            f"its weights do not fit the network that {architecture.backbone} is here ({problem})"
        ) from error
    return TrainedModel(
        spec=spec,
        network=network.eval(),
        data_source=data_source,
        seed=tree["seed"],
        history=tree["history"],
        recipe=tree["recipe"],
        digest=tree["digest"],
        parent_digest=tree[PARENT],
        threads=tree.get("threads", 0),
    )


load = load_model
"""Published as ``hybrid.load``."""
