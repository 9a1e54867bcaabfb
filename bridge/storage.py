"""``frontend.h5``: writing and reading of front ends."""

from dataclasses import asdict
from pathlib import Path

import torch

from bridge.frontend import FrontEndSpec, Response, SpikingFrontEnd, deviations
from snn.data_source import LOCATION, DataSource, input_tree, read_input
from snn.parameters import Encoding
from snn.runtime.h5 import Schema, read_file, write_file
from snn.runtime.tree import Tree, from_tree

SCHEMA = Schema("frontend/2", "python -m bridge.convert snn.h5 --out FILE", LOCATION)


SHIPPED_FRONTENDS = Path(__file__).parent / "shipped"
"""Front ends that ship with the package (:func:`snn.runtime.pretrained.resolve`)."""


def save_frontend(
    path: Path,
    frontend: SpikingFrontEnd,
    responses: list[Response],
    reports: list[Tree],
    source: DataSource,
    *,
    seed: int,
    command: str,
    parent_digest: str,
) -> str:
    """Write ``frontend.h5``; return its digest.

    Args:
        path: of the file.
        frontend: to be written.
        responses: to which each layer's SAU was fitted.
        reports: further groups of each layer: the spiking layer itself, how its SAU was fitted, how well it answers.
        source: data on which responses were simulated.
        seed: of the conversion.
        command: that made the file.
        parent_digest: of ``snn.h5``.
    """
    layers, fine = {}, not frontend.spec.quantise_input
    for number, (layer, response, report) in enumerate(zip(frontend.layers, responses, reports, strict=True), 1):
        layers[f"conv{number}"] = {
            "state": {key: value.cpu().numpy() for key, value in layer.state_dict().items()},
            "weight_unit": "current per "
            + ("step of intensity" if fine and number == 1 else "spike in a presentation"),
            "edges_unit": "current",
            "heights_unit": "spikes in a presentation",
            "response": {**response._asdict(), "drive_unit": "current", "count_unit": "spikes in a presentation"},
            **report,
        }
    spec = asdict(frontend.spec)
    tree = {
        "input": input_tree(source, spec.pop("input_shape")),
        "spec": spec,
        "layers": layers,
    }
    return write_file(path, SCHEMA, tree, seed=seed, command=command, parent_digest=parent_digest)


def load_frontend(path: Path) -> tuple[SpikingFrontEnd, DataSource, str]:
    """Read ``frontend.h5``: the front end on the CPU, the data it was fitted on, and the file's digest.

    Raises :class:`snn.runtime.errors.UserError` for missing, truncated, foreign or altered files.
    """
    return read_file(path, SCHEMA, _frontend_from_tree)


def _frontend_from_tree(tree: Tree) -> tuple[SpikingFrontEnd, DataSource, str]:
    source, shape = read_input(tree["input"])
    frontend = SpikingFrontEnd.empty(spec_from_tree(tree["spec"], shape))
    for number, layer in enumerate(frontend.layers, 1):
        state = tree["layers"][f"conv{number}"]["state"]
        layer.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
        told = tree["layers"][f"conv{number}"]["response"]
        layer.deviations = deviations(layer.activation, Response(*(told[name] for name in Response._fields)))
    return frontend, source, tree["digest"]


def spec_from_tree(tree: Tree, input_shape: tuple[int, int, int]) -> FrontEndSpec:
    """The :class:`FrontEndSpec` stored in a file."""
    return from_tree(FrontEndSpec, tree, encoding=from_tree(Encoding, tree["encoding"]), input_shape=input_shape)
