"""The learning rules, draw by draw (paper, Eq. 2, 4 and 5): the learner's code, the equations and Brian2 synapses.

Compared are the shares of potentiations and depressions, and the mean change of the conductance, for every registered
rule with both pairings. A rule of a plugin needs a reference (:mod:`validation.reference.base`).
"""

import sys

import torch

from snn.runtime.cli import command_line, run_command
from snn.runtime.device import choose_device
from snn.runtime.h5 import Schema, Tree, write_file
from snn.runtime.outputs import Outputs, beside
from snn.runtime.progress import progress
from validation.comparisons.rules import compared_rules
from validation.comparisons.window import (
    Levels,
    RuleResult,
    WindowConfig,
    brian2_draws,
    compare_rule,
    expected,
    learner_draws,
)
from validation.figures import draw_window
from validation.report import FALSE_ALARM, Report

SCHEMA = Schema("stdp_window/1", "python -m validation.stdp_window")


def run(config: WindowConfig) -> int:
    """The command: draw, compare, write, draw the picture."""
    figures = [beside(config.out, ".png")] if config.learners() else ()
    outputs = Outputs(config.out, options=config.options, figures=figures)
    device = choose_device(config.options.device)
    generator = torch.Generator(device).manual_seed(config.options.seed)
    report = Report("validation.stdp_window")
    lags, numbers, conductances = config.lags(), config.spike_numbers(), config.conductances()
    print(
        f"{len(lags)} dt x {len(numbers)} rates x {len(conductances)} conductances, {config.draws} draws each, "
        f"learner on {device.type}; a false alarm in {FALSE_ALARM:.1%} of all runs"
    )
    compared_rules(config.rules, report)
    results, levels = {}, Levels.of(config)
    for number, p in enumerate(progress(config.learners(), "rules", "rule")):
        learner = learner_draws(config, p, generator)
        result = RuleResult(learner, brian2_draws(config, p, (config.options.seed, number)), expected(config, p))
        compare_rule(config, p, levels, result, report)
        results[p.rule, p.pairing] = result
    tree: Tree = {
        "lags": lags * config.encoding.dt,
        "lags_unit": "ms, t_post - t_pre",
        "rates": numbers * (1000 / config.encoding.presentation),
        "rates_unit": "Hz",
        "conductances": conductances,
        "conductances_unit": "1 (g_min to g_max)",
        "draws": config.draws,
        "agrees": report.agrees,
    }
    for (rule, pairing), result in results.items():
        group: Tree = {"axes": "conductance, rate, lag", "change_unit": "conductance"}
        for side, realised in result._asdict().items():
            scale = 1 if side == "equation" else config.draws
            group[side] = {"p_ltp": realised.ltp / scale, "p_ltd": realised.ltd / scale, "change": realised.change}
        tree.setdefault(rule, {})[pairing] = group
    command = command_line("validation.stdp_window", config)
    write_file(config.out, SCHEMA, tree, seed=config.options.seed, command=command)
    for path in outputs.figures:
        draw_window(config, results, levels.point, path)
    return report.close(outputs, {})


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m validation.stdp_window``."""
    return run_command(WindowConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
