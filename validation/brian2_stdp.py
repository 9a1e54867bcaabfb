"""The learning rule (Eq. 2, 4 and 5) as Brian2 synapses with units.

The deterministic rule is the limit gamma = 1, tau -> infinity. With pairing ``two-sided`` a postsynaptic spike waits
at its synapse for the next presynaptic one; as several may wait, each synapse exists ``slots`` times and the
copies take the postsynaptic spikes in turn.
"""

from typing import Any

import numpy as np

from snn.parameters import STDPParameters
from validation.brian2_neuron import LONG_AGO, load_brian2

PLASTICITY = """
G : 1
fn : 1
weight : integer (constant)
arrival : second
lag = t - arrival : second
g = (G - g_min)/(g_max - g_min) : 1
dG_p = alpha_p*exp(-beta_p*g) : 1
dG_d = alpha_d*exp(-beta_d*(1 - g)) : 1
P_p = gamma_p*exp(-lag/(tau_p*(1 + phi_p*fn))) : 1
in_window = int(lag < ltp_window + dt/2) : 1
spikes_seen : integer
trials : 1
potentiations : 1
depressions : 1
change : 1
"""
"""``lag`` is dt of Eq. 5; ``fn`` the normalised presynaptic rate; ``weight`` says which shared conductance G is."""

POST_MODEL = """
P_d = gamma_d*exp(clip((lag - T_d)/(tau_d*(1 + phi_d*fn)), -700, 0)) : 1
"""
POST_ON_POST = """
up = in_window*int(rand() < P_p)
down = (1 - in_window)*int(rand() < P_d)
trials += 1
potentiations += up
depressions += down
change += up*dG_p - down*dG_d
"""
TWO_SIDED_MODEL = """
slot : integer (constant)
waiting : 1
since : second
P_d = gamma_d*exp((since - t)/(tau_d*(1 + phi_d*fn))) : 1
"""
TWO_SIDED_ON_PRE = """
down = waiting*int(rand() < P_d)
depressions += down
change -= down*dG_d
waiting = 0
"""
TWO_SIDED_ON_POST = """
mine = int(spikes_seen % slots == slot)
up = mine*in_window*int(rand() < P_p)
spikes_seen += 1
trials += mine
potentiations += up
change += up*dG_p
since = mine*t + (1 - mine)*since
waiting = clip(waiting + mine, 0, 1)
"""
ON_PRE = "arrival = t"


def plastic_synapses(
    pre: Any, post: Any, i: np.ndarray, j: np.ndarray, p: STDPParameters, dt: float, slots: int = 1
) -> Any:
    """Brian2 Synapses that count potentiations and depressions and sum changes; they carry no current.

    ``G``, ``fn`` and ``weight`` are for the caller to set, in the order of ``i`` and ``j``, each ``slots`` times.

    Args:
        pre, post: Brian2 groups.
        i, j: which neurons of them each synapse connects.
        p: rule and pairing, with ``ltd_delay`` set.
        dt: time step in ms.
        slots: with pairing ``two-sided`` at least as many as postsynaptic spikes wait at a synapse, else 1.
    """
    b2 = load_brian2()
    certain, plain = p.rule == "deterministic", p.rule != "fd"
    endless = 1e30 * b2.second
    namespace = {
        "alpha_p": p.alpha_p,
        "alpha_d": p.alpha_d,
        "beta_p": p.beta_p,
        "beta_d": p.beta_d,
        "gamma_p": 1.0 if certain else p.gamma_p,
        "gamma_d": 1.0 if certain else p.gamma_d,
        "phi_p": 0.0 if plain else p.phi_p,
        "phi_d": 0.0 if plain else p.phi_d,
        "tau_p": endless if certain else p.tau_p * b2.ms,
        "tau_d": endless if certain else p.tau_d * b2.ms,
        "ltp_window": p.ltp_window * b2.ms,
        "T_d": 0 * b2.ms if certain else p.ltd_delay * b2.ms,
        "g_min": p.g_min,
        "g_max": p.g_max,
        "slots": slots,
    }
    two_sided = p.pairing == "two-sided"
    synapses = b2.Synapses(
        pre,
        post,
        PLASTICITY + (TWO_SIDED_MODEL if two_sided else POST_MODEL),
        on_pre=(TWO_SIDED_ON_PRE if two_sided else "") + ON_PRE,
        on_post=TWO_SIDED_ON_POST if two_sided else POST_ON_POST,
        namespace=namespace,
        dt=dt * b2.ms,
    )
    synapses.connect(i=np.repeat(i, slots), j=np.repeat(j, slots))
    if two_sided:
        synapses.slot = np.tile(np.arange(slots), len(i))
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

    Args:
        conductance: before the update, any shape.
        events, change: sums over all synapses that share it, the same shape.
        p: the rule.
    """
    mean = np.divide(change, events, out=np.zeros_like(change), where=events > 0)
    return np.clip(conductance + mean * np.minimum(events, p.n_cap), p.g_min, p.g_max)
