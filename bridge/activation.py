"""Special Activation Unit (paper, 4.3): a step function taken from the neuron's response.

    f(x) = sum_i alpha_i chi_i(x)

chi_i is the indicator of [edge_i, edge_{i+1}): the function is right-continuous, a drive that sits exactly on an edge
belongs to the step above it. Below the first edge it is heights[0].
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from snn.errors import check


class StepFit(NamedTuple):
    """A fitted step function."""

    edges: Tensor
    """Drives at which the function steps up, strictly increasing, float32 (n,)."""
    heights: Tensor
    """Rates in Hz, float32 (n + 1,): heights[i] holds from edges[i - 1] to edges[i]."""


def fit_steps(drive: np.ndarray, counts: np.ndarray, presentation: float, min_share: float = 0.002) -> StepFit:
    """Fit the SAU to simulated responses.

    A monotone staircase with heights n/T misses a neuron's count k at drive x by ``sum_n |[k >= n] - [x >= edge_n]|``
    spikes, so each edge can be chosen by itself: the split of the drives that misplaces the fewest neurons. Together
    they minimise the mean absolute error exactly.

    Args:
        drive: mean currents of neurons, (N,).
        counts: their spikes in one presentation, integers (N,).
        presentation: T in ms.
        min_share: steps reached by fewer than this share of the neurons are left out.

    Raises:
        UserError: if the neurons do not fire at two different rates at least.
    """
    order = np.argsort(drive, kind="stable")
    x, k = drive[order].astype(np.float64), counts[order]
    edges, heights = [], [0.0]
    for level in range(1, int(k.max(initial=0)) + 1):
        above = k >= level
        if above.mean() < min_share:
            break
        # misplaced[i]: neurons on the wrong side when the i smallest drives are put below the edge
        misplaced = np.concatenate(([0], np.cumsum(above))) + np.concatenate((np.cumsum(~above[::-1])[::-1], [0]))
        # Only between different drives can an edge lie.
        possible = np.concatenate(([True], x[1:] > x[:-1], [True]))
        split = int(np.argmin(np.where(possible, misplaced, len(x) + 1)))
        if split == len(x):
            # At no drive is this level right more often than wrong.
            break
        low = x[split - 1] if split > 0 else x[0] - 1e-3 * max(1.0, abs(x[0]))
        edge = np.float32((low + x[split]) / 2)
        # Between neighbouring numbers the midpoint may round down onto the drive that lies below the edge.
        edge = edge if edge > low else np.float32(x[split])
        rate = level * 1000 / presentation
        if edges and edge <= edges[-1]:
            # Two levels begin at one drive: the lower one is never seen.
            heights[-1] = rate
        else:
            edges.append(edge)
            heights.append(rate)
    check(
        len(edges) >= 1 and np.ptp(x) > 0,
        "the layer's neurons all fire alike, so there is no step to fit; learn again with another output rate",
    )
    return StepFit(torch.tensor(edges, dtype=torch.float32), torch.tensor(heights, dtype=torch.float32))


class _StepFunction(torch.autograd.Function):
    """Forward: the step function. Backward: the slope of the line through its step midpoints."""

    @staticmethod
    def forward(ctx, x: Tensor, edges: Tensor, heights: Tensor, limits: tuple[float, float, float]) -> Tensor:
        slope, low, high = limits
        ctx.slope = slope
        ctx.save_for_backward((x >= low) & (x < high))
        return heights[torch.bucketize(x.contiguous(), edges, right=True, out_int32=True)].to(x.dtype)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (inside,) = ctx.saved_tensors
        return gradient * inside * ctx.slope, None, None, None


class SpecialActivationUnit(nn.Module):
    """f(x) of the paper's section 4.3, with fixed edges and heights.

    The gradient is that of the line through the midpoints of the steps, and zero beyond the last edge and further
    below the first edge than half a mean step: there the neuron saturates or is silent.

    Args:
        edges: strictly increasing (n,), in units of the drive.
        heights: (n + 1,), in Hz.
    """

    def __init__(self, edges: Tensor, heights: Tensor) -> None:
        super().__init__()
        check(
            edges.ndim == 1 and heights.shape == (len(edges) + 1,) and len(edges) >= 1,
            f"SAU with edges {tuple(edges.shape)} and heights {tuple(heights.shape)}: expected (n,) and (n + 1,)",
        )
        check(bool((edges[1:] > edges[:-1]).all()), "SAU edges must increase strictly")
        self.register_buffer("edges", edges.to(torch.float32).clone())
        self.register_buffer("heights", heights.to(torch.float32).clone())

    def surrogate(self) -> tuple[float, float, float]:
        """(slope in Hz per unit drive, lowest and highest drive at which it acts)."""
        edges, heights = self.edges.double().tolist(), self.heights.double().tolist()
        span = edges[-1] - edges[0]
        if span == 0:
            width = max(abs(edges[0]), 1e-6)
            return (heights[1] - heights[0]) / width, edges[0] - width / 2, edges[0] + width / 2
        # Steps but the first and last have midpoints; a line through fewer than two rests on the edges.
        middles = [(a + b) / 2 for a, b in zip(edges, edges[1:], strict=False)]
        if len(middles) >= 2:
            slope = (heights[-2] - heights[1]) / (middles[-1] - middles[0])
        else:
            slope = (heights[-1] - heights[0]) / (2 * span)
        return slope, edges[0] - span / (2 * (len(edges) - 1)), edges[-1]

    def forward(self, x: Tensor) -> Tensor:
        """Rates in Hz, the shape and type of the drive ``x``."""
        return _StepFunction.apply(x, self.edges, self.heights, self._limits())

    def _limits(self) -> tuple[float, float, float]:
        # Reading buffers from an accelerator waits for it, so once is enough; they never change after loading.
        if not hasattr(self, "_cached_limits"):
            self._cached_limits = self.surrogate()
        return self._cached_limits

    def _load_from_state_dict(self, *arguments) -> None:
        super()._load_from_state_dict(*arguments)
        self.__dict__.pop("_cached_limits", None)
