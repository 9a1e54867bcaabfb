"""Write a trained network as a small file, which can ship with the package.

Trainable kernels and matrices are rounded to 8 bits (or 16); the front end, normalisation and all that is not trained
keep every bit. Whoever reads the file has float32 again. A file in the folder ``hybrid/shipped`` is taken by its name,
``pretrained:NAME``.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from hybrid.evaluation import predict
from hybrid.storage import Bits, TrainedModel, check_like_training, load_model, model_file, save_model
from snn.data import image_folders, load_images
from snn.data_source import FOLDER, IMAGES, DataSource, note_root
from snn.image_cache import Caching
from snn.runtime.cli import RunOptions, command_line, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import UserError
from snn.runtime.outputs import Outputs
from snn.runtime.ranges import check_fields


@dataclass(frozen=True)
class ShipConfig:
    """Write a trained network with its weights in few bits, and tell how its answers differ."""

    model: tyro.conf.Positional[Path]
    """File written by hybrid.train or hybrid.swap."""
    out: Path
    """File to write, for example hybrid/shipped/NAME.h5."""
    bits: Bits = 8
    """Of a trainable weight. 8: 255 values, scaled for each output channel; 16: float16."""
    data: str | None = None
    """Test images to compare answers on, if not those of the training run: digits, cifar10 or folder:PATH."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the training run."""
    limit_test: Annotated[int, IMAGES] = 1000
    """Compare at most this many test images, balanced over classes."""
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_fields(self)


def without_places(source: DataSource) -> DataSource:
    """``source`` without the places where its images lay: of ``folder:PATH``, the last part of the path is kept."""
    data = FOLDER + Path(source.data).name if source.data.startswith(FOLDER) else source.data
    return replace(source, data=data, root=DataSource.root, download=False)


def compared_on(model: TrainedModel, config: ShipConfig) -> DataSource:
    """The images on which answers are compared."""
    return model.data_source.override(data=config.data, root=config.root, limit_test=config.limit_test)


def comparison_images(model: TrainedModel, config: ShipConfig) -> Tensor | None:
    """Test images, uint8 (N, C, H, W); None where those of the training run are not there."""
    source = compared_on(model, config)
    note_root(source, config.root)
    try:
        images = load_images(source, "test", config.options.seed, cache=config.caching.cache).images
    except UserError as error:
        if config.data is not None or config.root is not None:
            raise
        print(f"answers were not compared: {error}")
        return None
    check_like_training(images, model, source)
    return images


def compare(model: TrainedModel, rounded: TrainedModel, images: Tensor, device: torch.device) -> dict[str, float]:
    """How the logits of two networks differ on images (N, C, H, W), uint8 or in [0, 1]."""
    before, after = (predict(each.network, images, device) for each in (model, rounded))
    return {
        "images": len(images),
        "largest_logit": before.abs().max().item(),
        "max_logit_difference": (after - before).abs().max().item(),
        "same_class_percent": 100 * (after.argmax(1) == before.argmax(1)).double().mean().item(),
    }


def run(config: ShipConfig) -> None:
    """The command: load, round, write, compare, report."""
    file = model_file(config.model)
    model = load_model(file)
    inputs = [file, *image_folders(compared_on(model, config))]
    outputs = Outputs(config.out, options=config.options, inputs=inputs)
    device = choose_device(config.options.device)
    images = comparison_images(model, config)
    shipped = replace(model, data_source=without_places(model.data_source))
    digest = save_model(config.out, shipped, command_line("hybrid.ship", config), model.digest, bits=config.bits)
    sizes = {"bytes": config.out.stat().st_size, "bytes_before": file.stat().st_size}
    print(f"{sizes['bytes'] / 1e6:.2f} MB, before {sizes['bytes_before'] / 1e6:.2f} MB")
    measured = {} if images is None else compare(model, load_model(config.out), images, device)
    if measured:
        print(
            f"logits differ by at most {measured['max_logit_difference']:.2g} (the largest is "
            f"{measured['largest_logit']:.2g}); {measured['same_class_percent']:.2f} % of {measured['images']} test "
            "images keep their class"
        )
    outputs.finish({**sizes, **measured, "digest": digest, "parent_digest": model.digest})


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.ship``."""
    return run_command(ShipConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
