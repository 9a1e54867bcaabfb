"""Random spiking convolutions, spike by spike and conductance by conductance: the learner and Brian2.

Three comparisons, all on the learner's own functions: spikes of every layer at every step; conductances after several
mini-batches of rules without chance; the distribution of the change that a rule with chance makes in one mini-batch.
Rules of plugins join the second or the third. A fourth compares the contrast that random retinas send to the encoder,
pixel by pixel, with NumPy and SciPy.
"""

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from snn.runtime.cli import RunOptions, command_line, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import check
from snn.runtime.h5 import Schema, Tree, write_file
from snn.runtime.outputs import Outputs, beside
from snn.runtime.ranges import COUNT, Range, check_fields
from validation.comparisons.learning import WITHOUT_CHANCE, compare_distributions, compare_learning
from validation.comparisons.retina import KINDS as RETINA_KINDS
from validation.comparisons.retina import RetinaTrial, compare_retinas
from validation.comparisons.rules import PAIRINGS, compared_rules
from validation.comparisons.spikes import KINDS, Trial, compare_networks
from validation.figures import draw_networks
from validation.report import FALSE_ALARM, Report

SCHEMA = Schema("network/1", "python -m validation.network")

QUICK = {"retinas": 6, "networks": 12, "deterministic": 4, "batches": 3, "stochastic": 1, "repeats": 50}
"""Largest values of these fields with ``--quick``."""
QUICK_FLAGS = ", ".join(f"--{name} {most}" for name, most in QUICK.items())
PARTS = Range(0, 10**6)
FEWEST_WITHOUT_CHANCE = len(WITHOUT_CHANCE) * len(PAIRINGS)


@dataclass(frozen=True)
class NetworkConfig:
    """Compare spikes and learning of random small networks with Brian2, contrast with SciPy; 0 leaves a part out."""

    out: Path = Path("network.h5")
    """File to write; figure beside it."""
    quick: Annotated[bool, tyro.conf.arg(help=f"A check in less than a minute: at most {QUICK_FLAGS}.")] = False
    retinas: Annotated[int, PARTS] = 60
    """Retinas whose contrast is compared."""
    networks: Annotated[int, PARTS] = 60
    """Active networks whose spikes are compared."""
    deterministic: Annotated[int, PARTS] = 24
    """Networks that learn by rules without chance, at least one for each rule and pairing."""
    batches: Annotated[int, COUNT] = 6
    """Mini-batches that each of them learns."""
    stochastic: Annotated[int, PARTS] = 6
    """Networks that learn by rules with chance."""
    repeats: Annotated[int, Range(20, 10**6, reason="with fewer, a weaker rule would not show")] = 100
    """Repetitions of one mini-batch of a rule with chance in a block; blocks are drawn until the test notices a P_p or
    P_d that is 5 % smaller."""
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_fields(self)
        check(
            self.deterministic == 0 or self.deterministic >= FEWEST_WITHOUT_CHANCE,
            f"`deterministic` {self.deterministic}: give 0, or at least {FEWEST_WITHOUT_CHANCE}, one for each rule and "
            "pairing",
        )
        check(
            self.retinas + self.networks + self.deterministic + self.stochastic > 0,
            "`retinas`, `networks`, `deterministic` and `stochastic` are all 0: give one of them",
        )
        for name, most in QUICK.items() if self.quick else ():
            object.__setattr__(self, name, min(getattr(self, name), most))


def run(config: NetworkConfig) -> int:
    """The command: compare, write, draw."""
    outputs = Outputs(config.out, options=config.options, figures=[beside(config.out, ".png")])
    device = choose_device(config.options.device)
    random = np.random.default_rng(config.options.seed)
    report = Report("validation.network")
    print(f"random networks, learner on {device.type}; a false alarm in {FALSE_ALARM:.1%} of all runs")
    compared_rules(report=report)
    retinas = compare_retinas(config.retinas, report, random, device) if config.retinas else []
    trials = compare_networks(config.networks, report, random, device) if config.networks else []
    learned = (
        compare_learning(config.deterministic, config.batches, report, random, device) if config.deterministic else None
    )
    distributions = compare_distributions(config.stochastic, config.repeats, report, random, device)
    command = command_line("validation.network", config)
    tree: Tree = {
        "retinas": _retina_table(retinas) if retinas else {},
        "networks": _network_table(trials) if trials else {},
        "without_chance": learned._asdict() | {"unit": "conductance (all networks in a row)"} if learned else {},
        "stochastic": {
            f"network{number}": {key: value for key, value in part._asdict().items() if key != "rule"}
            | {"rule": asdict(part.rule), "unit": "change of the conductance (repeats, synapses)"}
            for number, part in enumerate(distributions, 1)
        },
        "agrees": report.agrees,
    }
    write_file(config.out, SCHEMA, tree, seed=config.options.seed, command=command)
    for path in outputs.figures:
        draw_networks(trials, learned, distributions, path)
    active = sum(bool(trial.active) for trial in trials)
    figures = {"networks_drawn": len(trials), "networks_active": active, "networks_rejected": len(trials) - active}
    return report.close(outputs, figures)


def _network_table(trials: list[Trial]) -> Tree:
    """Columns with one row per network that was drawn."""
    geometries = [trial.network.layers[-1].geometry for trial in trials]
    columns = {
        "kind": [KINDS.index(trial.network.kind) for trial in trials],
        "lively": [trial.active for trial in trials],
        "differing_spikes": [trial.differing for trial in trials],
        "differing_spikes_float32": [trial.float32 for trial in trials],
        "spikes": [trial.spikes for trial in trials],
        "spikes_per_neuron": [trial.per_neuron for trial in trials],
        "contested_share_of_steps": [trial.contested for trial in trials],
        "ties": [trial.ties for trial in trials],
        "threshold_met": [trial.touches for trial in trials],
        "dt": [trial.network.encoding.dt for trial in trials],
        "batch": [trial.network.batch for trial in trials],
        "input_shape": [trial.network.shape for trial in trials],
    }
    columns |= {name: [getattr(p, name) for p in geometries] for name in asdict(geometries[0])}
    table = {name: np.array(values) for name, values in columns.items()}
    return table | {"kind_names": list(KINDS), "times_unit": "ms", "geometry_of": "the last layer"}


def _retina_table(trials: list[RetinaTrial]) -> Tree:
    """Columns with one row per retina."""
    table: Tree = {name: np.array([getattr(trial, name) for trial in trials]) for name in RetinaTrial._fields[1:]}
    table["kind"] = np.array([RETINA_KINDS.index(trial.kind) for trial in trials])
    return table | {"kind_names": list(RETINA_KINDS), "even_unit": "steps of contrast"}


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m validation.network``."""
    return run_command(NetworkConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
