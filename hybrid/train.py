"""Train a SAFE network or its baseline on clean images, and write ``hybrid.h5``."""

import copy
import logging
import math
import sys
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Annotated

import lightning
import numpy as np
import torch
import tyro
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from bridge.frontend import SHIPPED_FRONTENDS, SpikingFrontEnd, load_frontend
from hybrid.augment import Augmentation, augment, resolve_augmentation
from hybrid.figures import draw_training
from hybrid.model import Architecture, ModelSpec, TrainedModel, build_model, save_model
from snn.command import (
    RunOptions,
    beside,
    check_outputs,
    choose_device,
    command_line,
    progress,
    run_command,
    write_json,
)
from snn.data import DataSource, Images, balanced_subset, load_images
from snn.errors import check
from snn.pretrained import resolve


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters of supervised training, the same for all variants (ours; the paper states only SGD)."""

    epochs: int = 30
    """Passes over the training images."""
    batch_size: int = 64
    """Images per optimiser step."""
    learning_rate: float = 0.05
    """Peak rate of SGD with Nesterov momentum 0.9; rises over the first fifth, then falls along a cosine."""
    weight_decay: float = 5e-4
    """L2 penalty on convolution and linear weights; normalisation and biases have none."""
    label_smoothing: float = 0.1
    """Share of the target spread over all classes."""
    augmentation: Augmentation = "auto"
    """Random shifts, also mirrored or not; auto mirrors anything but digits."""
    holdout: float = 0.1
    """Share of the training images, balanced over classes, kept for the validation curve."""

    def __post_init__(self) -> None:
        check(self.epochs >= 1, f"--epochs {self.epochs}: must be 1 or more")
        check(self.batch_size >= 2, f"--batch-size {self.batch_size}: batch normalisation needs 2 or more")
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            check(0 <= value < float("inf"), f"--{name.replace('_', '-')} {value}: must not be negative")
        check(0 <= self.label_smoothing < 1, f"--label-smoothing {self.label_smoothing}: expected 0 to below 1")
        check(0 < self.holdout < 1, f"--holdout {self.holdout}: must lie between 0 and 1")


@dataclass(frozen=True)
class TrainConfig:
    """Train a SAFE network or its baseline on clean images and write hybrid.h5."""

    out: Path
    """File to write, for example runs/demo/safe.h5."""
    source: Annotated[DataSource, tyro.conf.arg(name="")] = field(default_factory=DataSource)
    architecture: Annotated[Architecture, tyro.conf.arg(name="")] = field(default_factory=Architecture)
    frontend: Path | None = None
    """File written by bridge.convert, or pretrained:cifar10-fd; needed for safe."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)


class Classifier(lightning.LightningModule):
    """The training and validation steps; keeps one row of history per epoch."""

    def __init__(self, network: torch.nn.Module, recipe: Recipe, augmentation: Augmentation, seed: int) -> None:
        super().__init__()
        self.network, self.recipe, self.augmentation = network, recipe, augmentation
        self.generator = torch.Generator().manual_seed(seed)
        self.history: dict[str, list[float]] = {
            name: [] for name in ("train_loss", "train_accuracy", "val_loss", "val_accuracy", "learning_rate")
        }
        self._sums = {"train": torch.zeros(3), "val": torch.zeros(3)}

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        images, labels = batch
        logits = self.network(augment(images, self.augmentation, self.generator).float() / 255)
        loss = cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing)
        self._add("train", cross_entropy(logits.detach(), labels), logits, labels)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        images, labels = batch
        logits = self.network(images.float() / 255)
        self._add("val", cross_entropy(logits, labels), logits, labels)

    def _add(self, part: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        correct = (logits.detach().argmax(1) == labels).sum()
        row = torch.stack((loss * len(labels), correct, torch.tensor(len(labels), device=self.device)))
        self._sums[part] = self._sums[part].to(self.device) + row

    def on_train_epoch_end(self) -> None:
        for part, sums in self._sums.items():
            loss, correct, count = sums.tolist()
            self.history[f"{part}_loss"].append(loss / count)
            self.history[f"{part}_accuracy"].append(correct / count)
            self._sums[part] = torch.zeros(3)
        self.history["learning_rate"].append(self.lr_schedulers().get_last_lr()[0])

    def configure_optimizers(self) -> dict:
        """SGD with Nesterov momentum and one learning-rate cycle."""
        trained = [p for p in self.network.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.recipe.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.SGD(groups, lr=self.recipe.learning_rate, momentum=0.9, nesterov=True)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step, steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def one_cycle(step: int, steps: int) -> float:
    """Share of the peak learning rate at a step: linear rise over the first fifth, then half a cosine down to 0."""
    rise = steps / 5
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / (steps - rise))))


class TrainingProgress(Callback):
    """One bar with an estimate over the whole training."""

    def on_train_start(self, trainer: lightning.Trainer, module: Classifier) -> None:
        self.bar = progress(None, "training", "step", total=trainer.estimated_stepping_batches)

    def on_train_batch_end(self, trainer: lightning.Trainer, module: Classifier, *_: object) -> None:
        self.bar.update()

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Classifier) -> None:
        if module.history["val_accuracy"]:
            self.bar.set_postfix(
                epoch=trainer.current_epoch,
                val_accuracy=f"{module.history['val_accuracy'][-1]:.1%}",
                refresh=False,
            )

    def on_train_end(self, trainer: lightning.Trainer, module: Classifier) -> None:
        self.bar.close()


def train(
    data: Images,
    architecture: Architecture,
    recipe: Recipe | None = None,
    *,
    frontend: SpikingFrontEnd | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> TrainedModel:
    """Train one network on clean images.

    Args:
        data: training images; a part is held out for the validation curve.
        architecture: backbone, variant and widths.
        recipe: hyperparameters (None: defaults).
        frontend: converted spiking layers; needed for variant safe.
        seed: of weights, order, augmentation and the held-out part.
        device: where to train.

    Raises:
        UserError: unknown backbone or variant, a front end for other images, or too few images.
    """
    recipe, device = recipe or Recipe(), torch.device(device)
    spec = ModelSpec(architecture, data.shape, data.classes, frontend.spec if frontend else None)
    held_out = balanced_subset(data.labels.numpy(), max(1, round(recipe.holdout * len(data.labels))), seed)
    kept = np.setdiff1d(np.arange(len(data.labels)), held_out)
    check(
        len(kept) >= recipe.batch_size,
        f"{len(kept)} training images are fewer than one batch of {recipe.batch_size}; lower --batch-size",
    )
    # torchvision and Lightning draw from the global generators: seeded here, once.
    lightning.seed_everything(seed, verbose=False)
    # The caller's front end stays as it was converted.
    network = build_model(spec, copy.deepcopy(frontend))
    network.normalise.measure(data.images[kept])
    module = Classifier(network, recipe, resolve_augmentation(recipe.augmentation, data.source.data), seed)
    trainer = lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1,
        max_epochs=recipe.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[TrainingProgress()],
    )
    generator = torch.Generator().manual_seed(seed)
    with warnings.catch_warnings():
        # Batches are slices of tensors in memory: loader workers would only slow them down.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
        warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
        training, held = _loader(data, kept, recipe.batch_size, generator), _loader(data, held_out, 256, None)
        try:
            trainer.fit(module, training, held)
        except SystemExit as stop:
            # Lightning turns Ctrl-C into an exit without a word.
            raise KeyboardInterrupt from stop
    history = {name: np.array(values) for name, values in module.history.items()}
    check(
        all(np.isfinite(values).all() for values in history.values()),
        f"training diverged with --learning-rate {recipe.learning_rate}: the loss is no longer a number; lower it",
    )
    return TrainedModel(
        spec=spec,
        network=network.cpu().eval(),
        source=data.source,
        seed=seed,
        history=history,
        recipe=asdict(recipe),
    )


def _loader(data: Images, rows: np.ndarray, batch_size: int, generator: torch.Generator | None) -> DataLoader:
    """Whole batches at a time; shuffled and of equal size if there is a generator."""
    dataset = TensorDataset(data.images[rows], data.labels[rows])
    order = RandomSampler(dataset, generator=generator) if generator else SequentialSampler(dataset)
    return DataLoader(
        dataset, sampler=BatchSampler(order, batch_size, drop_last=generator is not None), batch_size=None
    )


def run(config: TrainConfig) -> None:
    """The command: load, train, write, report."""
    curves = beside(config.out, "_training.png") if config.options.figures else None
    file = resolve(config.frontend, SHIPPED_FRONTENDS) if config.frontend else None
    check_outputs(config.out, config.options.json, curves, inputs=[file] if file else [])
    device = choose_device(config.options.device)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    frontend, _, source_digest = load_frontend(file) if file else (None, None, "")
    data = load_images(config.source, "train", config.options.seed)
    name = f"{config.architecture.variant} {config.architecture.backbone}"
    print(f"training {name} on {len(data.images)} images ({device.type})", flush=True)
    began = perf_counter()
    model = train(data, config.architecture, config.recipe, frontend=frontend, seed=config.options.seed, device=device)
    seconds = perf_counter() - began
    digest = save_model(config.out, model, command_line("hybrid.train", config), source_digest)
    last = {name: values[-1].item() for name, values in model.history.items()}
    parameters = sum(p.numel() for p in model.network.parameters())
    print(
        f"trained {name} ({parameters / 1e6:.2f} M parameters) for {config.recipe.epochs} epochs "
        f"in {seconds:.0f} s on {device.type}: accuracy {last['train_accuracy']:.1%} on training, "
        f"{last['val_accuracy']:.1%} on held-out training images"
    )
    figures = {
        "variant": config.architecture.variant,
        "backbone": config.architecture.backbone,
        "parameters": parameters,
        "epochs": config.recipe.epochs,
        "seconds": seconds,
        "train_accuracy_share": last["train_accuracy"],
        "held_out_accuracy_share": last["val_accuracy"],
        "train_loss_nat": last["train_loss"],
        "held_out_loss_nat": last["val_loss"],
        "seed": config.options.seed,
        "digest": digest,
    }
    write_json(config.options.json, figures)
    if curves:
        draw_training(model, f"{name} on {config.source.data}", curves)
    print(f"wrote {config.out}" + (f" and {curves}" if curves else ""))


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.train``."""
    return run_command(TrainConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
