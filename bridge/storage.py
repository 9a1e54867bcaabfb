"""``frontend.h5``: writing and reading of front ends."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, fields
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bridge.fidelity import MODES, Fidelity
from bridge.frontend import FrontEndSpec, LayerSpec, Response, SpikingFrontEnd, deviations
from snn.data_source import LOCATION, DataSource, input_tree, read_input
from snn.parameters import Encoding
from snn.retina import retina_from_tree, retina_tree
from snn.runtime.errors import check
from snn.runtime.h5 import Schema, read_file, write_file
from snn.runtime.pretrained import resolve
from snn.runtime.tree import Stored, Tree, from_tree

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


def _frontend_from_tree(tree: Stored) -> FrontEndFile:
    data_source, shape = read_input(tree.group("input"))
    spec, layers = spec_from_tree(tree.group("spec"), shape), tree.groups("layers", "conv")
    check(len(layers) == len(spec.layers), f"it has {len(layers)} layers, its spec {len(spec.layers)}")
    # Older files lack the group.
    stored_retina = tree.group("retina") if "retina" in tree else None
    check(bool(spec.retina_size) == bool(stored_retina), "either its spec or its content has a retina, not both")
    expected = SpikingFrontEnd.empty(spec, device="meta")
    states = [
        state_from_tree(stored.group("state"), layer.state_dict(), spec)
        for stored, layer in zip(layers, expected.layers, strict=True)
    ]
    retina = retina_from_tree(stored_retina, shape[0], spec.retina_size) if stored_retina else None
    frontend = SpikingFrontEnd.empty(spec)
    frontend.retina = retina
    for layer, state, stored in zip(frontend.layers, states, layers, strict=True):
        layer.load_state_dict(state)
        response = _response_from_tree(stored.group("response"), len(layer.weight))
        layer.deviations = deviations(layer.activation, response)
    return FrontEndFile(frontend, data_source, tree.text("digest"))


def state_from_tree(
    tree: Stored,
    expected: Mapping[str, Tensor],
    spec: FrontEndSpec | None,
    types: Mapping[str, type[np.generic]] | None = None,
) -> dict[str, Tensor]:
    """The state of a module, as stored under the names of ``expected``, which may have no values (device meta).

    A part has the type and shape that it has there, or its type in ``types``. ``spec`` is that of the front end, if the
    module has one. Raises :class:`UserError` for other names, types or shapes, and for values that cannot be: not
    finite (but edges may be infinite), negative variances, steps below 0 or above a spike in each time step.
    """
    missing, unknown = sorted(expected.keys() - tree.keys()), sorted(tree.keys() - expected.keys())
    check(
        not missing and not unknown,
        f"{tree.path} lacks {', '.join(missing[:3]) or 'nothing'} and has {', '.join(unknown[:3]) or 'nothing'} that "
        "its network has not",
    )
    state = {}
    for name, tensor in expected.items():
        dtype = (types or {}).get(name, torch.empty(0, dtype=tensor.dtype).numpy().dtype.type)
        step = name.endswith("activation.heights")
        low = 0 if step or name.endswith(("running_var", "num_batches_tracked")) else -math.inf
        high = spec.encoding.n_steps if step and spec else math.inf
        infinite = name.endswith("activation.edges")
        state[name] = torch.from_numpy(tree.array(name, dtype, tuple(tensor.shape), low, high, infinite=infinite))
    return state


def _response_from_tree(tree: Stored, channels: int) -> Response:
    drive = tree.array("drive", np.float32, (None,))
    single_drive = tree.array("single_drive", np.float32, (None,))
    return Response(
        drive,
        count=tree.array("count", np.int16, drive.shape, low=0),
        channel=tree.array("channel", np.int16, drive.shape, low=0, high=channels - 1),
        single_drive=single_drive,
        single_count=tree.array("single_count", np.int16, single_drive.shape, low=0),
    )


def load_responses(path: str | Path) -> list[Response]:
    """Read the simulated responses to which the layers of the front end in ``frontend.h5`` were fitted."""

    def parse(tree: Stored) -> list[Response]:
        spec, stored = (
            spec_from_tree(tree.group("spec"), read_input(tree.group("input"))[1]),
            tree.groups("layers", "conv"),
        )
        check(len(stored) == len(spec.layers), f"it has {len(stored)} layers, its spec {len(spec.layers)}")
        return [
            _response_from_tree(group.group("response"), channels)
            for group, channels in zip(stored, spec.channels, strict=True)
        ]

    return read_file(resolve(path, SHIPPED_FRONTENDS), SCHEMA, parse)


def load_spiking_layers(path: str | Path) -> "list[SpikingConv2d]":
    """Read the spiking layers from which the front end in ``frontend.h5`` was converted."""
    # Imported here: the front end itself needs no simulator.
    from snn.storage import layer_from_tree

    def parse(tree: Stored) -> "list[SpikingConv2d]":
        spec = spec_from_tree(tree.group("spec"), read_input(tree.group("input"))[1])
        before = (spec.channels_in, *spec.channels)
        stored = tree.groups("layers", "conv")
        check(len(stored) == len(spec.layers), f"it has {len(stored)} layers, its spec {len(spec.layers)}")
        layers = []
        for group, wanted, c_in in zip(stored, spec.layers, before, strict=False):
            layer = layer_from_tree(group.group("spiking"), spec.encoding.dt, c_in)
            found = LayerSpec.of(layer.geometry, wanted.steps, wanted.per_channel)
            check(found == wanted, f"{group.path}spiking/geometry is {found}, its spec says {wanted}")
            layers.append(layer)
        return layers

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


def spec_from_tree(tree: Stored, input_shape: tuple[int, int, int]) -> FrontEndSpec:
    """The shape that :func:`spec_tree` stored, for images of ``input_shape`` (C, H, W)."""
    columns = [tree[name] for name in COLUMNS]
    check(
        all(isinstance(column, list) and len(column) == len(columns[0]) for column in columns),
        f"{tree.path}: {', '.join(COLUMNS)} are no lists of one length",
    )
    names = [field.name for field in fields(LayerSpec)]
    layers = tuple(from_tree(LayerSpec, dict(zip(names, row, strict=True))) for row in zip(*columns, strict=True))
    encoding = from_tree(Encoding, tree.group("encoding"))
    return from_tree(FrontEndSpec, tree, input_shape=input_shape, layers=layers, encoding=encoding)
