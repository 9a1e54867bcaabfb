"""Which classes a trained network finds in photographs of any size, clean and under noise.

answers = hybrid.classify("pretrained:safe-cifar10", ["cat.jpg", "photos/"], ["clean", "awgn:15"], top=3)
answers[0].classes, answers[0].probabilities  # ("cat", "dog", "frog"), (0.91, 0.04, 0.02)
"""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from bridge.drawing import random_modules
from hybrid.conditions import Condition, Context
from hybrid.conditions.drawn import CLEAN
from hybrid.evaluation import distinct, predict
from hybrid.storage import TrainedModel, load_model
from snn.data import Array, Images, as_images
from snn.image_files import SEVERAL_FRAMES, Fit, image_files, read_fitted
from snn.runtime.device import as_device
from snn.runtime.errors import check, check_choice
from snn.runtime.progress import progress, warn
from snn.runtime.ranges import COUNT, SEED, check_value

Photographs = str | Path | Iterable[str | Path] | Array
"""A file, a folder, several of these, or uint8 images (N, C, H, W) of the network's own size."""


class Answer(NamedTuple):
    """What a network finds in one image under one condition."""

    image: str
    """The file, or the number of an image that came in an array, from 0 on."""
    condition: str
    """As written, for example ``awgn:15``."""
    classes: tuple[str, ...]
    """The likeliest classes, first the one that the network decides for."""
    probabilities: tuple[float, ...]
    """Their probabilities, by the softmax of the logits."""
    given: Tensor | None = None
    """What the network was given, float32 (C, H, W) in [0, 1]; None: it was not to be kept."""

    def row(self) -> dict[str, Any]:
        """All but the pixels, for JSON."""
        answers = zip(self.classes, self.probabilities, strict=True)
        return {
            "image": self.image,
            "condition": self.condition,
            "answers": [{"class": name, "probability": probability} for name, probability in answers],
        }


def classify(
    model: TrainedModel | str | Path,
    images: Photographs,
    conditions: str | Condition | Iterable[str | Condition] = (CLEAN,),
    *,
    top: int = 5,
    fit: Fit = "crop",
    draws: int = 1,
    mirror: bool = False,
    shifts: bool = False,
    keep: bool = True,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Answer]:
    """The likeliest classes of each image (outer) under each condition (inner).

    Answers to an image do not depend on the other images.

    Args:
        model: a trained network, or the file that holds one (also ``pretrained:NAME``). It is moved to ``device``.
        images: image files of any size and mode, folders of such files, or uint8 images (N, C, H, W) of the network's
            own size as a tensor or NumPy array. Files are turned as their EXIF orientation says, read as 8-bit RGB (or
            grey, for a network of one channel; transparent parts become black), and resized with antialiasing.
        conditions: perturbations such as ``"awgn:15"``, applied after resizing. Every image has the same draws.
        top: number of answers.
        fit: what is done to files that are not of the network's proportions. "crop" cuts out the middle: the shorter
            side of a photograph becomes that of the network. "pad" adds black borders, "squash" distorts.
        draws, mirror, shifts: as in :func:`hybrid.evaluate`.
        keep: whether answers hold the pixels that the network was given. Those of many large images take memory.
        seed: of the perturbations and draws.

    Raises:
        UserError: images or a model that cannot be read, an unknown condition or one that needs more than images, and
            values out of range.
    """
    model = load_model(model) if isinstance(model, str | Path) else model
    check(isinstance(model, TrainedModel), f"model of type {type(model).__name__}; give a trained model, or its file")
    conditions = [conditions] if isinstance(conditions, str | Condition) else conditions
    wanted = distinct(conditions)
    check(len(wanted) >= 1, "`conditions`: give at least one, for example clean")
    check_conditions(wanted, "conditions")
    for argument, value in (("top", top), ("draws", draws)):
        check_value(argument, value, int, COUNT)
    check_value("seed", seed, int, SEED)
    check_choice("fit", fit, get_args(Fit))
    check(
        draws == 1 or bool(random_modules(model.network)),
        f"`draws` {draws}: the encoder of this network draws nothing; leave it out",
    )
    device = as_device(device)
    named: Iterable[tuple[str, Tensor]]
    if isinstance(images, Array):
        pixels = as_images(images).cpu()
        check(
            tuple(pixels.shape[1:]) == model.spec.input_shape,
            f"images have shape {tuple(pixels.shape[1:])}, the network takes {model.spec.input_shape} (channels, "
            "height, width); resize them, or give files, which are resized",
        )
        named = [(str(number), pixels[number : number + 1]) for number in range(len(pixels))]
        count = len(pixels)
    else:
        files = find_images(images)
        named, count = zip(map(str, files), read_photographs(model, files, fit), strict=True), len(files)
    # Each alone: neither its noise nor the last bits of its answer then depend on the others.
    ask = partial(predict, model.network, device=device, draws=draws, mirror=mirror, shifts=shifts, seed=seed)
    answers = []
    for name, pixels in progress(named, "classifying", "image", total=count):
        for condition in wanted:
            data = Images(pixels, torch.zeros(1, dtype=torch.int64), model.spec.classes)
            given = condition.perturb(Context(data, seed, device=device)).images
            logits = ask(given)[0]
            check(
                bool(logits.isfinite().all()),
                "the network gives logits that are not finite numbers: its weights are broken; train it anew",
            )
            probabilities, places = logits.double().softmax(0).topk(min(top, len(logits)))
            classes = tuple(model.spec.classes[place] for place in places.tolist())
            answers.append(
                Answer(name, str(condition), classes, tuple(probabilities.tolist()), given[0] if keep else None)
            )
    return answers


def check_conditions(conditions: Iterable[Condition], argument: str) -> None:
    """Raise :class:`UserError` for a condition that needs more than the images themselves."""
    for condition in conditions:
        check(
            not (condition.needs_attack_model or condition.needs_cifar10_c),
            f"`{argument}` {condition}: it needs more than photographs without labels; hybrid.evaluate has it",
        )


def find_images(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """Image files, in the order given; in place of a folder all images in it and in its folders, by name.

    What a folder holds but is not read is said on stderr. Raises :class:`UserError` for a path that is not there, and
    for a folder without images.
    """
    listed = [paths] if isinstance(paths, str | Path) else list(paths) if isinstance(paths, Iterable) else [paths]
    files: list[Path] = []
    for item in listed:
        check(
            isinstance(item, str | Path),
            f"image of type {type(item).__name__}: give paths of files, or one uint8 array (N, C, H, W)",
        )
        path = Path(item)
        check(path.exists(), f"{path}: there is no such file; give an image, or a folder of images")
        if not path.is_dir():
            files.append(path)
            continue
        skipped: Counter[str] = Counter()
        found = list(image_files(path, skipped))
        check(bool(found), f"{path} holds no images; give a folder that does")
        files += found
        if reasons := [f"{reason}: {count}" for reason, count in skipped.items() if count]:
            warn(f"{path}: not read are {', '.join(reasons)}")
    check(bool(files), "no image given; name at least one file")
    return files


def read_photographs(model: TrainedModel, files: Iterable[Path], fit: Fit = "crop") -> Iterable[Tensor]:
    """Images as the network takes them, uint8 (1, C, H, W) each, of image files of any size and mode.

    Raises :class:`UserError` for a file that cannot be read, and for a network of neither one nor three channels.
    """
    channels, height, width = model.spec.input_shape
    check(
        channels in (1, 3),
        f"the network takes images of {channels} channels, image files have 1 or 3; give an array of its own images",
    )
    skipped: Counter[str] = Counter()
    for file in files:
        yield torch.tensor(read_fitted(file, width, height, fit, channels == 1, skipped))[None]
    if frames := skipped[SEVERAL_FRAMES]:
        warn(f"{SEVERAL_FRAMES}: {frames}")
