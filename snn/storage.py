"""``snn.h5``: writing and reading of learned networks, and of unfinished learning."""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from snn.data_source import LOCATION, UNNAMED, DataSource, input_tree, read_input
from snn.layer import SpikingConv2d
from snn.learning import Learning
from snn.network import LayerHistory, LearnedLayer, SpikingNetwork, UnfinishedLayer
from snn.parameters import LayerParameters, LIFParameters
from snn.retina import retina_from_tree, retina_tree
from snn.runtime.h5 import Schema, read_file, write_file
from snn.runtime.pretrained import resolve
from snn.runtime.tree import Tree, from_tree

SCHEMA = Schema("snn/3", "python -m snn.learn --out FILE", LOCATION, older=("snn/2",))
SHIPPED_NETWORKS = Path(__file__).parent / "shipped"
"""Learned networks that ship with the package (:func:`snn.runtime.pretrained.resolve`)."""


def images_digest(images: Tensor) -> str:
    """Digest of uint8 images (N, C, H, W), by which a resumed run knows its images again."""
    digest = hashlib.blake2b(str(tuple(images.shape)).encode(), digest_size=16)
    digest.update(images.contiguous().numpy().data)
    return digest.hexdigest()


def save(
    network: SpikingNetwork, path: str | Path, data_source: DataSource = UNNAMED, *, command: str = "snn.save"
) -> str:
    """Write ``snn.h5``, with the source of its training images and the command for the record; return its digest."""
    units = {"images_unit": "images", "wins_unit": "spikes", "mean_change_unit": "conductance"}
    layers = {f"conv{number}": learned for number, learned in enumerate(network.layers, 1)}
    progress = {}
    if network.unfinished:
        progress = _unfinished_tree(network.unfinished) | {"layer": len(network.layers) + 1}
    tree = {
        "input": input_tree(data_source, network.input_shape),
        "learning": asdict(network.learning),
        "unit": {"potentials": "mV", "times": "ms", "rates": "Hz"},
        "retina": retina_tree(network.retina),
        "layers": {name: _learned_tree(learned) for name, learned in layers.items()},
        "history": {name: _history_tree(learned.history) | units for name, learned in layers.items()},
        "progress": progress,
        "images_digest": network.images_digest,
    }
    return write_file(path, SCHEMA, tree, seed=network.seed, command=command)


def _learned_tree(learned: LearnedLayer) -> Tree:
    return layer_tree(learned.layer) | {
        "initial_conductance": learned.initial_conductance.numpy(),
        "saturated_ltp": learned.saturated[0],
        "saturated_ltd": learned.saturated[1],
        "learning_gain": learned.learning_gain,
        "rate_low": learned.rate_limits[0],
        "rate_high": learned.rate_limits[1],
        "mean_rate": learned.mean_rate,
        "rate_unit": "Hz",
    }


def _unfinished_tree(state: UnfinishedLayer) -> Tree:
    return {
        "now": layer_tree(state.layer),
        "start": layer_tree(state.start),
        "ltd_factor": state.ltd_factor.numpy(),
        "window": state.window.numpy(),
        "drift": state.drift,
        "rate_low": state.rate_limits[0],
        "rate_high": state.rate_limits[1],
        "rate_unit": "Hz",
        "history": _history_tree(state.history),
    }


def _history_tree(history: LayerHistory) -> Tree:
    return {name: values.numpy() for name, values in history._asdict().items()}


def layer_tree(layer: SpikingConv2d) -> Tree:
    """A layer's values as a group of a file."""
    return {
        "conductance": layer.conductance.numpy(),
        "conductance_unit": "1 (g_min to g_max)",
        "gain": layer.gain.numpy(),
        "gain_unit": "current of Eq. 1 per conductance",
        "v_threshold": layer.v_threshold.numpy(),
        "v_threshold_unit": "mV",
        "geometry": asdict(layer.geometry) | {"pulse_width_unit": "ms", "inhibition_time_unit": "ms"},
        "lif": asdict(layer.lif) | {"v_unit": "mV", "time_unit": "ms"},
    }


class NetworkFile(NamedTuple):
    """Content of ``snn.h5``."""

    network: SpikingNetwork
    """On the CPU."""
    data_source: DataSource
    """Data it was learned on."""
    digest: str


def load_network(path: str | Path) -> NetworkFile:
    """Read ``snn.h5``, or a network that ships with the package (``pretrained:NAME``).

    Raises :class:`UserError` for a missing, damaged, foreign or altered file.
    """
    return read_file(resolve(path, SHIPPED_NETWORKS), SCHEMA, _network_from_tree)


def load(path: str | Path) -> SpikingNetwork:
    """The network in ``snn.h5``, finished or not; see :func:`load_network`."""
    return load_network(path).network


def _network_from_tree(tree: Tree) -> NetworkFile:
    learning = from_tree(Learning, tree["learning"])
    dt = learning.encoding.dt
    layers = []
    for number in range(1, len(tree["layers"]) + 1):
        stored = tree["layers"][f"conv{number}"]
        layers.append(
            LearnedLayer(
                layer=layer_from_tree(stored, dt),
                initial_conductance=torch.from_numpy(stored["initial_conductance"]),
                learning_gain=stored["learning_gain"],
                rate_limits=(stored["rate_low"], stored["rate_high"]),
                mean_rate=stored["mean_rate"],
                saturated=(stored["saturated_ltp"], stored["saturated_ltd"]),
                history=_history_from_tree(tree["history"][f"conv{number}"]),
            )
        )
    unfinished = None
    if stored := tree["progress"]:
        unfinished = UnfinishedLayer(
            layer=layer_from_tree(stored["now"], dt),
            start=layer_from_tree(stored["start"], dt),
            ltd_factor=torch.from_numpy(stored["ltd_factor"]),
            rate_limits=(stored["rate_low"], stored["rate_high"]),
            history=_history_from_tree(stored["history"]),
            window=torch.from_numpy(stored["window"]),
            drift=stored["drift"],
        )
    data_source, shape = read_input(tree["input"])
    network = SpikingNetwork(
        shape,
        learning,
        tuple(layers),
        tree["seed"],
        unfinished,
        tree["images_digest"],
        retina_from_tree(tree.get("retina", {})),
    )
    return NetworkFile(network, data_source, tree["digest"])


def layer_from_tree(tree: Tree, dt: float) -> SpikingConv2d:
    """What :func:`layer_tree` stored; ``dt`` in ms."""
    return SpikingConv2d(
        conductance=torch.from_numpy(tree["conductance"]),
        gain=torch.from_numpy(tree["gain"]),
        v_threshold=torch.from_numpy(tree["v_threshold"]),
        geometry=from_tree(LayerParameters, tree["geometry"]),
        lif=from_tree(LIFParameters, tree["lif"]),
        dt=dt,
    )


def _history_from_tree(tree: Tree) -> LayerHistory:
    return LayerHistory(*(torch.from_numpy(tree[name]) for name in LayerHistory._fields))
