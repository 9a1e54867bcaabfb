"""What layers learn: a linear probe on pooled responses of learned layers and of their controls, clean and with noise.

    python -m benchmarks.features --data folder:cifar10 --out features.csv
    python -m benchmarks.features --data folder:cifar10 --out features.csv --rules fd stochastic deterministic
    python -m benchmarks.features --data folder:cifar10 --out all.csv --all --maps 256 --conductances learned

Each rule learns with each seed on training images of its own. A layer's response is its spike counts as it passes them
on (inhibition off, threshold set to its output rate), or what the converted layer (``bridge.convert``) answers in one
step, averaged over 4 x 4 cells. A ridge classifier is fitted to the responses to other, clean training images, and
tested on further ones, clean and with noise added to the raw images. With ``--all`` it is fitted to all training images
and tested on the test images. Controls (:mod:`snn.controls`) have the same inhibition and response. Of several layers,
each is probed alone and together with those below it.

Results are kept in ``--out``: what it holds already stays and is not computed again, so an interrupted command goes
on, and the table shows everything that the file holds for the same images.
"""

import csv
import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal, get_args

import numpy as np
import tyro
from torch import Tensor

from benchmarks.probe import (
    CONDITIONS,
    PIXEL_GRID,
    Responder,
    Sizes,
    Split,
    converted,
    fit_classifier,
    pixels,
    pooled,
    simulated,
    split_images,
    with_noise,
)
from bridge.frontend import SpikingFrontEnd
from hybrid.complexity import count_macs, planned_frontend
from hybrid.conditions import Noise, condition_flag
from snn.controls import control
from snn.data import image_folders
from snn.data_source import DataSource
from snn.image_cache import Caching
from snn.learner import learn
from snn.learning import PRESETS, Conductances, Learning, PresetName
from snn.network import LearnedLayer, SpikingNetwork
from snn.runtime.cli import RunOptions, check_left_out, run_command
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs, write_csv
from snn.runtime.progress import progress
from snn.storage import load_network

Response = Literal["simulated", "converted"]
Row = dict[str, Any]

OF_THE_RULE: tuple[Conductances, ...] = ("learned", "shuffled")
"""Conductances that depend on what was learned; the others are the same for all rules."""
CONTROLS = tuple(kind for kind in get_args(Conductances) if kind != "learned")
LEARNED_FIGURES = (
    "maps_above_a_fifth_of_fair_share",
    "largest_share_over_fair_share",
    "mean_conductance_change",
    "spread_before",
    "spread_after",
    "ltp_at_peak",
    "ltd_at_peak",
)
COLUMNS = (
    *("run", "settings", "data", "learn_images", "fit_images", "test_images"),
    *("rule", "seed", "conductances", "response", "layers", "features", "mmac_per_image"),
    *("condition", "penalty", "accuracy_percent", *LEARNED_FIGURES),
)


@dataclass(frozen=True)
class FeaturesConfig:
    """Probe what layers learn, beside controls."""

    out: Path | None = None
    """CSV file that keeps every result; those that it holds are not computed again."""
    preset: PresetName = "retina"
    """Where settings of learning start from (see snn.learn). Other flags override it."""
    rules: tuple[str, ...] = ("fd",)
    """Rules to compare: fd, stochastic, deterministic."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of learning, and one of each control, for each; the probe's images and their noise are the same for
    all."""
    conductances: tuple[Conductances, ...] = tuple(kind for kind in get_args(Conductances) if kind != "balanced")
    """What to probe: learned conductances and controls (see bridge.convert). gabor is for one layer only."""
    responses: tuple[Response, ...] = ("simulated", "converted")
    """Spike counts of a simulation, and outputs of the converted layers."""
    conditions: Annotated[tuple[Noise, ...], condition_flag(Noise, "conditions", many=True)] = CONDITIONS
    """Conditions of the test images."""
    learn_images: int = Sizes().learn
    """Training images to learn on."""
    fit_images: int = Sizes().fit
    """Further training images to fit the classifier to."""
    test_images: int = Sizes().test
    """Further training images to test it on."""
    all: bool = False
    """Fit the classifier to all training images, and test it on all test images."""
    snn: Path | None = None
    """Probe the network in this file of snn.learn in place of learning; rule and seed are its own."""
    data_source: Annotated[DataSource, tyro.conf.arg(name="")] = field(default_factory=DataSource)
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)
    learning: Annotated[Learning, tyro.conf.arg(name="")] = field(default_factory=Learning)

    def __post_init__(self) -> None:
        self.sizes.check()
        for name in ("rules", "seeds", "conductances", "responses", "conditions"):
            check(len(getattr(self, name)) > 0, f"`{name}`: give at least one")
        if self.all:
            check_left_out(self, ("fit_images", "test_images"), "`all` takes all images")
        else:
            limit = self.data_source.limit_test
            check(limit is None, f"`limit_test` {limit}: only with `all` do test images test; give `test_images`")
        if self.snn:
            check_left_out(self, ("preset", "rules", "seeds"), f"the network of `snn` {self.snn} has its own")

    @property
    def sizes(self) -> Sizes:
        """Of the parts of the images."""
        return Sizes(self.learn_images, self.fit_images, self.test_images)

    @property
    def images(self) -> str:
        """Which images the probe's are, in words."""
        source = self.data_source
        settings = {name: getattr(source, name) for name in ("image_size", "limit_train", "limit_test")}
        changed = [f", {name} {value}" for name, value in settings.items() if value is not None]
        return f"{source.data}, {'test' if self.all else 'training'} images" + "".join(changed)

    def learning_with(self, rule: str) -> Learning:
        """Settings of learning by this rule."""
        return replace(self.learning, stdp=replace(self.learning.stdp, rule=rule))


def probe(
    respond: tuple[Responder, Responder], split: Split, conditions: Iterable[Noise], cost: list[float], **options: int
) -> Iterator[Row]:
    """Rows of every layer alone, of each together with those below, and of every condition.

    ``respond``: to the images of the fit, and to those of the test. ``cost``: of the layers up to each, in 10^6
    multiply-accumulates.
    """
    to_fit, to_test = respond
    fitted = pooled(to_fit, split.fit, **options)
    readouts = {}
    for number in range(1, len(fitted) + 1):
        for first in dict.fromkeys((number, 1)):
            layers = slice(first - 1, number)
            name = str(number) if first == number else f"{first}-{number}"
            readouts[name] = layers, cost[number - 1], fit_classifier(fitted[layers], split.fit_labels)
    del fitted
    for condition in conditions:
        tested = pooled(to_test, with_noise(split.test, condition), **options)
        for name, (layers, mmac, classifier) in readouts.items():
            yield {
                "layers": name,
                "features": len(classifier.weight),
                "mmac_per_image": mmac,
                "condition": str(condition),
                "penalty": classifier.penalty,
                "accuracy_percent": classifier.accuracy(tested[layers], split.test_labels),
            }


def costs(p: Learning, input_shape: tuple[int, int, int]) -> list[float]:
    """10^6 multiply-accumulates of one image in the converted layers up to each, retina included."""
    spec = planned_frontend(p, input_shape)
    specs = (replace(spec, layers=spec.layers[:number]) for number in range(1, len(spec.layers) + 1))
    return [count_macs(SpikingFrontEnd.empty(spec), input_shape) / 1e6 for spec in specs]


def learned_figures(learned: LearnedLayer) -> Row:
    """How a layer's learning went: :data:`LEARNED_FIGURES`."""
    values = (
        *(learned.winning_share, learned.fair_shares.max().item(), learned.mean_move),
        *(learned.initial_conductance.std().item(), learned.layer.conductance.std().item(), *learned.saturated),
    )
    return dict(zip(LEARNED_FIGURES, values, strict=True))


def responders(network: SpikingNetwork, images: Tensor, response: Response) -> tuple[Responder, Responder]:
    """Of the images of the fit and of the test; converted layers are fitted to the responses to ``images``."""
    if response == "simulated":
        return simulated(network, "fit"), simulated(network, "test")
    return (converted(network, images),) * 2


class Results:
    """Rows, kept in a CSV file (None: only here)."""

    def __init__(self, path: Path | None) -> None:
        self.path, self.rows = path, list[Row]()
        if path and path.exists():
            with open(path, newline="") as file:
                reader = csv.DictReader(file)
                check(
                    tuple(reader.fieldnames or ()) == COLUMNS,
                    f"`out` {path}: it is there and holds no results of this command; give another name",
                )
                self.rows = list(reader)

    def holds(self, conditions: Iterable[Noise], **key: object) -> bool:
        """Whether there is a result of this key for all conditions."""
        return self._conditions(key) >= set(map(str, conditions))

    def add(self, rows: Iterable[Row], **key: object) -> None:
        """Take in rows of this key, but for conditions of which there are rows, and write the file."""
        held = self._conditions(key)
        # As text, as they are when they are read again.
        added = [{name: str((row | key).get(name, "")) for name in COLUMNS} for row in rows]
        self.rows += [row for row in added if row["condition"] not in held]
        write_csv(self.path, self.rows)

    def _conditions(self, key: dict[str, object]) -> set[str]:
        return {row["condition"] for row in self.rows if all(row[name] == str(key[name]) for name in key)}


def settings_text(config: FeaturesConfig) -> str:
    """The settings of learning in a few words: the preset and what differs from it."""

    def flat(tree: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from flat(value, f"{prefix}{name}.")
            elif prefix + name != "stdp.rule":
                yield prefix + name, " ".join(map(str, value)) if isinstance(value, (tuple, list)) else value

    if config.snn:
        return str(config.snn)
    preset = dict(flat(asdict(PRESETS[config.preset])))
    changed = [f"{name} {value}" for name, value in flat(asdict(config.learning)) if value != preset[name]]
    return ", ".join([config.preset, *changed])


def run(config: FeaturesConfig) -> None:
    """The command: learn, probe, print, write."""
    outputs, began = Outputs(config.out, options=RunOptions(), inputs=image_folders(config.data_source)), perf_counter()
    preset, rule = PRESETS[config.preset], config.learning.stdp.rule
    if config.snn:
        settled = (
            f"`snn` {config.snn}: its network has learned with settings of its own; leave out all others of learning"
        )
        check(config.learning in (preset, Learning()), settled)
    else:
        check(rule == preset.stdp.rule, f"`rule` {rule}: this command has `rules` for it; give it there")
    results, given, digest = Results(config.out), None, ""
    if config.snn:
        given, _, digest = load_network(config.snn)
        check(given.complete, f"{config.snn} has not finished learning; repeat the command that made it, with --resume")
        config = replace(config, learning=given.learning, rules=(given.learning.stdp.rule,), seeds=(given.seed,))
    check(
        "gabor" not in config.conductances or len(config.learning.maps) == 1,
        f"`conductances` gabor is for one layer, not {len(config.learning.maps)}; give others",
    )
    split = split_images(config.data_source, config.sizes, config.all, cache=config.caching.cache)
    conditions = config.conditions
    shape = tuple(split.fit.shape[1:])
    check(given is None or given.input_shape == shape, f"{config.snn} is not for images of shape {shape}")
    sizes = {name: len(getattr(split, name)) for name in ("learn", "fit", "test")}
    data = replace(config.data_source, root=Path(), download=False)
    images = {"data": config.images}
    images |= {f"{name}_images": str(count) for name, count in sizes.items() if not (given and name == "learn")}
    # Everything that decides a result, apart from what has a column of its own.
    identity = hashlib.sha256(repr((config.learning_with("fd"), data, images, digest)).encode()).hexdigest()[:12]
    common = {"run": identity, "settings": settings_text(config), **images}

    pixel_key = {"run": f"pixels {PIXEL_GRID} x {PIXEL_GRID}", **images}
    if not results.holds(conditions, **pixel_key):
        results.add(probe((pixels, pixels), split, conditions, [0.0], grid=PIXEL_GRID), **pixel_key)
    cost = costs(config.learning, shape)
    runs = [(seed, rule) for seed in config.seeds for rule in config.rules]
    for seed, rule in progress(runs, "learning and probing", "run"):
        keys = [
            common
            | {"rule": rule if kind in OF_THE_RULE else "", "seed": seed, "conductances": kind, "response": response}
            for kind in config.conductances
            for response in config.responses
        ]
        missing = [key for key in keys if not results.holds(conditions, **key)]
        if not missing:
            continue
        network = given or learn(split.learn, config.learning_with(rule), seed=seed)
        for key in missing:
            probed = control(network, split.learn, key["conductances"], seed)
            rows = list(probe(responders(probed, split.learn, key["response"]), split, conditions, cost))
            if key["conductances"] == "learned":
                rows = [row | learned_figures(network.layers[int(row["layers"].split("-")[-1]) - 1]) for row in rows]
            results.add(rows, **key)
    shown = [row for row in results.rows if all(row[name] == images[name] for name in images)]
    columns = dict.fromkeys([*map(str, conditions), *(row["condition"] for row in shown)])
    print(tables(shown, list(columns)), learning_table(shown), sep="\n\n")
    print(
        f"\n{images['data']}: {sizes['learn']} images learned, {sizes['fit']} fit the classifier, {sizes['test']} test "
        f"it; accuracy in %, mean ± standard deviation over the seeds; {perf_counter() - began:.0f} s"
    )
    outputs.finish({})


Values = dict[str, dict[str, float]]
"""Accuracy by condition and seed."""


def tables(rows: list[Row], conditions: list[str]) -> str:
    """Accuracies, means and standard deviations over the seeds; then differences between them; in Markdown."""
    groups: dict[tuple[str, ...], dict[tuple[str, str], Values]] = {}
    # Rules in one order, whatever the order in which results came.
    for row in sorted(rows, key=lambda row: (row["conductances"] in CONTROLS, row["rule"] != "fd")):
        mmac = f"{float(row['mmac_per_image']):.3g}"
        place = (row["run"], row["settings"] or row["run"], row["layers"], row["features"], mmac, row["response"])
        kind = row["conductances"], row["rule"]
        values = groups.setdefault(place, {}).setdefault(kind, {}).setdefault(row["condition"], {})
        values[row["seed"]] = float(row["accuracy_percent"])
    accuracies, compared = [], []
    for (identity, settings, layers, features, mmac, response), kinds in groups.items():
        for kind, values in kinds.items():
            cells = [spread(values.get(condition, {})) for condition in conditions]
            accuracies.append([settings, layers, features, mmac, response, _name(kind), *cells])
        learned = [kind for kind in kinds if kind[0] == "learned"]
        simulation = groups.get((identity, settings, layers, features, mmac, "simulated"), {})
        for kind in learned:
            others = [other for other in kinds if other[0] != "learned" and other[1] in ("", kind[1])]
            others += learned[1:] if kind == learned[0] else []
            pairs = {f"{_name(kind)} - {_name(other)}": kinds[other] for other in others}
            if response == "converted" and kind in simulation:
                pairs[f"{_name(kind)}: converted - simulated"] = simulation[kind]
            for what, values in pairs.items():
                compared.append([settings, layers, response, what, *differences(kinds[kind], values, conditions)])
    return "\n\n".join(
        markdown((*heads, *conditions), lines)
        for heads, lines in (
            (("settings", "layers", "features", "MMAC per image", "response", "conductances"), accuracies),
            (("settings", "layers", "response", "difference"), compared),
        )
        if lines
    )


def markdown(heads: Iterable[str], lines: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    heads = list(heads)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *lines))


def _name(kind: tuple[str, str]) -> str:
    """Conductances and, where it decides them, the rule."""
    return " ".join(filter(None, kind))


def differences(first: Values, second: Values, conditions: Iterable[str]) -> Iterator[str]:
    """Cells of the difference between the same seeds, for each condition."""
    for condition in conditions:
        ours, theirs = first.get(condition, {}), second.get(condition, {})
        yield spread({seed: ours[seed] - theirs[seed] for seed in ours if seed in theirs}, difference=True)


def spread(values: dict[str, float], difference: bool = False) -> str:
    """Mean and standard deviation over the seeds; of a difference also their ratio."""
    numbers = np.array(list(values.values()))
    if not len(numbers):
        return ""
    text = f"{numbers.mean():+.1f}" if difference else f"{numbers.mean():.1f}"
    if len(numbers) == 1:
        return text
    deviation = numbers.std(ddof=1)
    text += f" ± {deviation:.1f}"
    return text + (f", {abs(numbers.mean()) / deviation:.0f} sd" if difference and deviation > 1e-9 else "")


def learning_table(rows: list[Row]) -> str:
    """How learning went, in Markdown: the worst of the seeds for the shares, means of the other figures."""
    groups: dict[tuple[str, ...], list[list[float]]] = {}
    for row in rows:
        if row["conductances"] == "learned" and "-" not in row["layers"]:
            figures = [float(row[name]) for name in LEARNED_FIGURES]
            groups.setdefault((row["run"], row["settings"], row["layers"], row["rule"]), []).append(figures)
    lines = []
    for (_, *place), found in groups.items():
        figures = np.array(found)
        _, _, moved, before, after, ltp, ltd = figures.mean(0)
        shares = f"{figures[:, 0].min():.0%}", f"{figures[:, 1].max():.1f}"
        lines.append([*place, *shares, f"{moved:.2f}", f"{before:.2f}, {after:.2f}", f"{ltp:.0%}, {ltd:.0%}"])
    shares = "maps above 1/5 of fair share", "largest share"
    heads = "settings", "layer", "rule", *shares, "mean change of G", "spread of G before, after", "LTP, LTD at peak"
    return markdown(heads, lines)


def with_preset(config: FeaturesConfig) -> FeaturesConfig:
    """What flags are applied to, once ``--preset`` is known."""
    return replace(config, learning=PRESETS[config.preset])


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m benchmarks.features``."""
    return run_command(FeaturesConfig, run, argv, with_preset)


if __name__ == "__main__":
    sys.exit(main())
