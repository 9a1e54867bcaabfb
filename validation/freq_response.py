"""Post- against presynaptic spike frequency of one neuron (paper, Fig. 4): norse, Brian2 and the closed form.

Compared with the learner's path are Brian2, spike by spike; the closed-form inter-spike interval, for trains so fast
that their pulses merge into a constant current; and exact fractions, where a potential meets its threshold.
"""

import sys

import numpy as np

from snn.runtime.cli import command_line, run_command
from snn.runtime.device import choose_device
from snn.runtime.h5 import Schema, write_file
from snn.runtime.outputs import Outputs, beside
from validation.comparisons.neuron import compare_convergence, compare_encoder, compare_exact
from validation.comparisons.response import FreqResponseConfig, compare_trains, list_regions
from validation.figures import draw_response
from validation.report import Report

SCHEMA = Schema("freq_response/1", "python -m validation.freq_response")


def run(config: FreqResponseConfig) -> int:
    """The command: simulate, compare, write, draw."""
    outputs = Outputs(config.out, options=config.options, figures=[beside(config.out, ".png")])
    device = choose_device(config.options.device)
    generator = np.random.default_rng(config.options.seed)
    report = Report("validation.freq_response")
    rates = config.rates()
    print(f"{len(config.neurons()[0])} neurons at {len(rates)} rates, norse on {device.type}, dt {config.dt:g} ms")
    responses = compare_trains(config, report, device)
    compare_encoder(config.durations[0], config.dt, report, config.options.seed, device)
    compare_exact(report, generator, device)
    convergence = compare_convergence(config.lif, config.quick, report, generator, device)
    regions = list_regions(config, responses.norse[0], report)
    tree = {
        "rates": rates,
        "rates_unit": "Hz",
        "thresholds": np.array(config.thresholds),
        "thresholds_unit": "mV",
        "drives": np.array(config.drives),
        "drives_unit": "current of Eq. 1 while the synapse is open",
        "durations": np.array(config.durations),
        "durations_unit": "ms",
        "norse": responses.norse,
        "norse_unit": "Hz (duration, drive, threshold, rate)",
        "brian2": responses.brian2,
        "brian2_unit": "Hz (duration, drive, threshold, rate)",
        "closed_form": responses.closed_form,
        "closed_form_unit": "Hz at the train's mean current (drive, threshold, rate)",
        "flat_regions": np.array([list(region.values()) for region in regions]),
        "flat_regions_columns": "drive, threshold in mV, lowest and highest presynaptic rate in Hz, response in Hz, "
        "whether wider than a step of the train",
        "convergence": convergence | {"unit": "ms"},
        "dt": config.dt,
        "agrees": report.agrees,
    }
    command = command_line("validation.freq_response", config)
    write_file(config.out, SCHEMA, tree, seed=config.options.seed, command=command)
    for path in outputs.figures:
        draw_response(config, responses, convergence, path)
    return report.close(outputs, {"flat_regions": regions})


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m validation.freq_response``."""
    return run_command(FreqResponseConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
