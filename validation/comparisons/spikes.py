"""Spikes of random networks, all neurons at all steps: the learner and Brian2."""

from typing import NamedTuple

import numpy as np
import torch

from snn.engines.base import Engine, choose_engine
from snn.registries import ENGINES
from snn.runtime.progress import progress
from snn.runtime.random import draw_seeds
from snn.spikes import as_dense
from validation.random_networks import MOST_DRAWS, PRESENTATION, Kind, RandomNetwork, draw_network
from validation.reference.network import ReferenceNetwork
from validation.report import Report

KINDS: tuple[Kind, ...] = ("inhibited", "exact", "free", "inhibited", "tied", "stacked")

ACTIVE_SPIKES = 2.0
"""Fewest spikes per neuron, in every layer of an active network."""
ACTIVE_CONTESTS = 0.1
"""Smallest share of steps in which inhibition keeps a neuron that crossed threshold from firing, at any place."""
ACTIVE_EVENTS = 5
"""Fewest ties, or potentials that meet their threshold, in a network made to show them."""


class Trial(NamedTuple):
    """One network whose spikes were compared."""

    network: RandomNetwork
    learner: np.ndarray
    """Spikes of the last layer, bool (T, B, C, H, W)."""
    brian2: np.ndarray
    differing: int
    """Spikes that only one side has, over all layers."""
    engines: int
    """Spikes in which another engine differs from the learner's, in float64 and float32 together."""
    spikes: int
    """Spikes of Brian2, over all layers."""
    per_neuron: float
    """Spikes per neuron of Brian2, in the layer with the fewest."""
    contested: float
    """Share of steps in which inhibition kept a neuron that crossed threshold from firing, at any place."""
    ties: int
    """Equal potentials between which a draw decided."""
    touches: int
    """Times that a potential met its threshold exactly."""
    float32: int
    """Spikes that the learner in float32 has more or less than Brian2."""

    @property
    def active(self) -> bool:
        """Whether the network counts: enough happens in it for the two sides to differ."""
        contests = not self.network.inhibition or self.contested >= ACTIVE_CONTESTS
        special = {"tied": self.ties, "exact": self.touches}.get(self.network.kind, ACTIVE_EVENTS)
        return self.per_neuron >= ACTIVE_SPIKES and contests and special >= ACTIVE_EVENTS


def engine_spikes(engine: Engine, network: RandomNetwork, pre: torch.Tensor, seeds: torch.Tensor) -> list[np.ndarray]:
    """Spikes of all layers, bool (T, B, C, H, W) each: learned layers without inhibition, the last as configured."""
    layers, spikes, of_layers = network.layers, pre, []
    for layer in layers:
        spikes = as_dense(
            engine.simulate(layer, spikes, inhibition=network.inhibition and layer is layers[-1], seeds=seeds)
        )
        of_layers.append(spikes.cpu().numpy())
    return of_layers


def compare_spikes(network: RandomNetwork, device: torch.device, seed: int) -> Trial:
    """Present a batch to all sides."""
    network = network.to(device)
    pre = network.draw_spikes(torch.Generator(device).manual_seed(seed))
    # All sides draw alike between equal channels, so that what follows can be compared.
    seeds = draw_seeds(network.batch, torch.Generator(device).manual_seed(seed + 1))
    engine, single_network = choose_engine("auto", device), network.to(torch.float32)
    learner, single = (engine_spikes(engine, typed, pre, seeds) for typed in (network, single_network))
    engines = 0
    for other in (ENGINES[name]() for name in ENGINES):
        if other.preference(device.type) and type(other) is not type(engine):
            engines += _differing(learner, engine_spikes(other, network, pre, seeds))
            engines += _differing(single, engine_spikes(other, single_network, pre, seeds))
    reference = ReferenceNetwork(network)
    brian2 = reference.present(pre.cpu().numpy(), seeds)
    return Trial(
        network=network,
        learner=learner[-1],
        brian2=brian2[-1],
        differing=_differing(learner, brian2),
        engines=engines,
        spikes=sum(int(spikes.sum()) for spikes in brian2),
        per_neuron=min(spikes.sum() / spikes[0].size for spikes in brian2),
        contested=reference.contested_steps / len(pre),
        ties=reference.ties,
        touches=reference.touches,
        float32=_differing(single, brian2),
    )


def _differing(one: list[np.ndarray], other: list[np.ndarray]) -> int:
    """Spikes that only one side has, over all layers."""
    return sum(int((a != b).sum()) for a, b in zip(one, other, strict=True))


def draw_active(kind: Kind, feed_forward: bool, random: np.random.Generator, device: torch.device) -> list[Trial]:
    """Trials of networks (:func:`draw_network`), up to the first active one or :data:`MOST_DRAWS`."""
    trials: list[Trial] = []
    while len(trials) < MOST_DRAWS and not (trials and trials[-1].active):
        network = draw_network(kind, random, feed_forward=feed_forward)
        trials.append(compare_spikes(network, device, int(random.integers(2**31))))
    return trials


def compare_networks(networks: int, report: Report, random: np.random.Generator, device: torch.device) -> list[Trial]:
    """Draw networks until ``networks`` active ones have been compared; those that are not active must agree, too."""
    trials: list[Trial] = []
    # Every other network has feed-forward inhibition, and in the next round the others.
    planned = [(KINDS[number % len(KINDS)], (number + number // len(KINDS)) % 2 == 0) for number in range(networks)]
    for kind, feed_forward in progress(planned, "spikes", "network"):
        trials += draw_active(kind, feed_forward, random, device)
        if not trials[-1].active:
            # More draws would not help.
            break
    active = [trial for trial in trials if trial.active]
    rejected = [trial for trial in trials if not trial.active]
    for what, chosen, least in (
        ("active networks", active, networks),
        ("networks that were drawn but rejected as not active", rejected, 0),
    ):
        if not chosen and not least:
            continue
        wrong, differing = sum(trial.differing > 0 for trial in chosen), sum(trial.differing for trial in chosen)
        report.add(
            f"{what}, spikes of all neurons at all steps over {PRESENTATION:g} ms",
            f"{wrong} of {len(chosen)} networks differ, {differing} of {sum(t.spikes for t in chosen)} spikes",
            f"0, of at least {least}" if least else "0",
            wrong == 0 and len(chosen) >= least,
            of=len(chosen),
        )
    engines = sum(trial.engines for trial in trials)
    report.add(
        "the learner's engine and the others that simulate here, float64 and float32, spikes that differ",
        f"{engines}",
        "0",
        engines == 0,
        of=sum(trial.spikes for trial in trials),
    )
    kinds = [kind for kind, _ in planned]
    for what, least, count in (
        (
            "those with feed-forward inhibition",
            sum(feed_forward for _, feed_forward in planned),
            sum(trial.network.feed_forward_inhibition for trial in active),
        ),
        ("ties decided by a draw", ACTIVE_EVENTS * kinds.count("tied"), sum(trial.ties for trial in active)),
        (
            "potentials that met their threshold exactly",
            ACTIVE_EVENTS * kinds.count("exact"),
            sum(trial.touches for trial in active),
        ),
    ):
        report.add(f"of the active networks, {what}", str(count), f"at least {least}", count >= least, of=len(active))
    # Where potentials are made to be equal, one that is not in float32 has another winner.
    generic = [trial for trial in active if trial.network.kind not in ("tied", "exact")]
    spikes, other = sum(trial.spikes for trial in generic), sum(trial.float32 for trial in generic)
    report.add(
        "networks that are not made to tie or to meet thresholds, the learner in float32",
        f"{other} of {spikes} spikes differ, in {sum(t.float32 > 0 for t in generic)} of {len(generic)} networks",
        "at most 1 % of the spikes",
        other <= 0.01 * spikes,
        of=spikes,
    )
    inhibited = [trial for trial in active if trial.network.inhibition]
    mean_spikes = np.mean([trial.per_neuron for trial in active]) if active else 0.0
    contested = np.mean([trial.contested for trial in inhibited]) if inhibited else 0.0
    print(
        f"  {len(active)} networks with {sum(t.learner[0].size for t in active)} neurons, {mean_spikes:.1f} spikes "
        f"each on average; inhibition decided in {contested:.0%} of the steps"
    )
    return trials
