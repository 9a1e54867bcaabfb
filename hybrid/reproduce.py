"""Make the paper's tables and figures: every run they need, then Markdown, CSV and picture with the paper's numbers.

Runs are kept in one folder under names that say what they are (:mod:`hybrid.paper.experiments`): what is there is not
made again, and after an interruption the same command goes on.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hybrid.complexity import complexity_rows, draw_complexity
from hybrid.conditions import Noise
from hybrid.embedding import draw_embedding, embed_models, panel_rows
from hybrid.evaluation import load_test_images
from hybrid.figures import draw_frontier, draw_table, draw_training
from hybrid.image_size import learning_preset
from hybrid.paper.experiments import FRONTIER, SCALES, Experiments, Run, in_order, table_cells
from hybrid.paper.maker import Maker
from hybrid.paper.networks import BASELINE, CONTRIBUTIONS, MU, SAFE
from hybrid.paper.tables import category_rows, difference_rows, recovered_rows, table_lines, table_rows
from hybrid.storage import TrainedModel, history_rows, load_model
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import UserError, check
from snn.runtime.outputs import check_outputs, write_atomically, write_csv

Part = Literal[
    *("table1", "table2", "table3", "table4", "table5", "table6", "table7", "fig5", "fig6", "fig7"),
    *("ablations", "unseen", "corruptions", "frontier", "all"),
]
PARTS = Part.__args__[:-1]
EMBEDDED = 1000
"""Test images in the panels of Figures 6 and 7, at most."""


@dataclass(frozen=True)
class ReproduceConfig:
    """Make tables and figures of the paper beside its numbers."""

    parts: tyro.conf.Positional[tuple[Part, ...]]
    """Which: table1 to table7, fig5 to fig7, ablations, unseen (Table 5's noises, trained on none), corruptions (the
    common ones), frontier (all networks of the search, on held-out training images), or all (without corruptions for
    digits, which are too small)."""
    out: Path = Path("runs/reproduce")
    """Folder for Markdown, CSV and pictures; made if it is not there."""
    runs: Path = Path("runs/reproduce/runs")
    """Folder of all runs, kept and used again."""
    scale: Literal["full", "reduced", "small"] = "full"
    """full: the paper's sizes; reduced: fewer images, a shallow MobileNetV2 and few epochs, for two CPU cores; small: a
    slice with narrow networks, to check the machinery in minutes."""
    workers: int = 1
    """Runs made at the same time, each by a share of the CPU's cores."""
    backbones: tuple[str, ...] | None = None
    """Of the tables that have several, in place of the scale's."""
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
    """Trainings of every network; None: 3, and 1 at small scale. The search always has one."""
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
            "`traffic` and `traffic_size` go together: settings for 32 or 224 pixels follow from the size",
        )
        check(bool(self.parts), f"name at least one of {', '.join((*PARTS, 'all'))}")
        for name in ("seeds", "limit_train", "limit_test", "epochs", "workers"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"`{name}` {value}: give 1 or more")

    @property
    def wanted(self) -> tuple[str, ...]:
        """Parts, each once."""
        if "all" not in self.parts:
            return tuple(dict.fromkeys(self.parts))
        # Common corruptions are made for colour images of 32 pixels and more.
        return tuple(part for part in PARTS if part != "corruptions" or self.data != "digits")


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
        learning=_at_most(scale.learning, "--limit-train", config.limit_train),
        corrupted=_at_most(scale.corrupted, "--limit-test", config.limit_test),
        training=tuple(word for pair in training.items() for word in pair),
        width=("--width", str(config.width)) if config.width else scale.width,
        backbones=config.backbones or scale.backbones,
    )
    cifar = Experiments(("--data", config.data), scale)
    if config.traffic is None:
        return cifar, cifar
    size = ("--image-size", str(config.traffic_size)) if config.traffic_size else ()
    return cifar, Experiments(("--data", config.traffic, *size), scale, learning_preset(config.traffic_size or 0))


def _at_most(flags: tuple[str, ...], flag: str, limit: int | None) -> tuple[str, ...]:
    """``flags`` with the number behind ``flag``, where they have it, no larger than ``limit``."""
    if limit is None or flag not in flags:
        return flags
    place = flags.index(flag) + 1
    return (*flags[:place], str(min(limit, int(flags[place]))), *flags[place + 1 :])


def heading(part: str) -> str:
    """As people write it: "Table 2"."""
    words = {"table": "Table ", "fig": "Figure "}
    return next(
        (word + part[len(short) :] for short, word in words.items() if part.startswith(short)), part.capitalize()
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
        cifar, safe = self.cifar, self.cifar.train(SAFE)
        if part == "table1":
            return []
        if part == "fig5":
            return [safe]
        if part == "fig6":
            return [safe, cifar.train(replace(SAFE, name="safe, deterministic STDP", rule="deterministic"))]
        if part == "fig7":
            return [cifar.train(BASELINE), cifar.train(MU), cifar.swap(0), safe]
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
        config, scale = self.config, self.cifar.scale
        if config.scale == "reduced":
            shallow = [f"{used} for {name}" for name, used in scale.stand_ins.items()]
            # How many test images there are is told with each table.
            images = scale.images[: scale.images.index("--limit-test")]
            return f"reduced scale ({', '.join(shallow)}; {' '.join((*images, *scale.training, *scale.width))})"
        limits = {
            "training images": config.limit_train,
            "epochs": config.epochs,
            "of the backbones' width": config.width,
        }
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
        compared = any(row["paper_percent"] != "" for row in rows)
        caption = (
            f"{metric} accuracy in %, {data}, {rows[0]['images']} "
            f"{'held-out training' if part == 'frontier' else 'test'} images; {self._made}. Ours"
            + (f" ± standard deviation over {seeds} training seeds" if seeds > 1 else " (one training seed)")
            + ("; in brackets the paper's number and the difference." if compared else ".")
        )
        # Where a folder of images lies is of no interest in a picture.
        shown = Path(data).name if data.startswith("folder:") else data
        lines = [f"# {heading(part)}", "", caption, "", *table_lines(rows)]
        write_csv(table, rows)
        if part == "table2":
            # What noise costs the baseline, and how much of that the others win back.
            recovered = [r for b in self.cifar.scale.backbones for r in self._recovered(rows, b)]
            if recovered:
                write_csv(table.with_name("recovered.csv"), recovered)
                lines += ["", "Share of the baseline's loss that is won back:", "", *table_lines(recovered)]
        if part == "ablations":
            differences = difference_rows(rows, CONTRIBUTIONS, FRONTIER)
            write_csv(table.with_name("contributions.csv"), differences)
            lines += ["", "Points that each part adds, seed by seed:", "", *table_lines(differences)]
        write_markdown(text, "\n".join(lines) + "\n")
        if part == "frontier":
            draw_frontier(rows, picture)
        elif part == "corruptions":
            draw_table(category_rows(rows), f"Common corruptions: mean accuracy on {shown}", picture)
        else:
            draw_table(rows, f"{heading(part)}: {metric} accuracy on {shown}", picture)

    @staticmethod
    def _recovered(rows: list[dict], backbone: str) -> list[dict]:
        mine = [row for row in rows if row["model"].endswith(f" {backbone}")]
        return recovered_rows(mine, f"baseline {backbone}")

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
        limit = min(EMBEDDED, models[names[0]].data_source.limit_test or EMBEDDED)
        seed, device = self.config.options.seed, choose_device(self.config.options.device)
        data = load_test_images(models, None, self.config.root, limit, seed)
        panels = embed_models(models, data, [Noise.parse(c) for c in noise], seed, device)
        rows = panel_rows(panels)
        write_csv(table, rows)
        lines = [f"# {heading(part)}", "", f"Embedding of test images of {data.data_source.data}, {self._made}.", ""]
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
    parts, maker = Parts(config), Maker(config.runs, config.options.device, config.root, config.workers)
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
