"""Draws figures/cifar10_noise.png, accuracy on CIFAR-10 under noise, from the CSV files in results.

python docs/draw_noise.py
"""

import csv
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from snn.runtime.outputs import save_figure

DOCS = Path(__file__).parent
NETWORKS = {
    "robust safe, spike counts": ("SAFE, spike counts, auxiliary CNN", "C1", "o"),
    "retina safe": ("a spiking layer alone", "C1", "s"),
    "baseline, spike counts": ("baseline, spike counts", "C0", "o"),
    "baseline": ("baseline", "C0", "s"),
}
"""Names in the tables, and label, colour and marker in the picture; open markers are trained without spike counts."""
WHITE = ("clean", "awgn:40", "awgn:30", "awgn:25", "awgn:20", "awgn:15", "awgn:12")
IMPULSES = ("clean", "salt-pepper:0.05", "salt-pepper:0.20")


def accuracies() -> dict[tuple[str, str], tuple[float, float]]:
    """Mean accuracy and its deviation over the trainings, in %, by network and condition."""
    found = {}
    for table in ("table2", "unseen"):
        with open(DOCS / "results" / f"{table}.csv", newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                network = row["model"].removesuffix(" fast_cnn")
                found[network, row["condition"]] = float(row["ours_percent"]), float(row["deviation_percent"] or 0)
    return found


def draw(axes: Axes, conditions: tuple[str, ...], ticks: list[str], label: str) -> None:
    """Lines of all networks over the conditions."""
    found = accuracies()
    for network, (name, colour, marker) in NETWORKS.items():
        means, deviations = zip(*(found[network, condition] for condition in conditions), strict=True)
        filled = colour if marker == "o" else "white"
        axes.errorbar(
            range(len(conditions)), means, deviations, color=colour, marker=marker, markerfacecolor=filled, capsize=3,
            linestyle="-" if marker == "o" else "--", label=name,
        )  # fmt: skip
    axes.set_xticks(range(len(conditions)), ticks)
    axes.set_xlabel(label)
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)


def main() -> None:
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    white, impulses = figure.subplots(1, 2, sharey=True, width_ratios=(7, 4))
    draw(white, WHITE, ["clean", *(text.split(":")[1] for text in WHITE[1:])], "white noise: SNR (dB)")
    draw(impulses, IMPULSES, ["clean", "5 %", "20 %"], "impulses: share of pixels")
    white.set_ylabel("accuracy on CIFAR-10 (%)")
    handles, labels = white.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    for axes in (white, impulses):
        axes.xaxis.label.set_size(11)
    save_figure(figure, DOCS / "figures" / "cifar10_noise.png")


if __name__ == "__main__":
    main()
