"""The learning rule, draw by draw (paper, Eq. 2, 4 and 5): the learner's code, the equations and a Brian2 synapse.

One postsynaptic spike meets a presynaptic train whose nearest spike lies dt away and whose number of spikes sets the
rate f; many synapses of equal history draw independently. Compared are the shares of potentiations and depressions,
and the mean change of the conductance.
"""

import math
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from scipy import stats

from snn.calibration import normalised_rates
from snn.parameters import Encoding, STDPParameters
from snn.plasticity import count_events, update
from snn.runtime.cli import RunOptions, command_line, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import check
from snn.runtime.h5 import Schema, write_file
from snn.runtime.outputs import beside, check_outputs
from snn.runtime.progress import progress
from snn.runtime.random import draw_seeds
from snn.timegrid import whole_steps
from validation.brian2_neuron import load_brian2
from validation.brian2_stdp import mini_batch_update, plastic_synapses
from validation.equations import magnitudes, normalised_rate, probabilities
from validation.figures import draw_window
from validation.report import FALSE_ALARM, Report
from validation.significance import binomial_band, binomial_p, same_rate_p, total_p

SCHEMA = Schema("stdp_window/1", "python -m validation.stdp_window")
MOST_SPIKES = 2**30
"""Bound of the presynaptic steps of all synapses at one rate, so that they fit into memory."""


@dataclass(frozen=True)
class WindowConfig:
    """Compare the learning rule with Eq. 2, 4 and 5 and with Brian2 synapses.

    All rules and pairings are compared, whatever --stdp.rule and --stdp.pairing say; --stdp.n-cap and --encoding.kind
    have no effect.
    """

    out: Path = Path("stdp_window.h5")
    """File to write; figure beside it."""
    quick: bool = False
    """A coarser grid, for a check in seconds."""
    draws: int = 10_000
    """Synapses that draw at each point."""
    longest_lag: float = 150.0
    """End (not included) of the grid of dt = t_post - t_pre, in ms; it reaches 10 ms beyond the LTP window at least."""
    longest_wait: float = 90.0
    """The same of -dt, from the postsynaptic to the next presynaptic spike, in ms."""
    encoding: Encoding = field(default_factory=Encoding)
    stdp: STDPParameters = field(default_factory=STDPParameters)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check(self.draws >= 1000, f"`draws` {self.draws}: expected 1000 or more")
        object.__setattr__(self, "stdp", self.stdp.with_ltd_delay(self.encoding.f_min))
        window, dt = self.stdp.ltp_window, self.encoding.dt
        check(whole_steps(window, dt) >= 1, f"`ltp_window` {window} ms: give a multiple of dt = {dt} ms")
        for name in ("longest_lag", "longest_wait"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"{name} = {value} ms: expected 0 or more")
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

    def rules(self) -> list[STDPParameters]:
        """Every rule with every pairing."""
        pairings = ("post", "two-sided")
        combinations = [(rule, pairing) for rule in ("fd", "stochastic", "deterministic") for pairing in pairings]
        return [replace(self.stdp, rule=rule, pairing=pairing) for rule, pairing in combinations]


class Realised(NamedTuple):
    """What synapses did: float64 (G, F, L) for conductances, rates and lags."""

    ltp: np.ndarray
    """Potentiations, out of ``draws``."""
    ltd: np.ndarray
    """Depressions, out of ``draws``."""
    change: np.ndarray
    """Mean change of the conductance."""


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
    """The learner's own steps: rates, draws at postsynaptic spikes, update of a mini-batch."""
    device = generator.device
    spikes, step = trains(config)
    conductance = torch.from_numpy(config.conductances()).to(device)
    maps, lags = len(conductance), spikes.shape[2]
    parts = []
    for pattern in torch.from_numpy(spikes).to(device).unbind(1):
        # Lags are input maps, conductances output maps, draws places of a 1x1 convolution.
        pre = pattern[:, None, :, None, None].expand(-1, 1, lags, 1, config.draws)
        post = torch.zeros(len(pre), 1, maps, 1, config.draws, dtype=torch.bool, device=device)
        post[step] = True
        rates = normalised_rates(pre, config.encoding.presentation, _limits(config))
        counts = count_events(pre, post, rates, 1, 1, 0, config.encoding.dt, p, draw_seeds(1, generator))
        before = conductance.reshape(-1, 1, 1, 1).expand(maps, lags, 1, 1)
        # A cap of one event makes the change of the batch the mean change per event.
        after = update(before, counts, replace(p, n_cap=1))
        values = (counts.ltp, counts.ltd, after - before)
        parts.append([value[:, :, 0, 0].cpu().numpy() for value in values])
    return Realised(*(np.stack(column, axis=1) for column in zip(*parts, strict=True)))


def brian2_draws(config: WindowConfig, p: STDPParameters, seed: tuple[int, int]) -> Realised:
    """The same from Brian2 synapses."""
    b2 = load_brian2()
    b2.seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
    spikes, step = trains(config)
    steps, rates, lags = spikes.shape
    dt = config.encoding.dt
    time, neuron = np.nonzero(spikes.reshape(steps, -1))
    fn = normalised_rate(spikes.sum(0).ravel() * (1000 / config.encoding.presentation), _limits(config))
    parts = []
    for conductance in config.conductances():
        pre = b2.SpikeGeneratorGroup(rates * lags, neuron, time * dt * b2.ms, dt=dt * b2.ms, when="inputs")
        post = b2.SpikeGeneratorGroup(1, [0], [step * dt] * b2.ms, dt=dt * b2.ms)
        every = np.repeat(np.arange(rates * lags), config.draws)
        synapses = plastic_synapses(pre, post, every, np.zeros_like(every), p, dt)
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


def _limits(config: WindowConfig) -> tuple[float, float]:
    return config.encoding.f_min, config.encoding.f_max


def expected(config: WindowConfig, p: STDPParameters) -> Realised:
    """The same from the equations: probabilities in place of counts, (G, F, L)."""
    lag = config.lags() * config.encoding.dt
    rate = config.spike_numbers() * (1000 / config.encoding.presentation)
    fn = normalised_rate(rate, _limits(config))[:, None]
    if p.pairing == "post":
        # Where the nearest spike comes after the postsynaptic one, there was none before.
        lag = np.where(lag < 0, np.inf, lag)
    ltp, ltd = probabilities(lag, fn, p)
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
        truths = [expected(config, p) for p in config.rules()]
        points = sum(int(((share > 0) & (share < 1)).sum()) for truth in truths for share in (truth.ltp, truth.ltd))
        return cls(FALSE_ALARM / 2 / max(1, 3 * points), FALSE_ALARM / 2 / (4 * len(truths)))


def compare_rule(
    config: WindowConfig, p: STDPParameters, levels: Levels, report: Report, learner: Realised, brian2: Realised
) -> Realised:
    """Compare what learner and Brian2 realised with the equations and with each other."""
    truth, name = expected(config, p), f"{p.rule}, {p.pairing}"
    draws, level, level_total = config.draws, levels.point, levels.total
    for who, found in (("learner", learner), ("Brian2", brian2)):
        p_values = [binomial_p(getattr(found, kind), draws, getattr(truth, kind)) for kind in ("ltp", "ltd")]
        smallest = min(values.min() for values in p_values)
        totals = [total_p(getattr(found, kind), draws, getattr(truth, kind)) for kind in ("ltp", "ltd")]
        visible = max(_visible_change(draws, getattr(truth, kind), level_total) for kind in ("ltp", "ltd"))
        report.add(
            f"{name}: P(LTP), P(LTD) of {who} and Eq. 5",
            f"smallest p of {2 * truth.ltp.size} points {smallest:.2g}, of the totals {min(totals):.2g}"
            + (f" (a change of gamma by {visible:.2%} would show in half of all runs)" if visible else ""),
            f"at least {level:.1g} and {level_total:.1g}, exact binomial and normal",
            smallest >= level and min(totals) >= level_total,
        )
    both = min(same_rate_p(getattr(learner, kind), getattr(brian2, kind), draws).min() for kind in ("ltp", "ltd"))
    report.add(
        f"{name}: the same of learner and Brian2",
        f"smallest p {both:.2g}",
        f"at least {level:.1g}, Fisher's exact test",
        both >= level,
    )
    _compare_changes(config, p, level, report, learner, brian2, truth, name)
    return truth


def _compare_changes(
    config: WindowConfig,
    p: STDPParameters,
    level: float,
    report: Report,
    learner: Realised,
    brian2: Realised,
    truth: Realised,
    name: str,
) -> None:
    """Mean changes: exactly Eq. 2 for what was drawn, and near Eq. 4 within the spread of the draws."""
    conductance = config.conductances()[:, None, None]
    up, down = magnitudes(conductance, p)
    step = max(up.max(), down.max())
    errors = []
    for found in (learner, brian2):
        after = np.clip(conductance + (found.ltp * up - found.ltd * down) / config.draws, p.g_min, p.g_max)
        errors.append(np.abs(found.change - (after - conductance)).max() / step)
    report.add(
        f"{name}: mean change per draw and Eq. 2, learner and Brian2, largest difference over largest dG",
        f"{errors[0]:.1e} and {errors[1]:.1e}",
        "at most 1e-10",
        max(errors) <= 1e-10,
    )
    used = 0.0
    for found in (learner, brian2):
        width = 1e-10 * step
        for kind, size in (("ltp", up), ("ltd", down)):
            probability = getattr(truth, kind)
            low, high = binomial_band(config.draws, probability, level)
            width = width + np.maximum(high - probability, probability - low) * size
        used = max(used, (np.abs(found.change - truth.change) / width).max())
    report.add(
        f"{name}: mean change of the conductance and Eq. 4",
        f"{used:.2f} of the binomial band is used",
        "at most 1",
        used <= 1,
    )


def _visible_change(draws: int, probability: np.ndarray, level: float) -> float:
    """Relative change of all probabilities that the test of the total finds in half of the cases; 0 if none can."""
    total = (draws * probability).sum()
    spread = np.sqrt((draws * probability * (1 - probability)).sum())
    return float(stats.norm.isf(level / 2) * spread / total) if spread else 0.0


def run(config: WindowConfig) -> int:
    """The command: draw, compare, write, draw the picture."""
    picture = beside(config.out, ".png") if config.options.figures else None
    check_outputs(config.out, config.options.json, picture)
    device = choose_device(config.options.device)
    generator = torch.Generator(device).manual_seed(config.options.seed)
    report = Report("validation.stdp_window")
    lags, numbers, conductances = config.lags(), config.spike_numbers(), config.conductances()
    print(
        f"{len(lags)} dt x {len(numbers)} rates x {len(conductances)} conductances, {config.draws} draws each, "
        f"learner on {device.type}; a false alarm in {FALSE_ALARM:.1%} of all runs"
    )
    results, levels = {}, Levels.of(config)
    for number, p in enumerate(progress(config.rules(), "rules", "rule")):
        learner = learner_draws(config, p, generator)
        brian2 = brian2_draws(config, p, (config.options.seed, number))
        truth = compare_rule(config, p, levels, report, learner, brian2)
        results[p.rule, p.pairing] = (learner, brian2, truth)
    tree = {
        "lags": lags * config.encoding.dt,
        "lags_unit": "ms, t_post - t_pre",
        "rates": numbers * (1000 / config.encoding.presentation),
        "rates_unit": "Hz",
        "conductances": conductances,
        "conductances_unit": "1 (g_min to g_max)",
        "draws": config.draws,
        "agrees": report.agrees,
    }
    for (rule, pairing), found in results.items():
        group = tree.setdefault(rule, {})[pairing] = {"axes": "conductance, rate, lag", "change_unit": "conductance"}
        for who, values in zip(("learner", "brian2", "equation"), found, strict=True):
            scale = 1 if who == "equation" else config.draws
            group[who] = {"p_ltp": values.ltp / scale, "p_ltd": values.ltd / scale, "change": values.change}
    command = command_line("validation.stdp_window", config)
    write_file(config.out, SCHEMA, tree, seed=config.options.seed, command=command)
    if picture:
        draw_window(config, results, levels.point, picture)
    return report.close(config.options.json, {}, config.out, picture)


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m validation.stdp_window``."""
    return run_command(WindowConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
