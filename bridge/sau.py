"""Special Activation Unit (paper, 4.3): a step function taken from the neuron's response.

    f(x) = sum_i alpha_i chi_i(x)

chi_i is the indicator of [edge_i, edge_{i+1}): the function is right-continuous, a drive that sits exactly on an edge
belongs to the step above it. Below the first edge it is heights[0]. A drive that is not a number stays one.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bridge.sau_kernel import fill_steps, pad_steps
from snn.runtime.errors import check
from snn.runtime.threads import for_each

COMPILED = (torch.float32, torch.float64)
"""Types of CPU tensors for which one compiled pass finds step and height; elsewhere PyTorch searches, then gathers."""


ROW = 2**12
"""Numbers in a row where all drives share their steps."""


THREAD_SHARE = 2**16
"""Least numbers a thread is given: fewer are done sooner by one."""


class SpecialActivationUnit(nn.Module):
    """f(x) of the paper's section 4.3, with fixed edges and heights, of a layer or of each of its channels.

    The gradient is that of the line through the midpoints of the steps, and zero beyond the last edge and further
    below the first edge than half a mean step: there the neuron saturates or is silent.

    Edges and heights stay float32 whatever the module is cast to: whether a drive of lower precision lies on an edge
    or above is decided exactly.

    Args:
        edges: increasing, in units of the drive, (n,), or (C, n) of channels, each row filled up with infinity.
        heights: (n + 1,) or (C, n + 1): spikes in a presentation.
    """

    def __init__(self, edges: Tensor, heights: Tensor) -> None:
        super().__init__()
        check(
            edges.ndim in (1, 2) and edges.shape[-1] >= 1 and heights.shape == (*edges.shape[:-1], edges.shape[-1] + 1),
            f"SAU with edges {tuple(edges.shape)} and heights {tuple(heights.shape)}: expected (n,) and (n + 1,), or "
            "(C, n) and (C, n + 1)",
        )
        increasing = (edges[..., 1:] > edges[..., :-1]) | torch.isposinf(edges[..., 1:])
        check(
            bool(increasing.all()) and not edges.isnan().any() and bool(edges[..., 0].isfinite().all()),
            "SAU edges must increase strictly (infinity only fills up the rows of channels with fewer steps)",
        )
        self.register_buffer("edges", edges.to(torch.float32).clone())
        self.register_buffer("heights", heights.to(torch.float32).clone())
        for name in ("slope", "low", "high"):
            self.register_buffer(name, torch.zeros(edges.shape[:-1]), persistent=False)
        self._set_surrogate()

    def _set_surrogate(self) -> None:
        """Slope in spikes per unit of drive, lowest and highest drive at which it acts; () or (C,)."""
        edges, heights = (buffer.double().reshape(-1, buffer.shape[-1]) for buffer in (self.edges, self.heights))
        rows = [step_line(e[e.isfinite()].tolist(), h.tolist()) for e, h in zip(edges, heights, strict=True)]
        with torch.no_grad():
            for name, values in zip(("slope", "low", "high"), zip(*rows, strict=True), strict=True):
                getattr(self, name).copy_(torch.tensor(values).reshape(self.edges.shape[:-1]))

    def forward(self, x: Tensor, unit: Tensor | float = 1.0) -> Tensor:
        """Spikes in a presentation, in shape, type and memory order of the drive ``x``, (B, C, ...) if of channels.

        Dividing heights by a ``unit`` here saves a pass over the output.

        Raises :class:`snn.runtime.errors.UserError` if there are steps for another number of channels than ``x`` has.
        """
        check(
            self.edges.ndim == 1 or (x.ndim >= 2 and x.shape[1] == len(self.edges)),
            f"drive of shape {tuple(x.shape)} for an SAU of {len(self.edges)} channels: expected (B, C, ...)",
        )
        return _steps(x, self.edges, self.heights / unit, self.slope / unit, self.low, self.high)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SpecialActivationUnit":
        kept = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, before in kept.items():
            if self._buffers[name].dtype != before.dtype:
                self._buffers[name] = before.to(self._buffers[name].device)
        return self

    def _load_from_state_dict(self, *arguments) -> None:
        super()._load_from_state_dict(*arguments)
        self._set_surrogate()


def step_line(edges: list[float], heights: list[float]) -> tuple[float, float, float]:
    """(slope, low, high) of the line through the midpoints of a step function: its surrogate.

    ``heights`` beyond the last edge are left aside.
    """
    top, span = heights[len(edges)], edges[-1] - edges[0]
    if span == 0:
        width = max(abs(edges[0]), 1e-6)
        return (top - heights[0]) / width, edges[0] - width / 2, edges[0] + width / 2
    # Steps but the first and last have midpoints; a line through fewer than two rests on the edges.
    middles = [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]
    if len(middles) >= 2:
        slope = (heights[len(edges) - 1] - heights[1]) / (middles[-1] - middles[0])
    else:
        slope = (top - heights[0]) / (2 * span)
    return slope, edges[0] - span / (2 * (len(edges) - 1)), edges[-1]


@torch.library.custom_op("bridge::steps", mutates_args=())
def _steps(x: Tensor, edges: Tensor, heights: Tensor, slope: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The step function; the last three serve the gradient. An operator of its own, so that torch.compile keeps it."""
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


@_steps.register_fake
def _(x, edges, heights, slope, low, high):
    return torch.empty_like(x)


def _keep_slope(ctx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    x, _, _, slope, low, high = inputs
    slope, low, high = (value.reshape(-1, *[1] * (x.ndim - 2)) if value.ndim else value for value in (slope, low, high))
    ctx.save_for_backward((x >= low) & (x < high), slope)


def _slope(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
    inside, slope = ctx.saved_tensors
    return gradient * (inside * slope.to(gradient.dtype)), None, None, None, None, None


_steps.register_autograd(_slope, setup_context=_keep_slope)


def _in_memory_order(x: Tensor) -> Tensor:
    """A view of ``x`` that is contiguous, if there is one."""
    return x.permute(0, 2, 3, 1) if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) else x


def _search(x: Tensor, edges: Tensor, heights: Tensor) -> Tensor:
    """f(x) of contiguous ``x`` of any shape, or of rows (C, N) with steps of their own."""
    steps = torch.searchsorted(round_up(edges, x.dtype), x, right=True, out_int32=True)
    heights = heights.to(x.dtype)
    found = heights[steps] if edges.ndim == 1 else heights.gather(1, steps.long())
    return found.masked_fill(x.isnan(), torch.nan)


def round_up(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The smallest numbers of ``dtype`` that are not below ``values``: numbers of it compare with both alike."""
    rounded = values.to(dtype)
    infinity = torch.full_like(rounded, torch.inf)
    return torch.where(rounded.to(values.dtype) < values, torch.nextafter(rounded, infinity), rounded)


def _fill_compiled(x: Tensor, edges: Tensor, heights: Tensor, out: Tensor) -> None:
    """Write f(x) to ``out``, by as many threads as PyTorch uses; both CPU tensors of one shape."""
    if edges.ndim == 2:
        drives, found, width = x.contiguous(), out, max(1, math.prod(x.shape[2:]))
    else:
        drives, found, width = _in_memory_order(x).contiguous(), _in_memory_order(out), ROW
    # The last row of a shared step function may be shorter than the others: it is done by itself.
    filled = found if found.is_contiguous() else torch.empty_like(drives)
    flat, target = drives.view(-1).numpy(), filled.view(-1).numpy()
    steps = pad_steps(*(values.to(x.dtype).reshape(-1, values.shape[-1]).numpy() for values in (edges, heights)))
    rows = len(flat) // width
    per_thread = max(1, -(-rows // torch.get_num_threads()), THREAD_SHARE // width)

    def fill(first: int) -> None:
        last = min(first + per_thread, rows)
        part = slice(first * width, last * width)
        fill_steps(flat[part].reshape(-1, width), first, *steps, target[part].reshape(-1, width))

    for_each(fill, range(0, rows, per_thread))
    if rest := flat[rows * width :].size:
        fill_steps(flat[None, -rest:], 0, *steps, target[None, -rest:])
    if filled is not found:
        found.copy_(filled)
