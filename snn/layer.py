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
from torch.nn.functional import unfold

from snn.engines.events import simulate_events
from snn.neuron import LIFBoxParameters, integrate, norse_parameters
from snn.parameters import LayerParameters, LIFParameters
from snn.runtime.random import TIES, draw_bits, event_key, image_key
from snn.spikes import SpikeEvents, Spikes

DRIVE_CHUNK = 2**19
"""Elements of drive computed at once: few enough to stay in a CPU's cache, which is six times faster than all."""


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

    def simulate(self, pre: Spikes, *, inhibition: bool, seeds: Tensor | None = None) -> Spikes:
        """Spikes of one presentation, from v_init.

        On a CPU the event-driven engine simulates, on other devices :meth:`simulate_dense`; spikes are the same.

        Args:
            pre: bool (T, B, C_in, H, W), or events.
            inhibition: cross-depth inhibition on (learning) or off (learned layers).
            seeds: of the images, for draws between maps with equal potential; needed with inhibition.

        Returns:
            bool (T, B, C_out, H_out, W_out), or events if ``pre`` is.
        """
        if isinstance(pre, SpikeEvents):
            return simulate_events(self, pre, inhibition=inhibition, seeds=seeds)
        if pre.device.type == "cpu":
            events = SpikeEvents.from_dense(pre)
            return simulate_events(self, events, inhibition=inhibition, seeds=seeds).to_dense()
        return self.simulate_dense(pre, inhibition=inhibition, seeds=seeds)

    def simulate_dense(self, pre_spikes: Tensor, *, inhibition: bool, seeds: Tensor | None = None) -> Tensor:
        """:meth:`simulate` on bool (T, B, C_in, H, W), with norse's step for all neurons at once, on any device."""
        return self.simulate_drive(self.convolve(pre_spikes), inhibition=inhibition, seeds=seeds)

    def convolve(self, pre_spikes: Tensor) -> Iterator[Tensor]:
        """``sum_j G_cj s_j`` of each step in turn, before the gain: (B, C_out, H_out, W_out).

        All steps share one buffer: copy what is to be kept, as :func:`snn.calibration.sample_drive` does.
        """
        pulse, _ = self.geometry.steps(self.dt)
        p = self.geometry
        height, width = self.output_size(*pre_spikes.shape[-2:])
        batch = pre_spikes.shape[1]
        # As many images at a time, of one or several steps, as stay in a CPU's cache; one buffer serves all.
        chunk = max(1, DRIVE_CHUNK // (p.maps * height * width))
        steps = max(1, chunk // batch)
        conductance = self.exact_conductance()
        buffer = conductance.new_empty((steps * batch, p.maps, height, width))
        for group in hold(pre_spikes, pulse).split(steps):
            drive = buffer[: len(group) * batch]
            for pulses, out in zip(group.flatten(0, 1).split(chunk), drive.split(chunk), strict=True):
                # A library's convolution may transform its input (Winograd), which rounds; these sums are exact.
                fields = unfold(pulses.to(drive.dtype), p.kernel_size, padding=p.padding, stride=p.stride)
                out.copy_((conductance.flatten(1) @ fields).unflatten(2, (height, width)))
            yield from drive.unflatten(0, (len(group), batch))

    def simulate_drive(self, drives: Iterable[Tensor], *, inhibition: bool, seeds: Tensor | None = None) -> Tensor:
        """As :meth:`simulate_dense`, from what :meth:`convolve` yields (the same for any gain and threshold)."""
        neuron, scale = self.neurons()
        _, blocked_steps = self.geometry.steps(self.dt)
        key = image_key(seeds, TIES) if inhibition else None
        state, spikes = None, []
        for step, drive in enumerate(drives):
            if state is None:
                state = SheetState(torch.full_like(drive, self.lif.v_init), torch.zeros_like(drive, dtype=torch.int16))
            if inhibition:
                fired, state = inhibited_step(drive * scale, state, neuron, self.dt, blocked_steps, key, step)
            else:
                fired, state = free_step(drive * scale, state, neuron, self.dt)
            spikes.append(fired)
        return torch.stack(spikes)

    def neurons(self) -> tuple[LIFBoxParameters, Tensor]:
        """Norse's parameters, and mV per unit of drive before the gain; maps in the second of four dimensions."""
        per_map = (1, -1, 1, 1)
        neuron = norse_parameters(self.lif, self.v_threshold.reshape(per_map))
        return neuron, (self.gain * self.lif.millivolts_per_current).reshape(per_map)

    def exact_conductance(self) -> Tensor:
        """Conductances rounded to a grid (2^-15 for sums of up to 512 in float32) on which every sum of them is exact.

        Then a drive does not depend on the order of its sum, and engines, devices and batches agree to the last bit.
        """
        return round_for_exact_sums(self.conductance, self.conductance[0].numel() * self.conductance.abs().amax())

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(H_out, W_out) for presynaptic maps of ``height`` x ``width``."""
        p = self.geometry
        return tuple((n + 2 * p.padding - p.kernel_size) // p.stride + 1 for n in (height, width))

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


def round_for_exact_sums(values: Tensor, largest: Tensor) -> Tensor:
    """``values`` rounded to the finest power-of-two grid on which sums of up to ``largest`` (a number) are exact."""
    digits = {torch.float32: 24, torch.float64: 53}[values.dtype]
    grid = torch.exp2(torch.ceil(torch.log2(largest.double().clamp(min=1e-30))) - digits).to(values.dtype)
    return torch.round(values / grid) * grid


def feed_forward(layers: Iterable[SpikingConv2d], spikes: Spikes) -> Spikes:
    """Spikes of the last of ``layers``, inhibition off, for input bool (T, B, C, H, W) or events; in the same form."""
    dense = not isinstance(spikes, SpikeEvents)
    if dense and spikes.device.type == "cpu":
        spikes = SpikeEvents.from_dense(spikes)
    for layer in layers:
        spikes = layer.simulate(spikes, inhibition=False)
    return spikes.to_dense() if dense and isinstance(spikes, SpikeEvents) else spikes


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
    key: tuple[Tensor, Tensor],
    step: int,
) -> tuple[Tensor, SheetState]:
    """One step with cross-depth inhibition: at most one map fires at a place. ``depolarisation`` in mV; ``key`` of
    each image (:func:`snn.runtime.random.image_key`)."""
    crossed, v = integrate(depolarisation.masked_fill(state.blocked > 0, 0.0), state.v, p, dt)
    blocked = (state.blocked - 1).clamp(min=0)
    place = crossed.any(dim=1, keepdim=True)
    if not place.any():
        return crossed, SheetState(v, blocked)
    winner = pick_winner(crossed, v - p.v_th, key, step)
    v = torch.where(place, p.v_reset, v)
    blocked = blocked.masked_fill(place & ~winner, blocked_steps)
    return winner, SheetState(v, blocked)


def pick_winner(crossed: Tensor, margin: Tensor, key: tuple[Tensor, Tensor], step: int) -> Tensor:
    """Of the maps that crossed at each place, the one with the largest margin above threshold.

    Args:
        crossed: bool (B, C, H, W).
        margin: v - v_threshold in mV, the same shape.
        key: of each image, two of (B,); draws where several maps share the largest margin.
        step: of the presentation.

    Returns:
        bool (B, C, H, W): exactly one map where any crossed, none elsewhere.
    """
    score = margin.masked_fill(~crossed, -torch.inf)
    best = crossed & (score == score.amax(dim=1, keepdim=True))
    b, y, x = (best.sum(dim=1) > 1).nonzero().T
    if len(b):
        tied = best[b, :, y, x]
        drawn = tickets(key, step, b, y, x, best.shape).masked_fill(~tied, -1).argmax(dim=1)
        best[b, :, y, x] = torch.nn.functional.one_hot(drawn, best.shape[1]).bool()
    return best


def tickets(
    key: tuple[Tensor, Tensor], step: int, b: Tensor, y: Tensor, x: Tensor, shape: tuple[int, int, int, int]
) -> Tensor:
    """Draws that decide between equal maps, int64 (n, C), at ``n`` places of a sheet (B, C, H, W): the highest wins."""
    _, maps, height, width = shape
    place = step * (height * width) + y * width + x
    event = event_key((key[0][b], key[1][b]), place)
    return draw_bits(tuple(half[:, None] for half in event), torch.arange(maps, device=b.device))
