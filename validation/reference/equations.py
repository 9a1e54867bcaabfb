"""Closed forms of Eq. 1, magnitudes of Eq. 2 and the normalised rate of Eq. 5 in NumPy, without the code under test."""

import numpy as np

from snn.parameters import LIFParameters, STDPParameters


def euler_interval(current: np.ndarray, v_threshold: np.ndarray, p: LIFParameters, dt: float) -> np.ndarray:
    """Steps from a reset to the next spike at constant current when Eq. 1 is integrated by Euler's method.

    The potential after n steps is ``v_inf + (v_reset - v_inf) (1 + s b dt)^n``; the spike is at the first n at which
    it exceeds the threshold. Arguments broadcast; dt in ms. Returns float64, ``inf`` where the neuron stays silent.
    """
    v_inf = (p.a + p.c * np.asarray(current, dtype=np.float64)) / -p.b
    decay = 1 + p.membrane_time_scale * p.b * dt
    with np.errstate(divide="ignore", invalid="ignore"):
        steps = np.log((v_inf - v_threshold) / (v_inf - p.v_reset)) / np.log(decay)
    return np.where(v_inf > v_threshold, np.floor(steps) + 1, np.inf)


def interval(current: np.ndarray, v_threshold: np.ndarray, p: LIFParameters) -> np.ndarray:
    """Closed-form inter-spike interval of Eq. 1 at constant current, in ms; ``inf`` where the neuron stays silent."""
    v_inf = (p.a + p.c * np.asarray(current, dtype=np.float64)) / -p.b
    with np.errstate(divide="ignore", invalid="ignore"):
        time = np.log((v_inf - p.v_reset) / (v_inf - v_threshold)) / (p.membrane_time_scale * -p.b)
    return np.where(v_inf > v_threshold, time, np.inf)


def normalised_rate(rate: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """fn of Eq. 5 from rates in Hz."""
    f_min, f_max = limits
    return np.clip((np.asarray(rate, dtype=np.float64) - f_min) / (f_max - f_min), 0, 1)


def magnitudes(conductance: np.ndarray, p: STDPParameters) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 2: dG_p and dG_d, both positive."""
    g = (np.asarray(conductance, dtype=np.float64) - p.g_min) / (p.g_max - p.g_min)
    return p.alpha_p * np.exp(-p.beta_p * g), p.alpha_d * np.exp(-p.beta_d * (1 - g))
