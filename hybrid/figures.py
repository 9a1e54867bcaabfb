"""Pictures of training, of accuracy under noise, and of what stays within its step."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hybrid.lightning_module import WATCHED
from hybrid.storage import TrainedModel
from snn.runtime.outputs import save_figure

COLOURS = [*(f"C{number}" for number in range(10)), "black"]


def draw_training(model: TrainedModel, title: str, path: Path) -> None:
    """Loss and accuracy per epoch, on training and held-out images (paper, Fig. 5), and under watched noise."""
    watched = [name for name in model.history if name.startswith(WATCHED)]
    figure = Figure(figsize=(10 if watched else 8, 3.4), layout="constrained")
    loss, accuracy = figure.subplots(1, 2)
    epochs = np.arange(1, len(model.history["train_loss"]) + 1)
    for part, label, colour in (("train", "training (augmented)", "C0"), ("val", "held out", "C1")):
        loss.plot(epochs, model.history[f"{part}_loss"], color=colour, label=label)
        accuracy.plot(epochs, 100 * model.history[f"{part}_accuracy"], color=colour, label=label)
    for number, name in enumerate(watched, 2):
        label = f"held out, {name.removeprefix(WATCHED)}"
        accuracy.plot(epochs, 100 * model.history[name], color=COLOURS[number % len(COLOURS)], label=label)
    loss.set(xlabel="epoch", ylabel="cross-entropy (nat)")
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
    for panel in (loss, accuracy):
        for end in np.cumsum(model.cycles)[:-1]:
            # Where a finished training went on.
            panel.axvline(end + 0.5, color="0.6", linestyle=":")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        if not watched:
            panel.legend(frameon=False)
    if watched:
        # Many lines leave no room within.
        figure.legend(*accuracy.get_legend_handles_labels(), loc="outside right center", frameon=False)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def draw_noise(rows: list[dict], path: Path) -> None:
    """Draw accuracy against SNR with the clean accuracy beside it, and bars for all other conditions.

    Rows are those of :func:`hybrid.evaluation.summarise`, one for each model and condition.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    conditions = {row["condition"]: row["snr_dB"] != "" for row in rows}
    has_snr = any(conditions.values())
    others = [condition for condition, with_snr in conditions.items() if not with_snr and condition != "clean"]
    panels = has_snr + bool(others) or 1
    figure = Figure(figsize=(5.2 * panels, 3.8), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    if has_snr or not others:
        _draw_snr(axes.pop(0), rows, models)
    if others:
        _draw_bars(axes.pop(0), rows, models, others)
    save_figure(figure, path)


def _draw_snr(axes: Axes, rows: list[dict], models: list[str]) -> None:
    levels = sorted({row["snr_dB"] for row in rows if row["snr_dB"] != ""}, reverse=True)
    place = {"": 0, **{level: index for index, level in enumerate(levels, 1)}}
    for number, model in enumerate(models):
        shown = [row for row in rows if row["condition"] == "clean" or row["snr_dB"] != ""]
        shown = sorted((row for row in shown if row["model"] == model), key=lambda row: place[row["snr_dB"]])
        axes.errorbar(
            [place[row["snr_dB"]] for row in shown],
            [row["value_percent"] for row in shown],
            yerr=[row["deviation_percent"] for row in shown],
            marker="os^Dv"[number % 5],
            capsize=3,
            label=model,
        )
    axes.set_xticks(range(len(levels) + 1), ["clean", *(f"{level:g}" for level in levels)])
    axes.set(xlabel="signal-to-noise ratio of white Gaussian noise (dB)", ylabel="top-1 accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)


def _draw_bars(axes: Axes, rows: list[dict], models: list[str], conditions: list[str]) -> None:
    width = 0.8 / len(models)
    for number, model in enumerate(models):
        by_condition = {row["condition"]: row for row in rows if row["model"] == model}
        axes.bar(
            np.arange(len(conditions)) + (number - (len(models) - 1) / 2) * width,
            [by_condition[name]["value_percent"] for name in conditions],
            width,
            yerr=[by_condition[name]["deviation_percent"] for name in conditions],
            capsize=3,
            label=model,
        )
    axes.set_xticks(range(len(conditions)), conditions)
    axes.set(xlabel="noise and its level", ylabel="top-1 accuracy (%)", ylim=(0, 100))
    axes.grid(axis="y", alpha=0.3)
    # Above the bars, which may fill the panel.
    axes.legend(frameon=False, ncols=len(models), loc="lower center", bbox_to_anchor=(0.5, 1.0))


def draw_table(rows: Sequence[dict], panel_and_line: Mapping[str, tuple[str, str]], title: str, path: Path) -> None:
    """Draw our accuracies (full lines) and the paper's (dashed), with a panel for each backbone.

    Args:
        rows: of :func:`hybrid.paper.results.table_rows`.
        panel_and_line: for each model of the rows, its backbone, which has a panel, and the name of its line there.
    """
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    panels: dict[str, dict[str, list[dict]]] = {}
    for row in rows:
        backbone, line = panel_and_line[row["model"]]
        panels.setdefault(backbone, {}).setdefault(line, []).append(row)
    figure = Figure(figsize=(2.2 + 4.4 * len(panels), 5.6), layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    lines = list(dict.fromkeys(line for by_line in panels.values() for line in by_line))
    for panel, (backbone, by_line) in zip(axes, panels.items(), strict=True):
        for line, shown in by_line.items():
            number = lines.index(line)
            style = {"color": COLOURS[number % len(COLOURS)], "marker": "os^Dv<>Pxh*"[number % 11]}
            places = [conditions.index(row["condition"]) for row in shown]
            spread = [row["deviation_percent"] or 0 for row in shown]
            panel.errorbar(places, [row["ours_percent"] for row in shown], spread, capsize=3, label=line, **style)
            paper = [row for row in shown if row["paper_percent"] != ""]
            places = [conditions.index(row["condition"]) for row in paper]
            panel.plot(places, [row["paper_percent"] for row in paper], "--", fillstyle="none", alpha=0.6, **style)
        panel.set_title(backbone, fontsize=10)
        panel.set_xticks(range(len(conditions)), conditions, rotation=45, ha="right")
        panel.set_ylim(0, 100)
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("accuracy (%)")
    axes[0].plot([], [], color="0.4", linestyle="--", label="the paper's numbers")
    handles, labels = axes[0].get_legend_handles_labels()
    columns = min(2 + len(panels), len(labels))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


def draw_frontier(rows: Sequence[dict], path: Path) -> None:
    """Draw clean accuracy against accuracy at 15 dB for all networks of the search.

    A line joins those that no other network surpasses in both. The rows are those of
    :func:`hybrid.paper.results.table_rows`.
    """
    factors = {row["model"]: row["factor"] for row in rows}
    accuracy = {(row["model"], row["condition"]): row["ours_percent"] for row in rows}
    points = {name: (accuracy[name, "awgn:15"], accuracy[name, "clean"]) for name in factors}
    # The legend has a line for each network, 0.17 inches high.
    figure = Figure(figsize=(10.5, max(6, 0.175 * len(points) + 0.2)), layout="constrained")
    axes = figure.subplots()
    kinds = list(dict.fromkeys(factors.values()))
    for number, (name, point) in enumerate(points.items(), 1):
        kind = kinds.index(factors[name])
        marker, colour = "os^Dv<>Ph*"[kind % 10], COLOURS[kind % len(COLOURS)]
        axes.scatter(*point, s=40, label=f"{number} {name}", zorder=3, marker=marker, color=colour)
        axes.annotate(str(number), point, xytext=(4, 4), textcoords="offset points", fontsize=8, zorder=4)
    best = sorted(
        p for p in points.values() if not any(q[0] >= p[0] and q[1] >= p[1] and q != p for q in points.values())
    )
    axes.plot(*zip(*best, strict=True), color="0.6", linewidth=1, zorder=1)
    axes.axline((0, 0), slope=1, color="0.8", linestyle=":", zorder=0)
    noisy, clean = zip(*points.values(), strict=True)
    axes.set(xlim=(min(noisy) - 1.5, max(noisy) + 1.5), ylim=(min(clean) - 1.5, max(clean) + 1.5))
    axes.set(xlabel="top-1 accuracy at 15 dB (%)", ylabel="top-1 accuracy on clean images (%)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    save_figure(figure, path)


def draw_margins(rows: list[dict[str, float]], path: Path) -> None:
    """Draw the rows of :func:`hybrid.margins.measure_margins`: inputs, drives of layer 1, outputs of all layers."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    rows = sorted(rows, key=lambda row: -row["snr_dB"])
    inputs = "contrasts" if "contrasts_same_count_percent" in rows[0] else "pixels"
    labels = {
        f"{inputs}_same_count_percent": f"{inputs}: same spike count",
        "drives_within_step_by_bound_percent": "layer 1 drives: within a step by the bound",
        "drives_within_step_percent": "layer 1 drives: within a step",
    }
    labels |= {name: f"layer {name[4 : name.index('_')]}: same output" for name in rows[0] if name.startswith("conv")}
    # Left out: the output of layer 1 stays whenever its drive stays within its step.
    del labels["conv1_same_output_percent"]
    for number, (name, label) in enumerate(labels.items()):
        axes.plot([row[name] for row in rows], marker="os^Dv<>"[number % 7], label=label)
    axes.set_xticks(range(len(rows)), [f"{row['snr_dB']:g}" for row in rows])
    axes.set(xlabel="signal-to-noise ratio of white Gaussian noise (dB)", ylabel="share (%)", ylim=(0, 100))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    save_figure(figure, path)
