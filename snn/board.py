"""What TensorBoard shows while spiking layers learn: kernels that grow, activity, and homeostasis.

Each layer is a run of its own, ``conv1``, ``conv2`` and so on in one folder, over its updates. All values are those of
the learning itself, at the same updates however often it was interrupted. Nothing is drawn, and nothing is changed.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from snn.figures import kernel_tiles, mosaic
from snn.geometry import ConvGeometry
from snn.network import SpikingNetwork, UnfinishedLayer
from snn.runtime.progress import warn

INTERVAL = 20
"""Updates between two points of a curve, which are means over these updates."""
WIDTH = 480
"""Least width of a picture, in pixels of the screen, if kernels are enlarged by a whole number."""
EVENTS = "events.out.tfevents.*"
"""TensorBoard's files."""


class Board:
    """Writes to ``folder`` what it is called with, for :func:`snn.learner.learn` as ``save``.

    Of each layer the curves have a point every :data:`INTERVAL` updates; kernels as pictures, and histograms, come
    every ``image_interval`` updates (0: none), and at the start and the end. Learning that starts anew replaces what
    the folder held; learning that goes on replaces what was written after the update at which it goes on.
    """

    def __init__(self, folder: Path, image_interval: int = 50) -> None:
        self.folder, self.image_interval = folder, image_interval
        self._writer: SummaryWriter | None = None
        self._given_up = False
        self._neurons = 0

    def __call__(self, network: SpikingNetwork) -> None:
        """After an update, or after the last one of a layer."""
        self._attempt(lambda: self._show(network))

    def _attempt(self, write: Callable[[], None]) -> None:
        """Call ``write``; where the disk refuses it, say so, and write no more: no learning is lost for its logs."""
        if self._given_up:
            return
        try:
            write()
        except OSError as error:
            warn(f"cannot write {self.folder}: {error.strerror or error}; learning goes on without it")
            self._writer, self._given_up = None, True

    def _show(self, network: SpikingNetwork) -> None:
        state = network.unfinished
        if state is None:
            self._finish(network)
            return
        number = len(network.layers) + 1
        writer = self._writer or self._begin(network, state, number)
        updates = state.updates
        if updates % INTERVAL == 0:
            for name, value in self._curves(network, state).items():
                writer.add_scalar(name, value, updates)
        if self.image_interval and updates % self.image_interval == 0:
            self._draw(writer, network, number, state.layer.conductance.cpu().numpy(), updates)
            recent = state.history.wins[-INTERVAL:].sum(0).double()
            writer.add_histogram("activity/spikes_over_fair_share", recent / recent.mean().clamp(min=1e-9), updates)

    def flush(self) -> None:
        """Write all to disk: before a checkpoint, so that it is there if learning goes on from that."""
        if self._writer:
            self._attempt(self._writer.flush)

    def _begin(self, network: SpikingNetwork, state: UnfinishedLayer, number: int) -> SummaryWriter:
        fresh = state.updates == 1
        run = self.folder / f"conv{number}"
        if fresh:
            for file in self.folder.glob(f"conv{'*' if number == 1 else number}/{EVENTS}"):
                file.unlink()
        self._writer = SummaryWriter(str(run), purge_step=None if fresh else state.updates)
        self._neurons = _neurons(network, state)
        if fresh and self.image_interval:
            self._draw(self._writer, network, number, state.start.conductance.cpu().numpy(), 0)
        return self._writer

    def _finish(self, network: SpikingNetwork) -> None:
        number, learned = len(network.layers), network.layers[-1]
        updates = len(learned.history.images)
        if self._writer is None:
            # Learning went on after the last update, of which all was written.
            return
        if self.image_interval and updates % self.image_interval:
            self._draw(self._writer, network, number, learned.layer.conductance.cpu().numpy(), updates)
        self._writer.close()
        self._writer = None

    def _draw(
        self, writer: SummaryWriter, network: SpikingNetwork, number: int, kernels: np.ndarray, updates: int
    ) -> None:
        tiles, what = kernel_tiles(network, number, kernels)
        picture = (mosaic(tiles) * 255).round().astype(np.uint8)
        scale = -(-WIDTH // picture.shape[1])
        picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
        writer.add_image(f"kernels ({what})".replace(" ", "_"), picture, updates, dataformats="HWC")
        writer.add_histogram("learning/conductance", kernels, updates)

    def _curves(self, network: SpikingNetwork, state: UnfinishedLayer) -> dict[str, float]:
        """Values of the curves by name, over the last updates."""
        p, history = network.learning, state.history
        wins, before = history.wins[-INTERVAL:].sum(0).double(), len(history.images) - INTERVAL
        images = (history.images[-1] - (history.images[before - 1] if before else 0)).item()
        g = (state.layer.conductance - p.stdp.g_min) / (p.stdp.g_max - p.stdp.g_min)
        seconds = p.encoding.presentation / 1000
        curves = {
            "activity/spikes_per_image": wins.sum().item() / images,
            "activity/rate_Hz": wins.sum().item() / (images * self._neurons * seconds),
            "activity/active_channels": (wins > 0).sum().item(),
            "activity/largest_share_of_spikes_over_fair_share": (wins.max() / wins.mean().clamp(min=1e-9)).item(),
            "learning/mean_change_of_conductance": history.mean_change[-INTERVAL:].mean().item(),
            "learning/mean_conductance_share_of_range": g.mean().item(),
        }
        if p.homeostasis.threshold_step:
            lowest, highest = state.layer.v_threshold.aminmax()
            curves["homeostasis/threshold_lowest_mV"] = lowest.item()
            curves["homeostasis/threshold_highest_mV"] = highest.item()
        if p.homeostasis.mean_conductance and p.homeostasis.ltd_step:
            lowest, highest = state.ltd_factor.aminmax()
            curves["homeostasis/ltd_factor_lowest"] = lowest.item()
            curves["homeostasis/ltd_factor_highest"] = highest.item()
        return curves


def _neurons(network: SpikingNetwork, state: UnfinishedLayer) -> int:
    """Neurons of the layer that learns."""
    channels, height, width = network.input_shape
    shape = (channels * (2 if network.retina else 1), height, width)
    for layer in (*(learned.layer for learned in network.layers), state.layer):
        shape = ConvGeometry.of(layer.geometry, shape).shape_out
    return math.prod(shape)
