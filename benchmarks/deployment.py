"""Accuracy and speed of exported networks: PyTorch, onnxruntime in float32 and in int8, on one thread.

python benchmarks/deployment.py --data folder:PATH --out deployment.csv
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
import tyro
from torch import Tensor

from hybrid.conditions import Condition, Context
from hybrid.exporting import onnx_network
from hybrid.int8 import calibration_images, quantise
from hybrid.printing import print_table
from hybrid.storage import TrainedModel, load_model, model_file
from snn.data import image_folders, load_images
from snn.data_source import IMAGES, DataSource
from snn.image_cache import Caching
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.outputs import Outputs, write_csv
from snn.runtime.pretrained import plain_name
from snn.runtime.ranges import COUNT, check_fields
from snn.runtime.threads import use_threads

CONDITIONS = ("clean", "awgn:20", "awgn:15")
BATCHES = (1, 64)
CALIBRATION = 512
"""Training images that set the ranges of int8."""


@dataclass(frozen=True)
class DeploymentConfig:
    """Measure networks in PyTorch and in onnxruntime, float32 and int8."""

    out: Path
    """CSV file to write."""
    models: tuple[Path, ...] = tuple(Path(f"pretrained:{name}-cifar10") for name in ("safe", "retina", "baseline"))
    """Files written by hybrid.train, or pretrained:NAME."""
    data: str | None = None
    """Images, if not those of the training run: digits, cifar10 or folder:PATH."""
    limit_test: Annotated[int, IMAGES] = 2000
    """Test images, at most."""
    rounds: Annotated[int, COUNT] = 7
    """Measurements of each speed, the runtimes in turn; the fastest counts."""
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)

    def __post_init__(self) -> None:
        check_fields(self)


def source_of(model: TrainedModel, config: DeploymentConfig) -> DataSource:
    """Where the images of a model lie."""
    return model.data_source.override(data=config.data, limit_test=config.limit_test, limit_train=CALIBRATION)


def runner(content: bytes) -> Callable[[Tensor], Tensor]:
    """Logits of an ONNX file by onnxruntime, on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def speeds(run: dict[str, Callable[[Tensor], Tensor]], images: Tensor, rounds: int) -> dict[str, float]:
    """Images a second by each of them, in turn, so that what else the machine does meets all."""
    passes = max(2, 128 // len(images))
    best = dict.fromkeys(run, float("inf"))
    for _ in range(rounds):
        for name, each in run.items():
            each(images)
            start = perf_counter()
            for _ in range(passes):
                each(images)
            best[name] = min(best[name], (perf_counter() - start) / passes)
    return {name: len(images) / seconds for name, seconds in best.items()}


@torch.inference_mode()
def run(config: DeploymentConfig) -> None:
    """The command."""
    folders = [folder for file in config.models for folder in image_folders(source_of(load_model(file), config))]
    outputs = Outputs(config.out, options=RunOptions(), inputs=[*map(model_file, config.models), *folders])
    rows = []
    for file in config.models:
        model = load_model(model_file(file))
        source = source_of(model, config)
        content = onnx_network(model)
        training = load_images(source, "train", cache=config.caching.cache)
        quantised = quantise(content, calibration_images(training.images, 0))
        run = {"PyTorch": model.network.eval(), "ONNX float32": runner(content), "ONNX int8": runner(quantised)}
        test = load_images(source, "test", cache=config.caching.cache)
        answers: dict[str, dict[str, Tensor]] = {}
        for condition in CONDITIONS:
            images = Condition.parse(condition).perturb(Context(test)).images
            for name, each in run.items():
                answers.setdefault(name, {})[condition] = torch.cat([each(part) for part in images.split(64)])
        fast = {batch: speeds(run, test.images[:batch].float() / 255, config.rounds) for batch in BATCHES}
        for name, logits in answers.items():
            differing = [(logits[key].argmax(1) != answers["PyTorch"][key].argmax(1)).sum().item() for key in logits]
            difference = max((logits[key] - answers["PyTorch"][key]).abs().max().item() for key in logits)
            accuracy = {
                key: 100 * (value.argmax(1) == test.labels).double().mean().item() for key, value in logits.items()
            }
            rows.append(
                {
                    "model": plain_name(file),
                    "runtime": name,
                    **{key: f"{value:.1f}" for key, value in accuracy.items()},
                    "other classes": f"{sum(differing)} of {len(test.labels) * len(CONDITIONS)}",
                    "largest difference": f"{difference:.1e}",
                    **{f"images/s, batch {batch}": f"{fast[batch][name]:.0f}" for batch in BATCHES},
                    "MB": "" if name == "PyTorch" else f"{len(content if 'float' in name else quantised) / 1e6:.1f}",
                }
            )
    title = f"{config.limit_test} test images, one thread; other classes than in PyTorch, under all conditions"
    print_table(title, list(rows[0]), [list(row.values()) for row in rows], words=2)
    write_csv(config.out, rows)
    outputs.finish({})


def main(argv: list[str] | None = None) -> int:
    """Command line."""
    with use_threads(1):
        return run_command(DeploymentConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
