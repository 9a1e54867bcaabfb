"""What each table and figure of the paper is made of: the registry of all parts.

A further table is one more :class:`TableSpec` in :data:`PARTS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, product
from operator import attrgetter
from typing import Any, Literal

from hybrid.backbones import PAPER_BACKBONES
from hybrid.conditions.corruptions import CORRUPTIONS
from hybrid.evaluate import EvaluateConfig
from hybrid.paper.experiments import Experiments
from hybrid.paper.networks import (
    ABLATIONS,
    ASSISTED,
    AVERAGE,
    AVERAGE_TRAINED,
    BASELINE,
    BASELINE_COUNTED,
    CONTRIBUTIONS,
    COUNTED,
    DEEP,
    DETAILED,
    DETAILED_DROPPED,
    DETAILED_MEDIAN,
    DETERMINISTIC,
    EVALUATE,
    MEDIAN,
    MEDIAN_COUNTED,
    MU,
    MU_COUNTED,
    RANDOM,
    RETINA,
    ROBUST,
    SAFE,
    SEARCH,
    Network,
    lambda_network,
    noise_trained,
)
from hybrid.paper.results import Cell, Line, Row, difference_rows, recovered_rows
from hybrid.paper.runs import Run
from hybrid.preprocess import UNCHANGED, Preprocess

Data = Literal["cifar", "traffic"]
SOURCE_SEED = 1000
"""Added to the seed of a baseline whose gradient an attack takes, so that it differs from the measured one."""
SNR = ("clean", "awgn:40", "awgn:30", "awgn:25", "awgn:20", "awgn:15", "awgn:12")
FRONTIER = ("clean", "awgn:20", "awgn:15", "awgn:12")
"""Conditions of the search."""
LEVELS5 = {"wald:3,0.3": "wald:13,1", "poisson:255": "poisson:75", "salt-pepper:0.05": "salt-pepper:0.20"}
LEVELS6 = {"wald:5,0.3": "wald:25,1", "poisson:255": "poisson:45", "salt-pepper:0.05": "salt-pepper:0.30"}
"""Each kind of noise of Tables 5 and 6: the level that networks are trained with, and the stronger one."""
UNSEEN, TABLE6 = (tuple(chain.from_iterable(levels.items())) for levels in (LEVELS5, LEVELS6))
SEVERITIES = (1, 2, 3)
"""Severities of common corruptions. ImageNet-C has 4 and 5, too, which leave little of images of 32 pixels."""


@dataclass(frozen=True)
class Entry:
    """One network of a table, with every backbone of the table."""

    name: str
    """Name of its line, without the backbone."""
    network: Network
    conditions: tuple[str, ...] = ()
    """Conditions to measure it under; empty: all of the table's."""
    preprocess: Preprocess = UNCHANGED
    """What is done to images in evaluation only."""


@dataclass(frozen=True)
class Derived:
    """A further table, computed from the rows of one."""

    name: str
    """Name of its CSV file."""
    caption: str
    rows: Callable[[Sequence[Row], Sequence[Line]], list[Row]]


def _recovered(rows: Sequence[Row], lines: Sequence[Line]) -> list[Row]:
    """Shares of the loss of each backbone's baseline."""
    baselines = {line.backbone: line.name for line in lines if line.entry == BASELINE.name}
    backbones = {line.name: line.backbone for line in lines}
    return [
        share
        for backbone, baseline in baselines.items()
        for share in recovered_rows([row for row in rows if backbones[row["model"]] == backbone], baseline)
    ]


def _contributions(rows: Sequence[Row], lines: Sequence[Line]) -> list[Row]:
    return difference_rows(rows, CONTRIBUTIONS, FRONTIER)


@dataclass(frozen=True)
class TableSpec:
    """A table of accuracies."""

    name: str
    title: str
    conditions: tuple[str, ...]
    entries: tuple[Entry, ...]
    data: Data = "cifar"
    backbones: tuple[str, ...] | None = None
    """None: those of the scale."""
    named: bool = True
    """Lines are named "ENTRY BACKBONE"; False: "ENTRY"."""
    metric: Literal["top1", "top5"] = "top1"
    number: int = 0
    """Number of the paper's table to compare with; 0: none."""
    evaluation: EvaluateConfig = EVALUATE
    attacked: bool = False
    """Attacks take the gradient of a baseline of the same backbone and another initialisation."""
    together: bool = False
    """All networks of a seed are measured by one run, on the same noisy images."""
    search: bool = False
    """Networks of the search: each is trained once and shown with its factor, clean accuracy against noisy."""
    derived: tuple[Derived, ...] = ()
    subject: str = ""
    """Title of the picture, if not "TITLE: METRIC accuracy"."""

    def cells(self, plan: Experiments) -> list[Cell]:
        """All numbers, in the order of the paper."""
        scale, cells = plan.scale, []
        seeds = plan.seeds[:1] if self.search else plan.seeds
        evaluation = self.evaluation
        if self.together:
            evaluation = replace(evaluation, limit_test=min(scale.corrupted, scale.limit_test or scale.corrupted))
        backbones = scale.backbones if self.backbones is None else self.backbones
        order = [
            (entry, backbone)
            for _, entries in groupby(self.entries, attrgetter("name"))
            for backbone, entry in product(backbones, tuple(entries))
        ]
        models = {pair: tuple(plan.model(pair[0].network, pair[1], seed) for seed in seeds) for pair in order}
        for (entry, backbone), trained in models.items():
            used = scale.stand_ins.get(backbone, backbone)
            line = Line(
                f"{entry.name} {used}" if self.named else entry.name,
                entry.name,
                used,
                entry.network.factor if self.search else "",
                paper=f"{entry.name} {backbone}" if self.named else entry.name,
            )
            conditions = entry.conditions or self.conditions
            measured = zip(*models.values(), strict=True) if self.together else ((model,) for model in trained)
            sources = [plan.train(BASELINE, backbone, SOURCE_SEED + seed) if self.attacked else None for seed in seeds]
            config = replace(evaluation, preprocess=entry.preprocess)
            runs = tuple(
                plan.evaluate(group, conditions, config, source)
                for group, source in zip(measured, sources, strict=True)
            )
            cells += [Cell(line, condition, runs, trained, tuple(seeds)) for condition in conditions]
        return cells

    def runs(self, plan: Experiments) -> list[Run]:
        """The evaluations whose results it shows."""
        return list({run.identity: run for cell in self.cells(plan) for run in cell.runs}.values())


@dataclass(frozen=True)
class FigureSpec:
    """A figure, or Table 1, which is drawn too and needs no runs."""

    name: str
    title: str
    kind: Literal["complexity", "training", "embedding"]
    networks: dict[str, Network] = field(default_factory=dict)
    """Networks by their name in the figure, each trained once."""
    conditions: tuple[str, ...] = ()

    def runs(self, plan: Experiments) -> list[Run]:
        """The trained networks, in their order."""
        return [plan.model(network, seed=plan.seed) for network in self.networks.values()]


Part = TableSpec | FigureSpec


def _entries(*networks: Network) -> tuple[Entry, ...]:
    return tuple(Entry(network.name, network) for network in networks)


FILTERED = (
    Entry("average-filter", BASELINE, preprocess=AVERAGE),
    Entry("median-filter", BASELINE, preprocess=MEDIAN),
)
"""The baseline behind a filter, in evaluation only."""


def _noise_entries(trained: Mapping[str, tuple[str, ...]], *networks: Network) -> tuple[Entry, ...]:
    """Baseline, noise-trained network, baseline with a filter in evaluation only, then ``networks``.

    ``trained`` maps each training noise to the conditions under which the network trained with it is measured.
    """
    return (
        Entry("baseline", BASELINE),
        *(Entry("noise-trained", noise_trained(noise), conditions) for noise, conditions in trained.items()),
        *FILTERED,
        *_entries(*networks),
    )


OURS = (AVERAGE_TRAINED, SAFE, RETINA, COUNTED, ASSISTED, DEEP, ROBUST)
"""Networks of the paper's tables beside baselines, and those behind a retina."""
COMPARED = (
    BASELINE,
    BASELINE_COUNTED,
    MEDIAN_COUNTED,
    noise_trained("awgn:30"),
    SAFE,
    MU,
    RANDOM,
    RETINA,
    MU_COUNTED,
    COUNTED,
    ASSISTED,
    DEEP,
    ROBUST,
)
"""Networks that are compared at noises that none of them has seen."""
TABLE3 = ("clean", "awgn:25", "awgn:15", "awgn:10", "awgn:5")
TABLE4 = ("clean", "awgn:10", "awgn:5")
ONE = PAPER_BACKBONES[:1]

_CORRUPTED = tuple(f"corruption:{name},{severity}" for name in CORRUPTIONS for severity in SEVERITIES)
_TRAINED5, _TRAINED6 = ({levels[0]: levels for levels in pairs.items()} for pairs in (LEVELS5, LEVELS6))
_TABLE2 = _noise_entries(
    {"awgn:30": SNR},
    *(AVERAGE_TRAINED, BASELINE_COUNTED, MEDIAN_COUNTED),
    *(SAFE, MU, RETINA, COUNTED, ASSISTED, DEEP, ROBUST),
)
_UNSEEN_ENTRIES = (*_entries(*COMPARED, DETAILED, DETAILED_DROPPED, DETAILED_MEDIAN), *FILTERED)
_LAMBDAS = (lambda_network("range"), lambda_network("literal"))
_FIG6 = {"FD stochastic": SAFE, "deterministic": DETERMINISTIC}
_FIG7 = {"baseline": BASELINE, "mu": MU, "lambda": _LAMBDAS[0], "SAFE": SAFE}
# What noise costs the baseline, and how much of that the others win back.
_RECOVERED = Derived("recovered", "Share of the baseline's loss that is won back:", _recovered)
_CONTRIBUTIONS = Derived("contributions", "Points that each part adds, seed by seed:", _contributions)
_MOBILE: dict[str, Any] = {"backbones": ONE, "named": False}

PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        FigureSpec("table1", "Table 1", "complexity"),
        TableSpec("table2", "Table 2", SNR, _TABLE2, number=2, derived=(_RECOVERED,)),
        TableSpec("table3", "Table 3", TABLE3, _noise_entries({"awgn:25": TABLE3}, *OURS), "traffic", number=3),
        TableSpec(
            "table4",
            "Table 4",
            TABLE4,
            _noise_entries({"awgn:25": TABLE4}, *OURS),
            "traffic",
            ONE,
            metric="top5",
            number=4,
        ),
        TableSpec("table5", "Table 5", UNSEEN, _noise_entries(_TRAINED5, *OURS), number=5),
        TableSpec("table6", "Table 6", TABLE6, _noise_entries(_TRAINED6, *OURS), "traffic", ONE, number=6),
        TableSpec("table7", "Table 7", ("fgsm:3", "fgsm:8", "fgsm:16"), _entries(*COMPARED), number=7, attacked=True),
        FigureSpec("fig5", "Figure 5", "training", {"SAFE-MobileNetV2": SAFE}),
        FigureSpec("fig6", "Figure 6", "embedding", _FIG6, ("awgn:20", "awgn:18", "awgn:15")),
        FigureSpec("fig7", "Figure 7", "embedding", _FIG7, ("clean", "awgn:25")),
        TableSpec("ablations", "Ablations", SNR, _entries(*ABLATIONS, *_LAMBDAS), derived=(_CONTRIBUTIONS,), **_MOBILE),
        TableSpec("unseen", "Unseen", UNSEEN, _UNSEEN_ENTRIES, **_MOBILE),
        TableSpec(
            "corruptions",
            "Corruptions",
            _CORRUPTED,
            _entries(*COMPARED),
            together=True,
            subject="Common corruptions: mean accuracy",
            **_MOBILE,
        ),
        TableSpec(
            "frontier",
            "Frontier",
            FRONTIER,
            _entries(*SEARCH),
            evaluation=replace(EVALUATE, split="held-out"),
            search=True,
            **_MOBILE,
        ),
    )
}
"""All parts by name, in the order in which ``all`` makes them."""
