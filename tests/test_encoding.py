from dataclasses import replace
from fractions import Fraction
from math import floor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, chisquare

from snn.encoding import encode, regular_trains
from snn.engines.base import choose_engine
from snn.parameters import Encoding
from snn.runtime.errors import UserError
from snn.runtime.random import draw_seeds

ALL_INTENSITIES = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def seeds(images: int, seed: int) -> torch.Tensor:
    return draw_seeds(images, torch.Generator().manual_seed(seed))


def exact_counts(p: Encoding) -> list[int]:
    """floor(F T) of all 8-bit intensities, in rational arithmetic."""
    low, high, duration = Fraction(p.f_min), Fraction(p.f_max), Fraction(p.presentation) / 1000
    return [floor((low + Fraction(value, 255) * (high - low)) * duration) for value in range(256)]


@given(
    f_min=st.integers(0, 40),
    span=st.integers(1, 100),
    steps=st.integers(1, 300),
    dt=st.sampled_from([0.5, 1.0, 2.5, 5.0]),
    quiet=st.floats(0, 0.5),
    seed=st.integers(0, 2**31),
)
def test_regular_trains_hold_exactly_floor_f_t_spikes(f_min, span, steps, dt, quiet, seed):
    quiet_steps = int(quiet * steps) if dt < 5 else 0
    p = Encoding(f_min=f_min, f_max=f_min + span, presentation=steps * dt, dt=dt, quiet=quiet_steps * dt)
    spikes = encode(ALL_INTENSITIES, p, seeds(1, seed))
    assert spikes.shape == (steps, 1, 1, 16, 16)
    assert spikes.sum(0).flatten().tolist() == exact_counts(p)
    assert not spikes[steps - quiet_steps :].any()


def test_unshifted_train_spikes_when_f_t_reaches_whole_numbers():
    p = Encoding(f_min=10, f_max=30, presentation=300, dt=2.5)
    train = regular_trains(torch.tensor([20.0, 10.0], dtype=torch.float64), p)
    assert train[:, 0].nonzero().flatten().tolist() == [19, 39, 59, 79, 99, 119]
    assert train[:, 1].nonzero().flatten().tolist() == [39, 79, 119]
    # With 75 ms of quiet, the time in which 300 ms pass for the trains is 225 ms.
    train = regular_trains(torch.tensor([20.0, 10.0], dtype=torch.float64), replace(p, quiet=75))
    assert train[:, 0].nonzero().flatten().tolist() == [14, 29, 44, 59, 74, 89]
    assert train[:, 1].nonzero().flatten().tolist() == [29, 59, 89]


def test_phases_differ_between_equal_pixels_and_follow_the_seed():
    image = torch.full((1, 1, 16, 16), 128, dtype=torch.uint8)
    spikes = [encode(image, Encoding(), seeds(1, seed)) for seed in (1, 1, 2)]
    assert torch.equal(spikes[0], spikes[1])
    assert not torch.equal(spikes[0], spikes[2])
    first = spikes[0].float().argmax(0)
    assert len(first.unique()) > 5


def test_phases_are_drawn_evenly():
    images = torch.full((20, 1, 32, 32), 0, dtype=torch.uint8)
    p = Encoding(f_min=10, presentation=100, dt=2.5, quiet=20)
    # One spike each, at the phase.
    spikes = encode(images, p, seeds(20, 3)).sum((1, 2, 3, 4))
    assert spikes.sum() == 20 * 32 * 32
    assert chisquare(spikes[:32].numpy()).pvalue > 1e-4


@pytest.mark.parametrize("kind", ["regular", "poisson"])
def test_sparse_spikes_are_the_same_and_each_image_has_its_own(kind):
    images = torch.randint(256, (3, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    p, own = Encoding(f_min=0, kind=kind, quiet=50), seeds(3, 1)
    spikes = encode(images, p, own)
    assert torch.equal(choose_engine("events").encode(images, p, own).to_dense(), spikes)
    # Whatever it is grouped with.
    assert torch.equal(encode(images[1:2], p, own[1:2]), spikes[:, 1:2])


def test_poisson_counts_stay_within_binomial_bounds():
    p = Encoding(kind="poisson")
    values = torch.tensor([0, 64, 128, 255], dtype=torch.uint8)
    copies = 4000
    images = values.reshape(4, 1, 1, 1).expand(4, 1, 1, copies)
    counts = encode(images, p, seeds(4, 5)).sum((0, 2, 3, 4))
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        probability = (10 + value / 255 * 20) * 2.5 / 1000
        low, high = binom.interval(1 - 1e-6, copies * p.n_steps, probability)
        assert low <= count <= high
    # Independent draws: the count of one pixel is spread as a binomial, not fixed.
    spread = encode(images[2:3], p, seeds(1, 6)).sum(0).float().var().item()
    expected = p.n_steps * 0.05 * 0.95
    assert expected * 0.9 < spread < expected * 1.1
    # The mean stays as it is when all spikes must come before a quiet time.
    quiet = encode(images[2:3], replace(p, quiet=100), seeds(1, 7))
    low, high = binom.interval(1 - 1e-6, copies * 80, (10 + 128 / 255 * 20) * 0.3 / 80)
    assert low <= quiet.sum() <= high
    assert not quiet[80:].any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"f_min": 30, "f_max": 10},
        {"dt": 7.0},
        {"f_max": 500.0},
        {"f_min": -1},
        {"dt": 0.0},
        {"quiet": -2.5},
        {"quiet": 1.0},
        {"quiet": 300.0},
        {"f_max": 400.0, "quiet": 150.0},
    ],
)
def test_impossible_encodings_are_refused(wrong):
    with pytest.raises(UserError):
        Encoding(**wrong)
