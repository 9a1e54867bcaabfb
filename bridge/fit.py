"""Fit of the Special Activation Unit: intervals and heights from the flat regions of simulated responses.

Two staircases compete, the one with the smaller residual on neurons not used for the fit wins. The *change points* put
each edge where it misplaces the fewest neurons. The *closed form* is floor(F T) of Eq. 1 at a constant current, known
without any simulation. How many steps there are follows from the data in both. Each may be one staircase for the whole
layer, or one for each channel; channels have their own only where that pays.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bridge.sau import step_line
from snn.layer import SpikingConv2d
from snn.parameters import Encoding
from snn.runtime.errors import check

WORTHWHILE = 0.05
"""Share of the layer's residual that staircases of channels must save (ours: they are many more numbers)."""


@dataclass(frozen=True)
class Neurons:
    """Responses to be fitted, of one layer."""

    drive: np.ndarray
    """Mean currents, float (N,)."""
    count: np.ndarray
    """Spikes in a presentation, integers (N,)."""
    channel: np.ndarray
    """Maps, integers (N,)."""

    def __len__(self) -> int:
        return len(self.drive)

    def take(self, chosen: np.ndarray | slice) -> "Neurons":
        """Some of the neurons."""
        return Neurons(self.drive[chosen], self.count[chosen], self.channel[chosen])


@dataclass(frozen=True)
class StepFit:
    """A fitted step function, or one of each channel."""

    edges: Tensor
    """Drives at which the function steps up, float32, strictly increasing (n,), or (C, n) filled up with infinity."""
    heights: Tensor
    """Spikes in a presentation, float32 (n + 1,) or (C, n + 1): heights[i] holds from edges[i - 1] to edges[i]."""

    @property
    def per_channel(self) -> bool:
        """Each channel has its own."""
        return self.edges.ndim == 2

    def evaluate(self, neurons: Neurons) -> np.ndarray:
        """Spikes that the step function gives each neuron, (N,)."""
        if not self.per_channel:
            return _evaluate(self.edges.numpy(), self.heights.numpy(), neurons.drive)
        found = np.empty(len(neurons), np.float32)
        for channel, (edges, heights) in enumerate(zip(self.edges.numpy(), self.heights.numpy(), strict=True)):
            mine = neurons.channel == channel
            found[mine] = _evaluate(edges, heights, neurons.drive[mine])
        return found

    def residual(self, neurons: Neurons) -> float:
        """Mean error in spikes."""
        return float(np.abs(self.evaluate(neurons) - neurons.count).mean())


@dataclass(frozen=True)
class Fit:
    """The step function chosen, and what decided."""

    steps: StepFit
    kind: str
    """change points, change points of channels, or closed form."""
    residuals: dict[str, float]
    """Mean error in spikes, on neurons not used for the fit, of each candidate."""
    residual: float
    """Mean error in spikes of the chosen one, on the neurons it was fitted to."""


def fit_response(neurons: Neurons, layer: SpikingConv2d, encoding: Encoding, random: np.random.Generator) -> Fit:
    """Fit a layer's step function to its neurons.

    Half of the neurons are fitted, the other half chooses between the candidates; the chosen one is then fitted to all.

    Args:
        neurons: of the layer.
        layer: whose closed form is a candidate.
        encoding: presentation time, and the quiet part of it.
        random: splits the neurons.

    Raises:
        UserError: if the neurons do not fire at two different rates at least.
    """
    half = random.permutation(len(neurons)) < len(neurons) // 2
    fitted, kept = neurons.take(half), neurons.take(~half)
    top = int(neurons.count.max())
    shared = change_points(fitted, kept)
    check(
        shared is not None,
        "the layer's neurons all fire alike, so there is no step to fit; learn again with another output rate",
    )
    candidates = {
        "change points": shared,
        "change points of channels": per_channel(fitted, kept, shared, len(layer.gain)),
        "closed form": closed_form(layer, encoding, top),
    }
    residuals = {name: steps.residual(kept) for name, steps in candidates.items()}
    own = residuals["change points of channels"] < (1 - WORTHWHILE) * residuals["change points"]
    kind = "change points of channels" if own else "change points"
    if residuals["closed form"] <= residuals[kind]:
        kind, steps = "closed form", candidates["closed form"]
    else:
        # As many levels as stood the test, their edges from all neurons.
        steps = change_points(neurons, levels=int(shared.heights.max())) or shared
        if own:
            levels = candidates[kind].heights.amax(1).int().tolist()
            rows = [
                change_points(neurons.take(neurons.channel == channel), levels=level) or steps
                for channel, level in enumerate(levels)
            ]
            steps = _stack(rows)
    return Fit(steps, kind, residuals, steps.residual(neurons))


def change_points(fitted: Neurons, kept: Neurons | None = None, *, levels: int | None = None) -> StepFit | None:
    """The staircase of smallest mean error, or None if there is no step.

    One with heights 0, 1, 2, ... misses a neuron's count k at drive x by ``sum_n |[k >= n] - [x >= edge_n]|`` spikes,
    so each edge can be chosen by itself: the split of the drives that misplaces the fewest neurons. A level whose edge
    does not place the neurons of ``kept`` (None: takes all) better than none is left out, with all above it, as are
    those above ``levels``.
    """
    order = np.argsort(fitted.drive, kind="stable")
    x, k = fitted.drive[order].astype(np.float64), fitted.count[order]
    edges, heights = [], [0.0]
    top = int(k.max(initial=0))
    for level in range(1, (top if levels is None else min(top, levels)) + 1):
        edge = _best_split(x, k >= level)
        if edge is None or (kept is not None and not _useful(edge, kept.count >= level, kept.drive)):
            break
        if edges and edge <= edges[-1]:
            # Two levels begin at one drive: the lower one is never seen.
            heights[-1] = level
        else:
            edges.append(edge)
            heights.append(level)
    if not edges or np.ptp(x) == 0:
        return None
    return StepFit(torch.tensor(edges, dtype=torch.float32), torch.tensor(heights, dtype=torch.float32))


def _useful(edge: np.float32, reached: np.ndarray, drive: np.ndarray) -> bool:
    return (reached != (drive >= edge)).sum() < reached.sum()


def _best_split(x: np.ndarray, above: np.ndarray) -> np.float32 | None:
    """The drive that parts sorted ``x`` best into those not ``above`` and those above; None: all are better below."""
    # misplaced[i]: neurons on the wrong side when the i smallest drives are put below the edge
    misplaced = np.concatenate(([0], np.cumsum(above))) + np.concatenate((np.cumsum(~above[::-1])[::-1], [0]))
    # Only between different drives can an edge lie.
    possible = np.concatenate(([True], x[1:] > x[:-1], [True]))
    split = int(np.argmin(np.where(possible, misplaced, len(x) + 1)))
    if split == len(x):
        return None
    low = x[split - 1] if split > 0 else x[0] - 1e-3 * max(1.0, abs(x[0]))
    edge = np.float32((low + x[split]) / 2)
    # Between neighbouring numbers the midpoint may round down onto the drive that lies below the edge.
    return edge if edge > low else np.float32(x[split])


def per_channel(fitted: Neurons, kept: Neurons, shared: StepFit, channels: int) -> StepFit:
    """:func:`change_points` of each channel; one that has no step is given ``shared``."""
    rows = [
        change_points(fitted.take(fitted.channel == channel), kept.take(kept.channel == channel)) or shared
        for channel in range(channels)
    ]
    return _stack(rows)


def closed_form(layer: SpikingConv2d, encoding: Encoding, top: int) -> StepFit:
    """floor(F T) of Eq. 1 at constant currents, up to ``top`` spikes; of channels if their thresholds differ.

    The current flows while input spikes come, with a mean over the presentation that is the drive. Time is counted in
    steps, as in the simulation.
    """
    thresholds = layer.v_threshold.double().cpu().numpy()
    rows = [_closed_form(layer, encoding, threshold, top) for threshold in np.unique(thresholds)]
    if len(rows) == 1:
        return rows[0]
    return _stack([rows[i] for i in np.searchsorted(np.unique(thresholds), thresholds)])


def _closed_form(layer: SpikingConv2d, encoding: Encoding, threshold: float, top: int) -> StepFit:
    p, decay = layer.lif, np.log1p(-layer.dt / layer.lif.tau_mem)
    share = encoding.active_steps / encoding.n_steps

    def steps_to_threshold(start: float, current: float) -> float:
        settled = p.v_leak + p.millivolts_per_current * current / share
        if settled <= threshold:
            return np.inf
        return np.floor(np.log((settled - threshold) / (settled - start)) / decay) + 1

    def spikes(current: float) -> float:
        first, interval = (steps_to_threshold(start, current) for start in (p.v_init, p.v_reset))
        return 1 + (encoding.active_steps - first) // interval if first <= encoding.active_steps else 0

    edges = []
    for level in range(1, top + 1):
        low, high = 0.0, 1.0
        while spikes(high) < level and high < 1e9:
            high *= 2
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if spikes(middle) < level else (low, middle)
        edges.append(high)
    edges, first = np.unique(np.float32(edges), return_index=True)
    # Where several levels begin at one drive, only the highest is seen.
    heights = [0, *(np.append(first[1:], top)).tolist()]
    return StepFit(torch.from_numpy(edges), torch.tensor(heights, dtype=torch.float32))


def with_even_steps(fit: Fit, count: int, neurons: Neurons) -> Fit:
    """``fit`` with ``count`` equal steps along the line through its own, from silence to its highest step."""
    edges, heights = (t.double().reshape(-1, t.shape[-1]) for t in (fit.steps.edges, fit.steps.heights))
    rows = []
    for e, h in zip(edges, heights, strict=True):
        slope, low, _ = step_line(e[e.isfinite()].tolist(), h.tolist())
        top = h[e.isfinite().sum()].item()
        levels = torch.arange(count + 1, dtype=torch.float64)
        steps = (low + (levels[1:] - 0.5) / count * top / slope, levels * top / count)
        rows.append(StepFit(*(values.to(torch.float32) for values in steps)))
    steps = _stack(rows) if fit.steps.per_channel else rows[0]
    return Fit(steps, f"{count} equal steps along {fit.kind}", fit.residuals, steps.residual(neurons))


def _stack(rows: list[StepFit]) -> StepFit:
    """Step functions of channels, filled up to the length of the longest."""
    n = max(len(row.edges) for row in rows)
    edges = torch.full((len(rows), n), torch.inf)
    heights = torch.empty(len(rows), n + 1)
    for row, e, h in zip(rows, edges, heights, strict=True):
        e[: len(row.edges)] = row.edges
        h[: len(row.heights)] = row.heights
        h[len(row.heights) :] = row.heights[-1]
    return StepFit(edges, heights)


def _evaluate(edges: np.ndarray, heights: np.ndarray, drive: np.ndarray) -> np.ndarray:
    return heights[np.searchsorted(edges, drive, side="right")]
