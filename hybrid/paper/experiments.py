"""All runs on one data set at one scale: how a network of the tables is learned, converted, trained and measured."""

from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

from hybrid.backbones import PAPER_BACKBONES
from hybrid.conditions import Condition
from hybrid.evaluate import EvaluateConfig
from hybrid.paper.networks import CONVERT, EVALUATE, LEARN, NOWHERE, SAFE, TRAIN, Network
from hybrid.paper.runs import Run
from hybrid.recipe import RECIPES, RecipeName, choose_recipe
from snn.data_source import DataSource
from snn.learning import PRESETS, Learning, PresetName
from snn.runtime.cli import RunOptions


@dataclass(frozen=True)
class Scale:
    """Size of all runs. None leaves a setting as the command, its preset or its recipe has it."""

    seeds: int
    """Number of trainings of every network, each with its own seed."""
    limit_train: int | None = None
    """Largest number of training images."""
    limit_test: int | None = None
    """Largest number of test images."""
    epochs: int | None = None
    """Passes of supervised training."""
    batch_size: int | None = None
    """Images per optimiser step of supervised training."""
    learning_rate: float | None = None
    holdout: float | None = None
    recipe: RecipeName = "auto"
    """Hyperparameters of supervised training."""
    mirror: bool = False
    """Whether evaluation averages over each image and its mirror image."""
    width: float = 1.0
    """Multiplier of the backbones' channels."""
    learned: int | None = None
    """Largest number of training images on which spiking layers learn."""
    maps: tuple[int, ...] | None = None
    """Feature maps of the paper's spiking layers."""
    min_updates: int | None = None
    """Least number of updates of each spiking layer."""
    converted: int = CONVERT.images
    """Number of images to fit a conversion on, and of test images to measure it on."""
    corrupted: int = 1000
    """Largest number of test images under common corruptions, which are slow to compute."""
    backbones: tuple[str, ...] = PAPER_BACKBONES
    """Backbones of the tables that compare several."""
    stand_ins: dict[str, str] = field(default_factory=dict)
    """Backbone to train in place of each one named."""

    @property
    def changes(self) -> dict[str, int | float]:
        """Settings of supervised training that differ from the recipe's."""
        names = ("epochs", "batch_size", "learning_rate", "holdout")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


SCALES = {
    # The paper's sizes.
    "full": Scale(3),
    # All images, and a backbone that a CPU core trains in an hour, in place of the paper's three.
    "fast": Scale(
        seeds=3,
        recipe="fast",
        mirror=True,
        width=0.75,
        backbones=PAPER_BACKBONES[:1],
        stand_ins={"mobilenet_v2": "fast_cnn"},
    ),
    # A slice with narrow networks, to see that everything works: its numbers mean nothing.
    "small": Scale(
        seeds=1,
        limit_train=400,
        limit_test=200,
        maps=(8, 8, 12),
        min_updates=40,
        converted=60,
        epochs=4,
        batch_size=24,
        width=0.25,
    ),
}


@dataclass(frozen=True)
class Experiments:
    """All runs on one data set at one scale."""

    source: DataSource
    """The data, without the limits of the scale."""
    scale: Scale
    preset: PresetName = "cifar10"
    """Preset of snn.learn."""
    seed: int = 0
    """Seed of all runs. A network's first training has it, too; the others have those that follow."""

    @property
    def seeds(self) -> range:
        """Seeds of the trainings of a network."""
        return range(self.seed, self.seed + self.scale.seeds)

    @property
    def images(self) -> DataSource:
        """The data with the limits of the scale."""
        return self.source.override(limit_train=self.scale.limit_train, limit_test=self.scale.limit_test)

    def learning(self, network: Network) -> Learning:
        """Settings of a network's spiking layers, for images of this size."""
        preset, settings, scale = PRESETS[self.preset], network.learning, self.scale
        if settings.maps == LEARN.learning.maps:
            settings = replace(settings, maps=scale.maps or preset.maps, strides=preset.strides)
        elif self.preset != "cifar10":
            # One layer takes the whole stride of the preset's three.
            settings = replace(settings, strides=(prod(preset.strides),))
        return replace(settings, min_updates=scale.min_updates or settings.min_updates)

    def learn(self, network: Network = SAFE) -> Run:
        """The run that learns a network's spiking layers."""
        limits = [limit for limit in (self.scale.learned, self.scale.limit_train) if limit]
        config = replace(
            LEARN,
            preset=self.preset,
            data_source=self.images.override(limit_train=min(limits, default=None)),
            learning=self.learning(network),
            options=RunOptions(self.seed),
        )
        return Run(f"snn-{network.learning.stdp.rule}", config)

    def convert(self, network: Network = SAFE) -> Run:
        """The run that converts them into its front end."""
        config = replace(
            network.conversion,
            images=self.scale.converted,
            test_images=self.scale.converted,
            options=RunOptions(self.seed),
        )
        learned = config.conductances == "learned"
        name = network.learning.stdp.rule if learned else config.conductances
        return Run(f"frontend-{name}", config, (("snn", self.learn(network)),))

    def train(self, network: Network, backbone: str = "mobilenet_v2", seed: int = 0) -> Run:
        """The run that trains it, a lambda as the mu that it is made of."""
        name, _ = choose_recipe(self.scale.recipe, self.source.data, self.source.image_size or 0)
        changes: dict[str, Any] = {**self.scale.changes, "train_noise": network.train_noise}
        variant, stand_in = network.architecture.variant, self.scale.stand_ins.get(backbone, backbone)
        config = replace(
            TRAIN,
            data_source=self.images,
            architecture=replace(network.architecture, backbone=stand_in, width=self.scale.width),
            preset=name,  # type: ignore[arg-type]
            recipe=replace(RECIPES[name], **changes),
            options=RunOptions(seed),
        )
        inputs = () if variant == "baseline" else (("frontend", self.convert(network)),)
        return Run(f"{variant}-{stand_in}-seed{seed}", config, inputs)

    def model(self, network: Network, backbone: str = "mobilenet_v2", seed: int = 0) -> Run:
        """The run whose file holds the finished network: its training, or the swap of a part of it."""
        trained = self.train(network, backbone, seed)
        if network.swap is None:
            return trained
        if network.swap.auxiliary_input is not None:
            return Run(f"swapped-{trained.label}", network.swap, (("model", trained),))
        config = replace(network.swap, options=RunOptions(self.seed))
        inputs = (("model", trained), ("frontend", self.convert(network)))
        return Run(f"lambda-{config.scale}-seed{seed}", config, inputs)

    def evaluate(
        self,
        models: tuple[Run, ...],
        conditions: tuple[str, ...],
        evaluation: EvaluateConfig = EVALUATE,
        attacked: Run | None = None,
    ) -> Run:
        """The run that measures models under conditions; attacks take the gradient of ``attacked``."""
        config = replace(
            evaluation,
            noise=tuple(Condition.parse(text) for text in conditions),
            attack_model=NOWHERE if attacked else None,
            mirror=self.scale.mirror,
            options=RunOptions(self.seed),
        )
        inputs = (*(("models", model) for model in models), *((("attack_model", attacked),) if attacked else ()))
        name = models[0].label if len(models) == 1 else f"{len(models)}-networks"
        return Run(f"results-{name}", config, inputs)
