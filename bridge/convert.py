"""Convert ``snn.h5`` into ``frontend.h5`` and measure how faithfully the front end reproduces the simulation.

:mod:`bridge.conversion` says how layers are fitted, on training images. Fidelity is measured on test images, which
neither learning nor the fit has seen, both with the encoder's rounding to whole spikes and without. No labels are
needed; of a folder without test images a tenth of the images are kept for that, in learning, too.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from snn.data_source import IMAGES, DataSource, Split, check_recorded, note_root
from snn.image_cache import Caching
from snn.learning import Conductances
from snn.runtime.cli import RunOptions, command_line, run_command
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs, beside
from snn.runtime.ranges import Range, check_fields

if TYPE_CHECKING:
    from torch import Tensor

    from bridge.conversion import Conversion
    from bridge.fidelity import Fidelity


@dataclass(frozen=True)
class ConvertConfig:
    """Convert learned spiking layers into a frozen front end and write frontend.h5."""

    snn: tyro.conf.Positional[Path]
    """File written by snn.learn, or pretrained:cifar10-fd."""
    out: Path
    """File to write, for example runs/demo/frontend.h5."""
    data: str | None = None
    """Images on which responses are measured, if not those of the learning run: digits, cifar10 or folder:PATH, which
    need not be sorted by class."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the learning run."""
    images: Annotated[int, IMAGES] = 256
    """Training images on which responses are simulated to fit the SAU."""
    test_images: Annotated[int, IMAGES] = 256
    """Test images on which fidelity is measured; no choice depends on them."""
    layers: Annotated[int | None, Range(1, 1000)] = None
    """Number of layers to convert, from the first; None: all."""
    quantise_input: bool = False
    """Keep the encoder's rounding to whole spikes in the converted network (the paper drops it)."""
    conductances: Conductances = "learned"
    """What to convert. learned: the conductances as they are. Controls, whose gains and thresholds are set anew to the
    same rates: shuffled (values permuted within each channel), random (uniform values), balanced (learned, each kernel
    less its mean), gabor (V1's simple cells; one layer only) and kmeans (centroids of patches of a layer's input in
    --images)."""
    steps: Annotated[int | None, Range(1, 1024)] = None
    """Number of equal steps of every SAU, along the line through its own, to measure what the steps contribute; 256 are
    as good as none (a ReLU that saturates). None: the steps of the neuron."""
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_fields(self)


def run(config: ConvertConfig) -> None:
    """The command: load, convert, measure, write, report."""
    # Imported here: --help must not wait for PyTorch.
    from bridge.conversion import check_responses, choose_layers, fit_frontend
    from bridge.fidelity import MODES, measure_fidelity
    from bridge.figures import draw_fidelity, draw_responses
    from bridge.responses import simulate_counts
    from bridge.storage import save
    from snn.controls import control
    from snn.data import image_folders
    from snn.runtime.device import choose_device
    from snn.runtime.pretrained import resolve
    from snn.runtime.random import stream
    from snn.storage import SHIPPED_NETWORKS, load_network

    file = resolve(config.snn, SHIPPED_NETWORKS)
    pictures = [beside(config.out, ending) for ending in ("_response.png", "_fidelity.png")]
    network, learned_on, parent_digest = load_network(file)
    check_recorded(learned_on, config.data, config.snn)
    data_source = learned_on.override(data=config.data, root=config.root)
    note_root(data_source, config.root)
    inputs = [file, *image_folders(data_source)]
    outputs = Outputs(config.out, options=config.options, figures=pictures, inputs=inputs)
    device, seed = choose_device(config.options.device), config.options.seed
    network = choose_layers(network, config.layers, config.snn)
    splits: tuple[Split, ...] = ("train", "test")
    train, test = (_load_images(config, data_source, split, network.input_shape).to(device) for split in splits)
    check_responses(network, len(train) + len(test))
    network = control(network.to(device), train, config.conductances, seed)
    counts, test_counts = (
        simulate_counts(network, images, stream(purpose, seed))[1:]
        for images, purpose in ((train, "responses"), (test, "test responses"))
    )
    conversions = {
        quantise: fit_frontend(network, train, counts, quantise_input=quantise, steps=config.steps, seed=seed)
        for quantise in MODES
    }
    fidelity = {
        quantise: measure_fidelity(conversion.frontend.to(device), test, test_counts)
        for quantise, conversion in conversions.items()
    }
    chosen = replace(conversions[config.quantise_input], data_source=data_source, parent_digest=parent_digest)
    chosen.frontend.cpu()
    digest = save(chosen, config.out, fidelity=fidelity, command=command_line("bridge.convert", config))
    print(
        f"converted {len(chosen.layers)} layers of {config.conductances} conductances, fitted on {len(train)} "
        f"training images; on {len(test)} test images:"
    )
    layers = {f"conv{number + 1}": _report(number, conversions, fidelity) for number in range(len(chosen.layers))}
    if outputs.figures:
        spiking, responses, _ = zip(*chosen.layers, strict=True)
        draw_responses(chosen.frontend, spiking, responses, outputs.figures[0])
        draw_fidelity(fidelity[config.quantise_input], chosen.frontend.spec.encoding.presentation, outputs.figures[1])
    outputs.finish({"layers": layers, "quantise_input": config.quantise_input, "digest": digest})


def _load_images(config: ConvertConfig, data_source: DataSource, split: Split, shape: tuple[int, int, int]) -> "Tensor":
    """Images of one split, uint8 (N, C, H, W), which must have ``shape`` (C, H, W)."""
    from snn.data import load_images

    limited = replace(data_source, limit_train=config.images, limit_test=config.test_images)
    loaded = load_images(limited, split, config.options.seed, labels=False, cache=config.caching.cache)
    check(
        loaded.shape == shape,
        f"the {split} images of {data_source.data} have shape {loaded.shape}, {config.snn} was learned on {shape} "
        "(channels, height, width); give the data it was learned on with `data`",
    )
    return loaded.images


def _report(
    number: int, conversions: "dict[bool, Conversion]", fidelity: "dict[bool, list[Fidelity]]"
) -> dict[str, dict]:
    """Print the result for a layer in both modes; return the same figures."""
    from bridge.fidelity import MODES

    simulated = fidelity[False][number]
    print(f"  conv{number + 1}: {simulated.mean_rate:.1f} Hz; {simulated.levels} counts hold 5% of the neurons each")
    figures = {}
    for quantise, mode in MODES.items():
        fit, measured = conversions[quantise].layers[number].fit, fidelity[quantise][number]
        steps = int(fit.steps.edges.isfinite().sum(-1).max())
        print(
            f"    {'with' if quantise else 'without':7} --quantise-input: {steps} steps ({fit.kind}), residual "
            f"{fit.residual:.3f} spikes; correlation {measured.correlation:.3f}, error {measured.mean_error:.2f} Hz, "
            f"count off in {measured.off_share:.1%} of neurons"
        )
        figures[mode] = {
            "sau_steps": steps,
            "sau_kind": fit.kind,
            "residual_spikes": fit.residual,
            "candidate_residuals_spikes": fit.residuals,
            **measured.summary(),
        }
    return figures


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m bridge.convert``."""
    return run_command(ConvertConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
