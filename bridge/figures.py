"""Pictures of the bridge: simulated responses with the fitted Special Activation Unit."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from bridge.frontend import Response, SpikingFrontEnd
from bridge.response import neuron_response
from snn.command import save_figure
from snn.weights import SpikingNetwork


def draw_responses(frontend: SpikingFrontEnd, responses: list[Response], network: SpikingNetwork, path: Path) -> None:
    """Per layer: simulated neurons as a density, the single neuron at constant current, and the SAU."""
    p = network.learning.encoding
    figure = Figure(figsize=(4.2 * len(responses), 3.8), layout="constrained")
    panels = figure.subplots(1, len(responses), squeeze=False)[0]
    one_spike = 1000 / p.presentation
    for number, (panel, layer, response, learned) in enumerate(
        zip(panels, frontend.layers, responses, network.layers, strict=True), 1
    ):
        sau = layer.activation.cpu()
        right = max(sau.edges[-1].item() * 1.1, np.quantile(response.drive, 0.999))
        drives = torch.linspace(0, float(right), 800)
        levels = np.arange(round(response.rate.max() / one_spike) + 2) - 0.5
        density, x_edges, y_edges = np.histogram2d(
            response.drive, response.rate, bins=(np.linspace(0, right, 61), levels * one_spike)
        )
        image = panel.pcolormesh(
            x_edges,
            y_edges,
            np.where(density > 0, density / density.sum() * 100, np.nan).T,
            cmap="Greys",
            norm="log",
        )
        figure.colorbar(image, ax=panel, label="neurons (%)", pad=0.02)
        single = neuron_response(learned.layer, drives, p.presentation)
        panel.plot(drives, single, color="C0", linewidth=1.2, linestyle="--", label="one neuron, constant current")
        with torch.no_grad():
            panel.plot(drives, sau(drives), color="C3", linewidth=1.8, label=f"SAU, {len(sau.edges)} steps")
        panel.set_xlim(0, right)
        panel.set_ylim(-one_spike / 2, max(response.rate.max(), sau.heights[-1].item()) + one_spike)
        panel.set_xlabel("drive: mean current")
        panel.set_title(f"layer {number}, threshold {learned.layer.v_threshold[0].item():.1f} mV", fontsize=10)
        panel.legend(frameon=False, fontsize=8, loc="upper left")
    panels[0].set_ylabel("rate (Hz)")
    save_figure(figure, path)
