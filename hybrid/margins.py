"""The share of pixels, drives and features that noise does not move to another step of the front end.

White Gaussian noise at several signal-to-noise ratios is added to test images. A drive stays *within a step* if its
change is below its distance to the nearest edge of the step function. It stays *within a step by the bound* if the
largest change that the noise could cause, ``sum_j |w_j| |change_j|``, is below that distance (paper, 4.3).

Behind a retina the encoder's neurons stand for ON and OFF contrast, not for pixels. Rows of contrasts then take the
place of those of pixels: their margins, and as noise what the filter makes of that of the pixels.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from bridge.frontend import SpikingFrontEnd, whole_spikes
from bridge.margins import drive_margin, pixel_margin, summed_change
from bridge.storage import SHIPPED_FRONTENDS, load_frontend
from hybrid.conditions import CHUNK, Noise
from hybrid.conditions.drawn import awgn_sigma
from hybrid.figures import draw_margins
from hybrid.printing import print_table
from snn.data import image_folders, load_images
from snn.data_source import IMAGES, check_recorded, note_root
from snn.image_cache import Caching
from snn.retina import LEVELS
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs, beside, write_csv
from snn.runtime.pretrained import resolve
from snn.runtime.progress import progress
from snn.runtime.ranges import Range, check_fields


@dataclass(frozen=True)
class MarginsConfig:
    """Tabulate which share of pixels, drives and features stays within its step under noise."""

    frontend: tyro.conf.Positional[Path]
    """File written by bridge.convert, or pretrained:cifar10-fd."""
    out: Path
    """CSV file to write, for example runs/demo/margins.csv."""
    snr: Annotated[tuple[float, ...], Range(-20, 100, unit="dB")] = (30.0, 25.0, 20.0, 15.0)
    """Signal-to-noise ratios of white Gaussian noise, in dB."""
    data: str | None = None
    """Test images, if not those of the front end: digits, cifar10 or folder:PATH."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the front end."""
    limit_test: Annotated[int, IMAGES] = 1000
    """Take at most this many test images, balanced over classes."""
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_fields(self)
        check(len(self.snr) >= 1, "`snr`: give at least one ratio in dB, for example 20")


@torch.no_grad()
def measure_margins(
    frontend: SpikingFrontEnd, images: Tensor, ratios: tuple[float, ...], *, seed: int = 0
) -> list[dict[str, float]]:
    """One row of shares, in percent, for each of the signal-to-noise ``ratios`` in dB.

    ``frontend`` is in evaluation mode, on any device; images are uint8 (N, C, H, W). With the same seed
    :mod:`hybrid.evaluate` draws the same noise.
    """
    device = next(frontend.buffers()).device
    rows = []
    for ratio in progress(ratios, "measuring margins", "ratio"):
        batches = Noise.parse(f"awgn:{ratio}", "snr").batches(images, seed)
        sums: dict[str, float] = {}
        for noisy, clean in zip(batches, images.split(CHUNK), strict=True):
            shares = _compare(frontend, (clean.float() / 255).to(device), noisy.to(device), ratio)
            sums = {name: sums.get(name, 0.0) + value * len(noisy) for name, value in shares.items()}
        rows.append({"snr_dB": ratio} | {name: round(total / len(images), 4) for name, total in sums.items()})
    return rows


def _compare(frontend: SpikingFrontEnd, clean: Tensor, noisy: Tensor, ratio: float) -> dict[str, float]:
    """Shares of one batch, and its mean standard deviation of the noise."""
    p, layer, retina = frontend.spec.encoding, frontend.layers[0], frontend.retina
    sigma = noise = awgn_sigma(clean, ratio)
    # What the encoder turns into spikes.
    encoded = [retina(images, LEVELS) / LEVELS if retina else images for images in (clean, noisy)]
    if retina:
        # Independent noise of pixels adds up in squares; ON and OFF share it.
        noise = sigma * retina.filters.square().sum((1, 2, 3)).sqrt().repeat(2).reshape(-1, 1, 1)
    name, margin = "contrasts" if retina else "pixels", pixel_margin(encoded[0], p)
    inputs = [frontend.encode(images) for images in (clean, noisy)]
    drives = [layer.norm(layer.drive(spikes)) for spikes in inputs]
    distance = drive_margin(drives[0], layer.activation)
    kept = {
        f"{name}_further_than_sigma": margin > noise,
        f"{name}_changed_less_than_margin": (encoded[1] - encoded[0]).abs() < margin,
        f"{name}_same_count": whole_spikes(encoded[0], p) == whole_spikes(encoded[1], p),
        "drives_within_step_by_bound": summed_change(layer, inputs[1] - inputs[0]) < distance,
        "drives_within_step": (drives[1] - drives[0]).abs() < distance,
    }
    for number, (before, after) in enumerate(zip(frontend.spikes(clean), frontend.spikes(noisy), strict=True), 1):
        kept[f"conv{number}_same_output"] = before == after
    shares = {f"{name}_percent": 100 * same.double().mean().item() for name, same in kept.items()}
    return {"mean_sigma_intensity": sigma.mean().item()} | shares


def print_rows(rows: list[dict[str, float]], images: int) -> None:
    """All shares, a column for each signal-to-noise ratio."""
    title = f"Share that stays within its step under white Gaussian noise (%), {images} test images"
    lines = []
    for name in list(rows[0])[1:]:
        digits = 3 if name.startswith("mean_sigma") else 1
        label = name.removesuffix("_percent").replace("_", " ")
        lines.append([label, *(f"{row[name]:.{digits}f}" for row in rows)])
    print_table(title, ["", *(f"{row['snr_dB']:g} dB" for row in rows)], lines)


def run(config: MarginsConfig) -> None:
    """The command: load, measure, write, report."""
    file = resolve(config.frontend, SHIPPED_FRONTENDS)
    frontend, data_source, digest = load_frontend(file)
    check_recorded(data_source, config.data, config.frontend)
    data_source = data_source.override(data=config.data, root=config.root, limit_test=config.limit_test)
    note_root(data_source, config.root)
    pictures, inputs = [beside(config.out, ".png")], [file, *image_folders(data_source)]
    outputs = Outputs(config.out, options=config.options, figures=pictures, inputs=inputs)
    device = choose_device(config.options.device)
    data = load_images(data_source, "test", config.options.seed, labels=False, cache=config.caching.cache)
    check(
        data.shape == frontend.spec.input_shape,
        f"images of {data_source.data} have shape {data.shape}, {config.frontend} is for {frontend.spec.input_shape} "
        "(channels, height, width); give the data it was converted on with `data`",
    )
    rows = measure_margins(frontend.to(device), data.images, config.snr, seed=config.options.seed)
    write_csv(config.out, rows)
    print_rows(rows, len(data.images))
    for figure in outputs.figures:
        draw_margins(rows, figure)
    outputs.finish({"rows": rows, "images": len(data.images), "frontend_digest": digest})


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.margins``."""
    return run_command(MarginsConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
