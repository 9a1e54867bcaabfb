"""A learned spiking network and the history of its learning."""

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from snn.engines.base import Engine
from snn.growing import Growing
from snn.layer import SpikingConv2d
from snn.learning import Learning
from snn.retina import Retina, encoder_input
from snn.spikes import Spikes


@dataclass(frozen=True, eq=False)
class LayerHistory:
    """One entry per mini-batch update of a layer."""

    columns: tuple[Growing, Growing, Growing]

    @classmethod
    def of(cls, images: Tensor, wins: Tensor, mean_change: Tensor) -> "LayerHistory":
        """The history with these values."""
        return cls((Growing.of(images), Growing.of(wins), Growing.of(mean_change)))

    @classmethod
    def empty(cls, maps: int) -> "LayerHistory":
        """Before the first update."""
        images, wins = torch.empty(0, dtype=torch.int64), torch.empty(0, maps, dtype=torch.int64)
        return cls.of(images, wins, torch.empty(0, dtype=torch.float64))

    @property
    def images(self) -> Tensor:
        """Images seen up to and including the update, int64 (U,)."""
        return self.columns[0].values

    @property
    def wins(self) -> Tensor:
        """Postsynaptic spikes of each channel, int64 (U, C_out)."""
        return self.columns[1].values

    @property
    def mean_change(self) -> Tensor:
        """Mean |dG| over the layer's synapses, float64 (U,)."""
        return self.columns[2].values

    def with_update(self, images: int, wins: Tensor, mean_change: float) -> "LayerHistory":
        """The history with one more update, of ``images`` images; ``wins`` (C_out,), ``mean_change`` a conductance."""
        seen = images + (int(self.images[-1]) if len(self.images) else 0)
        rows = torch.tensor([seen]), wins[None], torch.tensor([mean_change], dtype=torch.float64)
        first, second, third = (column.extend(row) for column, row in zip(self.columns, rows, strict=True))
        return LayerHistory((first, second, third))


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
        """Spikes of each channel over the mean channel's, in the last quarter of the updates, float64 (C_out,)."""
        updates = len(self.history.wins)
        wins = self.history.wins[updates * 3 // 4 :].sum(0).double()
        return wins / wins.mean().clamp(min=1e-9)

    @property
    def winning_share(self) -> float:
        """Share of channels that fire at least a fifth as often as the mean channel."""
        return (self.fair_shares >= 0.2).double().mean().item()


@dataclass(frozen=True)
class UnfinishedLayer:
    """A layer while it learns: all that its next update depends on, apart from the layers below."""

    layer: SpikingConv2d
    start: SpikingConv2d
    """As it was before the first update."""
    ltd_factor: Tensor
    """Factor of each channel's LTD magnitude, float64 (C_out, 1, 1, 1)."""
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
    retina: Retina | None = field(default=None, compare=False)
    """Learned from the training images, or None: intensities are encoded."""

    @property
    def complete(self) -> bool:
        """All layers have learned."""
        return len(self.layers) == len(self.learning.maps)

    def to(self, device: torch.device | str) -> "SpikingNetwork":
        """A copy whose layers compute on ``device``."""
        layers = tuple(learned.to(device) for learned in self.layers)
        retina = self.retina and self.retina.copy_to(device)
        return replace(self, layers=layers, unfinished=self.unfinished and self.unfinished.to(device), retina=retina)

    def encode(self, engine: Engine, images: Tensor, seeds: Tensor) -> Spikes:
        """Input spikes of uint8 images (B, C, H, W), through the retina if there is one."""
        return engine.encode(encoder_input(images, self.retina), self.learning.encoding, seeds)

    def simulate(self, engine: Engine, spikes: Spikes) -> list[Spikes]:
        """Spikes of every layer, inhibition off, for encoded images bool (T, B, C, H, W), or events."""
        return [spikes := engine.simulate(learned.layer, spikes, inhibition=False) for learned in self.layers]
