import math

import pytest
import torch

from snn.calibration import normalised_rates, rate_range
from snn.homeostasis import balance, balance_ltd
from snn.layer import SpikingConv2d
from snn.learning import Homeostasis
from snn.parameters import LayerParameters, LIFParameters
from snn.runtime.errors import UserError
from snn.spikes import spike_counts


def spikes_with_counts(counts):
    """bool (100, 1, 1, 1, N) with the given numbers of spikes."""
    return (torch.arange(100)[:, None] < torch.tensor(counts)).reshape(100, 1, 1, 1, -1)


def test_rate_limits_are_percentiles_of_the_measured_rates():
    spikes = spikes_with_counts(list(range(101)))
    assert rate_range(spike_counts(spikes), presentation=250.0) == (4.0, 396.0)
    with pytest.raises(UserError, match="all lie at"):
        rate_range(torch.tensor([3] * 50), presentation=250.0)


def test_rates_are_normalised_between_the_limits():
    rates = normalised_rates(spikes_with_counts([0, 2, 5, 8, 20]), presentation=250.0, limits=(8.0, 32.0))
    assert rates.fn[rates.level.long()].flatten().tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])


def make_layer(conductance, v_threshold=-60.2, lif=None):
    maps = len(conductance)
    return SpikingConv2d(
        conductance=torch.tensor(conductance).reshape(maps, 1, 1, -1),
        gain=torch.full((maps,), 2.0),
        v_threshold=torch.full((maps,), v_threshold),
        geometry=LayerParameters(maps, kernel_size=1, padding=0),
        lif=lif or LIFParameters(),
        dt=2.5,
    )


def test_synaptic_scaling_keeps_the_drive_of_a_uniform_input():
    start, now = make_layer([[0.4, 0.6], [0.5, 0.5]]), make_layer([[0.1, 0.3], [0.9, 0.7]])
    balanced = balance(now, start, torch.tensor([1, 1]), Homeostasis())
    assert (balanced.gain * now.conductance.sum((1, 2, 3))).tolist() == pytest.approx([2.0, 2.0])
    plain = balance(now, start, torch.tensor([1, 1]), Homeostasis(synaptic_scaling=False))
    assert plain.gain.tolist() == [2.0, 2.0]


def test_thresholds_follow_the_share_of_spikes_within_limits_and_above_rest():
    start = make_layer([[0.5], [0.5]])
    p = Homeostasis(threshold_step=0.4, threshold_range=1.0)
    moved = balance(start, start, torch.tensor([30, 10]), p)
    assert (moved.v_threshold + 60.2).tolist() == pytest.approx([0.2, -0.2], abs=1e-5)
    far = start
    for _ in range(20):
        far = balance(far, start, torch.tensor([30, 10]), p)
    assert (far.v_threshold + 60.2).tolist() == pytest.approx([1.0, -1.0], abs=1e-5)
    still = balance(start, start, torch.tensor([30, 10]), Homeostasis(threshold_step=0.0))
    assert torch.equal(still.v_threshold, start.v_threshold)
    low = LIFParameters(v_threshold=-66.0)
    start = far = make_layer([[0.5], [0.5]], -66.0, low)
    for _ in range(100):
        far = balance(far, start, torch.tensor([30, 10]), Homeostasis())
    assert far.v_threshold.min().item() == pytest.approx(low.v_leak + 1.0, abs=1e-4)


def test_ltd_grows_where_conductances_are_high_and_falls_where_they_are_low():
    g = torch.tensor([[0.9, 0.5], [0.3, 0.3], [0.0, 0.2]]).reshape(3, 2, 1, 1)
    factor = torch.full((3, 1, 1, 1), 2.0, dtype=torch.float64)
    moved = balance_ltd(factor, g, Homeostasis(mean_conductance=0.3, ltd_step=0.5))
    assert moved.flatten().tolist() == pytest.approx([2 * math.exp(0.2), 2.0, 2 * math.exp(-0.1)], rel=1e-6)
    assert torch.equal(balance_ltd(factor, g, Homeostasis(mean_conductance=0.0)), factor)


def test_the_ltd_factor_of_a_silent_map_stays_bounded():
    g, factor = torch.full((2, 1, 1, 1), 0.5), torch.ones((2, 1, 1, 1), dtype=torch.float64)
    g[1] = 0
    for _ in range(20_000):
        factor = balance_ltd(factor, g, Homeostasis())
    assert factor.flatten().tolist() == pytest.approx([20.0, 1 / 20])
