"""Ways out of safe-dnn: the front end as ONNX, or the spiking layers as NIR; each is run once and compared."""

import importlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

from bridge.frontend import SpikingFrontEnd
from bridge.storage import SCHEMA, SHIPPED_FRONTENDS, load_frontend
from snn.encoding import encode
from snn.engines.base import choose_engine, feed_forward
from snn.layer import SpikingConv2d
from snn.runtime.cli import run_command
from snn.runtime.errors import UserError, check
from snn.runtime.h5 import read_file
from snn.runtime.outputs import check_outputs, write_atomically, write_json
from snn.runtime.pretrained import resolve
from snn.runtime.random import draw_seeds, stream
from snn.runtime.tree import Tree
from snn.storage import layer_from_tree

TOLERANCE = 1e-5


CHECKED_IMAGES = {"onnx": 16, "nir": 2}


NEEDS = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "nir": ("nir", "nirtorch")}


@dataclass(frozen=True)
class ExportConfig:
    """Write a front end for other programs: as ONNX (the converted layers) or NIR (the spiking layers)."""

    frontend: tyro.conf.Positional[Path]
    """File written by bridge.convert, or pretrained:cifar10-fd."""
    format: Literal["onnx", "nir"]
    """onnx: images in [0, 1] to features, one step. nir: Conv2d and LIF nodes with the learned conductances."""
    out: Path | None = None
    """File to write; None: the front end's name, in the working folder, with the ending of the format."""
    seed: int = 0
    """Of the random images on which the written file is run."""
    json: Path | None = None
    """Also write the printed figures to this file."""

    def __post_init__(self) -> None:
        if self.out is not None:
            check(
                self.out.suffix == f".{self.format}",
                f"`out` {self.out}: expected a name that ends in .{self.format}, as `format` says",
            )


def run(config: ExportConfig) -> None:
    """The command: load, write, run what was written, report."""
    for package in NEEDS[config.format]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"`format` {config.format} needs the package {package}, which is not installed; install them all with: "
                "pip install 'safe-dnn[export]'"
            ) from error
    file = resolve(config.frontend, SHIPPED_FRONTENDS)
    out = config.out or Path(f"{file.stem}.{config.format}")
    check_outputs(out, config.json, inputs=[file])
    frontend, _, digest = load_frontend(file)
    generator = stream("export", config.seed)
    shape = (CHECKED_IMAGES[config.format], *frontend.spec.input_shape)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    figures: dict = {"source_digest": digest}

    def write(temporary: Path) -> None:
        figures.update(
            _onnx(frontend, temporary, images)
            if config.format == "onnx"
            else _nir(load_spiking_layers(file), frontend, temporary, images, generator)
        )

    write_atomically(out, write)
    write_json(config.json, figures)
    print(f"wrote {out}")


def load_spiking_layers(path: Path) -> list[SpikingConv2d]:
    """The spiking layers that ``frontend.h5`` was converted from."""
    return read_file(path, SCHEMA, _layers_from_tree)


def _layers_from_tree(tree: Tree) -> list[SpikingConv2d]:
    dt, groups = tree["spec"]["encoding"]["dt"], tree["layers"]
    return [layer_from_tree(groups[f"conv{number}"]["spiking"], dt) for number in range(1, len(groups) + 1)]


def _onnx(frontend: SpikingFrontEnd, out: Path, images: Tensor) -> dict:
    from bridge.export.onnx import run_in_onnxruntime, write_onnx

    write_onnx(frontend, out)
    with torch.no_grad():
        expected = frontend(images / 255)
    difference = (run_in_onnxruntime(out, images / 255) - expected).abs().max().item()
    check(
        difference <= TOLERANCE,
        f"features by onnxruntime differ by up to {difference:g} from PyTorch's (at most {TOLERANCE:g} is expected); "
        "nothing was written: use another version of onnxruntime or torch, and report it",
    )
    print(f"onnxruntime against PyTorch, {len(images)} random images: largest difference of a feature {difference:.1e}")
    return {"largest_difference": difference}


def _nir(
    layers: list[SpikingConv2d], frontend: SpikingFrontEnd, out: Path, images: Tensor, generator: torch.Generator
) -> dict:
    from bridge.export.nir import run_in_norse, write_nir

    write_nir(layers, frontend.spec.input_shape, out)
    spikes = encode(images, frontend.spec.encoding, draw_seeds(len(images), generator))
    fine = [
        replace(layer, **{name: getattr(layer, name).double() for name in ("conductance", "gain", "v_threshold")})
        for layer in layers
    ]
    expected, found = feed_forward(choose_engine(), fine, spikes), run_in_norse(out, spikes)
    total, different = expected.sum().item(), (expected != found).sum().item()
    check(
        different == 0,
        f"{different} of {total} spikes of the last layer differ between norse and the simulator; nothing was written: "
        "use another version of norse or nirtorch, and report it",
    )
    print(
        f"norse against the simulator, {len(images)} random images, float64: all {total} spikes of the last layer agree"
    )
    return {"spikes": total, "different_spikes": different}


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m bridge.export``."""
    return run_command(ExportConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
