"""``snn.h5``: writing and reading of learned networks, and of unfinished learning."""

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from snn.data import in_bytes
from snn.data_source import LOCATION, UNNAMED, DataSource, input_tree, read_input
from snn.decoded import known_digest
from snn.image_cache import new_digest
from snn.layer import SpikingConv2d
from snn.learning import Learning
from snn.network import LayerHistory, LearnedLayer, SpikingNetwork, UnfinishedLayer
from snn.parameters import LayerParameters, LIFParameters
from snn.retina import retina_from_tree, retina_tree
from snn.runtime.errors import check
from snn.runtime.h5 import Schema, check_size, read_file, write_file
from snn.runtime.pretrained import resolve
from snn.runtime.ranges import SEED
from snn.runtime.tree import Stored, Tree, from_tree

SCHEMA = Schema("snn/3", "python -m snn.learn --out FILE", LOCATION, older=("snn/2",))
BYTES_LEARNED, BYTES_UNFINISHED = 8, 24
"""In the file, of a synapse of a layer that has learned (now and at the start), or learns (and sums of windows)."""
SHIPPED_NETWORKS = Path(__file__).parent / "shipped"
"""Learned networks that ship with the package (:func:`snn.runtime.pretrained.resolve`)."""


def images_digest(images: Tensor) -> str:
    """Digest of uint8 images (N, C, H, W), by which a resumed run knows its images again."""
    if known := known_digest(images):
        return known
    digest = new_digest(tuple(images.shape))
    for part in in_bytes(images):
        digest.update(part)
    return digest.hexdigest()


def check_file(learning: Learning, channels: int, images: int) -> None:
    """Raise :class:`UserError` if the file of such learning, on images with so many channels, would be too large."""
    updates, done, most = learning.updates(images), 0, 0
    for maps, synapses in zip(learning.maps, learning.synapses(channels), strict=True):
        # Spikes of each map, images and mean change after each update.
        history = 8 * updates * (maps + 2)
        most = max(most, done + BYTES_UNFINISHED * synapses + history)
        done += BYTES_LEARNED * synapses + history
    what = f"the file of layers with {', '.join(map(str, learning.maps))} maps and a history of {updates} updates"
    check_size(most, what, "lower `maps` or `kernel_sizes`, or learn in fewer updates")


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
    columns = {"images": history.images, "wins": history.wins, "mean_change": history.mean_change}
    return {name: values.numpy() for name, values in columns.items()}


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


def _network_from_tree(tree: Stored) -> NetworkFile:
    learning = from_tree(Learning, tree.group("learning"))
    data_source, shape = read_input(tree.group("input"))
    retina = retina_from_tree(tree.group("retina"), shape[0]) if "retina" in tree else None
    channels = [shape[0] * (2 if retina else 1), *learning.maps]
    learned, history = tree.groups("layers", "conv"), tree.group("history")
    check(len(learned) <= len(learning.maps), f"it has {len(learned)} layers and settings for {len(learning.maps)}")
    layers = tuple(
        _learned_from_tree(stored, history.group(f"conv{number + 1}"), learning, number, channels[number])
        for number, stored in enumerate(learned)
    )
    unfinished = None
    if progress := tree.group("progress"):
        check(len(layers) < len(learning.maps), "all its layers have learned, and one is unfinished")
        progress.whole("layer", len(layers) + 1, len(layers) + 1)
        unfinished = _unfinished_from_tree(progress, learning, len(layers), channels[len(layers)])
    seed, digest = tree.whole("seed", int(SEED.low), int(SEED.high)), tree.text("images_digest")
    network = SpikingNetwork(shape, learning, layers, seed, unfinished, digest, retina)
    return NetworkFile(network, data_source, tree.text("digest"))


def _learned_from_tree(stored: Stored, history: Stored, learning: Learning, number: int, c_in: int) -> LearnedLayer:
    layer = _layer_of(stored, learning, number, c_in)
    initial = stored.array("initial_conductance", np.float32, layer.conductance.shape, *_limits(learning))
    return LearnedLayer(
        layer=layer,
        initial_conductance=torch.from_numpy(initial),
        learning_gain=stored.number("learning_gain", low=0),
        rate_limits=_rate_limits(stored),
        mean_rate=stored.number("mean_rate", low=0),
        saturated=(stored.number("saturated_ltp", 0, 1), stored.number("saturated_ltd", 0, 1)),
        history=_history_from_tree(history, layer.geometry.maps),
    )


def _unfinished_from_tree(stored: Stored, learning: Learning, number: int, c_in: int) -> UnfinishedLayer:
    layer = _layer_of(stored.group("now"), learning, number, c_in)
    maps, shape = layer.geometry.maps, layer.conductance.shape
    return UnfinishedLayer(
        layer=layer,
        start=_layer_of(stored.group("start"), learning, number, c_in),
        ltd_factor=torch.from_numpy(stored.array("ltd_factor", np.float64, (maps, 1, 1, 1), low=0)),
        rate_limits=_rate_limits(stored),
        history=_history_from_tree(stored.group("history"), maps),
        window=torch.from_numpy(stored.array("window", np.float64, (2, *shape))),
        drift=stored.number("drift", low=0, infinite=True),
    )


def _rate_limits(stored: Stored) -> tuple[float, float]:
    low = stored.number("rate_low", low=0)
    return low, stored.number("rate_high", low=low)


def _limits(learning: Learning) -> tuple[float, float]:
    """Smallest and largest conductance, as float32 holds them."""
    return float(np.float32(learning.stdp.g_min)), float(np.float32(learning.stdp.g_max))


def _layer_of(stored: Stored, learning: Learning, number: int, c_in: int) -> SpikingConv2d:
    """A layer of a network, whose settings say what it looks like."""
    layer, wanted = layer_from_tree(stored, learning.encoding.dt, c_in, _limits(learning)), learning.geometry(number)
    # Only inhibition differs between a layer that learns and one that has learned.
    found = replace(layer.geometry, feed_forward_inhibition=wanted.feed_forward_inhibition)
    check(found == wanted, f"{stored.path}geometry is {found}, its settings say {wanted}")
    check(layer.lif == learning.lif, f"{stored.path}lif is {layer.lif}, its settings say {learning.lif}")
    return layer


def layer_from_tree(
    tree: Stored, dt: float, c_in: int, limits: tuple[float, float] = (-math.inf, math.inf)
) -> SpikingConv2d:
    """What :func:`layer_tree` stored; ``dt`` in ms, ``c_in`` channels before it, conductances within ``limits``."""
    geometry, lif = from_tree(LayerParameters, tree.group("geometry")), from_tree(LIFParameters, tree.group("lif"))
    maps, size = geometry.maps, geometry.kernel_size
    geometry.steps(dt)
    return SpikingConv2d(
        conductance=torch.from_numpy(tree.array("conductance", np.float32, (maps, c_in, size, size), *limits)),
        gain=torch.from_numpy(tree.array("gain", np.float32, (maps,), low=0)),
        # Below rest a neuron would fire without input.
        v_threshold=torch.from_numpy(tree.array("v_threshold", np.float32, (maps,), low=lif.v_leak)),
        geometry=geometry,
        lif=lif,
        dt=dt,
    )


def _history_from_tree(tree: Stored, maps: int) -> LayerHistory:
    images = tree.array("images", np.int64, (None,), low=1)
    check(bool((np.diff(images) > 0).all()), f"{tree.path}images does not increase")
    wins = tree.array("wins", np.int64, (len(images), maps), low=0)
    mean_change = tree.array("mean_change", np.float64, (len(images),), low=0)
    return LayerHistory.of(*map(torch.from_numpy, (images, wins, mean_change)))
