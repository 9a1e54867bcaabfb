"""The neuron of Eq. 1 as Brian2 equations with units: the reference for ``snn.neuron``."""

import brian2 as b2
import numpy as np

from snn.neuron import LIFParameters

# The NumPy target needs no compiler.
b2.prefs.codegen.target = "numpy"

LIF_EQUATIONS = """
dv/dt = time_scale * (a + b*v + c*current(t, i)) : volt
v_threshold : volt
"""


def lif_spikes(currents: np.ndarray, v_threshold: np.ndarray, p: LIFParameters, dt: float) -> np.ndarray:
    """Spikes of independent neurons, from v_init.

    Args:
        currents: input of each neuron at each step, float64 (T, N).
        v_threshold: in mV, (N,).
        p: constants of Eq. 1.
        dt: step of the Euler integration, in ms.

    Returns:
        bool (T, N).
    """
    steps, neurons = currents.shape
    namespace = {
        "time_scale": p.membrane_time_scale / b2.ms,
        "a": p.a * b2.mV,
        "b": p.b,
        "c": p.c * b2.mV,
        "v_reset": p.v_reset * b2.mV,
        "current": b2.TimedArray(currents, dt=dt * b2.ms),
    }
    group = b2.NeuronGroup(
        neurons,
        LIF_EQUATIONS,
        threshold="v > v_threshold",
        reset="v = v_reset",
        method="euler",
        dt=dt * b2.ms,
        namespace=namespace,
    )
    group.v = p.v_init * b2.mV
    group.v_threshold = v_threshold * b2.mV
    monitor = b2.SpikeMonitor(group)
    b2.Network(group, monitor).run(steps * dt * b2.ms)
    spikes = np.zeros((steps, neurons), dtype=bool)
    spikes[np.rint(monitor.t / b2.ms / dt).astype(int), monitor.i] = True
    return spikes
