"""Learning of random networks: conductances by rules without chance, distributions of change by rules with chance."""

from dataclasses import replace
from itertools import cycle, islice, product
from typing import NamedTuple

import numpy as np
import torch

from snn.engines.base import choose_engine, feed_forward
from snn.learner import learn_batch
from snn.parameters import STDPParameters
from snn.runtime.progress import progress
from snn.runtime.random import draw_seeds
from snn.spikes import as_dense
from validation.comparisons.rules import PAIRINGS, PAPER_RULES, compared_rules, is_certain
from validation.comparisons.spikes import engine_spikes
from validation.random_networks import (
    MOST_DRAWS,
    PRESENTATION,
    Kind,
    Pairing,
    RandomNetwork,
    draw_network,
    draw_rule,
    switch_rule,
)
from validation.reference.network import ReferenceNetwork, connections, most_waiting
from validation.reference.neuron import load_brian2
from validation.reference.plasticity import Plasticity
from validation.report import FALSE_ALARM, Report
from validation.significance import same_distribution_p, same_spread_p

WEAKENED = 0.95
"""Factor by which P_p or P_d is reduced to show that the test would notice."""
MOST_BLOCKS = 10
"""Most blocks of repeats that are drawn until the test notices."""
MOST_NETWORKS = 3
"""Most networks that are drawn until it does: where LTP or LTD is rare, no number of repeats is enough."""
FEWEST_SPIKES = 20
"""Fewest spikes of each channel in a mini-batch whose change is compared: a conductance sees about as many events."""
WAITING_SLOTS = 32
"""Postsynaptic spikes for which a Brian2 synapse of pairing two-sided has room."""
SWITCH = "switch"
"""Rule ``fd`` as :func:`validation.random_networks.switch_rule` makes it."""

WITHOUT_CHANCE = ("deterministic", SWITCH)
WITH_CHANCE = ("fd", "stochastic")


def learners(rules: tuple[str, ...], networks: int) -> list[tuple[str, Pairing]]:
    """Rule and pairing of each network: ``rules`` in turn, then the rules of plugins that are alike, once each.

    ``rules`` are :data:`WITHOUT_CHANCE` or :data:`WITH_CHANCE`. If no networks are wanted, no rule learns.
    """
    if not networks:
        return []
    further = [name for name in compared_rules() if name not in PAPER_RULES]
    alike = [name for name in further if is_certain(name) == (rules == WITHOUT_CHANCE)]
    return [*islice(cycle(product(rules, PAIRINGS)), networks), *product(alike, PAIRINGS)]


class Learned(NamedTuple):
    """Conductances before and after learning by rules without chance, flat, of all networks together."""

    before: np.ndarray
    learner: np.ndarray
    brian2: np.ndarray
    at_limit: np.ndarray
    """Whether Brian2's conductance was clipped to g_min or g_max."""


def compare_learning(
    networks: int, batches: int, report: Report, random: np.random.Generator, device: torch.device
) -> Learned:
    """``batches`` mini-batches of rules without chance in ``networks`` networks: every conductance must follow."""
    parts: list[Learned] = []
    differences: dict[tuple[str, Pairing], list[float]] = {}
    wrong, sizes = {1: 0, 2: 0}, {1: 0, 2: 0}
    with_inhibition = []
    for number, learner in enumerate(progress(learners(WITHOUT_CHANCE, networks), "rules without chance", "network")):
        rule_name, pairing = learner
        turn = number // (len(WITHOUT_CHANCE) * len(PAIRINGS))
        kind: Kind = ("inhibited", "stacked", "tied")[(number + turn) % 3]
        alone = (number // 2 + turn) % 2 == 0
        size, feed_forward = 1 if alone else int(random.integers(2, 4)), (number + turn) % 2 == 0
        for _ in range(MOST_DRAWS):
            network = draw_network(kind, random, size, feed_forward=feed_forward)
            dt = network.encoding.dt
            rule = draw_rule(random, "deterministic" if rule_name == SWITCH else rule_name, pairing, dt)
            rule = switch_rule(rule, dt) if rule_name == SWITCH else rule
            network, seed = _spread_out(network, rule).to(device), int(random.integers(2**31))
            if pairing == "post" or _most_waiting(network, seed, device) <= WAITING_SLOTS / 2:
                break
        part, spikes_wrong = _learn_both(network, rule, batches, device, seed)
        parts.append(part)
        # Both sides clip to the same limits: where these are 0, so is the difference.
        relative = np.abs(part.learner - part.brian2) / np.maximum(np.abs(part.brian2), np.finfo(float).tiny)
        difference = float(relative.max())
        differences.setdefault(learner, []).append(difference)
        batch = min(network.batch, 2)
        sizes[batch] += 1
        differs = not difference <= 1e-10 or spikes_wrong > 0
        wrong[batch] += differs
        if feed_forward:
            with_inhibition.append(differs)
    together = Learned(*(np.concatenate(column) for column in zip(*parts, strict=True)))
    for (rule_name, pairing), measured in differences.items():
        name = "rule switched by each synapse's own rate" if rule_name == SWITCH else f"{rule_name} rule"
        report.add(
            f"{name}, {pairing}: conductances after learning (mini-batches: {batches}), largest relative difference",
            f"{max(measured):.1e} (networks: {len(measured)})",
            "at most 1e-10",
            max(measured) <= 1e-10,
            of=len(measured),
            figures=measured,
        )
    report.add(
        "the same networks, spikes and conductances by images in a mini-batch",
        f"{wrong[1]} of {sizes[1]} differ with one, {wrong[2]} of {sizes[2]} with several",
        "0 and 0",
        not any(wrong.values()) and all(sizes.values()),
        of=sum(sizes.values()),
    )
    report.add(
        "of these networks, those with feed-forward inhibition",
        f"{sum(with_inhibition)} of {len(with_inhibition)} differ",
        "0, of at least 1",
        not any(with_inhibition),
        of=len(with_inhibition),
    )
    moved = together.brian2 - together.before
    report.add(
        "movement of these conductances, without which nothing would be tested",
        f"moved by {np.abs(moved).mean():.3f} on average, {(moved > 0).mean():.0%} up, {(moved < 0).mean():.0%} down, "
        f"{together.at_limit.mean():.0%} at a limit",
        "at least 0.01, and some of each",
        bool(np.abs(moved).mean() >= 0.01 and (moved > 0).any() and (moved < 0).any() and together.at_limit.any()),
        of=moved.size,
        figures=[np.abs(moved).mean()],
    )
    return together


def _spread_out(network: RandomNetwork, rule: STDPParameters) -> RandomNetwork:
    """Some conductances of the last layer start at the limits of ``rule``, and are pushed against them."""
    *below, layer = network.layers
    stretched = (2 * (layer.conductance - 0.5) + 0.5).clamp(0, 1)
    spread = layer.with_values(conductance=rule.g_min + (rule.g_max - rule.g_min) * stretched)
    if network.feed_forward_inhibition:
        # Their spread is what drives the layer.
        spread = spread.with_values(gain=layer.gain * (layer.weight.std() / spread.weight.std()))
    return replace(network, layers=(*below, spread))


def _most_waiting(network: RandomNetwork, seed: int, device: torch.device) -> int:
    """Most postsynaptic spikes that wait at a synapse in a mini-batch, before learning."""
    images = torch.Generator(device).manual_seed(seed)
    pre = network.draw_spikes(images)
    spikes = engine_spikes(choose_engine("auto", device), network, pre, draw_seeds(network.batch, images))
    return most_waiting([pre.cpu().numpy(), *spikes][-2], spikes[-1], network.layers[-1].geometry)


def _learn_both(
    network: RandomNetwork, rule: STDPParameters, batches: int, device: torch.device, seed: int
) -> tuple[Learned, int]:
    """Conductances of both sides after all mini-batches, and the number of spikes that differed meanwhile."""
    images = torch.Generator(device).manual_seed(seed)
    below, layer = network.layers[:-1], network.layers[-1]
    pre = network.draw_spikes(images)
    engine = choose_engine("auto", device)
    rates = as_dense(feed_forward(engine, below, pre)).sum(0).double() * (1000 / PRESENTATION)
    # Between two neighbouring rates: every fn is 0 or 1.
    low = (np.floor(rates.median().item() * PRESENTATION / 1000) + 0.5) * 1000 / PRESENTATION
    limits = (low, low + 1e-6)
    plasticity = Plasticity(rule, limits, slots=1 if rule.pairing == "post" else WAITING_SLOTS)
    reference = ReferenceNetwork(network, plasticity)
    before, wrong = layer.conductance, 0
    for _ in range(batches):
        pre = network.draw_spikes(images)
        hidden = feed_forward(engine, below, pre)
        seeds = draw_seeds(network.batch, images)
        post, conductance = learn_batch(engine, layer, hidden, limits, rule, seeds)
        layer = layer.with_values(conductance=conductance)
        brian2 = reference.present(pre.cpu().numpy(), seeds)
        wrong += int((brian2[-1] != as_dense(post).cpu().numpy()).sum())
        reference.learn()
    after = reference.conductance.ravel()
    at_limit = (after == rule.g_min) | (after == rule.g_max)
    return Learned(before.cpu().numpy().ravel(), layer.conductance.cpu().numpy().ravel(), after, at_limit), wrong


class Distribution(NamedTuple):
    """Changes of all conductances of one network by a rule with chance, (repeats, synapses) each."""

    rule: STDPParameters
    learner: np.ndarray
    brian2: np.ndarray
    weaker_ltp: np.ndarray
    """Brian2 with P_p times :data:`WEAKENED`."""
    weaker_ltd: np.ndarray
    """Brian2 with P_d times :data:`WEAKENED`."""


def compare_distributions(
    networks: int, repeats: int, report: Report, random: np.random.Generator, device: torch.device
) -> list[Distribution]:
    """One mini-batch of a rule with chance, many times from the same start, in blocks of ``repeats``."""
    drawn = learners(WITH_CHANCE, networks)
    level = FALSE_ALARM / max(2 * len(drawn), 1)
    distributions = []
    for number, (rule_name, pairing) in enumerate(progress(drawn, "rules with chance", "network")):
        feed_forward = (number + number // (len(WITH_CHANCE) * len(PAIRINGS))) % 2 == 0
        name = f"{rule_name}, {pairing}{', feed-forward inhibition' if feed_forward else ''}"
        for _ in range(MOST_NETWORKS):
            learner = _draw_learner(rule_name, pairing, random, device, feed_forward=feed_forward)
            part = _draw_distribution(learner, repeats, level, random)
            powers = [same_distribution_p(part.brian2, weaker) for weaker in (part.weaker_ltp, part.weaker_ltd)]
            if max(powers) < level:
                break
        distributions.append(part)
        size = "{} conductances, {} repeats".format(*part.learner.shape[::-1])
        test = f"at least {level:.1g}, two-sample Kolmogorov-Smirnov test"
        p = same_distribution_p(part.learner, part.brian2)
        report.add(
            f"{name}: distribution of the change, {size}",
            f"p = {p:.3g}",
            test,
            p >= level,
            of=part.learner.size,
            figures=[p],
        )
        p = same_spread_p(part.learner, part.brian2)
        report.add(
            f"{name}: spread of their sum, {len(part.learner)} repeats",
            f"p = {p:.3g}",
            f"at least {level:.1g}, Brown-Forsythe test",
            p >= level,
            of=part.learner.size,
            figures=[p],
        )
        report.add(
            "the first of these tests between Brian2 and Brian2 with P_p or P_d 5 % smaller",
            f"p = {powers[0]:.2g} and {powers[1]:.2g}",
            f"below {level:.1g}, or the test would be blind",
            max(powers) < level,
            of=part.brian2.size,
            figures=powers,
        )
    return distributions


class Learner(NamedTuple):
    """A layer with its rule and one mini-batch."""

    network: RandomNetwork
    """One layer, on the learner's device."""
    rule: STDPParameters
    pre: torch.Tensor
    """Presynaptic spikes, bool (T, B, C, H, W)."""
    post: np.ndarray
    """Brian2's spikes, bool (T, B, C_out, H_out, W_out)."""


def _draw_distribution(learner: Learner, repeats: int, level: float, random: np.random.Generator) -> Distribution:
    """Changes on both sides, in blocks of repeats until the test tells weaker rules in Brian2's own draws."""
    network, rule, pre, post = learner
    layer, seed = network.layers[0], int(random.integers(2**31))
    limits = (network.encoding.f_min, network.encoding.f_max)
    generator, engine = torch.Generator(pre.device).manual_seed(seed), choose_engine("auto", pre.device)
    load_brian2().seed(seed)
    slots = most_waiting(pre.cpu().numpy(), post, layer.geometry) if rule.pairing == "two-sided" else 1
    references = [
        ReferenceNetwork(network, Plasticity(rule, limits, slots, repeats, factors))
        for factors in ((1.0, 1.0), (WEAKENED, 1.0), (1.0, WEAKENED))
    ]
    before = layer.conductance.cpu().numpy().ravel()
    samples: list[list[np.ndarray]] = [[], [], [], []]
    for _ in range(MOST_BLOCKS):
        for _ in range(repeats):
            _, conductance = learn_batch(engine, layer, pre, limits, rule, draw_seeds(network.batch, generator))
            samples[0].append(conductance.cpu().numpy().reshape(1, -1) - before)
        for sample, reference in zip(samples[1:], references, strict=True):
            reference.present(pre.cpu().numpy(), draw_seeds(network.batch, torch.Generator()))
            sample.append(reference.learned().reshape(repeats, -1) - before)
        own, *weaker = (np.concatenate(sample) for sample in samples[1:])
        if max(same_distribution_p(own, sample) for sample in weaker) < level / 100:
            break
    return Distribution(rule, *(np.concatenate(sample) for sample in samples))


def _draw_learner(
    rule_name: str, pairing: Pairing, random: np.random.Generator, device: torch.device, *, feed_forward: bool
) -> Learner:
    """A layer in which every conductance sees many events of a mini-batch, and which Brian2 simulates quickly.

    If none is found in :data:`MOST_DRAWS` draws, the last one is returned: the comparison then shows why.
    """

    def suitable(network: RandomNetwork) -> bool:
        layer = network.layers[0]
        _, _, weight, _ = connections(network.shape, layer.geometry)
        shared = np.bincount(weight, minlength=layer.conductance.numel())
        return len(shared) >= 40 and shared.min() >= 4 and 300 <= len(weight) <= 800 and layer.dt >= 2

    drawn = (draw_network("inhibited", random, 2, feed_forward=feed_forward) for _ in range(100_000))
    for drawn_network in islice(filter(suitable, drawn), MOST_DRAWS):
        rule = draw_rule(random, rule_name, pairing, drawn_network.encoding.dt)
        layer = drawn_network.layers[0]
        conductance = rule.g_min + (rule.g_max - rule.g_min) * layer.conductance
        network = replace(drawn_network, layers=(layer.with_values(conductance=conductance),)).to(device)
        pre = network.draw_spikes(torch.Generator(device).manual_seed(int(random.integers(2**31))))
        post = ReferenceNetwork(network).present(pre.cpu().numpy(), draw_seeds(network.batch, torch.Generator()))[-1]
        if post.sum((0, 1, 3, 4)).min() >= FEWEST_SPIKES:
            break
    return Learner(network, rule, pre, post)
