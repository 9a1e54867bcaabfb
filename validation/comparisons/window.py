"""One postsynaptic spike and its presynaptic trains: what the learner, Brian2 synapses and the equations make of them.

The nearest presynaptic spike lies dt away, the number of presynaptic spikes sets the rate f, and many synapses of equal
history draw independently.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from scipy import stats

from snn.calibration import normalised_rates
from snn.engines.base import choose_engine
from snn.layer import SpikingConv2d
from snn.parameters import MILLISECONDS, Encoding, LayerParameters, LIFParameters, STDPParameters
from snn.plasticity import count_events, update
from snn.registries import RULES
from snn.runtime.cli import RunOptions
from snn.runtime.errors import check
from snn.runtime.random import draw_seeds
from snn.runtime.ranges import Range, check_fields
from snn.timegrid import whole_steps
from validation.comparisons.rules import PAIRINGS, compared_rules
from validation.reference.base import reference_of
from validation.reference.equations import magnitudes, normalised_rate
from validation.reference.neuron import load_brian2
from validation.reference.plasticity import Plasticity, mini_batch_update, plastic_synapses
from validation.report import FALSE_ALARM, Report
from validation.significance import binomial_band, binomial_p, same_rate_p, total_p

MOST_SPIKES = 2**30
"""Bound of the presynaptic steps of all synapses at one rate, so that they fit into memory."""


@dataclass(frozen=True)
class WindowConfig:
    """Compare the learning rules with Eq. 2, 4 and 5 and with Brian2 synapses.

    Each rule is compared with both pairings. --stdp.rule, --stdp.pairing, --stdp.n-cap and --encoding.kind have no
    effect.
    """

    out: Path = Path("stdp_window.h5")
    """File to write; figure beside it."""
    quick: bool = False
    """A coarser grid, for a check in seconds."""
    rules: tuple[str, ...] = ()
    """Rules to compare; without this flag all registered ones, those of --plugin included."""
    draws: Annotated[int, Range(1000, MOST_SPIKES)] = 10_000
    """Synapses that draw at each point."""
    longest_lag: Annotated[float, MILLISECONDS] = 150.0
    """End (not included) of the grid of dt = t_post - t_pre, in ms; 10 ms after the LTP window are always covered."""
    longest_wait: Annotated[float, MILLISECONDS] = 90.0
    """End (not included) of the grid of -dt, the time to the next presynaptic spike, in ms."""
    encoding: Encoding = field(default_factory=Encoding)
    stdp: STDPParameters = field(default_factory=STDPParameters)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_fields(self)
        for rule in self.rules:
            RULES.check(rule)
        object.__setattr__(self, "stdp", self.stdp.with_ltd_delay(self.encoding.f_min))
        window, dt = self.stdp.ltp_window, self.encoding.dt
        check(whole_steps(window, dt) >= 1, f"`ltp_window` {window} ms: give a multiple of dt = {dt} ms")
        lags, spikes, steps = self.lags(), int(self.spike_numbers().max()), self.encoding.n_steps
        check(
            lags.max() - lags.min() + 2 * spikes <= steps,
            f"dt from {lags.min() * dt:g} to {lags.max() * dt:g} ms with {spikes} spikes a train do not fit into "
            f"{steps * dt:g} ms: raise `presentation`, or lower `longest_lag`, `longest_wait` or "
            "`ltp_window`",
        )
        size = steps * len(lags) * self.draws
        check(
            size <= MOST_SPIKES,
            f"{steps} steps of {len(lags)} dt with {self.draws} draws: expected at most {MOST_SPIKES} in all; lower "
            "`draws`, or raise `dt`",
        )

    def lags(self) -> np.ndarray:
        """dt of Eq. 5 in steps, int64: fine around the LTP window, coarse beyond; both ends of the window."""
        dt = self.encoding.dt
        fine, coarse = self.stdp.ltp_window + 10, 30.0 if self.quick else 10.0
        near = np.arange(0, fine / dt, 3 if self.quick else 1)
        window = whole_steps(self.stdp.ltp_window, dt)
        ahead = np.concatenate([near, [window, window + 1], np.arange(fine, self.longest_lag, coarse) / dt])
        behind = np.concatenate([near[1:], [1], np.arange(fine, self.longest_wait, coarse) / dt])
        return np.unique(np.rint(np.concatenate([-behind, ahead])).astype(int))

    def spike_numbers(self) -> np.ndarray:
        """Presynaptic spikes in a presentation: beyond both limits of f, half way, and in the full grid more."""
        p = self.encoding
        low, high = p.f_min * p.presentation / 1000, p.f_max * p.presentation / 1000
        numbers = [low / 3, (low + high) / 2, high * 1.2]
        if not self.quick:
            numbers += [low, low + (high - low) / 4, high]
        return np.unique(np.rint(numbers).clip(1).astype(int))

    def conductances(self) -> np.ndarray:
        """Conductances across their range, both ends included."""
        shares = np.array([0.0, 0.4, 1.0]) if self.quick else np.array([0.0, 0.25, 0.5, 0.75, 1.0])
        return self.stdp.g_min + shares * (self.stdp.g_max - self.stdp.g_min)

    def learners(self) -> list[STDPParameters]:
        """Every rule that is compared and has a reference, with both pairings."""
        rules = compared_rules(self.rules)
        return [replace(self.stdp, rule=rule, pairing=pairing) for rule in rules for pairing in PAIRINGS]

    @property
    def rate_limits(self) -> tuple[float, float]:
        """f_min and f_max of Eq. 5, in Hz."""
        return self.encoding.f_min, self.encoding.f_max


class Realised(NamedTuple):
    """What synapses did: float64 (G, F, L) for G conductances, F rates and L lags."""

    ltp: np.ndarray
    """Potentiations, out of ``draws``."""
    ltd: np.ndarray
    """Depressions, out of ``draws``."""
    change: np.ndarray
    """Mean change of the conductance."""


class RuleResult(NamedTuple):
    """What one rule with one pairing did."""

    learner: Realised
    brian2: Realised
    equation: Realised
    """Probabilities in place of counts."""


def trains(config: WindowConfig) -> tuple[np.ndarray, int]:
    """Presynaptic trains bool (T, F, L), and the step of the postsynaptic spike.

    The nearest spike lies at the lag, the others right before it (dt >= 0) or right after it (dt < 0).
    """
    lags, numbers = config.lags(), config.spike_numbers()
    post = int(lags.max() + numbers.max())
    spikes = np.zeros((config.encoding.n_steps, len(numbers), len(lags)), dtype=bool)
    for f, number in enumerate(numbers):
        for column, lag in enumerate(lags):
            nearest = post - lag
            chosen = nearest - np.arange(number) if lag >= 0 else nearest + np.arange(number)
            spikes[chosen, f, column] = True
    return spikes, post


def learner_draws(config: WindowConfig, p: STDPParameters, generator: torch.Generator) -> Realised:
    """Counts and changes by the learner's own steps: rates, draws at the postsynaptic spike, update of a mini-batch."""
    device, engine = generator.device, choose_engine("auto", generator.device)
    spikes, step = trains(config)
    conductance, lags = torch.from_numpy(config.conductances()).to(device), spikes.shape[2]
    channels, ones = len(conductance), torch.ones_like(conductance)
    geometry = LayerParameters(channels, kernel_size=1, padding=0)
    before = conductance.reshape(-1, 1, 1, 1).expand(channels, lags, 1, 1)
    layer = SpikingConv2d(before, ones, ones, geometry, LIFParameters(), config.encoding.dt)
    parts = []
    for pattern in torch.from_numpy(spikes).to(device).unbind(1):
        # Lags are input channels, conductances output channels, draws places of a 1x1 convolution.
        pre = pattern[:, None, :, None, None].expand(-1, 1, lags, 1, config.draws)
        post = torch.zeros(len(pre), 1, channels, 1, config.draws, dtype=torch.bool, device=device)
        post[step] = True
        rates = normalised_rates(pre, config.encoding.presentation, config.rate_limits)
        counts = count_events(engine, layer, pre, post, rates, p, draw_seeds(1, generator))
        # A cap of one event makes the change of the batch the mean change per event.
        after = update(before, counts, replace(p, n_cap=1))
        values = (counts.ltp, counts.ltd, after - before)
        parts.append([value[:, :, 0, 0].cpu().numpy() for value in values])
    return Realised(*(np.stack(column, axis=1) for column in zip(*parts, strict=True)))


def brian2_draws(config: WindowConfig, p: STDPParameters, seed: tuple[int, int]) -> Realised:
    """Counts and changes by Brian2 synapses."""
    b2 = load_brian2()
    b2.seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    spikes, step = trains(config)
    steps, rates, lags = spikes.shape
    dt = config.encoding.dt
    time, neuron = np.nonzero(spikes.reshape(steps, -1))
    fn = normalised_rate(spikes.sum(0).ravel() * (1000 / config.encoding.presentation), config.rate_limits)
    parts = []
    for conductance in config.conductances():
        pre = b2.SpikeGeneratorGroup(rates * lags, neuron, time * dt * b2.ms, dt=dt * b2.ms, when="inputs")
        post = b2.SpikeGeneratorGroup(1, [0], [step * dt] * b2.ms, dt=dt * b2.ms)
        every = np.repeat(np.arange(rates * lags), config.draws)
        synapses = plastic_synapses(pre, post, every, np.zeros_like(every), Plasticity(p), dt)
        synapses.G = conductance
        synapses.fn = np.repeat(fn, config.draws)
        synapses.pre.when = "arrivals"
        network = b2.Network(pre, post, synapses)
        network.schedule = ["start", "inputs", "arrivals", "groups", "thresholds", "synapses", "resets", "end"]
        network.run(steps * dt * b2.ms, namespace={})
        names = ("potentiations", "depressions", "change", "trials")
        ltp, ltd, change, trials = (
            np.asarray(getattr(synapses, name)).reshape(rates, lags, config.draws).sum(-1) for name in names
        )
        after = mini_batch_update(conductance, trials, change, replace(p, n_cap=1))
        parts.append([ltp, ltd, after - conductance])
    return Realised(*(np.stack(column) for column in zip(*parts, strict=True)))


def expected(config: WindowConfig, p: STDPParameters) -> Realised:
    """Probabilities and mean changes by the equations."""
    lag = config.lags() * config.encoding.dt
    rate = config.spike_numbers() * (1000 / config.encoding.presentation)
    fn = normalised_rate(rate, config.rate_limits)[:, None]
    if p.pairing == "post":
        # Where the nearest spike comes after the postsynaptic one, there was none before.
        lag = np.where(lag < 0, np.inf, lag)
    ltp, ltd = reference_of(p).probabilities(*np.broadcast_arrays(lag, fn))
    conductance = config.conductances()[:, None, None]
    up, down = magnitudes(conductance, p)
    after = np.clip(conductance + ltp * up - ltd * down, p.g_min, p.g_max)
    shape = after.shape
    return Realised(np.broadcast_to(ltp, shape), np.broadcast_to(ltd, shape), after - conductance)


class Levels(NamedTuple):
    """Levels of the single tests, which together give a false alarm with probability ``FALSE_ALARM``."""

    point: float
    """Of each test at one point: half of the false alarms, over all points."""
    total: float
    """Of each test of a total: the other half, over all totals."""

    @classmethod
    def of(cls, config: WindowConfig) -> "Levels":
        """Of the grid: three tests at each point whose probability is neither 0 nor 1, four totals for each rule."""
        truths = [expected(config, p) for p in config.learners()]
        points = sum(int(((share > 0) & (share < 1)).sum()) for truth in truths for share in (truth.ltp, truth.ltd))
        return cls(FALSE_ALARM / 2 / max(1, 3 * points), FALSE_ALARM / 2 / max(1, 4 * len(truths)))


def compare_rule(config: WindowConfig, p: STDPParameters, levels: Levels, result: RuleResult, report: Report) -> None:
    """Compare what learner and Brian2 realised with the equations and with each other."""
    learner, brian2, truth = result
    name, draws, kinds = f"{p.rule}, {p.pairing}", config.draws, ("ltp", "ltd")
    for side, realised in (("learner", learner), ("Brian2", brian2)):
        pairs = [(getattr(realised, kind), draws, getattr(truth, kind)) for kind in kinds]
        # Unlike min, NumPy's keeps a value that is no number.
        smallest = np.min([binomial_p(*pair).min() for pair in pairs])
        total = np.min([total_p(*pair) for pair in pairs])
        visible = max(_visible_change(draws, probability, levels.total) for _, _, probability in pairs)
        report.add(
            f"{name}: P(LTP), P(LTD) of {side} and Eq. 5",
            f"smallest p of {2 * truth.ltp.size} points {smallest:.2g}, of the totals {total:.2g}"
            + (f" (a change of gamma by {visible:.2%} would show in half of all runs)" if visible else ""),
            f"at least {levels.point:.1g} and {levels.total:.1g}, exact binomial and normal",
            smallest >= levels.point and total >= levels.total,
            of=2 * truth.ltp.size,
            figures=[smallest, total],
        )
    both = np.min([same_rate_p(getattr(learner, kind), getattr(brian2, kind), draws).min() for kind in kinds])
    report.add(
        f"{name}: the same of learner and Brian2",
        f"smallest p {both:.2g}",
        f"at least {levels.point:.1g}, Fisher's exact test",
        both >= levels.point,
        of=truth.ltp.size,
        figures=[both],
    )
    compare_changes(config, p, levels.point, result, report)


def compare_changes(config: WindowConfig, p: STDPParameters, level: float, result: RuleResult, report: Report) -> None:
    """Compare mean changes: exactly with Eq. 2 for what was drawn, within the spread of the draws with Eq. 4."""
    conductance, truth, name = config.conductances()[:, None, None], result.equation, f"{p.rule}, {p.pairing}"
    up, down = magnitudes(conductance, p)
    step = max(up.max(), down.max())
    width: np.ndarray | float = 1e-10 * step
    for probability, size in ((truth.ltp, up), (truth.ltd, down)):
        low, high = binomial_band(config.draws, probability, level)
        width = width + np.maximum(high - probability, probability - low) * size
    errors, used = [], 0.0
    for realised in (result.learner, result.brian2):
        after = np.clip(conductance + (realised.ltp * up - realised.ltd * down) / config.draws, p.g_min, p.g_max)
        errors.append(np.abs(realised.change - (after - conductance)).max() / step)
        used = np.maximum(used, (np.abs(realised.change - truth.change) / width).max())
    report.add(
        f"{name}: mean change per draw and Eq. 2, learner and Brian2, largest difference over largest dG",
        f"{errors[0]:.1e} and {errors[1]:.1e}",
        "at most 1e-10",
        max(errors) <= 1e-10,
        of=truth.change.size,
        figures=errors,
    )
    report.add(
        f"{name}: mean change of the conductance and Eq. 4",
        f"{used:.2f} of the binomial band is used",
        "at most 1",
        used <= 1,
        of=truth.change.size,
        figures=[used],
    )


def _visible_change(draws: int, probability: np.ndarray, level: float) -> float:
    """Relative change of all probabilities that the test of the total finds in half of the cases; 0 if none can."""
    total = (draws * probability).sum()
    spread = np.sqrt((draws * probability * (1 - probability)).sum())
    return float(stats.norm.isf(level / 2) * spread / total) if spread else 0.0
