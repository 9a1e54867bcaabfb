"""Accuracy of saved models on clean and noisy test images: a table, a CSV file in long format, a figure."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from hybrid.conditions.drawn import parse_condition
from hybrid.evaluation import METRICS, check_same_data, evaluate, load_held_out, load_test_images, summarise
from hybrid.figures import draw_noise
from hybrid.preprocess import parse_preprocess
from hybrid.storage import load_model
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import check
from snn.runtime.outputs import beside, check_outputs, write_csv, write_json


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure saved models under noise; write results.csv, a figure and a table."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Files written by hybrid.train or hybrid.swap."""
    out: Path
    """CSV file to write, for example runs/demo/results.csv."""
    noise: tuple[str, ...] = ("clean", "awgn:40", "awgn:30", "awgn:25", "awgn:20", "awgn:15", "awgn:12")
    """Conditions: clean, awgn:DB, salt-pepper:SHARE, poisson:PEAK, wald:MEAN,SCALE, fgsm:EPS (8-bit units; needs
    --source), corruption:NAME,SEVERITY (computed), cifar10-c:NAME,SEVERITY (needs --cifar10-c)."""
    repeats: int = 1
    """Noise seeds, from --seed on; what is not drawn (clean, fgsm, cifar10-c) is measured once."""
    source: Path | None = None
    """Model whose gradient fgsm takes; the models' own are never used."""
    preprocess: str = "none"
    """What is done to images before the models, in evaluation alone: average:N, quantise (see hybrid.train)."""
    cifar10_c: Path | None = None
    """Folder with the published files of CIFAR-10-C."""
    split: Literal["test", "held-out"] = "test"
    """Images to measure on: test, or held-out: the training images that training kept for its validation curve, on
    which choices may rest. --data and --limit-test are of test images."""
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
        check(len(self.noise) >= 1, "`noise`: give at least one condition, for example clean")
        check(self.batch_size >= 1, f"`batch_size` {self.batch_size}: must be 1 or more")
        check(self.repeats >= 1, f"`repeats` {self.repeats}: must be 1 or more")
        check(
            self.split == "test" or (self.data is None and self.limit_test is None),
            "`split` held-out takes images of the training run: leave out `data` and `limit_test`",
        )
        parse_preprocess(self.preprocess)


def print_tables(rows: list[dict], repeats: int, console: Console) -> None:
    """Conditions x models, in percent, for each metric; then what each path contributes."""
    summary = summarise(rows)
    models = list(dict.fromkeys(row["model"] for row in summary))
    spread = f"deviation over {repeats} noise seeds; standard error where nothing is drawn"
    spread = spread if repeats > 1 else "standard error"
    for metric in METRICS:
        found = {
            (row["condition"], row["model"]): row
            for row in summary
            if row["paths"] == "both" and row["metric"] == metric
        }
        table = Table(title=f"{metric} accuracy (% ± {spread}) on {rows[0]['images']} images")
        for heading in ("condition", "mean sigma", *models):
            table.add_column(heading, justify="left" if heading == "condition" else "right", overflow="fold")
        for condition in dict.fromkeys(condition for condition, _ in found):
            sigma = found[condition, models[0]]["mean_sigma_intensity"]
            cells = (_percent(found[condition, model]) for model in models)
            table.add_row(condition, f"{sigma:.3f}" if sigma != "" else "", *cells)
        console.print(table)
    top1 = [row for row in summary if row["metric"] == "top1"]
    alone = {(row["model"], row["paths"]): row for row in top1 if row["paths"] != "both"}
    if not alone:
        return
    condition = next(iter(alone.values()))["condition"]
    both = {row["model"]: row for row in top1 if row["paths"] == "both" and row["condition"] == condition}
    table = Table(title=f"Both paths, and each alone with the other set to zero (top1, %, {condition})")
    for heading in ("model", "both", "spiking alone", "auxiliary alone"):
        table.add_column(heading, justify="left" if heading == "model" else "right", overflow="fold")
    for model in dict.fromkeys(model for model, _ in alone):
        table.add_row(model, *map(_percent, (both[model], alone[model, "spiking"], alone[model, "auxiliary"])))
    console.print(table)


def _percent(row: dict) -> str:
    return f"{row['value_percent']:.1f} ± {row['deviation_percent']:.1f}"


def run(config: EvaluateConfig) -> None:
    """The command: load, evaluate, write, report."""
    figure = beside(config.out, ".png") if config.options.figures else None
    inputs = [*config.models, *([config.source] if config.source else [])]
    check_outputs(config.out, config.options.json, figure, inputs=inputs)
    device = choose_device(config.options.device)
    # Given twice, a condition is measured once.
    conditions = list({condition.key: condition for condition in map(parse_condition, config.noise)}.values())
    attacks = [condition.name for condition in conditions if condition.kind == "fgsm"]
    check(
        config.source is not None or not attacks,
        f"`noise` {', '.join(attacks)} needs `source` FILE, the model whose gradient it takes",
    )
    paths = list(dict.fromkeys(config.models))
    unique = len({path.stem for path in paths}) == len(paths)
    models = {path.stem if unique else str(path): load_model(path) for path in paths}
    source = load_model(config.source) if config.source else None
    measured = models | ({f"--source {config.source}": source} if source else {})
    if config.split == "held-out":
        data = load_held_out(models, config.root)
        check_same_data(measured, data)
    else:
        data = load_test_images(measured, config.data, config.root, config.limit_test, config.options.seed)
    rows = evaluate(
        models,
        data,
        conditions,
        repeats=config.repeats,
        source=source,
        preprocess=config.preprocess,
        published=config.cifar10_c,
        batch_size=config.batch_size,
        seed=config.options.seed,
        device=device,
    )
    write_csv(config.out, rows)
    print_tables(rows, config.repeats, Console())
    write_json(config.options.json, {"results": rows, "seed": config.options.seed})
    if figure:
        draw_noise([row for row in summarise(rows) if row["paths"] == "both" and row["metric"] == "top1"], figure)
    print(f"wrote {config.out}" + (f" and {figure}" if figure else ""))


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.evaluate``."""
    return run_command(EvaluateConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
