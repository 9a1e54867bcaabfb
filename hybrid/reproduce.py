"""Make the paper's tables and figures: every run they need, then Markdown, CSV and picture with the paper's numbers.

Runs are kept in one folder under names that identify them (:mod:`hybrid.paper.runs`). Those that exist are not made
again, and after an interruption the same command continues. Snakemake makes them (:mod:`hybrid.paper.workflow`);
what follows ``--`` is passed on to it, for example ``-- --keep-going``.
"""

import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hybrid.architecture import WIDTH
from hybrid.backbones import BACKBONES
from hybrid.image_size import learning_preset
from hybrid.paper.experiments import SCALES, Experiments
from hybrid.paper.parts import Writer
from hybrid.paper.runs import Place, in_order, missing_runs
from hybrid.paper.tables import PARTS, TableSpec
from hybrid.paper.workflow import Engine, make
from hybrid.recipe import Precision
from snn.data import image_folders
from snn.data_source import IMAGES, SIDE, DataSource, check_data
from snn.image_cache import Caching
from snn.runtime.cli import RunOptions, check_left_out, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import check
from snn.runtime.outputs import check_apart, check_outputs, remove_leftovers, write_json
from snn.runtime.ranges import Range, check_fields

PartName = Literal[*PARTS, "all"]  # type: ignore[valid-type]


@dataclass(frozen=True)
class ReproduceConfig:
    """Make tables and figures of the paper beside its numbers."""

    parts: tyro.conf.Positional[tuple[PartName, ...]]
    """Parts to make: table1 to table7, fig5 to fig7, ablations, unseen (Table 5's noises, trained on none),
    corruptions (the common ones), frontier (all networks of the search, on held-out training images), or all (without
    corruptions for digits, which are too small)."""
    out: Path = Path("runs/reproduce")
    """Folder for Markdown, CSV and pictures; made if it is not there."""
    runs: Path = Path("runs/reproduce/runs")
    """Folder of all runs, which are kept and used again."""
    scale: Literal["full", "fast", "small"] = "full"
    """full: the paper's sizes; fast: all images with backbone fast_cnn, which a CPU core trains in an hour, in place of
    the paper's; small: a slice with narrow networks, to check the machinery in minutes."""
    engine: Annotated[Engine, tyro.conf.arg(name="")] = field(default_factory=Engine)
    backbones: tuple[str, ...] | None = None
    """Backbones of the tables that compare several, in place of the scale's; fast_cnn stands for none of them."""
    data: str = "cifar10"
    """Images of Tables 2, 5 and 7, Figures 5 to 7 and the ablations: cifar10, digits or folder:PATH."""
    traffic: str | None = None
    """Images of Tables 3, 4 and 6 (paper: 20 traffic classes of ImageNet at 224 pixels), as folder:PATH; None: those
    of --data stand in."""
    traffic_size: Annotated[int | None, SIDE] = None
    """Resize traffic images to this height and width, in pixels."""
    root: Path | None = None
    """Folder that holds CIFAR-10."""
    seeds: Annotated[int | None, Range(1, 1000)] = None
    """Number of trainings of every network; None: 3, and 1 at small scale. The search always has one."""
    limit_train: Annotated[int | None, IMAGES] = None
    """Largest number of training images, in place of the scale's."""
    limit_test: Annotated[int | None, IMAGES] = None
    """Largest number of test images, in place of the scale's."""
    epochs: Annotated[int | None, Range(1, 10**5)] = None
    """Passes of supervised training, in place of the recipe's."""
    width: Annotated[float | None, WIDTH] = None
    """Multiplier of the backbones' channels, in place of the scale's."""
    precision: Precision = "auto"
    """In what trainings compute: float32 or bfloat16; auto: bfloat16 on CUDA, float32 on a CPU."""
    partial: bool = False
    """Make no run: write the tables from those that are there, however few seeds they have."""
    dry_run: bool = False
    """Only list the commands, in order; those whose file exists are marked as done."""
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_fields(self)
        check(
            (self.traffic is None) == (self.traffic_size is None),
            "`traffic` and `traffic_size` go together: settings for 32 or 224 pixels follow from the size",
        )
        for backbone in self.backbones or ():
            BACKBONES.check(backbone, "backbones")
        for name in ("data", "traffic"):
            if (data := getattr(self, name)) is not None:
                check_data(name, data)
        if self.dry_run:
            check_left_out(self.options, ("json", "figures"), "`dry_run` makes no tables")
            check_left_out(self, ("partial",), "`dry_run` only lists runs")
        check(bool(self.parts), f"name at least one of {', '.join((*PARTS, 'all'))}")

    @property
    def wanted(self) -> tuple[str, ...]:
        """Parts, each once."""
        if "all" not in self.parts:
            return tuple(dict.fromkeys(self.parts))
        # Common corruptions are made for colour images of 32 pixels and more.
        return tuple(part for part in PARTS if part != "corruptions" or self.data != "digits")


def experiments(config: ReproduceConfig) -> tuple[Experiments, Experiments]:
    """Experiments on CIFAR-10, and on traffic images or what stands in for them."""
    scale = SCALES[config.scale]
    names = ("seeds", "limit_train", "limit_test", "epochs", "width", "backbones")
    scale = replace(scale, **{name: getattr(config, name) for name in names if getattr(config, name) is not None})
    # A backbone that the user names is meant.
    named = config.backbones or ()
    scale = replace(scale, stand_ins={name: other for name, other in scale.stand_ins.items() if name not in named})
    cifar = Experiments(DataSource(config.data), scale, seed=config.options.seed)
    if config.traffic is None:
        return cifar, cifar
    traffic = DataSource(config.traffic, image_size=config.traffic_size)
    return cifar, replace(cifar, source=traffic, preset=learning_preset(config.traffic_size or 0))


def how_made(config: ReproduceConfig, experiments: Experiments) -> str:
    """How the numbers were made, for captions."""
    scale = experiments.scale
    limits = {
        "training images": config.limit_train,
        "epochs": config.epochs,
        # What is said of scale fast has its width.
        "of the backbones' width": None if config.scale == "fast" else config.width,
    }
    small = "a slice with narrow networks, to check the machinery: the numbers mean nothing"
    limited = [f"{value} {name}" for name, value in limits.items() if value]
    trained = ", ".join(scale.stand_ins.get(backbone, backbone) for backbone in scale.backbones)
    place = " in place of the paper's backbones" if scale.stand_ins else ""
    fast = f"{trained} of {scale.width:g} of its width{place}, recipe fast, all images, averaged over each image and "
    fast += "its mirror image"
    names = {"small": small, "fast": fast, "full": "full scale"}
    return ", ".join([names[config.scale], *limited])


def _check_folder(folder: Path) -> None:
    """Raise :class:`UserError` unless files can be written into the folder once it is made; leaves no trace."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    check(there.is_dir(), f"{there} is not a folder; give another name")
    missing = folder.absolute().relative_to(there.absolute()).parts
    check_outputs(there / (missing[0] if missing else "log.txt"))


def run(config: ReproduceConfig, snakemake: tuple[str, ...] = ()) -> None:
    """The command: make missing runs, then write all parts; ``snakemake`` holds further options of Snakemake."""
    cifar, traffic = experiments(config)
    device, plugin, threads = config.options.device, config.options.plugin, config.engine.threads
    place = Place(config.runs, device, config.root, plugin, threads, config.precision, config.caching)
    stand_in = "" if config.traffic else " (standing in for traffic images)"
    writer = Writer(config.out, place, cifar, traffic, how_made(config, cifar), stand_in, config.options.figures)
    parts = [PARTS[name] for name in config.wanted]
    # All runs at once, so that independent ones can be made at the same time.
    runs_of = {part.name: writer.runs(part) for part in parts}
    runs = [run for wanted in runs_of.values() for run in wanted]
    json = config.options.json
    for folder in (config.out, config.runs, *([json.parent] if json else [])):
        _check_folder(folder)
    if config.dry_run:
        needed = {run.identity for run in missing_runs(runs, config.runs)}
        for run in in_order(runs):
            done = "" if run.identity in needed else "# done: "
            print(f"{done}{shlex.join(['python', *run.command(place)])}")
        return
    if config.engine.local:
        choose_device(config.options.device)
    sources = (cifar.source.override(root=config.root), traffic.source)
    inputs = [folder for source in sources for folder in image_folders(source)]
    for folder in (config.out, config.runs):
        check_apart(folder, inputs)
    for folder in (config.out, config.runs):
        folder.mkdir(parents=True, exist_ok=True)
    remove_leftovers(config.out)
    check_outputs(config.options.json, inputs=inputs)
    if not config.partial:
        make(runs, place, config.engine, snakemake)
    there = {name: any(run.file(config.runs).exists() for run in wanted) for name, wanted in runs_of.items()}
    check(
        not config.partial or any(there.values()),
        f"no run of {', '.join(there)} is there: make one, or leave out `partial`",
    )
    for part in parts:
        if config.partial and not there[part.name]:
            print(f"no run of {part.name} is there")
            continue
        files = writer.write(part)
        if isinstance(part, TableSpec) and (part.number or part.derived):
            print(files[0].read_text(encoding="utf-8"))
        print("wrote " + ", ".join(map(str, files)))
    write_json(config.options.json, {"seed": config.options.seed, "parts": writer.rows})


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.reproduce``."""
    arguments = sys.argv[1:] if argv is None else argv
    end = arguments.index("--") if "--" in arguments else len(arguments)

    def reproduce(config: ReproduceConfig) -> None:
        run(config, tuple(arguments[end + 1 :]))

    return run_command(ReproduceConfig, reproduce, arguments[:end])


if __name__ == "__main__":
    sys.exit(main())
