"""Images per second of supervised training: SAFE beside its baseline, for the paper's three backbones at 32x32.

    python -m benchmarks.training                         # a few steps of each on random images
    python -m benchmarks.training --epoch-images 50000    # and whole passes through hybrid.train's own loop

A step is that of ``hybrid.train``: shift and flip of uint8 images on the device, forward, backward, SGD; on CUDA in
bfloat16. The two networks of a pair take turns, so that other load on the machine slows both alike. The ratio is of
their medians.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Annotated

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.nn.functional import cross_entropy

from hybrid.architecture import Architecture, baseline, safe_dnn
from hybrid.augment import augment
from hybrid.backbones import PAPER_BACKBONES
from hybrid.recipe import Recipe
from hybrid.training import Hardware, train
from snn.data import Images
from snn.data_source import DataSource
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.device import choose_device
from snn.runtime.outputs import Outputs, write_csv

CLASSES = tuple("0123456789")
FRONTEND = "pretrained:cifar10-fd"


@dataclass(frozen=True)
class TrainingConfig:
    """Measure the speed of supervised training."""

    backbones: tuple[str, ...] = PAPER_BACKBONES
    """Main CNNs."""
    batch_size: int = 64
    """Images per step (on a GPU: 512)."""
    steps: int = 9
    """Measured steps of each network, after two that are not."""
    width: float = 1.0
    """Multiplier of the backbones' channels."""
    epoch_images: int | None = None
    """Also train for a pass over so many random images and measure the whole pass."""
    out: Path | None = None
    """Also write the table to this CSV file."""
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)


def seconds_per_step(config: TrainingConfig, backbone: str, device: torch.device) -> dict[str, float]:
    """Median seconds of a step of each variant."""
    times: dict[str, list[float]] = {"baseline": [], "safe": []}
    steppers = {}
    generator = torch.Generator().manual_seed(config.options.seed)
    images = torch.randint(256, (config.batch_size, 3, 32, 32), dtype=torch.uint8, generator=generator).to(device)
    labels = torch.randint(10, (config.batch_size,), generator=generator).to(device)
    for variant in times:
        options = {"backbone": backbone, "classes": CLASSES, "width": config.width}
        network = safe_dnn(FRONTEND, **options) if variant == "safe" else baseline((3, 32, 32), **options)
        network = network.to(device, memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        steppers[variant] = (network, optimizer)
    for number in range(config.steps + 2):
        for variant, (network, optimizer) in steppers.items():
            began = perf_counter()
            moved = augment(images, "shift-flip", generator).float() / 255
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = network(moved.contiguous(memory_format=torch.channels_last))
                loss = cross_entropy(logits, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()
            if number >= 2:
                times[variant].append(perf_counter() - began)
    return {variant: float(np.median(values)) for variant, values in times.items()}


def seconds_per_epoch(config: TrainingConfig, backbone: str, variant: str) -> float:
    """Seconds of the second pass of a training: what a pass costs once everything is set up."""
    generator = torch.Generator().manual_seed(config.options.seed)
    count = config.epoch_images or 0
    images = torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    data = Images(images, torch.randint(10, (count,), generator=generator), CLASSES, DataSource("random"))
    architecture = Architecture(backbone=backbone, variant=variant, width=config.width)
    frontend = FRONTEND if variant == "safe" else None
    seconds = []
    for epochs in (1, 2):
        began = perf_counter()
        recipe = Recipe(epochs=epochs, batch_size=config.batch_size, holdout=0.001)
        train(data, architecture, recipe, frontend=frontend, hardware=Hardware(config.options.device))
        seconds.append(perf_counter() - began)
    return seconds[1] - seconds[0]


def run(config: TrainingConfig) -> None:
    """The command: measure, print, write."""
    outputs = Outputs(config.out, options=config.options)
    device = choose_device(config.options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    rows = []
    for backbone in config.backbones:
        steps = seconds_per_step(config, backbone, device)
        for variant, seconds in steps.items():
            row = {
                "backbone": backbone,
                "variant": variant,
                "device": name,
                "batch_size": config.batch_size,
                "width": config.width,
                "images_per_s": round(config.batch_size / seconds, 2),
                "seconds_per_50000_images": round(seconds * 50_000 / config.batch_size, 1),
                "time_over_baseline": round(seconds / steps["baseline"], 3),
            }
            if config.epoch_images:
                row["epoch_images"] = config.epoch_images
                row["epoch_s"] = round(seconds_per_epoch(config, backbone, variant), 2)
            rows.append(row)
            print(f"{backbone} {variant}: {row['images_per_s']} images/s", flush=True)
    table = Table(title=f"Training at 32x32, batches of {config.batch_size}, on {name}")
    for heading in [key for key in rows[0] if key not in ("device", "batch_size", "width")]:
        table.add_column(heading.replace("_", " "))
    for row in rows:
        table.add_row(*(str(value) for key, value in row.items() if key not in ("device", "batch_size", "width")))
    Console().print(table)
    write_csv(config.out, rows)
    outputs.finish({"rows": rows})


if __name__ == "__main__":
    sys.exit(run_command(TrainingConfig, run, None))
