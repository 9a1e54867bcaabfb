"""The response of a neuron to regular trains (paper, Fig. 4): the learner's path, Brian2 and the closed form.

A regular train drives a LIF neuron (Eq. 1) through one synapse, on the path that the learner takes: train, box pulse,
conductance, norse step, reset.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro

from snn.encoding import regular_trains
from snn.engines.base import choose_engine
from snn.parameters import DURATION, POSITIVE, POTENTIAL, Encoding, LayerParameters, LIFParameters
from snn.runtime.cli import RunOptions
from snn.runtime.errors import check
from snn.runtime.progress import progress
from snn.runtime.ranges import check_fields
from snn.spikes import as_dense
from snn.timegrid import whole_steps
from validation.comparisons.neuron import single_synapses
from validation.reference.equations import euler_interval, interval
from validation.reference.neuron import train_response_spikes
from validation.report import Report

MOST_STEPS = 2**30
"""Bound of the steps of all neurons at all rates, so that they fit into memory."""
FLAT_WIDTH = 1.0
"""Narrowest flat region that is listed, in Hz."""


@dataclass(frozen=True)
class FreqResponseConfig:
    """Redraw Figure 4 and compare norse, Brian2 and the closed form."""

    out: Path = Path("freq_response.h5")
    """File to write; figure beside it."""
    quick: bool = False
    """A coarser grid of rates and fewer time steps, for a check in seconds."""
    thresholds: Annotated[tuple[float, ...], POTENTIAL] = (-60.2, -61.5, -63.0, -64.5, -66.0, -67.2)
    """Spiking thresholds, in mV (ours: from the neuron's own to just above its rest)."""
    drives: Annotated[tuple[float, ...], POSITIVE] = (24.0, 28.0, 32.0)
    """Current while the synapse is open (ours: the neuron then fires 6 to 15 times a presentation where pulses
    merge)."""
    lowest_rate: Annotated[float, POSITIVE] = 1.0
    """Lowest presynaptic rate, in Hz."""
    highest_rate: Annotated[float, POSITIVE] = 200.0
    """Highest presynaptic rate, in Hz."""
    rate_step: Annotated[float, POSITIVE] = 0.25
    """Distance of the presynaptic rates, in Hz; 1 Hz with --quick."""
    durations: Annotated[tuple[float, ...], DURATION] = (Encoding.presentation, 2000.0)
    """Durations for which the neuron is watched, in ms: the presentation time first."""
    pulse_width: Annotated[float, DURATION] = LayerParameters.pulse_width
    """Time for which a presynaptic spike keeps its synapse open, in ms (ParallelSpikeSim 2019: 10 to 25)."""
    dt: Annotated[float, DURATION] = Encoding.dt
    """Time step, in ms."""
    lif: LIFParameters = field(default_factory=LIFParameters)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_fields(self)
        check(
            self.lowest_rate < self.highest_rate,
            f"rates from `lowest_rate` {self.lowest_rate} to `highest_rate` {self.highest_rate} Hz: expected lowest < "
            "highest",
        )
        check(
            bool(self.durations and self.thresholds and self.drives), "give at least one duration, threshold and drive"
        )
        check(
            all(whole_steps(duration, self.dt) >= 1 for duration in (*self.durations, self.pulse_width)),
            f"durations {self.durations} ms, pulse_width {self.pulse_width} ms: give multiples of dt = {self.dt} ms",
        )
        tau, lowest = self.lif.tau_mem, min(self.thresholds)
        check(self.dt < tau, f"`dt` {self.dt} ms: expected less than the membrane time constant, {tau:.2f} ms")
        check(
            lowest > self.lif.v_leak,
            f"threshold {lowest} mV is not above rest, {self.lif.v_leak:.2f} mV: the neuron fires without input",
        )
        # Counted before the rates are listed: they may be too many even for that.
        rates = (self.highest_rate - self.lowest_rate) / self.step + 1
        steps = max(self.durations) / self.dt
        size = rates * steps * len(self.drives) * len(self.thresholds)
        check(
            size <= MOST_STEPS,
            f"{rates:.0f} rates of {steps:.0f} steps for {len(self.drives) * len(self.thresholds)} neurons: expected "
            f"at most {MOST_STEPS} in all; raise `dt` or `rate_step`, or lower `highest_rate` or `durations`",
        )
        widest = 1000 / self.durations[0] / 3
        check(
            0 < self.rate_step <= widest,
            f"`rate_step` {self.rate_step} Hz: give {widest:.2f} Hz or less, or steps of the response go unseen",
        )

    @property
    def step(self) -> float:
        """Distance of the presynaptic rates that are compared, in Hz."""
        return max(self.rate_step, min(1.0, 1000 / self.durations[0] / 3)) if self.quick else self.rate_step

    def rates(self) -> np.ndarray:
        """Presynaptic rates in Hz, (R,)."""
        return np.arange(self.lowest_rate, self.highest_rate + self.step / 2, self.step)

    def neurons(self) -> tuple[np.ndarray, np.ndarray]:
        """Drive and threshold of each neuron: all pairs, (D V,) each."""
        drives, thresholds = np.meshgrid(self.drives, self.thresholds, indexing="ij")
        return drives.ravel(), thresholds.ravel()

    @property
    def reproduces_figure(self) -> bool:
        """Whether neurons, drives and presentation are those of the redrawn Fig. 4."""
        names = ("thresholds", "drives", "pulse_width", "dt")
        default = all(getattr(self, name) == type(self).__dataclass_fields__[name].default for name in names)
        return default and self.lif == LIFParameters() and self.durations[0] == Encoding.presentation

    @property
    def merge_rate(self) -> float:
        """Rate in Hz above which the pulses of a train leave no gap."""
        return 1000 / self.pulse_width


class FlatRegion(NamedTuple):
    """Presynaptic rates that give one and the same response."""

    low: float
    """Lowest rate of the grid that lies in it, in Hz."""
    high: float
    """Highest rate of the grid that lies in it, in Hz."""
    height: float
    """Response, in Hz."""


class Responses(NamedTuple):
    """Postsynaptic rates in Hz, (durations, D, V, R) for D drives, V thresholds and R presynaptic rates."""

    norse: np.ndarray
    brian2: np.ndarray
    closed_form: np.ndarray
    """At the mean current of the train, (D, V, R)."""


def response_spikes(
    config: FreqResponseConfig, duration: float, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> np.ndarray:
    """Spikes on the learner's path: bool (T, D, V, R) for D drives, V thresholds and R rates."""
    rates = torch.from_numpy(config.rates()).to(device)
    encoding = Encoding(config.lowest_rate, config.highest_rate, duration, config.dt)
    trains = regular_trains(rates, encoding)[:, None, None, None, :]
    layer = single_synapses(*config.neurons(), config.lif, config.dt, config.pulse_width, dtype).to(device)
    spikes = as_dense(choose_engine("auto", device).simulate(layer, trains, inhibition=False))[:, 0, :, 0]
    return spikes.unflatten(1, (len(config.drives), len(config.thresholds))).cpu().numpy()


def flat_regions(rates: np.ndarray, response: np.ndarray, merge_rate: float, width: float) -> list[FlatRegion]:
    """Interior flat regions of one response curve, in order of rate.

    A region is a maximal run of equal response above 0 Hz that is at least ``width`` Hz wide, ends below ``merge_rate``
    and does not begin at the lowest rate, so that the response differs on both sides.
    """
    starts = np.flatnonzero(np.diff(response, prepend=np.nan) != 0)
    ends = np.append(starts[1:], len(response)) - 1
    return [
        FlatRegion(float(rates[a]), float(rates[z]), float(response[a]))
        for a, z in zip(starts, ends, strict=True)
        if a > 0 and z < len(rates) - 1 and response[a] > 0
        if rates[z + 1] < merge_rate and rates[z] - rates[a] >= width
    ]


def compare_trains(config: FreqResponseConfig, report: Report, device: torch.device) -> Responses:
    """norse against Brian2 in float64 and float32, and against the closed form where pulses merge."""
    drives, thresholds = config.neurons()
    rates_norse, rates_brian2 = [], []
    for duration in progress(config.durations, "responses", "duration"):
        norse = response_spikes(config, duration, torch.float64, device)
        brian2 = train_response_spikes(
            config.rates(), drives, thresholds, config.pulse_width, config.lif, config.dt, duration
        ).reshape(norse.shape)
        differing = int((norse != brian2).any(0).sum())
        report.add(
            f"float64 spike times, norse and Brian2, {duration:g} ms",
            f"{differing} of {norse[0].size} points differ, {brian2.sum()} spikes",
            "0 points",
            differing == 0,
            of=int(brian2.sum()),
        )
        single = response_spikes(config, duration, torch.float32, device)
        times = (single != brian2).any(0).mean()
        difference = np.abs(single.sum(0, dtype=int) - brian2.sum(0, dtype=int))
        report.add(
            f"float32 norse and Brian2, {duration:g} ms",
            f"spike times differ at {times:.2%} of the points, counts at {(difference > 0).mean():.2%}, by at most "
            f"{difference.max()}",
            "times at most at 1 % of the points, counts by 1 spike",
            times <= 0.01 and difference.max() <= 1,
            of=int(brian2.sum()),
            figures=[times],
        )
        rates_norse.append(norse.sum(0) * (1000 / duration))
        rates_brian2.append(brian2.sum(0) * (1000 / duration))
        compare_merged(config, norse, duration, report)
    open_share = np.minimum(1.0, config.rates() * config.pulse_width / 1000)
    intervals = interval(drives[:, None] * open_share, thresholds[:, None], config.lif)
    closed = (1000 / intervals).reshape(rates_norse[0].shape)
    return Responses(np.stack(rates_norse), np.stack(rates_brian2), closed)


def compare_merged(config: FreqResponseConfig, spikes: np.ndarray, duration: float, report: Report) -> None:
    """Where pulses merge, each inter-spike interval of ``spikes`` (T, D, V, R) against both closed forms."""
    drives, thresholds = config.neurons()
    pulse = whole_steps(config.pulse_width, config.dt)
    # The trains are on the time grid: gaps vary by a step.
    merged = np.ceil(1000 / (config.rates() * config.dt) - 1e-9) <= pulse
    constant = spikes[..., merged].reshape(len(spikes), len(drives), merged.sum())
    expected = euler_interval(drives, thresholds, config.lif, config.dt)
    closed = interval(drives, thresholds, config.lif)
    wrong = intervals = 0
    deviation = 0.0
    for neuron, train in np.ndindex(len(drives), int(merged.sum())):
        measured = np.diff(np.flatnonzero(constant[:, neuron, train]))
        intervals += len(measured)
        wrong += int((measured != expected[neuron]).sum())
        deviation = np.maximum(deviation, np.abs(measured * config.dt - closed[neuron]).max(initial=0.0))
    report.add(
        f"inter-spike intervals above {config.merge_rate:.1f} Hz and closed form of Euler's method, {duration:g} ms",
        f"{wrong} of {intervals} differ",
        "0",
        wrong == 0,
        of=intervals,
    )
    longest = closed[np.isfinite(closed)].max(initial=0.0)
    # A spike waits for the end of its step, and Euler's method runs ahead by about dt/(2 tau) of the interval.
    bound = config.dt * (1 + longest / config.lif.tau_mem)
    report.add(
        "the same intervals and the closed form of Eq. 1, largest difference",
        f"{deviation:.2f} ms",
        f"at most {bound:.2f} ms, a step and twice Euler's error",
        deviation <= bound,
        of=intervals,
        figures=[deviation, bound],
    )


def list_regions(config: FreqResponseConfig, response: np.ndarray, report: Report) -> list[dict[str, float | bool]]:
    """Flat regions of all curves (D, V, R) at the presentation time, printed and as records.

    The train itself comes in steps, floor(F T) spikes, so even a relay would have flat regions, 1/T wide. Wider ones
    are the neuron's: each curve must have at least four. With other neurons or drives than the defaults, regions are
    listed without a verdict.
    """
    presentation, records, fewest = config.durations[0], [], np.inf
    step = 1000 / presentation
    print(f"interior flat regions at {presentation:g} ms, presynaptic Hz from-to: postsynaptic Hz")
    print(f"(*: not wider than {step:.2f} Hz, so that the train alone may make it)")
    for d, drive in enumerate(config.drives):
        for v, threshold in enumerate(config.thresholds):
            shown, wider = [], 0
            for low, high, height in flat_regions(config.rates(), response[d, v], config.merge_rate, FLAT_WIDTH):
                own = high - low > step
                wider += own
                shown.append(f"{low:g}-{high:g}: {height:.1f}{'' if own else '*'}")
                record = {"drive": drive, "v_threshold_mV": threshold, "low_Hz": low, "high_Hz": high}
                records.append(record | {"height_Hz": height, "wider_than_train": own})
            fewest = min(fewest, wider)
            print(f"  drive {drive:g}, threshold {threshold:g} mV: {'  '.join(shown)}")
    if config.reproduces_figure:
        report.add(
            f"interior flat regions below {config.merge_rate:.1f} Hz at {presentation:g} ms that are wider than "
            f"{step:.2f} Hz, fewest on any curve",
            str(fewest),
            "at least 4",
            fewest >= 4,
            of=response.size,
            figures=[fewest],
        )
    return records
