"""First layers of presets of snn.learn, to be timed side by side, and how fast they learn.

The presets differ in input channels and in kernels. A layer between them has the intensities of one and the kernels of
the other, so that each effect is seen alone.
"""

from collections.abc import Iterable
from dataclasses import replace
from time import perf_counter

import numpy as np
import torch
from torch import Tensor

from snn.engines.base import choose_engine
from snn.learner import LayerLearner
from snn.learning import PRESETS, Learning
from snn.network import SpikingNetwork, UnfinishedLayer
from snn.retina import learn_retina
from snn.runtime.processes import Processes
from snn.runtime.progress import progress

UPDATES = 10
"""Updates in a timed repeat."""
WARM_UP = 30
"""Updates before the first one: spikes get fewer while channels become selective."""


def first_layers() -> dict[str, Learning]:
    """Layer 1 of preset cifar10, the same with the kernels and maps of preset retina, and layer 1 of retina."""
    paper, retina = (first_layer(PRESETS[name]) for name in ("cifar10", "retina"))
    between = replace(paper, maps=retina.maps, kernel_sizes=retina.kernel_sizes, strides=retina.strides)
    return {"cifar10": paper, "cifar10, kernels of retina": between, "retina": retina}


def first_layer(p: Learning) -> Learning:
    """Settings of its first layer alone."""
    return replace(p, maps=p.maps[:1], kernel_sizes=p.kernel_sizes[:1], strides=p.strides[:1])


def before_learning(images: Tensor, p: Learning, seed: int) -> SpikingNetwork:
    """The network for images, uint8 (N, C, H, W), with its retina and without layers."""
    channels, height, width = images.shape[1:]
    return SpikingNetwork((channels, height, width), p, (), seed, retina=learn_retina(images, p.retina, seed))


class Learner:
    """A first layer that learns on images, uint8 (N, C, H, W)."""

    def __init__(self, images: Tensor, p: Learning, seed: int) -> None:
        self.p, network = p, before_learning(images, p, seed)
        self._layer = LayerLearner(images, 0, network, torch.device("cpu"), choose_engine("events"), Processes())
        self._state = self._layer.start()
        self.update(WARM_UP)

    def update(self, count: int) -> UnfinishedLayer:
        """The layer after so many more updates."""
        for _ in range(count):
            self._state = self._layer.step(self._state)
        return self._state


def learning_speed(images: Tensor, repeats: int, seed: int) -> list[dict]:
    """One row for each repeat of each of :func:`first_layers`; they take turns."""
    learners = {name: Learner(images, p, seed) for name, p in first_layers().items()}
    rows = []
    for repeat in progress(range(repeats), "learning", "repeat"):
        for name, learner in learners.items():
            began = perf_counter()
            state = learner.update(UPDATES)
            seconds = perf_counter() - began
            weights, seen = state.layer.conductance, UPDATES * learner.p.batch_size
            rows.append(
                {
                    "layer": name,
                    "input_channels": weights.shape[1],
                    "maps": weights.shape[0],
                    "kernel_size": weights.shape[-1],
                    "repeat": repeat,
                    "images_per_s": seen / seconds,
                    "ms_per_image": 1000 * seconds / seen,
                    "post_spikes_per_image": state.history.wins[-UPDATES:].sum().item() / seen,
                }
            )
    return rows


def learning_table(rows: Iterable[dict]) -> str:
    """Medians, ranges, and time beside the layer with the same kernels and fewer inputs, in Markdown."""
    layers: dict[str, list[dict]] = {}
    for row in rows:
        layers.setdefault(row["layer"], []).append(row)
    lines = [
        "| first layer of preset | input channels | maps | kernel | images/s (range) | ms per image "
        "| time over the row above | inputs over the row above | spikes/image |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    above: tuple[float, int] | None = None
    for name, found in layers.items():
        speeds = [row["images_per_s"] for row in found]
        middle, spikes = (np.median([row[key] for row in found]) for key in ("ms_per_image", "post_spikes_per_image"))
        inputs, maps, kernel = (found[0][key] for key in ("input_channels", "maps", "kernel_size"))
        ratios = f"{middle / above[0]:.2f} | {inputs / above[1]:.3g}" if above else " | "
        lines.append(
            f"| {name} | {inputs} | {maps} | {kernel} x {kernel} | {np.median(speeds):.3g} "
            f"({min(speeds):.3g} to {max(speeds):.3g}) | {middle:.2f} | {ratios} | {spikes:.0f} |"
        )
        above = middle, inputs
    return "\n".join(lines)
