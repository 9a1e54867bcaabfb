"""Pictures of the bridge: responses with the fitted Special Activation Unit, and simulated against converted counts."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bridge.fidelity import Fidelity
from bridge.frontend import ConvertedLayer, Response, SpikingFrontEnd
from snn.layer import SpikingConv2d
from snn.runtime.outputs import Target, save_figure


def draw_responses(
    frontend: SpikingFrontEnd, layers: Sequence[SpikingConv2d], responses: Sequence[Response], target: Target
) -> None:
    """Draw, for each layer, the density of simulated neurons, the single neuron at constant current, and the SAU.

    ``layers`` are those that were converted, ``responses`` those to which their SAUs were fitted.
    """
    hertz = 1000 / frontend.spec.encoding.presentation
    figure = Figure(figsize=(4.2 * len(layers), 3.8), layout="constrained")
    panels = figure.subplots(1, len(layers), squeeze=False)[0]
    parts = zip(panels, layers, responses, frontend.layers, strict=True)
    for number, (panel, spiking, response, converted) in enumerate(parts, 1):
        right = float(np.quantile(response.drive, 0.9995) * 1.05)
        # Inhibited neurons are silent, however low their drive is.
        left = max(min(0.0, float(np.quantile(response.drive, 0.0005))), -right / 3)
        density = _draw_density(panel, response, (left, right), hertz)
        figure.colorbar(density, ax=panel, label="neurons (%)", pad=0.02)
        single = response.single_drive <= right
        rate = response.single_count[single] * hertz
        label = "one neuron, constant current"
        panel.plot(response.single_drive[single], rate, color="C0", linewidth=1.2, linestyle="--", label=label)
        _draw_steps(panel, converted, (left, right), hertz)
        panel.set_xlim(left, right)
        panel.set_ylim(-hertz / 2, (response.count.max() + 2) * hertz)
        panel.set_xlabel("drive: mean current")
        panel.set_title(f"layer {number}, threshold {spiking.v_threshold[0].item():.1f} mV", fontsize=10)
        panel.legend(frameon=False, fontsize=8, loc="upper left")
    panels[0].set_ylabel("rate (Hz)")
    save_figure(figure, target)


def _draw_density(panel: Axes, response: Response, limits: tuple[float, float], hertz: float) -> QuadMesh:
    """Share of all neurons by drive, within limits, and rate; ``hertz`` is the rate of one spike in a presentation."""
    bins = (np.linspace(*limits, 61), np.arange(response.count.max() + 2) - 0.5)
    density, x_edges, y_edges = np.histogram2d(response.drive, response.count, bins=bins)
    percent = np.where(density > 0, density / len(response.drive) * 100, np.nan).T
    return panel.pcolormesh(x_edges, y_edges * hertz, percent, cmap="Greys", norm="log")


def _draw_steps(panel: Axes, layer: ConvertedLayer, limits: tuple[float, float], hertz: float) -> None:
    """The layer's step function; of channels' own functions, the highest."""
    sau, drives = layer.activation, torch.linspace(*limits, 800)
    own = sau.edges.ndim == 2
    steps = sau(drives.expand(1, len(layer.weight), -1))[0] if own else sau(drives)[None]
    label = f"SAU, {sau.edges.shape[-1]} steps" + (" (one channel's)" if own else "")
    panel.plot(drives, steps[steps.amax(1).argmax()] * hertz, color="C3", linewidth=1.8, label=label)


def draw_fidelity(fidelity: Sequence[Fidelity], presentation: float, target: Target) -> None:
    """Draw, for each layer, how often each pair of simulated and converted count occurs; ``presentation`` in ms."""
    figure = Figure(figsize=(4.2 * len(fidelity), 3.9), layout="constrained")
    panels = figure.subplots(1, len(fidelity), squeeze=False)[0]
    for number, (panel, layer) in enumerate(zip(panels, fidelity, strict=True), 1):
        percent = (layer.confusion.double() / layer.confusion.sum() * 100).numpy()
        used = np.flatnonzero(percent.sum(0) + percent.sum(1) > 0).max() + 1
        percent = percent[:used, :used]
        bounds = np.arange(used + 1) - 0.5
        shown = np.where(percent > 0, percent, np.nan)
        image = panel.pcolormesh(bounds, bounds, shown, cmap="viridis", norm="log", vmin=1e-3, vmax=100)
        panel.plot(bounds[[0, -1]], bounds[[0, -1]], color="white", linewidth=0.8, linestyle=":")
        panel.set_aspect("equal")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel("converted: SAU output (spikes)")
        panel.set_title(
            f"layer {number}: correlation {layer.correlation:.3f},\noff in {layer.off_share:.1%} of neurons",
            fontsize=10,
        )
    panels[0].set_ylabel(f"simulated (spikes in {presentation:g} ms)")
    figure.colorbar(image, ax=panels, label="neurons (%)", pad=0.02)
    save_figure(figure, target)
