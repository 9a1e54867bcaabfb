"""Training steps for Lightning, each of which depends on seed, step and process alone.

A mini-batch comes as uint8 (:mod:`hybrid.batches`); shifts, flips, noise and dropout are drawn from generators of that
step. Training can therefore stop and go on anywhere, to the same bits.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from hybrid.augment import Augmentation, augment, cover
from hybrid.batches import Batches, Loader, MiniBatch, Supply
from hybrid.conditions import Noise
from hybrid.depthwise import QuickDepthwise
from hybrid.network import Network
from hybrid.optimiser import MOMENTUM, ORTHOGONAL_MOMENTUM, Muon, hidden_kernels, one_cycle
from hybrid.recipe import Recipe, class_weights
from hybrid.storage import history_rows, watched_column
from snn.runtime.errors import UserError, check
from snn.runtime.outputs import write_csv
from snn.runtime.progress import progress
from snn.runtime.random import stream
from snn.subset import Subset

PARTS = ("train", "val")
HISTORY = (*(f"{part}_{what}" for part in PARTS for what in ("loss", "accuracy")), "learning_rate")
"""Columns of every training's history."""
VALIDATION_BATCH = 256
EXPLODED, LARGEST_WEIGHT = 1e3, 1e3
"""Held-out loss over that of a guess, log(classes), and size of a weight, from which on both together a training has
exploded. A loss alone may be as large after a few steps, when running statistics are not yet those of the images."""
SMALL = 0.75
"""Size of the images of the first passes, as a share of the whole size (``small_share``)."""


class Diverged(UserError):
    """A training has exploded: there is nothing to go on from."""


PRECISIONS: dict[torch.dtype, Literal["32-true", "bf16-mixed"]] = {
    torch.float32: "32-true",
    torch.bfloat16: "bf16-mixed",
}
"""Lightning's names of what it computes in; the second keeps weights in float32."""


class Classifier(lightning.LightningModule):
    """The training and validation steps, and a history with one row for each epoch, also in the CSV file ``metrics``.

    ``training`` and ``held_out`` are images and labels on the CPU, which ``workers`` processes read
    (:class:`hybrid.batches.Supply`); ``augmentation`` is any but auto; ``seed`` is that of all draws. ``watch``: noise
    under which the held-out images are also classified after each pass, which changes nothing else. ``before``: the
    history of a finished training that this one goes on from, with a further cycle of the learning rate and other
    draws.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        augmentation: Augmentation,
        seed: int,
        training: Subset,
        held_out: Subset,
        metrics: Path | None = None,
        watch: Sequence[Noise] = (),
        before: Mapping[str, Iterable[float]] | None = None,
        workers: int | None = None,
    ) -> None:
        super().__init__()
        self.metrics = metrics
        self.threads: int | None = None
        """CPU threads of this process; None: as many as it gets."""
        self.network, self.recipe, self.augmentation, self.seed = network, recipe, augmentation, seed
        self.supply = Supply({"train": training, "val": held_out}, workers)
        self.mirrored_first = torch.rand(len(training), generator=stream(seed, "flips")) < 0.5
        """Which images are mirrored in the first pass, where flips alternate."""
        self.weights = class_weights(training.labels) if recipe.class_weights == "balanced" else None
        """Of each class in the loss; None: all alike."""
        columns = [*HISTORY, *map(watched_column, watch)]
        self.history: dict[str, list[float]] = {
            name: list(map(float, before[name])) if before else [] for name in columns
        }
        self.passes_before = len(self.history["train_loss"])
        """Passes of the training that this one goes on from."""
        self.sums = {part: torch.zeros(3) for part in PARTS}
        self.watched = {noise: torch.zeros(()) for noise in watch}
        """Held-out images that are classified correctly under each noise, of this pass so far."""

    @property
    def steps(self) -> int:
        """Optimiser steps that are done, also those of the training that this one goes on from."""
        return self.passes_before * (len(self.supply.parts["train"]) // self.recipe.batch_size) + self.global_step

    @property
    def planned(self) -> int:
        """Optimiser steps of this training, whatever it goes on from.

        Lightning's own estimate makes the loaders, whose workers would read before it is known where training stands.
        """
        return (self.trainer.max_epochs or 1) * (len(self.supply.parts["train"]) // self.recipe.batch_size)

    @property
    def passes(self) -> int:
        """Passes that are done, likewise."""
        return self.passes_before + self.current_epoch

    def on_fit_start(self) -> None:
        # Lightning gives several processes their share when it starts them.
        if self.threads:
            torch.set_num_threads(self.threads)
        self.weights = None if self.weights is None else self.weights.to(self.device)
        self.supply.prepare(self.device)

    def train_dataloader(self) -> Loader:
        count, share = len(self.supply.parts["train"]), slice(self.trainer.global_rank, None, self.trainer.world_size)
        batches = Batches(count, self.recipe.batch_size, self.seed, lambda: self.steps, share)
        return self.supply.loader("train", batches)

    def val_dataloader(self) -> Loader:
        share = torch.arange(self.trainer.global_rank, len(self.supply.parts["val"]), self.trainer.world_size)
        return self.supply.loader("val", share.split(VALIDATION_BATCH))

    def training_step(self, batch: MiniBatch, index: int) -> Tensor:
        rows, images, labels = batch
        draws = stream(self.seed, "step", self.steps, self.trainer.global_rank)
        images = augment(images, self.augmentation, draws, self.mirrored(rows), self.recipe.border)
        if self.recipe.cutout:
            images = cover(images, self.recipe.cutout, draws)
        images = images.float() / 255
        small = 0 if self.passes_before else self.recipe.small_share * self.planned
        if self.global_step < small:
            images = interpolate(images, scale_factor=SMALL, mode="bilinear", antialias=True)
        noise, dropout = torch.randint(2**62, (2,), generator=draws).tolist()
        images = self.recipe.train_noise.apply(images, torch.Generator(self.device).manual_seed(noise))
        # torchvision's dropout draws from the global generator.
        torch.manual_seed(dropout)
        # On a GPU, where there is nothing to gain, it would cost each function some microseconds.
        with QuickDepthwise() if images.device.type == "cpu" else nullcontext():
            logits = self.network(images.contiguous(memory_format=torch.channels_last))
        # In bfloat16 probabilities would have two digits.
        logits = logits.float()
        self._add("train", logits.detach(), labels)
        smoothing = self.recipe.label_smoothing
        if self.weights is None:
            return cross_entropy(logits, labels, label_smoothing=smoothing)
        each = cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
        # Divided by the images, not by their weights: processes that share a batch then count as one.
        return (each * self.weights[labels]).mean()

    def mirrored(self, rows: Tensor) -> Tensor | None:
        """Which of these images, by their indices, to mirror in this pass; None: chance decides."""
        if self.recipe.flips == "random":
            return None
        return self.mirrored_first[rows.cpu()] ^ bool(self.passes % 2)

    def validation_step(self, batch: MiniBatch, index: int) -> None:
        rows, images, labels = batch
        self._add("val", self.network(images.float() / 255), labels)
        for noise, correct in self.watched.items():
            noisy = self.perturbed(noise, images, rows.tolist()).to(self.device)
            right = (self.network(noisy).argmax(1) == labels).sum()
            self.watched[noise] = correct.to(self.device) + right

    def perturbed(self, noise: Noise, images: Tensor, rows: list[int]) -> Tensor:
        """Held-out images of these numbers under noise, float32 (B, C, H, W): in each pass, and any process, the same.

        The global generator, from which a plugin may draw, is restored.
        """
        with torch.random.fork_rng(devices=[]):
            each = zip(images.cpu().float().div(255).split(1), rows, strict=True)
            return torch.cat([noise.apply(image, stream(self.seed, "watch", noise.key, row)) for image, row in each])

    def _add(self, part: str, logits: Tensor, labels: Tensor) -> None:
        loss, correct = cross_entropy(logits.float(), labels, reduction="sum"), (logits.argmax(1) == labels).sum()
        sums = torch.stack((loss, correct, torch.tensor(len(labels), device=self.device)))
        self.sums[part] = self.sums[part].to(self.device) + sums

    def _total(self, part: str) -> Tensor:
        """Summed loss, and numbers of correct and of all images, of the pass so far, over all processes."""
        return self.trainer.strategy.reduce(self.sums[part].to(self.device, copy=True), reduce_op="sum")

    def on_train_epoch_end(self) -> None:
        for part in PARTS:
            loss, correct, count = self._total(part).tolist()
            self.history[f"{part}_loss"].append(loss / count)
            self.history[f"{part}_accuracy"].append(correct / count)
            self.sums[part] = torch.zeros(3)
            # The sums are equal in all processes, which therefore end together.
            self._check_converging(math.isfinite(loss), "the loss is no longer a number")
        for noise, correct in self.watched.items():
            right = self.trainer.strategy.reduce(correct.to(self.device), reduce_op="sum").item()
            self.history[watched_column(noise)].append(right / len(self.supply.parts["val"]))
            self.watched[noise] = torch.zeros(())
        if self.current_epoch + 1 == self.trainer.max_epochs:
            self._check_result()
        self.history["learning_rate"].append(self.trainer.optimizers[0].param_groups[0]["lr"])
        if self.logger:
            self.logger.log_metrics({name: values[-1] for name, values in self.history.items()}, self.passes)
        if self.trainer.is_global_zero:
            # The whole file is written again, so that it is complete after a resumption, too.
            write_csv(self.metrics, history_rows(self.history))

    def _check_result(self) -> None:
        """Raise :class:`UserError` for a network that no honest training ends with."""
        guess = math.log(max(2, int(self.supply.parts["train"].labels.max()) + 1))
        loss = self.history["val_loss"][-1]
        largest = torch.stack([weights.abs().max() for weights in self.network.parameters()]).max().item()
        self._check_converging(math.isfinite(largest), "weights are no longer numbers")
        self._check_converging(
            loss <= EXPLODED * guess or largest <= LARGEST_WEIGHT,
            f"the loss on held-out images is {loss:.3g}, that of a guess {guess:.3g}, the largest weight {largest:.3g}",
        )

    def _check_converging(self, condition: bool, problem: str) -> None:
        recipe = self.recipe
        rates = f"`learning_rate` {recipe.learning_rate}"
        rates += f" and `muon_rate` {recipe.muon_rate}" if recipe.optimiser == "muon" else ""
        if not condition:
            raise Diverged(f"training diverged with {rates}: {problem}; lower it")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sums = {part: self._total(part).cpu() for part in PARTS}
        checkpoint["history"], checkpoint["sums"] = self.history, sums
        if self.trainer.world_size > 1:
            # Added up in another order, the loss would differ in its last bits.
            gather = self.trainer.strategy.all_gather
            checkpoint["shares"] = {part: gather(self.sums[part].to(self.device)).cpu() for part in PARTS}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history, shares = checkpoint["history"], checkpoint.get("shares", {})
        if shares and len(shares["train"]) == self.trainer.world_size:
            self.sums = {part: shares[part][self.trainer.global_rank].clone() for part in PARTS}
        elif self.trainer.is_global_zero:
            # With another number of processes the first goes on with the sums of all, the others with zero.
            self.sums = checkpoint["sums"]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """SGD with Nesterov momentum, or Muon, and one cycle of the learning rate."""
        recipe = self.recipe
        turned = hidden_kernels(self.network) if recipe.optimiser == "muon" else []
        known = set(map(id, turned))
        others = [p for p in self.network.parameters() if p.requires_grad and id(p) not in known]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ]
        rates: dict[str, Any] = {"lr": recipe.learning_rate, "momentum": MOMENTUM}
        optimizer: torch.optim.Optimizer
        if turned:
            kernels = {"params": turned, "lr": recipe.muon_rate, "momentum": ORTHOGONAL_MOMENTUM, "orthogonal": True}
            optimizer = Muon([*({**group, **rates} for group in groups), kernels])
        else:
            optimizer = torch.optim.SGD(groups, nesterov=True, **rates)
        steps = self.planned
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: one_cycle(step, steps, recipe.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class TrainingProgress(Callback):
    """One bar with an estimate over the whole training, in the first process."""

    begun = False
    """Steps are made; until then a checkpoint is read."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        self.begun = True
        self.bar = progress(None, "training", "step", total=pl_module.planned, initial=trainer.global_step)
        self.bar.disable |= not trainer.is_global_zero

    def on_train_batch_end(self, *_: Any) -> None:
        self.bar.update()

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        assert isinstance(pl_module, Classifier)
        if accuracies := pl_module.history["val_accuracy"]:
            self.bar.set_postfix(epoch=pl_module.passes, val_accuracy=f"{accuracies[-1]:.1%}", refresh=False)

    def on_train_end(self, *_: Any) -> None:
        self.bar.close()


class Checkpoints(Callback):
    """Writes where training stands to ``path`` every ``interval`` seconds, with the ``identity`` of the training.

    Of a checkpoint that is read, it checks what Lightning takes as it is.
    """

    def __init__(self, path: Path, identity: str, interval: float) -> None:
        self.path, self.identity, self.interval = path, identity, interval
        self.last = time.monotonic()
        self.read: dict[str, Any] = {}

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["identity"], checkpoint["threads"] = self.identity, torch.get_num_threads()

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.read = checkpoint

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        # The optimiser is made, and not yet set to what the checkpoint holds.
        if self.read:
            assert isinstance(pl_module, Classifier)
            same = _same_kind(self.read, trainer, pl_module.planned)
            check(same, "its optimiser, learning rate or counters are another training's")
            self.read = {}

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        # Between two steps, as a checkpoint within one is not resumed to the same bits; all processes save together.
        due = trainer.strategy.broadcast(time.monotonic() - self.last >= self.interval)
        if trainer.global_step and due:
            trainer.save_checkpoint(self.path, weights_only=False)
            self.last = time.monotonic()


def _same_kind(checkpoint: dict[str, Any], trainer: lightning.Trainer, planned: int) -> bool:
    """Whether optimiser, learning rate and counters of a checkpoint are those of this training at some step.

    ``planned``: its steps.
    """
    step, (optimiser,) = checkpoint["global_step"], trainer.optimizers
    (stored,), (rates,) = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    fresh = optimiser.state_dict()["param_groups"]
    same = [
        {**group, "lr": None} == {**own, "lr": None} for group, own in zip(stored["param_groups"], fresh, strict=True)
    ]
    numbers = [number for group in fresh for number in group["params"]]
    parameters = dict(zip(numbers, (p for group in optimiser.param_groups for p in group["params"]), strict=True))
    buffers = [
        isinstance(value, Tensor) and value.shape == parameters[number].shape and bool(value.isfinite().all())
        for number, values in stored["state"].items()
        for value in values.values()
        if value is not None
    ]
    base = [group["initial_lr"] for group in fresh]
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert isinstance(schedule, torch.optim.lr_scheduler.LambdaLR)
    due = [rate * factor(step) for rate, factor in zip(base, schedule.lr_lambdas, strict=True)]
    given = [group["lr"] for group in stored["param_groups"]]
    averaged = [value for state in checkpoint["callbacks"].values() for value in state.values()]
    return (
        all(same) and all(buffers) and _counts(checkpoint, trainer, planned) and stored["state"].keys() == set(numbers)
        and rates.keys() == schedule.state_dict().keys()
        and all(type(rate) is float and math.isclose(rate, wanted) for rate, wanted in zip(given, due, strict=True))
        and step <= planned
        and all(0 <= value <= step for value in averaged)
        and (rates["base_lrs"], rates["last_epoch"]) == (base, step)
    )  # fmt: skip


def _counts(checkpoint: dict[str, Any], trainer: lightning.Trainer, planned: int) -> bool:
    """Whether the counters of a checkpoint's loop are those of a loop that made its passes and steps."""
    loop, epoch, step = checkpoint["loops"]["fit_loop"], checkpoint["epoch"], checkpoint["global_step"]
    if _form(loop) != _form(trainer.fit_loop.state_dict()) or not _no_negative(loop):
        return False
    steps = planned // (trainer.max_epochs or 1)
    passes, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    return epoch == step // steps and all(
        (passes["current"][name], batches["total"][name], batches["current"][name]) == (epoch, step, step % steps)
        for name in ("processed", "completed")
    )


def _no_negative(tree: Any) -> bool:
    """Whether no number in a tree of counters is below 0."""
    return all(map(_no_negative, tree.values())) if isinstance(tree, dict) else not isinstance(tree, int) or tree >= 0


def _form(tree: Any) -> Any:
    """Names and types of the counters of a loop, whose own state has none."""
    if isinstance(tree, dict):
        return {name: _form(value) for name, value in tree.items() if not name.endswith("state_dict")}
    return type(tree)
