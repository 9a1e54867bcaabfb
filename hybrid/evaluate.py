"""Accuracy of saved models on clean and noisy test images: a table, a CSV file in long format, a figure."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

from hybrid.conditions import Condition, condition_flag
from hybrid.evaluation import (
    DEFAULT_CONDITIONS,
    METRICS,
    check_same_data,
    evaluate,
    load_held_out,
    load_test_images,
    name_models,
    summarise,
)
from hybrid.figures import draw_noise
from hybrid.preprocess import UNCHANGED, Preprocess, preprocess_flag
from hybrid.storage import TrainedModel, load_model
from snn.data import Images
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs, beside, write_csv


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure saved models under noise; write results.csv, a figure and a table."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Files written by hybrid.train or hybrid.swap."""
    out: Path
    """CSV file to write, for example runs/demo/results.csv."""
    noise: Annotated[tuple[Condition, ...], condition_flag(Condition, many=True)] = DEFAULT_CONDITIONS
    """Conditions. DB is a signal-to-noise ratio, SHARE one of pixels, EPS a step in 8-bit units; fgsm needs
    --attack-model, cifar10-c needs --cifar10-c. A plugin can add more."""
    repeats: int = 1
    """Noise seeds, from --seed on. A condition that draws nothing (such as clean or fgsm) is measured once."""
    attack_model: Path | None = None
    """Model whose gradient fgsm takes; the gradients of the models themselves are never taken."""
    preprocess: Annotated[Preprocess, preprocess_flag()] = UNCHANGED
    """What is done to images before the models, in evaluation only (see hybrid.train)."""
    cifar10_c: Path | None = None
    """Folder with the published files of CIFAR-10-C."""
    split: Literal["test", "held-out"] = "test"
    """Images to measure on: test images, or the training images that training held out for its validation curve. Make
    choices on held-out images. --data and --limit-test are for test images."""
    data: str | None = None
    """Test images, if not those of the training run: digits, cifar10 or folder:PATH."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the training run."""
    limit_test: int | None = None
    """Take at most this many test images, balanced over classes; None: as many as the training run recorded, or all."""
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
        attacks = [str(condition) for condition in self.noise if condition.needs_attack_model]
        check(
            self.attack_model is not None or not attacks,
            f"`noise` {', '.join(attacks)} needs `attack_model` FILE, the model whose gradient it takes",
        )


def print_tables(rows: list[dict], repeats: int, console: Console) -> None:
    """Print accuracy in percent by condition and model, a table per metric, then the accuracy of each path alone."""
    for metric in METRICS:
        console.print(_accuracy_table(summarise(rows, metric, "both"), metric, repeats))
    top1 = summarise(rows, "top1")
    if any(row["paths"] != "both" for row in top1):
        console.print(_paths_table(top1))


def _accuracy_table(summary: list[dict], metric: str, repeats: int) -> Table:
    """Conditions x models, of rows of one metric."""
    models = list(dict.fromkeys(row["model"] for row in summary))
    by_place = {(row["condition"], row["model"]): row for row in summary}
    spread = f"deviation over {repeats} noise seeds; standard error where nothing is drawn"
    spread = spread if repeats > 1 else "standard error"
    table = _table(
        f"{metric} accuracy (% ± {spread}) on {summary[0]['images']} images", "condition", "mean sigma", *models
    )
    for condition in dict.fromkeys(row["condition"] for row in summary):
        sigma = by_place[condition, models[0]]["mean_sigma_intensity"]
        cells = (_percent(by_place[condition, model]) for model in models)
        table.add_row(condition, f"{sigma:.3f}" if sigma != "" else "", *cells)
    return table


def _paths_table(summary: list[dict]) -> Table:
    """Models x paths, under the condition for which each path was measured."""
    alone = [row for row in summary if row["paths"] != "both"]
    condition = alone[0]["condition"]
    by_place = {(row["model"], row["paths"]): row for row in summary if row["condition"] == condition}
    title = f"Both paths, and each alone with the other set to zero (top1, %, {condition})"
    table = _table(title, "model", "both", "spiking alone", "auxiliary alone")
    for model in dict.fromkeys(row["model"] for row in alone):
        table.add_row(model, *(_percent(by_place[model, paths]) for paths in ("both", "spiking", "auxiliary")))
    return table


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title)
    table.add_column(first, overflow="fold")
    for heading in others:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _percent(row: dict) -> str:
    return f"{row['value_percent']:.1f} ± {row['deviation_percent']:.1f}"


def load_data(config: EvaluateConfig, models: dict[str, TrainedModel], attack_model: TrainedModel | None) -> Images:
    """The images to measure on; :class:`UserError` if a model or the attack model was trained on others."""
    everyone = models | ({f"`attack_model` {config.attack_model}": attack_model} if attack_model else {})
    if config.split == "held-out":
        data = load_held_out(models, config.root)
        check_same_data(everyone, data)
        return data
    return load_test_images(everyone, config.data, config.root, config.limit_test, config.options.seed)


def run(config: EvaluateConfig) -> None:
    """The command: load, evaluate, write, report."""
    inputs = [*config.models, *([config.attack_model] if config.attack_model else [])]
    outputs = Outputs(config.out, options=config.options, figures=[beside(config.out, ".png")], inputs=inputs)
    device = choose_device(config.options.device)
    paths = list(dict.fromkeys(config.models))
    models = dict(zip(name_models(paths), map(load_model, paths), strict=True))
    attack_model = load_model(config.attack_model) if config.attack_model else None
    rows = evaluate(
        models,
        load_data(config, models, attack_model),
        config.noise,
        repeats=config.repeats,
        attack_model=attack_model,
        preprocess=config.preprocess,
        cifar10_c=config.cifar10_c,
        batch_size=config.batch_size,
        seed=config.options.seed,
        device=device,
    )
    write_csv(config.out, rows)
    print_tables(rows, config.repeats, Console())
    for figure in outputs.figures:
        draw_noise(summarise(rows, "top1", "both"), figure)
    outputs.finish({"results": rows, "seed": config.options.seed})


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.evaluate``."""
    return run_command(EvaluateConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
