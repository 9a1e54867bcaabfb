"""Export a trained network whole, as ONNX or for torch.export. The file is run and compared before it is written."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from torch import Tensor

from bridge.export.packages import check_packages
from hybrid.exporting import SUFFIX, Format, checked_content
from hybrid.storage import TrainedModel, check_like_training, load_model, model_file
from snn.data import image_folders, load_images
from snn.data_source import IMAGES, DataSource, check_recorded, note_root
from snn.image_cache import Caching
from snn.runtime.cli import RunOptions, check_left_out, command_line, run_command
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs, write_bytes
from snn.runtime.ranges import SEED, check_fields


@dataclass(frozen=True)
class ExportNetworkConfig:
    """Write a trained network for other programs: images in [0, 1] to logits, everything between inside the file.

    Training changes the affine part of the frozen layers' batch normalisation, so that the front end of this file is
    not that of bridge.convert.
    """

    model: tyro.conf.Positional[Path]
    """File written by hybrid.train or hybrid.swap, or pretrained:NAME."""
    format: Format = "onnx"
    """onnx: for onnxruntime and other programs. torch: a .pt2 file for torch.export.load."""
    out: Path | None = None
    """File to write, with the ending .onnx or .pt2; None: the model's name with this ending (of int8: NAME_int8.onnx),
    in the working folder."""
    int8: bool = False
    """Also turn all but the front end into 8-bit whole numbers, by onnxruntime."""
    calibration: Annotated[int, IMAGES] = 512
    """Training images that set the ranges of int8, at most; as many others tell how its answers differ."""
    data: str | None = None
    """Images that set the ranges, if not those of the training run: digits, cifar10 or folder:PATH."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the training run."""
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)
    seed: Annotated[int, SEED] = 0
    """Seed of the images on which the file is run, and of the choice of those that set the ranges."""
    json: Path | None = None
    """Also write the printed numbers to this file, as JSON."""
    plugin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Python file or module to import first, which registers backbones."""

    def __post_init__(self) -> None:
        check_fields(self)
        suffix = SUFFIX[self.format]
        check(
            self.out is None or self.out.suffix == suffix,
            f"`out` {self.out}: expected a name that ends in {suffix}, as `format` {self.format} says",
        )
        check(not self.int8 or self.format == "onnx", "`int8` is made by onnxruntime: use it with `format` onnx")
        if not self.int8:
            check_left_out(self, ("calibration", "data", "root", "caching"), "they belong to `int8`")


def calibration_source(model: TrainedModel, config: ExportNetworkConfig) -> DataSource:
    """The training images of int8: half of them set the ranges, the others are compared on."""
    check_recorded(model.data_source, config.data, f"model {config.model}")
    return model.data_source.override(data=config.data, root=config.root, limit_train=2 * config.calibration)


def run(config: ExportNetworkConfig) -> None:
    """The command: load, convert, run beside PyTorch, write, report."""
    check_packages(config.format)
    file = model_file(config.model)
    out = config.out or Path(f"{file.stem}{'_int8' * config.int8}{SUFFIX[config.format]}")
    model = load_model(file)
    folders = image_folders(calibration_source(model, config)) if config.int8 else []
    options = RunOptions(config.seed, json=config.json, plugin=config.plugin)
    outputs = Outputs(out, options=options, inputs=[file, *folders])
    command = command_line("hybrid.export", config)
    images = _calibration(model, config) if config.int8 else None
    content, agreement = checked_content(model, config.format, config.seed, command)
    figures: dict[str, float | str] = {"source_digest": model.digest, **agreement._asdict()}
    runtime = "onnxruntime" if config.format == "onnx" else "the reloaded program"
    print(
        f"{runtime} against PyTorch, {agreement.images} images, half of them noisy: logits differ by at most "
        f"{agreement.largest_difference:.1e} (the largest is {agreement.largest_logit:.3g}); "
        f"{agreement.different_classes or 'no'} class{'es' * (agreement.different_classes != 1)} "
        f"differ{'s' * (agreement.different_classes == 1)}"
    )
    if agreement.moved_images:
        print(
            f"of {agreement.moved_images} images a drive of a trained layer lies within rounding of an edge and takes "
            "another step there"
        )
    if images is not None:
        from hybrid.int8 import check_quantised, quantise

        size = len(content)
        quantised = quantise(content, images[::2])
        compared = check_quantised(content, quantised, images[1::2])
        content = quantised
        kept = 100 * (1 - compared.different_classes / compared.images)
        print(
            f"int8 against float32, {compared.images} training images, half of them noisy: {kept:.1f} % keep their "
            f"class, logits differ by at most {compared.largest_difference:.2g}; {len(content) / 1e6:.2f} MB, before "
            f"{size / 1e6:.2f} MB"
        )
        figures |= {f"int8_{key}": value for key, value in compared._asdict().items()}
    write_bytes(out, content)
    outputs.finish({**figures, "bytes": len(content)})


def _calibration(model: TrainedModel, config: ExportNetworkConfig) -> Tensor:
    """Images (N, C, H, W) in [0, 1]: rows 0, 2, 4 and so on set the ranges, the others are compared on."""
    from hybrid.int8 import calibration_images

    source = calibration_source(model, config)
    note_root(source, config.root)
    images = load_images(source, "train", config.seed, cache=config.caching.cache).images
    check_like_training(images, model, source)
    check(len(images) >= 2, f"`data` {source.data}: a single image; give 2 or more")
    return calibration_images(images, config.seed)


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.export``."""
    return run_command(ExportNetworkConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
