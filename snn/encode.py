"""Images to spike trains (paper, sections 4.2 and 4.3).

An intensity x in [0, 1] becomes a train of rate F = f_min + x (f_max - f_min). A regular train holds exactly
``floor(F T)`` spikes in a presentation of duration T; a Poisson train draws each step independently.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from snn.errors import check


@dataclass(frozen=True)
class Encoding:
    """How intensities become spikes, and the time grid of a presentation."""

    f_min: float = 10.0
    """Rate of intensity 0, in Hz (paper 4.2; ParallelSpikeSim 2019)."""
    f_max: float = 30.0
    """Rate of intensity 1, in Hz (paper 4.2; ParallelSpikeSim 2019)."""
    presentation: float = 300.0
    """Duration T of one image, in ms (ParallelSpikeSim 2019)."""
    dt: float = 2.5
    """Time step, in ms (ours: against 0.25 ms it changes the spike count of 0.8 % of the neurons by one, and of 5.5 %
    at a lowered threshold)."""
    kind: Literal["regular", "poisson"] = "regular"
    """Regular trains with exact spike counts (paper 4.3: floor(F T)) or Poisson trains."""

    def __post_init__(self) -> None:
        check(
            0 <= self.f_min < self.f_max,
            f"encoding rates {self.f_min} to {self.f_max} Hz: expected 0 <= f_min < f_max",
        )
        check(
            self.dt > 0 and math.isfinite(self.presentation) and whole_steps(self.presentation, self.dt) >= 1,
            f"presentation {self.presentation} ms with dt {self.dt} ms: expected a whole number of steps, at least one",
        )
        check(
            self.f_max * self.dt <= 1000,
            f"f_max {self.f_max} Hz with dt {self.dt} ms: more than one spike a step; lower f_max or dt",
        )

    @property
    def n_steps(self) -> int:
        """Steps in a presentation."""
        return whole_steps(self.presentation, self.dt)

    def rate(self, intensity: Tensor) -> Tensor:
        """F in Hz of intensities in [0, 1], any shape."""
        return self.f_min + intensity * (self.f_max - self.f_min)


def whole_steps(duration: float, dt: float) -> int:
    """``duration / dt`` (both ms) as an integer, or -1 if it is not one."""
    if not (dt > 0 and math.isfinite(duration / dt)):
        return -1
    steps = round(duration / dt)
    return steps if math.isclose(steps * dt, duration, rel_tol=1e-9, abs_tol=1e-9) else -1


def encode(images: Tensor, p: Encoding, generator: torch.Generator) -> Tensor:
    """Spike trains of uint8 images.

    Args:
        images: uint8 (B, C, H, W).
        p: rates and time grid.
        generator: draws phases or Poisson spikes; on the device of ``images``.

    Returns:
        bool (T, B, C, H, W), at most one spike a step.
    """
    check(images.dtype == torch.uint8, f"images are {images.dtype}, expected uint8 values 0 to 255")
    rates = p.rate(images.to(torch.float64) / 255)
    if p.kind == "poisson":
        draws = torch.rand((p.n_steps, *images.shape), generator=generator, device=images.device)
        return draws < (rates * (p.dt / 1000)).to(draws.dtype)
    # A circular shift in time gives every pixel its own phase and keeps floor(F T) spikes whatever the phase.
    shift = torch.randint(p.n_steps, images.shape, generator=generator, device=images.device)
    return regular_trains(rates, p, shift)


def regular_trains(rates: Tensor, p: Encoding, shift: Tensor | int = 0) -> Tensor:
    """Regular trains: the n-th spike lies in the step in which F t reaches n, so T holds floor(F T) spikes.

    Args:
        rates: F in Hz, float64, any shape.
        p: time grid.
        shift: int64 steps, broadcastable to ``rates``: the train is delayed by that much, what leaves at the end of
            the presentation comes in again at its start. 0 is the paper's train.

    Returns:
        bool (T, *rates.shape).
    """
    per_step = rates * (p.dt / 1000)
    # Without the margin, rounding would lose the last spike where F T is a whole number, as 20 Hz x 300 ms.
    margin = 1e-9
    trains = []
    for step in range(p.n_steps):
        start = torch.as_tensor((step - shift) % p.n_steps, device=rates.device)
        before, after = per_step * start, per_step * (start + 1)
        trains.append(after.add_(margin).floor_() > before.add_(margin).floor_())
    return torch.stack(trains)
