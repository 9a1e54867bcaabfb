"""The pictures of the three comparisons."""

from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

from snn.runtime.outputs import save_figure
from validation.equations import magnitudes
from validation.significance import binomial_band, standardised

if TYPE_CHECKING:
    from validation.freq_response import FreqResponseConfig, Responses
    from validation.network_learning import Distribution, Learned
    from validation.network_spikes import Trial
    from validation.stdp_window import Realised, WindowConfig

KIND_COLORS = {"free": "C0", "inhibited": "C1", "tied": "C2", "exact": "C4", "stacked": "C5"}


def draw_response(
    config: "FreqResponseConfig", responses: "Responses", convergence: dict[str, np.ndarray], path: Path
) -> None:
    """Fig. 4 of the paper for each drive, the same over the longest time, and convergence to the closed form."""
    rates, merge, drives = config.rates(), config.merge_rate, config.drives
    columns = max(len(drives), 2)
    figure = Figure(figsize=(4.0 * columns, 8.2), layout="constrained")
    grid = figure.add_gridspec(2, columns)
    shades = colormaps["viridis"](np.linspace(0.0, 0.88, len(config.thresholds)))

    def draw_curves(panel: Axes, duration: int, drive: int) -> None:
        norse, brian2 = responses.norse[duration, drive], responses.brian2[duration, drive]
        for v, shade in enumerate(shades):
            panel.plot(rates, responses.closed_form[drive, v], color=shade, lw=0.8, ls=":")
            panel.plot(rates, norse[v], color=shade, lw=1.3)
            panel.plot(rates, brian2[v], ".", color=shade, ms=4, markevery=(3 * v, max(1, len(rates) // 40)))
        panel.axvline(merge, color="0.4", lw=0.9, ls="--")
        panel.set_xlabel("presynaptic spike frequency (Hz)")
        panel.set_ylim(0, 1.05 * max(1.0, responses.norse[duration].max(), responses.closed_form.max()))

    letters = iter(ascii_lowercase)
    first = None
    for d, drive in enumerate(drives):
        panel = figure.add_subplot(grid[0, d], sharey=first)
        first = first or panel
        draw_curves(panel, 0, d)
        panel.set_xlim(0, 1.5 * merge)
        panel.set_title(
            f"{next(letters)}   {config.durations[0]:g} ms, current {drive:g} while the synapse is open",
            fontsize=10,
            loc="left",
        )
    first.set_ylabel("postsynaptic spike frequency (Hz)")
    wide = figure.add_subplot(grid[1, : columns - 1])
    longest = int(np.argmax(config.durations))
    middle = len(drives) // 2
    draw_curves(wide, longest, middle)
    title = f"{next(letters)}   {config.durations[longest]:g} ms, current {drives[middle]:g} while the synapse is open"
    wide.set_title(title, fontsize=10, loc="left")
    wide.set_ylabel("postsynaptic spike frequency (Hz)")
    order = figure.add_subplot(grid[1, columns - 1])
    order.loglog(convergence["dt"], convergence["mean_error"], "o", color="C0", label="norse")
    order.loglog(convergence["dt"], convergence["mean_error_brian2"], "x", color="C3", ms=9, label="Brian2")
    line = convergence["mean_error"][0] * convergence["dt"] / convergence["dt"][0]
    order.loglog(convergence["dt"], line, color="0.4", lw=0.9, ls="--", label="first order")
    for axis in (order.xaxis, order.yaxis):
        axis.set_minor_formatter(NullFormatter())
    order.set_xlabel("time step (ms)")
    order.set_ylabel("mean error of the inter-spike interval (ms)")
    title = f"{next(letters)}   measured order of convergence {convergence['order']:.2f}"
    order.set_title(title, fontsize=10, loc="left")
    order.legend(fontsize=9, frameon=False)
    keys = [Line2D([], [], color=shade, lw=1.5) for shade in shades]
    names = [f"threshold {threshold:g} mV" for threshold in config.thresholds]
    keys += [
        Line2D([], [], color="0.3", lw=1.3),
        Line2D([], [], color="0.3", marker=".", ls=""),
        Line2D([], [], color="0.3", lw=0.8, ls=":"),
        Line2D([], [], color="0.4", lw=0.9, ls="--"),
    ]
    names += ["norse", "Brian2", "closed form at the train's mean current", f"pulses merge ({merge:.1f} Hz)"]
    figure.legend(keys, names, loc="outside lower center", ncols=min(5, len(names)), fontsize=9, frameon=False)
    save_figure(figure, path)


def draw_window(
    config: "WindowConfig", results: dict[tuple[str, str], tuple["Realised", ...]], level: float, path: Path
) -> None:
    """P(LTP) and P(LTD) against dt for weak, middle and strong input with both pairings, and dG against G.

    Args:
        config: the grid.
        results: what learner, Brian2 and equations give for each rule and pairing.
        level: of the binomial bands.
        path: PNG to write.
    """
    lags = config.lags() * config.encoding.dt
    rates = config.spike_numbers() * (1000 / config.encoding.presentation)
    limits = (config.encoding.f_min, config.encoding.f_max)
    shown = [int(np.abs(rates - rate).argmin()) for rate in (limits[0], sum(limits) / 2, limits[1])]
    middle = len(config.conductances()) // 2
    shades = colormaps["viridis"]([0.0, 0.45, 0.8])
    figure = Figure(figsize=(12, 8.2), layout="constrained")
    grid = figure.subplots(2, 3)
    letters = iter("abcdef")
    for row, pairing in zip(grid, ("post", "two-sided"), strict=True):
        for panel, kind, symbol in zip(row, ("ltp", "ltd"), ("P(LTP)", "P(LTD)"), strict=False):
            sign = lags >= 0 if pairing == "post" else (lags >= 0) == (kind == "ltp")
            if kind == "ltp":
                sign &= lags <= config.stdp.ltp_window + 10
            for shade, f in zip(shades, shown, strict=True):
                learner, brian2, truth = (getattr(part, kind)[middle, f, sign] for part in results["fd", pairing])
                low, high = binomial_band(config.draws, truth, level)
                panel.fill_between(lags[sign], low, high, color=shade, alpha=0.25, lw=0)
                panel.plot(lags[sign], truth, color=shade, lw=1.2)
                panel.plot(lags[sign], learner / config.draws, "o", color=shade, ms=4, mfc="none")
                panel.plot(lags[sign], brian2 / config.draws, "x", color=shade, ms=4)
            plain = getattr(results["stochastic", pairing][2], kind)[middle, 0, sign]
            panel.plot(lags[sign], plain, color="black", lw=1.4, ls=(0, (2, 3)))
            panel.set_ylim(-0.02, 1.15 * max(config.stdp.gamma_p, config.stdp.gamma_d))
            panel.set_xlabel("dt = t_post - t_pre (ms)")
            panel.set_ylabel(f"{symbol} per postsynaptic spike")
            panel.set_title(f"{next(letters)}   {symbol}, pairing {pairing}", fontsize=10, loc="left")
        _draw_magnitude(row[2], config, results["fd", pairing])
        row[2].set_title(f"{next(letters)}   magnitude, pairing {pairing}", fontsize=10, loc="left")
    names = ("weak", "middle", "strong")
    keys = [Line2D([], [], color=shade, lw=1.5) for shade in shades]
    labels = [f"FD rule, {name} input ({rates[f]:.0f} Hz)" for name, f in zip(names, shown, strict=True)]
    keys += [
        Line2D([], [], color="black", lw=1.4, ls=(0, (2, 3))),
        Line2D([], [], color="0.3", lw=1.2),
        Patch(color="0.3", alpha=0.25, lw=0),
        Line2D([], [], color="0.3", marker="o", mfc="none", ls=""),
        Line2D([], [], color="0.3", marker="x", ls=""),
    ]
    labels += [
        "plain stochastic rule, any input",
        "equation",
        "accepted by the binomial test",
        "learner",
        "Brian2 synapse",
    ]
    figure.legend(keys, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    save_figure(figure, path)


def _draw_magnitude(panel: Axes, config: "WindowConfig", found: tuple["Realised", ...]) -> None:
    """dG against G: Eq. 2, and what one potentiation or depression changed."""
    p = config.stdp
    fine = np.linspace(p.g_min, p.g_max, 101)
    conductance = config.conductances()
    for kind, color, curve in zip(("ltp", "ltd"), ("C0", "C3"), magnitudes(fine, p), strict=True):
        panel.plot(
            fine, curve, color=color, lw=1.2, label="dG_p, potentiation" if kind == "ltp" else "dG_d, depression"
        )
        for realised, marker in zip(found[:2], ("o", "x"), strict=True):
            count = getattr(realised, kind)
            # The point at which this change happens most often, and alone.
            f, lag = np.unravel_index(count[0].argmax(), count[0].shape)
            per_event = np.abs(realised.change[:, f, lag]) * config.draws / np.maximum(count[:, f, lag], 1)
            # What is clipped, or never happened, shows no magnitude.
            inside = conductance < p.g_max if kind == "ltp" else conductance > p.g_min
            inside &= count[:, f, lag] > 0
            panel.plot(conductance[inside], per_event[inside], marker, color=color, ms=6, mfc="none")
    panel.set_xlabel("conductance G")
    panel.set_ylabel("change per event, dG")
    panel.set_ylim(0, None)
    panel.legend(fontsize=9, frameon=False)


def draw_networks(
    trials: list["Trial"], learned: "Learned | None", distributions: list["Distribution"], path: Path
) -> None:
    """Spikes of one network, liveliness of all, conductances after learning, and distributions of their change.

    Parts that were not compared stay empty.
    """
    figure = Figure(figsize=(12, 8.6), layout="constrained")
    (raster, lively), (conductance, change) = figure.subplots(2, 2)
    if trials:
        _draw_raster(raster, trials)
        _draw_liveliness(lively, trials)
    if learned:
        _draw_conductances(conductance, learned)
    if distributions:
        _draw_changes(change, distributions[0])
    for panel in (raster, lively, conductance, change):
        if not panel.has_data():
            panel.set_axis_off()
    save_figure(figure, path)


def _draw_liveliness(panel: Axes, trials: list["Trial"]) -> None:
    for kind, color in KIND_COLORS.items():
        for counts, marker in ((True, "o"), (False, "x")):
            chosen = [t for t in trials if t.network.kind == kind and t.lively == counts]
            points = np.array([(t.per_neuron, 100 * t.contested) for t in chosen]).reshape(-1, 2)
            panel.plot(*points.T, marker, ms=6, color=color, alpha=0.8, label=kind if counts and len(points) else None)
    panel.plot([], [], "x", color="0.3", label="rejected as not lively")
    panel.set_xlabel("spikes per neuron in 300 ms")
    panel.set_ylabel("steps in which inhibition decides (%)")
    differing = sum(trial.differing > 0 for trial in trials)
    panel.set_title(f"b   {len(trials)} networks drawn, {differing} differ from Brian2", fontsize=10, loc="left")
    panel.legend(fontsize=9, frameon=False)


def _draw_conductances(panel: Axes, learned: "Learned") -> None:
    limits = [min(learned.brian2.min(), learned.before.min()), max(learned.brian2.max(), learned.before.max())]
    panel.plot(limits, limits, color="0.6", lw=0.8, label="equal")
    panel.plot(learned.brian2, learned.before, ".", color="0.75", ms=3, label="before learning")
    panel.plot(learned.brian2, learned.learner, ".", color="C0", ms=3, label="learner, after learning")
    panel.set_xlabel("conductance after learning, Brian2")
    panel.set_ylabel("conductance")
    worst = np.abs(learned.learner - learned.brian2).max()
    panel.set_title(f"c   rules without chance: largest difference {worst:.0e}", fontsize=10, loc="left")
    panel.legend(fontsize=9, frameon=False, markerscale=3)


def _draw_changes(panel: Axes, shown: "Distribution") -> None:
    samples = (
        ("learner", shown.learner, {"color": "0.7", "histtype": "stepfilled"}),
        ("Brian2", shown.brian2, {"color": "C0", "histtype": "step", "lw": 1.5}),
        ("Brian2, gamma_p 5 % smaller", shown.weaker_ltp, {"color": "C3", "histtype": "step", "ls": "--"}),
        ("Brian2, gamma_d 5 % smaller", shown.weaker_ltd, {"color": "C2", "histtype": "step", "ls": "--"}),
    )
    bins, together = np.linspace(-4, 4, 49), np.concatenate([shown.learner, shown.brian2])
    for label, sample, style in samples:
        panel.hist(standardised(sample, together).ravel(), bins, density=True, label=label, **style)
    panel.set_xlabel("change in a mini-batch (standard deviations)")
    panel.set_ylabel("density of conductances and repeats")
    panel.set_ylim(0, 1.35 * panel.get_ylim()[1])
    panel.set_title(f"d   rule {shown.rule.rule}, pairing {shown.rule.pairing}", fontsize=10, loc="left")
    panel.legend(fontsize=9, frameon=False, ncols=2, loc="upper center")


def _draw_raster(panel: Axes, trials: list["Trial"]) -> None:
    """Spikes of both sides to one image, neurons ordered by place so that competing maps are neighbours."""
    lively = [t for t in trials if t.lively and t.network.kind == "inhibited"] or trials
    # The one whose size is the most readable.
    trial = min(lively, key=lambda t: abs(t.learner[0, 0].size - 60))
    maps = trial.learner.shape[2]
    for spikes, style in (
        (trial.learner, {"marker": "o", "mfc": "none", "color": "C0"}),
        (trial.brian2, {"marker": "."}),
    ):
        by_place = spikes[:, 0].transpose(0, 2, 3, 1).reshape(len(spikes), -1)
        step, neuron = np.nonzero(by_place)
        label = "Brian2" if style["marker"] == "." else "learner"
        panel.plot(step * trial.network.encoding.dt, neuron, ls="", ms=5, label=label, **{"color": "C3"} | style)
    for place in range(0, trial.learner[0, 0].size, 2 * maps):
        panel.axhspan(place - 0.5, place + maps - 0.5, color="0.95", lw=0)
    panel.set_title("a   spikes to one image, one network with inhibition", fontsize=10, loc="left")
    panel.set_xlabel("time (ms)")
    panel.set_ylabel(f"neuron (bands: the {maps} maps of one place)")
    panel.set_ylim(-1, 1.12 * trial.learner[0, 0].size)
    panel.legend(fontsize=9, frameon=False, ncols=2, loc="upper right")
