"""Convert ``snn.h5`` into ``frontend.h5``: rescale conductances, fit each layer's SAU, measure how well it answers.

Each layer is fitted on the drive that it will see in the converted network, that is fed by the converted layers before
it, against the spike counts of the whole spiking simulation on the same training images. How well the result answers
is measured on test images, which neither learning nor fit has seen, with the encoder's floor and without.
"""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from bridge.conversion import Conversion, choose_layers, fit_frontend
from bridge.fidelity import Fidelity, measure_fidelity
from bridge.figures import draw_fidelity, draw_responses
from bridge.responses import simulate_counts
from bridge.storage import save_frontend
from snn.controls import Conductances, control
from snn.data import load_images
from snn.runtime.cli import RunOptions, command_line, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import check
from snn.runtime.outputs import beside, check_outputs, write_json
from snn.runtime.pretrained import resolve
from snn.runtime.random import stream
from snn.storage import SHIPPED_NETWORKS, layer_tree, load_network

MODES = ("without_quantise_input", "with_quantise_input")


@dataclass(frozen=True)
class ConvertConfig:
    """Convert learned spiking layers into a frozen front end and write frontend.h5."""

    snn: tyro.conf.Positional[Path]
    """File written by snn.learn, or pretrained:cifar10-fd."""
    out: Path
    """File to write, for example runs/demo/frontend.h5."""
    data: str | None = None
    """Images to measure responses on, if not those of the learning run: digits, cifar10 or folder:PATH."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the learning run."""
    images: int = 256
    """Training images on which responses are simulated to fit the SAU."""
    test_images: int = 256
    """Test images on which the result is measured; no choice depends on them."""
    layers: int | None = None
    """Convert only so many layers, the first; None: all."""
    quantise_input: bool = False
    """Keep the encoder's rounding to whole spikes in the converted network (the paper drops it)."""
    conductances: Conductances = "learned"
    """What to convert: learned; shuffled (values permuted within each map) or random (uniform) for a control that has
    not learned; balanced: learned less each kernel's mean. But for learned, gains are set to the same rates again."""
    steps: int | None = None
    """Give every SAU so many equal steps along the line through its own, to learn what steps do: 256 are as good as
    none (a ReLU that saturates). None: those of the neuron."""
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        for name in ("images", "test_images"):
            check(getattr(self, name) >= 1, f"`{name}` {getattr(self, name)}: give 1 or more")
        check(self.layers is None or self.layers >= 1, f"`layers` {self.layers}: give 1 or more")
        check(self.steps is None or 1 <= self.steps <= 1024, f"`steps` {self.steps}: expected 1 to 1024")


def run(config: ConvertConfig) -> None:
    """The command: load, convert, write, report."""
    endings = ("_response.png", "_fidelity.png") if config.options.figures else ()
    figures = [beside(config.out, ending) for ending in endings]
    file = resolve(config.snn, SHIPPED_NETWORKS)
    check_outputs(config.out, config.options.json, *figures, inputs=[file])
    device = choose_device(config.options.device)
    network, source, parent_digest = load_network(file)
    network = choose_layers(network, config.layers, config.snn)
    source = source.override(data=config.data, root=config.root)
    seed = config.options.seed
    limited = replace(source, limit_train=config.images, limit_test=config.test_images)
    train, test = (load_images(limited, split, seed) for split in ("train", "test"))
    for split, found in (("training", train), ("test", test)):
        check(
            found.shape == network.input_shape,
            f"{split} images of {source.data} have shape {found.shape}, {config.snn} was learned on "
            f"{network.input_shape} (channels, height, width); give the data it was learned on with `data`",
        )
    network = control(network.to(device), train.images.to(device), config.conductances, seed)
    images = [split.images.to(device) for split in (train, test)]
    fit_counts, test_counts = (
        simulate_counts(network, part, stream(purpose, seed))[1:]
        for part, purpose in zip(images, ("responses", "test responses"), strict=True)
    )
    conversions = [
        fit_frontend(network, images[0], fit_counts, quantise_input=quantised, steps=config.steps, seed=seed)
        for quantised in (False, True)
    ]
    fidelities = [measure_fidelity(found.frontend.to(device), images[1], test_counts) for found in conversions]
    chosen = conversions[config.quantise_input]
    chosen.frontend.cpu()
    reports = [
        {
            "spiking": layer_tree(learned.layer.to("cpu")),
            "fit": {"kind": fit.kind, "residual": fit.residual},
            "candidates": {name.replace(" ", "_"): value for name, value in fit.residuals.items()},
            "residual_unit": "spikes in a presentation",
            "fidelity": {mode: fidelity.figures() for mode, fidelity in zip(MODES, both, strict=True)},
        }
        for learned, fit, *both in zip(network.layers, chosen.fits, *fidelities, strict=True)
    ]
    digest = save_frontend(
        config.out,
        chosen.frontend,
        chosen.responses,
        reports,
        source,
        seed=seed,
        command=command_line("bridge.convert", config),
        parent_digest=parent_digest,
    )
    print(
        f"converted {len(network.layers)} layers of {config.conductances} conductances, fitted on {len(images[0])} "
        f"training images; on {len(images[1])} test images:"
    )
    told = {}
    for number in range(len(network.layers)):
        told[f"conv{number + 1}"] = _tell(number, conversions, fidelities)
    write_json(config.options.json, {"layers": told, "quantise_input": config.quantise_input, "digest": digest})
    if figures:
        draw_responses(chosen.frontend, chosen.responses, network, figures[0])
        draw_fidelity(fidelities[config.quantise_input], chosen.frontend.spec.encoding.presentation, figures[1])
    print("wrote " + ", ".join(map(str, [config.out, *figures])))


def _tell(number: int, conversions: list[Conversion], fidelities: list[list[Fidelity]]) -> dict:
    """Print what became of a layer, without and with the encoder's floor; return the figures."""
    told, simulated = {}, fidelities[0][number]
    print(f"  conv{number + 1}: {simulated.mean_rate:.1f} Hz; {simulated.levels} counts hold 5% of the neurons each")
    for mode, conversion, layers in zip(MODES, conversions, fidelities, strict=True):
        fit, fidelity = conversion.fits[number], layers[number]
        steps = int(fit.steps.edges.isfinite().sum(-1).max())
        print(
            f"    {mode.partition('_')[0]:7} --quantise-input: {steps} steps ({fit.kind}), residual {fit.residual:.3f} "
            f"spikes; correlation {fidelity.correlation:.3f}, error {fidelity.mean_error:.2f} Hz, count off in "
            f"{fidelity.off_share:.1%} of neurons"
        )
        told[mode] = {
            "sau_steps": steps,
            "sau_kind": fit.kind,
            "residual_spikes": fit.residual,
            "candidate_residuals_spikes": fit.residuals,
            **fidelity.figures(),
        }
    return told


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m bridge.convert``."""
    return run_command(ConvertConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
