"""Which learning rules are compared: every registered one, the paper's first."""

from collections.abc import Collection

import numpy as np

from snn.parameters import STDPParameters
from snn.registries import RULES
from validation.random_networks import Pairing
from validation.reference.base import REFERENCES, reference_of
from validation.report import Report

PAPER_RULES = ("fd", "stochastic", "deterministic")
"""Compared before all others, so that a further rule leaves their random draws as they are."""
PAIRINGS: tuple[Pairing, ...] = ("post", "two-sided")


def compared_rules(chosen: Collection[str] = (), report: Report | None = None) -> list[str]:
    """Names of the rules that have a reference, of ``chosen`` or else of all; the others fail in ``report``."""
    further = [name for name in RULES if name not in PAPER_RULES]
    names = [name for name in (*PAPER_RULES, *further) if name in (chosen or RULES)]
    for name in names:
        if report and name not in REFERENCES:
            report.add(
                f"rule {name}",
                f"rule {name} has no reference: register one",
                "a reference for each rule, see validation.reference.base",
                False,
                of=1,
            )
    return [name for name in names if name in REFERENCES]


def is_certain(rule: str) -> bool:
    """Whether a rule leaves nothing to chance: its reference gives no probability but 0 and 1."""
    lag, fn = np.append(np.arange(-300.0, 300.0, 0.5), [-np.inf, np.inf])[:, None], np.array([0.0, 0.5, 1.0])
    values = [
        reference_of(STDPParameters(rule=rule, pairing=pairing, ltd_delay=100.0)).probabilities(lag, fn)
        for pairing in PAIRINGS
    ]
    return all(np.isin(share, (0.0, 1.0)).all() for pair in values for share in pair)
