"""Pictures of training, accuracy under noise, answers to single images, and what stays within its step."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import Normalize, PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from bridge.frontend import SpikingFrontEnd
from hybrid.classification import Answer
from hybrid.confusion import Confusion
from hybrid.network import Network
from hybrid.storage import WATCHED, TrainedModel
from hybrid.views import AUXILIARY, CONTRAST, IMAGE, picture, views
from snn.runtime.errors import visible
from snn.runtime.outputs import Target, save_figure

MOST_BARS = 10
"""Classes of one answer, as bars."""
COLOURS = [*(f"C{number}" for number in range(10)), "black"]
MARKERS = "os^Dv<>Ph*"
"""One fewer than colours, so that pairs of them repeat late."""

FAR_LOSS = 20.0
"""Cross-entropy in nat beyond what chance gives: a figure with one has a logarithmic axis."""

LONGEST_NAME = 24
"""Longest name of a class in a picture, in characters."""


def draw_training(model: TrainedModel, title: str, target: Target) -> None:
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
    if max(model.history["train_loss"].max(), model.history["val_loss"].max()) > FAR_LOSS:
        # As before normalisation has settled: one such epoch would flatten all others.
        loss.set_yscale("log")
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
    save_figure(figure, target)


def draw_noise(rows: list[dict], target: Target) -> None:
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
    save_figure(figure, target)


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


def draw_confusion(confusion: Confusion, target: Target) -> None:
    """Draw a matrix of true and predicted classes for each model, clean (or first) and where the accuracy is lowest.

    A colour is the share of a true class's images, by its square root, so that rare mistakes are seen, too. Numbers, in
    %, stand in the cells as far as they fit; of many classes only some are named.
    """
    classes, models = confusion.classes, confusion.models
    conditions = list(dict.fromkeys([confusion.first, confusion.strongest()]))
    names = [shortened(visible(name), LONGEST_NAME) for name in classes]
    # In inches; a letter of 7 points is about 0.07 wide.
    side = float(np.clip(0.33 * len(classes), 2.6, 9.0))
    cell, margin = side / len(classes), 0.4 + 0.07 * max(map(len, names))
    figure = Figure(
        figsize=(1.3 + (side + 0.15) * len(conditions) + margin, 0.4 + (side + 0.5) * len(models) + margin),
        layout="constrained",
    )
    axes = figure.subplots(len(models), len(conditions), squeeze=False, sharex=True, sharey=True)
    colours = colormaps["Blues"].with_extremes(bad="0.88")
    # Every class, or every second, fifth and so on.
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 10**6) if step * cell >= 0.09)
    places = range(0, len(classes), step)
    size = float(np.clip(60 * cell * step, 4.5, 8))
    image = None
    for row, model in enumerate(models):
        for column, condition in enumerate(conditions):
            panel, counts = axes[row, column], confusion.matrix(model, condition)
            images = counts.sum(1, keepdims=True)
            shares = np.ma.masked_where(
                np.broadcast_to(images == 0, counts.shape), 100 * counts / np.maximum(images, 1)
            )
            image = panel.imshow(shares, cmap=colours, norm=PowerNorm(0.5, 0, 100))
            accuracy = 100 * np.trace(counts) / counts.sum()
            panel.set_title(f"{model}\n{condition}: {accuracy:.1f} %", fontsize=9)
            if cell >= 0.25:
                for true, predicted in np.argwhere(counts):
                    share = shares[true, predicted]
                    # Of a share that rounds to 0 the cell says too little to be worth a number.
                    if share >= 0.5:
                        colour = "white" if share > 36 else "black"
                        panel.text(predicted, true, f"{share:.0f}", ha="center", va="center", fontsize=7, color=colour)
            upright = max(map(len, names)) * 0.09 < cell * step
            rotation = 0 if upright else 90
            panel.set_xticks(places, [names[place] for place in places], rotation=rotation, fontsize=size)
            panel.set_yticks(places, [names[place] for place in places], fontsize=size)
            panel.tick_params(length=2)
    for panel in axes[:, 0]:
        panel.set_ylabel("true class", fontsize=9)
    for panel in axes[-1]:
        panel.set_xlabel("predicted class", fontsize=9)
    assert image is not None
    # About two inches of the height of all panels.
    height = min(0.9, 2.2 / (len(models) * (side + 0.5)))
    bar = figure.colorbar(image, ax=axes, shrink=height, aspect=18, anchor=(0.0, 1.0), ticks=[0, 5, 20, 50, 100])
    bar.set_label("share of a true class's images (%)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    save_figure(figure, target)


def draw_table(rows: Sequence[dict], panel_and_line: Mapping[str, tuple[str, str]], title: str, target: Target) -> None:
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
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}
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
    save_figure(figure, target)


def draw_frontier(rows: Sequence[dict], target: Target) -> None:
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
        marker, colour = MARKERS[kind % len(MARKERS)], COLOURS[kind % len(COLOURS)]
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
    save_figure(figure, target)


def draw_answers(answers: Sequence[Answer], network: Network, title: str, target: Target) -> None:
    """Draw a row for each answer: the image, what each stage of the network sees of it, and its first classes as bars.

    The answers hold the pixels that the network was given.
    The pictures of one stage have one scale, so that rows can be compared. Features are shown by their square root.
    """
    seen = [views(network, answer.given[None]) for answer in answers if answer.given is not None]
    stages = list(seen[0])
    largest = {stage: max(maps[stage].max().item() for maps in seen) for stage in stages}
    side, label, bars = 1.9, 1.3, 2.6  # inches
    size = (label + side * len(stages) + bars, 0.75 + (side + 0.1) * len(answers))
    figure = Figure(figsize=size, layout="constrained")
    widths = [*(side for _ in stages), bars - 0.9]
    grid = figure.subplots(len(answers), len(stages) + 1, squeeze=False, width_ratios=widths)
    for answer, maps, row in zip(answers, seen, grid, strict=True):
        for stage, axes in zip(stages, row, strict=False):
            # Few features are strong: by their square root the others can be seen, too.
            scale = Normalize(0, 1) if stage in (IMAGE, CONTRAST) else PowerNorm(0.5, 0, 1)
            axes.imshow(picture(stage, maps[stage][0], largest[stage]), cmap="gray", norm=scale)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_color("0.8")
        # The end of a file's name tells it from others of its folder.
        name = shortened(visible(Path(answer.image).name)[::-1])[::-1]
        row[0].set_ylabel(
            f"{name}\n{answer.condition}", rotation=0, ha="right", va="center", fontsize=9, linespacing=1.5
        )
        _draw_classes(row[-1], answer)
    for stage, axes in zip(stages, grid[0], strict=False):
        axes.set_title(_stage_title(stage, seen[0][stage][0], network), fontsize=9)
    grid[0, -1].set_title("probability (%)", fontsize=9, loc="left")
    figure.suptitle(title, fontsize=11)
    save_figure(figure, target)


def _draw_classes(axes: Axes, answer: Answer) -> None:
    percent = [100 * probability for probability in answer.probabilities[:MOST_BARS]]
    places = range(len(percent))
    axes.barh(places, percent, 0.7, color=["C0", *["0.75"] * (len(percent) - 1)])
    for place, value in zip(places, percent, strict=True):
        axes.text(value + 2, place, f"{value:.1f}", va="center", fontsize=8)
    axes.set_yticks(places, [shortened(visible(name)) for name in answer.classes[:MOST_BARS]], fontsize=8)
    # A single bar is no wider than those of five.
    axes.set(xlim=(0, 125), ylim=(max(len(percent), 5) - 0.5, -0.5), xticks=[])
    axes.tick_params(left=False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)


def _stage_title(stage: str, maps: Tensor, network: Network) -> str:
    count, height, width = maps.shape
    if stage == IMAGE:
        return f"what the network is given\n{width} x {height} pixels"
    if stage == CONTRAST:
        return "contrast of the retina\nON less OFF"
    layer = "spiking layer" if isinstance(getattr(network, "frontend", None), SpikingFrontEnd) else "layer"
    name = "auxiliary CNN" if stage == AUXILIARY else f"{layer} {stage.removeprefix('conv')}"
    return f"{name}\n{count} maps of {width} x {height}"


def shortened(text: str, longest: int = 20) -> str:
    """``text``, or its first letters and an ellipsis if it has more than ``longest`` letters."""
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def draw_margins(rows: list[dict[str, float]], target: Target) -> None:
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
    save_figure(figure, target)
