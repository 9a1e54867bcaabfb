import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.fit import Fit, Neurons, StepFit, change_points, closed_form, fit_response, per_channel, with_even_steps
from bridge.responses import neuron_response
from bridge.sau import SpecialActivationUnit
from snn.layer import SpikingConv2d
from snn.parameters import Encoding, LayerParameters, LIFParameters
from snn.runtime.errors import UserError

ENCODING = Encoding(quiet=30.0)


def layer_of(thresholds: list[float], dt: float = 2.5) -> SpikingConv2d:
    maps = len(thresholds)
    geometry = LayerParameters(maps, kernel_size=1, padding=0)
    return SpikingConv2d(
        torch.zeros(maps, 1, 1, 1), torch.ones(maps), torch.tensor(thresholds), geometry, LIFParameters(), dt
    )


def neurons_of(drive, count, channel=None) -> Neurons:
    drive, count = np.asarray(drive), np.asarray(count)
    return Neurons(drive, count, np.zeros(len(drive), int) if channel is None else np.asarray(channel))


def total_error(edges, drive, counts):
    return np.abs(np.searchsorted(edges, drive, side="right") - counts).sum()


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_change_points_have_the_smallest_error_of_all_staircases(seed):
    random = np.random.default_rng(seed)
    drive = random.permutation(np.arange(9)).astype(np.float64)
    counts = np.clip(np.rint(drive / 3 + random.normal(0, 0.6, 9)), 0, 2).astype(int)
    counts[0] = counts[0] if counts.any() else 1
    possible = np.arange(-0.5, 9)
    best = min(total_error([a, b], drive, counts) for a in possible for b in possible if a <= b)
    fit = change_points(neurons_of(drive, counts), neurons_of(drive, counts))
    if fit is None:
        # No step at all is as good as the best staircase.
        assert counts.sum() == best
    else:
        # A level that is never seen shares its edge with the next.
        assert np.abs(fit.evaluate(neurons_of(drive, counts)) - counts).sum() == best


def simulate(layer, currents):
    return neuron_response(layer, torch.as_tensor(currents, dtype=torch.float32), ENCODING).numpy()


@pytest.mark.parametrize("dt", [2.5, 0.5])
@pytest.mark.parametrize("quiet", [0.0, 60.0])
@pytest.mark.parametrize("threshold", [-60.2, -64.0, -67.4])
def test_closed_form_is_what_a_neuron_does_at_constant_current(dt, quiet, threshold):
    layer, encoding = layer_of([threshold], dt), Encoding(dt=dt, quiet=quiet)
    currents = torch.linspace(0, 40, 1601)
    counts = neuron_response(layer, currents, encoding)
    fit = closed_form(layer, encoding, top=int(counts.max()))
    unit = SpecialActivationUnit(fit.edges, fit.heights)
    # In float32, a neuron that just reaches its threshold may cross it a step earlier or later.
    assert (unit(currents) != counts).float().mean() < 0.01
    assert (unit(currents) - counts).abs().max() <= 1


def test_closed_form_converges_to_the_paper_in_continuous_time():
    # F T + 1 - first F spikes at a constant current, from the closed form of Eq. 1, without steps of time
    p, threshold, duration = LIFParameters(), -64.0, 300.0
    fit = closed_form(layer_of([threshold], dt=0.01), Encoding(dt=0.01), top=8)

    def spikes(current):
        v_inf = p.v_leak + p.millivolts_per_current * current
        first = p.tau_mem * np.log((v_inf - p.v_init) / (v_inf - threshold))
        return 1 + (duration - first) / p.interspike_interval(current, threshold)

    for level, edge in enumerate(fit.edges.tolist(), 1):
        low, high = 1.42, 60.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if spikes(middle) < level else (low, middle)
        assert edge == pytest.approx(low, rel=0.002)


def response_of(layer, seed, noise=0.0, maps=1, size=4000):
    """Neurons at constant currents whose drive is known with an error."""
    random = np.random.default_rng(seed)
    drive, channel = random.uniform(0, 20, size), np.arange(size) % maps
    count = np.empty(size, int)
    for m in range(maps):
        alone = layer.with_values(gain=layer.gain[m : m + 1], v_threshold=layer.v_threshold[m : m + 1])
        count[channel == m] = simulate(alone, drive[channel == m])
    return neurons_of(drive + random.normal(0, noise, size), count, channel)


def test_a_neuron_at_constant_current_is_fitted_by_its_closed_form():
    layer = layer_of([-61.2])
    neurons = response_of(layer, seed=0, size=300)
    fit = fit_response(neurons, layer, ENCODING, np.random.default_rng(0))
    assert fit.kind == "closed form"
    assert fit.residuals["closed form"] <= min(fit.residuals.values())
    assert fit.residual < 0.01
    assert len(fit.steps.edges) == neurons.count.max()


def test_shifted_responses_are_fitted_by_change_points():
    layer = layer_of([-61.2])
    neurons = response_of(layer, seed=0, noise=0.1)
    shifted = Neurons(neurons.drive + 1.5, neurons.count, neurons.channel)
    fit = fit_response(shifted, layer, ENCODING, np.random.default_rng(0))
    assert fit.kind == "change points"
    assert not fit.steps.per_channel
    expected = closed_form(layer, ENCODING, top=int(neurons.count.max())).edges + 1.5
    torch.testing.assert_close(fit.steps.edges[:4], expected[:4], atol=0.15, rtol=0)
    assert fit.residual == pytest.approx(fit.steps.residual(shifted))


def test_channels_with_other_thresholds_have_their_own_steps():
    layer = layer_of([-60.2, -64.0, -67.0])
    neurons = response_of(layer, seed=1, noise=0.1, maps=3)
    shifted = Neurons(neurons.drive + 1.5, neurons.count, neurons.channel)
    fit = fit_response(shifted, layer, ENCODING, np.random.default_rng(0))
    assert fit.steps.per_channel
    assert fit.kind == "change points of channels"
    assert fit.residual < 0.5 * fit.residuals["change points"]
    own = closed_form(layer, ENCODING, top=3)
    torch.testing.assert_close(fit.steps.edges[:, :2], own.edges[:, :2] + 1.5, atol=0.2, rtol=0)
    # Channels with fewer steps are filled up, and answer as their own step function does.
    unit = SpecialActivationUnit(fit.steps.edges, fit.steps.heights)
    drive = torch.linspace(0, 25, 101).expand(1, 3, 101)
    flat = neurons_of(drive.flatten().numpy(), np.zeros(303, int), np.repeat(np.arange(3), 101))
    assert unit(drive).flatten().tolist() == fit.steps.evaluate(flat).tolist()


def test_a_channel_without_steps_is_given_those_of_all():
    drive = np.linspace(0, 10, 101)
    both = neurons_of(np.tile(drive, 2), np.r_[(drive > 4).astype(int), np.zeros(101, int)], np.repeat([0, 1], 101))
    shared = StepFit(torch.tensor([5.0]), torch.tensor([0.0, 1.0]))
    fit = per_channel(both, both, shared, channels=3)
    assert fit.heights.tolist() == [[0, 1]] * 3
    assert fit.edges[:, 0].tolist() == pytest.approx([4.05, 5.0, 5.0])


def test_steps_that_only_noise_suggests_are_left_out():
    random = np.random.default_rng(3)
    drive = random.uniform(0, 10, 5000)
    count = (drive > 3).astype(int) + (drive > 6)
    # A third spike occurs anywhere above the second edge, more or less by chance.
    count[(drive > 6) & (random.random(5000) < 0.1)] = 3
    half = neurons_of(drive[:2500], count[:2500]), neurons_of(drive[2500:], count[2500:])
    assert change_points(*half).heights.tolist() == [0, 1, 2]
    # Nor do they come back when the edges are fitted to all neurons.
    for seed in range(20):
        fit = fit_response(neurons_of(drive, count), layer_of([-61.2]), ENCODING, np.random.default_rng(seed))
        assert fit.steps.heights.tolist() == [0, 1, 2]


def test_the_smallest_residual_decides(monkeypatch):
    # Change points of channels save too little; the closed form lies between them and those of the layer.
    layer, neurons = layer_of([-61.2]), response_of(layer_of([-61.2]), seed=0, noise=0.1)
    for closed, kind in ((0.098, "closed form"), (0.102, "change points")):
        values = {"change points": 0.100, "change points of channels": 0.096, "closed form": closed}
        order = iter(values.values())
        monkeypatch.setattr(StepFit, "residual", lambda self, _, order=order: next(order, 0.0))
        assert fit_response(neurons, layer, ENCODING, np.random.default_rng(0)).kind == kind


@pytest.mark.parametrize("count", [0, 3])
def test_fit_refuses_layers_without_steps(count):
    neurons = neurons_of(np.full(100, 2.0) if count else np.arange(100.0), np.full(100, count))
    with pytest.raises(UserError, match="fire alike"):
        fit_response(neurons, layer_of([-61.2]), ENCODING, np.random.default_rng(0))


def test_equal_steps_run_along_the_line_through_the_neurons_own():
    neurons = Neurons(np.array([0.5, 1.5, 3.5, 6.0]), np.array([0, 1, 2, 3]), np.zeros(4, int))
    own = StepFit(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.0, 1.0, 2.0, 3.0]))
    fit = Fit(own, "change points", {}, 0.0)
    even = with_even_steps(fit, 3, neurons).steps
    # Edges at equal distances are their own even steps.
    torch.testing.assert_close(even.edges, own.edges)
    torch.testing.assert_close(even.heights, own.heights)
    fine = with_even_steps(fit, 300, neurons).steps
    assert fine.heights[-1] == 3
    # Line from (0, 0), half a step before the first edge, to (6, 3).
    x = torch.linspace(0, 6, 50, dtype=torch.float64)
    spikes = fine.evaluate(Neurons(x.float().numpy(), np.zeros(50), np.zeros(50, int)))
    np.testing.assert_allclose(spikes, x / 2, atol=0.011)


def test_equal_steps_of_channels_keep_each_channels_range():
    edges = torch.tensor([[1.0, torch.inf], [2.0, 4.0]])
    own = StepFit(edges, torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 2.0]]))
    neurons = Neurons(np.array([1.5, 3.0]), np.array([1, 1]), np.array([0, 1]))
    even = with_even_steps(Fit(own, "change points of channels", {}, 0.0), 4, neurons).steps
    assert even.edges.shape == (2, 4)
    assert even.heights[:, -1].tolist() == [1.0, 2.0]
    residual = with_even_steps(Fit(own, "", {}, 0.0), 4, neurons).residual
    spikes = [h[(e <= x).sum()].item() for e, h, x in zip(even.edges, even.heights, (1.5, 3.0), strict=True)]
    assert residual == pytest.approx((abs(spikes[0] - 1) + abs(spikes[1] - 1)) / 2)
