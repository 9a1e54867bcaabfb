"""Eq. 2 and 4, the pairings and the draws of a learning rule as Brian2 synapses with units.

P_p and P_d come from the rule's reference. With pairing ``two-sided`` a postsynaptic spike waits at its synapse for
the next presynaptic one. Several may wait, so each synapse exists ``slots`` times, and the copies take the postsynaptic
spikes in turn.
"""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from snn.parameters import STDPParameters
from validation.reference.base import reference_of
from validation.reference.neuron import LONG_AGO, load_brian2

MODEL = """
G : 1
fn : 1
weight : integer (constant)
arrival : second
lag = t - arrival : second
g = (G - g_min)/(g_max - g_min) : 1
dG_p = alpha_p*exp(-beta_p*g) : 1
dG_d = alpha_d*exp(-beta_d*(1 - g)) : 1
in_window = int(lag < ltp_window + dt/2) : 1
spikes_seen : integer
trials : 1
potentiations : 1
depressions : 1
change : 1
"""
"""``lag`` is dt of Eq. 5; ``fn`` the normalised presynaptic rate; ``weight`` says which shared conductance G is."""

POST_ON_POST = """
up = int(rand() < factor_p*P_p)
down = int(rand() < factor_d*P_d)
trials += 1
potentiations += up
depressions += down
change += up*dG_p - down*dG_d
"""
TWO_SIDED_MODEL = """
slot : integer (constant)
waiting : 1
since : second
wait = t - since : second
"""
TWO_SIDED_ON_PRE = """
down = waiting*int(rand() < factor_d*P_d)
depressions += down
change -= down*dG_d
waiting = 0
"""
TWO_SIDED_ON_POST = """
turn = int(spikes_seen % slots == slot)
up = turn*int(rand() < factor_p*P_p)
spikes_seen += 1
trials += turn
potentiations += up
change += up*dG_p
since = turn*t + (1 - turn)*since
waiting = clip(waiting + turn, 0, 1)
"""
ON_PRE = "arrival = t"

NUMBERS = ("alpha_p", "alpha_d", "beta_p", "beta_d", "gamma_p", "gamma_d", "phi_p", "phi_d", "g_min", "g_max")
TIMES = ("tau_p", "tau_d", "ltp_window", "ltd_delay")


@dataclass(frozen=True)
class Plasticity:
    """How Brian2 synapses learn."""

    rule: STDPParameters
    """Rule, pairing and constants, with ``ltd_delay`` set for pairing ``post``."""
    rate_limits: tuple[float, float] = (0.0, 1.0)
    """f_min and f_max of Eq. 5 in Hz, for rules that use the presynaptic rate."""
    slots: int = 1
    """With pairing ``two-sided`` at least as many as postsynaptic spikes wait at a synapse, else 1."""
    repeats: int = 1
    """Independent repetitions of the draws on the same spikes."""
    factors: tuple[float, float] = (1.0, 1.0)
    """By which P_p and P_d are multiplied; other than 1 to show that a comparison notices."""

    def probabilities(self) -> str:
        """Brian2 equations of P_p and P_d."""
        reference = reference_of(self.rule)
        ltd = reference.P_d_two_sided if self.rule.pairing == "two-sided" else reference.P_d_post
        return f"P_p = {reference.P_p} : 1\nP_d = {ltd} : 1\n"

    @property
    def uses_rate(self) -> bool:
        """Whether the presynaptic rate occurs in P_p or P_d."""
        return re.search(r"\bfn\b", self.probabilities()) is not None

    def namespace(self) -> dict[str, Any]:
        """Constants of the equations, with units."""
        b2 = load_brian2()
        constants = {name: getattr(self.rule, name) for name in NUMBERS}
        constants |= {name: (getattr(self.rule, name) or 0.0) * b2.ms for name in TIMES}
        factor_p, factor_d = self.factors
        constants |= {"slots": self.slots, "factor_p": factor_p, "factor_d": factor_d}
        return constants | reference_of(self.rule).constants()


def plastic_synapses(pre: Any, post: Any, i: np.ndarray, j: np.ndarray, p: Plasticity, dt: float) -> Any:
    """Brian2 Synapses that count potentiations and depressions and sum changes; they carry no current.

    They connect neurons ``i`` of the Brian2 group ``pre`` with neurons ``j`` of ``post``; dt is in ms. The caller sets
    ``G``, ``fn`` and ``weight``, in the order of ``i`` and ``j``, each ``slots`` times. ``p.repeats`` is unused.
    """
    b2 = load_brian2()
    two_sided = p.rule.pairing == "two-sided"
    synapses = b2.Synapses(
        pre,
        post,
        MODEL + (TWO_SIDED_MODEL if two_sided else "") + p.probabilities(),
        on_pre=(TWO_SIDED_ON_PRE if two_sided else "") + ON_PRE,
        on_post=TWO_SIDED_ON_POST if two_sided else POST_ON_POST,
        namespace=p.namespace(),
        dt=dt * b2.ms,
    )
    synapses.connect(i=np.repeat(i, p.slots), j=np.repeat(j, p.slots))
    if two_sided:
        synapses.slot = np.tile(np.arange(p.slots), len(i))
    forget(synapses)
    return synapses


def forget(synapses: Any) -> None:
    """Set spikes and counts of :func:`plastic_synapses` as at the start of a presentation."""
    b2 = load_brian2()
    synapses.arrival = LONG_AGO * b2.second
    for name in ("spikes_seen", "trials", "potentiations", "depressions", "change"):
        setattr(synapses, name, 0)
    if "waiting" in synapses.variables:
        synapses.waiting = 0
        synapses.since = LONG_AGO * b2.second


def mini_batch_update(conductance: np.ndarray, events: np.ndarray, change: np.ndarray, p: STDPParameters) -> np.ndarray:
    """Eq. 4 for shared conductances: mean change per event times min(events, n_cap), clipped to [g_min, g_max].

    ``events`` and ``change`` are sums over all synapses that share a conductance.
    """
    mean = np.divide(change, events, out=np.zeros_like(change), where=events > 0)
    return np.clip(conductance + mean * np.minimum(events, p.n_cap), p.g_min, p.g_max)
