import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from snn.calibration import calibrate_gain, finalise, mean_count, sample_drive
from snn.engines.base import choose_engine
from snn.engines.norse import pick_winner
from snn.layer import SpikingConv2d
from snn.parameters import LayerParameters, LIFParameters
from snn.runtime.random import TIES, draw_seeds, image_key

EVENTS, NORSE = choose_engine("events"), choose_engine("norse")


def make_layer(maps=3, c_in=2, kernel=3, stride=1, padding=1, seed=0, gain=6.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return SpikingConv2d(
        conductance=torch.rand(maps, c_in, kernel, kernel, generator=generator, dtype=dtype),
        gain=gain + torch.arange(maps, dtype=dtype),
        v_threshold=-60.2 - torch.arange(maps, dtype=dtype),
        geometry=LayerParameters(maps, kernel, stride, padding),
        lif=LIFParameters(),
        dt=2.5,
    )


def naive_simulation(layer: SpikingConv2d, pre: np.ndarray, inhibition: bool) -> np.ndarray:
    """Eq. 1 with pulses and inhibition by loops; ties would raise."""
    lif, g = layer.lif, layer.geometry
    conductance, gain, threshold = (t.numpy() for t in (layer.conductance, layer.gain, layer.v_threshold))
    steps, batch, c_in, height, width = pre.shape
    out_h, out_w = ((n + 2 * g.padding - g.kernel_size) // g.stride + 1 for n in (height, width))
    spikes = np.zeros((steps, batch, g.maps, out_h, out_w), dtype=bool)
    pulse, block = round(g.pulse_width / layer.dt), round(g.inhibition_time / layer.dt)
    for b, y, x in np.ndindex(batch, out_h, out_w):
        v, blocked_until = np.full(g.maps, lif.v_init), np.zeros(g.maps, dtype=int)
        for t in range(steps):
            crossed = []
            for c in range(g.maps):
                current = 0.0
                for i, ky, kx in np.ndindex(c_in, g.kernel_size, g.kernel_size):
                    row, column = y * g.stride + ky - g.padding, x * g.stride + kx - g.padding
                    if 0 <= row < height and 0 <= column < width:
                        open_ = pre[max(0, t - pulse + 1) : t + 1, b, i, row, column].any()
                        current += gain[c] * conductance[c, i, ky, kx] * open_
                if t < blocked_until[c]:
                    current = 0.0
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
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "gain"), [(3, 1, 1, 12.0), (2, 2, 1, 50.0), (1, 2, 0, 150.0), (3, 4, 1, 200.0)]
)
def test_simulation_equals_a_naive_loop(inhibition, kernel, stride, padding, gain):
    layer = make_layer(kernel=kernel, stride=stride, padding=padding, gain=gain)
    pre = torch.rand(60, 2, 2, 4, 4, generator=torch.Generator().manual_seed(1)) < 0.06
    spikes = EVENTS.simulate(layer, pre, inhibition=inhibition, seeds=draw_seeds(2, torch.Generator()))
    expected = naive_simulation(layer, pre.numpy(), inhibition)
    assert expected.sum() > 40
    assert np.array_equal(spikes.numpy(), expected)
    assert torch.equal(
        NORSE.simulate(layer, pre, inhibition=inhibition, seeds=draw_seeds(2, torch.Generator())), spikes
    )


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
