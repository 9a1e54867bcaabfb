"""``snn.h5``: the learned spiking layers, how they were learned, and the history of learning."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from snn.data import DataSource
from snn.encode import Encoding
from snn.h5file import Tree, from_tree, input_tree, read_file, read_input, write_file
from snn.layer import LayerParameters, SpikingConv2d
from snn.neuron import LIFParameters
from snn.settings import Homeostasis, Learning
from snn.stdp import STDPParameters

SCHEMA = "snn/1"
REMEDY = "python -m snn.learn --out FILE"


class LayerHistory(NamedTuple):
    """One entry per mini-batch update of a layer."""

    images: Tensor
    """Images seen up to and including the update, int64 (U,)."""
    wins: Tensor
    """Postsynaptic spikes of each map, int64 (U, C_out)."""
    mean_change: Tensor
    """Mean |dG| over the layer's synapses, float64 (U,)."""


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
    def winning_share(self) -> float:
        """Share of maps that fired at least once under inhibition in the last quarter of the updates."""
        updates = len(self.history.wins)
        return (self.history.wins[updates * 3 // 4 :].sum(0) > 0).float().mean().item()


@dataclass(frozen=True)
class SpikingNetwork:
    """Content of ``snn.h5``."""

    input_shape: tuple[int, int, int]
    """(C, H, W) of the images."""
    learning: Learning
    layers: tuple[LearnedLayer, ...]
    seed: int

    def to(self, device: torch.device | str) -> "SpikingNetwork":
        """A copy whose layers compute on ``device``."""
        return replace(self, layers=tuple(learned.to(device) for learned in self.layers))

    def simulate(self, spikes: Tensor) -> list[Tensor]:
        """Spikes of every layer, inhibition off, for encoded images bool (T, B, C, H, W)."""
        outputs = []
        for learned in self.layers:
            spikes = learned.layer.simulate(spikes, inhibition=False)
            outputs.append(spikes)
        return outputs


def save_network(path: Path, network: SpikingNetwork, source: DataSource, command: str) -> str:
    """Write ``snn.h5`` for a network learned on images of ``source``; return its digest."""
    layers, history = {}, {}
    for number, learned in enumerate(network.layers, 1):
        layers[f"conv{number}"] = _layer_tree(learned)
        history[f"conv{number}"] = {name: value.numpy() for name, value in learned.history._asdict().items()} | {
            "images_unit": "images",
            "wins_unit": "spikes",
            "mean_change_unit": "conductance",
        }
    tree = {
        "input": input_tree(source, network.input_shape),
        "learning": asdict(network.learning),
        "unit": {"potentials": "mV", "times": "ms", "rates": "Hz"},
        "layers": layers,
        "history": history,
    }
    return write_file(path, SCHEMA, tree, seed=network.seed, command=command)


def _layer_tree(learned: LearnedLayer) -> Tree:
    layer = learned.layer
    return {
        "conductance": layer.conductance.numpy(),
        "initial_conductance": learned.initial_conductance.numpy(),
        "conductance_unit": "1 (g_min to g_max)",
        "gain": layer.gain.numpy(),
        "gain_unit": "current of Eq. 1 per conductance",
        "v_threshold": layer.v_threshold.numpy(),
        "v_threshold_unit": "mV",
        "learning_gain": learned.learning_gain,
        "rate_low": learned.rate_limits[0],
        "rate_high": learned.rate_limits[1],
        "mean_rate": learned.mean_rate,
        "rate_unit": "Hz",
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
    layers = []
    for name in sorted(tree["layers"], key=lambda name: int(name.removeprefix("conv"))):
        part, history = tree["layers"][name], tree["history"][name]
        layers.append(
            LearnedLayer(
                layer=SpikingConv2d(
                    conductance=torch.from_numpy(part["conductance"]),
                    gain=torch.from_numpy(part["gain"]),
                    v_threshold=torch.from_numpy(part["v_threshold"]),
                    geometry=from_tree(LayerParameters, part["geometry"]),
                    lif=from_tree(LIFParameters, part["lif"]),
                    dt=learning.encoding.dt,
                ),
                initial_conductance=torch.from_numpy(part["initial_conductance"]),
                learning_gain=part["learning_gain"],
                rate_limits=(part["rate_low"], part["rate_high"]),
                mean_rate=part["mean_rate"],
                history=LayerHistory(*(torch.from_numpy(history[field]) for field in LayerHistory._fields)),
            )
        )
    source, shape = read_input(tree["input"])
    return SpikingNetwork(shape, learning, tuple(layers), tree["seed"]), source, tree["digest"]
