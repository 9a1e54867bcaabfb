import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.activation import SpecialActivationUnit, fit_steps
from bridge.convert import convert, convert_weights
from bridge.frontend import FrozenStatisticsBatchNorm, input_rates, load_frontend
from bridge.response import neuron_response
from snn.data import DataSource, load_images
from snn.draws import draw_seeds
from snn.encode import Encoding, encode
from snn.errors import UserError
from snn.layer import LayerParameters, SpikingConv2d, hold
from snn.neuron import LIFParameters
from snn.weights import load_network

EDGES, HEIGHTS = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 5.0, 7.0, 12.0])


def test_sau_is_a_right_continuous_step_function():
    x = torch.tensor([-9.0, 0.999, 1.0, 1.5, 2.0, 3.999, 4.0, 99.0])
    assert SpecialActivationUnit(EDGES, HEIGHTS)(x).tolist() == [0, 0, 5, 5, 7, 7, 12, 12]


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30))
def test_sau_equals_the_sum_of_indicator_functions(values):
    x = torch.tensor(values)
    bounds = [-torch.inf, *EDGES.tolist(), torch.inf]
    expected = sum(
        alpha * ((x >= low) & (x < high)) for alpha, low, high in zip(HEIGHTS, bounds, bounds[1:], strict=False)
    )
    assert torch.equal(SpecialActivationUnit(EDGES, HEIGHTS)(x), expected)


def test_sau_gradient_is_the_slope_through_step_midpoints():
    x = torch.tensor([-0.6, -0.4, 1.0, 3.0, 3.9, 4.0, 50.0], requires_grad=True)
    SpecialActivationUnit(EDGES, HEIGHTS)(x).sum().backward()
    slope = (7.0 - 5.0) / (3.0 - 1.5)
    # It acts from half a mean step (0.75) below the first edge up to the last edge.
    assert x.grad.tolist() == pytest.approx([0, 0, slope, slope, slope, 0, 0])
    x = torch.tensor([0.2, 0.3, 1.0], requires_grad=True)
    SpecialActivationUnit(EDGES, HEIGHTS)(x).sum().backward()
    assert x.grad.tolist() == pytest.approx([0, slope, slope])


def test_sau_edges_and_heights_are_constants_of_the_module():
    unit = SpecialActivationUnit(EDGES, HEIGHTS)
    assert not list(unit.parameters())
    other = SpecialActivationUnit(EDGES + 1, HEIGHTS)
    assert other.surrogate() != unit.surrogate()
    other(EDGES)
    other.load_state_dict(unit.state_dict())
    x = torch.linspace(0, 5, 30)
    assert torch.equal(other(x), unit(x))
    assert other.surrogate() == unit.surrogate()
    for edges, heights in ((EDGES.flip(0), HEIGHTS), (EDGES, HEIGHTS[:3])):
        with pytest.raises(UserError):
            SpecialActivationUnit(edges, heights)


def total_error(edges, drive, counts):
    return np.abs(np.searchsorted(edges, drive, side="right") - counts).sum()


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_fitted_steps_have_the_smallest_error_of_all_staircases(seed):
    random = np.random.default_rng(seed)
    drive = random.permutation(np.arange(9)).astype(np.float64)
    counts = np.clip(np.rint(drive / 3 + random.normal(0, 0.6, 9)), 0, 2).astype(int)
    counts[0] = counts[0] if counts.any() else 1
    fit = fit_steps(drive, counts, presentation=1000.0, min_share=0.0)
    # Heights are 0, 1, 2 Hz; a level that is never seen shares its edge with the next.
    levels = np.rint(fit.heights.numpy()).astype(int)
    fitted = levels[np.searchsorted(fit.edges.numpy(), drive, side="right")]
    possible = np.arange(-0.5, 9)
    best = min(total_error([a, b], drive, counts) for a in possible for b in possible if a <= b)
    assert np.abs(fitted - counts).sum() == best


def test_fit_finds_the_closed_form_staircase():
    # floor((T - first)/interval) + 1 spikes at a constant current, from the closed form of Eq. 1
    p = LIFParameters()
    geometry = LayerParameters(1, kernel_size=1, padding=0)
    layer = SpikingConv2d(torch.zeros(1, 1, 1, 1), torch.ones(1), torch.tensor([-64.0]), geometry, p, dt=0.5)
    currents = torch.linspace(0, 30, 3001)
    rates = neuron_response(layer, currents, presentation=300.0)
    fit = fit_steps(currents.numpy(), np.rint(rates.numpy() * 0.3).astype(int), 300.0, min_share=0.0)

    def spikes(current):
        v_inf = p.v_leak + p.millivolts_per_current * current
        first = p.tau_mem * np.log((v_inf - p.v_init) / (v_inf + 64.0))
        return 1 + (300 - first) / p.interspike_interval(current, -64.0)

    assert len(fit.edges) >= 8
    for level, edge in enumerate(fit.edges.tolist()[:8], 1):
        low, high = 1.42, 40.0
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if spikes(middle) < level else (low, middle)
        assert edge == pytest.approx(low, rel=0.02)


def test_fit_refuses_a_silent_layer():
    with pytest.raises(UserError, match="fire alike"):
        fit_steps(np.arange(10.0), np.zeros(10, dtype=int), 300.0)


def test_normalisation_starts_as_identity_keeps_its_statistics_and_trains_its_affine_part():
    drive = torch.randn(64, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 4 + 7
    norm = FrozenStatisticsBatchNorm(3)
    variance, mean = torch.var_mean(drive, dim=(0, 2, 3), correction=0)
    norm.pass_through(mean, variance)
    before = [norm.running_mean.clone(), norm.running_var.clone()]
    norm.train()
    torch.testing.assert_close(norm(drive + 1), drive + 1)
    assert torch.equal(norm.running_mean, before[0])
    assert torch.equal(norm.running_var, before[1])
    assert [p.requires_grad for p in norm.parameters()] == [True, True]


def test_converted_weights_give_the_mean_current_of_the_simulation():
    # Regular pulses that never merge and end within the presentation: mean current = i_syn w sum G f exactly.
    generator = torch.Generator().manual_seed(0)
    layer = SpikingConv2d(
        conductance=torch.rand(4, 2, 3, 3, generator=generator),
        gain=torch.tensor([3.0, 5.0, 7.0, 9.0]),
        v_threshold=torch.full((4,), -60.2),
        geometry=LayerParameters(4),
        lif=LIFParameters(),
        dt=2.5,
    )
    spikes = torch.zeros(120, 1, 2, 6, 6, dtype=torch.bool)
    counts = torch.randint(0, 7, (1, 2, 6, 6), generator=generator)
    for step in range(6):
        spikes[step * 18] = counts > step
    assert hold(spikes, 6).sum() == 6 * spikes.sum()
    mean = sum(drive.clone() for drive in layer.convolve(spikes)) / 120 * layer.gain.reshape(1, 4, 1, 1)
    rates = counts / 0.3
    torch.testing.assert_close(convert_weights(layer).drive(rates), mean, rtol=1e-4, atol=1e-4)


def test_input_rates_with_quantisation_are_those_of_the_encoder():
    p = Encoding()
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    simulated = encode(images, p, torch.tensor([7])).sum(0) / 0.3
    torch.testing.assert_close(input_rates(images / 255, p, quantise=True), simulated.float())
    assert input_rates(images / 255, p, quantise=False).flatten()[[0, 51, 255]].tolist() == pytest.approx([10, 14, 30])


def test_frontend_file_keeps_every_value_and_the_response(pipeline):
    frontend, source, digest = load_frontend(pipeline.frontend)
    network, _, snn_digest = load_network(pipeline.snn)
    assert source.data == "digits"
    images = load_images(source, "test", seed=0).images[:32]
    features = frontend(images / 255)
    assert features.shape == (32, 8, 8, 8)
    assert 0 <= features.min() < features.max() <= 1
    for layer, learned in zip(frontend.layers, network.layers, strict=True):
        expected = learned.layer.conductance * learned.layer.gain.reshape(-1, 1, 1, 1) * 0.015
        torch.testing.assert_close(layer.weight, expected)
    with h5py.File(pipeline.frontend) as file:
        assert file.attrs["source_digest"] == snn_digest
        assert file.attrs["digest"] == digest
        for name in ("conv1", "conv2"):
            group = file["layers"][name]
            assert len(group["response/drive"]) == len(group["response/rate"]) > 1000
            assert 0.9 < group["residual"].attrs["correlation"] <= 1
            assert len(group["state/activation.heights"]) == len(group["state/activation.edges"]) + 1


def test_conversion_mixes_images_that_come_in_order(pipeline):
    # Dark images first, bright ones last: a fit to the dark ones alone would know no high rate.
    network, _, _ = load_network(pipeline.snn)
    images = load_images(DataSource(), "train", seed=0).images[:60]
    ordered = torch.cat((images // 4, images))
    conversion = convert(network, ordered)
    reference = convert(network, torch.cat((images // 4, images))[torch.randperm(120)])
    top, expected = (c.frontend.layers[0].activation.heights[-1].item() for c in (conversion, reference))
    assert abs(top - expected) < 4
    assert all(fidelity["correlation"] > 0.95 for fidelity in conversion.fidelity)


def test_converted_layers_answer_as_the_simulation_does(pipeline):
    frontend, source, _ = load_frontend(pipeline.frontend)
    network, _, _ = load_network(pipeline.snn)
    images = load_images(source, "test", seed=0).images[:64]
    simulated = network.simulate(encode(images, network.learning.encoding, draw_seeds(len(images), torch.Generator())))
    for rates, spikes in zip(frontend.rates(images / 255), simulated, strict=True):
        counts = spikes.sum(0).flatten().float()
        assert torch.corrcoef(torch.stack((rates.flatten(), counts)))[0, 1] > 0.95
        assert (rates.flatten() * 0.3 - counts).abs().mean() < 0.4
