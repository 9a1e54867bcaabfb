import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import binom

from snn.engines.base import EventCounts, choose_engine
from snn.engines.norse import steps_since_spike, steps_until_spike
from snn.geometry import ConvGeometry
from snn.parameters import LayerParameters, STDPParameters
from snn.plasticity import Rates, magnitude, update
from snn.registries import RULES
from snn.runtime.errors import UserError

FD = STDPParameters(ltd_delay=100.0)


def ltp_probability(dt, fn, p):
    return RULES[p.rule](p).ltp(torch.tensor([dt]), torch.tensor([fn])).item()


def ltd_probability(dt, fn, p):
    return RULES[p.rule](p).ltd(torch.tensor([dt]), torch.tensor([fn])).item()


def test_magnitude_is_equation_2():
    p = STDPParameters(alpha_p=0.005, alpha_d=0.01, beta_p=2.0, beta_d=3.0, g_min=0.5, g_max=2.5)
    up, down = magnitude(torch.tensor([0.5, 1.0, 2.5], dtype=torch.float64), p)
    assert up.tolist() == pytest.approx([0.005, 0.005 * math.exp(-0.5), 0.005 * math.exp(-2.0)])
    assert down.tolist() == pytest.approx([0.01 * math.exp(-3.0), 0.01 * math.exp(-2.25), 0.01])


def test_ltp_probability_is_equation_5():
    p = FD
    assert ltp_probability(0.0, 0.3, p) == pytest.approx(0.7)
    assert ltp_probability(10.0, 0.0, p) == pytest.approx(0.7 * math.exp(-1))
    assert ltp_probability(10.0, 1.0, p) == pytest.approx(0.7 * math.exp(-1 / 1.6))
    assert ltp_probability(7.5, 0.5, p) == pytest.approx(0.7 * math.exp(-7.5 / 13))
    assert ltp_probability(15.0, 0.0, p) == pytest.approx(0.7 * math.exp(-1.5))
    assert ltp_probability(17.5, 1.0, p) == 0
    assert ltp_probability(-2.5, 1.0, p) == 0
    assert ltp_probability(math.inf, 1.0, p) == 0


def test_ltd_probability_of_pairing_post():
    p = FD
    assert ltd_probability(60.0, 0.0, p) == pytest.approx(0.6 * math.exp(-1))
    assert ltd_probability(60.0, 1.0, p) == pytest.approx(0.6 * math.exp(-40 / 64))
    assert ltd_probability(17.5, 0.5, p) == pytest.approx(0.6 * math.exp(-82.5 / 52))
    assert ltd_probability(150.0, 0.0, p) == pytest.approx(0.6)
    assert ltd_probability(math.inf, 0.7, p) == pytest.approx(0.6)
    assert ltd_probability(15.0, 0.0, p) == 0
    assert ltd_probability(-2.5, 0.0, p) == 0


def test_ltd_probability_of_pairing_two_sided_is_equation_5():
    p = STDPParameters(pairing="two-sided")
    assert ltd_probability(-40.0, 0.0, p) == pytest.approx(0.6 * math.exp(-1))
    assert ltd_probability(-40.0, 1.0, p) == pytest.approx(0.6 * math.exp(-1 / 1.6))
    assert ltd_probability(-math.inf, 1.0, p) == 0
    assert ltd_probability(40.0, 1.0, p) == 0


def test_plain_and_deterministic_rules():
    plain, certain = (replace(FD, rule=rule) for rule in ("stochastic", "deterministic"))
    assert ltp_probability(10.0, 1.0, plain) == ltp_probability(10.0, 0.0, plain)
    assert ltd_probability(60.0, 1.0, plain) == pytest.approx(0.6 * math.exp(-1))
    assert [ltp_probability(dt, 0.5, certain) for dt in (0.0, 15.0, 17.5)] == [1, 1, 0]
    assert [ltd_probability(dt, 0.5, certain) for dt in (0.0, 15.0, 17.5)] == [0, 0, 1]


def test_steps_between_spikes():
    spikes = torch.tensor([0, 1, 0, 0, 1, 1, 0], dtype=torch.bool)[:, None]
    assert steps_since_spike(spikes).flatten().tolist()[1:] == [0, 1, 2, 0, 0, 1]
    assert steps_since_spike(spikes)[0].item() >= 2**14
    assert steps_until_spike(spikes).flatten().tolist()[:5] == [1, 3, 2, 1, 1]
    assert steps_until_spike(spikes)[5:].min().item() >= 2**14


def both_counts(pre, post, rates, window, dt, p, seeds):
    """Counts of both engines, which must be the same."""
    geometry = ConvGeometry.of(LayerParameters(post.shape[2], *window), tuple(pre.shape[2:]))
    tables = RULES[p.rule](p).chances(len(pre), dt, rates.fn)
    counts, dense = (
        choose_engine(name).count_events(pre, post, rates.level, tables, geometry, seeds)
        for name in ("events", "norse")
    )
    assert torch.equal(torch.stack(counts), torch.stack(dense))
    return counts


def naive_counts(pre, post, kernel, stride, padding, dt, p):
    """Deterministic rule by loops over postsynaptic spikes and synapses."""
    steps, _, c_in, height, width = pre.shape
    counts = np.zeros((3, post.shape[2], c_in, kernel, kernel))
    for t, b, c, y, x in np.argwhere(post):
        for i in range(c_in):
            for ky in range(kernel):
                for kx in range(kernel):
                    row, column = y * stride + ky - padding, x * stride + kx - padding
                    if not (0 <= row < height and 0 <= column < width):
                        continue
                    train = pre[:, b, i, row, column]
                    before = [s for s in range(t + 1) if train[s]]
                    after = [s for s in range(t + 1, steps) if train[s]]
                    ltp = bool(before) and (t - before[-1]) * dt <= p.ltp_window
                    ltd = not ltp if p.pairing == "post" else bool(after)
                    counts[:, c, i, ky, kx] += [1, ltp, ltd]
    return counts


@pytest.mark.parametrize("pairing", ["post", "two-sided"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (2, 2, 0), (3, 2, 2)])
def test_deterministic_events_equal_a_naive_loop(pairing, kernel, stride, padding):
    random = np.random.default_rng(3)
    pre = random.random((20, 2, 3, 5, 4)) < 0.08
    size = [(n + 2 * padding - kernel) // stride + 1 for n in (5, 4)]
    post = random.random((20, 2, 2, *size)) < 0.1
    p = STDPParameters(rule="deterministic", pairing=pairing)
    spikes = torch.from_numpy(pre), torch.from_numpy(post)
    rates = Rates(torch.zeros(2, 3, 5, 4, dtype=torch.int64), torch.zeros(1))
    counts = both_counts(*spikes, rates, (kernel, stride, padding), 5.0, p, torch.tensor([1, 2]))
    expected = naive_counts(pre, post, kernel, stride, padding, 5.0, p)
    assert np.array_equal(torch.stack(counts).numpy(), expected)
    assert expected[1].sum() > 0
    assert expected[2].sum() > 0


def test_stochastic_events_have_the_probability_of_the_equation():
    # One synapse a place: presynaptic spike at step 2, postsynaptic spike at step 2 + lag, many places.
    p, dt, places = FD, 5.0, 40_000
    for lag, fn in ((0, 0.25), (2, 0.25), (2, 1.0), (5, 0.0), (12, 0.75)):
        pre = torch.zeros(16, 1, 1, 1, places, dtype=torch.bool)
        post = torch.zeros_like(pre)
        pre[2], post[2 + lag] = True, True
        rates = Rates(torch.ones(1, 1, 1, places, dtype=torch.int64), torch.tensor([0.5, fn]))
        counts = both_counts(pre, post, rates, (1, 1, 0), dt, p, torch.tensor([lag + 3]))
        ltp, ltd = ltp_probability(lag * dt, fn, p), ltd_probability(lag * dt, fn, p)
        assert counts.events.item() == places
        for count, probability in ((counts.ltp.item(), ltp), (counts.ltd.item(), ltd)):
            low, high = binom.interval(1 - 1e-7, places, probability)
            assert low <= count <= high


def test_update_averages_caps_and_clips():
    p = STDPParameters(alpha_p=0.1, alpha_d=0.2, beta_p=1.0, beta_d=1.0, n_cap=10)
    conductance = torch.tensor([0.5, 0.5, 0.01, 0.99, 0.3]).reshape(5, 1, 1, 1)
    shape = (5, 1, 1, 1)
    counts = EventCounts(
        events=torch.tensor([4.0, 40.0, 100.0, 100.0, 0.0]).reshape(shape),
        ltp=torch.tensor([3.0, 30.0, 0.0, 100.0, 0.0]).reshape(shape),
        ltd=torch.tensor([1.0, 10.0, 100.0, 0.0, 0.0]).reshape(shape),
    )
    change = 0.1 * math.exp(-0.5), 0.2 * math.exp(-0.5)
    expected = [0.5 + 3 * change[0] - change[1], 0.5 + (30 * change[0] - 10 * change[1]) / 40 * 10, 0.0, 1.0, 0.3]
    assert update(conductance, counts, p).flatten().tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("pairing", ["post", "two-sided"])
@pytest.mark.parametrize("rule", ["fd", "stochastic"])
def test_draws_depend_neither_on_the_engine_nor_on_chunks_nor_on_the_batch(pairing, rule, monkeypatch):
    random = np.random.default_rng(4)
    pre, post = (torch.from_numpy(random.random((30, 2, maps, 6, 6)) < 0.1) for maps in (3, 2))
    level = torch.from_numpy(random.integers(0, 5, (2, 3, 6, 6)))
    p = STDPParameters(rule=rule, pairing=pairing, ltd_delay=40.0)
    fn, seeds = torch.linspace(0, 1, 5), torch.tensor([2**40 + 5, 11])

    def counts(chunk: int) -> torch.Tensor:
        monkeypatch.setattr("snn.engines.norse.EVENT_CHUNK", chunk)
        return torch.stack(both_counts(pre, post, Rates(level, fn), (3, 1, 1), 2.5, p, seeds))

    whole = counts(2**22)
    assert 0 < whole[1].sum() < whole[0].sum()
    assert torch.equal(whole, counts(27 * 10))
    alone = [
        torch.stack(both_counts(pre[:, b], post[:, b], Rates(level[b], fn), (3, 1, 1), 2.5, p, seeds[b]))
        for b in (slice(0, 1), slice(1, 2))
    ]
    assert torch.equal(whole, alone[0] + alone[1])


@pytest.mark.parametrize(("dt", "steps"), [(0.1, 150), (0.3, 50), (0.6, 25), (2.5, 6)])
def test_the_window_includes_its_end_whatever_the_rounding_of_the_time_step(dt, steps):
    # 50 steps of 0.3 ms are 15.000001 ms in float32.
    pre = torch.zeros(steps + 3, 1, 1, 1, 2, dtype=torch.bool)
    pre[0, 0, 0, 0, 0] = pre[1, 0, 0, 0, 1] = True
    post = torch.zeros_like(pre)
    post[steps + 1] = True
    certain = STDPParameters(rule="deterministic")
    rates = Rates(torch.zeros(1, 1, 1, 2, dtype=torch.int64), torch.zeros(1))
    counts = both_counts(pre, post, rates, (1, 1, 0), dt, certain, torch.tensor([0]))
    assert [total.item() for total in counts] == [2, 1, 1]


def test_presentations_too_long_for_the_spike_times_are_refused():
    spikes = torch.zeros(2**14, 1, 1, 1, 1, dtype=torch.bool)
    with pytest.raises(UserError, match="fewer than 16384"):
        both_counts(spikes, spikes, Rates(spikes[0].long(), torch.zeros(1)), (1, 1, 0), 0.1, FD, torch.tensor([0]))


@pytest.mark.parametrize(
    "wrong", [{"gamma_p": 1.2}, {"tau_d": 0.0}, {"g_min": 1.0}, {"n_cap": 0}, {"phi_p": -0.1}, {"pairing": "two_sided"}]
)
def test_impossible_rules_are_refused(wrong):
    with pytest.raises(UserError):
        STDPParameters(**wrong)
