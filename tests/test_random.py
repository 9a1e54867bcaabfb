"""Draws that are hashes: uniform, unrelated, and the same in PyTorch and in compiled loops."""

import numpy as np
import torch
from scipy.stats import chisquare, kstest

from snn.engines import kernels
from snn.runtime.random import BEFORE, TIES, as_chance, draw_bits, draw_seeds, event_key, happens, image_key, stream


def draws(seeds: torch.Tensor, events: int, indices: int, purpose: int = BEFORE) -> torch.Tensor:
    """Uniform draws in [0, 1), (images, events, indices)."""
    key = tuple(half[:, None, None] for half in image_key(seeds, purpose))
    event = event_key(key, torch.arange(events)[:, None])
    return draw_bits(event, torch.arange(indices)) / 2**32


def test_compiled_draws_are_the_same_bits():
    seeds = draw_seeds(4, torch.Generator().manual_seed(0))
    first, second = image_key(seeds, TIES)
    for image in range(4):
        for counter in (0, 1, 12_345, 2**31 + 7, 2**33 + 5):
            own = first[image].numpy().astype(np.uint32), second[image].numpy().astype(np.uint32)
            event = event_key((first[image], second[image]), torch.tensor(counter))
            compiled = kernels.event_key(*own, counter)
            assert tuple(int(half) for half in event) == tuple(map(int, compiled))
            for index in (0, 3, 500):
                bits = kernels.draw_bits(np.uint32(compiled[0]), np.uint32(compiled[1]), index)
                assert int(draw_bits(event, index)) == int(bits)


def test_draws_are_uniform_and_neighbours_unrelated():
    # Seeds, events and indices that follow each other: the worst that a hash can be given.
    found = draws(torch.arange(20), 60, 300).numpy()
    assert kstest(found.ravel(), "uniform").pvalue > 1e-4
    for axis in range(3):
        one, other = (found.take(range(*part), axis) for part in ((0, -1 + found.shape[axis]), (1, found.shape[axis])))
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 5 / np.sqrt(one.size)
        # Pairs of neighbours fill the unit square.
        cells = np.histogram2d(one.ravel(), other.ravel(), bins=16, range=((0, 1), (0, 1)))[0]
        assert chisquare(cells.ravel()).pvalue > 1e-4
    # Sums over the synapses of an event are as spread as independent draws make them.
    spread = found.sum(2).var() / (300 / 12)
    assert abs(spread - 1) < 5 * np.sqrt(2 / found[..., 0].size)


def test_purposes_and_seeds_share_no_draws():
    seeds = draw_seeds(1000, torch.Generator().manual_seed(1))
    one, other = draws(seeds, 1, 3, BEFORE).flatten(), draws(seeds, 1, 3, TIES).flatten()
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(len(one))
    assert len(torch.cat([one, other]).unique()) == 2 * len(one)
    # Both halves of a seed count.
    assert len(draws(torch.tensor([5, 5 + 2**32, 6]), 1, 1).unique()) == 3


def test_probabilities_0_and_1_leave_nothing_to_chance():
    bits = torch.tensor([0, 1, 2**31, 2**32 - 1])
    assert happens(bits, as_chance(torch.tensor(1.0))).all()
    assert not happens(bits, as_chance(torch.tensor(0.0))).any()
    share = happens((draws(torch.arange(50), 40, 100) * 2**32).long(), as_chance(torch.tensor(0.3))).double().mean()
    assert abs(share - 0.3) < 5 * np.sqrt(0.21 / 200_000)


def test_streams_follow_their_purpose():
    numbers = {torch.rand(1, generator=stream(*purpose)).item() for purpose in ((0, "a"), (0, "b"), (1, "a"))}
    assert len(numbers) == 3
    assert torch.rand(1, generator=stream(1, "a")).item() in numbers
