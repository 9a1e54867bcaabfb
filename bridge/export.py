"""Ways out of safe-dnn: the front end as ONNX, or the spiking layers as NIR; each is run once and compared."""

import importlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from torch import Tensor

from bridge.frontend import SHIPPED_FRONTENDS, SpikingFrontEnd, load_frontend
from snn.command import check_outputs, run_command, write_json
from snn.draws import draw_seeds, stream
from snn.errors import UserError, check
from snn.pretrained import resolve

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
                f"--out {self.out}: expected a name that ends in .{self.format}, as --format says",
            )


def run(config: ExportConfig) -> None:
    """The command: load, write, run what was written, report."""
    for package in NEEDS[config.format]:
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"--format {config.format} needs the package {package}, which is not installed; install them all with: "
                "pip install 'safe-dnn[export]'"
            ) from error
    file = resolve(config.frontend, SHIPPED_FRONTENDS)
    out = config.out or Path(f"{file.stem}.{config.format}")
    check_outputs(out, config.json, inputs=[file])
    frontend, _, digest = load_frontend(file)
    generator = stream("export", config.seed)
    shape = (CHECKED_IMAGES[config.format], *frontend.spec.input_shape)
    images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    figures = (_onnx if config.format == "onnx" else _nir)(frontend, file, out, images, generator)
    write_json(config.json, figures | {"source_digest": digest})
    print(f"wrote {out}")


def _onnx(frontend: SpikingFrontEnd, file: Path, out: Path, images: Tensor, generator: torch.Generator) -> dict:
    from bridge.onnx_model import run_in_onnxruntime, write_onnx

    write_onnx(frontend, out)
    with torch.no_grad():
        expected = frontend(images / 255)
    difference = (run_in_onnxruntime(out, images / 255) - expected).abs().max().item()
    print(f"onnxruntime against PyTorch, {len(images)} random images: largest difference of a feature {difference:.1e}")
    return {"largest_difference": difference}


def _nir(frontend: SpikingFrontEnd, file: Path, out: Path, images: Tensor, generator: torch.Generator) -> dict:
    from bridge.nir_model import load_spiking_layers, run_in_norse, write_nir
    from snn.encode import encode
    from snn.layer import feed_forward

    layers = load_spiking_layers(file)
    write_nir(layers, frontend.spec.encoding, frontend.spec.input_shape, out)
    spikes = encode(images, frontend.spec.encoding, draw_seeds(len(images), generator))
    fine = [
        replace(layer, **{name: getattr(layer, name).double() for name in ("conductance", "gain", "v_threshold")})
        for layer in layers
    ]
    expected, found = feed_forward(fine, spikes), run_in_norse(out, spikes)
    different = (expected != found).sum().item()
    print(
        f"norse against the simulator, {len(images)} random images, both float64: {different} of "
        f"{expected.sum().item()} spikes of the last layer differ"
    )
    return {"spikes": expected.sum().item(), "different_spikes": different}


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m bridge.export``."""
    return run_command(ExportConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
