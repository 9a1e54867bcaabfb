"""Photographs of your own under noise, with the networks that ship.

    python -m examples.photographs --out runs/photographs                     # a cat that scikit-image brings along
    python -m examples.photographs my_dog.jpg ship.png --out runs/photographs

The networks know the ten classes of CIFAR-10 (airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck) and
see 32 x 32 pixels: the shorter side of a photograph becomes 32 pixels, and the middle is cut out. Choose photographs
whose object fills the middle.

A figure for each photograph shows, for rising white noise and for impulses, what the networks see, and the probability
that SAFE and the conventional network give to the answer that each gives to the clean photograph. Each point is the
mean of several draws of the noise, the band is from the lowest to the highest.

What to look at: at which level does a network lose its answer, and how far do the draws differ there? The printed table
counts the draws in which the answer is still that of the clean photograph. One photograph is an illustration, no
measurement: ``python -m hybrid.evaluate --data folder:PATH`` measures on many.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from torch import Tensor

import hybrid
from hybrid.conditions import Noise
from snn.image_files import read_fitted
from snn.runtime.cli import run_command
from snn.runtime.errors import check
from snn.runtime.outputs import check_outputs, save_figure
from snn.runtime.ranges import SEED, Range, check_fields

NETWORKS = {"SAFE": "pretrained:safe-cifar10", "baseline": "pretrained:baseline-cifar10"}
WHITE = ("clean", "awgn:25", "awgn:20", "awgn:15", "awgn:12", "awgn:9")
IMPULSES = ("clean", "salt-pepper:0.02", "salt-pepper:0.05", "salt-pepper:0.10", "salt-pepper:0.20")
SIDE = 32


@dataclass(frozen=True)
class PhotographsConfig:
    """Show what the networks that ship make of photographs under noise."""

    photographs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Image files; none: the cat chelsea.png of scikit-image."""
    out: Path = Path("runs/photographs")
    """Folder for the figures."""
    draws: Annotated[int, Range(1, 1000)] = 20
    """Draws of each noise."""
    seed: Annotated[int, SEED] = 0
    """Of the noise."""

    def __post_init__(self) -> None:
        check_fields(self)


def chelsea() -> Path:
    """The photograph of a cat that scikit-image brings along (public domain)."""
    package = importlib.util.find_spec("skimage")
    check(package is not None, "scikit-image, which brings the example's cat, is missing: pip install scikit-image, or "
          "give `photographs`")  # fmt: skip
    return Path(package.origin).parent / "data" / "chelsea.png"


def prepare(file: Path) -> Tensor:
    """The middle of a photograph in the size that the networks take, as in hybrid.classify: uint8 (1, 3, 32, 32)."""
    return torch.tensor(read_fitted(file, SIDE, SIDE, "crop", grey=False))[None]


def noisy(image: Tensor, condition: str, draws: int, seed: int) -> Tensor:
    """Draws of one noise on one image: float32 (draws, 3, 32, 32) in [0, 1]; of the clean image one."""
    noise = Noise.parse(condition)
    return torch.cat(list(noise.batches(image.expand(draws if noise.draws else 1, -1, -1, -1), seed)))


def main(argv: list[str] | None = None) -> int:
    return run_command(PhotographsConfig, run, argv)


def run(config: PhotographsConfig) -> None:
    """A figure and some lines for each photograph."""
    files = config.photographs or (chelsea(),)
    pictures = [config.out / f"{file.stem}.png" for file in files]
    images = [prepare(file) for file in files]
    config.out.mkdir(parents=True, exist_ok=True)
    check_outputs(*pictures, inputs=files)
    models = {name: hybrid.load(path) for name, path in NETWORKS.items()}
    for file, picture, image in zip(files, pictures, images, strict=True):
        views = {condition: noisy(image, condition, config.draws, config.seed) for condition in (*WHITE, *IMPULSES)}
        answers = {
            name: {condition: model(view).softmax(1) for condition, view in views.items()}
            for name, model in models.items()
        }
        clean = {name: by_condition["clean"][0] for name, by_condition in answers.items()}
        says = (
            f"{name} says {models[name].spec.classes[probabilities.argmax()]} ({probabilities.max():.0%})"
            for name, probabilities in clean.items()
        )
        print(f"{file.name}: {', '.join(says)}")
        print(f"  answers that stay, of {config.draws} draws" + "".join(f"{name:>12}" for name in models))
        for condition in (*WHITE[1:], *IMPULSES[1:]):
            stay = ((answers[name][condition].argmax(1) == clean[name].argmax()).sum() for name in models)
            print(f"    {condition:<29}" + "".join(f"{count:>12}" for count in stay))
        draw(file.name, views, answers, {name: model.spec.classes for name, model in models.items()}, picture)
        print(f"  wrote {picture}")


def draw(
    title: str,
    views: dict[str, Tensor],
    answers: dict[str, dict[str, Tensor]],
    classes: dict[str, tuple[str, ...]],
    path: Path,
) -> None:
    """What the networks see above the probabilities of their answers."""
    figure = Figure(figsize=(9, 4.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1, 2))
    tiles = above.subplots(1, len(WHITE) + len(IMPULSES) - 1)
    for axes, condition in zip(tiles, (*WHITE, *IMPULSES[1:]), strict=True):
        axes.imshow(views[condition][0].permute(1, 2, 0), interpolation="nearest")
        axes.set_title(condition.replace(":", "\n"), fontsize=8)
        axes.set_axis_off()
    for panel, conditions, label in zip(
        below.subplots(1, 2, sharey=True), (WHITE, IMPULSES), ("white noise: SNR (dB)", "impulses: share of pixels"),
        strict=True,
    ):  # fmt: skip
        places = np.arange(len(conditions))
        for number, (name, by_condition) in enumerate(answers.items()):
            answer = by_condition["clean"][0].argmax()
            values = [by_condition[condition][:, answer] for condition in conditions]
            lowest, highest = ([extreme(value).item() for value in values] for extreme in (torch.amin, torch.amax))
            colour = ("C1", "C0")[number]
            panel.plot(places, [value.mean() for value in values], marker="os"[number], color=colour,
                       label=f"{name}: {classes[name][answer]}")  # fmt: skip
            panel.fill_between(places, lowest, highest, color=colour, alpha=0.15, linewidth=0)
        panel.set_xticks(places, ["clean", *(condition.split(":")[1] for condition in conditions[1:])])
        panel.set(xlabel=label, ylim=(0, 1.02))
        panel.grid(alpha=0.3)
    below.axes[0].set_ylabel("probability of the clean answer")
    below.axes[0].legend(frameon=False, loc="lower left")
    figure.suptitle(title, fontsize=11)
    save_figure(figure, path)


if __name__ == "__main__":
    sys.exit(main())
