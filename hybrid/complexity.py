"""Parameters and multiply-accumulates of all networks, beside the paper's Table 1, and of front ends alone.

PyTorch counts them (``torch.utils.flop_counter``; two operations are one multiply-accumulate) in convolutions and
matrix products. Normalisation, activations, pooling and step functions do not count; the paper's counter seems to
include element-wise layers (its baseline MobileNetV2 has 0.33 GMAC, here 0.30). Parameters are the trainable values and
the frozen weights of convolutions and retina; running statistics and the edges of step functions are not among them.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bridge.frontend import ConvertedLayer, FrontEndSpec, LayerSpec, SpikingFrontEnd
from hybrid.architecture import Architecture, ModelSpec, build_model, class_names
from hybrid.backbones import PAPER_BACKBONES
from hybrid.image_size import learning_preset
from hybrid.paper.numbers import paper_value
from hybrid.printing import print_table
from snn.learning import PRESETS, Learning, PresetName
from snn.retina import Retina
from snn.runtime.cli import RunOptions, check_left_out, run_command
from snn.runtime.device import choose_device
from snn.runtime.outputs import Outputs, beside, save_figure, write_csv
from snn.runtime.ranges import check_fields

DIGITS = 9
"""Decimal places of differences in G: one multiply-accumulate."""
QUANTITIES = {"params_M": "parameters (M)", "macs_G": "multiply-accumulates (G)"}

Row = dict[str, Any]


@dataclass(frozen=True)
class ComplexityConfig:
    """Tabulate parameters and multiply-accumulates beside the paper's Table 1."""

    out: Path | None = None
    """Also write the table to this CSV file, and a figure beside it."""
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_fields(self)
        check_left_out(self.options, ("seed",), "nothing is drawn at random")


def planned_frontend(p: Learning, input_shape: tuple[int, int, int]) -> FrontEndSpec:
    """The front end that these settings of learning lead to, for images of ``input_shape`` (C, H, W)."""
    # No count depends on the number of steps.
    layers = tuple(LayerSpec.of(p.geometry(number), steps=8) for number in range(len(p.maps)))
    retina_size = p.retina.kernel_size if p.retina.kind != "none" else 0
    return FrontEndSpec(input_shape, layers, p.encoding, retina_size=retina_size)


def preset_frontend(preset: PresetName, image_size: int) -> FrontEndSpec:
    """The front end that a preset of snn.learn leads to, for RGB images of this side."""
    return planned_frontend(PRESETS[preset], (3, image_size, image_size))


def count_parameters(network: nn.Module) -> int:
    """All trainable values and the frozen weights of converted layers and of a retina."""
    names = {ConvertedLayer: "weight", Retina: "filters"}
    frozen = [module.get_buffer(names[type(module)]) for module in network.modules() if type(module) in names]
    return sum(values.numel() for values in (*network.parameters(), *frozen))


def count_macs(network: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one image (C, H, W), in evaluation mode."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, *input_shape))
    return counter.get_total_flops() // 2


def _row(network: str, module: nn.Module, size: int) -> Row:
    others = [f"{kind}_{q}" for kind in ("added", "paper", "paper_added", "difference") for q in QUANTITIES]
    counts = {"params_M": count_parameters(module) / 1e6, "macs_G": count_macs(module, (3, size, size)) / 1e9}
    return {"network": network, "image_size_pixels": size, **counts, **dict.fromkeys(others, "")}


def _pair(backbone: str, size: int, classes: int) -> list[Row]:
    """Rows of a baseline and its SAFE network."""
    rows = []
    for variant in ("baseline", "safe"):
        front = preset_frontend(learning_preset(size), size) if variant == "safe" else None
        spec = ModelSpec(Architecture(backbone, variant), (3, size, size), class_names(classes), front)
        rows.append(_row(f"{variant} {backbone}", build_model(spec), size))
    baseline, safe = rows
    for q in QUANTITIES:
        safe[f"added_{q}"] = round(safe[q] - baseline[q], DIGITS)
        if size == 224:
            for row in rows:
                row[f"paper_{q}"] = paper_value(1, row["network"], "224x224", q)
                row[f"difference_{q}"] = round(row[q] - row[f"paper_{q}"], DIGITS)
            safe[f"paper_added_{q}"] = round(safe[f"paper_{q}"] - baseline[f"paper_{q}"], 2)
    return rows


def complexity_rows() -> list[Row]:
    """One row for each network: baselines and SAFE at 224x224 (1000 classes, stock head) and 32x32; front ends alone.

    SAFE at 224x224 has the front end of preset imagenet, at 32x32 that of preset cifar10. ``added``: more than its
    baseline has; ``difference``: ours minus the paper's. Parameters in millions, MACs of one image in 10^9; "" where
    there is none.
    """
    sizes = ((224, 1000), (32, 10))
    rows = [row for size, classes in sizes for name in PAPER_BACKBONES for row in _pair(name, size, classes)]
    alone: tuple[tuple[PresetName, int], ...] = (
        ("cifar10", 32),
        ("cifar10", 224),
        ("imagenet", 224),
        ("retina", 32),
        ("retina-imagenet", 224),
    )
    for preset, size in alone:
        front = preset_frontend(preset, size)
        maps = ", ".join(map(str, front.channels))
        name = f"front end alone, {'retina, ' if front.retina_size else ''}maps {maps}, stride {front.stride}"
        rows.append(_row(name, SpikingFrontEnd.empty(front), size))
    return rows


def draw_complexity(rows: list[Row], path: Path) -> None:
    """Draw what SAFE adds to each baseline at 224x224, ours and the paper's, as PNG."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    added = [row for row in rows if row["paper_added_params_M"] != ""]
    for axes, (quantity, words) in zip(figure.subplots(1, 2), QUANTITIES.items(), strict=True):
        places = np.arange(len(added))
        ours = axes.bar(places - 0.2, [row[f"added_{quantity}"] for row in added], 0.4, label="ours")
        paper = axes.bar(places + 0.2, [row[f"paper_added_{quantity}"] for row in added], 0.4, label="paper")
        # The paper gives two digits behind the point.
        axes.bar_label(ours, fmt="%+.3f", padding=2, fontsize=8)
        axes.bar_label(paper, fmt="%+.2f", padding=2, fontsize=8)
        axes.axhline(0, color="0.3", linewidth=0.8)
        axes.set_xticks(places, [row["network"].removeprefix("safe ") for row in added])
        axes.set_ylabel(f"added {words}")
        axes.margins(y=0.18)
        axes.grid(axis="y", alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    figure.suptitle("What SAFE adds to its baseline at 224x224 (below zero: it costs less)", fontsize=11, x=0.38)
    save_figure(figure, path)


def print_rows(rows: list[Row]) -> None:
    """First baselines and SAFE beside the paper's numbers, then all networks and front ends that it does not have."""
    formats = {"": ".3f", "paper_": ".2f", "difference_": "+.3f", "added_": "+.3f", "paper_added_": "+.2f"}

    def cells(row: Row, quantity: str, kinds: Iterable[str]) -> list[str]:
        values = {kind: row[f"{kind}{quantity}"] for kind in kinds}
        return ["" if value == "" else f"{value:{formats[kind]}}" for kind, value in values.items()]

    published = [row for row in rows if row["paper_params_M"] != ""]
    for quantity, words in QUANTITIES.items():
        headings = ("network", words, "paper", "difference", "added", "paper added")
        lines = [[row["network"], *cells(row, quantity, formats)] for row in published]
        print_table("Networks at 224x224, 1000 classes", headings, lines)
    headings = ("network", "pixels", "parameters (M)", "added", "multiply-accumulates (G)", "added")
    lines = []
    for row in rows:
        if row not in published:
            numbers = [cell for quantity in QUANTITIES for cell in cells(row, quantity, ("", "added_"))]
            lines.append([row["network"], str(row["image_size_pixels"]), *numbers])
    print_table("Networks at 32x32, 10 classes, and front ends alone", headings, lines)


def run(config: ComplexityConfig) -> None:
    """The command: count, write, report."""
    figures = [beside(config.out, ".png")] if config.out else []
    outputs = Outputs(config.out, options=config.options, figures=figures)
    # Counted on the CPU; a device that is not there is refused as by the other commands.
    choose_device(config.options.device)
    rows = complexity_rows()
    print_rows(rows)
    print(
        "MACs are those of convolutions and matrix products (torch.utils.flop_counter); element-wise layers, which the "
        "paper's counter seems to include, are not counted"
    )
    write_csv(config.out, rows)
    for path in outputs.figures:
        draw_complexity(rows, path)
    outputs.finish({"rows": rows})


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.complexity``."""
    return run_command(ComplexityConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
