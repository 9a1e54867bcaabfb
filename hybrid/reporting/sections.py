"""The parts of a report that files alone tell: what was run, what was learned, and the results."""

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial

from bridge.figures import draw_responses
from bridge.storage import load_responses, load_spiking_layers
from hybrid.confusion import Confusion
from hybrid.evaluation import summarise
from hybrid.figures import draw_confusion, draw_noise, draw_training
from hybrid.reporting.files import Runs, StampedFile, Table
from hybrid.reporting.page import Block, Cell, Commands, Node, Section, Text, Tree, figure
from hybrid.reporting.page import Table as Shown
from hybrid.storage import TRAINED_AUXILIARY_INPUT
from snn.figures import draw_kernels
from snn.runtime.errors import visible
from snn.runtime.pretrained import PREFIX

SHORT = 10
"""Digits of a digest that are shown."""
MOST_SHOWN = 100
"""Classes of the table of accuracies."""
NONE = "–"


def lineage(runs: Runs) -> Section:
    """Which file was made from which, when and with what, and what does not fit together."""
    blocks: list[Block] = [Tree(_tree(runs)), *(Text(problem, warning=True) for problem in mismatches(runs))]
    kinds = {id(file): kind for kind, files in _stages(runs).items() for file in files}
    if runs.stamped:
        rows = [
            [
                file.name,
                kinds[id(file)],
                file.stamp.digest[:SHORT],
                file.stamp.parent_digest[:SHORT] or NONE,
                str(file.stamp.seed),
                file.stamp.created.replace("T", " ").replace("+00:00", " UTC"),
            ]
            for file in runs.stamped
        ]
        headings = ("file", "what", "digest", "made from", "seed", "written")
        blocks.append(Shown("Files. A digest identifies content; its first digits are shown.", headings, rows, words=4))
        blocks.append(_versions(runs))
    return Section("runs", "What was run", blocks)


def _stages(runs: Runs) -> dict[str, Sequence[StampedFile]]:
    return {"learned layers": runs.networks, "front end": runs.frontends, "trained network": runs.models}


def _versions(runs: Runs) -> Block:
    used = {file.name: {"commit": file.stamp.git_commit[:SHORT], **file.stamp.versions} for file in runs.stamped}
    packages = list(dict.fromkeys(package for versions in used.values() for package in versions))
    different = Counter(tuple(versions.get(package, NONE) for package in packages) for versions in used.values())
    if len(different) == 1:
        (found,) = different
        return Text(
            f"Versions: {', '.join(f'{name} {version}' for name, version in zip(packages, found, strict=True))}."
        )
    rows = [[package, *(versions.get(package, NONE) for versions in used.values())] for package in packages]
    return Shown("Versions.", ("package", *used), rows, words=1)


def _tree(runs: Runs) -> list[Node]:
    """Files below those that they were made from."""

    def made_from(digest: str) -> list[Node]:
        below = [file for file in runs.stamped if digest and file.stamp.parent_digest == digest]
        tables = [
            Node(table.name, f"accuracy of {', '.join(names)} on {table.rows[0]['images']} images", [])
            for table in runs.results
            if (names := sorted({row["model"] for row in table.rows if digest and row["model_digest"] == digest}))
        ]
        return [*map(of, below), *tables]

    def of(file: StampedFile) -> Node:
        return Node(file.name, _about(runs, file), made_from(file.stamp.digest))

    digests = {file.stamp.digest for file in runs.stamped}
    # What was made from a file that is not here is a start, too. A digest counts that of the file before, so that no
    # file was made from itself.
    nodes = [of(file) for file in runs.stamped if file.stamp.parent_digest not in digests]
    alone = [table for table in runs.results if not digests & {row["model_digest"] for row in table.rows}]
    return nodes + [Node(table.name, f"accuracy on {table.rows[0]['images']} images", []) for table in alone]


def _about(runs: Runs, file: StampedFile) -> str:
    """What a file holds, in a few words."""
    content = file.content
    if any(file is one for one in runs.networks):
        network = content.network
        maps = ", ".join(str(len(learned.layer.conductance)) for learned in network.layers)
        retina = " behind a retina" if network.retina else ""
        unfinished = "" if network.complete else " (unfinished)"
        learned = f"{len(network.layers)} spiking layer{'s' * (len(network.layers) != 1)}{retina}{unfinished}"
        return f"{learned}, channels {maps or NONE}, rule {network.learning.stdp.rule}, {content.data_source.data}"
    if any(file is one for one in runs.frontends):
        steps = ", ".join(str(layer.steps) for layer in content.frontend.spec.layers)
        return f"front end, steps of its layers {steps}, fitted on {content.data_source.data}"
    return visible(f"{describe(file)}, {len(content.spec.classes)} classes, {content.data_source.data}")


def describe(file: StampedFile) -> str:
    """Variant and backbone of a trained network, and its auxiliary input where training had another."""
    architecture = file.content.spec.architecture
    exchanged = TRAINED_AUXILIARY_INPUT in file.content.recipe
    told = f", auxiliary input {architecture.variations.auxiliary_input}" if exchanged else ""
    return f"{architecture.variant} {architecture.backbone}{told}"


def mismatches(runs: Runs) -> list[str]:
    """Files that were not made from those beside them, and results of networks that are not here."""
    found = []
    digests = {file.stamp.digest: file.name for file in runs.stamped}
    stages = list(_stages(runs).items())
    for (before, sources), (_, files) in zip(stages, stages[1:], strict=False):
        for file in files:
            parent = file.stamp.parent_digest
            # What ships was made from files that do not; a network without a front end, from no file of these.
            spec = getattr(file.content, "spec", None)
            if not parent or parent in digests or file.name.startswith(PREFIX) or (spec and spec.frontend is None):
                continue
            here = ", ".join(f"{source.name} has {source.stamp.digest[:SHORT]}" for source in sources[:5])
            if here:
                found.append(
                    f"{file.name} was made from a file with digest {parent[:SHORT]}, which is not here ({before}: "
                    f"{here})."
                )
    for table in runs.results:
        for model, digest in dict.fromkeys((row["model"], row["model_digest"]) for row in table.rows):
            if digest and digest not in digests:
                same = [file for file in runs.models if file.path.stem == model]
                other = f"; {same[0].name} has {same[0].stamp.digest[:SHORT]}" if same else ""
                found.append(
                    f"{table.name} has results of a network {model} with digest {digest[:SHORT]}, which is not here"
                    f"{other}."
                )
    return found


def kernels(runs: Runs) -> Section | None:
    """What spiking layers learned."""
    blocks: list[Block] = []
    for file in runs.networks:
        network = file.content.network
        if network.layers:
            what = "The retina's filters, kernels" if network.retina else "Kernels"
            blocks.append(
                figure(
                    partial(draw_kernels, network),
                    f"Kernels of {len(network.layers)} spiking layers, and histograms of their conductances",
                    f"{file.name}: {what} of every layer (left), and histograms of conductances before and after "
                    "learning (right)"
                    + (". Kernels of layer 1 are ON less OFF: what they prefer." if network.retina else "."),
                )
            )
            rows = [
                [
                    f"layer {number}",
                    str(len(learned.layer.conductance)),
                    f"{learned.mean_move:.3f}",
                    f"{learned.mean_rate:.1f}",
                    f"{100 * learned.winning_share:.0f}",
                ]
                for number, learned in enumerate(network.layers, 1)
            ]
            headings = ("layer", "channels", "mean change of G", "mean rate (Hz)", "channels that win (%)")
            caption = (
                "A channel wins if it fires at least a fifth as often as the mean channel, at the end of learning."
            )
            blocks.append(Shown(caption, headings, rows))
    return Section("kernels", "Kernels and conductances", blocks) if blocks else None


def responses(runs: Runs) -> Section | None:
    """Simulated responses with the fitted steps."""
    blocks: list[Block] = []
    for file in runs.frontends:
        layers, measured = load_spiking_layers(file.path), load_responses(file.path)
        drawn = partial(draw_responses, file.content.frontend, layers, measured)
        blocks.append(
            figure(
                drawn,
                f"Rate against drive of {len(layers)} layers, with the steps of their activation units",
                f"{file.name}: rate of simulated neurons against their drive (grey: how many), and the Special "
                "Activation Unit (SAU) that stands for them in one step (red).",
            )
        )
    return Section("responses", "Responses and activation units", blocks) if blocks else None


def training(runs: Runs) -> Section | None:
    """Loss and accuracy per epoch."""
    blocks: list[Block] = []
    rows = []
    for file in runs.models:
        history = file.content.history
        epochs = len(history.get("train_loss", ()))
        if not epochs or not {"train_accuracy", "val_loss", "val_accuracy"} <= history.keys():
            continue
        title = visible(f"{file.name}: {describe(file)} on {file.content.data_source.data}")
        caption = f"{file.name}: loss and accuracy per epoch, on training images (augmented) and on those held out."
        alt = f"Loss and accuracy of {file.name} over {epochs} epochs"
        blocks.append(figure(partial(draw_training, file.content, title), alt, caption))
        last = (100 * history[f"{part}_accuracy"][-1] for part in ("train", "val"))
        rows.append([file.name, describe(file), str(epochs), *(f"{value:.1f}" for value in last)])
    if not blocks:
        return None
    headings = ("network", "what", "epochs", "training (%)", "held out (%)")
    blocks.append(Shown("Accuracy after the last epoch.", headings, rows, words=2))
    return Section("training", "Training", blocks)


def marks(values: Sequence[float], errors: Sequence[float]) -> list[str]:
    """Which of several accuracies is the best, and which cannot be separated from it.

    "best" for the largest, "near" for those that fall behind it by at most one standard error of the difference, the
    root of the sum of both squared errors, and "" for others. Of a single value there is no best.
    """
    if len(values) < 2:
        return [""] * len(values)
    top = max(values)
    error = max(e for value, e in zip(values, errors, strict=True) if value == top)
    return [
        "best" if value == top else "near" if top - value <= math.hypot(error, own) else ""
        for value, own in zip(values, errors, strict=True)
    ]


def standard_error(rows: Sequence[Mapping[str, float]]) -> float:
    """Standard error of the mean over rows of one model and condition that differ in their noise seed, in %.

    That of the test images, the same under every seed, and that of the noise, from the deviation over seeds.
    """
    values = [row["value_percent"] for row in rows]
    images = sum(row["standard_error_percent"] for row in rows) / len(rows)
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1)
    return math.hypot(images, math.sqrt(variance / len(values)))


def noise(runs: Runs) -> Section | None:
    """Accuracy under noise, as curves and as tables with the best of each condition marked."""
    blocks: list[Block] = []
    for table in runs.results:
        summary = summarise(table.rows, "top1", "both")
        seeds = max(Counter((row["model"], row["condition"]) for row in _top1(table)).values())
        bars = f"the standard deviation over {seeds} noise seeds" if seeds > 1 else "one standard error"
        caption = f"{table.name}: top-1 accuracy on {summary[0]['images']} images. Bars are {bars}."
        models = list(dict.fromkeys(row["model"] for row in summary))
        alt = f"Accuracy of {', '.join(models)} under noise"
        blocks += [figure(partial(draw_noise, summary), alt, caption), _accuracies(table, summary, bars)]
        if alone := _paths_alone(table):
            blocks.append(alone)
    return Section("noise", "Accuracy under noise", blocks) if blocks else None


def _top1(table: Table) -> list[dict]:
    return [row for row in table.rows if row["metric"] == "top1" and row["paths"] == "both"]


def _accuracies(table: Table, summary: list[dict], bars: str) -> Block:
    cells = {(row["model"], row["condition"]): row for row in summary}
    models, conditions = (list(dict.fromkeys(pair[place] for pair in cells)) for place in (0, 1))
    rows = []
    for condition in conditions:
        shown = [cells[model, condition] for model in models]
        errors = [
            standard_error([row for row in _top1(table) if (row["model"], row["condition"]) == (model, condition)])
            for model in models
        ]
        marked = zip(shown, marks([row["value_percent"] for row in shown], errors), strict=True)
        sigma = shown[0]["mean_sigma_intensity"]
        texts = [Cell(f"{row['value_percent']:.1f} ± {row['deviation_percent']:.1f}", mark) for row, mark in marked]
        rows.append([condition, f"{sigma:.3f}" if sigma != "" else "", *texts])
    explained = (
        " The best of a condition is bold; ≈ marks what is within one standard error of the difference from it, as if "
        "the networks had been measured on different images: test images and, where there are several, noise seeds "
        "count."
        if len(models) > 1
        else ""
    )
    caption = f"Top-1 accuracy in %, ± {bars}. Mean sigma is the noise's standard deviation for intensities in [0, 1]."
    return Shown(caption + explained, ("condition", "mean sigma", *models), rows)


def _paths_alone(table: Table) -> Block | None:
    alone = [row for row in summarise(table.rows, "top1") if row["paths"] != "both"]
    if not alone:
        return None
    condition = alone[0]["condition"]
    rows_of = {
        (row["model"], row["paths"]): row for row in summarise(table.rows, "top1") if row["condition"] == condition
    }
    rows = []
    for model in dict.fromkeys(row["model"] for row in alone):
        found = [rows_of.get((model, paths)) for paths in ("both", "spiking", "auxiliary")]
        rows.append([model, *(_percent(row) if row else NONE for row in found)])
    caption = f"Both paths, and each alone with the other set to zero: top-1 accuracy in %, {condition}."
    return Shown(caption, ("network", "both", "spiking alone", "auxiliary alone"), rows)


def _percent(row: Mapping) -> str:
    return f"{row['value_percent']:.1f} ± {row['deviation_percent']:.1f}"


def classes(runs: Runs) -> Section | None:
    """Accuracy per class, and which class is taken for which."""
    blocks: list[Block] = []
    for table in runs.confusions:
        confusion = table.confusion
        conditions = list(dict.fromkeys([confusion.first, confusion.strongest()]))
        alt = f"Confusion matrices of {', '.join(confusion.models)}"
        caption = (
            f"{table.name}: which class (rows) is taken for which (columns), under {conditions[0]}"
            + (f" and where accuracy is lowest, {conditions[1]}" if len(conditions) > 1 else "")
            + ". In % of the true class's images."
        )
        blocks += [figure(partial(draw_confusion, confusion), alt, caption), _by_class(confusion, conditions)]
    return Section("classes", "Classes", blocks) if blocks else None


def _by_class(confusion: Confusion, conditions: Sequence[str]) -> Block:
    pairs = [(model, condition) for model in confusion.models for condition in conditions]
    accuracy = {pair: confusion.class_accuracy(*pair) for pair in pairs}
    images = confusion.matrix(*pairs[0]).sum(1)
    measured = [
        (name, int(count))
        for name, count in zip(confusion.classes, images, strict=True)
        if count and all(name in by_class for by_class in accuracy.values())
    ]
    caption = "Accuracy of each class, in %."
    if len(measured) > MOST_SHOWN:
        measured.sort(key=lambda item: accuracy[pairs[-1]][item[0]])
        caption = f"Accuracy of the {MOST_SHOWN} classes with the lowest in the last column, in %."
        measured = measured[:MOST_SHOWN]
    rows = [[name, str(count), *(f"{accuracy[pair][name]:.1f}" for pair in pairs)] for name, count in measured]
    return Shown(caption, ("class", "images", *(f"{model}, {condition}" for model, condition in pairs)), rows)


def remake(runs: Runs, command: str) -> Section:
    """Commands that make all of it again, as far as the files say them."""
    lines = [visible(file.stamp.command) for file in runs.stamped]
    called = [line for line in lines if line.startswith("python ")]
    blocks: list[Block] = []
    if called:
        blocks.append(
            Text("As the files record it, stage by stage. Read a command of a stranger's file before you run it:")
        )
        blocks.append(Commands("\n".join(dict.fromkeys(called))))
    if others := [f"{file.name}: {line}" for file, line in zip(runs.stamped, lines, strict=True) if line not in called]:
        blocks.append(Text("Made in a program, not by a command:"))
        blocks.append(Commands("\n".join(others)))
    if runs.results:
        blocks.append(
            Text(
                "Tables record no command. These measure the same on the test images of the trainings; if it was on "
                "others, add --data:"
            )
        )
        blocks.append(Commands("\n".join(_evaluation(runs, table) for table in runs.results)))
    blocks += [Text("This page:"), Commands(visible(command))]
    return Section("again", "How to make it again", blocks)


def _evaluation(runs: Runs, table: Table) -> str:
    """The command whose table this is, as far as the table says it."""
    names = {file.stamp.digest: file.name for file in runs.models}
    models = dict.fromkeys(names.get(row["model_digest"], row["model"]) for row in table.rows)
    both = _top1(table)
    conditions = dict.fromkeys(row["condition"] for row in both)
    seeds = sorted({row["noise_seed"] for row in both})
    draws = max(row["draws"] for row in both)
    flags = ["--noise", *conditions]
    flags += ["--repeats", str(len(seeds))] if len(seeds) > 1 else []
    flags += ["--draws", str(draws)] if draws > 1 else []
    # Tables of earlier versions do not know of shifts.
    flags += [f"--{view}" for view in ("mirror", "shifts") if table.rows[0].get(view) == "True"]
    preprocess = table.rows[0]["preprocess"]
    flags += ["--preprocess", preprocess] if preprocess != "none" else []
    flags += ["--seed", str(seeds[0])] if seeds[0] else []
    confusion = f"{table.name.removesuffix('.csv')}_confusion.csv"
    flags += ["--confusion"] if any(other.name == confusion for other in runs.confusions) else []
    return shlex.join(["python", "-m", "hybrid.evaluate", *models, *flags, "--out", table.name])
