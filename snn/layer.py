"""A spiking convolution: shared conductances, a sheet of LIF neurons per map, cross-depth inhibition (paper, 4.2).

A presynaptic spike at step k holds its synapse open for a pulse of steps k .. k+w-1 (a new spike restarts it), and
the drive of a neuron is ``I = gain_c sum_j G_cj s_j`` with ``gain`` the synaptic current per unit of conductance. The
layer's spikes act on the next layer in the same step. Padding is silence.

With inhibition on, of the maps that cross threshold at one place (x, y) in one step only the one furthest above its
threshold fires (equal: seeded draw); every map there goes to v_reset, and all but the winner ignore input for
``inhibition_time``.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from snn.encode import whole_steps
from snn.errors import check
from snn.neuron import LIFBoxParameters, LIFParameters, integrate, norse_parameters

DRIVE_CHUNK = 2**19
"""Elements of drive computed at once: few enough to stay in a CPU's cache, which is six times faster than all."""


@dataclass(frozen=True)
class LayerParameters:
    """Geometry and synapses of a spiking convolution."""

    maps: int
    """Feature maps C_out."""
    kernel_size: int = 3
    """Side of the square kernel, in pixels (paper 4.2)."""
    stride: int = 1
    """Step of the kernel, in pixels."""
    padding: int = 1
    """Silent border, in pixels."""
    pulse_width: float = 15.0
    """Time w that a presynaptic spike keeps its synapse open, in ms (ParallelSpikeSim 2019: 10 to 25)."""
    inhibition_time: float = 10.0
    """Time for which maps that lost ignore their input, in ms (ours)."""

    def __post_init__(self) -> None:
        for name in ("maps", "kernel_size", "stride"):
            check(getattr(self, name) >= 1, f"layer {name} = {getattr(self, name)}: must be 1 or more")
        check(
            0 <= self.padding < self.kernel_size,
            f"layer padding {self.padding}: expected 0 to kernel_size - 1",
        )

    def steps(self, dt: float) -> tuple[int, int]:
        """(pulse, inhibition) in steps of ``dt`` ms."""
        pulse, inhibition = whole_steps(self.pulse_width, dt), whole_steps(self.inhibition_time, dt)
        check(pulse >= 1, f"pulse_width {self.pulse_width} ms: expected a positive multiple of dt = {dt} ms")
        check(inhibition >= 0, f"inhibition_time {self.inhibition_time} ms: expected a multiple of dt = {dt} ms")
        return pulse, inhibition


class SheetState(NamedTuple):
    """Neurons of a layer between two steps; both (B, C, H, W)."""

    v: Tensor
    """Membrane potential in mV."""
    blocked: Tensor
    """Steps, int16, for which the neuron still ignores input."""


@dataclass(frozen=True)
class SpikingConv2d:
    """A layer with its learned values; all methods are pure."""

    conductance: Tensor
    """(C_out, C_in, kH, kW)."""
    gain: Tensor
    """i_syn of each map (C_out,): current per unit of conductance."""
    v_threshold: Tensor
    """Threshold of each map (C_out,), in mV."""
    geometry: LayerParameters
    lif: LIFParameters
    dt: float
    """Time step, in ms."""

    def simulate(self, pre_spikes: Tensor, *, inhibition: bool, generator: torch.Generator | None = None) -> Tensor:
        """Spikes of one presentation, from v_init.

        Args:
            pre_spikes: bool (T, B, C_in, H, W).
            inhibition: cross-depth inhibition on (learning) or off (learned layers).
            generator: draws between maps with equal potential; needed with inhibition.

        Returns:
            bool (T, B, C_out, H_out, W_out).
        """
        return self.simulate_drive(self.convolve(pre_spikes), inhibition=inhibition, generator=generator)

    def convolve(self, pre_spikes: Tensor) -> Iterator[Tensor]:
        """``sum_j G_cj s_j`` of each step in turn, before the gain: (B, C_out, H_out, W_out).

        All steps share one buffer: copy what is to be kept, as :func:`snn.calibrate.sample_drive` does.
        """
        pulse, _ = self.geometry.steps(self.dt)
        p = self.geometry
        height, width = ((n + 2 * p.padding - p.kernel_size) // p.stride + 1 for n in pre_spikes.shape[-2:])
        batch = pre_spikes.shape[1]
        # As many images at a time, of one or several steps, as stay in a CPU's cache; one buffer serves all.
        chunk = max(1, DRIVE_CHUNK // (p.maps * height * width))
        steps = max(1, chunk // batch)
        like = {"dtype": self.conductance.dtype, "device": pre_spikes.device}
        buffer = torch.empty((steps * batch, p.maps, height, width), **like)
        for group in hold(pre_spikes, pulse).split(steps):
            drive = buffer[: len(group) * batch]
            for pulses, out in zip(group.flatten(0, 1).split(chunk), drive.split(chunk), strict=True):
                out.copy_(conv2d(pulses.to(drive.dtype), self.conductance, stride=p.stride, padding=p.padding))
            yield from drive.unflatten(0, (len(group), batch))

    def simulate_drive(
        self, drives: Iterable[Tensor], *, inhibition: bool, generator: torch.Generator | None = None
    ) -> Tensor:
        """As :meth:`simulate`, from what :meth:`convolve` yields (the same for any gain and threshold)."""
        per_map = (1, -1, 1, 1)
        neuron = norse_parameters(self.lif, self.v_threshold.reshape(per_map))
        scale = (self.gain * self.lif.millivolts_per_current).reshape(per_map)
        _, blocked_steps = self.geometry.steps(self.dt)
        state, spikes = None, []
        for drive in drives:
            if state is None:
                state = SheetState(torch.full_like(drive, self.lif.v_init), torch.zeros_like(drive, dtype=torch.int16))
            if inhibition:
                fired, state = inhibited_step(drive * scale, state, neuron, self.dt, blocked_steps, generator)
            else:
                fired, state = free_step(drive * scale, state, neuron, self.dt)
            spikes.append(fired)
        return torch.stack(spikes)

    def to(self, device: torch.device | str) -> "SpikingConv2d":
        """A copy on ``device``."""
        return self.with_values(
            conductance=self.conductance.to(device),
            gain=self.gain.to(device),
            v_threshold=self.v_threshold.to(device),
        )

    def with_values(self, **values: Tensor) -> "SpikingConv2d":
        """A copy with ``conductance``, ``gain`` or ``v_threshold`` replaced."""
        return replace(self, **values)


def feed_forward(layers: Iterable[SpikingConv2d], spikes: Tensor) -> Tensor:
    """Spikes of the last of ``layers``, inhibition off, for input bool (T, B, C, H, W); the input if there is none."""
    for layer in layers:
        spikes = layer.simulate(spikes, inhibition=False)
    return spikes


def hold(spikes: Tensor, steps: int) -> Tensor:
    """Box pulses: true where a spike occurred at this step or one of the ``steps - 1`` before; bool (T, ...)."""
    held = spikes.clone()
    for delay in range(1, min(steps, len(spikes))):
        held[delay:] |= spikes[:-delay]
    return held


def free_step(depolarisation: Tensor, state: SheetState, p: LIFBoxParameters, dt: float) -> tuple[Tensor, SheetState]:
    """One step without inhibition: every neuron that crosses threshold fires. ``depolarisation`` in mV."""
    crossed, v = integrate(depolarisation, state.v, p, dt)
    return crossed, SheetState(torch.where(crossed, p.v_reset, v), state.blocked)


def inhibited_step(
    depolarisation: Tensor,
    state: SheetState,
    p: LIFBoxParameters,
    dt: float,
    blocked_steps: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, SheetState]:
    """One step with cross-depth inhibition: at most one map fires at a place. ``depolarisation`` in mV."""
    crossed, v = integrate(depolarisation.masked_fill(state.blocked > 0, 0.0), state.v, p, dt)
    blocked = (state.blocked - 1).clamp(min=0)
    place = crossed.any(dim=1, keepdim=True)
    if not place.any():
        return crossed, SheetState(v, blocked)
    winner = pick_winner(crossed, v - p.v_th, generator)
    v = torch.where(place, p.v_reset, v)
    blocked = blocked.masked_fill(place & ~winner, blocked_steps)
    return winner, SheetState(v, blocked)


def pick_winner(crossed: Tensor, margin: Tensor, generator: torch.Generator | None) -> Tensor:
    """Of the maps that crossed at each place, the one with the largest margin above threshold.

    Args:
        crossed: bool (B, C, H, W).
        margin: v - v_threshold in mV, the same shape.
        generator: draws where several maps share the largest margin.

    Returns:
        bool (B, C, H, W): exactly one map where any crossed, none elsewhere.
    """
    score = margin.masked_fill(~crossed, -torch.inf)
    best = crossed & (score == score.amax(dim=1, keepdim=True))
    b, y, x = (best.sum(dim=1) > 1).nonzero().T
    if len(b):
        tied = best[b, :, y, x]
        drawn = torch.rand(tied.shape, generator=generator, device=tied.device).masked_fill(~tied, -1.0).argmax(dim=1)
        best[b, :, y, x] = torch.nn.functional.one_hot(drawn, best.shape[1]).bool()
    return best
