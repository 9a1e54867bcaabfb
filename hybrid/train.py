"""Train a network, by default on clean images, and write ``hybrid.h5``."""

import copy
import hashlib
import logging
import pickle
import sys
import warnings
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated

import lightning
import numpy as np
import torch
import tyro
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from bridge.frontend import SHIPPED_FRONTENDS, SpikingFrontEnd, load_frontend
from hybrid.augment import resolve_augmentation
from hybrid.classifier import Checkpoints, Classifier, TrainingProgress
from hybrid.figures import draw_training
from hybrid.model import Architecture, ModelSpec, TrainedModel, build_model, load_model, save_model
from hybrid.recipe import Recipe, RecipeName, choose_recipe
from snn.command import RunOptions, beside, check_outputs, command_line, run_command, write_json
from snn.data import DataSource, Images, load_images
from snn.errors import UserError, check
from snn.pretrained import resolve
from snn.processes import first_process, group_size

PROGRESS = "progress.ckpt"
"""Where training stands: Lightning's checkpoint."""


@dataclass(frozen=True)
class TrainConfig:
    """Train a SAFE network, its baseline or a control, and write hybrid.h5."""

    out: Path
    """File to write, for example runs/demo/safe.h5."""
    source: Annotated[DataSource, tyro.conf.arg(name="")] = field(default_factory=DataSource)
    architecture: Annotated[Architecture, tyro.conf.arg(name="")] = field(default_factory=Architecture)
    frontend: Path | None = None
    """File written by bridge.convert, or pretrained:cifar10-fd; needed for safe, and for mu, which takes its shape."""
    preset: RecipeName = "auto"
    """Set of hyperparameters to start from, which other flags override: digits, cifar10 or imagenet; auto: by the data
    set, and imagenet where --image-size is 64 or more."""
    resume: bool = False
    """Go on from an unfinished training of --out (if there is none, start; if it is complete, do nothing)."""
    checkpoint_interval: float = 60.0
    """Seconds between two checkpoints; an interruption costs at most this much."""
    devices: int = 1
    """Processes (each with a GPU or a share of the CPU's cores) on each node, which share every mini-batch."""
    num_nodes: int = 1
    """Nodes; start the command on each, for example with torchrun."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check(self.checkpoint_interval >= 0, f"--checkpoint-interval {self.checkpoint_interval}: expected 0 or more")
        check(
            self.architecture.variant != "lambda",
            "--variant lambda is not trained: make it from a trained mu with python -m hybrid.swap",
        )


def training_identity(spec: ModelSpec, recipe: Recipe, seed: int, data: Images, network: nn.Module) -> str:
    """A digest of all that decides the result: description, hyperparameters, seed, images and starting values."""
    digest = hashlib.sha256(repr((spec, recipe, seed)).encode())
    for values in (data.images, data.labels, *network.state_dict().values()):
        digest.update(values.contiguous().numpy().tobytes())
    return digest.hexdigest()


def train(
    data: Images,
    architecture: Architecture,
    recipe: Recipe | None = None,
    *,
    frontend: SpikingFrontEnd | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    devices: int = 1,
    num_nodes: int = 1,
    folder: Path | None = None,
    resume: bool = False,
    checkpoint_interval: float = 60.0,
) -> TrainedModel:
    """Train one network.

    Args:
        data: training images; a part is held out for the validation curve.
        architecture: backbone, variant and widths.
        recipe: hyperparameters (None: defaults).
        frontend: converted spiking layers; needed for variants safe and mu (which takes their shape).
        seed: of weights, order, augmentation, noise and the held-out part.
        device: where to train; on CUDA in bfloat16 where that is safe.
        devices, num_nodes: processes that share every mini-batch; Lightning starts those that torchrun has not.
        folder: for progress.ckpt, metrics.csv and TensorBoard's files (None: nothing is written).
        resume: go on from progress.ckpt, if there is one.
        checkpoint_interval: seconds between two checkpoints.

    Returns:
        The trained model, the same in all processes but for running statistics.

    Raises:
        UserError: unknown backbone or variant, a front end for other images, too few images, progress of another
            training, or of one to be gone on from.
    """
    recipe, device, size = recipe or Recipe(), torch.device(device), devices * num_nodes
    spec = ModelSpec(architecture, data.shape, data.classes, frontend.spec if frontend else None)
    held_out = recipe.held_out(data.labels, seed)
    kept = np.setdiff1d(np.arange(len(data.labels)), held_out)
    check(
        len(kept) >= recipe.batch_size,
        f"{len(kept)} training images are fewer than one batch of {recipe.batch_size}; lower --batch-size",
    )
    check(
        recipe.batch_size % size == 0 and recipe.batch_size >= 2 * size,
        f"--batch-size {recipe.batch_size} is to be shared by {size} processes: give a multiple of them, at least two "
        "images for each",
    )
    # torchvision and Lightning draw from the global generators: seeded here, once.
    lightning.seed_everything(seed, verbose=False)
    # The caller's front end stays as it was converted.
    network = build_model(spec, copy.deepcopy(frontend))
    network.normalise.measure(data.images[kept])
    network.to(memory_format=torch.channels_last)
    augmentation = resolve_augmentation(recipe.augmentation, data.source.data)
    parts = ((data.images[rows], data.labels[rows]) for rows in (kept, held_out))
    metrics = folder / "metrics.csv" if folder else None
    module = Classifier(network, recipe, augmentation, seed, *parts, metrics)
    callbacks, logger, start = [TrainingProgress()], False, None
    if folder is not None:
        identity = training_identity(spec, recipe, seed, data, network)
        start = unfinished(folder, identity, resume)
        folder.mkdir(exist_ok=True)
        callbacks.append(Checkpoints(folder / PROGRESS, identity, checkpoint_interval))
        logger = TensorBoardLogger(folder.parent, name=folder.name, version="")
    trainer = lightning.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=devices,
        num_nodes=num_nodes,
        strategy="ddp" if size > 1 else "auto",
        precision="bf16-mixed" if device.type == "cuda" else "32-true",
        max_epochs=recipe.epochs,
        logger=logger,
        callbacks=callbacks,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated.*")
        warnings.filterwarnings("ignore", message=".*number of training batches.*smaller than the logging interval.*")
        warnings.filterwarnings("ignore", message=".*[Cc]heckpoint directory.*exists and is not empty.*")
        try:
            trainer.fit(module, ckpt_path=start)
        except SystemExit as stop:
            # Lightning turns Ctrl-C into an exit without a word.
            raise KeyboardInterrupt from stop
        except UserError:
            # Diverged: there is nothing to go on from.
            if folder is not None:
                (folder / PROGRESS).unlink(missing_ok=True)
            raise
        finally:
            # What Lightning's objects refer to lives on for a while; the images need not.
            module.data = {}
    history = {name: np.array(values) for name, values in module.history.items()}
    return TrainedModel(
        spec=spec,
        network=network.cpu().to(memory_format=torch.contiguous_format).eval(),
        source=data.source,
        seed=seed,
        history=history,
        recipe=asdict(recipe),
    )


def unfinished(folder: Path, identity: str, resume: bool) -> Path | None:
    """The checkpoint to go on from, or None to start; a :class:`UserError` if it is of another training."""
    path = folder / PROGRESS
    if not path.exists():
        return None
    check(
        resume,
        f"{path} holds unfinished training: go on with --resume, remove the file, or give another --out",
    )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True).get("identity")
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is not a checkpoint of this command ({error}); remove it to start again") from error
    check(
        found == identity,
        f"{path} is of a training with other settings, images, front end or seed: go on with those it was started "
        "with, remove it, or give another --out",
    )
    return path


def _images(source: DataSource) -> DataSource:
    """Which images, wherever they lie."""
    return replace(source, root=Path(), download=False)


def completed(config: TrainConfig, source_digest: str) -> bool:
    """Whether ``--resume`` finds nothing left to do."""
    if not config.resume or not config.out.exists():
        return False
    found = load_model(config.out)
    same = (found.spec.architecture, found.recipe, found.seed, found.source_digest, _images(found.source)) == (
        config.architecture,
        asdict(config.recipe),
        config.options.seed,
        source_digest,
        _images(config.source),
    )
    check(
        same,
        f"{config.out} was trained with other settings, front end or seed: leave out --resume, or give another --out",
    )
    return True


def run(config: TrainConfig) -> None:
    """The command: load, train, write, report."""
    curves = beside(config.out, "_training.png") if config.options.figures else None
    file = resolve(config.frontend, SHIPPED_FRONTENDS) if config.frontend else None
    check_outputs(config.out, config.options.json, curves, inputs=[file] if file else [])
    device, devices, nodes = group_size(config.options.device, config.devices, config.num_nodes)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    frontend, _, source_digest = load_frontend(file) if file else (None, None, "")
    name = f"{config.architecture.variant} {config.architecture.backbone}"
    if completed(config, source_digest):
        print(f"{config.out} holds this training of {name}, complete: nothing to do")
        return
    data = load_images(config.source, "train", config.options.seed)
    folder = beside(config.out, "_training")
    if first_process():
        going_on = config.resume and (folder / PROGRESS).exists()
        print(
            f"{'resuming' if going_on else 'training'} {name} on {len(data.images)} images ({device.type})", flush=True
        )
    began = perf_counter()
    model = train(
        data,
        config.architecture,
        config.recipe,
        frontend=frontend,
        seed=config.options.seed,
        device=device,
        devices=devices,
        num_nodes=nodes,
        folder=folder,
        resume=config.resume,
        checkpoint_interval=config.checkpoint_interval,
    )
    if not first_process():
        return
    seconds = perf_counter() - began
    digest = save_model(config.out, model, command_line("hybrid.train", config), source_digest)
    (folder / PROGRESS).unlink(missing_ok=True)
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
    print(f"wrote {config.out}" + (f" and {curves}" if curves else "") + f"; logs are in {folder}")


def with_preset(config: TrainConfig) -> TrainConfig:
    """What flags are applied to, once ``--preset`` and the data are known."""
    return replace(config, recipe=choose_recipe(config.preset, config.source.data, config.source.image_size))


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.train``."""
    return run_command(TrainConfig, run, argv, with_preset)


if __name__ == "__main__":
    sys.exit(main())
