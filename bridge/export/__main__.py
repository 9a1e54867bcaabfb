"""Export for other programs: the front end as ONNX or its spiking layers as NIR. Each file is run once and compared."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from bridge.export.packages import check_packages
from bridge.storage import SHIPPED_FRONTENDS, load_frontend, load_spiking_layers
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs
from snn.runtime.pretrained import resolve
from snn.runtime.random import stream
from snn.runtime.ranges import SEED, check_fields


@dataclass(frozen=True)
class ExportConfig:
    """Write a front end for other programs: as ONNX (the converted layers) or NIR (the spiking layers).

    Training changes the affine part of these layers' batch normalisation, so this is not the front end of a trained
    network, which hybrid.export writes whole.
    """

    frontend: tyro.conf.Positional[Path]
    """File written by bridge.convert, or pretrained:cifar10-fd."""
    format: Literal["onnx", "nir"]
    """onnx: images in [0, 1] to features, one step. nir: Conv2d and LIF nodes with the learned conductances."""
    out: Path | None = None
    """File to write; None: the front end's name with the ending of the format, in the working folder."""
    seed: Annotated[int, SEED] = 0
    """Seed of the images, half noise and half smooth, on which the written file is run."""
    json: Path | None = None
    """Also write the printed numbers to this file, as JSON."""
    plugin: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Python file or module to import first, which registers encoders."""

    def __post_init__(self) -> None:
        check_fields(self)
        check(
            self.out is None or self.out.suffix == f".{self.format}",
            f"`out` {self.out}: expected a name that ends in .{self.format}, as `format` says",
        )


def run(config: ExportConfig) -> None:
    """The command: load, write, run what was written, report."""
    check_packages(config.format)
    file = resolve(config.frontend, SHIPPED_FRONTENDS)
    out = config.out or Path(f"{file.stem}.{config.format}")
    outputs = Outputs(out, options=RunOptions(config.seed, json=config.json, plugin=config.plugin), inputs=[file])
    frontend, _, digest = load_frontend(file)
    generator = stream("export", config.seed)
    figures: dict[str, float | str] = {"source_digest": digest}
    # Imported here: each needs packages that the other does not.
    if config.format == "onnx":
        from bridge.export import onnx

        agreement = onnx.export_onnx(frontend, out, generator)
        print(
            f"onnxruntime against PyTorch, {onnx.CHECKED_IMAGES} images: {agreement.same_share:.2%} of the "
            f"features are the same bits; largest difference of a feature {agreement.largest_difference:.1e}"
        )
        figures.update(agreement._asdict())
    else:
        from bridge.export import nir

        spikes = nir.export_nir(load_spiking_layers(file), frontend, out, generator)
        print(
            f"norse against the simulator, {nir.CHECKED_IMAGES} images, float64: all {spikes} spikes of the "
            "last layer agree"
        )
        figures.update(spikes=spikes, different_spikes=0)
    outputs.finish(figures)


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m bridge.export``."""
    return run_command(ExportConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
