"""Pictures of the bridge: responses with the fitted Special Activation Unit, and simulation against conversion."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bridge.fidelity import Fidelity
from bridge.frontend import Response, SpikingFrontEnd
from snn.network import SpikingNetwork
from snn.runtime.outputs import save_figure


def draw_responses(frontend: SpikingFrontEnd, responses: list[Response], network: SpikingNetwork, path: Path) -> None:
    """Per layer: simulated neurons as a density, the single neuron at constant current, and the SAU."""
    one_spike = 1000 / network.learning.encoding.presentation
    figure = Figure(figsize=(4.2 * len(responses), 3.8), layout="constrained")
    panels = figure.subplots(1, len(responses), squeeze=False)[0]
    for number, (panel, layer, response, learned) in enumerate(
        zip(panels, frontend.layers, responses, network.layers, strict=True), 1
    ):
        sau = layer.activation
        right = np.quantile(response.drive, 0.9995) * 1.05
        drives = torch.linspace(0, float(right), 800)
        levels = np.arange(response.count.max() + 2) - 0.5
        density, x_edges, y_edges = np.histogram2d(
            response.drive, response.count, bins=(np.linspace(0, right, 61), levels)
        )
        image = panel.pcolormesh(
            x_edges,
            y_edges * one_spike,
            np.where(density > 0, density / density.sum() * 100, np.nan).T,
            cmap="Greys",
            norm="log",
        )
        figure.colorbar(image, ax=panel, label="neurons (%)", pad=0.02)
        single = response.single_drive <= right
        panel.plot(
            response.single_drive[single],
            response.single_count[single] * one_spike,
            color="C0",
            linewidth=1.2,
            linestyle="--",
            label="one neuron, constant current",
        )
        # Of channels' own functions, the one of most steps stands for all.
        maps = len(layer.weight)
        fitted = sau(drives.expand(1, maps, -1))[0] if sau.edges.ndim == 2 else sau(drives)[None]
        shown = fitted[fitted.amax(1).argmax()] * one_spike
        label = f"SAU, {sau.edges.shape[-1]} steps" + (" (one channel's)" if sau.edges.ndim == 2 else "")
        panel.plot(drives, shown, color="C3", linewidth=1.8, label=label)
        panel.set_xlim(0, right)
        panel.set_ylim(-one_spike / 2, (levels[-1] + 1.5) * one_spike)
        panel.set_xlabel("drive: mean current")
        panel.set_title(f"layer {number}, threshold {learned.layer.v_threshold[0].item():.1f} mV", fontsize=10)
        panel.legend(frameon=False, fontsize=8, loc="upper left")
    panels[0].set_ylabel("rate (Hz)")
    save_figure(figure, path)


def draw_fidelity(fidelities: list[Fidelity], presentation: float, path: Path) -> None:
    """Per layer: how often the conversion gives each count, by simulated count; ``presentation`` in ms."""
    figure = Figure(figsize=(4.2 * len(fidelities), 3.9), layout="constrained")
    panels = figure.subplots(1, len(fidelities), squeeze=False)[0]
    for number, (panel, fidelity) in enumerate(zip(panels, fidelities, strict=True), 1):
        share = (fidelity.confusion.double() / fidelity.confusion.sum() * 100).numpy()
        used = np.flatnonzero(share.sum(0) + share.sum(1) > 0)
        share = share[: used.max() + 1, : used.max() + 1]
        bounds = np.arange(len(share) + 1) - 0.5
        shown = np.where(share > 0, share, np.nan)
        image = panel.pcolormesh(bounds, bounds, shown, cmap="viridis", norm="log", vmin=1e-3, vmax=100)
        panel.plot(bounds[[0, -1]], bounds[[0, -1]], color="white", linewidth=0.8, linestyle=":")
        panel.set_aspect("equal")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        panel.set_xlabel("converted: SAU output (spikes)")
        panel.set_title(
            f"layer {number}: correlation {fidelity.correlation:.3f},\noff in {fidelity.off_share:.1%} of neurons",
            fontsize=10,
        )
    panels[0].set_ylabel(f"simulated (spikes in {presentation:g} ms)")
    figure.colorbar(image, ax=panels, label="neurons (%)", pad=0.02)
    save_figure(figure, path)
