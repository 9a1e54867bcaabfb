"""What each table and figure of the paper is made of: runs, described by their commands, and the cells they fill.

A :class:`Run` is one command. Its identity is a digest of its module, its flags and the identities of the runs whose
files it reads, and names its file: a run that exists is never made again, and one that differs in anything has another
name. Where results are written, and on which device they are computed, is not part of it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from hybrid.backbones import PAPER_BACKBONES
from hybrid.model import SCHEMA
from hybrid.recipe import choose_recipe
from snn.presets import PRESETS

SNR = ("clean", "awgn:40", "awgn:30", "awgn:25", "awgn:20", "awgn:15", "awgn:12")
SOURCE_SEED = 1000
"""Added to the seed of a baseline whose gradient is taken: another initialisation than the measured one's."""
AVERAGE = "average:2"


@dataclass(frozen=True)
class Run:
    """One command and the file it writes."""

    label: str
    """Start of the file's name, for people."""
    module: str
    """As in ``python -m``."""
    flags: tuple[str, ...]
    inputs: tuple[tuple[str, "Run"], ...] = ()
    """Runs whose files it reads, each with its flag ("" for an argument without one)."""
    suffix: str = ".h5"
    settings: str = ""
    """Defaults behind the flags, that another version may change."""

    @property
    def identity(self) -> str:
        """Equal for equal commands on equal inputs."""
        parts = (self.module, self.flags, self.settings, tuple((flag, run.identity) for flag, run in self.inputs))
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    def file(self, folder: Path) -> Path:
        """Where its result lies."""
        return folder / f"{self.label}-{self.identity}{self.suffix}"

    def arguments(self, folder: Path) -> list[str]:
        """Of the command."""
        files = {flag: str(run.file(folder)) for flag, run in self.inputs}
        positional = [files.pop("")] if "" in files else []
        flagged = [word for pair in files.items() for word in pair]
        return [*positional, *flagged, *self.flags, "--out", str(self.file(folder))]


@dataclass(frozen=True)
class Cell:
    """One number of a table."""

    model: str
    """As in the paper's table (hybrid/paper_tables.csv), where it has this row."""
    condition: str
    metric: str
    runs: tuple[Run, ...]
    """Evaluations, one for each training seed."""


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    seeds: int
    """Trainings of every network, with seeds 0, 1, ..."""
    images: tuple[str, ...]
    """Flags that choose images."""
    learning: tuple[str, ...]
    """Flags of snn.learn."""
    conversion: tuple[str, ...]
    """Flags of bridge.convert."""
    training: tuple[str, ...]
    """Flags of hybrid.train."""
    width: tuple[str, ...]
    """Flags of those backbones that have a width."""


SCALES = {
    # The paper's sizes; hybrid.train chooses the recipe.
    "full": Scale(3, (), (), ("--images", "256"), (), ()),
    # A slice with narrow networks, to see that everything works: its numbers mean nothing.
    "small": Scale(
        seeds=1,
        images=("--limit-train", "400", "--limit-test", "200"),
        learning=("--maps", "8", "8", "12", "--min-updates", "40"),
        conversion=("--images", "60", "--test-images", "60"),
        training=("--epochs", "4", "--batch-size", "24"),
        width=("--width", "0.25"),
    ),
}


@dataclass(frozen=True)
class Experiments:
    """All runs on one data set at one scale."""

    data: tuple[str, ...]
    """Flags that name the data, without those of the scale."""
    scale: Scale
    preset: str = "cifar10"
    """Of snn.learn."""

    def learn(self, rule: str = "fd") -> Run:
        """The spiking layers."""
        flags = (*self.data, *self.scale.images, "--preset", self.preset, *self.scale.learning, "--stdp.rule", rule)
        return Run(f"snn-{rule}", "snn.learn", flags, settings=repr(PRESETS[self.preset]))

    def convert(self, rule: str = "fd", conductances: str = "learned") -> Run:
        """Their front end."""
        name = rule if conductances == "learned" else conductances
        flags = (*self.scale.conversion, "--conductances", conductances)
        return Run(f"frontend-{name}", "bridge.convert", flags, (("", self.learn(rule)),))

    def train(
        self,
        variant: str,
        backbone: str = "mobilenet_v2",
        seed: int = 0,
        *,
        frontend: Run | None = None,
        noise: str = "clean",
        preprocess: str = "none",
        auxiliary: bool = True,
    ) -> Run:
        """One network; ``frontend`` is by default that of the FD rule."""
        flags = (*self.data, *self.scale.images, *self.scale.training, *self.scale.width)
        flags += ("--variant", variant, "--backbone", backbone, "--seed", str(seed))
        flags += ("--train-noise", noise) if noise != "clean" else ()
        flags += ("--preprocess", preprocess) if preprocess != "none" else ()
        flags += () if auxiliary else ("--auxiliary-maps", "0")
        inputs = () if variant == "baseline" else (("--frontend", frontend or self.convert()),)
        words = dict(zip(self.data[::2], self.data[1::2], strict=True))
        size = words.get("--image-size")
        settings = repr((SCHEMA, choose_recipe("auto", words["--data"], int(size) if size else None)))
        return Run(f"{variant}-{backbone}-seed{seed}", "hybrid.train", flags, inputs, settings=settings)

    def swap(self, seed: int, scale: str = "range") -> Run:
        """The lambda of a mu."""
        inputs = (("", self.train("mu", seed=seed)), ("--frontend", self.convert()))
        return Run(f"lambda-{scale}-seed{seed}", "hybrid.swap", ("--scale", scale), inputs)

    def evaluate(
        self, model: Run, conditions: tuple[str, ...], *, source: Run | None = None, preprocess: str = "none"
    ) -> Run:
        """Its accuracy under conditions."""
        flags = ("--noise", *conditions, "--preprocess", preprocess)
        inputs = (("", model),) + ((("--source", source),) if source else ())
        return Run(f"results-{model.label}", "hybrid.evaluate", flags, inputs, ".csv")

    @property
    def seeds(self) -> range:
        """Of the trainings."""
        return range(self.scale.seeds)

    def row(
        self,
        model: str,
        conditions: tuple[str, ...],
        backbone: str,
        variant: str,
        metric: str = "top1",
        filtered: str = "none",
        **training,
    ) -> list[Cell]:
        """Cells of one network under all conditions; ``filtered``: preprocessing in evaluation alone."""
        runs = tuple(
            self.evaluate(self.train(variant, backbone, seed, **training), conditions, preprocess=filtered)
            for seed in self.seeds
        )
        return [Cell(model, condition, metric, runs) for condition in conditions]

    def noise_table(
        self,
        conditions: tuple[str, ...],
        train_noise: dict[str, str],
        backbones: tuple[str, ...] = PAPER_BACKBONES,
        metric: str = "top1",
    ) -> list[Cell]:
        """Baseline, noise-trained, average filter (in evaluation alone, and in training too) and SAFE.

        ``train_noise`` names, for each kind of noise, what the noise-trained network is trained with.
        """
        cells = [c for b in backbones for c in self.row(f"baseline {b}", conditions, b, "baseline", metric)]
        for backbone in backbones:
            for level in dict.fromkeys(train_noise.values()):
                wanted = tuple(c for c in conditions if train_noise[c.partition(":")[0]] == level)
                cells += self.row(f"noise-trained {backbone}", wanted, backbone, "baseline", metric, noise=level)
        for backbone in backbones:
            cells += self.row(f"average-filter {backbone}", conditions, backbone, "baseline", metric, AVERAGE)
        for backbone in backbones:
            name = f"average-filter-trained {backbone}"
            cells += self.row(name, conditions, backbone, "baseline", metric, preprocess=AVERAGE)
        return cells + [c for b in backbones for c in self.row(f"safe {b}", conditions, b, "safe", metric)]

    def attack_table(self) -> list[Cell]:
        """Table 7: FGSM crafted on a conventional network of the same backbone, another initialisation."""
        conditions, cells = ("fgsm:3", "fgsm:8", "fgsm:16"), []
        for variant, backbone in product(("baseline", "safe"), PAPER_BACKBONES):
            runs = tuple(
                self.evaluate(
                    self.train(variant, backbone, seed),
                    conditions,
                    source=self.train("baseline", backbone, SOURCE_SEED + seed),
                )
                for seed in self.seeds
            )
            cells += [Cell(f"{variant} {backbone}", condition, "top1", runs) for condition in conditions]
        return cells

    def ablations(self) -> list[Cell]:
        """What each part contributes, with MobileNetV2."""
        backbone = "mobilenet_v2"
        cells = self.row(f"baseline {backbone}", SNR, backbone, "baseline")
        cells += self.row("baseline, input quantised", SNR, backbone, "baseline", preprocess="quantise")
        cells += self.row(f"safe {backbone}", SNR, backbone, "safe")
        for name, frontend in (
            ("safe, stochastic STDP", self.convert("stochastic")),
            ("safe, deterministic STDP", self.convert("deterministic")),
            ("safe, shuffled conductances", self.convert(conductances="shuffled")),
            ("safe, random conductances", self.convert(conductances="random")),
        ):
            cells += self.row(name, SNR, backbone, "safe", frontend=frontend)
        cells += self.row("safe, no auxiliary CNN", SNR, backbone, "safe", auxiliary=False)
        cells += self.row("mu", SNR, backbone, "mu")
        for scale in ("range", "literal"):
            runs = tuple(self.evaluate(self.swap(seed, scale), SNR) for seed in self.seeds)
            cells += [Cell(f"lambda, {scale}", condition, "top1", runs) for condition in SNR]
        return cells


def table_cells(name: str, cifar: Experiments, traffic: Experiments) -> list[Cell]:
    """Cells of a table (2 to 7) or of the ablations, in the order of the paper."""
    kinds = ("wald", "poisson", "salt-pepper")
    first = {"wald": "wald:3,0.3", "poisson": "poisson:255", "salt-pepper": "salt-pepper:0.05"}
    if name == "table2":
        return cifar.noise_table(SNR, dict.fromkeys(("clean", "awgn"), "awgn:30"))
    if name == "table3":
        conditions = ("clean", "awgn:25", "awgn:15", "awgn:10", "awgn:5")
        return traffic.noise_table(conditions, dict.fromkeys(("clean", "awgn"), "awgn:25"))
    if name == "table4":
        noise = dict.fromkeys(("clean", "awgn"), "awgn:25")
        return traffic.noise_table(("clean", "awgn:10", "awgn:5"), noise, PAPER_BACKBONES[:1], "top5")
    if name == "table5":
        second = {"wald": "wald:13,1", "poisson": "poisson:75", "salt-pepper": "salt-pepper:0.20"}
        return cifar.noise_table(tuple(levels[kind] for kind in kinds for levels in (first, second)), first)
    if name == "table6":
        first |= {"wald": "wald:5,0.3"}
        second = {"wald": "wald:25,1", "poisson": "poisson:45", "salt-pepper": "salt-pepper:0.30"}
        conditions = tuple(levels[kind] for kind in kinds for levels in (first, second))
        return traffic.noise_table(conditions, first, PAPER_BACKBONES[:1])
    return cifar.attack_table() if name == "table7" else cifar.ablations()


def in_order(runs: list[Run]) -> list[Run]:
    """All runs that these need, each once, after those it reads."""

    def needed(run: Run) -> Iterator[Run]:
        for _, read in run.inputs:
            yield from needed(read)
        yield run

    return list({run.identity: run for wanted in runs for run in needed(wanted)}.values())
