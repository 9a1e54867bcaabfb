"""Which synaptic events frequency dependence changes, and what is left of it in conductances and in the probe.

    python -m benchmarks.frequency_dependence --data folder:cifar10 --out frequency_dependence.png

The first layer learns by rule fd. In the last quarter of its updates, the synaptic events of some images are counted by
the time since the last presynaptic spike (*lag*) and by the presynaptic rate. From these counts follow, without further
draws, what fd and the plain stochastic rule (phi = 0) would do at each event if both had the same random number, and
the balance ln(LTP/LTD) of each synapse under either rule. The layer then learns by the other rules from the same start
and the same draws, and by fd with other draws and another order of images, which is the yardstick for their difference.
All are probed as in ``benchmarks.features`` (converted responses).
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.presets import before_learning, first_layer
from benchmarks.probe import CONDITIONS, Sizes, Split, converted, fit_classifier, pooled, split_images, with_noise
from snn.data import image_folders
from snn.data_source import DataSource
from snn.engines.base import choose_engine
from snn.geometry import ConvGeometry
from snn.image_cache import Caching
from snn.learner import LayerLearner, present
from snn.learning import PRESETS, Learning, PresetName
from snn.network import LearnedLayer, SpikingNetwork, UnfinishedLayer
from snn.registries import RULES
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs, save_figure
from snn.runtime.processes import Processes
from snn.runtime.progress import progress
from snn.runtime.random import ONE
from snn.spikes import spike_counts

UPDATES, IMAGES = 16, 4
"""Updates whose events are counted, and images of each."""
ENGINE = choose_engine("events")
OTHER_DRAWS = "fd, other draws"
COLOURS = {"fd": "C0", "stochastic": "C1", "deterministic": "C2", OTHER_DRAWS: "0.6"}


@dataclass(frozen=True)
class FrequencyDependenceConfig:
    """Show which synaptic events frequency dependence changes, and what comes of it."""

    out: Path
    """PNG to write."""
    preset: PresetName = "retina"
    """Where settings of learning start from (see snn.learn); only their first layer learns."""
    seed: int = 0
    """Of learning."""
    learn_images: int = Sizes().learn
    """Training images to learn on."""
    fit_images: int = Sizes().fit
    """Further training images to fit the classifier to."""
    test_images: int = Sizes().test
    """Further training images to test it on."""
    data_source: Annotated[DataSource, tyro.conf.arg(name="")] = field(default_factory=DataSource)
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)
    learning: Annotated[Learning, tyro.conf.arg(name="")] = field(default_factory=Learning)

    def __post_init__(self) -> None:
        Sizes(self.learn_images, self.fit_images, self.test_images).check()
        check(self.learning.stdp.pairing == "post", "`pairing` two-sided: only the events of pairing post are shown")


class Run:
    """Learning of the first layer by one rule, with draws of one seed."""

    def __init__(self, images: Tensor, network: SpikingNetwork, rule: str, draws: int) -> None:
        p = network.learning
        p = replace(p, stdp=replace(p.stdp, rule=rule))
        self.network, self.images = replace(network, learning=p, seed=draws), images
        self.learner = LayerLearner(images, 0, self.network, torch.device("cpu"), ENGINE, Processes())

    def updates(self, start: UnfinishedLayer) -> Iterator[UnfinishedLayer]:
        """The layer before each update, and at the end."""
        yield start
        while start.updates < self.network.learning.updates(len(self.images)):
            start = self.learner.step(start)
            yield start

    def finish(self, end: UnfinishedLayer) -> LearnedLayer:
        """The layer as it answers."""
        return self.learner.finish(end)


def synaptic_events(
    pre: np.ndarray, post: np.ndarray, level: np.ndarray, levels: int, geometry: ConvGeometry
) -> np.ndarray:
    """Events of one image by synapse, lag and rate: int64 (C_out, C_in, k, k, T + 1, levels).

    Args:
        pre, post: spikes, bool (T, C, H, W).
        level: presynaptic spike counts, (C_in, H, W).
        levels: more than the largest of them.
        geometry: of the convolution.

    The lag is that of the last presynaptic spike up to the postsynaptic one, in steps; T for none.
    """
    steps, c_in = len(pre), geometry.channels_in
    size, stride, padding = geometry.kernel_size, geometry.stride, geometry.padding
    number = np.arange(steps).reshape(-1, 1, 1, 1)
    last = np.maximum.accumulate(np.where(pre, number, -steps), axis=0)
    lag = np.minimum(number - last, steps)
    events = np.zeros((geometry.channels_out, c_in, size, size, steps + 1, levels), np.int64)
    t, channel, y, x = np.nonzero(post)
    channels = np.arange(c_in)
    for ky in range(size):
        for kx in range(size):
            row, column = y * stride - padding + ky, x * stride - padding + kx
            # A synapse that falls on padding does not exist.
            there = (row >= 0) & (row < pre.shape[2]) & (column >= 0) & (column < pre.shape[3])
            row, column, place = row[there], column[there], (channel[there][:, None], channels)
            found = lag[t[there], :, row, column], level[:, row, column].T
            np.add.at(events[:, :, ky, kx], (*place, *found), 1)
    return events


def count_events(run: Run, state: UnfinishedLayer, levels: int) -> np.ndarray:
    """Events, as :func:`synaptic_events`, of images of the next mini-batch of a layer that learns."""
    p = run.network.learning
    generator = torch.Generator().manual_seed(state.updates)
    chosen = torch.randint(len(run.images), (IMAGES,), generator=generator)
    seeds = torch.randint(2**62, (IMAGES,), generator=generator)
    pre = run.learner.presynaptic(run.images[chosen], seeds)
    _, post = present(ENGINE, state.layer, pre, state.rate_limits, p.rule, seeds)
    geometry = state.layer.convolution(pre.shape)
    counts, before, after = (part.numpy() for part in (spike_counts(pre), pre.to_dense(), post.to_dense()))
    images = range(IMAGES)
    return sum(synaptic_events(before[:, i], after[:, i], counts[i], levels, geometry) for i in images)


class Events(NamedTuple):
    """Synaptic events of a layer that learns by fd, and what two rules do at them."""

    counts: np.ndarray
    """(C_out, C_in, k, k, T + 1, levels), as :func:`synaptic_events`."""
    lags: np.ndarray
    """In ms, (T + 1,); the last is inf, for no presynaptic spike."""
    rates: np.ndarray
    """Of the levels, in Hz."""
    ltp: dict[str, np.ndarray]
    """Probability of LTP by rule, (T + 1, levels)."""
    ltd: dict[str, np.ndarray]

    @property
    def by_lag_and_rate(self) -> np.ndarray:
        """Share of the events, (T + 1, levels)."""
        total = self.counts.sum((0, 1, 2, 3))
        return total / total.sum()

    def balance(self, rule: str) -> np.ndarray:
        """ln(LTP/LTD) expected of each synapse, (C_out, synapses), less its channel's mean."""
        up, down = ((self.counts * table).sum((-1, -2)) for table in (self.ltp[rule], self.ltd[rule]))
        # A synapse without one kind of event counts half of one.
        balance = np.log((up + 0.5) / (down + 0.5)).reshape(len(up), -1)
        return balance - balance.mean(1, keepdims=True)

    def outcomes(self) -> dict[str, float]:
        """Shares of the events by what happens under fd and stochastic with the same random number."""
        share = self.by_lag_and_rate
        found = {}
        for name, table in (("LTP", self.ltp), ("LTD", self.ltd)):
            fd, plain = table["fd"], table["stochastic"]
            found[f"{name} under both"] = float((share * np.minimum(fd, plain)).sum())
            found[f"{name} under fd only"] = float((share * (fd - plain).clip(0)).sum())
            found[f"{name} under stochastic only"] = float((share * (plain - fd).clip(0)).sum())
        found["nothing under either"] = 1 - sum(found.values())
        return found


def chances(p: Learning, rule: str, levels: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of LTP and LTD of a rule by lag and rate, (T + 1, levels) each."""
    encoding = p.encoding
    rates = torch.arange(levels) * (1000 / encoding.presentation)
    fn = ((rates - encoding.f_min) / (encoding.f_max - encoding.f_min)).clamp(0, 1)
    (table,) = RULES[rule](p.rule).chances(encoding.n_steps, encoding.dt, fn)
    return (table.clamp(min=0) / ONE).numpy(), (-table.clamp(max=0) / ONE).numpy()


def learn_all(images: Tensor, p: Learning, seed: int) -> tuple[dict[str, LearnedLayer], Events, SpikingNetwork]:
    """Layers learned from one start, events of the first of them, and the network without layers."""
    network = before_learning(images, p, seed)
    total = p.updates(len(images))
    counted = set(np.linspace(total * 3 // 4, total - 1, UPDATES).astype(int).tolist())
    levels = int(p.encoding.f_max * p.encoding.presentation / 1000 + 1e-5) + 1
    runs = {rule: Run(images, network, rule, seed) for rule in ("fd", "stochastic", "deterministic")}
    runs[OTHER_DRAWS] = Run(images, network, "fd", seed + 1)
    start, learned, counts = runs["fd"].learner.start(), {}, np.zeros(())
    for name, run in runs.items():
        for state in progress(run.updates(start), f"learning, {name}", "update", total + 1):
            if name == "fd" and state.updates in counted:
                counts = counts + count_events(run, state, levels)
        learned[name] = run.finish(state)
    encoding = p.encoding
    lags = np.append(np.arange(encoding.n_steps) * encoding.dt, np.inf)
    ltp, ltd = ({rule: chances(p, rule, levels)[part] for rule in ("fd", "stochastic")} for part in (0, 1))
    return learned, Events(counts, lags, np.arange(levels) * (1000 / encoding.presentation), ltp, ltd), network


def probe(network: SpikingNetwork, layer: LearnedLayer, split: Split) -> list[float]:
    """Accuracy of the linear classifier on converted responses under each of the conditions, in %."""
    respond = converted(replace(network, layers=(layer,)), split.learn)
    classifier = fit_classifier(pooled(respond, split.fit), split.fit_labels)
    tests = (pooled(respond, with_noise(split.test, condition)) for condition in CONDITIONS)
    return [classifier.accuracy(features, split.test_labels) for features in tests]


def rms(values: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.square(values).mean()))


def conductances(layer: LearnedLayer) -> np.ndarray:
    """(C_out, synapses)."""
    return layer.layer.conductance.flatten(1).numpy()


def report(events: Events, learned: dict[str, LearnedLayer], accuracies: dict[str, list[float]]) -> str:
    """All figures in Markdown."""
    lines = ["| events, with the same random number | share |", "|---|---:|"]
    lines += [f"| {name} | {share:.2%} |" for name, share in events.outcomes().items()]
    fd, plain = events.balance("fd"), events.balance("stochastic")
    lines += [
        f"\nln(LTP/LTD) of synapses, less their channel's mean: spread {rms(plain):.2f} (stochastic); fd changes it by "
        f"{rms(fd - plain):.2f}; correlation {np.corrcoef(fd.ravel(), plain.ravel())[0, 1]:.4f}\n",
        "| learned by | rms difference of G from fd | correlation with fd | " + " | ".join(map(str, CONDITIONS)) + " |",
        "|---|---:|---:|" + "---:|" * len(CONDITIONS),
    ]
    reference = conductances(learned["fd"])
    for name, layer in learned.items():
        values = conductances(layer)
        correlation = np.corrcoef(values.ravel(), reference.ravel())[0, 1]
        cells = " | ".join(f"{value:.1f}" for value in accuracies[name])
        lines.append(f"| {name} | {rms(values - reference):.3f} | {correlation:.3f} | {cells} |")
    return "\n".join(lines)


def draw(events: Events, learned: dict[str, LearnedLayer], accuracies: dict[str, list[float]], path: Path) -> None:
    """The figure."""
    figure = Figure(figsize=(13, 7.6), layout="constrained")
    (rates, window, outcomes), (balance, difference, accuracy) = figure.subplots(2, 3)
    draw_rates(rates, events)
    draw_window(window, events)
    draw_outcomes(outcomes, events)
    draw_balance(balance, events)
    draw_differences(difference, learned)
    width = 0.8 / len(accuracies)
    for number, (name, values) in enumerate(accuracies.items()):
        places = np.arange(len(values)) + (number - (len(accuracies) - 1) / 2) * width
        bars = accuracy.bar(places, values, width, color=COLOURS[name], label=name)
        accuracy.bar_label(bars, fmt="%.1f", fontsize=7, rotation=90, padding=2)
    accuracy.set_xticks(range(len(CONDITIONS)), list(map(str, CONDITIONS)))
    accuracy.set_ylim(0, 1.45 * max(map(max, accuracies.values())))
    accuracy.set_ylabel("accuracy of the probe (%)")
    accuracy.set_title("What reaches the probe", fontsize=10)
    accuracy.legend(frameon=False, fontsize=8, ncols=2, loc="upper center")
    save_figure(figure, path)


def draw_rates(axes: Axes, events: Events) -> None:
    """Events by presynaptic rate."""
    share = 100 * events.by_lag_and_rate
    inside = events.ltp["stochastic"].any(1)
    silent = np.isinf(events.lags)
    parts = {"within the LTP window": inside, "later": ~inside & ~silent, "no spike so far": silent}
    bottom = np.zeros(share.shape[1])
    for (name, rows), colour in zip(parts.items(), ("C3", "0.55", "0.85"), strict=True):
        values = share[rows].sum(0)
        axes.bar(events.rates, values, 0.8 * events.rates[1], bottom, color=colour, label=name)
        bottom += values
    axes.set_xlabel("presynaptic rate f (Hz)")
    axes.set_ylabel("share of synaptic events (%)")
    axes.set_title("Presynaptic rates at events, by lag", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def draw_window(axes: Axes, events: Events) -> None:
    """Probabilities by lag, and how often each lag occurs."""
    lags, none = events.lags[:-1], 2 * events.lags[-2]
    share = events.by_lag_and_rate.sum(1)
    axes.fill_between(lags, share[:-1] / share.max(), step="mid", color="0.88", label="events (most frequent: 1)")
    axes.bar(none, share[-1] / share.max(), none / 4, color="0.88")
    middle, last = len(events.rates) // 2, len(events.rates) - 1
    lines = [(events.ltp["fd"], events.ltd["fd"], level, "fd", style) for level, style in ((middle, "--"), (last, "-"))]
    lines.append((events.ltp["stochastic"], events.ltd["stochastic"], 0, "stochastic", ":"))
    for up, down, level, rule, style in lines:
        where = f", {events.rates[level]:.0f} Hz" if rule == "fd" else ""
        for table, what, colour in ((up, "LTP", "C3"), (down, "LTD", "C0")):
            axes.plot(lags, table[:-1, level], style, color=colour, label=f"{what}, {rule}{where}")
            # No spike so far: a place of its own, at the right.
            axes.plot(none, table[-1, level], "o", color=colour, markersize=4, clip_on=False)
    axes.set_xscale("symlog", linthresh=5)
    axes.set_xticks([0, 5, 15, 50, none], ["0", "5", "15", "50", "no spike"])
    axes.set_xlabel("lag t_post - t_pre (ms)")
    axes.set_ylabel("probability")
    axes.set_ylim(0, 1.02)
    axes.set_title("What the rules do", fontsize=10)
    axes.legend(frameon=False, fontsize=7, loc="upper center")


def draw_outcomes(axes: Axes, events: Events) -> None:
    """What happens at events under both rules."""
    found = events.outcomes()
    bars = axes.barh(list(found), [100 * share for share in found.values()], color=["C3"] * 3 + ["C0"] * 3 + ["0.8"])
    axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("share of synaptic events (%)")
    axes.set_title("Both rules with the same random numbers", fontsize=10)


def draw_balance(axes: Axes, events: Events) -> None:
    """Balance of LTP and LTD of each synapse under both rules."""
    fd, plain = events.balance("fd"), events.balance("stochastic")
    axes.plot(plain.ravel(), fd.ravel(), ".", markersize=2, alpha=0.4, color="C0")
    ends = [plain.min(), plain.max()]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.set_xlabel("ln(LTP/LTD), stochastic")
    axes.set_ylabel("ln(LTP/LTD), fd")
    correlation = np.corrcoef(fd.ravel(), plain.ravel())[0, 1]
    axes.set_title(
        f"Balance of each synapse, less its channel's mean\nspread {rms(plain):.2f}, fd changes it by "
        f"{rms(fd - plain):.2f}, correlation {correlation:.4f}",
        fontsize=10,
    )


def draw_differences(axes: Axes, learned: dict[str, LearnedLayer]) -> None:
    """How far the learned conductances lie from those of fd."""
    reference = conductances(learned["fd"])
    bins = np.linspace(0, 1, 41)
    for name, layer in learned.items():
        if name != "fd":
            apart = np.abs(conductances(layer) - reference).ravel()
            axes.hist(apart, bins, histtype="step", color=COLOURS[name], label=f"{name}: rms {rms(apart):.2f}")
    axes.set_yscale("log")
    axes.set_xlabel("distance of a conductance from that learned by fd")
    axes.set_ylabel("synapses")
    axes.set_title("From the same start: other rule, or other draws", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def run(config: FrequencyDependenceConfig) -> None:
    """The command: learn, count, probe, print, draw."""
    outputs = Outputs(config.out, options=RunOptions(), inputs=image_folders(config.data_source))
    sizes = Sizes(config.learn_images, config.fit_images, config.test_images)
    split = split_images(config.data_source, sizes, cache=config.caching.cache)
    learned, events, network = learn_all(split.learn, first_layer(config.learning), config.seed)
    accuracies = {name: probe(network, layer, split) for name, layer in progress(learned.items(), "probing", "network")}
    print(report(events, learned, accuracies))
    draw(events, learned, accuracies, config.out)
    outputs.finish({})


def with_preset(config: FrequencyDependenceConfig) -> FrequencyDependenceConfig:
    """What flags are applied to, once ``--preset`` is known."""
    return replace(config, learning=PRESETS[config.preset])


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m benchmarks.frequency_dependence``."""
    return run_command(FrequencyDependenceConfig, run, argv, with_preset)


if __name__ == "__main__":
    sys.exit(main())
