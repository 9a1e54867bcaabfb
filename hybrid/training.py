"""Supervised training of one network."""

import copy
import hashlib
import pickle
import warnings
from pathlib import Path

import lightning
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from bridge.frontend import SpikingFrontEnd
from hybrid.architecture import Architecture, ModelSpec
from hybrid.augment import resolve_augmentation
from hybrid.lightning_module import Checkpoints, Classifier, TrainingProgress
from hybrid.network import build_model
from hybrid.recipe import Recipe
from hybrid.storage import TrainedModel
from snn.data import Images
from snn.runtime.errors import UserError, check

PROGRESS = "progress.ckpt"
"""Where training stands: Lightning's checkpoint."""


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
        f"{len(kept)} training images are fewer than one batch of {recipe.batch_size}; lower `batch_size`",
    )
    check(
        recipe.batch_size % size == 0 and recipe.batch_size >= 2 * size,
        f"`batch_size` {recipe.batch_size} is to be shared by {size} processes: give a multiple of them, at least two "
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
        recipe=recipe.as_tree(),
    )


def unfinished(folder: Path, identity: str, resume: bool) -> Path | None:
    """The checkpoint to go on from, or None to start; a :class:`UserError` if it is of another training."""
    path = folder / PROGRESS
    if not path.exists():
        return None
    check(
        resume,
        f"{path} holds unfinished training: go on with `resume`, remove the file, or give another `out`",
    )
    try:
        found = torch.load(path, map_location="cpu", weights_only=True).get("identity")
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is not a checkpoint of this command ({error}); remove it to start again") from error
    check(
        found == identity,
        f"{path} is of a training with other settings, images, front end or seed: go on with those it was started "
        "with, remove it, or give another `out`",
    )
    return path
