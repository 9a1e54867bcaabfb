"""Learning of random networks: conductances by rules without chance, distributions of change by stochastic ones."""

from dataclasses import replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch

from snn.layer import feed_forward
from snn.learner import learn_batch
from snn.parameters import STDPParameters
from snn.runtime.progress import progress
from snn.runtime.random import draw_seeds
from validation.brian2_network import ReferenceNetwork, connections, most_waiting
from validation.brian2_neuron import load_brian2
from validation.network_spikes import MOST_DRAWS
from validation.random_networks import PRESENTATION, Kind, RandomNetwork, draw_network, draw_rule, switch_rule
from validation.report import FALSE_ALARM, Report
from validation.significance import same_distribution_p, same_spread_p

GAMMA_CHANGE = 0.95
"""Factor by which gamma_p or gamma_d is changed to show that the test would notice."""
MOST_BLOCKS = 10
"""Most blocks of repeats that are drawn until the test notices."""
MOST_NETWORKS = 3
"""Most networks that are drawn until it does: where LTP or LTD is rare, no number of repeats is enough."""
MAP_SPIKES = 20
"""Fewest spikes of each map in a mini-batch whose change is compared: its conductances see about as many events."""
WAITING_SLOTS = 24
"""Postsynaptic spikes for which a Brian2 synapse of pairing two-sided has room."""
LEARNERS = (("deterministic", "post"), ("deterministic", "two-sided"), ("switch", "post"), ("switch", "two-sided"))
"""Rules without chance, with their pairings; switch: :func:`validation.random_networks.switch_rule`."""


class Learned(NamedTuple):
    """Conductances before and after learning by rules without chance, flat, of all networks together."""

    before: np.ndarray
    learner: np.ndarray
    brian2: np.ndarray
    at_limit: np.ndarray
    """Whether Brian2's conductance was clipped to g_min or g_max."""


def compare_learning(
    learners: int, batches: int, report: Report, random: np.random.Generator, device: torch.device
) -> Learned:
    """``batches`` mini-batches of rules without chance in ``learners`` networks: every conductance must follow."""
    parts: list[Learned] = []
    largest = {learner: 0.0 for learner in LEARNERS}
    networks = {learner: 0 for learner in LEARNERS}
    wrong, sizes = {1: 0, 2: 0}, {1: 0, 2: 0}
    for number in progress(range(learners), "rules without chance", "network"):
        learner = LEARNERS[number % len(LEARNERS)]
        round_number = number // len(LEARNERS)
        kind: Kind = ("inhibited", "stacked", "tied")[(number + round_number) % 3]
        alone = (number // 2 + round_number) % 2 == 0
        network = draw_network(kind, random, batch=1 if alone else int(random.integers(2, 4)))
        rule = draw_rule(random, "deterministic", learner[1], network.encoding.dt)
        if learner[0] == "switch":
            rule = switch_rule(rule, network.encoding.dt)
        part, spikes_wrong = _learn_both(network.to(device), rule, batches, device, int(random.integers(2**31)))
        parts.append(part)
        # Both sides clip to the same limits: where these are 0, so is the difference.
        relative = np.abs(part.learner - part.brian2) / np.maximum(np.abs(part.brian2), np.finfo(float).tiny)
        difference = float(relative.max())
        largest[learner] = max(largest[learner], difference)
        networks[learner] += 1
        batch = min(network.batch, 2)
        sizes[batch] += 1
        wrong[batch] += difference > 1e-10 or spikes_wrong > 0
    together = Learned(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    for (rule_name, pairing), difference in largest.items():
        what = "deterministic rule" if rule_name == "deterministic" else "rule switched by each synapse's own rate"
        report.add(
            f"{what}, {pairing}: conductances after learning (mini-batches: {batches}), largest relative difference",
            f"{difference:.1e} (networks: {networks[rule_name, pairing]})",
            "at most 1e-10",
            difference <= 1e-10 and networks[rule_name, pairing] > 0,
        )
    report.add(
        "the same networks, spikes and conductances by images in a mini-batch",
        f"{wrong[1]} of {sizes[1]} differ with one, {wrong[2]} of {sizes[2]} with several",
        "0 and 0",
        not any(wrong.values()) and all(sizes.values()),
    )
    moved = together.brian2 - together.before
    report.add(
        "movement of these conductances, without which nothing would be tested",
        f"moved by {np.abs(moved).mean():.3f} on average, {(moved > 0).mean():.0%} up, {(moved < 0).mean():.0%} down, "
        f"{together.at_limit.mean():.0%} at a limit",
        "at least 0.01, and some of each",
        bool(np.abs(moved).mean() >= 0.01 and (moved > 0).any() and (moved < 0).any() and together.at_limit.any()),
    )
    return together


def _learn_both(
    network: RandomNetwork, rule: STDPParameters, batches: int, device: torch.device, seed: int
) -> tuple[Learned, int]:
    """Conductances of both sides after all mini-batches, and the spikes that differed meanwhile."""
    images = torch.Generator(device).manual_seed(seed)
    below, layer = network.layers[:-1], network.layers[-1]
    # Some conductances start at the limits, and are pushed against them.
    stretched = (2 * (layer.conductance - 0.5) + 0.5).clamp(0, 1)
    layer = layer.with_values(conductance=rule.g_min + (rule.g_max - rule.g_min) * stretched)
    pre = network.draw_spikes(images)
    hidden = _rates(feed_forward(below, pre))
    # Between two neighbouring rates: every fn is 0 or 1.
    low = (np.floor(hidden.median().item() * PRESENTATION / 1000) + 0.5) * 1000 / PRESENTATION
    limits = (low, low + 1e-6)
    reference = ReferenceNetwork(
        (*below, layer),
        network.shape,
        network.batch,
        inhibition=True,
        stdp=rule,
        rate_limits=limits,
        slots=1 if rule.pairing == "post" else WAITING_SLOTS,
    )
    before, wrong = layer.conductance, 0
    for _ in range(batches):
        pre = network.draw_spikes(images)
        hidden = feed_forward(below, pre)
        seeds = draw_seeds(network.batch, images)
        post, conductance = learn_batch(layer, hidden, limits, rule, seeds)
        layer = layer.with_values(conductance=conductance)
        brian2 = reference.present(pre.cpu().numpy(), seeds)
        wrong += int((brian2[-1] != post.cpu().numpy()).sum())
        reference.learn()
    after = reference.conductance.ravel()
    at_limit = (after == rule.g_min) | (after == rule.g_max)
    return Learned(before.cpu().numpy().ravel(), layer.conductance.cpu().numpy().ravel(), after, at_limit), wrong


def _rates(spikes: torch.Tensor) -> torch.Tensor:
    """Rates in Hz of spikes bool (T, ...) over a presentation."""
    return spikes.sum(0).double() * (1000 / PRESENTATION)


class Distribution(NamedTuple):
    """Changes of all conductances of one network by a stochastic rule, (repeats, synapses) each."""

    rule: STDPParameters
    learner: np.ndarray
    brian2: np.ndarray
    weaker_ltp: np.ndarray
    """Brian2 with gamma_p reduced to :data:`GAMMA_CHANGE`."""
    weaker_ltd: np.ndarray
    """Brian2 with gamma_d reduced to :data:`GAMMA_CHANGE`."""


def compare_distributions(
    rules: int, repeats: int, report: Report, random: np.random.Generator, device: torch.device
) -> list[Distribution]:
    """One mini-batch of a stochastic rule, many times from the same start, in blocks of ``repeats``."""
    level = FALSE_ALARM / max(2 * rules, 1)
    combinations = [("fd", "post"), ("fd", "two-sided"), ("stochastic", "post"), ("stochastic", "two-sided")]
    found = []
    for number in progress(range(rules), "stochastic rules", "network"):
        rule_name, pairing = combinations[number % len(combinations)]
        for _ in range(MOST_NETWORKS):
            part = _draw_distribution(rule_name, pairing, repeats, level, random, device)
            powers = [same_distribution_p(part.brian2, weaker) for weaker in (part.weaker_ltp, part.weaker_ltd)]
            if max(powers) < level:
                break
        found.append(part)
        size = "{} conductances, {} repeats".format(*part.learner.shape[::-1])
        test = f"at least {level:.1g}, two-sample Kolmogorov-Smirnov test"
        p = same_distribution_p(part.learner, part.brian2)
        report.add(f"{rule_name}, {pairing}: distribution of the change, {size}", f"p = {p:.3g}", test, p >= level)
        p = same_spread_p(part.learner, part.brian2)
        report.add(
            f"{rule_name}, {pairing}: spread of their sum, {len(part.learner)} repeats",
            f"p = {p:.3g}",
            f"at least {level:.1g}, Brown-Forsythe test",
            p >= level,
        )
        report.add(
            "the first of these tests between Brian2 and Brian2 with gamma_p or gamma_d 5 % smaller",
            f"p = {powers[0]:.2g} and {powers[1]:.2g}",
            f"below {level:.1g}, or the test would be blind",
            max(powers) < level,
        )
    return found


def _draw_distribution(
    rule_name: str, pairing: str, repeats: int, level: float, random: np.random.Generator, device: torch.device
) -> Distribution:
    """Changes on both sides, in blocks of repeats until the test tells 5 % of either gamma in Brian2's own draws."""
    network, rule, pre, post = _draw_learner(rule_name, pairing, random, device)
    layer, seed = network.layers[0], int(random.integers(2**31))
    limits = (network.encoding.f_min, network.encoding.f_max)
    generator = torch.Generator(device).manual_seed(seed)
    rules = (
        rule,
        replace(rule, gamma_p=GAMMA_CHANGE * rule.gamma_p),
        replace(rule, gamma_d=GAMMA_CHANGE * rule.gamma_d),
    )
    load_brian2().seed(seed)
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
        )
        references.append(reference)
    before = layer.conductance.cpu().numpy().ravel()
    samples: list[list[np.ndarray]] = [[], [], [], []]
    for _ in range(MOST_BLOCKS):
        for _ in range(repeats):
            _, conductance = learn_batch(layer, pre, limits, rule, draw_seeds(network.batch, generator))
            samples[0].append(conductance.cpu().numpy().reshape(1, -1) - before)
        for sample, reference in zip(samples[1:], references, strict=True):
            reference.present(pre.cpu().numpy(), draw_seeds(network.batch, torch.Generator()))
            sample.append(reference.learned().reshape(repeats, -1) - before)
        own, *weaker = (np.concatenate(sample) for sample in samples[1:])
        if max(same_distribution_p(own, sample) for sample in weaker) < level / 100:
            break
    return Distribution(rule, *(np.concatenate(sample) for sample in samples))


def _draw_learner(
    rule_name: str, pairing: str, random: np.random.Generator, device: torch.device
) -> tuple[RandomNetwork, STDPParameters, torch.Tensor, np.ndarray]:
    """A layer with its rule, a mini-batch, and Brian2's spikes to it, in which every conductance sees many events.

    Brian2 must finish soon. Should none be found, the last one shows why.
    """

    def suitable(network: RandomNetwork) -> bool:
        layer = network.layers[0]
        _, _, weight, _ = connections(network.shape, layer.geometry)
        shared = np.bincount(weight, minlength=layer.conductance.numel())
        return len(shared) >= 40 and shared.min() >= 4 and 300 <= len(weight) <= 800 and layer.dt >= 2

    drawn = (draw_network("inhibited", random, batch=2) for _ in range(100_000))
    for drawn_network in islice(filter(suitable, drawn), MOST_DRAWS):
        rule = draw_rule(random, rule_name, pairing, drawn_network.encoding.dt)
        layer = drawn_network.layers[0]
        conductance = rule.g_min + (rule.g_max - rule.g_min) * layer.conductance
        network = replace(drawn_network, layers=(layer.with_values(conductance=conductance),)).to(device)
        pre = network.draw_spikes(torch.Generator(device).manual_seed(int(random.integers(2**31))))
        reference = ReferenceNetwork(network.layers, network.shape, network.batch, inhibition=True)
        post = reference.present(pre.cpu().numpy(), draw_seeds(network.batch, torch.Generator()))[-1]
        if post.sum((0, 1, 3, 4)).min() >= MAP_SPIKES:
            break
    return network, rule, pre, post
