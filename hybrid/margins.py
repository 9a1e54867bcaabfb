"""The share of pixels, drives and features that noise does not move to another step of the front end.

White Gaussian noise at several signal-to-noise ratios is added to test images. A drive stays *within a step* if its
change is below its distance to the nearest edge of the step function. It stays *within a step by the bound* if the
largest change that the noise could cause, ``sum_j |w_j| |change_j|``, is below that distance (paper, 4.3).
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bridge.frontend import SpikingFrontEnd, whole_spikes
from bridge.margins import drive_margin, pixel_margin, summed_change
from bridge.storage import SHIPPED_FRONTENDS, load_frontend
from hybrid.conditions import CHUNK, Noise
from hybrid.conditions.drawn import awgn_sigma
from hybrid.figures import draw_margins
from snn.data import load_images
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs, beside, write_csv
from snn.runtime.pretrained import resolve
from snn.runtime.progress import progress


@dataclass(frozen=True)
class MarginsConfig:
    """Tabulate which share of pixels, drives and features stays within its step under noise."""

    frontend: tyro.conf.Positional[Path]
    """File written by bridge.convert, or pretrained:cifar10-fd."""
    out: Path
    """CSV file to write, for example runs/demo/margins.csv."""
    snr: tuple[float, ...] = (30.0, 25.0, 20.0, 15.0)
    """Signal-to-noise ratios of white Gaussian noise, in dB."""
    data: str | None = None
    """Test images, if not those of the front end: digits, cifar10 or folder:PATH."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the front end."""
    limit_test: int = 1000
    """Take at most this many test images, balanced over classes."""
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check(len(self.snr) >= 1, "`snr`: give at least one ratio in dB, for example 20")


@torch.no_grad()
def measure_margins(
    frontend: SpikingFrontEnd, images: Tensor, ratios: tuple[float, ...], *, seed: int = 0
) -> list[dict[str, float]]:
    """One row of shares, in percent, for each signal-to-noise ratio.

    Args:
        frontend: converted layers, on any device, in evaluation mode.
        images: uint8 (N, C, H, W).
        ratios: signal-to-noise ratios in dB.
        seed: of the noise. With the same seed :mod:`hybrid.evaluate` draws the same noise.
    """
    device = next(frontend.buffers()).device
    rows = []
    for ratio in progress(ratios, "measuring margins", "ratio"):
        batches = Noise.parse(f"awgn:{ratio}", "snr").batches(images, seed)
        sums: dict[str, float] = {}
        for noisy, clean in zip(batches, images.split(CHUNK), strict=True):
            shares = _compare(frontend, (clean.float() / 255).to(device), noisy.to(device), ratio)
            for name, value in shares.items():
                sums[name] = sums.get(name, 0.0) + value * len(noisy)
        rows.append({"snr_dB": ratio} | {name: round(total / len(images), 4) for name, total in sums.items()})
    return rows


def _compare(frontend: SpikingFrontEnd, clean: Tensor, noisy: Tensor, ratio: float) -> dict[str, float]:
    """Shares of one batch, and its mean standard deviation of the noise."""
    p, layer = frontend.spec.encoding, frontend.layers[0]

    def percent(kept: Tensor) -> float:
        return 100 * kept.double().mean().item()

    sigma = awgn_sigma(clean, ratio)
    margin = pixel_margin(clean, p)
    counts = [whole_spikes(images, p) for images in (clean, noisy)]
    inputs = [frontend.encode(images) for images in (clean, noisy)]
    drives = [layer.norm(layer.drive(spikes)) for spikes in inputs]
    distance = drive_margin(drives[0], layer.activation)
    features = [frontend.spikes(images) for images in (clean, noisy)]
    row = {
        "mean_sigma_intensity": sigma.mean().item(),
        "pixels_further_than_sigma_percent": percent(margin > sigma),
        "pixels_changed_less_than_margin_percent": percent((noisy - clean).abs() < margin),
        "pixels_same_count_percent": percent(counts[0] == counts[1]),
        "drives_within_step_by_bound_percent": percent(summed_change(layer, inputs[1] - inputs[0]) < distance),
        "drives_within_step_percent": percent((drives[1] - drives[0]).abs() < distance),
    }
    for number, (before, after) in enumerate(zip(*features, strict=True), 1):
        row[f"conv{number}_same_output_percent"] = percent(before == after)
    return row


def print_table(rows: list[dict[str, float]], images: int, console: Console) -> None:
    """All shares, a column for each signal-to-noise ratio."""
    table = Table(title=f"Share that stays within its step under white Gaussian noise (%), {images} test images")
    table.add_column("")
    for row in rows:
        table.add_column(f"{row['snr_dB']:g} dB", justify="right")
    for name in rows[0]:
        if name != "snr_dB":
            digits = 3 if name.startswith("mean_sigma") else 1
            label = name.removesuffix("_percent").replace("_", " ")
            table.add_row(label, *(f"{row[name]:.{digits}f}" for row in rows))
    console.print(table)


def run(config: MarginsConfig) -> None:
    """The command: load, measure, write, report."""
    file = resolve(config.frontend, SHIPPED_FRONTENDS)
    outputs = Outputs(config.out, options=config.options, figures=[beside(config.out, ".png")], inputs=[file])
    device = choose_device(config.options.device)
    frontend, data_source, digest = load_frontend(file)
    data_source = data_source.override(data=config.data, root=config.root, limit_test=config.limit_test)
    data = load_images(data_source, "test", config.options.seed)
    check(
        data.shape == frontend.spec.input_shape,
        f"images of {data_source.data} have shape {data.shape}, {config.frontend} is for {frontend.spec.input_shape} "
        "(channels, height, width); give the data it was converted on with `data`",
    )
    rows = measure_margins(frontend.to(device), data.images, config.snr, seed=config.options.seed)
    write_csv(config.out, rows)
    print_table(rows, len(data.images), Console())
    for figure in outputs.figures:
        draw_margins(rows, figure)
    outputs.finish({"rows": rows, "images": len(data.images), "frontend_digest": digest})


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.margins``."""
    return run_command(MarginsConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
