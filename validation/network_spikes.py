"""Spikes of random networks, all neurons at all steps: the learner and Brian2."""

from typing import NamedTuple

import numpy as np
import torch

from snn.layer import feed_forward
from snn.runtime.progress import progress
from snn.runtime.random import draw_seeds
from validation.brian2_network import ReferenceNetwork
from validation.random_networks import PRESENTATION, Kind, RandomNetwork, draw_network
from validation.report import Report

KINDS: tuple[Kind, ...] = ("inhibited", "exact", "free", "inhibited", "tied", "stacked")

LIVELY_SPIKES = 2.0
"""Fewest spikes per neuron of every layer in a network that counts."""
LIVELY_CONTESTS = 0.1
"""Smallest share of steps in which inhibition keeps a neuron that crossed threshold from firing, at any place."""
LIVELY_EVENTS = 5
"""Fewest ties, or potentials that meet their threshold, in a network made to show them."""
MOST_DRAWS = 50
"""Most networks that are drawn to find a lively one."""


class Trial(NamedTuple):
    """One network whose spikes were compared."""

    network: RandomNetwork
    learner: np.ndarray
    """Spikes of the last layer, bool (T, B, C, H, W)."""
    brian2: np.ndarray
    differing: int
    """Spikes that only one side has, over all layers."""
    engines: int
    """Spikes in which the learner's engine and norse's step differ, in float64 and float32 together."""
    spikes: int
    """Spikes of Brian2, over all layers."""
    per_neuron: float
    """Of the layer with the fewest, in Brian2."""
    contested: float
    """Share of steps in which inhibition kept a neuron that crossed threshold from firing, at any place."""
    ties: int
    """Equal potentials between which a draw decided."""
    touches: int
    """Times that a potential met its threshold exactly."""
    float32: int
    """Spikes that the learner in float32 has more or less than Brian2."""

    @property
    def lively(self) -> bool:
        """It counts: both sides could differ."""
        contests = not self.network.inhibition or self.contested >= LIVELY_CONTESTS
        special = {"tied": self.ties, "exact": self.touches}.get(self.network.kind, LIVELY_EVENTS)
        return self.per_neuron >= LIVELY_SPIKES and contests and special >= LIVELY_EVENTS


def learner_spikes(network: RandomNetwork, pre: torch.Tensor, seeds: torch.Tensor) -> list[np.ndarray]:
    """Spikes of all layers as the learner simulates them: learned layers freely, the last as configured."""
    found, spikes = [], pre
    for layer in network.layers[:-1]:
        spikes = feed_forward([layer], spikes)
        found.append(spikes)
    found.append(network.layers[-1].simulate(spikes, inhibition=network.inhibition, seeds=seeds))
    return [spikes.cpu().numpy() for spikes in found]


def norse_spikes(network: RandomNetwork, pre: torch.Tensor, seeds: torch.Tensor) -> list[np.ndarray]:
    """The same by norse's step, for all neurons at once."""
    found, spikes = [], pre
    for number, layer in enumerate(network.layers):
        inhibition = network.inhibition and number == len(network.layers) - 1
        spikes = layer.simulate_dense(spikes, inhibition=inhibition, seeds=seeds)
        found.append(spikes)
    return [spikes.cpu().numpy() for spikes in found]


def compare_spikes(network: RandomNetwork, device: torch.device, seed: int) -> Trial:
    """Present a batch to all sides."""
    network = network.to(device)
    pre = network.draw_spikes(torch.Generator(device).manual_seed(seed))
    # All sides draw alike between equal maps, so that what follows can be compared.
    seeds = draw_seeds(network.batch, torch.Generator(device).manual_seed(seed + 1))
    learner = learner_spikes(network, pre, seeds)
    norse = norse_spikes(network, pre, seeds)
    single_network = network.to(torch.float32)
    single = learner_spikes(single_network, pre, seeds)
    single_norse = norse_spikes(single_network, pre, seeds)
    reference = ReferenceNetwork(network.layers, network.shape, network.batch, inhibition=network.inhibition)
    brian2 = reference.present(pre.cpu().numpy(), seeds)
    engines = sum(_differing(*pair) for pair in ((learner, norse), (single, single_norse)))
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


def draw_lively(kind: Kind, random: np.random.Generator, device: torch.device) -> list[Trial]:
    """Trials of networks of ``kind``, up to the first lively one or :data:`MOST_DRAWS`."""
    trials: list[Trial] = []
    while len(trials) < MOST_DRAWS and not (trials and trials[-1].lively):
        trials.append(compare_spikes(draw_network(kind, random), device, int(random.integers(2**31))))
    return trials


def compare_networks(networks: int, report: Report, random: np.random.Generator, device: torch.device) -> list[Trial]:
    """Draw networks until ``networks`` lively ones have been compared; those that are not lively must agree too."""
    trials: list[Trial] = []
    kinds = [KINDS[number % len(KINDS)] for number in range(networks)]
    for kind in progress(kinds, "spikes", "network"):
        trials += draw_lively(kind, random, device)
        if not trials[-1].lively:
            # More draws would not help.
            break
    lively = [trial for trial in trials if trial.lively]
    rejected = [trial for trial in trials if not trial.lively]
    for what, chosen, least in (
        ("lively networks", lively, networks),
        ("networks that were drawn but rejected as not lively", rejected, 0),
    ):
        wrong, differing = sum(trial.differing > 0 for trial in chosen), sum(trial.differing for trial in chosen)
        report.add(
            f"{what}, spikes of all neurons at all steps over {PRESENTATION:g} ms",
            f"{wrong} of {len(chosen)} networks differ, {differing} of {sum(t.spikes for t in chosen)} spikes",
            f"0, of at least {least}" if least else "0",
            wrong == 0 and len(chosen) >= least,
        )
    engines = sum(trial.engines for trial in trials)
    report.add(
        "the learner's engine and norse's step, float64 and float32, spikes that differ in all networks",
        f"{engines}",
        "0",
        engines == 0,
    )
    for what, kind, counts in (
        ("ties decided by a draw", "tied", [trial.ties for trial in lively]),
        ("potentials that met their threshold exactly", "exact", [trial.touches for trial in lively]),
    ):
        least = LIVELY_EVENTS * kinds.count(kind)
        report.add(f"of them, {what}", str(sum(counts)), f"at least {least}", sum(counts) >= least)
    # Where potentials are made to be equal, one that is not in float32 has another winner.
    generic = [trial for trial in lively if trial.network.kind not in ("tied", "exact")]
    spikes, other = sum(trial.spikes for trial in generic), sum(trial.float32 for trial in generic)
    report.add(
        "networks that are not made to tie or to meet thresholds, the learner in float32",
        f"{other} of {spikes} spikes differ, in {sum(t.float32 > 0 for t in generic)} of {len(generic)} networks",
        "at most 1 % of the spikes",
        other <= 0.01 * spikes,
    )
    inhibited = [trial for trial in lively if trial.network.inhibition]
    mean_spikes = np.mean([trial.per_neuron for trial in lively]) if lively else 0.0
    contested = np.mean([trial.contested for trial in inhibited]) if inhibited else 0.0
    print(
        f"  {len(lively)} networks with {sum(t.learner[0].size for t in lively)} neurons, {mean_spikes:.1f} spikes "
        f"each on average; inhibition decided in {contested:.0%} of the steps"
    )
    return trials
