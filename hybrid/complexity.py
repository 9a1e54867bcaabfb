"""Parameters and multiply-accumulates of all networks at 224x224, beside the paper's Table 1, and of front ends alone.

Counted by PyTorch's own counter (``torch.utils.flop_counter``, two operations to a multiply-accumulate): convolutions
and matrix products. Normalisation, activations, pooling and step functions are not counted; the paper's counter seems
to include element-wise layers (its baseline MobileNetV2 has 0.33 GMAC, here 0.30). Parameters are all that train and
the frozen convolution weights; running statistics and the edges of step functions are not among them.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bridge.frontend import FrontEndSpec, LayerSpec, SpikingFrontEnd
from hybrid.architecture import Architecture, ModelSpec
from hybrid.backbones.torchvision import PAPER_BACKBONES
from hybrid.network import build_model
from hybrid.paper.numbers import paper_value
from snn.learning import PRESETS, PresetName
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.outputs import beside, check_outputs, save_figure, write_csv, write_json

SIZES = {224: 1000, 32: 10}
"""Side of the images in pixels, and classes."""
STEPS = 8
"""Of each step function; no count depends on it."""
DIGITS = 9
"""Behind the point in differences of G: a single multiply-accumulate."""


@dataclass(frozen=True)
class ComplexityConfig:
    """Tabulate parameters and multiply-accumulates beside the paper's Table 1."""

    out: Path | None = None
    """Also write the table to this CSV file, and a figure beside it."""
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)


def preset_frontend(preset: PresetName, image_size: int) -> FrontEndSpec:
    """The front end that a preset of snn.learn leads to, for RGB images of this side."""
    p = PRESETS[preset]
    layers = tuple(LayerSpec.of(p.geometry(number), STEPS) for number in range(len(p.maps)))
    return FrontEndSpec((3, image_size, image_size), layers, p.encoding)


def count_parameters(network: nn.Module) -> int:
    """All trainable values and the frozen weights of converted layers."""
    frozen = [layer.weight for part in network.modules() if isinstance(part, SpikingFrontEnd) for layer in part.layers]
    return sum(values.numel() for values in (*network.parameters(), *frozen))


def count_macs(network: nn.Module, input_shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of one image (C, H, W), in evaluation mode."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, *input_shape))
    return counter.get_total_flops() // 2


def _row(network: str, module: nn.Module, size: int) -> dict:
    macs = count_macs(module, (3, size, size))
    return {
        "network": network,
        "image_size_pixels": size,
        "params_M": count_parameters(module) / 1e6,
        "macs_G": macs / 1e9,
        "added_params_M": "",
        "added_macs_G": "",
        "paper_params_M": "",
        "paper_macs_G": "",
        "paper_added_params_M": "",
        "paper_added_macs_G": "",
        "difference_params_M": "",
        "difference_macs_G": "",
    }


def complexity_rows() -> list[dict]:
    """One row per network: baselines and SAFE at 224x224 (1000 classes, stock head) and 32x32, then front ends alone.

    SAFE at 224x224 has the front end of preset imagenet, at 32x32 that of preset cifar10. ``added``: over its baseline;
    ``difference``: ours minus the paper's. Parameters in millions, MACs of one image in 10^9; "" where there is none.
    """
    rows = []
    for size, classes in SIZES.items():
        preset: PresetName = "imagenet" if size == 224 else "cifar10"
        for backbone in PAPER_BACKBONES:
            pair = {}
            for variant in ("baseline", "safe"):
                front = preset_frontend(preset, size) if variant == "safe" else None
                architecture = Architecture(backbone=backbone, variant=variant)
                spec = ModelSpec(architecture, (3, size, size), tuple(map(str, range(classes))), front)
                name = f"{variant} {backbone}"
                row = pair[variant] = _row(name, build_model(spec), size)
                if size == 224:
                    for quantity in ("params_M", "macs_G"):
                        row[f"paper_{quantity}"] = paper = paper_value(1, name, "224x224", quantity)
                        row[f"difference_{quantity}"] = round(row[quantity] - paper, DIGITS)
            for quantity in ("params_M", "macs_G"):
                added = pair["safe"][quantity] - pair["baseline"][quantity]
                pair["safe"][f"added_{quantity}"] = round(added, DIGITS)
                if size == 224:
                    paper = [pair[variant][f"paper_{quantity}"] for variant in ("safe", "baseline")]
                    pair["safe"][f"paper_added_{quantity}"] = round(paper[0] - paper[1], 2)
            rows += pair.values()
    for preset, size in (("cifar10", 32), ("cifar10", 224), ("imagenet", 224)):
        front = preset_frontend(preset, size)
        maps = ", ".join(map(str, front.channels))
        rows.append(_row(f"front end alone, maps {maps}, stride {front.stride}", SpikingFrontEnd.empty(front), size))
    return rows


def draw_complexity(rows: list[dict], path: Path) -> None:
    """What SAFE adds to each baseline at 224x224, ours and the paper's.

    Args:
        rows: of :func:`complexity_rows`.
        path: PNG to write.
    """
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    added = [row for row in rows if row["paper_added_params_M"] != ""]
    for axes, (quantity, unit) in zip(
        figure.subplots(1, 2), (("params_M", "parameters (M)"), ("macs_G", "multiply-accumulates (G)")), strict=True
    ):
        places = np.arange(len(added))
        ours = axes.bar(places - 0.2, [row[f"added_{quantity}"] for row in added], 0.4, label="ours")
        paper = axes.bar(places + 0.2, [row[f"paper_added_{quantity}"] for row in added], 0.4, label="paper")
        # The paper gives two digits behind the point.
        for bars, digits in ((ours, 3), (paper, 2)):
            axes.bar_label(bars, fmt=f"%+.{digits}f", padding=2, fontsize=8)
        axes.axhline(0, color="0.3", linewidth=0.8)
        axes.set_xticks(places, [row["network"].removeprefix("safe ") for row in added])
        axes.set_ylabel(f"added {unit}")
        axes.margins(y=0.18)
        axes.grid(axis="y", alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
    figure.suptitle("What SAFE adds to its baseline at 224x224 (below zero: it costs less)", fontsize=11, x=0.38)
    save_figure(figure, path)


def print_rows(rows: list[dict], console: Console) -> None:
    """Baselines and SAFE beside the paper's numbers, then networks and front ends that the paper has no numbers of."""
    quantities = (("params_M", "M", "parameters (M)"), ("macs_G", "GMAC", "multiply-accumulates (G)"))
    for quantity, unit, words in quantities:
        table = Table(title=f"{words[0].upper()}{words[1:]} at 224x224, 1000 classes")
        for heading in ("network", unit, "paper", "difference", "added", "paper added"):
            table.add_column(heading, justify="left" if heading == "network" else "right")
        for row in rows:
            if row[f"paper_{quantity}"] != "":
                table.add_row(
                    row["network"],
                    _text(row[quantity], "", 3),
                    _text(row[f"paper_{quantity}"], "", 2),
                    _text(row[f"difference_{quantity}"], "+", 3),
                    _text(row[f"added_{quantity}"], "+", 3),
                    _text(row[f"paper_added_{quantity}"], "+", 2),
                )
        console.print(table)
    table = Table(title="Networks at 32x32, 10 classes, and front ends alone")
    for heading in ("network", "pixels", "M", "added", "GMAC", "added"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for row in rows:
        if row["paper_params_M"] == "":
            cells = [
                _text(row[f"{added}{q}"], "+" if added else "", 3) for q, _, _ in quantities for added in ("", "added_")
            ]
            table.add_row(row["network"], str(row["image_size_pixels"]), *cells)
    console.print(table)


def _text(value: float | str, sign: str, digits: int) -> str:
    return "" if value == "" else f"{value:{sign}.{digits}f}"


def run(config: ComplexityConfig) -> None:
    """The command: count, write, report."""
    figure = beside(config.out, ".png") if config.out and config.options.figures else None
    check_outputs(config.out, config.options.json, figure)
    rows = complexity_rows()
    print_rows(rows, Console())
    print(
        "MACs are those of convolutions and matrix products (torch.utils.flop_counter); element-wise layers, which the "
        "paper's counter seems to include, are not counted"
    )
    write_csv(config.out, rows)
    write_json(config.options.json, {"rows": rows})
    if figure:
        draw_complexity(rows, figure)
    if config.out:
        print(f"wrote {config.out}" + (f" and {figure}" if figure else ""))


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.complexity``."""
    return run_command(ComplexityConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
