"""Leaky integrate-and-fire neuron (paper, Eq. 1) on norse's ``lif_box`` step.

    dv/dt = s (a + b v + c I),    v > v_threshold:  spike, v <- v_reset

with v in mV, t in ms and I in the paper's (dimensionless) units. ``s`` is ``membrane_time_scale``. norse integrates
``dv/dt = tau_mem_inv (v_leak - v + i)``: the same equation with ``tau_mem_inv = -s b``, ``v_leak = -a / b`` and
``i = I c / (-b)``.
"""

import warnings

import torch
from torch import Tensor

with warnings.catch_warnings():
    # norse 1.1 scripts some functions at import; torch 2.13 and later call that deprecated.
    warnings.filterwarnings("ignore", message=".*torch.jit.script.*")
    from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters, lif_box_feed_forward_step
from snn.parameters import LIFParameters


def norse_parameters(p: LIFParameters, v_threshold: Tensor) -> LIFBoxParameters:
    """``p`` in norse's terms with time in ms; ``v_threshold`` (mV) broadcasts against the neurons."""

    def scalar(value: float) -> Tensor:
        return torch.tensor(value, dtype=v_threshold.dtype, device=v_threshold.device)

    return LIFBoxParameters(
        tau_mem_inv=scalar(1.0 / p.tau_mem),
        v_leak=scalar(p.v_leak),
        v_th=v_threshold,
        v_reset=scalar(p.v_reset),
        method="heaviside",
        # The layer resets: who fires is known only after cross-depth inhibition.
        reset_method=lambda z, v, reset, threshold: v,
    )


def cell_constants(neuron: LIFBoxParameters, v_init: float, dt: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What compiled engines take of a neuron, one number each: v_init, v_leak, v_reset in mV, and dt / tau."""
    return torch.full_like(neuron.v_leak, v_init), neuron.v_leak, neuron.v_reset, dt * neuron.tau_mem_inv


def integrate(depolarisation: Tensor, v: Tensor, p: LIFBoxParameters, dt: float) -> tuple[Tensor, Tensor]:
    """One norse step of ``dt`` ms without reset: whether v > v_threshold after it (bool), and v after it, in mV.

    ``depolarisation`` is ``I c/(-b)`` in mV, in the shape of ``v``.
    """
    crossed, state = lif_box_feed_forward_step(depolarisation, LIFBoxFeedForwardState(v=v), p, dt)
    return crossed.bool(), state.v
