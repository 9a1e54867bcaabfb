"""``frontend.h5``: writing and reading of front ends."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from bridge.fidelity import MODES, Fidelity
from bridge.frontend import FrontEndSpec, LayerSpec, Response, SpikingFrontEnd, deviations
from snn.data_source import LOCATION, DataSource, input_tree, read_input
from snn.parameters import Encoding
from snn.retina import retina_from_tree, retina_tree
from snn.runtime.h5 import Schema, read_file, write_file
from snn.runtime.pretrained import resolve
from snn.runtime.tree import Tree, from_tree

if TYPE_CHECKING:
    from bridge.conversion import Conversion
    from snn.layer import SpikingConv2d

SCHEMA = Schema("frontend/3", "python -m bridge.convert snn.h5 --out FILE", LOCATION, older=("frontend/2",))
SHIPPED_FRONTENDS = Path(__file__).parent / "shipped"
"""Front ends that ship with the package (:func:`snn.runtime.pretrained.resolve`)."""
COLUMNS = ("maps", "kernel_sizes", "strides", "paddings", "steps", "per_channel")
"""Names in a file of the fields of :class:`bridge.frontend.LayerSpec`, in their order; each holds a value per layer."""


class FrontEndFile(NamedTuple):
    """Content of ``frontend.h5``."""

    frontend: SpikingFrontEnd
    """On the CPU."""
    data_source: DataSource
    """Data on which it was fitted."""
    digest: str


def load(path: str | Path) -> SpikingFrontEnd:
    """Read a front end onto the CPU, from ``frontend.h5`` or by name (``pretrained:cifar10-fd``).

    Raises :class:`snn.runtime.errors.UserError` for a missing, truncated, foreign or altered file.
    """
    return load_frontend(path).frontend


def load_frontend(path: str | Path) -> FrontEndFile:
    """:func:`load`, with the data and the digest of the file."""
    return read_file(resolve(path, SHIPPED_FRONTENDS), SCHEMA, _frontend_from_tree)


def _frontend_from_tree(tree: Tree) -> FrontEndFile:
    data_source, shape = read_input(tree["input"])
    frontend = SpikingFrontEnd.empty(spec_from_tree(tree["spec"], shape))
    frontend.retina = retina_from_tree(tree.get("retina", {}))
    for number, layer in enumerate(frontend.layers, 1):
        stored = tree["layers"][f"conv{number}"]
        layer.load_state_dict({key: torch.from_numpy(value) for key, value in stored["state"].items()})
        response = Response(*(stored["response"][name] for name in Response._fields))
        layer.deviations = deviations(layer.activation, response)
    return FrontEndFile(frontend, data_source, tree["digest"])


def load_spiking_layers(path: str | Path) -> "list[SpikingConv2d]":
    """Read the spiking layers from which the front end in ``frontend.h5`` was converted."""
    # Imported here: the front end itself needs no simulator.
    from snn.storage import layer_from_tree

    def parse(tree: Tree) -> "list[SpikingConv2d]":
        dt, layers = tree["spec"]["encoding"]["dt"], tree["layers"]
        return [layer_from_tree(layers[f"conv{number}"]["spiking"], dt) for number in range(1, len(layers) + 1)]

    return read_file(resolve(path, SHIPPED_FRONTENDS), SCHEMA, parse)


def save(
    conversion: "Conversion",
    path: str | Path,
    *,
    fidelity: Mapping[bool, Sequence[Fidelity]] | None = None,
    command: str = "bridge.save",
) -> str:
    """Write ``frontend.h5``, with the command that made it for the record; return its digest.

    ``fidelity`` of each layer, with the input rounded to whole spikes (True) and without (False), is recorded too.
    """
    tree = {
        "input": input_tree(conversion.data_source, conversion.frontend.spec.input_shape),
        "spec": spec_tree(conversion.frontend.spec),
        "retina": retina_tree(conversion.frontend.retina),
        "layers": {
            f"conv{number + 1}": _layer_tree(conversion, number)
            | {"fidelity": {MODES[mode]: layers[number].summary() for mode, layers in (fidelity or {}).items()}}
            for number in range(len(conversion.layers))
        },
    }
    return write_file(path, SCHEMA, tree, seed=conversion.seed, command=command, parent_digest=conversion.parent_digest)


def _layer_tree(conversion: "Conversion", number: int) -> Tree:
    # Imported here: the front end itself needs no simulator.
    from snn.storage import layer_tree

    (spiking, response, fit), layer = conversion.layers[number], conversion.frontend.layers[number]
    fine = number == 0 and not conversion.frontend.spec.quantise_input
    return {
        "state": {key: value.cpu().numpy() for key, value in layer.state_dict().items()},
        "weight_unit": "current per " + ("step of intensity" if fine else "spike in a presentation"),
        "edges_unit": "current",
        "heights_unit": "spikes in a presentation",
        "response": {**response._asdict(), "drive_unit": "current", "count_unit": "spikes in a presentation"},
        "spiking": layer_tree(spiking),
        "fit": {"kind": fit.kind, "residual": fit.residual},
        "candidates": {name.replace(" ", "_"): value for name, value in fit.residuals.items()},
        "residual_unit": "spikes in a presentation",
    }


def spec_tree(spec: FrontEndSpec) -> Tree:
    """A front end's shape as a group of a file, without the shape of the images, which the file holds elsewhere."""
    columns = dict(zip(COLUMNS, zip(*map(astuple, spec.layers), strict=True), strict=True))
    others = {"quantise_input": spec.quantise_input, "retina_size": spec.retina_size}
    return {**columns, "encoding": asdict(spec.encoding), **others}


def spec_from_tree(tree: Tree, input_shape: tuple[int, int, int]) -> FrontEndSpec:
    """The shape that :func:`spec_tree` stored, for images of ``input_shape`` (C, H, W)."""
    layers = tuple(LayerSpec(*values) for values in zip(*(tree[name] for name in COLUMNS), strict=True))
    encoding, retina_size = from_tree(Encoding, tree["encoding"]), tree.get("retina_size", 0)
    return FrontEndSpec(input_shape, layers, encoding, tree["quantise_input"], retina_size)
