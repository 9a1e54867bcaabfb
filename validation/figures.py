"""The pictures of the three comparisons."""

from pathlib import Path
from string import ascii_lowercase
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from snn.runtime.outputs import save_figure
from validation.comparisons.learning import Distribution, Learned
from validation.comparisons.response import FreqResponseConfig, Responses
from validation.comparisons.spikes import Trial
from validation.comparisons.window import RuleResult, WindowConfig
from validation.reference.equations import magnitudes
from validation.significance import binomial_band, standardised

KIND_COLORS = {"free": "C0", "inhibited": "C1", "tied": "C2", "exact": "C4", "stacked": "C5"}
DOTTED = (0, (2, 3))


def _label(panel: Axes, title: str, x: str, y: str | None, **settings: Any) -> None:
    panel.set(xlabel=x, ylabel=y, **settings)
    panel.set_title(title, fontsize=10, loc="left")


def _draw_legend(figure: Figure, styles: dict[str, dict[str, Any]], columns: int) -> None:
    """Name the styles of lines, or of areas where there is an ``alpha``, below all panels."""
    keys = [Patch(**style) if "alpha" in style else Line2D([], [], **style) for style in styles.values()]
    figure.legend(keys, [*styles], loc="outside lower center", ncols=columns, fontsize=9, frameon=False)


def draw_response(
    config: FreqResponseConfig, responses: Responses, convergence: dict[str, np.ndarray], path: Path
) -> None:
    """Fig. 4 of the paper for each drive, the same over the longest time, and convergence to the closed form."""
    rates, merge, drives = config.rates(), config.merge_rate, config.drives
    columns = max(len(drives), 2)
    figure = Figure(figsize=(4.0 * columns, 8.2), layout="constrained")
    grid = figure.add_gridspec(2, columns)
    shades = colormaps["viridis"](np.linspace(0.0, 0.88, len(config.thresholds)))
    letters = iter(ascii_lowercase)

    def draw_curves(panel: Axes, duration: int, drive: int, y: str | None) -> None:
        norse, brian2 = responses.norse[duration, drive], responses.brian2[duration, drive]
        for v, shade in enumerate(shades):
            panel.plot(rates, responses.closed_form[drive, v], color=shade, lw=0.8, ls=":")
            panel.plot(rates, norse[v], color=shade, lw=1.3)
            panel.plot(rates, brian2[v], ".", color=shade, ms=4, markevery=(3 * v, max(1, len(rates) // 40)))
        panel.axvline(merge, color="0.4", lw=0.9, ls="--")
        highest = max(1.0, responses.norse[duration].max(), responses.closed_form.max())
        time, current = config.durations[duration], drives[drive]
        title = f"{next(letters)}   {time:g} ms, current {current:g} while the synapse is open"
        _label(panel, title, "presynaptic spike frequency (Hz)", y, ylim=(0, 1.05 * highest))

    first: Axes | None = None
    for d in range(len(drives)):
        panel = figure.add_subplot(grid[0, d], sharey=first)
        draw_curves(panel, 0, d, None if first else "postsynaptic spike frequency (Hz)")
        panel.set_xlim(0, 1.5 * merge)
        first = first or panel
    wide = figure.add_subplot(grid[1, : columns - 1])
    draw_curves(wide, int(np.argmax(config.durations)), len(drives) // 2, "postsynaptic spike frequency (Hz)")
    order = figure.add_subplot(grid[1, columns - 1])
    order.loglog(convergence["dt"], convergence["mean_error"], "o", color="C0", label="norse")
    order.loglog(convergence["dt"], convergence["mean_error_brian2"], "x", color="C3", ms=9, label="Brian2")
    line = convergence["mean_error"][0] * convergence["dt"] / convergence["dt"][0]
    order.loglog(convergence["dt"], line, color="0.4", lw=0.9, ls="--", label="first order")
    for axis in (order.xaxis, order.yaxis):
        axis.set_minor_formatter(NullFormatter())
    title = f"{next(letters)}   measured order of convergence {convergence['order']:.2f}"
    _label(order, title, "time step (ms)", "mean error of the inter-spike interval (ms)")
    order.legend(fontsize=9, frameon=False)
    styles = {
        f"threshold {threshold:g} mV": {"color": shade, "lw": 1.5}
        for threshold, shade in zip(config.thresholds, shades, strict=True)
    } | {
        "norse": {"color": "0.3", "lw": 1.3},
        "Brian2": {"color": "0.3", "marker": ".", "ls": ""},
        "closed form at the train's mean current": {"color": "0.3", "lw": 0.8, "ls": ":"},
        f"pulses merge ({merge:.1f} Hz)": {"color": "0.4", "lw": 0.9, "ls": "--"},
    }
    _draw_legend(figure, styles, min(5, len(styles)))
    save_figure(figure, path)


def draw_window(config: WindowConfig, results: dict[tuple[str, str], RuleResult], level: float, path: Path) -> None:
    """P(LTP) and P(LTD) against dt for weak, middle and strong input with both pairings, and dG against G.

    Drawn are the first rule of the results (by rule and pairing), and the plain stochastic one beside it. ``level`` is
    that of the binomial bands.
    """
    lags = config.lags() * config.encoding.dt
    rates = config.spike_numbers() * (1000 / config.encoding.presentation)
    low, high = config.rate_limits
    shown = [int(np.abs(rates - rate).argmin()) for rate in (low, (low + high) / 2, high)]
    middle = len(config.conductances()) // 2
    shades = colormaps["viridis"]([0.0, 0.45, 0.8])
    figure = Figure(figsize=(12, 8.2), layout="constrained")
    grid = figure.subplots(2, 3)
    letters, rule = iter("abcdef"), next(iter(results))[0]
    for row, pairing in zip(grid, ("post", "two-sided"), strict=True):
        for panel, kind, symbol in zip(row, ("ltp", "ltd"), ("P(LTP)", "P(LTD)"), strict=False):
            sign = lags >= 0 if pairing == "post" else (lags >= 0) == (kind == "ltp")
            if kind == "ltp":
                sign &= lags <= config.stdp.ltp_window + 10
            for shade, f in zip(shades, shown, strict=True):
                learner, brian2, truth = (getattr(part, kind)[middle, f, sign] for part in results[rule, pairing])
                panel.fill_between(
                    lags[sign], *binomial_band(config.draws, truth, level), color=shade, alpha=0.25, lw=0
                )
                panel.plot(lags[sign], truth, color=shade, lw=1.2)
                panel.plot(lags[sign], learner / config.draws, "o", color=shade, ms=4, mfc="none")
                panel.plot(lags[sign], brian2 / config.draws, "x", color=shade, ms=4)
            if ("stochastic", pairing) in results:
                plain = getattr(results["stochastic", pairing].equation, kind)[middle, 0, sign]
                panel.plot(lags[sign], plain, color="black", lw=1.4, ls=DOTTED)
            title, y = f"{next(letters)}   {symbol}, pairing {pairing}", f"{symbol} per postsynaptic spike"
            highest = max(results[rule, pairing].equation.ltp.max(), results[rule, pairing].equation.ltd.max())
            _label(panel, title, "dt = t_post - t_pre (ms)", y, ylim=(-0.02, 1.15 * highest))
        title = f"{next(letters)}   magnitude, pairing {pairing}"
        _draw_magnitude(row[2], title, config, results[rule, pairing])
    styles = {
        f"rule {rule}, {name} input ({rates[f]:.0f} Hz)": {"color": shade, "lw": 1.5}
        for name, f, shade in zip(("weak", "middle", "strong"), shown, shades, strict=True)
    } | {
        "rule stochastic, any input": {"color": "black", "lw": 1.4, "ls": DOTTED},
        "equation": {"color": "0.3", "lw": 1.2},
        "accepted by the binomial test": {"color": "0.3", "alpha": 0.25, "lw": 0},
        "learner": {"color": "0.3", "marker": "o", "mfc": "none", "ls": ""},
        "Brian2 synapse": {"color": "0.3", "marker": "x", "ls": ""},
    }
    _draw_legend(figure, styles, 4)
    save_figure(figure, path)


def _draw_magnitude(panel: Axes, title: str, config: WindowConfig, result: RuleResult) -> None:
    """dG against G: Eq. 2, and what one potentiation or depression changed."""
    p = config.stdp
    fine = np.linspace(p.g_min, p.g_max, 101)
    conductance = config.conductances()
    names = ("dG_p, potentiation", "dG_d, depression")
    for kind, name, color, curve in zip(("ltp", "ltd"), names, ("C0", "C3"), magnitudes(fine, p), strict=True):
        panel.plot(fine, curve, color=color, lw=1.2, label=name)
        for realised, marker in zip((result.learner, result.brian2), ("o", "x"), strict=True):
            count = getattr(realised, kind)
            # The point at which this change happens most often, and alone.
            f, lag = np.unravel_index(count[0].argmax(), count[0].shape)
            per_event = np.abs(realised.change[:, f, lag]) * config.draws / np.maximum(count[:, f, lag], 1)
            # What is clipped, or never happened, shows no magnitude.
            inside = conductance < p.g_max if kind == "ltp" else conductance > p.g_min
            inside &= count[:, f, lag] > 0
            panel.plot(conductance[inside], per_event[inside], marker, color=color, ms=6, mfc="none")
    _label(panel, title, "conductance G", "change per event, dG", ylim=(0, None))
    panel.legend(fontsize=9, frameon=False)


def draw_networks(trials: list[Trial], learned: Learned | None, distributions: list[Distribution], path: Path) -> None:
    """Spikes of one network, activity of all, conductances after learning, and distributions of their change.

    Parts that were not compared stay empty.
    """
    figure = Figure(figsize=(12, 8.6), layout="constrained")
    (raster, active), (conductance, change) = figure.subplots(2, 2)
    if trials:
        _draw_raster(raster, trials)
        _draw_activity(active, trials)
    if learned:
        _draw_conductances(conductance, learned)
    if distributions:
        _draw_changes(change, distributions[0])
    for panel in (raster, active, conductance, change):
        if not panel.has_data():
            panel.set_axis_off()
    save_figure(figure, path)


def _draw_activity(panel: Axes, trials: list[Trial]) -> None:
    for kind, color in KIND_COLORS.items():
        for counts, marker in ((True, "o"), (False, "x")):
            chosen = [t for t in trials if t.network.kind == kind and t.active == counts]
            points = np.array([(t.per_neuron, 100 * t.contested) for t in chosen]).reshape(-1, 2)
            panel.plot(*points.T, marker, ms=6, color=color, alpha=0.8, label=kind if counts and len(points) else None)
    panel.plot([], [], "x", color="0.3", label="rejected as not active")
    title = f"b   {len(trials)} networks drawn, {sum(trial.differing > 0 for trial in trials)} differ from Brian2"
    _label(panel, title, "spikes per neuron in 300 ms", "steps in which inhibition decides (%)")
    panel.legend(fontsize=9, frameon=False)


def _draw_conductances(panel: Axes, learned: Learned) -> None:
    limits = [min(learned.brian2.min(), learned.before.min()), max(learned.brian2.max(), learned.before.max())]
    panel.plot(limits, limits, color="0.6", lw=0.8, label="equal")
    panel.plot(learned.brian2, learned.before, ".", color="0.75", ms=3, label="before learning")
    panel.plot(learned.brian2, learned.learner, ".", color="C0", ms=3, label="learner, after learning")
    title = f"c   rules without chance: largest difference {np.abs(learned.learner - learned.brian2).max():.0e}"
    _label(panel, title, "conductance after learning, Brian2", "conductance")
    panel.legend(fontsize=9, frameon=False, markerscale=3)


def _draw_changes(panel: Axes, shown: Distribution) -> None:
    samples: tuple[tuple[str, np.ndarray, dict[str, Any]], ...] = (
        ("learner", shown.learner, {"color": "0.7", "histtype": "stepfilled"}),
        ("Brian2", shown.brian2, {"color": "C0", "histtype": "step", "lw": 1.5}),
        ("Brian2, P_p 5 % smaller", shown.weaker_ltp, {"color": "C3", "histtype": "step", "ls": "--"}),
        ("Brian2, P_d 5 % smaller", shown.weaker_ltd, {"color": "C2", "histtype": "step", "ls": "--"}),
    )
    bins, together = np.linspace(-4, 4, 49).tolist(), np.concatenate([shown.learner, shown.brian2])
    for label, sample, style in samples:
        panel.hist(standardised(sample, together).ravel(), bins, density=True, label=label, **style)
    title = f"d   rule {shown.rule.rule}, pairing {shown.rule.pairing}"
    x = "change in a mini-batch (standard deviations)"
    _label(panel, title, x, "density of conductances and repeats", ylim=(0, 1.35 * panel.get_ylim()[1]))
    panel.legend(fontsize=9, frameon=False, ncols=2, loc="upper center")


def _draw_raster(panel: Axes, trials: list[Trial]) -> None:
    """Spikes of both sides to one image, neurons ordered by place, so that those that compete are neighbours."""
    active = [t for t in trials if t.active and t.network.kind == "inhibited"] or trials
    # The one whose size is the most readable.
    trial = min(active, key=lambda t: abs(t.learner[0, 0].size - 60))
    channels = trial.learner.shape[2]
    for label, spikes, marker, face, color in (
        ("learner", trial.learner, "o", "none", "C0"),
        ("Brian2", trial.brian2, ".", "C3", "C3"),
    ):
        by_place = spikes[:, 0].transpose(0, 2, 3, 1).reshape(len(spikes), -1)
        step, neuron = np.nonzero(by_place)
        panel.plot(step * trial.network.encoding.dt, neuron, marker, ms=5, label=label, mfc=face, color=color)
    for place in range(0, trial.learner[0, 0].size, 2 * channels):
        panel.axhspan(place - 0.5, place + channels - 0.5, color="0.95", lw=0)
    title = "a   spikes to one image, one network with inhibition"
    y = f"neuron (bands: the {channels} channels of one place)"
    _label(panel, title, "time (ms)", y, ylim=(-1, 1.12 * trial.learner[0, 0].size))
    panel.legend(fontsize=9, frameon=False, ncols=2, loc="upper right")
