"""Leaky integrate-and-fire neuron (paper, Eq. 1) on norse's ``lif_box`` step.

    dv/dt = s (a + b v + c I),    v > v_threshold:  spike, v <- v_reset

with v in mV, t in ms and I in the paper's (dimensionless) units. ``s`` is ``membrane_time_scale``. norse integrates
``dv/dt = tau_mem_inv (v_leak - v + i)``: the same equation with ``tau_mem_inv = -s b``, ``v_leak = -a / b`` and
``i = I c / (-b)``.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from snn.errors import check

with warnings.catch_warnings():
    # norse 1.1 scripts some functions at import; torch 2.13 and later call that deprecated.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    from norse.torch.functional.lif_box import (
        LIFBoxFeedForwardState,
        LIFBoxParameters,
        lif_box_feed_forward_step,
    )


@dataclass(frozen=True)
class LIFParameters:
    """Constants of Eq. 1."""

    a: float = -6.77
    """Constant term of Eq. 1, in mV per unit time (ParallelSpikeSim 2019)."""
    b: float = -0.0989
    """Leak of Eq. 1, per unit time (ParallelSpikeSim 2019)."""
    c: float = 0.314
    """Gain of the current in Eq. 1, in mV per unit time and current (ParallelSpikeSim 2019)."""
    membrane_time_scale: float = 0.04
    """Units of Eq. 1's time per ms (ParallelSpikeSim 2019): the membrane time constant is 253 ms."""
    v_threshold: float = -60.2
    """Spiking threshold, in mV (ParallelSpikeSim 2019)."""
    v_reset: float = -74.7
    """Potential after a spike, in mV (ParallelSpikeSim 2019)."""
    v_init: float = -70.0
    """Potential at the start of a presentation, in mV (ParallelSpikeSim 2019)."""

    def __post_init__(self) -> None:
        check(self.b < 0, f"LIF b = {self.b}: the leak must be negative")
        check(
            self.membrane_time_scale > 0,
            f"LIF membrane_time_scale = {self.membrane_time_scale}: must be positive",
        )
        check(
            self.v_reset < self.v_leak < self.v_threshold,
            f"LIF potentials: expected v_reset {self.v_reset} < rest {self.v_leak:.2f} < v_threshold "
            f"{self.v_threshold} mV, or the neuron fires without input",
        )

    @property
    def v_leak(self) -> float:
        """Resting potential -a/b, in mV."""
        return -self.a / self.b

    @property
    def tau_mem(self) -> float:
        """Membrane time constant, in ms."""
        return -1.0 / (self.b * self.membrane_time_scale)

    @property
    def millivolts_per_current(self) -> float:
        """Steady depolarisation per unit of current, c/(-b), in mV."""
        return -self.c / self.b

    def interspike_interval(self, current: float, v_threshold: float | None = None) -> float:
        """Closed-form interval between spikes, in ms, at a constant current; ``inf`` below the rheobase."""
        threshold = self.v_threshold if v_threshold is None else v_threshold
        v_inf = self.v_leak + self.millivolts_per_current * current
        if v_inf <= threshold:
            return math.inf
        return self.tau_mem * math.log((v_inf - self.v_reset) / (v_inf - threshold))


def norse_parameters(p: LIFParameters, v_threshold: Tensor) -> LIFBoxParameters:
    """``p`` in norse's terms with time in ms; ``v_threshold`` (mV) broadcasts against the neurons."""
    like = {"dtype": v_threshold.dtype, "device": v_threshold.device}
    return LIFBoxParameters(
        tau_mem_inv=torch.tensor(1.0 / p.tau_mem, **like),
        v_leak=torch.tensor(p.v_leak, **like),
        v_th=v_threshold,
        v_reset=torch.tensor(p.v_reset, **like),
        method="heaviside",
        # The layer resets: who fires is known only after cross-depth inhibition.
        reset_method=lambda z, v, reset, threshold: v,
    )


def integrate(depolarisation: Tensor, v: Tensor, p: LIFBoxParameters, dt: float) -> tuple[Tensor, Tensor]:
    """One norse step without reset.

    Args:
        depolarisation: ``I c/(-b)`` in mV, the shape of ``v``.
        v: membrane potentials, in mV.
        p: from :func:`norse_parameters`.
        dt: step in ms.

    Returns:
        crossed (bool): v > v_threshold after the step; and v after the step, in mV.
    """
    crossed, state = lif_box_feed_forward_step(depolarisation, LIFBoxFeedForwardState(v=v), p, dt)
    return crossed.bool(), state.v
