"""Pictures of what the retina and the spiking layers learned."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from snn.network import LearnedLayer, SpikingNetwork
from snn.retina import Retina
from snn.runtime.outputs import Target, save_figure

SIGNED = "ON less OFF"
COLOURS = ("tab:red", "tab:green", "tab:blue")


def draw_kernels(network: SpikingNetwork, target: Target) -> None:
    """The retina's filters, kernels of every layer, and a histogram of conductances before and after learning.

    Kernels on contrast channels are shown as what they prefer: ON less OFF, grey where both are alike. Kernels on
    intensities are stretched to their own range each, in colour for colour images; deeper kernels are shown as their
    mean over input maps.
    """
    rows = len(network.layers) + bool(network.retina)
    figure = Figure(figsize=(9, 2.6 * rows), layout="constrained")
    grid = list(figure.subplots(rows, 2, squeeze=False, width_ratios=(2.2, 1)))
    if network.retina:
        _draw_retina(network.retina, *grid.pop(0))
    for number, (learned, (left, right)) in enumerate(zip(network.layers, grid, strict=True), 1):
        kernels = learned.layer.conductance.numpy()
        tiles, what = kernel_tiles(network, number, kernels)
        what += "" if what == SIGNED else ", each at full contrast"
        _show(left, tiles, f"layer {number}: {len(kernels)} kernels ({what})")
        _draw_histogram(right, learned, network)
    save_figure(figure, target)


def kernel_tiles(network: SpikingNetwork, number: int, kernels: np.ndarray) -> tuple[np.ndarray, str]:
    """Kernels (N, C_in, k, k) of layer ``number``, from 1, as pictures (N, k, k, C) in [0, 1], and what they show."""
    if number == 1 and network.retina:
        return signed_contrast(kernels), SIGNED
    if kernels.shape[1] == 3 and number == 1:
        return _stretched(kernels.transpose(0, 2, 3, 1)), "colour"
    return _stretched(kernels.mean(1)[..., None]), "conductance" if kernels.shape[1] == 1 else "mean over inputs"


def signed_contrast(kernels: np.ndarray) -> np.ndarray:
    """ON less OFF of kernels (N, 2 C, k, k) as pictures (N, k, k, C) in [0, 1]: 0.5 is no preference."""
    on, off = np.split(kernels, 2, axis=1)
    return _around_grey(on - off)


def _around_grey(signed: np.ndarray) -> np.ndarray:
    """(N, C, k, k) as pictures (N, k, k, C) around 0.5, each at full contrast."""
    largest = np.abs(signed).max((1, 2, 3), keepdims=True)
    return (0.5 + 0.5 * signed / np.maximum(largest, 1e-9)).transpose(0, 2, 3, 1)


def _draw_retina(retina: Retina, left: Axes, right: Axes) -> None:
    """Filters as pictures, and each colour's weights for itself along a line through the centre."""
    filters = retina.filters.cpu().numpy()
    colours, centre = len(filters), retina.kernel_size // 2
    _show(left, _around_grey(filters), f"retina: filters of the {2 * colours} contrast channels (OFF is ON reversed)")
    for colour in range(colours):
        line = filters[colour, colour, centre]
        right.plot(np.arange(-centre, centre + 1), line, color=COLOURS[colour] if colours == 3 else "0.2")
    right.axhline(0, color="0.7", linewidth=0.8)
    right.set_xlabel("distance from the centre (pixels)")
    right.set_ylabel("contrast per intensity")


def _draw_histogram(axes: Axes, learned: LearnedLayer, network: SpikingNetwork) -> None:
    bins = np.linspace(network.learning.stdp.g_min, network.learning.stdp.g_max, 41).tolist()
    axes.hist(learned.initial_conductance.flatten().numpy(), bins, color="0.75", label="before")
    after = learned.layer.conductance.numpy().ravel()
    axes.hist(after, bins, histtype="step", color="C0", linewidth=1.5, label="after")
    axes.set_xlabel("conductance G")
    axes.set_ylabel("synapses")
    axes.legend(frameon=False, fontsize=8)


def _show(axes: Axes, tiles: np.ndarray, title: str) -> None:
    axes.imshow(mosaic(tiles).squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)


def _stretched(tiles: np.ndarray) -> np.ndarray:
    """(N, h, w, C) pictures, each stretched to [0, 1]."""
    low, high = tiles.min((1, 2, 3), keepdims=True), tiles.max((1, 2, 3), keepdims=True)
    return (tiles - low) / np.maximum(high - low, 1e-9)


def mosaic(tiles: np.ndarray) -> np.ndarray:
    """(N, h, w, C) pictures in [0, 1] side by side, white gaps between."""
    count, height, width, channels = tiles.shape
    columns = min(count, 14)
    rows = -(-count // columns)
    gap = 1
    canvas = np.ones((rows * (height + gap) + gap, columns * (width + gap) + gap, channels))
    for index, tile in enumerate(tiles):
        top, left = (index // columns) * (height + gap) + gap, (index % columns) * (width + gap) + gap
        canvas[top : top + height, left : left + width] = tile
    return canvas
