"""What layers learn: a linear probe on pooled responses, against the same values shuffled within each map.

    python -m benchmarks.features --data folder:cifar10 --seeds 0 1 2 --out features.csv

Every rule learns with every seed on training images of its own. A layer's response is its spike counts as it passes
them on (inhibition off, threshold set to its output rate), averaged over a grid of 4 x 4 cells; a ridge classifier is
fitted to clean training images, and tested on others, clean and with noise added. With ``--response converted`` the
same is asked of the converted layers (``bridge.convert``), which answer in one step. For the control the conductances
of each map are shuffled, and gain and threshold set again to the same rate, as for the learned layer.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import torch
import tyro
from sklearn.linear_model import RidgeClassifierCV
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from bridge.conversion import convert
from bridge.frontend import SpikingFrontEnd
from hybrid.conditions import Noise
from snn.calibration import finalise, sample_drive
from snn.data import load_images
from snn.data_source import DataSource
from snn.engines.base import choose_engine, feed_forward
from snn.layer import SpikingConv2d
from snn.learner import learn
from snn.learning import Learning
from snn.network import LearnedLayer, SpikingNetwork
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs, write_csv
from snn.runtime.progress import progress
from snn.runtime.random import draw_seeds, stream
from snn.spikes import SpikeEvents, spike_counts

Rule = Literal["fd", "stochastic", "deterministic"]
ENGINE = choose_engine("events")
GRID = 4
CONDITIONS = ("clean", "awgn:20", "awgn:15")
BATCH = 50
"""Images simulated at once."""
PENALTIES = (30, 100, 300, 1000, 3000)
"""Of the ridge classifier, chosen by leave-one-out on its training images."""


@dataclass(frozen=True)
class FeaturesConfig:
    """Probe what layers learn, beside a shuffled control."""

    out: Path | None = None
    """Also write every result to this CSV file."""
    rules: tuple[Rule, ...] = ("fd", "stochastic", "deterministic")
    """Rules to compare."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of learning for each; the probe's images are the same for all."""
    learn_images: int = 8000
    """Training images to learn on."""
    probe_train: int = 5000
    """Further training images to fit the probe to."""
    probe_test: int = 2000
    """Further training images to test it on."""
    response: Literal["simulated", "converted"] = "simulated"
    """Spike counts of a simulation, or the rates of the converted layers."""
    maps: tuple[int, ...] = (32,)
    """Maps of the layers."""
    data_source: Annotated[DataSource, tyro.conf.arg(name="")] = field(default_factory=DataSource)

    def __post_init__(self) -> None:
        for name in ("learn_images", "probe_train", "probe_test"):
            check(getattr(self, name) >= 10, f"{name} = {getattr(self, name)}: expected 10 or more")
        check(self.rules and self.seeds and self.maps, "give at least one rule, one seed and one layer")


class Probe(NamedTuple):
    """Images and labels of the linear classifier."""

    train: Tensor
    train_labels: np.ndarray
    tests: list[Tensor]
    """One for each of :data:`CONDITIONS`, uint8."""
    test_labels: np.ndarray


def noisy(images: Tensor) -> list[Tensor]:
    """uint8 images under each condition, rounded to 8 bits again."""
    changed = (Noise.parse(text).apply(images / 255, stream("noise", text)) for text in CONDITIONS)
    return [(values * 255).round().to(torch.uint8) for values in changed]


def pooled(layers: list[SpikingConv2d], images: Tensor, p: Learning, purpose: str) -> np.ndarray:
    """Mean spike counts of the last layer in each cell: (N, maps * GRID^2)."""
    parts, generator = [], stream("probe", purpose)
    for batch in images.split(BATCH):
        spikes = feed_forward(ENGINE, layers, ENGINE.encode(batch, p.encoding, draw_seeds(len(batch), generator)))
        parts.append(adaptive_avg_pool2d(spike_counts(spikes).float(), GRID).flatten(1))
    return torch.cat(parts).numpy()


def pooled_rates(frontend: SpikingFrontEnd, images: Tensor) -> np.ndarray:
    """Mean rates of the last converted layer in each cell: (N, maps * GRID^2)."""
    with torch.no_grad():
        parts = [adaptive_avg_pool2d(frontend(batch / 255), GRID).flatten(1) for batch in images.split(BATCH)]
    return torch.cat(parts).numpy()


def accuracy(respond: Callable[[Tensor, str], np.ndarray], probe: Probe) -> list[float]:
    """Of the linear classifier under each condition, in %; ``respond`` gives features of images for a purpose."""
    features = respond(probe.train, "train")
    scale = StandardScaler().fit(features)
    classifier = RidgeClassifierCV(alphas=PENALTIES).fit(scale.transform(features), probe.train_labels)
    tests = (scale.transform(respond(images, "test")) for images in probe.tests)
    return [100 * classifier.score(features, probe.test_labels) for features in tests]


def shuffled(learned: LearnedLayer, pre: SpikeEvents, p: Learning, seed: int) -> SpikingConv2d:
    """The control: values shuffled within each map, drives scaled as in the learned layer, rate set again."""
    generator, flat = stream("shuffle", seed), learned.layer.conductance.flatten(1)
    values = torch.stack([row[torch.randperm(len(row), generator=generator)] for row in flat])
    layer = learned.layer.with_values(
        conductance=values.reshape(learned.layer.conductance.shape),
        v_threshold=torch.full_like(learned.layer.v_threshold, p.lif.v_threshold),
    )
    drive = sample_drive(ENGINE, layer, pre, stream("places", seed))
    return finalise(ENGINE, layer, drive, p.output_rate * p.encoding.presentation / 1000, p.threshold_lowering)


def responder(
    network: SpikingNetwork, layers: list[LearnedLayer], images: Tensor, response: str
) -> Callable[[Tensor, str], np.ndarray]:
    """Features of the last of ``layers``; converted ones are fitted to the responses to ``images``."""
    if response == "converted":
        frontend = convert(replace(network, layers=tuple(layers)), images).frontend
        return lambda wanted, _: pooled_rates(frontend, wanted)
    spiking = [learned.layer for learned in layers]
    return lambda wanted, purpose: pooled(spiking, wanted, network.learning, purpose)


def probe_network(network: SpikingNetwork, images: Tensor, probe: Probe, seed: int, response: str) -> list[dict]:
    """One row for each layer, features and condition."""
    p, rows = network.learning, []
    calibration = images[: p.calibration_images]
    spikes = ENGINE.encode(calibration, p.encoding, draw_seeds(len(calibration), stream("calibration", seed)))
    for number, learned in enumerate(network.layers, 1):
        control = replace(learned, layer=shuffled(learned, spikes, p, seed))
        for kind, layer in (("learned", learned), ("shuffled", control)):
            respond = responder(network, [*network.layers[: number - 1], layer], images[:128], response)
            for condition, percent in zip(CONDITIONS, accuracy(respond, probe), strict=True):
                rows.append(
                    {
                        "rule": p.stdp.rule,
                        "seed": seed,
                        "layer": number,
                        "features": kind,
                        "condition": condition,
                        "accuracy_percent": percent,
                        "maps_above_a_fifth_of_fair_share": learned.winning_share,
                        "largest_share_over_fair_share": learned.fair_shares.max().item(),
                        "mean_conductance_change": learned.mean_move,
                        "spread_before": learned.initial_conductance.std().item(),
                        "spread_after": learned.layer.conductance.std().item(),
                        "ltp_at_peak": learned.saturated[0],
                        "ltd_at_peak": learned.saturated[1],
                    }
                )
        spikes = feed_forward(ENGINE, [learned.layer], spikes)
    return rows


def table(rows: list[dict]) -> str:
    """Means and standard deviations over the seeds, in Markdown."""
    lines = [
        "| rule | layer | condition | learned | shuffled | difference | maps above 1/5 of fair share | largest share "
        "| mean change of G | LTP, LTD at peak |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for rule, layer, condition in dict.fromkeys((r["rule"], r["layer"], r["condition"]) for r in rows):
        mine = [r for r in rows if (r["rule"], r["layer"], r["condition"]) == (rule, layer, condition)]
        both = [[r["accuracy_percent"] for r in mine if r["features"] == kind] for kind in ("learned", "shuffled")]
        learned, control = map(np.array, both)
        worst = min(r["maps_above_a_fifth_of_fair_share"] for r in mine)
        most = max(r["largest_share_over_fair_share"] for r in mine)
        moved, ltp, ltd = (
            np.mean([r[n] for r in mine]) for n in ("mean_conductance_change", "ltp_at_peak", "ltd_at_peak")
        )
        percent = " | ".join(map(_spread, (learned, control, learned - control)))
        lines.append(
            f"| {rule} | {layer} | {condition} | {percent} | {worst:.0%} | {most:.1f} | {moved:.2f} "
            f"| {ltp:.0%}, {ltd:.0%} |"
        )
    return "\n".join(lines)


def _spread(values: np.ndarray) -> str:
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def run(config: FeaturesConfig) -> None:
    """The command: learn, probe, print, write."""
    outputs = Outputs(config.out, options=RunOptions())
    data = load_images(config.data_source, "train", 0)
    parts = [config.probe_train, config.probe_test, config.learn_images]
    needed, images = sum(parts), len(data.images)
    check(
        needed <= images, f"{needed} training images are needed, {config.data_source.data} has {images}: ask for fewer"
    )
    order, labels = torch.randperm(images, generator=stream("split")), data.labels.numpy()
    train, test, learned, _ = order.split([*parts, images - needed])
    probe = Probe(data.images[train], labels[train], noisy(data.images[test]), labels[test])
    rows = []
    runs = [(rule, seed) for seed in config.seeds for rule in config.rules]
    for rule, seed in progress(runs, "learning and probing", "run"):
        settings = Learning(maps=config.maps)
        settings = replace(settings, stdp=replace(settings.stdp, rule=rule))
        network = learn(data.images[learned], settings, seed=seed)
        rows += probe_network(network, data.images[learned], probe, seed, config.response)
    print(table(rows))
    print(
        f"{config.data_source.data}, {config.response} responses: "
        f"{config.learn_images} images learned, {config.probe_train} fit the probe, "
        f"{config.probe_test} test it; seeds {', '.join(map(str, config.seeds))}; mean ± standard deviation"
    )
    write_csv(config.out, rows)
    outputs.finish({})


if __name__ == "__main__":
    sys.exit(run_command(FeaturesConfig, run, None))
