"""Train a network, by default on clean images, and write ``hybrid.h5``."""

import shutil
import sys
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated

import tyro

from bridge.storage import SHIPPED_FRONTENDS
from hybrid.architecture import Architecture, ModelSpec, open_frontend
from hybrid.checkpoint import remove_checkpoints
from hybrid.conditions import Noise, condition_flag
from hybrid.lightning_module import Diverged
from hybrid.pretrained import IMAGENET, Weights, open_weights
from hybrid.recipe import RECIPES, Recipe, RecipeName, choose_recipe
from hybrid.storage import TrainedModel, check_file, load_model, model_file, save_model, watched_column
from hybrid.training import Checkpointing, Hardware, check_continuable, check_watch, train
from snn.data import image_folders, image_shape, load_images
from snn.data_source import DataSource
from snn.image_cache import Caching
from snn.runtime.cli import RunOptions, check_left_out, command_line, note_unused, run_command
from snn.runtime.errors import UserError, check
from snn.runtime.outputs import Outputs, hold_log_folder, log_folder, remove_leftovers
from snn.runtime.pretrained import resolve
from snn.runtime.processes import first_process, join_group, joined
from snn.runtime.ranges import check_fields

AUXILIARY = ("auxiliary_kernel", "auxiliary_activation", "auxiliary_input", "auxiliary_drop")
LEAST_RATE = 1e-9
"""Smallest learning rate that changes float32 weights at all."""
NO_AUXILIARY = "there is no auxiliary CNN with `variant` baseline or `auxiliary_maps` 0"


@dataclass(frozen=True)
class TrainConfig:
    """Train a SAFE network, its baseline or a control, and write hybrid.h5."""

    out: Path
    """File to write, for example runs/demo/safe.h5."""
    data_source: Annotated[DataSource, tyro.conf.arg(name="")] = field(default_factory=DataSource)
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)
    architecture: Annotated[Architecture, tyro.conf.arg(name="")] = field(default_factory=Architecture)
    frontend: Path | None = None
    """File written by bridge.convert, or pretrained:cifar10-fd; needed for safe, and for mu, which takes its shape."""
    preset: RecipeName = "auto"
    """Set of hyperparameters to start from, which other flags override: digits, cifar10 or imagenet; auto: digits for
    these, imagenet for images of 64 pixels and more, else cifar10."""
    weights: str | None = None
    """Pretrained weights to start from where they fit: imagenet (torchvision's, of this backbone, from PyTorch's
    cache), a file with a state dict of the whole backbone, or a trained network, hybrid.h5 or pretrained:NAME."""
    watch: Annotated[tuple[Noise, ...], condition_flag(Noise, "watch", many=True)] = ()
    """Noise under which the held-out images are also classified at the end of each epoch, for example awgn:15; no
    network learns from it."""
    checkpointing: Annotated[Checkpointing, tyro.conf.arg(name="")] = field(default_factory=Checkpointing)
    hardware: Annotated[Hardware, tyro.conf.arg(name="")] = field(default_factory=Hardware)
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("learning_rate", "muon_rate"):
            rate = getattr(self.recipe, name)
            check(rate >= LEAST_RATE, f"`{name}` {rate}: nothing would be learned; give {LEAST_RATE:g} or more")
        architecture = self.architecture
        if architecture.variant == "baseline":
            check_left_out(architecture, ("auxiliary_maps",), NO_AUXILIARY)
        if architecture.variant == "baseline" or architecture.auxiliary_maps == 0:
            check_left_out(architecture.variations, AUXILIARY, NO_AUXILIARY)
        check_watch(self.watch)
        check(self.weights != "", "`weights`: give imagenet, or a file")
        check(
            self.architecture.variant != "lambda",
            "`variant` lambda is not trained: make it from a trained mu with python -m hybrid.swap",
        )


def finished(config: TrainConfig, parent_digest: str, weights: Weights | None) -> TrainedModel | None:
    """The finished training in ``--out`` that ``--resume`` finds, with as many epochs as wanted or fewer."""
    if not config.checkpointing.resume or not config.out.exists():
        return None

    def images(source: DataSource) -> DataSource:
        """Which images, wherever they lie."""
        return replace(source, root=Path(), download=False)

    model = load_model(config.out)
    recipe = Recipe.from_tree(model.recipe)
    pairs = (
        (model.spec.architecture, config.architecture),
        (replace(recipe, epochs=config.recipe.epochs), config.recipe),
        (images(model.data_source), images(config.data_source)),
    )
    other = [f.name for a, b in pairs for f in fields(a) if getattr(a, f.name) != getattr(b, f.name)]
    other += ["frontend"] * (model.parent_digest != parent_digest)
    other += ["weights"] * (model.weights_digest != (weights.digest if weights else ""))
    other += ["seed"] * (model.seed != config.options.seed)
    named = ", ".join(f"`{name}`" for name in dict.fromkeys(other))
    check(
        not other,
        f"{config.out} was trained with another {named}: give the same, leave out `resume` to start anew, or give "
        "another `out`",
    )
    check(
        recipe.epochs <= config.recipe.epochs,
        f"`epochs` {config.recipe.epochs}: {config.out} was trained for {recipe.epochs}; give more to go on with it, "
        "leave out `resume` to start anew, or give another `out`",
    )
    return model


def note_without_effect(recipe: Recipe, preset: Recipe) -> None:
    """Say which settings differ from the preset's and yet decide nothing."""
    if recipe.optimiser != "muon":
        note_unused(recipe, preset, {"muon_rate": "`optimiser` muon"})
    if recipe.augmentation == "none":
        note_unused(recipe, preset, {"border": "`augmentation` shift or shift-flip"})
    if recipe.augmentation in ("none", "shift"):
        note_unused(recipe, preset, {"flips": "`augmentation` shift-flip"})


def _epochs(model: TrainedModel) -> str:
    """Number of epochs in words, with that of each cycle."""
    epochs = model.recipe["epochs"]
    return f"{epochs} epochs" + (f" ({' + '.join(map(str, model.cycles))})" if model.cycles else "")


def run(config: TrainConfig) -> None:
    """The command: load, train, write, report."""
    folder, curve = (log_folder(config.out, ending) for ending in ("_training", "_training.png"))
    file = resolve(config.frontend, SHIPPED_FRONTENDS) if config.frontend else None
    start = config.weights
    hardware = replace(config.hardware, device=config.options.device)
    join_group(hardware.device, hardware.devices, hardware.num_nodes)
    files = [*([file] if file else []), *([model_file(start)] if start and start != IMAGENET else [])]
    inputs = [*files, *image_folders(config.data_source)]
    outputs = Outputs(config.out, options=config.options, figures=[curve], inputs=inputs, group=True)
    hold_log_folder(folder, (config.out, config.options.json), inputs)
    checkpointing = replace(config.checkpointing, folder=folder)
    device, seed = hardware.group()[0], config.options.seed
    frontend, parent_digest = open_frontend(file) if file else (None, "")
    name = f"{config.architecture.variant} {config.architecture.backbone}"
    weights = open_weights(start, config.architecture.backbone) if start else None
    # Other nodes may not see the file.
    after = joined().share(lambda: finished(config, parent_digest, weights))
    if after and Recipe.from_tree(after.recipe).epochs == config.recipe.epochs:
        if first_process():
            print(f"{config.out} holds this training of {name}, complete: nothing to do")
        return
    data = load_images(config.data_source, "train", seed, cache=config.caching.cache)
    spec = ModelSpec(config.architecture, data.shape, data.classes, frontend.spec if frontend else None)
    check_file(spec)
    if after:
        check_continuable(after, spec, config.recipe, seed, parent_digest, after.weights_digest, config.watch)
    if first_process():
        if folder.is_dir():
            remove_leftovers(folder)
        verb = "resuming" if checkpointing.resume and checkpointing.files else "continuing" if after else "training"
        recipe, reason = choose_recipe(config.preset, config.data_source.data, data.shape[1])
        note_without_effect(config.recipe, RECIPES[recipe])
        note_unused(config.data_source, DataSource(), config.data_source.unused)
        goes_on = f" after {len(after.history['train_loss'])} of {config.recipe.epochs} epochs" if after else ""
        print(
            f"{verb} {name}{goes_on} on {len(data.images)} images ({device.type}), recipe {recipe}, {reason}",
            flush=True,
        )
    began, fresh = perf_counter(), not folder.exists()
    try:
        model = train(
            data,
            config.architecture,
            config.recipe,
            frontend=frontend,
            seed=seed,
            weights=weights,
            watch=config.watch,
            after=after,
            hardware=hardware,
            checkpointing=checkpointing,
        )
    except UserError as error:
        # Of a training that could not begin, as on a full disk, nothing is left.
        if first_process() and fresh and not isinstance(error, Diverged) and not checkpointing.files:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if not first_process():
        return
    seconds = perf_counter() - began
    digest = save_model(config.out, model, command_line("hybrid.train", config), parent_digest)
    remove_checkpoints(folder)
    last = {name: values[-1].item() for name, values in model.history.items()}
    parameters = sum(p.numel() for p in model.network.parameters())
    print(
        f"trained {name} ({parameters / 1e6:.2f} M parameters) for {_epochs(model)} in "
        f"{seconds:.0f} s on {device.type}: accuracy {last['train_accuracy']:.1%} on training, "
        f"{last['val_accuracy']:.1%} on held-out training images"
        + "".join(f", {last[watched_column(noise)]:.1%} under {noise}" for noise in config.watch)
    )
    for path in outputs.figures:
        from hybrid.figures import draw_training

        draw_training(model, f"{name} on {config.data_source.data}", path)
    figures = {
        "variant": config.architecture.variant,
        "backbone": config.architecture.backbone,
        "parameters": parameters,
        "epochs": config.recipe.epochs,
        **({"cycles": model.cycles} if model.cycles else {}),
        "seconds": seconds,
        "train_accuracy_share": last["train_accuracy"],
        "held_out_accuracy_share": last["val_accuracy"],
        **{f"held_out_accuracy_share_{noise}": last[watched_column(noise)] for noise in config.watch},
        "train_loss_nat": last["train_loss"],
        "held_out_loss_nat": last["val_loss"],
        "threads": model.threads,
        "seed": seed,
        "digest": digest,
    }
    outputs.finish(figures, note=f"; logs are in {folder}")


def with_preset(config: TrainConfig) -> TrainConfig:
    """What flags are applied to, once ``--preset`` and the data are known."""
    # Other recipes than auto need no look at the images.
    size = image_shape(config.data_source, "train")[1] if config.preset == "auto" else 0
    recipe, _ = choose_recipe(config.preset, config.data_source.data, size)
    return replace(config, recipe=RECIPES[recipe])


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.train``."""
    return run_command(TrainConfig, run, argv, with_preset)


if __name__ == "__main__":
    sys.exit(main())
