"""Which classes a trained network finds in photographs: a table, JSON, and a picture of what each path sees."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from hybrid.classification import Answer, check_conditions, classify, find_images
from hybrid.conditions import Condition, condition_flag
from hybrid.conditions.drawn import Clean
from hybrid.evaluation import distinct
from hybrid.figures import draw_answers
from hybrid.printing import print_table
from hybrid.storage import load_model, model_file
from snn.image_files import Fit, linked_folders
from snn.runtime.cli import RunOptions, check_left_out, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs
from snn.runtime.pretrained import plain_name
from snn.runtime.ranges import COUNT, check_fields

MOST_ROWS = 40
"""Of a picture, one for each image and condition: longer ones cannot be looked at."""


@dataclass(frozen=True)
class ClassifyConfig:
    """Classify photographs with a trained network, clean and under noise."""

    model: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="MODEL")]
    """File written by hybrid.train, or pretrained:NAME, for example pretrained:safe-cifar10."""
    images: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="IMAGE ...")]
    """Image files of any size (JPEG, PNG, TIFF, WebP, BMP, GIF, PPM), or folders of them."""
    noise: Annotated[tuple[Condition, ...], condition_flag(Condition, many=True)] = ()
    """Also classify the images under these perturbations, added after resizing; a plugin can add more. fgsm and
    cifar10-c need more than photographs: hybrid.evaluate has them."""
    top: Annotated[int, COUNT] = 5
    """Answers for each image."""
    fit: Fit = "crop"
    """How a photograph comes to the network's size. crop: its shorter side is resized, and the middle is cut out. pad:
    all of it is resized, between black borders. squash: all of it, distorted."""
    draws: Annotated[int, COUNT] = 1
    """Passes over each image, whose class probabilities are averaged, of a network that draws at random in its encoder
    while it is trained (such as pretrained:safe-cifar10). 1: its encoder gives its mean instead."""
    mirror: bool = False
    """Average the class probabilities of each image and of its mirror image (left to right)."""
    shifts: bool = False
    """Also average over the image moved by one pixel up and left, and by one down and right: three times the time."""
    out: Path | None = None
    """PNG file to draw: the images, what each path of the network sees of them, and the answers."""
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_fields(self)
        check(len(self.images) >= 1, "no image given; name at least one file, for example photo.jpg")
        check(
            self.out is None or self.out.suffix.lower() == ".png",
            f"`out` {self.out}: expected a name that ends in .png",
        )
        check_conditions(self.noise, "noise")
        if self.draws == 1 and not any(condition.draws for condition in self.noise):
            check_left_out(self.options, ("seed",), "nothing is drawn at random")


def conditions_of(noise: tuple[Condition, ...]) -> list[Condition]:
    """No noise first, then each perturbation once."""
    return [Clean("clean"), *(condition for condition in distinct(noise) if not isinstance(condition, Clean))]


def print_answers(answers: list[Answer], model: str) -> None:
    """A line for each image and condition, with the likeliest classes and their probabilities."""
    lines = []
    for number, answer in enumerate(answers):
        # A name stands once for all conditions of its image.
        repeated = number > 0 and answer.image == answers[number - 1].image
        found = zip(answer.classes, answer.probabilities, strict=True)
        shown = ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in found)
        lines.append(("" if repeated else answer.image, answer.condition, shown))
    print_table(f"Answers of {model}", ("image", "condition", "likeliest classes"), lines, words=3)


def run(config: ClassifyConfig) -> None:
    """The command: load, classify, report, draw."""
    files = find_images(config.images)
    conditions = conditions_of(config.noise)
    pictures = [config.out] if config.out else []
    folders = [folder for path in config.images if path.is_dir() for folder in linked_folders(path)]
    inputs = [model_file(config.model), *folders, *files]
    outputs = Outputs(options=config.options, figures=pictures, inputs=inputs)
    rows = len(files) * len(conditions)
    check(
        not outputs.figures or rows <= MOST_ROWS,
        f"`out` {config.out}: it would have {rows} rows, one for each image and condition; a picture has at most "
        f"{MOST_ROWS}; give fewer images, or leave it out",
    )
    device = choose_device(config.options.device)
    model = load_model(config.model)
    answers = classify(
        model,
        files,
        conditions,
        top=config.top,
        fit=config.fit,
        draws=config.draws,
        mirror=config.mirror,
        shifts=config.shifts,
        keep=bool(outputs.figures),
        seed=config.options.seed,
        device=device,
    )
    name = plain_name(config.model)
    print_answers(answers, name)
    for picture in outputs.figures:
        draw_answers(answers, model.network, name, picture)
    about = {"model": name, "model_digest": model.digest, "classes": list(model.spec.classes)}
    passes = {"draws": config.draws, "mirror": config.mirror, "shifts": config.shifts}
    settings = {"fit": config.fit, **passes, "seed": config.options.seed}
    outputs.finish(about | settings | {"images": [answer.row() for answer in answers]})


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.classify``."""
    return run_command(ClassifyConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
