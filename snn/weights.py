"""``snn.h5``: the learned spiking layers, how they were learned, and the history of learning."""

import hashlib
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from snn.data import DataSource
from snn.encode import Encoding
from snn.events import Spikes
from snn.h5file import Tree, from_tree, input_tree, read_file, read_input, write_file
from snn.layer import LayerParameters, SpikingConv2d
from snn.neuron import LIFParameters
from snn.settings import Homeostasis, Learning
from snn.stdp import STDPParameters

SCHEMA = "snn/2"
REMEDY = "python -m snn.learn --out FILE"
SHIPPED_NETWORKS = Path(__file__).parent / "shipped"
"""Learned networks that ship with the package (:func:`snn.pretrained.resolve`)."""


class LayerHistory(NamedTuple):
    """One entry per mini-batch update of a layer."""

    images: Tensor
    """Images seen up to and including the update, int64 (U,)."""
    wins: Tensor
    """Postsynaptic spikes of each map, int64 (U, C_out)."""
    mean_change: Tensor
    """Mean |dG| over the layer's synapses, float64 (U,)."""

    @classmethod
    def empty(cls, maps: int) -> "LayerHistory":
        """Before the first update."""
        integers = {"dtype": torch.int64}
        return cls(torch.empty(0, **integers), torch.empty(0, maps, **integers), torch.empty(0, dtype=torch.float64))

    def with_update(self, images: int, wins: Tensor, mean_change: float) -> "LayerHistory":
        """One update of ``images`` images more; ``wins`` (C_out,)."""
        seen = images + (self.images[-1:] if len(self.images) else 0)
        return LayerHistory(
            torch.cat([self.images, torch.as_tensor(seen).reshape(1)]),
            torch.cat([self.wins, wins.cpu()[None]]),
            torch.cat([self.mean_change, torch.tensor([mean_change], dtype=torch.float64)]),
        )


@dataclass(frozen=True)
class LearnedLayer:
    """A layer after learning: ready to drive the next one, with its start values and history."""

    layer: SpikingConv2d
    """Gain and threshold are those with which it feeds the next layer (inhibition off)."""
    initial_conductance: Tensor
    """G0, (C_out, C_in, kH, kW)."""
    learning_gain: float
    """i_syn at the start of its learning."""
    rate_limits: tuple[float, float]
    """f_min and f_max of its presynaptic rates in Eq. 5, in Hz."""
    mean_rate: float
    """Mean rate that it passes on, in Hz, on the calibration images."""
    saturated: tuple[float, float]
    """Shares of its synaptic events, on the calibration images after learning, whose probability of LTP, or of LTD, is
    at its peak."""
    history: LayerHistory

    def to(self, device: torch.device | str) -> "LearnedLayer":
        """A copy on ``device``; the history stays where it is."""
        initial = self.initial_conductance.to(device)
        return replace(self, layer=self.layer.to(device), initial_conductance=initial)

    @property
    def mean_move(self) -> float:
        """Mean |G - G0|."""
        return (self.layer.conductance - self.initial_conductance).abs().mean().item()

    @property
    def fair_shares(self) -> Tensor:
        """Spikes of each map under inhibition over the mean map's, in the last quarter of the updates, float64."""
        updates = len(self.history.wins)
        wins = self.history.wins[updates * 3 // 4 :].sum(0).double()
        return wins / wins.mean().clamp(min=1e-9)

    @property
    def winning_share(self) -> float:
        """Share of maps that fire at least a fifth as often as the mean map."""
        return (self.fair_shares >= 0.2).double().mean().item()


@dataclass(frozen=True)
class UnfinishedLayer:
    """A layer while it learns: all that its next update depends on, apart from the layers below."""

    layer: SpikingConv2d
    start: SpikingConv2d
    """As it was before the first update."""
    ltd_factor: Tensor
    """Of each map, float64 (C_out, 1, 1, 1)."""
    rate_limits: tuple[float, float]
    """f_min and f_max of its presynaptic rates in Eq. 5, in Hz."""
    history: LayerHistory
    window: Tensor
    """Sum of the conductances since the last window ended, and their mean over the last window (0 before): float64
    (2, C_out, C_in, kH, kW). See :func:`snn.learner.follow_window`."""
    drift: float = math.inf
    """Mean distance of the last window's mean from the one before, as a share of the range g_min to g_max."""

    @property
    def updates(self) -> int:
        """Updates done."""
        return len(self.history.images)

    def to(self, device: torch.device | str) -> "UnfinishedLayer":
        """A copy on ``device``; the history stays where it is."""
        values = {name: getattr(self, name).to(device) for name in ("layer", "start", "ltd_factor", "window")}
        return replace(self, **values)


@dataclass(frozen=True)
class SpikingNetwork:
    """Content of ``snn.h5``."""

    input_shape: tuple[int, int, int]
    """(C, H, W) of the images."""
    learning: Learning
    layers: tuple[LearnedLayer, ...]
    seed: int
    unfinished: UnfinishedLayer | None = None
    """The layer that is learning."""
    images_digest: str = ""
    """Of the training images (:func:`images_digest`)."""

    @property
    def complete(self) -> bool:
        """All layers have learned."""
        return len(self.layers) == len(self.learning.maps)

    def to(self, device: torch.device | str) -> "SpikingNetwork":
        """A copy whose layers compute on ``device``."""
        layers = tuple(learned.to(device) for learned in self.layers)
        return replace(self, layers=layers, unfinished=self.unfinished and self.unfinished.to(device))

    def simulate(self, spikes: Spikes) -> list[Spikes]:
        """Spikes of every layer, inhibition off, for encoded images bool (T, B, C, H, W), or events."""
        outputs = []
        for learned in self.layers:
            spikes = learned.layer.simulate(spikes, inhibition=False)
            outputs.append(spikes)
        return outputs


def images_digest(images: Tensor) -> str:
    """Digest of uint8 images (N, C, H, W), by which a resumed run knows its images again."""
    digest = hashlib.blake2b(str(tuple(images.shape)).encode(), digest_size=16)
    digest.update(images.contiguous().numpy())
    return digest.hexdigest()


def save_network(path: Path, network: SpikingNetwork, source: DataSource, command: str) -> str:
    """Write ``snn.h5`` for a network learned on images of ``source``; return its digest."""
    layers, history = {}, {}
    for number, learned in enumerate(network.layers, 1):
        layers[f"conv{number}"] = _learned_tree(learned)
        history[f"conv{number}"] = {name: value.numpy() for name, value in learned.history._asdict().items()} | {
            "images_unit": "images",
            "wins_unit": "spikes",
            "mean_change_unit": "conductance",
        }
    progress = {}
    if network.unfinished:
        progress = _unfinished_tree(network.unfinished) | {"layer": len(network.layers) + 1}
    tree = {
        "input": input_tree(source, network.input_shape),
        "learning": asdict(network.learning),
        "unit": {"potentials": "mV", "times": "ms", "rates": "Hz"},
        "layers": layers,
        "history": history,
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
        "history": {name: value.numpy() for name, value in state.history._asdict().items()},
    }


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


def load_network(path: Path) -> tuple[SpikingNetwork, DataSource, str]:
    """Read ``snn.h5``: the network on the CPU, the data it was learned on, and the file's digest.

    Raises :class:`snn.errors.UserError` for missing, truncated, foreign or altered files.
    """
    return read_file(path, SCHEMA, REMEDY, _network_from_tree)


def _network_from_tree(tree: Tree) -> tuple[SpikingNetwork, DataSource, str]:
    learning = from_tree(
        Learning,
        tree["learning"],
        encoding=from_tree(Encoding, tree["learning"]["encoding"]),
        lif=from_tree(LIFParameters, tree["learning"]["lif"]),
        stdp=from_tree(STDPParameters, tree["learning"]["stdp"]),
        homeostasis=from_tree(Homeostasis, tree["learning"]["homeostasis"]),
    )
    dt = learning.encoding.dt
    layers = []
    for name in sorted(tree["layers"], key=lambda name: int(name.removeprefix("conv"))):
        part = tree["layers"][name]
        layers.append(
            LearnedLayer(
                layer=layer_from_tree(part, dt),
                initial_conductance=torch.from_numpy(part["initial_conductance"]),
                learning_gain=part["learning_gain"],
                rate_limits=(part["rate_low"], part["rate_high"]),
                mean_rate=part["mean_rate"],
                saturated=(part["saturated_ltp"], part["saturated_ltd"]),
                history=_history_from_tree(tree["history"][name]),
            )
        )
    unfinished, progress = None, tree["progress"]
    if progress:
        unfinished = UnfinishedLayer(
            layer=layer_from_tree(progress["now"], dt),
            start=layer_from_tree(progress["start"], dt),
            ltd_factor=torch.from_numpy(progress["ltd_factor"]),
            rate_limits=(progress["rate_low"], progress["rate_high"]),
            history=_history_from_tree(progress["history"]),
            window=torch.from_numpy(progress["window"]),
            drift=progress["drift"],
        )
    source, shape = read_input(tree["input"])
    network = SpikingNetwork(shape, learning, tuple(layers), tree["seed"], unfinished, tree["images_digest"])
    return network, source, tree["digest"]


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
