import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from snn.calibration import calibrate_gain, finalise, mean_count, sample_drive
from snn.engines.base import choose_engine
from snn.engines.norse import pick_winner
from snn.homeostasis import balance
from snn.layer import SpikingConv2d
from snn.learning import Homeostasis
from snn.parameters import LayerParameters, LIFParameters
from snn.runtime.random import TIES, draw_seeds, image_key

EVENTS, NORSE = choose_engine("events"), choose_engine("norse")


def make_layer(
    maps=3, c_in=2, kernel=3, stride=1, padding=1, seed=0, gain=6.0, dtype=torch.float64, feed_forward=False
):
    generator = torch.Generator().manual_seed(seed)
    return SpikingConv2d(
        conductance=torch.rand(maps, c_in, kernel, kernel, generator=generator, dtype=dtype),
        gain=gain + torch.arange(maps, dtype=dtype),
        v_threshold=-60.2 - torch.arange(maps, dtype=dtype),
        geometry=LayerParameters(maps, kernel, stride, padding, feed_forward_inhibition=feed_forward),
        lif=LIFParameters(),
        dt=2.5,
    )


def naive_drive(layer: SpikingConv2d, open_: np.ndarray, c: int, y: int, x: int) -> float:
    """sum_j G_j s_j, less mean(G) sum_j s_j with feed-forward inhibition, by loops; ``open_`` bool (C_in, H, W)."""
    g, conductance = layer.geometry, layer.conductance[c].double().numpy()
    channels, height, width = open_.shape
    excitation = inputs = 0.0
    for i, ky, kx in np.ndindex(channels, g.kernel_size, g.kernel_size):
        row, column = y * g.stride + ky - g.padding, x * g.stride + kx - g.padding
        if 0 <= row < height and 0 <= column < width and open_[i, row, column]:
            excitation += conductance[i, ky, kx]
            inputs += 1
    mean = sum(conductance.flatten()) / conductance.size if g.feed_forward_inhibition else 0.0
    return excitation - mean * inputs


def naive_simulation(layer: SpikingConv2d, pre: np.ndarray, inhibition: bool) -> np.ndarray:
    """Eq. 1 with pulses and inhibition by loops; ties would raise."""
    lif, g = layer.lif, layer.geometry
    gain, threshold = layer.gain.numpy(), layer.v_threshold.numpy()
    steps, batch, _, height, width = pre.shape
    out_h, out_w = ((n + 2 * g.padding - g.kernel_size) // g.stride + 1 for n in (height, width))
    spikes = np.zeros((steps, batch, g.maps, out_h, out_w), dtype=bool)
    pulse, block = round(g.pulse_width / layer.dt), round(g.inhibition_time / layer.dt)
    for b, y, x in np.ndindex(batch, out_h, out_w):
        v, blocked_until = np.full(g.maps, lif.v_init), np.zeros(g.maps, dtype=int)
        for t in range(steps):
            crossed = []
            open_ = pre[max(0, t - pulse + 1) : t + 1, b].any(0)
            for c in range(g.maps):
                current = gain[c] * naive_drive(layer, open_, c, y, x) if t >= blocked_until[c] else 0.0
                v[c] += layer.dt * lif.membrane_time_scale * (lif.a + lif.b * v[c] + lif.c * current)
                if v[c] > threshold[c]:
                    crossed.append(c)
            if not inhibition:
                spikes[t, b, crossed, y, x] = True
                v[crossed] = lif.v_reset
            elif crossed:
                margins = sorted(((v[c] - threshold[c], c) for c in crossed), reverse=True)
                assert len(margins) == 1 or margins[0][0] - margins[1][0] > 1e-9
                winner = margins[0][1]
                spikes[t, b, winner, y, x] = True
                v[:] = lif.v_reset
                blocked_until[np.arange(g.maps) != winner] = t + 1 + block
    return spikes


@pytest.mark.parametrize("inhibition", [False, True])
@pytest.mark.parametrize("feed_forward", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "gain"), [(3, 1, 1, 12.0), (2, 2, 1, 50.0), (1, 2, 0, 150.0), (3, 4, 1, 200.0)]
)
def test_simulation_equals_a_naive_loop(inhibition, feed_forward, kernel, stride, padding, gain):
    gain *= 10 if feed_forward else 1
    layer = make_layer(kernel=kernel, stride=stride, padding=padding, gain=gain, feed_forward=feed_forward)
    pre = torch.rand(60, 2, 2, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.06
    spikes = EVENTS.simulate(layer, pre, inhibition=inhibition, seeds=draw_seeds(2, torch.Generator()))
    expected = naive_simulation(layer, pre.numpy(), inhibition)
    assert expected.sum() > 40
    assert np.array_equal(spikes.numpy(), expected)
    assert torch.equal(
        NORSE.simulate(layer, pre, inhibition=inhibition, seeds=draw_seeds(2, torch.Generator())), spikes
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("feed_forward", [False, True])
def test_drive_is_that_of_the_formula(dtype, feed_forward):
    layer = make_layer(stride=2, dtype=dtype, feed_forward=feed_forward)
    pre = torch.rand(9, 2, 2, 5, 4, generator=torch.Generator().manual_seed(1)) < 0.2
    places = torch.arange(2 * 3 * 2)
    drive = EVENTS.sample_drive(layer, pre, places)
    assert torch.equal(drive, NORSE.sample_drive(layer, pre, places))
    expected = np.zeros(drive.shape)
    for t, b, y, x, c in np.ndindex(9, 2, 3, 2, 3):
        open_ = pre[max(0, t - 5) : t + 1, b].any(0).numpy()
        expected[t, (b * 3 + y) * 2 + x, c] = naive_drive(layer, open_, c, y, x)
    assert (expected < 0).any() == feed_forward
    # 18 weights of up to 1 are added: in single precision they lie on a grid of 2^-19, or 2^-20 for smaller ones.
    assert drive.numpy() == pytest.approx(expected, abs=18 * 2.0**-20 if dtype == torch.float32 else 1e-12)
    # Each drive is a multiple of the grid: no sum was rounded.
    if dtype == torch.float32:
        assert torch.equal(drive * 2**20, torch.round(drive * 2**20))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_feed_forward_inhibition_takes_each_kernels_mean_off(dtype):
    layer = make_layer(dtype=dtype, feed_forward=True)
    assert torch.equal(make_layer(dtype=dtype).weight, layer.conductance)
    expected = layer.conductance.double().numpy()
    expected = np.stack([kernel - kernel.mean() for kernel in expected])
    assert layer.weight.numpy() == pytest.approx(expected, abs=1e-6 if dtype == torch.float32 else 1e-15)
    # Where all inputs spike together, away from the border, nothing arrives but what rounding has left.
    pre = torch.ones(1, 1, 2, 5, 5, dtype=torch.bool)
    centre = EVENTS.sample_drive(layer, pre, torch.tensor([12]))
    assert centre.abs().max() < 18 * 2.0**-20
    # Brightness and contrast are measured by a kernel's sum and its spread: adding a constant changes nothing.
    raised = layer.with_values(conductance=layer.conductance + 0.25)
    assert raised.weight.numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("feed_forward", [False, True])
def test_synaptic_scaling_keeps_what_a_kernel_passes(feed_forward):
    start, homeostasis = make_layer(feed_forward=feed_forward), Homeostasis(threshold_step=0.0)
    conductance = start.conductance * torch.tensor([0.5, 1.0, 2.0]).reshape(3, 1, 1, 1).double() + 0.1
    layer = balance(start.with_values(conductance=conductance), start, torch.ones(3), homeostasis)
    passed = []
    for kernels in (start.conductance.numpy(), conductance.numpy()):
        mean = kernels.mean((1, 2, 3), keepdims=True) if feed_forward else 0.0
        passed.append(np.abs(kernels - mean).sum((1, 2, 3)))
    assert layer.gain.numpy() == pytest.approx(start.gain.numpy() * passed[0].mean() / passed[1])
    # A kernel without anything to pass keeps a bounded gain.
    flat = balance(start.with_values(conductance=0 * conductance), start, torch.ones(3), homeostasis)
    assert flat.gain.numpy() == pytest.approx(50 * start.gain.numpy())


def test_at_most_one_map_fires_at_a_place_in_a_step():
    layer = make_layer(maps=16, gain=30.0, dtype=torch.float32)
    layer = layer.with_values(v_threshold=torch.full((16,), -60.2), gain=torch.full((16,), 30.0))
    pre = torch.rand(80, 3, 2, 6, 6, generator=torch.Generator().manual_seed(1)) < 0.1
    free = EVENTS.simulate(layer, pre, inhibition=False)
    assert (free.sum(2) > 1).sum() > 100
    inhibited = EVENTS.simulate(layer, pre, inhibition=True, seeds=draw_seeds(3, torch.Generator()))
    assert inhibited.sum(2).max() == 1
    # A place fires whenever its strongest map does, so it is never silenced altogether.
    assert (inhibited.any(0).any(1) == free.any(0).any(1)).all()


def test_winner_is_the_map_furthest_above_threshold_and_ties_are_drawn_evenly():
    crossed = torch.tensor([True, False, True, True]).reshape(1, 4, 1, 1)
    margin = torch.tensor([0.5, 9.0, 0.7, 0.1]).reshape(1, 4, 1, 1)
    key = image_key(torch.tensor([7]), TIES)
    winner = pick_winner(crossed, margin, key, 0)
    assert winner.flatten().tolist() == [False, False, True, False]
    places = 3000
    crossed = crossed.expand(1, 4, 1, places)
    margin = torch.tensor([0.5, 9.0, 0.5, 0.1]).reshape(1, 4, 1, 1).expand(1, 4, 1, places)
    won = pick_winner(crossed, margin, key, 5)
    assert (won.sum(1) == 1).all()
    counts = won.sum((0, 2, 3)).tolist()
    assert counts[1] == counts[3] == 0
    assert chisquare([counts[0], counts[2]]).pvalue > 1e-4


def test_silence_in_gives_silence_out_at_the_lowest_threshold():
    layer = make_layer()
    floor = layer.lif.v_leak + 1.0
    layer = layer.with_values(v_threshold=torch.full_like(layer.v_threshold, floor))
    assert not EVENTS.simulate(layer, torch.zeros(400, 1, 2, 4, 4, dtype=torch.bool), inhibition=False).any()


def test_gain_and_threshold_reach_their_targets():
    layer = make_layer(maps=8, dtype=torch.float32)
    layer = layer.with_values(v_threshold=torch.full((8,), -60.2), gain=torch.ones(8))
    pre = torch.rand(120, 4, 2, 8, 8, generator=torch.Generator().manual_seed(1)) < 0.05
    drive = sample_drive(EVENTS, layer, pre, torch.Generator())
    assert drive.shape == (120, 4 * 64, 8)
    layer = calibrate_gain(EVENTS, layer, drive, 3.0)
    assert mean_count(EVENTS, layer, drive) == pytest.approx(3.0, abs=0.02)
    lowered = finalise(EVENTS, layer, drive, 4.0, lowering=2.0)
    assert lowered.v_threshold.tolist() == pytest.approx([-62.2] * 8)
    assert mean_count(EVENTS, lowered, drive) == pytest.approx(4.0, abs=0.02)
    # A lower threshold needs less gain; it stays above rest, however far it is to be lowered.
    lowest = finalise(EVENTS, layer, drive, 4.0, lowering=50.0)
    assert lowest.v_threshold[0].item() == pytest.approx(layer.lif.v_leak + 1.0, abs=1e-4)
    assert lowest.gain[0] < lowered.gain[0]
    assert mean_count(EVENTS, lowest, drive) == pytest.approx(4.0, abs=0.02)
