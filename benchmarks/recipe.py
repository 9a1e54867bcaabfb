"""What each part of recipe fast pays: short trainings of the baseline with one part changed, over several seeds.

    python -m benchmarks.recipe --data folder:cifar10 --out recipe.csv --workers 2

Each change is made to the recipe's own settings (``--backbone`` and ``--width`` of a network that trains in minutes).
Accuracy is that of held-out training images after the last pass, clean and under noise; a gain is the difference from
the recipe as it is, seed by seed. Cost is processor time per image, which other load on the machine changes less than
its duration. Results are kept in ``--out``: an interrupted command goes on where it was.
"""

import multiprocessing
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro

from hybrid.architecture import Architecture
from hybrid.backbones import BACKBONES
from hybrid.evaluation import evaluate
from hybrid.paper.results import read_rows
from hybrid.printing import print_table
from hybrid.recipe import RECIPES, Recipe
from hybrid.training import train
from snn.data import Images, image_folders, load_images
from snn.data_source import DataSource
from snn.image_cache import Caching
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs, write_csv
from snn.runtime.progress import progress

REFERENCE = "recipe fast"
CHANGES: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    "SGD, not Muon": {"optimiser": "sgd"},
    "Muon at half the rate": {"muon_rate": RECIPES["fast"].muon_rate / 2},
    "Muon at twice the rate": {"muon_rate": RECIPES["fast"].muon_rate * 2},
    "label smoothing 0.1, not 0.2": {"label_smoothing": 0.1},
    "flips at random, not by turns": {"flips": "random"},
    "black borders, not reflected ones": {"border": "black"},
    "cutout of 8 pixels": {"cutout": 8},
    "first layer that whitens": {"first_layer": "whitening"},
    "average of weights (0.99)": {"average": 0.99},
    "whole images in all passes": {"small_share": 0.0},
    "two fully connected layers": {"embedding": 128},
    "weight decay 0.002, not 0.0005": {"weight_decay": 2e-3},
    "bfloat16": {"precision": "bfloat16"},
}
"""Changed fields of the recipe, or of the architecture, by what they mean."""
ChangeName = Literal[*CHANGES]  # type: ignore[valid-type]
CONDITIONS = ("clean", "awgn:15")

Row = dict[str, Any]


@dataclass(frozen=True)
class RecipeConfig:
    """Measure what each part of recipe fast pays."""

    out: Path
    """CSV file that keeps every result; those that it holds are not computed again."""
    backbone: Annotated[str, BACKBONES.flag("backbone")] = "fast_cnn"
    """Network to train, a baseline."""
    width: float = 0.5
    """Multiplier of its channels."""
    epochs: int = 5
    """Passes over the images."""
    batch_size: int = 256
    """Images per step: the fewer the images, the smaller, so that there are some hundreds of steps."""
    learning_rate: float = 0.2
    """Peak rate of SGD at this batch size."""
    holdout: float = 0.2
    """Share of the images that is held out, to measure on."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """A training of each change for each."""
    changes: tuple[ChangeName, ...] | None = None
    """Measure only these changes, and the recipe as it is; None: all."""
    workers: int = 1
    """Trainings at the same time, each in a process with one thread."""
    data_source: Annotated[DataSource, tyro.conf.arg(name="")] = field(
        default_factory=lambda: DataSource(limit_train=25_000)
    )
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check(len(self.seeds) >= 1, "`seeds`: give at least one")
        check(self.workers >= 1, f"`workers` {self.workers}: give 1 or more")

    @property
    def reference(self) -> Recipe:
        """Recipe fast for so short a training."""
        changes = {name: getattr(self, name) for name in ("epochs", "batch_size", "learning_rate", "holdout")}
        return replace(RECIPES["fast"], **changes)

    @property
    def settings(self) -> str:
        """What all rows of a file must share, in words."""
        return repr((self.data_source, self.backbone, self.width, self.reference.identity))


@cache
def images(source: DataSource, caching: Caching) -> Images:
    """Training images, loaded once in each process."""
    return load_images(source, "train", 0, cache=caching.cache)


def measure(config: RecipeConfig, change: str, seed: int) -> list[Row]:
    """Train once with a change of :data:`CHANGES`; one row for each condition."""
    torch.set_num_threads(1)
    fields = dict(CHANGES[change])
    embedding = fields.pop("embedding", None)
    architecture = Architecture(config.backbone, "baseline", config.width, embedding=embedding)
    recipe, data = replace(config.reference, **fields), images(config.data_source, config.caching)
    began, used = perf_counter(), process_time()
    model = train(data, architecture, recipe, seed=seed)
    seconds, processor = perf_counter() - began, process_time() - used
    held_out = recipe.held_out(data.labels, seed)
    part = Images(data.images[held_out], data.labels[held_out], data.classes, data.data_source)
    seen = (len(data.labels) - len(held_out)) * recipe.epochs
    shared = {
        "settings": config.settings,
        "change": change,
        "seed": seed,
        "images": len(held_out),
        "seconds": round(seconds, 1),
        "processor_ms_per_image": round(1000 * processor / seen, 3),
        "train_loss_nat": round(float(model.history["train_loss"][-1]), 4),
    }
    rows = evaluate(model, part, CONDITIONS)
    return [
        {**shared, "condition": row["condition"], "accuracy_percent": row["value_percent"]}
        for row in rows
        if row["metric"] == "top1"
    ]


def missing(config: RecipeConfig, rows: Iterable[Row]) -> Iterator[tuple[str, int]]:
    """Changes and seeds that ``rows`` do not hold; every change once before another seed."""
    held = {(row["change"], int(row["seed"])) for row in rows}
    wanted = CHANGES if config.changes is None else dict.fromkeys((REFERENCE, *config.changes))
    yield from ((change, seed) for seed in config.seeds for change in wanted if (change, seed) not in held)


def gains(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Lines of the table: change, seeds, accuracy of each condition and its gain, cost in processor time."""
    values: dict[tuple[str, str], dict[int, float]] = {}
    costs: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault((row["change"], row["condition"]), {})[int(row["seed"])] = float(row["accuracy_percent"])
        costs.setdefault(row["change"], []).append(float(row["processor_ms_per_image"]))
    lines = []
    for change in filter(costs.__contains__, CHANGES):
        cells = []
        for condition in CONDITIONS:
            own, usual = values[change, condition], values.get((REFERENCE, condition), {})
            gain = [own[seed] - usual[seed] for seed in own if seed in usual]
            cells.append(f"{np.mean(list(own.values())):.1f}")
            spread = f" ± {np.std(gain, ddof=1):.1f}" if len(gain) > 1 else ""
            cells.append("" if change == REFERENCE or not gain else f"{np.mean(gain):+.1f}{spread}")
        cost = f"{np.median(costs[change]):.2f}"
        lines.append((change, str(len(values[change, CONDITIONS[0]])), *cells, cost))
    return lines


def run(config: RecipeConfig) -> None:
    """The command: train what is missing, write, report."""
    outputs = Outputs(config.out, options=config.options, inputs=image_folders(config.data_source))
    rows: list[Row] = list(read_rows(config.out)) if config.out.exists() else []
    foreign = [row for row in rows if row["settings"] != config.settings]
    check(not foreign, f"{config.out} holds results of other images or settings: give another `out`")
    wanted = list(missing(config, rows))
    context = multiprocessing.get_context("spawn")
    with (
        progress(None, "training", "network", total=len(wanted)) as bar,
        ProcessPoolExecutor(config.workers, mp_context=context) as pool,
    ):
        pending: list[Future[list[Row]]] = [pool.submit(measure, config, *each) for each in wanted]
        try:
            for future in as_completed(pending):
                rows += future.result()
                write_csv(config.out, rows)
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    headings = [heading for condition in CONDITIONS for heading in (condition, "gain")]
    title = f"Accuracy (%) on held-out training images, {config.epochs} passes, {config.backbone} x {config.width:g}"
    print_table(title, ("change", "seeds", *headings, "ms of processor time per image"), gains(rows))
    outputs.finish({"results": rows})


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m benchmarks.recipe``."""
    return run_command(RecipeConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
