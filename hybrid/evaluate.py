"""Accuracy of saved models on clean and noisy test images: a table, a CSV file in long format, a figure."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from hybrid.figures import draw_noise
from hybrid.model import Paths, SafeNetwork, TrainedModel, load_model
from hybrid.noise import Condition, awgn_sigma, parse_condition
from snn.command import (
    RunOptions,
    beside,
    check_outputs,
    choose_device,
    progress,
    run_command,
    write_csv,
    write_json,
)
from snn.data import Images, load_images
from snn.errors import check

NOISE_CHUNK = 256
"""Images that share one draw; fixed, so that results do not depend on the batch size."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure saved models under noise; write results.csv, a figure and a table."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Files written by hybrid.train."""
    out: Path
    """CSV file to write, for example runs/demo/results.csv."""
    noise: tuple[str, ...] = ("clean", "awgn:40", "awgn:30", "awgn:25", "awgn:20", "awgn:15", "awgn:12")
    """Conditions: clean, awgn:DB, salt-pepper:SHARE, poisson:PEAK, wald:MEAN,SCALE (8-bit units)."""
    data: str | None = None
    """Test images, if not those of the training run: digits, cifar10 or folder:PATH."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the training run."""
    limit_test: int | None = None
    """Take at most this many test images, balanced over classes; None: as given in training, or all."""
    batch_size: int = 256
    """Images per forward pass; results do not depend on it."""
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check(len(self.models) >= 1, "no model given; name at least one file written by hybrid.train")
        check(len(self.noise) >= 1, "--noise: give at least one condition, for example clean")
        check(self.batch_size >= 1, f"--batch-size {self.batch_size}: must be 1 or more")


def noisy_batches(images: Tensor, condition: Condition, seed: int) -> list[Tensor]:
    """All images under one condition, float32 in [0, 1], in chunks of :data:`NOISE_CHUNK`.

    The draws depend on the seed and the condition alone (and are made on the CPU), so every model sees the same images.
    """
    entropy = np.random.SeedSequence([seed, *condition.key.encode()]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(entropy) >> 1)
    return [condition.apply(chunk.float() / 255, generator) for chunk in images.split(NOISE_CHUNK)]


def predict(
    network: torch.nn.Module, images: list[Tensor], device: torch.device | str, paths: Paths = "both"
) -> Tensor:
    """Predicted classes (N,), on the CPU, of batches of images in [0, 1]."""
    arguments = {"paths": paths} if isinstance(network, SafeNetwork) else {}
    network = network.to(device).eval()
    with torch.inference_mode():
        return torch.cat([network(batch.to(device), **arguments).argmax(1).cpu() for batch in images])


def evaluate(
    models: dict[str, TrainedModel],
    data: Images,
    conditions: list[Condition],
    *,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[dict]:
    """One row of results per model, condition and choice of paths.

    SAFE networks are also measured with one path silenced at a time, on clean images or else on the first condition:
    what each path contributes.
    """
    rows = []
    ablated = next((condition for condition in conditions if condition.kind == "clean"), conditions[0])
    with progress(None, "evaluating", "run", total=len(models) * len(conditions)) as bar:
        for condition in conditions:
            chunks = noisy_batches(data.images, condition, seed)
            batches = list(torch.cat(chunks).split(batch_size))
            sigma = _mean_sigma(data.images, condition)
            for name, model in models.items():
                alone = condition == ablated and isinstance(model.network, SafeNetwork)
                for paths in ("both", "spiking", "auxiliary") if alone else ("both",):
                    correct = (predict(model.network, batches, device, paths) == data.labels).sum().item()
                    rows.append(_row(name, model, condition, paths, correct, len(data.labels), sigma, seed))
                bar.update()
    order = list(models)
    return sorted(rows, key=lambda row: (order.index(row["model"]), row["paths"] != "both"))


def _mean_sigma(images: Tensor, condition: Condition) -> float | str:
    """Mean standard deviation of the noise, in units of intensity; "" where the condition states no SNR."""
    return "" if condition.snr is None else round(awgn_sigma(images.float() / 255, condition.snr).mean().item(), 5)


def _row(
    name: str,
    model: TrainedModel,
    condition: Condition,
    paths: Paths,
    correct: int,
    count: int,
    sigma: float | str,
    seed: int,
) -> dict:
    share = correct / count
    return {
        "model": name,
        "variant": model.spec.architecture.variant,
        "backbone": model.spec.architecture.backbone,
        "paths": paths,
        "condition": condition.name,
        "snr_dB": "" if condition.snr is None else condition.snr,
        "mean_sigma_intensity": sigma,
        "images": count,
        "correct": correct,
        "accuracy_percent": round(100 * share, 3),
        "standard_error_percent": round(100 * (share * (1 - share) / count) ** 0.5, 3),
        "noise_seed": seed,
        "training_seed": model.seed,
        "model_digest": model.digest,
    }


def print_table(rows: list[dict], console: Console) -> None:
    """Conditions x models, in percent with the standard error; then what each path of SAFE networks contributes."""
    both = [row for row in rows if row["paths"] == "both"]
    models = list(dict.fromkeys(row["model"] for row in both))
    found = {(row["condition"], row["model"]): row for row in both}
    table = Table(title=f"Top-1 accuracy (% ± standard error) on {both[0]['images']} test images")
    for heading in ("condition", "mean sigma", *models):
        table.add_column(heading, justify="left" if heading == "condition" else "right", overflow="fold")
    for condition in dict.fromkeys(row["condition"] for row in both):
        sigma = found[condition, models[0]]["mean_sigma_intensity"]
        cells = (_percent(found[condition, model]) for model in models)
        table.add_row(condition, f"{sigma:.3f}" if sigma != "" else "", *cells)
    console.print(table)
    alone = {(row["model"], row["paths"]): row for row in rows if row["paths"] != "both"}
    if not alone:
        return
    condition = next(iter(alone.values()))["condition"]
    table = Table(title=f"Both paths, and each alone with the other set to zero (%, {condition})")
    for heading in ("model", "both", "spiking alone", "auxiliary alone"):
        table.add_column(heading, justify="left" if heading == "model" else "right", overflow="fold")
    for model in dict.fromkeys(model for model, _ in alone):
        cells = (found[condition, model], alone[model, "spiking"], alone[model, "auxiliary"])
        table.add_row(model, *map(_percent, cells))
    console.print(table)


def _percent(row: dict) -> str:
    return f"{row['accuracy_percent']:.1f} ± {row['standard_error_percent']:.1f}"


def run(config: EvaluateConfig) -> None:
    """The command: load, evaluate, write, report."""
    figure = beside(config.out, ".png") if config.options.figures else None
    check_outputs(config.out, config.options.json, figure, inputs=config.models)
    device = choose_device(config.options.device)
    # Given twice, a condition is measured once.
    conditions = list({condition.key: condition for condition in map(parse_condition, config.noise)}.values())
    paths = list(dict.fromkeys(config.models))
    unique = len({path.stem for path in paths}) == len(paths)
    models = {path.stem if unique else str(path): load_model(path) for path in paths}
    data = _test_images(config, models)
    rows = evaluate(models, data, conditions, batch_size=config.batch_size, seed=config.options.seed, device=device)
    write_csv(config.out, rows)
    print_table(rows, Console())
    write_json(config.options.json, {"results": rows, "seed": config.options.seed})
    if figure:
        draw_noise([row for row in rows if row["paths"] == "both"], figure)
    print(f"wrote {config.out}" + (f" and {figure}" if figure else ""))


def _test_images(config: EvaluateConfig, models: dict[str, TrainedModel]) -> Images:
    """The test images, checked against every model."""
    first = next(iter(models.values()))
    source = first.source.override(data=config.data, root=config.root, limit_test=config.limit_test)
    data = load_images(source, "test", config.options.seed)
    for name, model in models.items():
        check(
            model.spec.input_shape == data.shape and model.spec.classes == data.classes,
            f"model {name} was trained on {len(model.spec.classes)} classes and images of shape "
            f"{model.spec.input_shape}, {source.data} has {len(data.classes)} classes and shape {data.shape}; "
            "evaluate together only models of one data set",
        )
    return data


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.evaluate``."""
    return run_command(EvaluateConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
