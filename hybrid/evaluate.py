"""Accuracy of saved models on clean and noisy test images: a table, a CSV file in long format, a figure."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from hybrid.conditions import Condition, condition_flag
from hybrid.confusion import Confusion
from hybrid.evaluation import (
    DEFAULT_CONDITIONS,
    METRICS,
    common_source,
    different,
    evaluate,
    load_held_out,
    load_test_images,
    name_models,
    summarise,
)
from hybrid.figures import draw_confusion, draw_noise
from hybrid.own_network import OwnNetwork, OwnReference, is_own, own_network
from hybrid.preprocess import UNCHANGED, Preprocess, preprocess_flag
from hybrid.printing import print_table
from hybrid.storage import TrainedModel, load_model, model_file
from snn.data import Images, image_folders
from snn.data_source import IMAGES, SIDE, note_root
from snn.image_cache import Caching
from snn.runtime.cli import RunOptions, check_left_out, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs, beside, write_csv
from snn.runtime.ranges import COUNT, check_fields
from snn.subset import Subset

NO_WEIGHTS = Path("none")
"""Stands for the file of a network whose function loads its own weights."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure saved models under noise; write results.csv, a figure and a table."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Files written by hybrid.train or hybrid.swap, pretrained:NAME, or networks of your own: FILE.py:FUNCTION or
    MODULE:FUNCTION, a function without arguments that returns a torch.nn.Module, which takes images (B, C, H, W) in
    [0, 1] and returns logits. Evaluating one runs its program: read it first."""
    out: Path
    """CSV file to write, for example runs/demo/results.csv."""
    noise: Annotated[tuple[Condition, ...], condition_flag(Condition, many=True)] = DEFAULT_CONDITIONS
    """Conditions. DB is a signal-to-noise ratio, SHARE one of pixels, EPS a step in 8-bit units; fgsm needs
    --attack-model, cifar10-c needs --cifar10-c. A plugin can add more."""
    weights: tyro.conf.UseAppendAction[tuple[Path, ...]] = ()
    """State dict of a network of your own, which runs nothing; one --weights for each of them, in their order, with an
    --attack-model of your own last. none: as the function returns it."""
    confusion: bool = False
    """Also write which class is taken for which, OUT_confusion.csv and .png, and print the accuracy of each class."""
    repeats: Annotated[int, COUNT] = 1
    """Noise seeds, from --seed on. A condition that draws nothing (such as clean or fgsm) is measured once."""
    draws: Annotated[int, COUNT] = 1
    """Passes over each image, whose class probabilities are averaged, of models that draw at random in their encoder
    while they are trained (--preprocess spikes, --variations.variability). 1: their encoder gives its mean instead."""
    mirror: bool = False
    """Average the class probabilities of each image and of its mirror image (left to right), at twice the time."""
    shifts: bool = False
    """Also average over the image moved by one pixel up and left, and by one down and right: three times the time."""
    attack_model: Path | None = None
    """Model whose gradient fgsm takes, also one of your own; the gradients of the models themselves are never taken."""
    preprocess: Annotated[Preprocess, preprocess_flag()] = UNCHANGED
    """What is done to images before the models, in evaluation only (see hybrid.train)."""
    cifar10_c: Path | None = None
    """Folder with the published files of CIFAR-10-C."""
    split: Literal["test", "held-out"] = "test"
    """Images to measure on: test images, or the training images that training held out for its validation curve. Make
    choices on held-out images. --data and --limit-test are for test images."""
    data: str | None = None
    """Test images, if not those of the training run: digits, cifar10 or folder:PATH with test/CLASS folders of images,
    or with CLASS folders alone. Networks of your own alone need it."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the training run."""
    image_size: Annotated[int | None, SIDE] = None
    """Resize images to this height and width, in pixels; None: as in the training run."""
    limit_test: Annotated[int | None, IMAGES] = None
    """Take at most this many test images, balanced over classes; None: as many as the training run recorded, or all."""
    batch_size: Annotated[int, COUNT] = 256
    """Images per forward pass; results do not depend on it."""
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check(len(self.models) >= 1, "no model given; name at least one file written by hybrid.train")
        check(len(self.noise) >= 1, "`noise`: give at least one condition, for example clean")
        check_fields(self)
        check(
            self.split == "test" or (self.data is None and self.limit_test is None),
            "`split` held-out takes images of the training run: leave out `data` and `limit_test`",
        )
        check(
            self.split == "test" or self.image_size is None,
            "`split` held-out takes images of the training run, of their size there: leave out `image_size`",
        )
        attacks = [str(condition) for condition in self.noise if condition.needs_attack_model]
        check(
            self.attack_model is not None or not attacks,
            f"`noise` {', '.join(attacks)} needs `attack_model` FILE, the model whose gradient it takes",
        )


def print_tables(rows: list[dict], repeats: int, classes: int) -> None:
    """Print accuracy in percent by condition and model, a table per metric, then the accuracy of each path alone.

    A metric that no answer can miss, such as top5 of 5 ``classes``, has no table.
    """
    models = list(dict.fromkeys(row["model"] for row in rows))
    deviation = f"deviation over {repeats} noise seeds; standard error where nothing is drawn"
    spread = deviation if repeats > 1 else "standard error"
    draws = max(row["draws"] for row in rows)
    averaged = f", {draws} draws of the encoder" if draws > 1 else ""
    views = {"mirror": "its mirror image", "shifts": "shifts by a pixel"}
    seen = [words for view, words in views.items() if rows[0][view]]
    averaged += f", each averaged with {' and '.join(seen)}" if seen else ""
    for metric in (metric for metric, among in METRICS.items() if among == 1 or among < classes):
        cells = {(row["condition"], row["model"]): row for row in summarise(rows, metric, "both")}
        lines = []
        for condition in dict.fromkeys(condition for condition, _ in cells):
            sigma = cells[condition, models[0]]["mean_sigma_intensity"]
            accuracies = (_percent(cells[condition, model]) for model in models)
            lines.append((condition, f"{sigma:.3f}" if sigma != "" else "", *accuracies))
        title = f"{metric} accuracy (% ± {spread}) on {rows[0]['images']} images{averaged}"
        print_table(title, ("condition", "mean sigma", *models), lines)
    top1 = summarise(rows, "top1")
    alone = [row for row in top1 if row["paths"] != "both"]
    if alone:
        condition = alone[0]["condition"]
        cells = {(row["model"], row["paths"]): row for row in top1 if row["condition"] == condition}
        print_table(
            f"Both paths, and each alone with the other set to zero (top1, %, {condition})",
            ("model", "both", "spiking alone", "auxiliary alone"),
            [
                (model, *(_percent(cells[model, paths]) for paths in ("both", "spiking", "auxiliary")))
                for model in dict.fromkeys(row["model"] for row in alone)
            ],
        )


def _percent(row: dict) -> str:
    return f"{row['value_percent']:.1f} ± {row['deviation_percent']:.1f}"


def check_files(config: EvaluateConfig) -> None:
    """Raise :class:`UserError` for files that a condition needs and that are not given, or that none needs."""
    published = [str(condition) for condition in config.noise if condition.needs_cifar10_c]
    check(
        config.cifar10_c is not None or not published,
        f"`noise` {', '.join(published)} needs `cifar10_c` FOLDER, the published files; "
        "corruption:NAME,SEVERITY is computed without them",
    )
    if not published:
        check_left_out(config, ("cifar10_c",), "no condition of `noise` is of cifar10-c")
    if not any(condition.draws for condition in config.noise):
        check_left_out(config, ("repeats",), "no condition of `noise` draws")
    if not any(condition.needs_attack_model for condition in config.noise):
        check_left_out(config, ("attack_model",), "no condition of `noise` takes a gradient")


def references(config: EvaluateConfig) -> tuple[list[Path | OwnReference], Path | OwnReference | None]:
    """The models, each once, and the attack model; networks of a user's own have their weights.

    Raises :class:`UserError` for another number of weights than of such networks.
    """
    given = [*config.models, *([config.attack_model] if config.attack_model else [])]
    own = [path for path in given if is_own(path)]
    if own[-1:] == [config.attack_model] and config.attack_model in config.models:
        # The one that is measured, with its weights.
        own.pop()
    if not own:
        check_left_out(config, ("weights",), "no model is a network of your own (FILE.py:FUNCTION)")
    check(
        len(config.weights) in (0, len(own)),
        f"`weights`: {len(config.weights)} for {len(own)} networks of your own ({', '.join(map(str, own))}); give one "
        "for each, or none as FILE for one that loads its own",
    )
    files = iter(config.weights or (NO_WEIGHTS,) * len(own))

    def reference(path: Path, argument: str) -> Path | OwnReference:
        if not is_own(path):
            return path
        file = next(files)
        return OwnReference(str(path), file if file != NO_WEIGHTS else None, argument)

    models = [reference(path, "models") for path in config.models]
    if config.attack_model is None:
        return different(models), None
    same = [model for path, model in zip(config.models, models, strict=True) if path == config.attack_model]
    return different(models), same[0] if same else reference(config.attack_model, "attack_model")


def print_classes(confusion: Confusion) -> dict[str, dict[str, float]]:
    """Print the accuracy of each class by model, clean or under the first condition; return it, in %, by model."""
    condition = confusion.first
    accuracy = {model: confusion.class_accuracy(model, condition) for model in confusion.models}
    images = confusion.matrix(confusion.models[0], condition).sum(1)
    lines = [
        (name, str(count), *(f"{by_class[name]:.1f}" for by_class in accuracy.values()))
        for name, count in zip(confusion.classes, images, strict=True)
        if count
    ]
    print_table(f"top1 accuracy of each class (%, {condition})", ("class", "images", *accuracy), lines)
    return accuracy


def run(config: EvaluateConfig) -> None:
    """The command: load, evaluate, write, report."""
    check_files(config)
    named, attack = references(config)
    inputs = [path for model in (*named, attack) if model for path in _files(model)]
    seed = config.options.seed

    def opened(model: Path | OwnReference) -> TrainedModel | OwnNetwork:
        return own_network(model, seed=seed) if isinstance(model, OwnReference) else load_model(model)

    models = dict(zip(name_models(named), map(opened, named), strict=True))
    # The network that is measured is not opened again.
    measured = (model for reference, model in zip(named, models.values(), strict=True) if reference == attack)
    attacker = next(measured, None) or (opened(attack) if attack else None)
    trained = {name: model for name, model in models.items() if isinstance(model, TrainedModel)}
    held_out = config.split == "held-out"
    check(
        bool(trained) or not held_out,
        "`split` held-out takes images of a training run, and no model has one: give `data` in place of it",
    )
    first = next(iter(trained.values())).data_source if held_out else None
    source = first.override(root=config.root) if first else common_source(trained, config.data, config.root)
    note_root(source, config.root)
    inputs += image_folders(source)
    inputs += [config.cifar10_c] if config.cifar10_c else []
    confusion = Confusion() if config.confusion else None
    table = beside(config.out, "_confusion.csv") if config.confusion else None
    pictures = [beside(config.out, ".png"), *([beside(config.out, "_confusion.png")] if config.confusion else [])]
    outputs = Outputs(config.out, table, options=config.options, figures=pictures, inputs=inputs)
    device = choose_device(config.options.device)
    data: Images | Subset
    if held_out:
        data = load_held_out(trained, config.root, cache=config.caching.cache)
    else:
        data = load_test_images(
            trained, config.data, config.root, config.limit_test, seed, config.image_size, cache=config.caching.cache
        )
    rows = evaluate(
        models,
        data,
        config.noise,
        repeats=config.repeats,
        draws=config.draws,
        mirror=config.mirror,
        shifts=config.shifts,
        attack_model=attacker,
        preprocess=config.preprocess,
        cifar10_c=config.cifar10_c,
        batch_size=config.batch_size,
        seed=seed,
        device=device,
        confusion=confusion,
    )
    write_csv(config.out, rows)
    print_tables(rows, config.repeats, len(data.classes))
    printed: dict = {"results": rows, "seed": seed}
    if confusion is not None:
        write_csv(table, confusion.rows())
        printed["class_accuracy_percent"] = print_classes(confusion)
    if outputs.figures:
        draw_noise(summarise(rows, "top1", "both"), outputs.figures[0])
        if confusion is not None:
            draw_confusion(confusion, outputs.figures[1])
    outputs.finish(printed)


def _files(model: Path | OwnReference) -> list[Path]:
    return model.files if isinstance(model, OwnReference) else [model_file(model)]


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.evaluate``."""
    return run_command(EvaluateConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
