"""Accuracy of networks on clean and perturbed images.

For example, with the images of ``snn.data.load_images``::

    rows = evaluate(network, images)  # any module that takes images in [0, 1], under the default conditions
    rows = evaluate(["safe.h5", "baseline.h5"], images, ["clean", "awgn:20", "fgsm:8"], attack_model="baseline.h5")
    accuracy = {(row["model"], row["condition"]): row["value_percent"] for row in summarise(rows, "top1")}
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from bridge.drawing import drawing, random_modules
from hybrid.conditions import CHUNK, Condition, Context, Perturbed
from hybrid.conditions.drawn import Clean, mean_power, sigma_at
from hybrid.confusion import Confusion
from hybrid.network import Paths
from hybrid.own_network import OwnNetwork, OwnReference
from hybrid.preprocess import Preprocess
from hybrid.recipe import Recipe, warn_of_classes
from hybrid.storage import TrainedModel, load_model, model_file
from snn.data import Array, Images, as_labelled, few, load_images
from snn.data_source import DataSource, check_recorded
from snn.growing import Growing
from snn.image_cache import NONE
from snn.runtime.device import as_device
from snn.runtime.errors import check
from snn.runtime.pretrained import plain_name
from snn.runtime.progress import progress, warn
from snn.runtime.random import stream
from snn.runtime.ranges import COUNT, SEED, check_value
from snn.subset import Subset

Model = TrainedModel | nn.Module | str | Path
"""A trained model, any module that maps images (B, C, H, W) in [0, 1] to logits (B, classes), or a hybrid.h5 file (also
``pretrained:NAME``)."""

Given = TypeVar("Given", bound=Path | OwnReference)
ATTACKER = "`attack_model`"
"""How messages call it."""
METRICS = {"top1": 1, "top5": 5}
"""Accuracies by name: the true class is among so many of the highest logits."""
DEFAULT_CONDITIONS = tuple(
    map(Condition.parse, ("clean", "awgn:40", "awgn:30", "awgn:25", "awgn:20", "awgn:15", "awgn:12"))
)


def predict(
    network: nn.Module,
    images: Tensor,
    device: torch.device | str,
    *,
    batch_size: int = 256,
    preprocess: nn.Module | None = None,
    paths: Paths = "both",
    draws: int = 1,
    mirror: bool = False,
    shifts: bool = False,
    seed: int = 0,
    first: int = 0,
) -> Tensor:
    """Logits (N, classes), on the CPU, of images (N, C, H, W) in [0, 1], or in uint8.

    ``network`` is moved to ``device`` and set to evaluation mode. With ``draws`` above 1, a network that draws in its
    encoder while it is trained (or whose ``preprocess`` does) draws here so many times for each image. The result is
    the logarithm of the mean of the class probabilities. The draws depend on ``seed``, the number of the draw and the
    place of the image among ``images`` (counted from ``first``) alone. With 1, and in other networks, the encoder gives
    its mean. With ``mirror``, the network sees each image and its mirror image (left to right), and their answers are
    averaged likewise; with ``shifts``, also each of these moved by one pixel, up and left, and down and right. The row
    and the column that a shift uncovers are the image's own, reflected at its edge.
    """
    step = preprocess or nn.Identity()
    network.to(device).eval()
    encoders = random_modules(step, network) if draws > 1 else []
    arguments = {} if paths == "both" else {"paths": paths}

    def answers(batch: Tensor, rows: Sequence[int]) -> Iterator[Tensor]:
        for view in _views(batch, mirror, shifts):
            for draw in range(draws if encoders else 1):
                with drawing(encoders, [stream(seed, "draw", draw, row) for row in rows] if encoders else []):
                    answer = network(step(view), **arguments)
                    check(
                        isinstance(answer, Tensor) and answer.ndim == 2 and len(answer) == len(view),
                        f"{type(network).__name__} gives no logits: expected a tensor (N, classes) for N images",
                    )
                    yield answer.cpu()

    logits = []
    with torch.inference_mode():
        for number, batch in enumerate(images.split(batch_size)):
            batch = batch.float() / 255 if batch.dtype == torch.uint8 else batch
            batch = batch.to(device).contiguous(memory_format=torch.channels_last)
            start = first + number * batch_size
            rows = range(start, start + len(batch))
            logits.append(_mean_answer(list(answers(batch, rows))))
    return torch.cat(logits)


def _views(images: Tensor, mirror: bool, shifts: bool) -> Iterator[Tensor]:
    """The images, then what else of them the network sees (:func:`predict`)."""
    height, width = images.shape[2:]
    check(not shifts or min(height, width) > 1, f"`shifts`: images of {height} x {width} pixels are too small")
    padded = pad(images, (1, 1, 1, 1), mode="reflect") if shifts else images
    for corner in (1, 2, 0) if shifts else (0,):
        view = padded[..., corner : corner + height, corner : corner + width]
        view = view.contiguous(memory_format=torch.channels_last)
        yield view
        if mirror:
            yield view.flip(3)


def _mean_answer(answers: list[Tensor]) -> Tensor:
    """Logarithm of the mean class probabilities of several logits; of one, these logits as they are."""
    if len(answers) == 1:
        return answers[0]
    mean = torch.stack(answers).double().log_softmax(2).logsumexp(0) - math.log(len(answers))
    return mean.to(answers[0])


def correct_in(logits: Tensor, labels: Tensor, among: int) -> int:
    """Number of images whose true class is among the ``among`` highest logits (all, if there are fewer classes)."""
    top = logits.topk(min(among, logits.shape[1]), dim=1).indices
    return int((top == labels[:, None]).any(1).sum().item())


def evaluate(
    models: Model | Sequence[Model] | Mapping[str, Model],
    data: Images | Subset | tuple[Array, Array],
    conditions: str | Iterable[Condition | str] = DEFAULT_CONDITIONS,
    *,
    repeats: int = 1,
    draws: int = 1,
    mirror: bool = False,
    shifts: bool = False,
    attack_model: Model | None = None,
    preprocess: Preprocess | str = "none",
    cifar10_c: str | Path | None = None,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = "cpu",
    confusion: Confusion | None = None,
) -> list[dict]:
    """Accuracy of one model or several under each condition.

    A network with two paths is also measured with each path silenced, on clean images or else under the first
    condition, which shows what each path contributes.

    Args:
        models: one, several, or several by name. They are moved to ``device`` and set to evaluation mode.
        data: clean images and labels, some of them (:class:`snn.Subset`), or a pair of these, uint8 (N, C, H, W)
            and int64 (N,), as tensors or NumPy arrays; all models see the same perturbed images. They are read and
            perturbed in parts, so that memory does not grow with them. Classes are matched to those of trained models
            by name (:func:`match_classes`). A plain module has a logit for each class of :class:`snn.data.Images`, in
            their order, or of a trained model beside it.
        conditions: objects or text such as ``"awgn:20"``. Different spellings of one condition count once.
        repeats: noise seeds, from ``seed`` on, for conditions that draw; others are measured once.
        draws: passes over each image of a model that draws in its encoder while it is trained, by ``preprocess``
            ``spikes`` or ``variability`` (:func:`predict`). They are averaged. 1: its encoder gives the mean instead,
            as do those of other models, which have one pass. The noise seed is also that of these draws.
        mirror: average over each image and its mirror image (:func:`predict`).
        shifts: also average over the image, and the mirror image, moved by one pixel up and left, and by one down and
            right (:func:`predict`). Attacks take the gradient of the image alone.
        attack_model: whose gradient ``fgsm`` takes, with the mean of its encoder.
        preprocess: what is done to images before all models.
        cifar10_c: folder of the published files for ``cifar10-c``.
        batch_size: images per forward pass; results do not depend on it.
        confusion: counts, beside, which class is taken for which.

    Returns:
        A row per model, condition, noise seed, choice of paths and metric; accuracies are in %. What is unknown of a
        plain module (variant, digest and so on) is ""; of :func:`hybrid.own_network`, the digest is that of its
        weights' file.

    Raises:
        UserError: images or labels that cannot be used (:func:`snn.data.as_labelled`), a model of other images or
            classes, a condition that cannot be applied, or ``draws`` above 1 where no model draws.
    """
    named, rows = isinstance(data, Images | Subset), data.rows if isinstance(data, Subset) else None
    images = as_labelled(data.data if isinstance(data, Subset) else data)
    if not isinstance(models, Mapping):
        listed = [models] if isinstance(models, TrainedModel | nn.Module | str | Path) else list(models)
        models = dict(zip(name_models(listed), listed, strict=True))
    opened = {name: _opened(name, model) for name, model in models.items()}
    attacking = {} if attack_model is None else {ATTACKER: _opened(ATTACKER, attack_model)}
    trained = {name: model for name, model in (opened | attacking).items() if isinstance(model, TrainedModel)}
    data = Subset(match_classes(trained, images), rows)
    # Without names, labels do not say how many classes there are.
    classes = len(data.classes) if named or trained else None
    subjects = {name: _subject(model) for name, model in opened.items()}
    attacker = _subject(attacking[ATTACKER]) if attacking else None
    wanted = distinct([conditions] if isinstance(conditions, str) else conditions)
    for argument, value in (("repeats", repeats), ("draws", draws), ("batch_size", batch_size)):
        check_value(argument, value, int, COUNT)
    check_value("seed", seed, int, SEED)
    device = as_device(device)
    check(len(subjects) >= 1, "`models`: none given; give at least one")
    check(len(wanted) >= 1, "`conditions`: give at least one, for example clean")
    preprocess = Preprocess(preprocess) if isinstance(preprocess, str) else preprocess
    step = preprocess.build().eval().to(device)
    views: dict[str, Any] = {"mirror": mirror, "shifts": shifts}
    predict_batches = partial(predict, device=device, batch_size=batch_size, preprocess=step, **views)
    passes = {name: draws if random_modules(step, subject.network) else 1 for name, subject in subjects.items()}
    check(
        draws in passes.values(),
        f"`draws` {draws}: the encoder of {', '.join(subjects)} draws nothing; leave it out, or give `preprocess` "
        "spikes, or a network that was trained with it",
    )
    context = Context(
        data,
        attack_model=attacker.network if attacker else None,
        cifar10_c=Path(cifar10_c) if cifar10_c else None,
        device=device,
    )
    ablated = next((condition for condition in wanted if isinstance(condition, Clean)), wanted[0])
    runs = [(condition, s) for condition in wanted for s in range(seed, seed + (repeats if condition.draws else 1))]

    def asked(condition: Condition, noise_seed: int) -> list[tuple[str, Paths]]:
        every = condition == ablated and noise_seed == seed
        return [(name, paths) for name, subject in subjects.items() for paths in _paths(subject.network, every)]

    # Of each path and draw, so that the estimate of the time left is right from the start.
    answers = sum(passes[name] for run in runs for name, _ in asked(*run)) * len(data)
    power = _mean_power(data) if any(condition.snr is not None for condition in wanted) else torch.ones(1)
    results = []
    with progress(None, "evaluating", "answer", total=answers) as bar:
        for condition, noise_seed in runs:
            tallies = [
                _Tally(name, subjects[name], paths, passes[name], classes)
                for name, paths in asked(condition, noise_seed)
            ]
            done = 0
            for batch in _batches(condition.parts(replace(context, seed=noise_seed)), batch_size):
                for tally in tallies:
                    ask = partial(predict_batches, tally.subject.network, paths=tally.paths, draws=tally.draws)
                    tally.add(ask(batch.images, seed=noise_seed, first=done), batch.labels)
                    bar.update(tally.draws * len(batch.labels))
                done += len(batch.labels)
            attack_digest = attacker.provenance["model_digest"] if attacker and condition.needs_attack_model else ""
            about = {
                "condition": str(condition),
                "snr_dB": "" if condition.snr is None else condition.snr,
                "mean_sigma_intensity": "" if condition.snr is None else _mean_sigma(power, condition.snr),
                "source_digest": attack_digest,
                "preprocess": str(preprocess),
                **views,
                "images": done,
            }
            for tally in tallies:
                run: dict = {"model": tally.name, **tally.subject.description, "paths": tally.paths, **about}
                origin: dict = {"noise_seed": noise_seed, "draws": tally.draws, **tally.subject.provenance}
                results += [run | accuracy | origin for accuracy in tally.accuracies()]
                if confusion is not None and tally.paths == "both":
                    found = tally.labels.values, tally.predicted.values
                    confusion.add(tally.name, str(condition), noise_seed, *found, data.classes)
    return sorted(results, key=lambda row: (list(subjects).index(row["model"]), row["paths"] != "both"))


def _batches(parts: Iterable[Perturbed], size: int) -> Iterator[Perturbed]:
    """The same images, ``size`` at a time, however large their parts are."""
    rest: tuple[Perturbed, ...] = ()
    for part in parts:
        *whole, last = Perturbed.join((*rest, part)).split(size)
        yield from whole
        rest = (last,)
        if len(last.labels) == size:
            yield last
            rest = ()
    yield from rest


def _paths(network: nn.Module, every: bool) -> tuple[Paths, ...]:
    """All paths together; with ``every``, also each alone, where the network has two."""
    return ("both", "spiking", "auxiliary") if every and getattr(network, "has_two_paths", False) else ("both",)


def distinct(conditions: Iterable[Condition | str]) -> list[Condition]:
    """Conditions, read where they are text; of several spellings of one, the last, with a warning."""
    parsed = [c if isinstance(c, Condition) else Condition.parse(c, "conditions") for c in conditions]
    kept = {condition.key: condition for condition in parsed}
    for key, condition in kept.items():
        spellings = [str(other) for other in parsed if other.key == key]
        if len(spellings) > 1:
            warn(f"{', '.join(spellings)}: one condition, measured once, as {condition}")
    return list(kept.values())


def different(models: Iterable[Given]) -> list[Given]:
    """Files and networks of a user's own, each once, with a warning for those that are named several times."""
    named: dict[object, list[Given]] = {}
    for model in models:
        key: object = model.key if isinstance(model, OwnReference) else model_file(model).resolve()
        named.setdefault(key, []).append(model)
    for first, *others in named.values():
        if others:
            text = first.text if isinstance(first, OwnReference) else first
            warn(f"model {text} is given {1 + len(others)} times: measured once")
    return [first for first, *_ in named.values()]


def name_models(models: Sequence[Model | OwnReference]) -> list[str]:
    """Names by which results call models: of files without suffix, of variant and backbone, or of the class.

    Models that ship with the package have the NAME of ``pretrained:NAME``, networks of a user's own that of their
    function.

    Where two are equal, files have their whole path, networks of a user's own are written as they were given, with
    their weights, and other models have a number.
    """
    names, longer = [], []
    for number, model in enumerate(models, 1):
        reference = model.reference if isinstance(model, OwnNetwork) else model
        if isinstance(reference, OwnReference):
            names.append(reference.function)
            longer.append(f"{reference.text} {reference.weights or ''}".strip())
        elif isinstance(model, str | Path):
            names.append(plain_name(model))
            longer.append(str(model))
        elif isinstance(model, TrainedModel):
            names.append(f"{model.spec.architecture.variant} {model.spec.architecture.backbone}")
            longer.append(f"{names[-1]} {number}")
        else:
            names.append(type(model).__name__)
            longer.append(f"{names[-1]} {number}")
    return names if len(set(names)) == len(names) else longer


class _Subject(NamedTuple):
    """A model as :func:`evaluate` uses it."""

    network: nn.Module
    description: dict[str, str]
    provenance: dict[str, int | str]


class _Tally:
    """What a network answers to the images of one run, of which mini-batches are added.

    ``classes``: how many logits there must be, or None.
    """

    def __init__(self, name: str, subject: _Subject, paths: Paths, draws: int, classes: int | None) -> None:
        self.name, self.subject, self.paths, self.draws, self.classes = name, subject, paths, draws, classes
        self.correct = dict.fromkeys(METRICS, 0)
        self.labels = self.predicted = Growing.of(torch.empty(0, dtype=torch.int64))

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count logits (B, classes); :class:`UserError` for some that say nothing."""
        check(
            bool(logits.isfinite().all()),
            f"model {self.name} gives logits that are not finite numbers: its weights are broken; train it anew",
        )
        check(
            logits.ndim == 2 and int(labels.max()) < logits.shape[1],
            f"model {self.name} gives logits of shape {tuple(logits.shape)}; labels go up to {labels.max()}, so "
            "expected (N, classes) with more classes",
        )
        check(
            self.classes is None or logits.shape[1] == self.classes,
            f"model {self.name} gives {logits.shape[1]} logits for {self.classes} classes; expected one for each, in "
            "the order of the classes' names",
        )
        for metric, among in METRICS.items():
            self.correct[metric] += correct_in(logits, labels, among)
        self.labels = self.labels.extend(labels)
        self.predicted = self.predicted.extend(logits.topk(1, dim=1).indices[:, 0])

    def accuracies(self) -> Iterator[dict[str, str | float]]:
        """Accuracy by each metric."""
        images = self.labels.count
        for metric, correct in self.correct.items():
            share = correct / images
            error = round(100 * (share * (1 - share) / images) ** 0.5, 3)
            values = {"correct": correct, "value_percent": round(100 * share, 3), "standard_error_percent": error}
            yield {"metric": metric, **values}


def _opened(name: str, model: Model) -> TrainedModel | nn.Module:
    model = load_model(model) if isinstance(model, str | Path) else model
    check(
        isinstance(model, TrainedModel | nn.Module),
        f"model {name} is of type {type(model).__name__}; give a module, a trained model, or a file that holds one",
    )
    return model


def _subject(model: TrainedModel | nn.Module) -> _Subject:
    if isinstance(model, nn.Module):
        unknown = {"variant": "", "backbone": "", "train_noise": ""}
        digest = model.digest if isinstance(model, OwnNetwork) else ""
        return _Subject(model, unknown, {"training_seed": "", "model_digest": digest})
    architecture, train_noise = model.spec.architecture, model.recipe.get("train_noise", "clean")
    description = {"variant": architecture.variant, "backbone": architecture.backbone, "train_noise": train_noise}
    return _Subject(model.network, description, {"training_seed": model.seed, "model_digest": model.digest})


def _mean_power(data: Subset) -> Tensor:
    """Mean power of each image, (N, 1, 1, 1)."""
    power, done = torch.empty(len(data), 1, 1, 1), 0
    for chunk in data.split(CHUNK):
        power[done : done + len(chunk.labels)] = mean_power(chunk.images.float() / 255)
        done += len(chunk.labels)
    return power


def _mean_sigma(power: Tensor, decibel: float) -> float:
    """Mean standard deviation of noise on images of these powers, in units of intensity."""
    return round(sigma_at(power, decibel).mean().item(), 5)


def summarise(rows: list[dict], metric: str = "", paths: str = "") -> list[dict]:
    """One row for all noise seeds of a model, condition, choice of paths and metric.

    Only those rows of :func:`evaluate` are taken that have this ``metric`` and ``paths`` ("": all). ``value_percent``
    becomes the mean over seeds. ``deviation_percent`` is the standard deviation over seeds, or, for one seed, the
    standard error of the images drawn.
    """
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        if metric in ("", row["metric"]) and paths in ("", row["paths"]):
            groups.setdefault((row["model"], row["condition"], row["paths"], row["metric"]), []).append(row)
    summary = []
    for group in groups.values():
        values = [row["value_percent"] for row in group]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else group[0]["standard_error_percent"]
        summary.append(group[0] | {"value_percent": float(np.mean(values)), "deviation_percent": spread})
    return summary


def load_test_images(
    models: Mapping[str, TrainedModel],
    data: str | None,
    root: Path | None,
    limit: int | None,
    seed: int,
    image_size: int | None = None,
    *,
    cache: str | Path = NONE,
) -> Images:
    """Test images of :func:`common_source`, at most ``limit`` (None: as many as that records), in the models' classes.

    ``image_size`` replaces the recorded one (None: keep that). ``cache`` is that of :func:`snn.data.load_images`.
    """
    source = common_source(models, data, root).override(limit_test=limit, image_size=image_size)
    images = load_images(source, "test", seed, cache=cache)
    for name, model in models.items():
        (channels, *size), (expected, *sides) = images.shape, model.spec.input_shape
        remedy = f"`image_size` {sides[0]}" if sides[0] == sides[1] else "images of that size"
        check(
            channels != expected or size == sides,
            f"the images of {source.data} have {size[1]}x{size[0]} pixels, model {name} is for {sides[1]}x{sides[0]}; "
            f"give {remedy}",
        )
    return match_classes(models, images)


def common_source(models: Mapping[str, TrainedModel], data: str | None, root: Path | None) -> DataSource:
    """The first model's data; ``data`` and ``root`` replace what its training recorded, unless they are None."""
    if not models:
        check(data is not None, "`data`: no model here records its images; say which to measure on, as folder:PATH")
        return DataSource().override(data=data, root=root)
    name, model = next(iter(models.items()))
    check_recorded(model.data_source, data, f"model {name}")
    return model.data_source.override(data=data, root=root)


def load_held_out(models: Mapping[str, TrainedModel], root: Path | None, *, cache: str | Path = NONE) -> Subset:
    """Training images that training kept for its validation curve; they must be the same for all models.

    ``cache`` is that of :func:`snn.data.load_images`.
    """
    first, model = next(iter(models.items()))

    def origin(model: TrainedModel) -> dict[str, Any]:
        # The folder of CIFAR-10 does not change its images.
        images = asdict(replace(model.data_source, root=Path(), download=False))
        return {**images, "seed": model.seed, "holdout": model.recipe["holdout"]}

    for name, other in models.items():
        differing = [key for key, value in origin(model).items() if origin(other)[key] != value]
        theirs, ours = (", ".join(f"`{key}` {origin(m)[key]}" for key in differing) for m in (other, model))
        check(
            not differing,
            f"model {name} was trained with {theirs}, {first} with {ours}: they held out different images; evaluate "
            "them one by one",
        )
    check_recorded(model.data_source, None, f"model {first}", "evaluate where they are")
    data = load_images(model.data_source.override(root=root), "train", model.seed, cache=cache)
    rows = Recipe(holdout=model.recipe["holdout"]).held_out(data.labels, model.seed)
    warn_of_classes(data, rows)
    return Subset(data, torch.from_numpy(rows))


def match_classes(models: Mapping[str, TrainedModel], data: Images) -> Images:
    """The same images, with the classes of the models, which are matched by name.

    Classes of the models that the data do not have are said on stderr. Raises
    :class:`snn.runtime.errors.UserError` for a model of other images, or that does not know a class of the data, and
    for models of different classes.
    """
    classes = next(iter(models.values())).spec.classes if models else data.classes
    for name, model in models.items():
        known = model.spec.classes
        unknown = [label for label in data.classes if label not in known]
        check(
            not unknown or len(unknown) == len(data.classes) or model.spec.input_shape != data.shape,
            f"model {name} was trained on {len(known)} classes ({few(known)}), class {few(unknown)} of "
            f"{data.data_source.data} is none of them; leave such images out",
        )
        check(
            model.spec.input_shape == data.shape and known == classes and not unknown,
            f"model {name} was trained on {len(known)} classes ({few(known)}) and images of shape "
            f"{model.spec.input_shape}, {data.data_source.data} has {len(data.classes)} classes ({few(data.classes)}) "
            f"and shape {data.shape}; evaluate together only models of one data set, on images of their classes",
        )
    if data.classes == classes:
        return data
    places = torch.tensor([classes.index(name) for name in data.classes])
    if missing := [name for name in classes if name not in data.classes]:
        warn(f"{data.data_source.data} has no images of class {few(missing)}: results say nothing about that")
    return data._replace(labels=places[data.labels], classes=classes)
