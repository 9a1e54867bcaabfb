"""Supervised training of one network."""

import copy
import hashlib
import logging
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated, Literal

import lightning
import numpy as np
import torch
import tyro
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.nn.functional import cross_entropy

from bridge.frontend import SpikingFrontEnd
from hybrid.architecture import Architecture, ModelSpec, build_model, open_frontend
from hybrid.augment import resolve_augmentation
from hybrid.backbones import BACKBONES
from hybrid.checkpoint import PREVIOUS, PROGRESS, CheckpointFiles, check_values, read_checkpoint, remove_checkpoints
from hybrid.conditions import Noise
from hybrid.depthwise import QuickDepthwise
from hybrid.lightning_module import HISTORY, PRECISIONS, SMALL, Checkpoints, Classifier, Diverged, TrainingProgress
from hybrid.network import Network
from hybrid.pretrained import Weights, open_weights, start_from
from hybrid.recipe import Recipe, warn_of_classes
from hybrid.storage import WATCHED, TrainedModel
from snn.data import Array, Images, as_labelled, in_bytes
from snn.patches import random_patches
from snn.runtime.device import DeviceName, has_bfloat16
from snn.runtime.errors import UserError, check
from snn.runtime.processes import environments, first_process, group_size, joined
from snn.runtime.progress import warn
from snn.runtime.random import stream
from snn.runtime.ranges import INTERVAL, NODES, PROCESSES, SEED, THREADS, WORKERS, check_fields, check_value
from snn.runtime.threads import fastest, numbers_of_threads, seconds_by_threads, use_threads
from snn.subset import Subset

PATCHES = 20_000
"""Patches whose covariance whitens the first layer."""
FLOOR = 5e-4
"""Added to the variances of patches (airbench)."""
MEASURING = 8.0
"""Seconds in which numbers of threads are measured, about."""
FEW = 8
"""Images that tell how many can be measured in that time."""


@dataclass(frozen=True)
class Hardware:
    """Where a training computes."""

    device: tyro.conf.Suppress[DeviceName] = "cpu"
    """auto, cpu or cuda."""
    devices: Annotated[int, PROCESSES] = 1
    """Processes (each with a GPU or a share of the CPU's cores) on each node, which share every mini-batch."""
    num_nodes: Annotated[int, NODES] = 1
    """Nodes; start the command on each, for example with torchrun."""
    threads: Annotated[Literal["auto"] | int | None, THREADS] = None
    """CPU threads of each process; None: the cores (or OMP_NUM_THREADS), or, of several processes, an equal share;
    auto: those up to that number with which a few steps of this training are fastest. Results differ in their last bits
    between numbers of threads, so --resume keeps the number that the training was started with."""
    workers: Annotated[int | None, WORKERS] = None
    """Processes that read mini-batches ahead of the step, of images that stay where they are (a mapped file); 0: none.
    None: images that fit into the GPU's memory are copied there, of others up to 4 processes read; on a CPU none do.
    Results do not depend on it."""

    def __post_init__(self) -> None:
        check_fields(self)

    def group(self) -> tuple[torch.device, int, int]:
        """The device, processes on each node, and nodes: torchrun's where it started this process."""
        return group_size(self.device, self.devices, self.num_nodes)


@dataclass(frozen=True)
class Checkpointing:
    """Where a training writes its progress, and whether it starts from there."""

    folder: tyro.conf.Suppress[Path | None] = None
    """For progress.ckpt, metrics.csv and TensorBoard's files; None: nothing is written."""
    resume: bool = False
    """Go on from an unfinished training of --out. If there is none, start; if it is complete, do nothing."""
    checkpoint_interval: Annotated[float, INTERVAL] = 60.0
    """Seconds between two checkpoints; an interruption costs at most this much."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def files(self) -> list[Path]:
        """Checkpoints that are there, the newest first."""
        return [path for name in (PROGRESS, PREVIOUS) if self.folder and (path := self.folder / name).exists()]

    def unfinished(self, identity: str, module: Classifier) -> tuple[Path, int] | None:
        """The checkpoint to go on from and its number of threads, or None to start.

        That is the newest, or where it is damaged the one before. Raises :class:`UserError` if no checkpoint is whole,
        or if it is of another training.
        """
        problem: UserError | None = None
        for path in self.files:
            check(
                self.resume,
                f"{path} holds unfinished training: go on with `resume`, remove the file, or give another `out`",
            )
            try:
                checkpoint = read_checkpoint(path)
                same = checkpoint["identity"] == identity
                if same:
                    averages = bool(module.recipe.average)
                    before = module.passes_before
                    check_values(path, checkpoint, module.state_dict(), module.history, averages, before)
            except UserError as error:
                problem = problem or error
                continue
            check(
                same,
                f"{path} is of a training with other settings, images, front end, start or seed: go on with those it "
                "was started with, remove it, or give another `out`",
            )
            if problem and first_process():
                warn(f"{problem}; going on from the checkpoint before, {path.name}")
            return path, checkpoint["threads"]
        if problem:
            raise UserError(f"{problem}; remove {'both' if len(self.files) > 1 else 'it'} to start again") from problem
        return None


def train(
    data: Images | tuple[Array, Array],
    network: Architecture | Network,
    recipe: Recipe | None = None,
    *,
    frontend: SpikingFrontEnd | str | Path | None = None,
    seed: int = 0,
    weights: Weights | str | Path | None = None,
    watch: Sequence[Noise | str] = (),
    after: TrainedModel | None = None,
    hardware: Hardware | None = None,
    checkpointing: Checkpointing | None = None,
) -> TrainedModel:
    """Train one network.

    Args:
        data: training images, of which a part is held out for the validation curve; a pair holds images, uint8
            (N, C, H, W), and labels, int64 (N,), as tensors or NumPy arrays.
        network: what to build, or a network of :func:`hybrid.safe_dnn` or :func:`hybrid.baseline`, which is copied.
        recipe: hyperparameters (None: defaults).
        frontend: converted spiking layers, or a file that holds them; needed where ``network`` is an architecture of
            variant safe or mu (which takes their shape).
        seed: of weights, order, augmentation, noise and the held-out part.
        weights: that the network starts from where they fit, in place of random ones: "imagenet" (torchvision's, of the
            backbone), or a file (:func:`hybrid.pretrained.open_weights`). What did not fit is printed.
        watch: noise, such as "awgn:15", under which the held-out images are also classified after each pass. The
            network learns nothing of it; the history has a column ``val_accuracy_awgn:15``.
        after: a finished training with the same arguments and fewer epochs, to go on from: its weights go through a
            further cycle of the learning rate over the epochs that ``recipe`` adds, with draws of their own.
        hardware: where to compute (None: one process on the CPU). Lightning starts the processes that torchrun has not.
        checkpointing: where progress is written (None: nowhere).

    Returns:
        The trained model. All processes return the same weights; their running statistics differ. The same arguments
        give the same bits on the same machine with the same number of threads (``hardware.threads``).

    Raises:
        UserError: unknown backbone or variant, images or labels that cannot be used (:func:`snn.data.as_labelled`),
            images of another shape than the front end's or network's, too few images or classes, weights of which
            nothing fits, or progress of another training.
    """
    data, recipe, checkpointing = as_labelled(data), recipe or Recipe(), checkpointing or Checkpointing()
    hardware = hardware or Hardware()
    check_value("seed", seed, int, SEED)
    spec, converted, parent_digest = _describe(network, data, frontend)
    smallest, small = BACKBONES[spec.architecture.backbone].smallest, int(SMALL * data.shape[1])
    check(
        not recipe.small_share or small >= smallest,
        f"`small_share` {recipe.small_share}: trains on images of {small} pixels, and {spec.architecture.backbone} "
        f"needs {smallest}; give 0",
    )
    check(
        recipe.cutout < min(data.shape[1:]),
        f"`cutout` {recipe.cutout}: it would cover images of {data.shape[2]}x{data.shape[1]} pixels; lower it",
    )
    noises = check_watch(watch)
    start = weights if isinstance(weights, Weights) or weights is None else open_weights(
        weights, spec.architecture.backbone
    )  # fmt: skip
    if after is not None:
        check_continuable(after, spec, recipe, seed, parent_digest, start.digest if start else "", noises)
    device, devices, nodes = hardware.group()
    _check_same_work(data, spec, recipe.identity, seed, parent_digest, start.digest if start else "", noises)
    training, held_out = _split(data, recipe, seed, processes=devices * nodes)
    # torchvision and Lightning draw from the global generators: seeded here, once.
    lightning.seed_everything(seed, verbose=False)
    # The caller's front end or network stays as it is.
    model = build_model(spec, copy.deepcopy(converted)) if isinstance(network, Architecture) else copy.deepcopy(network)
    model.normalise.measure(part.images for part in training.portions())
    if recipe.first_layer == "whitening":
        whiten_first_layer(model, training, seed)
    if after is not None:
        finished = copy.deepcopy(after.network).cpu()
        check(
            all(
                torch.equal(values, model.normalise.get_buffer(name))
                for name, values in finished.normalise.named_buffers()
            ),
            "the finished training was on other images: go on with those, or start anew",
        )
        model = finished.train()
    elif start:
        taken = start_from(model, start)
        if first_process():
            print(*taken.lines(start.name), sep="\n", flush=True)
    model.to(memory_format=torch.channels_last)
    folder = checkpointing.folder
    module = Classifier(
        model,
        recipe,
        resolve_augmentation(recipe.augmentation, data.data_source.data),
        seed,
        training=training,
        held_out=held_out,
        metrics=folder / "metrics.csv" if folder else None,
        watch=noises,
        before=after.history if after else None,
        workers=hardware.workers,
    )
    cycles = (*(after.cycles or (module.passes_before,)), recipe.epochs - module.passes_before) if after else ()
    identity = training_identity(spec, recipe, seed, data, model, cycles, noises)
    # The first process's file, which other nodes may not see (hybrid.checkpoint.CheckpointFiles reads it so).
    unfinished, started = joined().share(lambda: checkpointing.unfinished(identity, module)) or (None, None)
    if recipe.dtype(device) == torch.bfloat16 and device.type == "cpu" and not has_bfloat16() and first_process():
        warn("this CPU has no instructions for bfloat16: `precision` float32 is faster here")
    with use_threads(torch.get_num_threads()):
        module.threads = _threads(module, hardware, device, processes=devices * nodes, started=started)
        _fit(module, device, devices, nodes, checkpointing, identity, unfinished)
        threads = torch.get_num_threads()
    return TrainedModel(
        spec=spec,
        network=model.cpu().to(memory_format=torch.contiguous_format).eval(),
        data_source=data.data_source,
        seed=seed,
        history={name: np.array(values) for name, values in module.history.items()},
        recipe=recipe.as_tree(),
        parent_digest=parent_digest,
        threads=threads,
        cycles=cycles,
        weights=start.name if start else "",
        weights_digest=start.digest if start else "",
    )


def check_watch(watch: Sequence[Noise | str]) -> tuple[Noise, ...]:
    """The noises to watch, read where they are text; :class:`UserError` for what would tell nothing new."""
    check(not isinstance(watch, str), f"`watch` {watch!r}: expected several, such as [{watch!r}]")
    noises = tuple(noise if isinstance(noise, Noise) else Noise.parse(noise, "watch") for noise in watch)
    for number, noise in enumerate(noises):
        check(noise.kind != "clean", f"`watch` {noise}: accuracy without noise is always recorded; leave it out")
        check(
            noise.key not in [other.key for other in noises[:number]],
            f"`watch` {noise}: named twice; leave one of them out",
        )
    return noises


def check_continuable(
    after: TrainedModel,
    spec: ModelSpec,
    recipe: Recipe,
    seed: int,
    parent_digest: str,
    weights_digest: str,
    watch: Sequence[Noise],
) -> None:
    """Raise :class:`UserError` unless a finished training can go on with these settings, whose epochs are more."""
    done = Recipe.from_tree(after.recipe).epochs
    check(
        all(len(after.history.get(name, ())) == done for name in HISTORY),
        "the finished training has no curve of its epochs, as networks that ship: start anew from its `weights`",
    )
    check(
        (after.spec, after.seed, after.parent_digest, after.weights_digest)
        == (spec, seed, parent_digest, weights_digest)
        and replace(Recipe.from_tree(after.recipe), epochs=recipe.epochs) == recipe,
        "the finished training had other settings, classes, front end, `weights` or seed: go on with the same, or "
        "start anew",
    )
    check(
        recipe.epochs > done,
        f"`epochs` {recipe.epochs}: the finished training had {done} already; give more to go on with it",
    )
    watched = [name.removeprefix(WATCHED) for name in after.history if name.startswith(WATCHED)]
    # A file does not keep the order of its columns.
    check(
        set(watched) == set(map(str, watch)),
        f"`watch` {' '.join(map(str, watch)) or 'nothing'}: the finished training watched "
        f"{' '.join(watched) or 'nothing'}; give the same, so that there is one curve",
    )


def whiten_first_layer(network: Network, training: Subset, seed: int) -> None:
    """Start the trainable convolution that reads images with filters that whiten their patches (airbench).

    Each of the largest principal axes of normalised patches of the images gives two filters, of either sign.
    Filters beyond these keep their start. A network without such a convolution stays as it is.
    """
    readers = (m for m in network.modules() if isinstance(m, nn.Conv2d) and m.in_channels == training.shape[0])
    first = next(readers, None)
    if first is None:
        return
    size = first.kernel_size[0]
    patches = random_patches(training.data.images, size, PATCHES, stream(seed, "first layer"), training.rows)
    patches = network.normalise(patches.double() / 255)
    # A training that goes on is recognised by these filters, however many threads it now has.
    with use_threads(1):
        variance, axes = torch.linalg.eigh(torch.cov(patches.flatten(1).T))
    filters = (axes / (variance + FLOOR).sqrt()).T.flip(0).reshape(-1, *first.weight.shape[1:])
    pairs = min(len(filters), len(first.weight) // 2)
    with torch.no_grad():
        first.weight[: 2 * pairs] = torch.cat([filters[:pairs], -filters[:pairs]]).float()


def training_identity(
    spec: ModelSpec,
    recipe: Recipe,
    seed: int,
    data: Images,
    network: Network,
    cycles: tuple[int, ...] = (),
    watch: tuple[Noise, ...] = (),
) -> str:
    """A digest of all that decides the result; ``network`` is as it starts."""
    further = f"{cycles} {watch}" if cycles or watch else ""
    digest = hashlib.sha256(f"({spec.identity}, {recipe.identity}, {seed!r}){further}".encode())
    for values in (data.images, data.labels, *network.state_dict().values()):
        for part in in_bytes(values):
            digest.update(part)
    return digest.hexdigest()


def _describe(
    network: Architecture | Network, data: Images, frontend: SpikingFrontEnd | str | Path | None
) -> tuple[ModelSpec, SpikingFrontEnd | None, str]:
    """Description of the network, the front end that it is built with, and the digest of the front end's file."""
    if isinstance(network, Architecture):
        converted, digest = open_frontend(frontend) if frontend is not None else (None, "")
        return ModelSpec(network, data.shape, data.classes, converted.spec if converted else None), converted, digest
    spec = getattr(network, "spec", None)
    check(frontend is None, "`frontend` goes with an architecture; this `network` has its own: leave it out")
    if not isinstance(spec, ModelSpec):
        raise UserError("`network` has no description to be saved; make it with hybrid.safe_dnn or hybrid.baseline")
    check(
        (spec.input_shape, len(spec.classes)) == (data.shape, len(data.classes)),
        f"`network` is for images of shape {spec.input_shape} of {len(spec.classes)} classes, `data` has shape "
        f"{data.shape} and {len(data.classes)} classes; make a network for this data",
    )
    return replace(spec, classes=data.classes), None, ""


def _split(data: Images, recipe: Recipe, seed: int, processes: int) -> tuple[Subset, Subset]:
    """The images to train on, and those held out."""
    check(len(data.classes) >= 2, f"the images are of {len(data.classes)} class; training needs 2 or more")
    held_out = recipe.held_out(data.labels, seed)
    kept = np.setdiff1d(np.arange(len(data.labels)), held_out)
    check(len(held_out) > 0, "every class has one image, so none can be held out of training; add images")
    check(
        len(kept) >= recipe.batch_size,
        f"{len(kept)} training images are fewer than one batch of {recipe.batch_size}; lower `batch_size`",
    )
    check(
        recipe.batch_size % processes == 0 and recipe.batch_size >= 2 * processes,
        f"`batch_size` {recipe.batch_size} is to be shared by {processes} processes: give a multiple of them, at least "
        "two images for each",
    )
    warn_of_classes(data, held_out)
    return Subset(data, torch.from_numpy(kept)), Subset(data, torch.from_numpy(held_out))


def _check_same_work(data: Images, *settings: object) -> None:
    """Raise :class:`UserError` in a process of a group whose images or settings are not those of the first."""
    digest = hashlib.sha256(data.labels.contiguous().numpy().tobytes())
    mine = f"{tuple(data.images.shape)} {digest.hexdigest()} {settings!r}"
    check(
        joined().share(lambda: mine) == mine,
        "the first process has other settings or images: give the command the same flags and images on all nodes",
    )


def _threads(
    module: Classifier, hardware: Hardware, device: torch.device, processes: int, started: int | None
) -> int | None:
    """Threads of this process; None: as many as it gets. ``started``: with how many the training was started."""
    if started is not None:
        if hardware.threads not in (None, "auto", started):
            print(f"threads: {started}, as the training was started with, not {hardware.threads}", flush=True)
        return started
    if hardware.threads != "auto":
        return hardware.threads
    limit = torch.get_num_threads()
    if processes > 1 or device.type != "cpu" or limit == 1:
        return None
    seconds, images = measure_threads(module, limit)
    chosen = fastest(seconds)
    words = ", ".join(f"{number}: {value:.3g} s" for number, value in seconds.items())
    print(f"threads: {chosen}; a step of {images} images takes {words}", flush=True)
    return chosen


def measure_threads(module: Classifier, limit: int) -> tuple[dict[int, float], int]:
    """Seconds of forward and backward with 1, 2, 4, ... threads up to ``limit``, and of how many images.

    The images are those of one mini-batch, or, of a large network, as many as can be measured in :data:`MEASURING`
    seconds. A copy of the network computes, and the global generator is restored, so that training is not changed.
    """
    network = copy.deepcopy(module.network).train()
    first = module.supply.parts["train"][: module.recipe.batch_size]
    labels = first.labels
    images = (first.images.float() / 255).contiguous(memory_format=torch.channels_last)

    def step(count: int) -> None:
        network.zero_grad()
        low = module.recipe.dtype(images.device) == torch.bfloat16
        with torch.autocast("cpu", torch.bfloat16, enabled=low), QuickDepthwise():
            loss = cross_entropy(network(images[:count]), labels[:count])
        loss.backward()

    began = perf_counter()
    # Dropout draws from the global generator.
    with torch.random.fork_rng(devices=[]):
        for _ in range(2):
            started = perf_counter()
            step(FEW)
        each = (perf_counter() - started) / min(FEW, len(images))
        left = MEASURING - (perf_counter() - began)
        # Three turns at least: one that is not measured, and two that are.
        count = min(len(images), max(FEW, int(left / (3 * len(numbers_of_threads(limit)) * each))))
        return seconds_by_threads(lambda: step(count), limit, left), count


def _fit(
    module: Classifier,
    device: torch.device,
    devices: int,
    nodes: int,
    checkpointing: Checkpointing,
    identity: str,
    start: Path | None,
) -> None:
    """Run Lightning's loop to its end."""
    folder = checkpointing.folder
    callbacks: list[Callback] = [shown := TrainingProgress()]
    if module.recipe.average:
        # Averaged, the frozen values of the front end would change in their last bits.
        callbacks.append(EMAWeightAveraging(device, use_buffers=False, decay=module.recipe.average))
    if folder:
        if first_process():
            folder.mkdir(exist_ok=True)
        if start is None and not module.passes_before and first_process():
            # Of a training before this one, whose curves TensorBoard would mix with these.
            for events in folder.glob("events.out.tfevents.*"):
                events.unlink()
        callbacks.append(Checkpoints(folder / PROGRESS, identity, checkpointing.checkpoint_interval))
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    # What it tells of its hardware and of its own features says nothing of this training.
    log.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        for words in (
            "does not have many workers",
            "LeafSpec.*is deprecated",
            "number of training batches.*smaller than the logging interval",
            "[Cc]heckpoint directory.*exists and is not empty",
            "The `srun` command is available",
        ):
            warnings.filterwarnings("ignore", message=f".*{words}")
        trainer = lightning.Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=devices,
            num_nodes=nodes,
            strategy="ddp" if devices * nodes > 1 else "auto",
            precision=PRECISIONS[module.recipe.dtype(device)],
            max_epochs=module.recipe.epochs - module.passes_before,
            logger=TensorBoardLogger(folder.parent, name=folder.name, version="") if folder else False,
            callbacks=callbacks,
            plugins=[CheckpointFiles(), *environments()],
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        try:
            trainer.fit(module, ckpt_path=start)
        except SystemExit as stop:
            # Lightning turns Ctrl-C into an exit without a word.
            raise KeyboardInterrupt from stop
        except Diverged:
            if folder:
                remove_checkpoints(folder)
            raise
        except Exception as error:
            check(
                not _names_a_worker(error),
                "a process that reads images ahead has been killed, as where memory or room in /dev/shm is short: give "
                "fewer `workers`, and go on with `resume`",
            )
            if start is None or shown.begun:
                raise
            words = " ".join(str(error).split())[:200]
            raise UserError(f"{start} does not fit this training ({words}); remove it to go on without it") from error
        finally:
            log.setLevel(level)
            # Lightning's objects live on for a while; the images need not.
            module.supply.parts = {}


def _names_a_worker(error: BaseException | None) -> bool:
    """Whether a data loader's process ended by a signal; its message may have come in the middle of anything."""
    while error is not None:
        if "DataLoader worker" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
