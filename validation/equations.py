"""The paper's equations in NumPy, written anew: nothing here uses the code that is compared with them."""

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


def probabilities(lag: np.ndarray, fn: np.ndarray, p: STDPParameters) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 5: P_p and P_d of one pair of spikes.

    Args:
        lag: dt = t_post - t_pre in ms; ``inf``: there was no presynaptic spike before, ``-inf``: there is none after.
        fn: normalised presynaptic rate.
        p: rule and pairing, with ``ltd_delay`` set.
    """
    lag, fn = np.broadcast_arrays(np.asarray(lag, dtype=np.float64), np.asarray(fn, dtype=np.float64))
    phi_p, phi_d = (p.phi_p, p.phi_d) if p.rule == "fd" else (0.0, 0.0)
    in_window = (lag > -1e-6) & (lag < p.ltp_window + 1e-6)
    causal = np.where(in_window, lag, 0.0)
    ltp = in_window * p.gamma_p * np.exp(-causal / (p.tau_p * (1 + phi_p * fn)))
    if p.pairing == "post":
        # What precedes the postsynaptic spike by more than the window, or never came, is too late to have caused it.
        depressed = (lag > 0) & ~in_window
        with np.errstate(over="ignore"):
            ltd = p.gamma_d * np.minimum(1.0, np.exp((lag - p.ltd_delay) / (p.tau_d * (1 + phi_d * fn))))
    else:
        depressed = (lag < -1e-6) & np.isfinite(lag)
        ltd = p.gamma_d * np.exp(np.where(depressed, lag, 0.0) / (p.tau_d * (1 + phi_d * fn)))
    if p.rule == "deterministic":
        return in_window.astype(np.float64), depressed.astype(np.float64)
    return ltp, np.where(depressed, ltd, 0.0)
