"""Train a network, by default on clean images, and write ``hybrid.h5``."""

import logging
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Annotated

import tyro

from bridge.storage import SHIPPED_FRONTENDS, load_frontend
from hybrid.architecture import Architecture
from hybrid.figures import draw_training
from hybrid.recipe import Recipe, RecipeName, choose_recipe
from hybrid.storage import load_model, save_model
from hybrid.training import PROGRESS, train
from snn.data import load_images
from snn.data_source import DataSource
from snn.runtime.cli import RunOptions, command_line, run_command
from snn.runtime.errors import check
from snn.runtime.outputs import beside, check_outputs, write_json
from snn.runtime.pretrained import resolve
from snn.runtime.processes import first_process, group_size


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
        check(self.checkpoint_interval >= 0, f"`checkpoint_interval` {self.checkpoint_interval}: expected 0 or more")
        check(
            self.architecture.variant != "lambda",
            "`variant` lambda is not trained: make it from a trained mu with python -m hybrid.swap",
        )


def _images(source: DataSource) -> DataSource:
    """Which images, wherever they lie."""
    return replace(source, root=Path(), download=False)


def completed(config: TrainConfig, parent_digest: str) -> bool:
    """Whether ``--resume`` finds nothing left to do."""
    if not config.resume or not config.out.exists():
        return False
    found = load_model(config.out)
    same = (found.spec.architecture, found.recipe, found.seed, found.parent_digest, _images(found.source)) == (
        config.architecture,
        config.recipe.as_tree(),
        config.options.seed,
        parent_digest,
        _images(config.source),
    )
    check(
        same,
        f"{config.out} was trained with other settings, front end or seed: leave out `resume`, or give another `out`",
    )
    return True


def run(config: TrainConfig) -> None:
    """The command: load, train, write, report."""
    curves = beside(config.out, "_training.png") if config.options.figures else None
    file = resolve(config.frontend, SHIPPED_FRONTENDS) if config.frontend else None
    check_outputs(config.out, config.options.json, curves, inputs=[file] if file else [])
    device, devices, nodes = group_size(config.options.device, config.devices, config.num_nodes)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    frontend, _, parent_digest = load_frontend(file) if file else (None, None, "")
    name = f"{config.architecture.variant} {config.architecture.backbone}"
    if completed(config, parent_digest):
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
    digest = save_model(config.out, model, command_line("hybrid.train", config), parent_digest)
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
