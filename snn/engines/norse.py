"""The rule on dense spikes, for devices without the event-driven engine: gathers synapses at postsynaptic spikes."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from snn.runtime.random import AFTER, BEFORE, draw_bits, event_key, happens, image_key

EVENT_CHUNK = 2**22
"""Synaptic events handled at once, to bound memory."""


NEVER = 2**14
"""Steps reported for a presynaptic neuron that has no spike before (or after) a step; longer than any presentation."""


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


def count_events_dense(
    pre: Tensor,
    post: Tensor,
    level: Tensor,
    tables: list[Tensor],
    kernel_size: int,
    stride: int,
    padding: int,
    seeds: Tensor,
) -> Tensor:
    """Events, LTP and LTD of every synapse, float64 (3, C_out, C_in, k, k), from bool tensors of any device.

    ``tables`` are those of :func:`snn.rules.chances`.
    """
    c_out, c_in, device = post.shape[2], pre.shape[2], pre.device
    fan_in, steps = c_in * kernel_size**2, len(pre)

    def fields(values: Tensor, outside: int) -> Tensor:
        """View of (..., H, W), padded with ``outside``, as receptive fields (..., H_out, W_out, kH, kW)."""
        padded = pad(values, (padding,) * 4, value=outside)
        return padded.unfold(-2, kernel_size, stride).unfold(-2, kernel_size, stride)

    # A time of -1 occurs nowhere else: padding has no synapse.
    passes = [(fields(steps_since_spike(pre), -1), tables[0].to(device), image_key(seeds, BEFORE))]
    if len(tables) > 1:
        passes.append((fields(steps_until_spike(pre), -1), tables[1].to(device), image_key(seeds, AFTER)))
    rate = fields(level.long(), 0)
    # Draws are numbered as in the event-driven engine: maps innermost.
    synapse = torch.arange(fan_in, device=device).reshape(kernel_size, kernel_size, c_in).permute(2, 0, 1).flatten()

    counts = torch.zeros((3, c_out, fan_in), dtype=torch.float64, device=device)
    chunk = max(1, EVENT_CHUNK // fan_in)
    for t, b, c, y, x in zip(*(index.split(chunk) for index in post.nonzero().T), strict=True):
        height_out, width_out = post.shape[3:]
        counter = ((t * height_out + y) * width_out + x) * c_out + c
        # Sums of fewer than 2^24 ones are exact in float32, so their order cannot matter.
        of_map = torch.nn.functional.one_hot(c, c_out).T.float()
        for number, (lags, table, key) in enumerate(passes):
            lag = lags[t, b, :, y, x].flatten(1).long()
            chance = table[lag.clamp(0, steps), rate[b, :, y, x].flatten(1)].masked_fill(lag < 0, 0)
            event = event_key((key[0][b], key[1][b]), counter)
            bits = draw_bits(tuple(half[:, None] for half in event), synapse)
            if number == 0:
                counts[0] += of_map @ (lag >= 0).float()
            counts[1] += of_map @ happens(bits, chance).float()
            counts[2] += of_map @ happens(bits, -chance).float()
    return counts.reshape(3, c_out, c_in, kernel_size, kernel_size)
