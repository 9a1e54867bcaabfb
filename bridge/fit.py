"""Fit of the Special Activation Unit: edges and heights from the flat regions of simulated responses.

Two kinds of staircase compete, and the smaller residual on held-out neurons wins. *Change points* put each edge where
it misplaces the fewest neurons. The *closed form* is floor(F T) of Eq. 1 at a constant current, which needs no
simulation. In both, the data decide how many steps there are. One staircase can serve the whole layer, or each channel
has its own; the latter is chosen only where it pays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bridge.sau import step_line, steps_of_neurons
from snn.layer import SpikingConv2d
from snn.parameters import Encoding
from snn.runtime.errors import UserError, check

WORTHWHILE = 0.05
"""Share of the layer's residual that staircases of channels must save (ours: they are many more numbers)."""


@dataclass(frozen=True)
class Neurons:
    """Simulated neurons of one layer, to which steps are fitted."""

    drive: np.ndarray
    """Mean currents, float (N,)."""
    count: np.ndarray
    """Spikes in a presentation, integers (N,)."""
    channel: np.ndarray
    """Channels, integers (N,)."""

    def __len__(self) -> int:
        return len(self.drive)

    def take(self, selection: np.ndarray | slice) -> "Neurons":
        """A selection of the neurons."""
        return Neurons(self.drive[selection], self.count[selection], self.channel[selection])


@dataclass(frozen=True)
class StepFit:
    """A fitted step function, shared by all channels or with a row for each."""

    edges: Tensor
    """Drives at which the function steps up, float32, strictly increasing: (n,), or (C, n) padded by infinity."""
    heights: Tensor
    """Spikes in a presentation, float32 (n + 1,) or (C, n + 1): heights[i] holds from edges[i - 1] to edges[i]."""

    @property
    def per_channel(self) -> bool:
        """Whether each channel has a function of its own."""
        return self.edges.ndim == 2

    def evaluate(self, neurons: Neurons) -> np.ndarray:
        """Spikes in a presentation that the step function gives each neuron, (N,)."""
        return steps_of_neurons(self.edges.numpy(), self.heights.numpy(), neurons.drive, neurons.channel)

    def residual(self, neurons: Neurons) -> float:
        """Mean absolute error, in spikes in a presentation."""
        return float(np.abs(self.evaluate(neurons) - neurons.count).mean())


@dataclass(frozen=True)
class Fit:
    """The step function chosen, and the residuals that decided."""

    steps: StepFit
    kind: str
    """change points, change points of channels, or closed form; or equal steps along one of these."""
    residuals: dict[str, float]
    """Residual of each candidate on held-out neurons, in spikes in a presentation."""
    residual: float
    """Residual of the chosen function on all neurons, in spikes in a presentation."""


def fit_response(neurons: Neurons, layer: SpikingConv2d, encoding: Encoding, random: np.random.Generator) -> Fit:
    """Fit a layer's step function to its neurons; :class:`UserError` if all of them fire alike.

    Half of the neurons, drawn by ``random``, fit the candidates, and the other half chooses between them. The chosen
    one is then fitted to all neurons.
    """
    half = random.permutation(len(neurons)) < len(neurons) // 2
    fitted, held_out = neurons.take(half), neurons.take(~half)
    shared = change_points(fitted, held_out)
    if shared is None:
        raise UserError(
            "all neurons of the layer fire alike, so there is no step to fit; learn again with another output rate"
        )
    candidates = {
        "change points": shared,
        "change points of channels": per_channel(fitted, held_out, shared, len(layer.gain)),
        "closed form": closed_form(layer, encoding, top=int(neurons.count.max())),
    }
    residuals = {name: steps.residual(held_out) for name, steps in candidates.items()}
    own = residuals["change points of channels"] < (1 - WORTHWHILE) * residuals["change points"]
    kind = "change points of channels" if own else "change points"
    if residuals["closed form"] <= residuals[kind]:
        kind = "closed form"
    steps = candidates[kind]
    if kind != "closed form":
        # The levels that passed the test stay; their edges are fitted to all neurons.
        refitted = change_points(neurons, levels=int(shared.heights.max())) or shared
        if steps.per_channel:
            levels = steps.heights.amax(1).int().tolist()
            refitted = per_channel(neurons, None, refitted, len(levels), levels)
        steps = refitted
    return Fit(steps, kind, residuals, steps.residual(neurons))


def change_points(fitted: Neurons, held_out: Neurons | None = None, *, levels: int | None = None) -> StepFit | None:
    """The staircase with the smallest mean error, or None if it has no step.

    A staircase with heights 0, 1, 2, ... gives a neuron with drive x and count k an error of
    ``sum_n |[k >= n] - [x >= edge_n]|`` spikes. Each edge can therefore be chosen by itself: the split of the drives
    that misplaces the fewest neurons. A level is dropped, with all levels above it, unless it lowers the error on
    held-out neurons (None: no test) and is not above ``levels`` (None: no limit).
    """
    order = np.argsort(fitted.drive, kind="stable")
    x, k = fitted.drive[order].astype(np.float64), fitted.count[order]
    edges: list[np.float32] = []
    heights = [0.0]
    top = int(k.max(initial=0))
    for level in range(1, (top if levels is None else min(top, levels)) + 1):
        edge = _best_split(x, k >= level)
        if edge is None or (held_out is not None and not _useful(edge, held_out.count >= level, held_out.drive)):
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


def _useful(edge: np.float32, above: np.ndarray, drive: np.ndarray) -> bool:
    """Whether ``edge`` misplaces fewer neurons than no edge at all does."""
    return bool((above != (drive >= edge)).sum() < above.sum())


def _best_split(x: np.ndarray, above: np.ndarray) -> np.float32 | None:
    """The edge that best separates the sorted drives ``x`` that are ``above`` from the others; None: no edge does."""
    # misplaced[i]: neurons on the wrong side when the i smallest drives are put below the edge
    misplaced = np.concatenate(([0], np.cumsum(above))) + np.concatenate((np.cumsum(~above[::-1])[::-1], [0]))
    # An edge can lie only between different drives.
    possible = np.concatenate(([True], x[1:] > x[:-1], [True]))
    split = int(np.argmin(np.where(possible, misplaced, len(x) + 1)))
    if split == len(x):
        return None
    low = x[split - 1] if split > 0 else x[0] - 1e-3 * max(1.0, abs(x[0]))
    edge = np.float32((low + x[split]) / 2)
    # Between neighbouring numbers, the midpoint may round down onto the drive below the edge.
    return edge if edge > low else np.float32(x[split])


def per_channel(
    fitted: Neurons, held_out: Neurons | None, shared: StepFit, channels: int, levels: Sequence[int] | None = None
) -> StepFit:
    """:func:`change_points` of each channel; a channel without a step receives ``shared``."""
    rows = []
    for channel in range(channels):
        own = fitted.take(fitted.channel == channel)
        tests = held_out and held_out.take(held_out.channel == channel)
        rows.append(change_points(own, tests, levels=levels[channel] if levels else None) or shared)
    return _stack(rows)


def closed_form(layer: SpikingConv2d, encoding: Encoding, top: int) -> StepFit:
    """floor(F T) of Eq. 1 at constant currents, up to ``top`` spikes; one row per channel if thresholds differ.

    The current flows while input spikes come, and its mean over the presentation is the drive. Time is counted in
    steps, as in the simulation.
    """
    thresholds, row = np.unique(layer.v_threshold.double().cpu().numpy(), return_inverse=True)
    rows = [_closed_form(layer, encoding, threshold, top) for threshold in thresholds]
    return rows[0] if len(rows) == 1 else _stack([rows[number] for number in row])


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

    def lowest_current(level: int) -> float:
        low, high = 0.0, 1.0
        while spikes(high) < level and high < 1e9:
            high *= 2
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if spikes(middle) < level else (low, middle)
        return high

    currents = np.array([lowest_current(level) for level in range(1, top + 1)], np.float32)
    edges, first = np.unique(currents, return_index=True)
    # Where several levels begin at one drive, only the highest is seen.
    heights = [0, *np.append(first[1:], top).tolist()]
    return StepFit(torch.from_numpy(edges), torch.tensor(heights, dtype=torch.float32))


def with_even_steps(fit: Fit, count: int, neurons: Neurons) -> Fit:
    """``fit`` with ``count`` equal steps along the line through its own, from silence to its highest step."""
    check(count >= 1, f"`steps` {count}: give 1 or more")
    rows = []
    edges, heights = (values.double().reshape(-1, values.shape[-1]) for values in (fit.steps.edges, fit.steps.heights))
    levels = torch.arange(count + 1, dtype=torch.float64)
    for e, h in zip(edges, heights, strict=True):
        slope, low, _ = step_line(e[e.isfinite()].tolist(), h.tolist())
        top = h[e.isfinite().sum()].item()
        even = low + (levels[1:] - 0.5) / count * top / slope
        rows.append(StepFit(even.to(torch.float32), (levels * top / count).to(torch.float32)))
    steps = _stack(rows) if fit.steps.per_channel else rows[0]
    return Fit(steps, f"{count} equal steps along {fit.kind}", fit.residuals, steps.residual(neurons))


def _stack(rows: list[StepFit]) -> StepFit:
    """Step functions of channels as one, padded to the length of the longest."""
    n = max(len(row.edges) for row in rows)
    edges = torch.full((len(rows), n), torch.inf)
    heights = torch.empty(len(rows), n + 1)
    for row, e, h in zip(rows, edges, heights, strict=True):
        e[: len(row.edges)] = row.edges
        h[: len(row.heights)] = row.heights
        h[len(row.heights) :] = row.heights[-1]
    return StepFit(edges, heights)
