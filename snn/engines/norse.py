"""The dense engine: norse's step for all neurons at once, on any device.

Its rule gathers synapses at postsynaptic spikes. Draws and sums are those of the event-driven engine, to the last bit.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad, unfold

from snn.encoding import encode
from snn.engines.base import EventCounts
from snn.geometry import ConvGeometry
from snn.layer import SpikingConv2d
from snn.neuron import LIFBoxParameters, integrate
from snn.parameters import Encoding
from snn.registries import register_engine
from snn.runtime.random import AFTER, BEFORE, TIES, draw_bits, event_key, happens, image_key
from snn.spikes import Spikes, as_dense, spike_shape

DRIVE_CHUNK = 2**19
"""Elements of drive computed at once: few enough to stay in a CPU's cache, which is six times faster than all."""
EVENT_CHUNK = 2**22
"""Synaptic events handled at once, to bound memory."""
NEVER = 2**14
"""Steps reported for a presynaptic neuron that has no spike before (or after) a step; longer than any presentation."""


@register_engine("norse")
class NorseEngine:
    """Simulates bool tensors on the device where they lie; an :class:`snn.engines.base.Engine`."""

    def preference(self, device_type: str) -> int:
        return 1

    def encode(self, images: Tensor, p: Encoding, seeds: Tensor) -> Spikes:
        return encode(images, p, seeds)

    def simulate(self, layer: SpikingConv2d, pre: Spikes, *, inhibition: bool, seeds: Tensor | None = None) -> Spikes:
        return simulate_drive(layer, convolve(layer, as_dense(pre)), inhibition=inhibition, seeds=seeds)

    def count_events(
        self, pre: Spikes, post: Spikes, level: Tensor, tables: list[Tensor], geometry: ConvGeometry, seeds: Tensor
    ) -> EventCounts:
        return EventCounts(*count_pairs(as_dense(pre), as_dense(post), level, tables, geometry, seeds))

    def sample_drive(self, layer: SpikingConv2d, pre: Spikes, places: Tensor) -> Tensor:
        chosen = places.to(layer.gain.device)
        drives = convolve(layer, as_dense(pre))
        return torch.stack([drive.permute(0, 2, 3, 1).flatten(0, 2)[chosen] for drive in drives])

    def count_driven(self, layer: SpikingConv2d, drive: Tensor) -> int:
        return int(simulate_drive(layer, drive[..., None, None], inhibition=False).sum())


def convolve(layer: SpikingConv2d, pre: Tensor) -> Iterator[Tensor]:
    """``sum_j G_cj s_j`` of each step in turn, before the gain: (B, C_out, H_out, W_out); ``pre`` bool (T, B, C, H, W).

    All steps share one buffer: copy what is to be kept.
    """
    pulse, _ = layer.geometry.steps(layer.dt)
    p, batch = layer.geometry, pre.shape[1]
    height, width = layer.convolution(spike_shape(pre)).shape_out[1:]
    # As many images at a time, of one or several steps, as stay in a CPU's cache; one buffer serves all.
    chunk = max(1, DRIVE_CHUNK // (p.maps * height * width))
    steps = max(1, chunk // batch)
    weight = layer.exact_weight()
    buffer = weight.new_empty((steps * batch, p.maps, height, width))
    for group in hold(pre, pulse).split(steps):
        drive = buffer[: len(group) * batch]
        for pulses, out in zip(group.flatten(0, 1).split(chunk), drive.split(chunk), strict=True):
            # A library's convolution may transform its input (Winograd), which rounds; these sums are exact.
            fields = unfold(pulses.to(drive.dtype), p.kernel_size, padding=p.padding, stride=p.stride)
            out.copy_((weight.flatten(1) @ fields).unflatten(2, (height, width)))
        yield from drive.unflatten(0, (len(group), batch))


def simulate_drive(
    layer: SpikingConv2d, drives: Iterable[Tensor], *, inhibition: bool, seeds: Tensor | None = None
) -> Tensor:
    """Spikes bool (T, B, C, H, W) of a layer's neurons, from their drives before the gain, (B, C, H, W) at each step.

    ``seeds`` of the images (B,) are needed with cross-depth inhibition.
    """
    neuron, scale = layer.neurons()
    _, blocked_steps = layer.geometry.steps(layer.dt)
    blocked_steps = min(blocked_steps, NEVER)
    key = None if seeds is None else image_key(seeds, TIES)
    state: SheetState | None = None
    spikes = []
    for step, drive in enumerate(drives):
        if state is None:
            state = SheetState(torch.full_like(drive, layer.lif.v_init), torch.zeros_like(drive, dtype=torch.int16))
        if inhibition:
            assert key is not None, "inhibition draws between channels of equal potential"
            fired, state = inhibited_step(drive * scale, state, neuron, layer.dt, blocked_steps, key, step)
        else:
            fired, v = integrate(drive * scale, state.v, neuron, layer.dt)
            state = SheetState(torch.where(fired, neuron.v_reset, v), state.blocked)
        spikes.append(fired)
    return torch.stack(spikes)


class SheetState(NamedTuple):
    """Neurons of a layer between two steps; both (B, C, H, W)."""

    v: Tensor
    """Membrane potential in mV."""
    blocked: Tensor
    """Steps, int16, for which the neuron still ignores input."""


def hold(spikes: Tensor, steps: int) -> Tensor:
    """Box pulses: true where a spike occurred at this step or one of the ``steps - 1`` before; bool (T, ...)."""
    held = spikes.clone()
    for delay in range(1, min(steps, len(spikes))):
        held[delay:] |= spikes[:-delay]
    return held


def inhibited_step(
    depolarisation: Tensor,
    state: SheetState,
    p: LIFBoxParameters,
    dt: float,
    blocked_steps: int,
    key: tuple[Tensor, Tensor],
    step: int,
) -> tuple[Tensor, SheetState]:
    """One step with cross-depth inhibition: at most one channel fires at a place; see :func:`pick_winner`.

    ``depolarisation`` is in mV, ``dt`` in ms. Channels that lost ignore their input for ``blocked_steps``.
    """
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
    """Of the channels that crossed at each place, the one with the largest margin above threshold.

    Args:
        crossed: bool (B, C, H, W).
        margin: v - v_threshold in mV, the same shape.
        key: of each image (:func:`snn.runtime.random.image_key`); draws between channels that share the largest margin.
        step: of the presentation.

    Returns:
        bool (B, C, H, W): exactly one channel where any crossed, none elsewhere.
    """
    score = margin.masked_fill(~crossed, -torch.inf)
    best = crossed & (score == score.amax(dim=1, keepdim=True))
    b, y, x = (best.sum(dim=1) > 1).nonzero().T
    if len(b):
        tied = best[b, :, y, x]
        drawn = tickets(key, step, b, y, x, tuple(best.shape)).masked_fill(~tied, -1).argmax(dim=1)
        best[b, :, y, x] = one_hot(drawn, best.shape[1]).bool()
    return best


def tickets(key: tuple[Tensor, Tensor], step: int, b: Tensor, y: Tensor, x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Draws that decide between equal channels at ``n`` places (b, y, x), int64 (n, C); the highest wins.

    ``key`` and ``step`` as for :func:`pick_winner`; ``shape`` of the sheet is (B, C, H, W).
    """
    _, channels, height, width = shape
    place = step * (height * width) + y * width + x
    first, second = event_key((key[0][b], key[1][b]), place)
    return draw_bits((first[:, None], second[:, None]), torch.arange(channels, device=b.device))


def steps_since_spike(spikes: Tensor) -> Tensor:
    """Steps since the last spike at or before each step, int16, the shape of ``spikes`` (T, ...); NEVER if none."""
    since = torch.empty(spikes.shape, dtype=torch.int16, device=spikes.device)
    elapsed = torch.full(spikes.shape[1:], NEVER - 1, dtype=torch.int16, device=spikes.device)
    for step, spiked in enumerate(spikes):
        elapsed = (elapsed + 1).clamp_(max=NEVER).masked_fill_(spiked, 0)
        since[step] = elapsed
    return since


def steps_until_spike(spikes: Tensor) -> Tensor:
    """Steps until the next spike after (not at) each step, int16, the shape of ``spikes``; NEVER if none."""
    until = torch.full(spikes.shape, NEVER, dtype=torch.int16, device=spikes.device)
    until[:-1] = (steps_since_spike(spikes.flip(0)).flip(0)[1:] + 1).clamp(max=NEVER)
    return until


def count_pairs(
    pre: Tensor, post: Tensor, level: Tensor, tables: list[Tensor], geometry: ConvGeometry, seeds: Tensor
) -> Tensor:
    """:meth:`snn.engines.base.Engine.count_events` on bool tensors: float64 (3, C_out, C_in, k, k)."""
    c_out, c_in, kernel, device = geometry.channels_out, geometry.channels_in, geometry.kernel_size, pre.device
    fan_in, steps = c_in * kernel**2, len(pre)

    def fields(values: Tensor, outside: int) -> Tensor:
        """View of (..., H, W), padded with ``outside``, as receptive fields (..., H_out, W_out, kH, kW)."""
        padded = pad(values, (geometry.padding,) * 4, value=outside)
        return padded.unfold(-2, kernel, geometry.stride).unfold(-2, kernel, geometry.stride)

    # A time of -1 occurs nowhere else: padding has no synapse.
    passes = [(fields(steps_since_spike(pre), -1), tables[0].to(device), image_key(seeds, BEFORE))]
    if len(tables) > 1:
        passes.append((fields(steps_until_spike(pre), -1), tables[1].to(device), image_key(seeds, AFTER)))
    rate = fields(level.long(), 0)
    # Draws are numbered as in the event-driven engine: channels innermost.
    synapse = torch.arange(fan_in, device=device).reshape(kernel, kernel, c_in).permute(2, 0, 1).flatten()

    counts = torch.zeros((3, c_out, fan_in), dtype=torch.float64, device=device)
    chunk = max(1, EVENT_CHUNK // fan_in)
    for t, b, c, y, x in zip(*(index.split(chunk) for index in post.nonzero().T), strict=True):
        counter = ((t * geometry.height_out + y) * geometry.width_out + x) * c_out + c
        # Sums of fewer than 2^24 ones are exact in float32, so their order cannot matter.
        of_channel = one_hot(c, c_out).T.float()
        for number, (lags, table, key) in enumerate(passes):
            lag = lags[t, b, :, y, x].flatten(1).long()
            chance = table[lag.clamp(0, steps), rate[b, :, y, x].flatten(1)].masked_fill(lag < 0, 0)
            first, second = event_key((key[0][b], key[1][b]), counter)
            bits = draw_bits((first[:, None], second[:, None]), synapse)
            if number == 0:
                counts[0] += of_channel @ (lag >= 0).float()
            counts[1] += of_channel @ happens(bits, chance).float()
            counts[2] += of_channel @ happens(bits, -chance).float()
    return counts.reshape(3, c_out, c_in, kernel, kernel)
