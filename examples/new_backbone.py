"""A backbone of your own, trained as SAFE and as its baseline.

    python -m examples.new_backbone --out runs/new_backbone

The new backbone, ``small_net``, is the module below: a stem, three blocks and a linear layer. Its adapter says how the
project takes it apart: SAFE drops the stem and the first block, and puts spiking layers and an auxiliary CNN in their
place. A layer is learned on digits, converted, and both networks are trained for a few epochs.

What to look at in new_backbone.png: on clean images the baseline is a little ahead, as it sees the intensities as they
are. Where a fifth of the pixels are white or black, SAFE should be ahead: its retina clips strong contrast, so that a
wrong pixel counts for little. Two short trainings say no more than that: compare several seeds before you believe a
difference of a few points.

This file is also a plugin, with which all commands know the backbone by its name:

    python -m hybrid.train --data digits --plugin examples/new_backbone.py --backbone small_net --variant baseline \\
        --out baseline.h5
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor, nn

import bridge
import hybrid
import snn
from hybrid.figures import draw_noise
from snn.runtime.cli import run_command
from snn.runtime.outputs import check_outputs
from snn.runtime.ranges import SEED, Range, check_fields

CONDITIONS = ("clean", "awgn:20", "awgn:15", "awgn:12", "salt-pepper:0.05", "salt-pepper:0.20")


def block(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    """A convolution, its normalisation, and ReLU."""
    convolution = nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(c_out), nn.ReLU())


class SmallNet(nn.Module):
    """Images (B, 3, H, W) to logits (B, classes)."""

    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.stem = block(3, channels, stride=2)
        self.first = block(channels, channels, stride=1)
        self.second = block(channels, 2 * channels, stride=2)
        self.third = block(2 * channels, 4 * channels, stride=2)
        self.head = nn.Linear(4 * channels, classes)

    def forward(self, images: Tensor) -> Tensor:
        features = self.third(self.second(self.first(self.stem(images))))
        return self.head(features.mean((2, 3)))


@hybrid.register_backbone("small_net")
class SmallNetAdapter(hybrid.Adapter[SmallNet]):
    """How SmallNet is built and taken apart."""

    stem, head = "stem.0", "head"
    strides = (4, 2)  # up to the end of block "second", the first that SAFE keeps: large images, small ones

    def build(self, classes: int, width: float) -> SmallNet:
        return SmallNet(classes, max(1, round(32 * width)))

    def use_small_strides(self, network: SmallNet) -> None:
        network.stem[0].stride = (1, 1)

    def drop_stem(self, network: SmallNet, channels: int, stride: int) -> None:
        network.stem = network.first = nn.Identity()
        network.second = block(channels, network.second[0].out_channels, stride)


@dataclass(frozen=True)
class NewBackboneConfig:
    """Train a new backbone as SAFE and as its baseline, and compare both under noise."""

    out: Path
    """Folder for the figure and the networks."""
    epochs: Annotated[int, Range(1, 1000)] = 6
    """Passes over the 1,197 training images, for each network."""
    seed: Annotated[int, SEED] = 0
    """Of all random draws."""

    def __post_init__(self) -> None:
        check_fields(self)


def main(argv: list[str] | None = None) -> int:
    return run_command(NewBackboneConfig, run, argv)


def run(config: NewBackboneConfig) -> None:
    """Learn a layer, convert it, train both networks, measure them."""
    picture, seed = config.out / "new_backbone.png", config.seed
    files = {name: config.out / f"{name}.h5" for name in ("SAFE", "baseline")}
    config.out.mkdir(parents=True, exist_ok=True)
    check_outputs(picture, *files.values())
    train, test = snn.load_images("digits", "train"), snn.load_images("digits", "test")

    spiking = snn.learn(train, replace(snn.PRESETS["retina-digits"], maps=(32,), min_updates=100), seed=seed)
    frontend = bridge.convert(spiking, train.images[:256]).frontend
    networks = {
        "SAFE": hybrid.Architecture(backbone="small_net", variations=hybrid.Variations(feature_norm=True)),
        "baseline": hybrid.Architecture(backbone="small_net", variant="baseline"),
    }
    recipe = hybrid.Recipe(epochs=config.epochs)
    # With another number of threads the last bits of a training differ.
    torch.set_num_threads(1)
    models = {
        name: hybrid.train(train, network, recipe, frontend=frontend if name == "SAFE" else None, seed=seed)
        for name, network in networks.items()
    }
    rows = hybrid.summarise(hybrid.evaluate(models, test, CONDITIONS, seed=seed), "top1", "both")
    draw_noise(rows, picture)
    for name, model in models.items():
        hybrid.save(model, files[name])

    found = {(row["model"], row["condition"]): row["value_percent"] for row in rows}
    print(f"{'condition':<18}" + "".join(f"{name:>12}" for name in models))
    for condition in CONDITIONS:
        print(f"{condition:<18}" + "".join(f"{found[name, condition]:>10.1f} %" for name in models))
    print("wrote " + ", ".join(map(str, (picture, *files.values()))))


if __name__ == "__main__":
    sys.exit(main())
