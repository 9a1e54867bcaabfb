"""Eq. 1 and regular spike trains as Brian2 equations with units."""

from types import ModuleType
from typing import Any

import numpy as np

from snn.parameters import LIFParameters
from snn.runtime.errors import UserError

LIF_EQUATION = "dv/dt = time_scale*(a + b*v + c*I) : volt"
"""Eq. 1; the model that uses it defines the current I, dimensionless as in the paper."""

PULSE = "int(t < arrival + pulse_width - dt/2)"
"""1 while the box pulse of the presynaptic spike at ``arrival`` is open; half a step keeps rounding out."""

LONG_AGO = -1e6
"""Time of the last spike of a neuron that has not fired yet, in seconds."""


def load_brian2() -> ModuleType:
    """Brian2 on its NumPy target; a :class:`UserError` where it is not installed."""
    try:
        import brian2
    except ImportError as error:
        raise UserError(f"Brian2 is missing ({error}); install it with: pip install -e '.[validation]'") from error
    # It needs no compiler, and rounds as IEEE arithmetic does: compiled targets are built with -ffast-math.
    brian2.prefs.codegen.target = "numpy"
    return brian2


def lif_namespace(p: LIFParameters) -> dict[str, Any]:
    """The constants of :data:`LIF_EQUATION` and of its reset, with units."""
    b2 = load_brian2()
    return {
        "time_scale": p.membrane_time_scale / b2.ms,
        "a": p.a * b2.mV,
        "b": p.b,
        "c": p.c * b2.mV,
        "v_reset": p.v_reset * b2.mV,
    }


def lif_spikes(currents: np.ndarray, v_threshold: np.ndarray, p: LIFParameters, dt: float) -> np.ndarray:
    """Spikes, bool (T, N), of independent neurons with given currents, float64 (T, N), from v_init.

    Thresholds (N,) are in mV, the step dt of the Euler integration in ms.
    """
    b2 = load_brian2()
    steps, neurons = currents.shape
    namespace = {"current": b2.TimedArray(currents, dt=dt * b2.ms)}
    group = _neurons(neurons, "I = current(t, i) : 1", v_threshold, p, dt, namespace)
    monitor = b2.SpikeMonitor(group)
    b2.Network(group, monitor).run(steps * dt * b2.ms, namespace={})
    return spike_array(monitor, steps, dt)


def _neurons(
    neurons: int, current: str, v_threshold: np.ndarray, p: LIFParameters, dt: float, namespace: dict[str, Any]
) -> Any:
    """Brian2 group of neurons at v_init, each with its threshold in mV; ``current``: the equation of I."""
    b2 = load_brian2()
    group = b2.NeuronGroup(
        neurons,
        f"{LIF_EQUATION}\n{current}\nv_threshold : volt (constant)",
        threshold="v > v_threshold",
        reset="v = v_reset",
        method="euler",
        dt=dt * b2.ms,
        namespace=lif_namespace(p) | namespace,
    )
    group.v = p.v_init * b2.mV
    group.v_threshold = v_threshold * b2.mV
    return group


def train_response_spikes(
    rates: np.ndarray,
    drives: np.ndarray,
    v_threshold: np.ndarray,
    pulse_width: float,
    p: LIFParameters,
    dt: float,
    duration: float,
) -> np.ndarray:
    """Spikes, bool (T, N, R), of neurons that a regular train drives through one synapse each, from v_init.

    Every train of the ``rates`` (R,), in Hz, drives all N neurons. Each of these has its current while the synapse is
    open (``drives``) and its threshold in mV. Times are in ms.
    """
    b2 = load_brian2()
    step = {"dt": dt * b2.ms}
    # The n-th spike lies in the step in which rate * t reaches n; the margin is for rates that reach it exactly.
    trains = b2.NeuronGroup(
        len(rates),
        "rate : Hz (constant)",
        threshold="floor(rate*(t + dt) + 1e-9) > floor(rate*t + 1e-9)",
        reset="",
        **step,
    )
    trains.rate = rates * b2.Hz
    neurons = _neurons(len(drives) * len(rates), "I : 1", np.repeat(v_threshold, len(rates)), p, dt, {})
    synapses = b2.Synapses(
        trains,
        neurons,
        f"""
        drive : 1 (constant)
        arrival : second
        I_post = drive*{PULSE} : 1 (summed)
        """,
        on_pre="arrival = t",
        namespace={"pulse_width": pulse_width * b2.ms},
        **step,
    )
    synapses.connect(i=np.tile(np.arange(len(rates)), len(drives)), j=np.arange(len(neurons)))
    synapses.drive = np.repeat(drives, len(rates))
    synapses.arrival = LONG_AGO * b2.second
    monitor = b2.SpikeMonitor(neurons)
    network = b2.Network(trains, neurons, synapses, monitor)
    # A spike acts on the current of its own step.
    trains.thresholder["spike"].when = "inputs"
    synapses.pre.when = "arrivals"
    synapses.summed_updaters["I_post"].when = "currents"
    network.schedule = ["start", "inputs", "arrivals", "currents", "groups", "thresholds", "synapses", "resets", "end"]
    steps = round(duration / dt)
    network.run(steps * dt * b2.ms, namespace={})
    return spike_array(monitor, steps, dt).reshape(steps, len(drives), len(rates))


def spike_array(monitor: Any, steps: int, dt: float, start: float = 0.0) -> np.ndarray:
    """Spikes of a Brian2 SpikeMonitor from ``start`` (ms) on, as bool (steps, N); ``dt`` in ms."""
    spikes = np.zeros((steps, len(monitor.source)), dtype=bool)
    step = np.rint((1000 * np.asarray(monitor.t) - start) / dt).astype(int)
    seen = step >= 0
    spikes[step[seen], np.asarray(monitor.i)[seen]] = True
    return spikes
