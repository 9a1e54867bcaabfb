"""What each table and figure of the paper is made of: runs, described by their commands, and the cells they fill.

A :class:`Run` is one command. Its identity is a digest of its module, its flags and the identities of the runs whose
files it reads, and names its file: a run that exists is never made again, and one that differs in anything has another
name. Where results are written, and on which device they are computed, is not part of it.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from math import prod
from pathlib import Path

from hybrid.backbones import PAPER_BACKBONES
from hybrid.conditions.corruptions import CORRUPTIONS
from hybrid.paper.networks import ABLATIONS, AVERAGE_TRAINED, BASELINE, MU, SAFE, SEARCH, TUNED, Network, noise_trained
from hybrid.recipe import choose_recipe
from hybrid.storage import SCHEMA
from snn.learning import PRESETS

FRONTIER = ("clean", "awgn:20", "awgn:15", "awgn:12")
"""Conditions of the search."""


SNR = ("clean", "awgn:40", "awgn:30", "awgn:25", "awgn:20", "awgn:15", "awgn:12")


SOURCE_SEED = 1000
"""Added to the seed of a baseline whose gradient is taken: another initialisation than the measured one's."""


AVERAGE = "average:2"


UNSEEN = ("wald:3,0.3", "wald:13,1", "poisson:255", "poisson:75", "salt-pepper:0.05", "salt-pepper:0.20")
"""Noises that no network is trained on, but for the noise-trained ones of Table 5."""


UNSEEING = (BASELINE, noise_trained("awgn:30"), SAFE, MU, TUNED)
"""Networks to set beside each other at noises that none of them has seen."""


SEVERITIES = (1, 2, 3)
"""Of common corruptions. ImageNet-C's: 4 and 5 leave little of images of 32 pixels."""


@dataclass(frozen=True)
class Run:
    """One command and the file it writes."""

    label: str
    """Start of the file's name, for people."""
    module: str
    """As in ``python -m``."""
    flags: tuple[str, ...]
    inputs: tuple[tuple[str, "Run"], ...] = ()
    """Runs whose files it reads, each with its flag ("" for arguments without one)."""
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
        files = [(flag, str(run.file(folder))) for flag, run in self.inputs]
        positional = [file for flag, file in files if not flag]
        flagged = [word for flag, file in files if flag for word in (flag, file)]
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
    networks: tuple[Run, ...]
    """Whose accuracy it is, of those that these evaluations measure."""
    factor: str = ""
    """What the search tries it for."""


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
    backbones: tuple[str, ...] = PAPER_BACKBONES
    """Of the tables that have several."""
    stand_ins: dict[str, str] = field(default_factory=dict)
    """Cheaper backbones in place of the paper's."""
    corrupted: tuple[str, ...] = ("--limit-test", "1000")
    """Flags of hybrid.evaluate with corruptions, which are slow to compute."""


SCALES = {
    # The paper's sizes; hybrid.train chooses the recipe.
    "full": Scale(3, (), (), ("--images", "256"), (), ()),
    # What two CPU cores do in hours: a third of the images, shallow and narrow networks, few epochs.
    "reduced": Scale(
        seeds=3,
        images=("--limit-train", "15000", "--limit-test", "5000"),
        learning=("--limit-train", "4000"),
        conversion=("--images", "256"),
        training=(
            *("--epochs", "8", "--batch-size", "32", "--learning-rate", "0.03"),
            *("--holdout", "0.33333"),
        ),
        width=("--width", "0.25"),
        backbones=PAPER_BACKBONES[:1],
        stand_ins={"mobilenet_v2": "mobilenet_v2_shallow"},
    ),
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

    def learn(self, network: Network = SAFE) -> Run:
        """Its spiking layers."""
        flags = (*self.data, *self.scale.images, "--preset", self.preset, *self.scale.learning, *network.learning)
        if network.learning and self.preset == "imagenet":
            # One layer takes the whole stride of the preset's three.
            flags += ("--strides", str(prod(PRESETS[self.preset].strides)))
        flags += ("--stdp.rule", network.rule)
        return Run(f"snn-{network.rule}", "snn.learn", flags, settings=repr(PRESETS[self.preset]))

    def convert(self, network: Network = SAFE) -> Run:
        """Its front end."""
        name = network.rule if network.conductances == "learned" else network.conductances
        flags = (*self.scale.conversion, "--conductances", network.conductances, *network.conversion)
        return Run(f"frontend-{name}", "bridge.convert", flags, (("", self.learn(network)),))

    def train(self, network: Network, backbone: str = "mobilenet_v2", seed: int = 0) -> Run:
        """One training of it."""
        flags = (*self.data, *self.scale.images, *self.scale.training, *self.scale.width)
        flags += ("--variant", network.variant, "--backbone", self.scale.stand_ins.get(backbone, backbone))
        flags += ("--seed", str(seed), *network.training)
        inputs = () if network.variant == "baseline" else (("--frontend", self.convert(network)),)
        words = dict(zip(self.data[::2], self.data[1::2], strict=True))
        size = words.get("--image-size")
        settings = repr((SCHEMA, choose_recipe("auto", words["--data"], int(size or 0))))
        return Run(f"{network.variant}-{backbone}-seed{seed}", "hybrid.train", flags, inputs, settings=settings)

    def swap(self, seed: int, scale: str = "range") -> Run:
        """The lambda of a mu."""
        inputs = (("", self.train(MU, seed=seed)), ("--frontend", self.convert(MU)))
        return Run(f"lambda-{scale}-seed{seed}", "hybrid.swap", ("--scale", scale), inputs)

    def evaluate(
        self,
        models: tuple[Run, ...],
        conditions: tuple[str, ...],
        *,
        source: Run | None = None,
        flags: tuple[str, ...] = (),
    ) -> Run:
        """Their accuracy under conditions; ``flags`` are further ones of hybrid.evaluate."""
        inputs = (*(("", model) for model in models), *((("--attack-model", source),) if source else ()))
        name = models[0].label if len(models) == 1 else f"{len(models)}-networks"
        return Run(f"results-{name}", "hybrid.evaluate", ("--noise", *conditions, *flags), inputs, ".csv")

    @property
    def seeds(self) -> range:
        """Of the trainings."""
        return range(self.scale.seeds)

    def row(
        self,
        network: Network,
        conditions: tuple[str, ...],
        backbone: str = "mobilenet_v2",
        metric: str = "top1",
        *,
        name: str = "",
        flags: tuple[str, ...] = (),
    ) -> list[Cell]:
        """Cells of one network under all conditions; ``name``: of the row, if not the network's and the backbone's."""
        trained = tuple(self.train(network, backbone, seed) for seed in self.seeds)
        return self.cells(name or f"{network.name} {backbone}", trained, conditions, metric, flags)

    def cells(
        self,
        name: str,
        models: tuple[Run, ...],
        conditions: tuple[str, ...],
        metric: str = "top1",
        flags: tuple[str, ...] = (),
    ) -> list[Cell]:
        """A row of a table: models of one kind, one for each seed, under all conditions."""
        runs = tuple(self.evaluate((model,), conditions, flags=flags) for model in models)
        return [Cell(name, condition, metric, runs, models) for condition in conditions]

    def noise_table(
        self,
        conditions: tuple[str, ...],
        train_noise: dict[str, str],
        backbones: tuple[str, ...] | None = None,
        metric: str = "top1",
        networks: tuple[Network, ...] = (AVERAGE_TRAINED, SAFE, TUNED),
    ) -> list[Cell]:
        """Baseline, noise-trained, average filter (in evaluation alone), then ``networks``.

        ``train_noise`` names, for each kind of noise, what the noise-trained network is trained with.
        """
        backbones = self.scale.backbones if backbones is None else backbones
        cells = [c for b in backbones for c in self.row(BASELINE, conditions, b, metric)]
        for backbone in backbones:
            for level in dict.fromkeys(train_noise.values()):
                wanted = tuple(c for c in conditions if train_noise[c.partition(":")[0]] == level)
                name = f"noise-trained {backbone}"
                cells += self.row(noise_trained(level), wanted, backbone, metric, name=name)
        for backbone in backbones:
            name, flags = f"average-filter {backbone}", ("--preprocess", AVERAGE)
            cells += self.row(BASELINE, conditions, backbone, metric, name=name, flags=flags)
        for network, backbone in product(networks, backbones):
            cells += self.row(network, conditions, backbone, metric)
        return cells

    def attack_table(self) -> list[Cell]:
        """Table 7: FGSM crafted on a conventional network of the same backbone, another initialisation."""
        conditions, cells = ("fgsm:3", "fgsm:8", "fgsm:16"), []
        for network, backbone in product(UNSEEING, self.scale.backbones):
            models = tuple(self.train(network, backbone, seed) for seed in self.seeds)
            sources = (self.train(BASELINE, backbone, SOURCE_SEED + seed) for seed in self.seeds)
            runs = tuple(
                self.evaluate((model,), conditions, source=source)
                for model, source in zip(models, sources, strict=True)
            )
            cells += [Cell(f"{network.name} {backbone}", c, "top1", runs, models) for c in conditions]
        return cells

    def ablations(self) -> list[Cell]:
        """What each part contributes, with MobileNetV2."""
        cells = [cell for network in ABLATIONS for cell in self.row(network, SNR, name=network.name)]
        for scale in ("range", "literal"):
            models = tuple(self.swap(seed, scale) for seed in self.seeds)
            cells += self.cells(f"lambda, {scale}", models, SNR)
        return cells

    def search(self) -> list[Cell]:
        """All networks that were tried, one seed each, on held-out training images."""
        cells = []
        for network in SEARCH:
            found = self.cells(network.name, (self.train(network),), FRONTIER, flags=("--split", "held-out"))
            cells += [replace(cell, factor=network.factor) for cell in found]
        return cells

    def unseen_table(self) -> list[Cell]:
        """Table 5's noises, which none of these networks has seen."""
        return [cell for network in UNSEEING for cell in self.row(network, UNSEEN, name=network.name)]

    def corruption_table(self) -> list[Cell]:
        """Common corruptions; the networks of a seed are measured together, on the same images."""
        conditions = tuple(f"corruption:{name},{severity}" for name in CORRUPTIONS for severity in SEVERITIES)
        models = {network.name: tuple(self.train(network, seed=seed) for seed in self.seeds) for network in UNSEEING}
        runs = tuple(
            self.evaluate(together, conditions, flags=self.scale.corrupted)
            for together in zip(*models.values(), strict=True)
        )
        return [Cell(name, c, "top1", runs, trained) for name, trained in models.items() for c in conditions]


def table_cells(name: str, cifar: Experiments, traffic: Experiments) -> list[Cell]:
    """Cells of a table (2 to 7), of the ablations, corruptions or search, in the order of the paper."""
    kinds = ("wald", "poisson", "salt-pepper")
    first = {"wald": "wald:3,0.3", "poisson": "poisson:255", "salt-pepper": "salt-pepper:0.05"}
    if name == "table2":
        noise = dict.fromkeys(("clean", "awgn"), "awgn:30")
        return cifar.noise_table(SNR, noise, networks=(AVERAGE_TRAINED, SAFE, MU, TUNED))
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
    others = {
        "table7": cifar.attack_table,
        "ablations": cifar.ablations,
        "unseen": cifar.unseen_table,
        "corruptions": cifar.corruption_table,
        "frontier": cifar.search,
    }
    return others[name]()


def in_order(runs: list[Run]) -> list[Run]:
    """All runs that these need, each once, after those it reads."""

    def needed(run: Run) -> Iterator[Run]:
        for _, read in run.inputs:
            yield from needed(read)
        yield run

    return list({run.identity: run for wanted in runs for run in needed(wanted)}.values())
