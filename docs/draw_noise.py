"""Draws accuracy on CIFAR-10 under noise from the CSV files in results.

Pictures: figures/cifar10_noise.png, results/noise.png and, of MobileNetV2, results/mobilenet.png.

python docs/draw_noise.py
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hybrid.paper.numbers import paper_rows
from hybrid.paper.results import read_rows
from snn.runtime.outputs import save_figure

DOCS = Path(__file__).parent
TABLES = dict.fromkeys(("table2", "unseen", "ablations"), "fast_cnn")
TABLES |= dict.fromkeys(("table2-mobilenet", "unseen-mobilenet"), "mobilenet_v2")
"""The backbone of each CSV file."""
WHITE = ("clean", "awgn:40", "awgn:30", "awgn:25", "awgn:20", "awgn:15", "awgn:12")
IMPULSES = ("clean", "salt-pepper:0.05", "salt-pepper:0.20")


@dataclass(frozen=True)
class Line:
    """How a network is drawn; open markers and broken lines are of trainings without spike counts."""

    label: str
    colour: str
    marker: str = "o"
    counts: bool = False


MAIN = {
    "robust safe, spike counts fast_cnn": Line("SAFE (robust safe, spike counts)", "C1", counts=True),
    "retina safe fast_cnn": Line("retina safe", "C1", "s"),
    "baseline, spike counts fast_cnn": Line("baseline, spike counts", "C0", counts=True),
    "baseline fast_cnn": Line("baseline", "C0", "s"),
}
"""Lines by the networks' names in the tables, with the backbone."""
PAPER = {
    "paper: safe mobilenet_v2": Line("paper: SAFE", "0.6", "D"),
    "paper: baseline mobilenet_v2": Line("paper: baseline", "0.6", "v"),
}
CONTROLS = MAIN | {
    "retina safe, random conductances fast_cnn": Line("retina safe, random conductances", "C2", "^"),
    "average-filter fast_cnn": Line("average filter", "C4", "x"),
} | PAPER  # fmt: skip
MOBILE = {
    "robust safe, spike counts mobilenet_v2": Line("SAFE (robust safe, spike counts)", "C1", counts=True),
    "baseline mobilenet_v2": Line("baseline", "C0", "s"),
} | PAPER  # fmt: skip


@cache
def accuracies() -> dict[tuple[str, str], tuple[float, float]]:
    """Mean accuracy and its deviation over the trainings (0 of a single one), in %, by network and condition."""
    found = {}
    for table, backbone in TABLES.items():
        for row in read_rows(DOCS / "results" / f"{table}.csv"):
            # Some tables name the backbone.
            network = f"{row['model'].removesuffix(f' {backbone}')} {backbone}"
            found[network, row["condition"]] = float(row["ours_percent"]), float(row["deviation_percent"] or 0)
    for row in (*paper_rows(2), *paper_rows(5)):
        found[f"paper: {row['model']}", str(row["condition"])] = float(row["value"]), 0.0
    return found


def draw(axes: Axes, lines: dict[str, Line], conditions: tuple[str, ...], ticks: list[str], label: str) -> None:
    """Lines of all networks over the conditions, but of those that were not measured under all of them."""
    found = accuracies()
    for network, line in lines.items():
        if not all((network, condition) in found for condition in conditions):
            continue
        means, deviations = zip(*(found[network, condition] for condition in conditions), strict=True)
        axes.errorbar(
            range(len(conditions)), means, deviations, color=line.colour, marker=line.marker, label=line.label,
            markerfacecolor=line.colour if line.counts else "white", linestyle="-" if line.counts else "--", capsize=3,
        )  # fmt: skip
    axes.set_xticks(range(len(conditions)), ticks)
    axes.set_xlabel(label, size=11)
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)


def draw_both(lines: dict[str, Line], height: float, path: Path) -> None:
    """Draw accuracy under white noise beside that with impulses."""
    figure = Figure(figsize=(7, height), layout="constrained")
    white, impulses = figure.subplots(1, 2, sharey=True, width_ratios=(7, 4))
    draw(white, lines, WHITE, ["clean", *(text.split(":")[1] for text in WHITE[1:])], "white noise: SNR (dB)")
    draw(impulses, lines, IMPULSES, ["clean", "5 %", "20 %"], "impulses: share of pixels")
    white.set_ylabel("accuracy on CIFAR-10 (%)")
    handles, labels = white.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    save_figure(figure, path)


def main() -> None:
    draw_both(MAIN, 4.2, DOCS / "figures" / "cifar10_noise.png")
    draw_both(CONTROLS, 5.2, DOCS / "results" / "noise.png")
    draw_both(MOBILE, 4.2, DOCS / "results" / "mobilenet.png")


if __name__ == "__main__":
    main()
