"""Pictures of what the spiking layers learned."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from snn.network import SpikingNetwork
from snn.runtime.outputs import save_figure


def draw_kernels(network: SpikingNetwork, path: Path) -> None:
    """Kernels of every layer, and a histogram of conductances before and after learning.

    First-layer kernels of colour images are shown in colour, each stretched to its own range; deeper kernels as their
    mean over input maps.
    """
    rows = len(network.layers)
    figure = Figure(figsize=(9, 2.6 * rows), layout="constrained")
    grid = figure.subplots(rows, 2, squeeze=False, width_ratios=(2.2, 1))
    for number, (learned, (left, right)) in enumerate(zip(network.layers, grid, strict=True), 1):
        kernels = learned.layer.conductance.numpy()
        colour = kernels.shape[1] == 3
        tiles = kernels.transpose(0, 2, 3, 1) if colour else kernels.mean(1)[..., None]
        left.imshow(_mosaic(tiles).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        left.set_axis_off()
        what = "colour" if colour else ("conductance" if kernels.shape[1] == 1 else "mean over inputs")
        left.set_title(f"layer {number}: {len(kernels)} kernels ({what}, each at full contrast)", fontsize=10)
        bins = np.linspace(network.learning.stdp.g_min, network.learning.stdp.g_max, 41)
        right.hist(learned.initial_conductance.flatten().numpy(), bins, color="0.75", label="before")
        right.hist(kernels.ravel(), bins, histtype="step", color="C0", linewidth=1.5, label="after")
        right.set_xlabel("conductance G")
        right.set_ylabel("synapses")
        right.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _mosaic(tiles: np.ndarray) -> np.ndarray:
    """(N, h, w, C) kernels side by side, white gaps between, each stretched to [0, 1]."""
    low, high = tiles.min((1, 2, 3), keepdims=True), tiles.max((1, 2, 3), keepdims=True)
    tiles = (tiles - low) / np.maximum(high - low, 1e-9)
    count, height, width, channels = tiles.shape
    columns = min(count, 14)
    rows = -(-count // columns)
    gap = 1
    canvas = np.ones((rows * (height + gap) + gap, columns * (width + gap) + gap, channels))
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * (height + gap) + gap, (index % columns) * (width + gap) + gap
        canvas[top : top + height, left : left + width] = tile
    return canvas
