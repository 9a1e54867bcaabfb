"""Make the paper's tables and figures: every run they need, then Markdown, CSV and picture with the paper's numbers.

Runs are kept in one folder under names that say what they are (:mod:`hybrid.experiments`): what is there is not made
again, and after an interruption the same command goes on.
"""

import contextlib
import csv
import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Literal

import numpy as np
import tyro

from hybrid.complexity import complexity_rows, draw_complexity
from hybrid.embedding import draw_embedding, embed_models, panel_rows
from hybrid.evaluate import load_test_images
from hybrid.experiments import SCALES, Cell, Experiments, Run, in_order, table_cells
from hybrid.figures import draw_table, draw_training
from hybrid.model import TrainedModel, history_rows, load_model
from hybrid.noise import parse_condition
from hybrid.paper import paper_value
from snn.command import RunOptions, check_outputs, choose_device, run_command, write_atomically, write_csv
from snn.errors import UserError, check
from snn.weights import load_network

Part = Literal[
    "table1", "table2", "table3", "table4", "table5", "table6", "table7", "fig5", "fig6", "fig7", "ablations", "all"
]
PARTS = Part.__args__[:-1]
RESUMABLE = ("snn.learn", "hybrid.train")
EMBEDDED = 1000
"""Test images in the panels of Figures 6 and 7, at most."""


@dataclass(frozen=True)
class ReproduceConfig:
    """Make tables and figures of the paper beside its numbers."""

    parts: tyro.conf.Positional[tuple[Part, ...]]
    """Which: table1 to table7, fig5 to fig7, ablations, or all."""
    out: Path = Path("runs/reproduce")
    """Folder for Markdown, CSV and pictures; made if it is not there."""
    runs: Path = Path("runs/reproduce/runs")
    """Folder of all runs, kept and used again."""
    scale: Literal["full", "small"] = "full"
    """full: the paper's sizes; small: a slice with narrow networks, to check the machinery in minutes."""
    data: str = "cifar10"
    """Images of Tables 2, 5 and 7, Figures 5 to 7 and the ablations: cifar10, digits or folder:PATH."""
    traffic: str | None = None
    """Images of Tables 3, 4 and 6 (paper: 20 traffic classes of ImageNet at 224 pixels), as folder:PATH; None: those
    of --data stand in."""
    traffic_size: int | None = None
    """Resize these to so many pixels a side."""
    root: Path | None = None
    """Folder that holds CIFAR-10."""
    seeds: int | None = None
    """Trainings of every network; None: 3 at full scale, 1 at small."""
    limit_train: int | None = None
    """At most this many training images, in place of the scale's."""
    limit_test: int | None = None
    """At most this many test images, in place of the scale's."""
    epochs: int | None = None
    """Passes of supervised training, in place of the recipe's."""
    width: float | None = None
    """Multiplier of the backbones' channels, in place of the scale's."""
    dry_run: bool = False
    """Only list the commands, in order, with what is there already."""
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check(
            (self.traffic is None) == (self.traffic_size is None),
            "--traffic and --traffic-size go together: settings for 32 or 224 pixels follow from the size",
        )
        check(bool(self.parts), f"name at least one of {', '.join((*PARTS, 'all'))}")
        for name in ("seeds", "limit_train", "limit_test", "epochs"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"--{name.replace('_', '-')} {value}: give 1 or more")

    @property
    def wanted(self) -> tuple[str, ...]:
        """Parts, each once."""
        return PARTS if "all" in self.parts else tuple(dict.fromkeys(self.parts))


def experiments(config: ReproduceConfig) -> tuple[Experiments, Experiments]:
    """Those on CIFAR-10 and those on the traffic images, or what stands in for them."""
    scale = SCALES[config.scale]
    images = dict(zip(scale.images[::2], scale.images[1::2], strict=True))
    given = {"--limit-train": config.limit_train, "--limit-test": config.limit_test}
    images |= {flag: str(value) for flag, value in given.items() if value is not None}
    training = dict(zip(scale.training[::2], scale.training[1::2], strict=True))
    training |= {"--epochs": str(config.epochs)} if config.epochs else {}
    scale = replace(
        scale,
        seeds=config.seeds or scale.seeds,
        images=tuple(word for pair in images.items() for word in pair),
        training=tuple(word for pair in training.items() for word in pair),
        width=("--width", str(config.width)) if config.width else scale.width,
    )
    cifar = Experiments(("--data", config.data), scale)
    if config.traffic is None:
        return cifar, cifar
    size = ("--image-size", str(config.traffic_size)) if config.traffic_size else ()
    preset = "imagenet" if config.traffic_size and config.traffic_size >= 96 else "cifar10"
    return cifar, Experiments(("--data", config.traffic, *size), scale, preset)


class Maker:
    """Makes runs, one after another, and tells how far it is."""

    def __init__(self, config: ReproduceConfig) -> None:
        self.config, self.folder, self.log = config, config.runs, config.runs / "log.txt"

    def make(self, runs: list[Run]) -> None:
        """Each run that is not there yet, after those it reads."""
        missing = [run for run in in_order(runs) if not self.done(run)]
        spent = 0.0
        for number, run in enumerate(missing, 1):
            left = f", about {spent / (number - 1) * (len(missing) - number + 1) / 60:.0f} min left" if spent else ""
            print(f"[{number}/{len(missing)}{left}] {run.module}: {run.file(self.folder).name}", flush=True)
            began = perf_counter()
            self._make(run)
            spent += perf_counter() - began

    def done(self, run: Run) -> bool:
        """Whether its file is there; an interrupted snn.learn leaves one, too."""
        file = run.file(self.folder)
        return file.exists() and (run.module != "snn.learn" or load_network(file)[0].complete)

    def command(self, run: Run) -> list[str]:
        """What follows ``python -m``."""
        options = ["--no-figures", "--device", self.config.options.device]
        options += ["--resume"] if run.module in RESUMABLE else []
        reads_images = run.module in RESUMABLE or run.module in ("hybrid.evaluate", "hybrid.swap", "bridge.convert")
        options += ["--root", str(self.config.root)] if self.config.root and reads_images else []
        return [run.module, *run.arguments(self.folder), *options]

    def _make(self, run: Run) -> None:
        module, *arguments = self.command(run)
        main: Callable[[list[str]], int] = importlib.import_module(module).main
        # What the commands print is kept; what they are doing shows on stderr.
        with open(self.log, "a") as log, contextlib.redirect_stdout(log):
            print(f"\npython -m {module} {' '.join(arguments)}", flush=True)
            status = main(arguments)
        if status == 130:
            raise KeyboardInterrupt
        check(status == 0, f"python -m {module} {' '.join(arguments)} failed (see above); mend that and start again")


def read_values(cell: Cell, folder: Path) -> list[dict]:
    """The row of each of its runs, with both paths (the first noise seed)."""
    found = []
    for run in cell.runs:
        with open(run.file(folder), newline="") as file:
            found.append(
                next(
                    row
                    for row in csv.DictReader(file)
                    if (row["condition"], row["metric"], row["paths"]) == (cell.condition, cell.metric, "both")
                )
            )
    return found


def table_rows(name: str, cells: list[Cell], folder: Path) -> list[dict]:
    """One row per cell: our mean and deviation over seeds, the paper's number, the difference."""
    rows = []
    for cell in cells:
        found = read_values(cell, folder)
        values = [float(row["value_percent"]) for row in found]
        # The ablations share their first rows with Table 2.
        paper = paper_value(2 if name == "ablations" else int(name[-1]), cell.model, cell.condition, cell.metric)
        rows.append(
            {
                "table": name,
                "model": cell.model,
                "condition": cell.condition,
                "metric": cell.metric,
                "ours_percent": round(float(np.mean(values)), 3),
                "deviation_percent": round(float(np.std(values, ddof=1)), 3) if len(values) > 1 else "",
                "standard_error_percent": found[0]["standard_error_percent"],
                "seeds": len(values),
                "images": found[0]["images"],
                "paper_percent": "" if paper is None else paper,
                "difference_percent": "" if paper is None else round(float(np.mean(values)) - paper, 3),
                "model_digests": " ".join(row["model_digest"] for row in found),
            }
        )
    return rows


def heading(part: str) -> str:
    """As people write it: "Table 2"."""
    words = {"table": "Table ", "fig": "Figure "}
    return next((word + part[len(short) :] for short, word in words.items() if part.startswith(short)), "Ablations")


def markdown(name: str, rows: list[dict], caption: str) -> str:
    """The table: ours ± deviation, then the paper's number and the difference."""
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    found = {(row["model"], row["condition"]): row for row in rows}
    lines = [f"# {heading(name)}", "", caption, "", "| model | " + " | ".join(f"`{c}`" for c in conditions) + " |"]
    lines.append("|---" * (len(conditions) + 1) + "|")
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = [_cell(found[model, c]) if (model, c) in found else "" for c in conditions]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(row: dict) -> str:
    ours = f"{row['ours_percent']:.1f}"
    if row["deviation_percent"] != "":
        ours += f" ± {row['deviation_percent']:.1f}"
    return (
        ours if row["paper_percent"] == "" else f"{ours} ({row['paper_percent']:.1f}, {row['difference_percent']:+.1f})"
    )


def write_markdown(path: Path, text: str) -> None:
    """Whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text))


class Parts:
    """Each part: the runs it needs, and what is written once they are there."""

    def __init__(self, config: ReproduceConfig) -> None:
        self.config = config
        self.cifar, self.traffic = experiments(config)

    def runs(self, part: str) -> list[Run]:
        """Of one part."""
        cifar, safe = self.cifar, self.cifar.train("safe")
        if part == "table1":
            return []
        if part == "fig5":
            return [safe]
        if part == "fig6":
            return [safe, cifar.train("safe", frontend=cifar.convert("deterministic"))]
        if part == "fig7":
            return [cifar.train("baseline"), cifar.train("mu"), cifar.swap(0), safe]
        return [run for cell in table_cells(part, self.cifar, self.traffic) for run in cell.runs]

    def write(self, part: str) -> list[Path]:
        """Markdown, CSV and picture of one part."""
        base = self.config.out / part
        files = [base.with_suffix(suffix) for suffix in (".md", ".csv", ".png")]
        {"table1": self._complexity, "fig5": self._training, "fig6": self._embedding, "fig7": self._embedding}.get(
            part, self._table
        )(part, *files)
        return files

    @property
    def _made(self) -> str:
        config = self.config
        limits = {"training images": config.limit_train, "test images": config.limit_test, "epochs": config.epochs}
        told = [f"{value} {name}" for name, value in limits.items() if value]
        small = "a slice with narrow networks, to check the machinery: the numbers mean nothing"
        return ", ".join([small if config.scale == "small" else "full scale", *told])

    def _table(self, part: str, text: Path, table: Path, picture: Path) -> None:
        cells = table_cells(part, self.cifar, self.traffic)
        rows = table_rows(part, cells, self.config.runs)
        traffic = part in ("table3", "table4", "table6")
        data = self.config.traffic or f"{self.config.data} (standing in for traffic images)"
        data = data if traffic else self.config.data
        metric, seeds = rows[0]["metric"], rows[0]["seeds"]
        caption = (
            f"{metric} accuracy in %, {data}, {rows[0]['images']} test images; {self._made}. Ours"
            + (f" ± standard deviation over {seeds} training seeds" if seeds > 1 else " (one training seed)")
            + "; in brackets the paper's number and the difference."
        )
        write_csv(table, rows)
        write_markdown(text, markdown(part, rows, caption))
        draw_table(rows, f"{heading(part)}: {metric} accuracy on {data}", picture)

    def _complexity(self, part: str, text: Path, table: Path, picture: Path) -> None:
        rows = complexity_rows()
        write_csv(table, rows)
        names = list(rows[0])
        lines = [f"# {heading(part)}", "", "Parameters (M) and multiply-accumulates (G), ours and the paper's.", ""]
        lines += ["| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
        lines += ["| " + " | ".join(_number(row[name]) for name in names) + " |" for row in rows]
        write_markdown(text, "\n".join(lines) + "\n")
        draw_complexity(rows, picture)

    def _load(self, run: Run) -> TrainedModel:
        return load_model(run.file(self.config.runs))

    def _training(self, part: str, text: Path, table: Path, picture: Path) -> None:
        model = self._load(self.runs(part)[0])
        rows = history_rows({name: values.tolist() for name, values in model.history.items()})
        write_csv(table, rows)
        last = rows[-1]
        caption = (
            f"SAFE-MobileNetV2 on {self.config.data}, {self._made}; held-out training images in place of the paper's "
            "test images, which are looked at once, for the tables."
        )
        lines = [
            f"# {heading(part)}",
            "",
            caption,
            "",
            "| after the last epoch | training | held out |",
            "|---|---|---|",
        ]
        lines.append(f"| loss (nat) | {last['train_loss']:.3f} | {last['val_loss']:.3f} |")
        lines.append(f"| accuracy (%) | {100 * last['train_accuracy']:.1f} | {100 * last['val_accuracy']:.1f} |")
        write_markdown(text, "\n".join(lines) + "\n")
        draw_training(model, f"SAFE-MobileNetV2 on {self.config.data}", picture)

    def _embedding(self, part: str, text: Path, table: Path, picture: Path) -> None:
        names = ("FD stochastic", "deterministic") if part == "fig6" else ("baseline", "mu", "lambda", "SAFE")
        noise = ("awgn:20", "awgn:18", "awgn:15") if part == "fig6" else ("clean", "awgn:25")
        models = dict(zip(names, map(self._load, self.runs(part)), strict=True))
        limit = min(EMBEDDED, models[names[0]].source.limit_test or EMBEDDED)
        seed, device = self.config.options.seed, choose_device(self.config.options.device)
        data = load_test_images(models, None, self.config.root, limit, seed)
        panels = embed_models(models, data, [parse_condition(c) for c in noise], seed, device)
        rows = panel_rows(panels)
        write_csv(table, rows)
        lines = [f"# {heading(part)}", "", f"Embedding of test images of {data.source.data}, {self._made}.", ""]
        lines += ["| model | condition | silhouette | top1 (%) |", "|---|---|---|---|"]
        lines += [
            f"| {r['model']} | `{r['condition']}` | {r['silhouette']:.3f} | {r['accuracy_percent']:.1f} |" for r in rows
        ]
        write_markdown(text, "\n".join(lines) + "\n")
        draw_embedding(panels, data.classes, picture)


def _number(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def run(config: ReproduceConfig) -> None:
    """The command: make what is missing, then write."""
    choose_device(config.options.device)
    parts, maker = Parts(config), Maker(config)
    if config.dry_run:
        for run in in_order([run for part in config.wanted for run in parts.runs(part)]):
            print(("# done: " if maker.done(run) else "") + "python -m " + " ".join(maker.command(run)))
        return
    for folder in (config.out, config.runs):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make folder {folder}: {error.strerror}; choose another") from error
        check_outputs(folder / "log.txt")
    # All runs first: the estimate is that of the whole.
    maker.make([run for part in config.wanted for run in parts.runs(part)])
    for part in config.wanted:
        files = parts.write(part)
        if part.startswith(("table", "ablations")) and part != "table1":
            print(files[0].read_text())
        print("wrote " + ", ".join(map(str, files)))


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.reproduce``."""
    return run_command(ReproduceConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
