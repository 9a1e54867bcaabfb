"""A learning rule of your own against the paper's, frequency-dependent stochastic STDP (Eq. 5).

    python -m examples.new_rule --out runs/new_rule

The new rule, ``linear``, is the class below: LTP whose probability falls along a straight line instead of an
exponential, and LTD whose probability depends neither on time nor on the presynaptic rate. Both rules learn the same
layer on digits, from the same random conductances, the same images and the same spikes.

What to look at in new_rule.png:

- Top: the probabilities, by the time since the last presynaptic spike ("none": there was none yet). Those of Eq. 5 have
  a curve for each normalised presynaptic rate, those of ``linear`` only one.
- Middle: the kernels, as what they prefer: white for ON (brighter than around), black for OFF. Are they edges and
  blobs, as kernels of a visual cortex are, or noise, as at the start?
- Bottom: the distribution of conductances, and what a linear classifier reads from the features, beside features of
  random conductances. On digits even random ones do well on clean images; noise tells more.

The same rule on the command line: ``python -m snn.learn --data digits --plugin examples/new_rule.py --stdp.rule linear
--out snn.h5``. Before you trust a rule, compare it with a second description of it: docs/guides/rule.md says how.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

import bridge
import snn
from hybrid.conditions import Noise
from snn.data import Images
from snn.figures import signed_contrast
from snn.registries import RULES
from snn.rules.base import Rule
from snn.runtime.cli import run_command
from snn.runtime.outputs import check_outputs, save_figure
from snn.runtime.ranges import SEED, check_fields

CONDITIONS = ("clean", "awgn:12", "salt-pepper:0.20")


@snn.register_rule("linear")
class Linear(Rule):
    """LTP falls linearly to 0 at the end of the window; LTD has one probability everywhere."""

    def ltp(self, lag: Tensor, fn: Tensor) -> Tensor:
        inside = (lag >= 0) & ~self.beyond_window(lag)
        return (self.p.gamma_p * (1 - lag / self.p.ltp_window)).clamp(0, 1).where(inside, 0.0)

    def ltd(self, lag: Tensor, fn: Tensor) -> Tensor:
        return (0 * fn + self.p.gamma_d).where(self.can_depress(lag), 0.0)


@dataclass(frozen=True)
class NewRuleConfig:
    """Learn digits by a new rule and by Eq. 5, and compare."""

    out: Path
    """Folder for the figure."""
    seed: Annotated[int, SEED] = 0
    """Of all random draws."""

    def __post_init__(self) -> None:
        check_fields(self)


def settings(rule: str) -> snn.Learning:
    """A layer of 16 kernels behind the retina of the demo, which learns by ``rule``."""
    p = snn.PRESETS["retina-digits"]
    return replace(p, maps=(16,), min_updates=150, stdp=replace(p.stdp, rule=rule))


def probe(network: snn.SpikingNetwork, train: Images, test: Images) -> list[float]:
    """Accuracy in %, under each condition, of a linear classifier on the converted layer's features."""
    frontend = bridge.convert(network, train.images[:256]).frontend

    def features(images: Tensor) -> np.ndarray:  # float (B, C, H, W) in [0, 1] to (B, maps * 16)
        with torch.inference_mode():
            return adaptive_avg_pool2d(frontend(images), 4).flatten(1).numpy()

    classifier = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=(10, 100, 1000)))
    classifier.fit(features(train.images / 255), train.labels.numpy())
    answers = []
    for condition in CONDITIONS:
        noisy = torch.cat(list(Noise.parse(condition).batches(test.images, seed=0)))
        answers.append(100 * classifier.score(features(noisy), test.labels.numpy()))
    return answers


def draw_probabilities(axes: Axes, p: snn.Learning) -> None:
    """Probabilities of LTP (above 0) and of LTD (drawn below 0) by the time since the presynaptic spike."""
    rule = RULES[p.stdp.rule](p.rule)
    lag, none = torch.linspace(0, 60, 601), torch.tensor([torch.inf])
    for rate, shade in ((0.0, 0.35), (0.5, 0.65), (1.0, 1.0)):
        for name, chance, sign, colour in (("LTP", rule.ltp, 1, "C0"), ("LTD", rule.ltd, -1, "C3")):
            axes.plot(lag, sign * chance(lag, torch.full_like(lag, rate)), color=colour, alpha=shade,
                      label=f"{name}, rate {rate:g}")  # fmt: skip
            axes.plot(70, sign * chance(none, torch.tensor([rate])), marker="o", color=colour, alpha=shade)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set_xticks([0, 15, 30, 45, 60, 70], ["0", "15", "30", "45", "60", "none"])
    axes.set(xlabel="time since the presynaptic spike (ms)", ylabel="probability (LTD below 0)", ylim=(-1, 1))


def main(argv: list[str] | None = None) -> int:
    return run_command(NewRuleConfig, run, argv)


def run(config: NewRuleConfig) -> None:
    """Learn, compare, draw."""
    picture = config.out / "new_rule.png"
    config.out.mkdir(parents=True, exist_ok=True)
    check_outputs(picture)
    train, test = snn.load_images("digits", "train"), snn.load_images("digits", "test")

    networks = {rule: snn.learn(train, settings(rule), seed=config.seed) for rule in ("fd", "linear")}
    start = snn.control(networks["fd"], train.images, "random", seed=config.seed)
    scores = {name: probe(network, train, test) for name, network in [*networks.items(), ("random", start)]}

    figure = Figure(figsize=(9, 8), layout="constrained")
    grid = figure.subplots(3, 2, height_ratios=(1, 0.5, 1))
    for column, (rule, network) in enumerate(networks.items()):
        draw_probabilities(grid[0, column], settings(rule))
        grid[0, column].set_title(f"{rule} (Eq. 5)" if rule == "fd" else f"{rule} (new)")
        draw_kernels(grid[1, column], network)
        grid[2, 0].hist(
            network.layers[0].layer.conductance.flatten(), np.linspace(0, 1, 31), histtype="step", linewidth=1.8,
            label=rule,
        )  # fmt: skip
    grid[0, 0].legend(frameon=False, fontsize=8, ncols=3)
    grid[2, 0].set(xlabel="conductance G", ylabel="synapses")
    grid[2, 0].legend(frameon=False)
    for number, (name, values) in enumerate(scores.items()):
        places = np.arange(len(CONDITIONS)) + 0.27 * (number - 1)
        bars = grid[2, 1].bar(places, values, 0.26, label=name, color="0.7" if name == "random" else f"C{number}")
        grid[2, 1].bar_label(bars, fmt="%.0f", fontsize=8)
    grid[2, 1].set_xticks(range(len(CONDITIONS)), CONDITIONS)
    grid[2, 1].set(ylabel="accuracy of a linear classifier (%)", ylim=(0, 108))
    grid[2, 1].legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save_figure(figure, picture)

    print(f"{'rule':<8}{'mean G':>8}" + "".join(f"{condition:>18}" for condition in CONDITIONS))
    for name, values in scores.items():
        mean = (networks | {"random": start})[name].layers[0].layer.conductance.mean()
        print(f"{name:<8}{mean:>8.3f}" + "".join(f"{value:>16.1f} %" for value in values))
    print(f"wrote {picture}")


def draw_kernels(axes: Axes, network: snn.SpikingNetwork) -> None:
    """All kernels in two rows."""
    tiles = np.pad(signed_contrast(network.layers[0].layer.conductance.numpy()), ((0, 0), (0, 1), (0, 1), (0, 0)),
                   constant_values=1.0)  # fmt: skip
    rows = tiles.reshape(2, 8, *tiles.shape[1:3])
    axes.imshow(rows.transpose(0, 2, 1, 3).reshape(2 * tiles.shape[1], -1), cmap="gray", vmin=0, vmax=1)
    axes.set_axis_off()
    axes.set_title("kernels: ON less OFF", fontsize=10)


if __name__ == "__main__":
    sys.exit(main())
