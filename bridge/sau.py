"""Special Activation Unit (paper, 4.3): a step function fitted to the neuron's response.

    f(x) = sum_i alpha_i chi_i(x)

chi_i is the indicator of [edge_i, edge_{i+1}). The function is right-continuous: a drive equal to an edge belongs to
the step above it. Below the first edge, f(x) is heights[0]. NaN stays NaN.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, library, nn

from bridge.sau_kernel import fill_steps, pad_steps
from snn.runtime.errors import check
from snn.runtime.threads import for_each

COMPILED = (torch.float32, torch.float64)
"""Types of CPU tensors that one compiled pass handles. For others, PyTorch searches the step and gathers its height."""
ROW = 2**12
"""Drives per row where all share their steps."""
THREAD_SHARE = 2**16
"""Smallest number of drives worth a thread of its own."""


class SpecialActivationUnit(nn.Module):
    """The step function f(x), shared by all channels or with a row for each. Edges and heights never train.

    The gradient is that of the line through the midpoints of the steps. It is zero above the last edge, where the
    neuron saturates, and more than half a mean step below the first edge, where it is silent. Edges and heights stay
    float32 when the module is cast, so drives of lower precision are compared with the exact edges.

    Args:
        edges: strictly increasing, in units of the drive: (n,), or (C, n) with shorter rows padded by infinity.
        heights: spikes in a presentation, (n + 1,) or (C, n + 1).

    Raises:
        UserError: if the shapes do not match or the edges do not increase.
    """

    edges: Tensor
    heights: Tensor
    slope: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, edges: Tensor, heights: Tensor) -> None:
        super().__init__()
        check(
            edges.ndim in (1, 2) and edges.shape[-1] >= 1 and heights.shape == (*edges.shape[:-1], edges.shape[-1] + 1),
            f"SAU with edges {tuple(edges.shape)} and heights {tuple(heights.shape)}: expected (n,) and (n + 1,), or "
            "(C, n) and (C, n + 1)",
        )
        self.register_buffer("edges", edges.to(torch.float32).clone())
        self.register_buffer("heights", heights.to(torch.float32).clone())
        for name in ("slope", "low", "high"):
            self.register_buffer(name, torch.zeros(edges.shape[:-1], device=edges.device), persistent=False)
        self._set_surrogate()

    def _set_surrogate(self) -> None:
        """Check the steps, and set what the gradient needs, () or (C,).

        That is the slope, in spikes per unit of drive, and the lowest and highest drive at which it acts.
        """
        if self.edges.is_meta:
            # Without values, as where only shapes are asked for.
            return
        increasing = (self.edges[..., 1:] > self.edges[..., :-1]) | torch.isposinf(self.edges[..., 1:])
        check(
            bool(increasing.all()) and not self.edges.isnan().any() and bool(self.edges[..., 0].isfinite().all()),
            "SAU edges must increase strictly (infinity may only pad the rows of channels with fewer steps)",
        )
        check(bool(self.heights.isfinite().all()), "SAU heights must be finite")
        edges, heights = (buffer.double().reshape(-1, buffer.shape[-1]) for buffer in (self.edges, self.heights))
        lines = [step_line(e[e.isfinite()].tolist(), h.tolist()) for e, h in zip(edges, heights, strict=True)]
        with torch.no_grad():
            for buffer, values in zip((self.slope, self.low, self.high), zip(*lines, strict=True), strict=True):
                buffer.copy_(torch.tensor(values).reshape(self.edges.shape[:-1]))

    def forward(self, x: Tensor, unit: Tensor | float = 1.0) -> Tensor:
        """f(x) / unit in the shape, type and memory order of drives ``x``: (B, C, ...) if each channel has its steps.

        Dividing the heights by ``unit`` saves a pass over the output. Raises :class:`snn.runtime.errors.UserError` for
        another number of channels.
        """
        check(
            self.edges.ndim == 1 or (x.ndim >= 2 and x.shape[1] == len(self.edges)),
            f"drive of shape {tuple(x.shape)} for an SAU of {len(self.edges)} channels: expected (B, C, ...)",
        )
        return apply_steps(x, self.edges, self.heights / unit, self.slope / unit, self.low, self.high)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SpecialActivationUnit":
        buffers = dict(self.named_buffers())
        super()._apply(fn, recurse)
        for name, before in buffers.items():
            after = self.get_buffer(name)
            if after.dtype != before.dtype:
                self._buffers[name] = before.to(after.device)
        return self

    def _load_from_state_dict(self, *arguments: Any) -> None:
        super()._load_from_state_dict(*arguments)
        self._set_surrogate()


def step_line(edges: list[float], heights: list[float]) -> tuple[float, float, float]:
    """(slope, low, high) of the surrogate, the line through the midpoints of the steps; it acts from low to high.

    Edges are finite. Heights beyond the last edge are ignored.
    """
    top, span = heights[len(edges)], edges[-1] - edges[0]
    if span == 0:
        width = max(abs(edges[0]), 1e-6)
        return (top - heights[0]) / width, edges[0] - width / 2, edges[0] + width / 2
    # The first and last step have no midpoint. With fewer than two midpoints, the line rests on the edges.
    middles = [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]
    if len(middles) >= 2:
        slope = (heights[len(edges) - 1] - heights[1]) / (middles[-1] - middles[0])
    else:
        slope = (top - heights[0]) / (2 * span)
    return slope, edges[0] - span / (2 * (len(edges) - 1)), edges[-1]


def steps_of_neurons(edges: np.ndarray, heights: np.ndarray, drive: np.ndarray, channel: np.ndarray) -> np.ndarray:
    """f(x) of single neurons, from the drive and channel of each, (N,); edges and heights are those of an SAU."""
    if edges.ndim == 1:
        return heights[np.searchsorted(edges, drive, side="right")]
    spikes = np.empty(len(drive), heights.dtype)
    for number, (channel_edges, channel_heights) in enumerate(zip(edges, heights, strict=True)):
        members = channel == number
        spikes[members] = channel_heights[np.searchsorted(channel_edges, drive[members], side="right")]
    return spikes


# An operator of its own, so that torch.compile keeps it whole.
@library.custom_op("bridge::steps", mutates_args=())
def apply_steps(x: Tensor, edges: Tensor, heights: Tensor, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The step function of ``x``; ``slope``, ``low`` and ``high`` serve the gradient alone."""
    out = torch.empty_like(x)
    if x.device.type == "cpu" and x.dtype in COMPILED:
        _fill_compiled(x.detach(), edges, heights, out)
    elif edges.ndim == 1:
        _in_memory_order(out).copy_(_search(_in_memory_order(x).contiguous(), edges, heights))
    else:
        by_channel = x.transpose(0, 1)
        rows = by_channel.reshape(len(edges), -1).contiguous()
        out.transpose(0, 1).copy_(_search(rows, edges, heights).reshape(by_channel.shape))
    return out


@apply_steps.register_fake
def _(x: Tensor, *_steps: Tensor) -> Tensor:
    return torch.empty_like(x)


def _keep_slope(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, _, _, slope, low, high = inputs
    slope, low, high = (value.reshape(-1, *[1] * (x.ndim - 2)) if value.ndim else value for value in (slope, low, high))
    ctx.save_for_backward((x >= low) & (x < high), slope)


def _slope(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    inside, slope = ctx.saved_tensors
    return gradient * (inside * slope.to(gradient.dtype)), None, None, None, None, None


apply_steps.register_autograd(_slope, setup_context=_keep_slope)


def _in_memory_order(x: Tensor) -> Tensor:
    """A contiguous view of ``x`` if there is one, else ``x``."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) else x


def _search(x: Tensor, edges: Tensor, heights: Tensor) -> Tensor:
    """f(x) of contiguous ``x``: of any shape, or rows (C, N) if each channel has its own steps."""
    steps = torch.searchsorted(round_up(edges, x.dtype), x, right=True, out_int32=True)
    heights = heights.to(x.dtype)
    values = heights[steps] if edges.ndim == 1 else heights.gather(1, steps.long())
    return values.masked_fill(x.isnan(), torch.nan)


def round_up(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest numbers of ``dtype`` not below ``values``. Numbers of that type compare alike with both."""
    rounded = values.to(dtype)
    infinity = torch.full_like(rounded, torch.inf)
    return torch.where(rounded.to(values.dtype) < values, torch.nextafter(rounded, infinity), rounded)


def _fill_compiled(x: Tensor, edges: Tensor, heights: Tensor, out: Tensor) -> None:
    """Write f(x) to ``out`` with as many threads as PyTorch uses; both are CPU tensors of one shape."""
    if edges.ndim == 2:
        drives, target, width = x.contiguous(), out, max(1, math.prod(x.shape[2:]))
    else:
        drives, target, width = _in_memory_order(x).contiguous(), _in_memory_order(out), ROW
    filled = target if target.is_contiguous() else torch.empty_like(drives)
    flat, values = drives.view(-1).numpy(), filled.view(-1).numpy()
    steps = pad_steps(*(table.to(x.dtype).reshape(-1, table.shape[-1]).numpy() for table in (edges, heights)))
    rows = len(flat) // width
    per_thread = max(1, -(-rows // torch.get_num_threads()), THREAD_SHARE // width)

    def fill(first: int) -> None:
        part = slice(first * width, min(first + per_thread, rows) * width)
        fill_steps(flat[part].reshape(-1, width), first, *steps, values[part].reshape(-1, width))

    for_each(fill, range(0, rows, per_thread))
    # Where all share their steps, the last row may be shorter than the others.
    if rest := flat[rows * width :].size:
        fill_steps(flat[None, -rest:], 0, *steps, values[None, -rest:])
    if filled is not target:
        target.copy_(filled)
