"""Learning of random networks: conductances by the deterministic rule, distributions of change by a stochastic one."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats

from snn.command import progress
from snn.layer import simulate_layers
from snn.learn import learn_batch
from snn.stdp import STDPParameters
from validation.brian2_network import ReferenceNetwork, connections, most_waiting
from validation.brian2_neuron import load_brian2
from validation.network_spikes import compare_spikes
from validation.random_networks import Kind, RandomNetwork, draw_network, draw_rule
from validation.report import FALSE_ALARM, Report

GAMMA_CHANGE = 0.95
"""Factor by which gamma_p or gamma_d is changed to show that the test would notice."""
MOST_BLOCKS = 20
"""Most blocks of repeats that are drawn until it does."""


class Learned(NamedTuple):
    """Conductances after learning by the deterministic rule, flat, of all networks together."""

    before: np.ndarray
    learner: np.ndarray
    brian2: np.ndarray


def compare_learning(
    learners: int, batches: int, report: Report, random: np.random.Generator, device: torch.device
) -> Learned:
    """``batches`` mini-batches of the deterministic rule in ``learners`` networks: every conductance must follow."""
    parts: list[Learned] = []
    largest = {"post": 0.0, "two-sided": 0.0}
    networks = {"post": 0, "two-sided": 0}
    wrong = {1: 0, 2: 0}
    sizes = {1: 0, 2: 0}
    for number in progress(range(learners), "deterministic rule", "network"):
        pairing = ("post", "two-sided")[number % 2]
        kind: Kind = ("inhibited", "stacked", "tied")[number // 2 % 3]
        network = draw_network(kind, random, batch=1 if number // 2 % 2 == 0 else int(random.integers(2, 4)))
        rule = draw_rule(random, "deterministic", pairing, network.encoding.dt)
        part, spikes_wrong = _learn_both(network.to(device), rule, batches, device, int(random.integers(2**31)))
        parts.append(part)
        # Both sides clip to the same limits: where these are 0, so is the difference.
        relative = np.abs(part.learner - part.brian2) / np.maximum(np.abs(part.brian2), np.finfo(float).tiny)
        difference = float(relative.max())
        largest[pairing] = max(largest[pairing], difference)
        networks[pairing] += 1
        batch = min(network.batch, 2)
        sizes[batch] += 1
        wrong[batch] += difference > 1e-10 or spikes_wrong > 0
    together = Learned(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    moved = np.abs(together.brian2 - together.before)
    for pairing, difference in largest.items():
        report.add(
            f"deterministic rule, {pairing}: conductances after {batches} mini-batches, largest relative difference",
            f"{difference:.1e} in {networks[pairing]} networks",
            "1e-10",
            difference <= 1e-10 and networks[pairing] > 0,
        )
    report.add(
        "the same networks, spikes and conductances by images in a mini-batch",
        f"{wrong[1]} of {sizes[1]} differ with one, {wrong[2]} of {sizes[2]} with several",
        "0 and 0",
        not any(wrong.values()) and all(sizes.values()),
    )
    report.add(
        "the same conductances, mean move from the start",
        f"{moved.mean():.3f}, {(together.brian2 > together.before).mean():.0%} of them up",
        "at least 0.01, both ways",
        moved.mean() >= 0.01
        and (together.brian2 > together.before).any()
        and (together.brian2 < together.before).any(),
    )
    return together


def _learn_both(
    network: RandomNetwork, rule: STDPParameters, batches: int, device: torch.device, seed: int
) -> tuple[Learned, int]:
    """Conductances of both sides after all mini-batches, and the spikes that differed meanwhile."""
    images = torch.Generator(device).manual_seed(seed)
    below, layer = network.layers[:-1], network.layers[-1]
    low, span = rule.g_min, rule.g_max - rule.g_min
    layer = layer.with_values(conductance=low + span * layer.conductance)
    layers = (*below, layer)
    slots = 1 if rule.pairing == "post" else 24
    reference = ReferenceNetwork(
        layers, network.shape, network.batch, inhibition=True, stdp=rule, slots=slots, device=device
    )
    before, wrong = layer.conductance, 0
    for number in range(batches):
        pre = network.draw_spikes(images)
        hidden = [pre, *simulate_layers(below, pre)][-1]
        limits = (network.encoding.f_min, network.encoding.f_max)
        post, conductance = learn_batch(layer, hidden, limits, rule, torch.Generator(device).manual_seed(seed + number))
        layer = layer.with_values(conductance=conductance)
        brian2 = reference.present(pre.cpu().numpy(), torch.Generator(device).manual_seed(seed + number))
        wrong += int((brian2[-1] != post.cpu().numpy()).sum())
        reference.learn()
    flat = (before.cpu().numpy().ravel(), layer.conductance.cpu().numpy().ravel(), reference.conductance.ravel())
    return Learned(*flat), wrong


class Distribution(NamedTuple):
    """Changes of all conductances of one network by a stochastic rule, (repeats, synapses) each."""

    rule: STDPParameters
    learner: np.ndarray
    brian2: np.ndarray
    weaker_ltp: np.ndarray
    """Brian2 with gamma_p reduced to :data:`GAMMA_CHANGE`."""
    weaker_ltd: np.ndarray
    """Brian2 with gamma_d reduced to :data:`GAMMA_CHANGE`."""


def same_distribution_p(first: np.ndarray, second: np.ndarray) -> float:
    """p value of the two-sample Kolmogorov-Smirnov test on changes (repeats, synapses) of two samples.

    Changes are first expressed in each synapse's standard deviations from its mean, over both samples together: both
    are treated alike, so equal distributions stay equal. Synapses that never vary are left out.
    """
    together = np.concatenate([first, second])
    mean, deviation = together.mean(0), together.std(0)
    vary = deviation > 1e-12
    if not vary.any():
        return 1.0
    scaled = (((sample - mean)[:, vary] / deviation[vary]).ravel() for sample in (first, second))
    return float(stats.ks_2samp(*scaled, method="asymp").pvalue)


def compare_distributions(
    rules: int, repeats: int, report: Report, random: np.random.Generator, device: torch.device
) -> list[Distribution]:
    """One mini-batch of a stochastic rule, many times from the same start, in blocks of ``repeats``."""
    level = FALSE_ALARM / max(rules, 1)
    combinations = [("fd", "post"), ("fd", "two-sided"), ("stochastic", "post"), ("stochastic", "two-sided")]
    found = []
    for number in progress(range(rules), "stochastic rules", "network"):
        rule_name, pairing = combinations[number % len(combinations)]
        distribution = _draw_distribution(rule_name, pairing, repeats, level, random, device)
        found.append(distribution)
        p = same_distribution_p(distribution.learner, distribution.brian2)
        powers = [
            same_distribution_p(distribution.learner, weaker)
            for weaker in (distribution.weaker_ltp, distribution.weaker_ltd)
        ]
        name = f"{rule_name}, {pairing}: distribution of the change of {distribution.learner.shape[1]} conductances"
        report.add(
            f"{name}, {len(distribution.learner)} repeats",
            f"p = {p:.3g}",
            f"at least {level:.1g}, two-sample Kolmogorov-Smirnov test",
            p >= level,
        )
        report.add(
            "the same test with gamma_p or gamma_d 5 % smaller in Brian2",
            f"p = {powers[0]:.2g} and {powers[1]:.2g}",
            f"below {level:.1g}, or the test would be blind",
            max(powers) < level,
        )
    return found


def _draw_distribution(
    rule_name: str, pairing: str, repeats: int, level: float, random: np.random.Generator, device: torch.device
) -> Distribution:
    """Changes on both sides, in blocks of repeats until the test tells 5 % of either gamma in Brian2's own draws."""
    network = _draw_learner(random, device)
    rule = draw_rule(random, rule_name, pairing, network.encoding.dt)
    layer = network.layers[-1]
    layer = layer.with_values(conductance=rule.g_min + (rule.g_max - rule.g_min) * layer.conductance)
    seed = int(random.integers(2**31))
    pre = network.draw_spikes(torch.Generator(device).manual_seed(seed))
    limits = (network.encoding.f_min, network.encoding.f_max)
    generator = torch.Generator(device).manual_seed(seed + 1)
    rules = (
        rule,
        replace(rule, gamma_p=GAMMA_CHANGE * rule.gamma_p),
        replace(rule, gamma_d=GAMMA_CHANGE * rule.gamma_d),
    )
    load_brian2().seed(seed)
    silent = ReferenceNetwork([layer], network.shape, network.batch, inhibition=True, device=device)
    post = silent.present(pre.cpu().numpy(), torch.Generator(device))[-1]
    slots = most_waiting(pre.cpu().numpy(), post, layer.geometry) if pairing == "two-sided" else 1
    references = []
    for p in rules:
        reference = ReferenceNetwork(
            [layer],
            network.shape,
            network.batch,
            inhibition=True,
            stdp=p,
            rate_limits=limits,
            repeats=repeats,
            slots=slots,
            device=device,
        )
        references.append(reference)
    before = layer.conductance.cpu().numpy().ravel()
    samples: list[list[np.ndarray]] = [[], [], [], []]
    for _ in range(MOST_BLOCKS):
        for _ in range(repeats):
            _, conductance = learn_batch(layer, pre, limits, rule, generator)
            samples[0].append(conductance.cpu().numpy().reshape(1, -1) - before)
        for sample, reference in zip(samples[1:], references, strict=True):
            reference.present(pre.cpu().numpy(), torch.Generator(device))
            sample.append(reference.learned().reshape(repeats, -1) - before)
        own, *weaker = (np.concatenate(sample) for sample in samples[1:])
        if max(same_distribution_p(own, sample) for sample in weaker) < level * 1e-6:
            break
    return Distribution(rule, *(np.concatenate(sample) for sample in samples))


def _draw_learner(random: np.random.Generator, device: torch.device) -> RandomNetwork:
    """A lively network in which every conductance sees dozens of events, and that Brian2 finishes soon."""
    while True:
        network = draw_network("inhibited", random, batch=2)
        layer = network.layers[0]
        synapses = len(connections(network.shape, layer.geometry)[0])
        if layer.conductance.numel() < 40 or not 300 <= synapses <= 800 or layer.dt < 2:
            continue
        if compare_spikes(network, device, int(random.integers(2**31))).lively:
            return network.to(device)
