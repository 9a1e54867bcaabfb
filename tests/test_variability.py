"""Spike counts drawn in place of their means, while a network is trained."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from bridge.frontend import DRAWS, Response, deviations
from bridge.sau import SpecialActivationUnit
from bridge.storage import load_frontend
from hybrid.architecture import Architecture, ModelSpec, build_model
from hybrid.preprocess import Preprocess
from hybrid.variations import Variations
from snn.runtime.errors import UserError


def response(drives, counts, channels=None):
    single = np.zeros(1, np.float32), np.zeros(1, np.int16)
    channels = np.zeros(len(drives)) if channels is None else np.array(channels)
    return Response(np.array(drives, np.float32), np.array(counts, np.int16), channels.astype(np.int16), *single)


def test_deviations_are_those_of_the_neurons_on_each_step():
    activation = SpecialActivationUnit(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 1.0, 2.0]))
    # On the first step nobody departs; on the second one in four fires less and one more; the third was never seen.
    found = deviations(activation, response([0.5, 0.9, 1.0, 1.2, 1.5, 1.9], [0, 0, 0, 1, 1, 2]))
    assert found.shape == (3, DRAWS)
    assert found[0].tolist() == [0.0] * DRAWS
    assert found[1].unique(return_counts=True)[1].tolist() == [DRAWS // 4, DRAWS // 2, DRAWS // 4]
    assert found[1].unique().tolist() == [-1, 0, 1]
    assert found[2].tolist() == [0.0] * DRAWS


def test_deviations_of_channels_are_from_their_own_steps():
    edges = torch.tensor([[1.0, torch.inf], [3.0, 4.0]])
    activation = SpecialActivationUnit(edges, torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 2.0]]))
    found = deviations(activation, response([2.0, 2.0], [1, 1], channels=[0, 1]))
    assert found[0].unique().tolist() == [1.0]
    assert found[1].unique().tolist() == [0.0]


def test_variability_draws_counts_in_training_alone(pipeline):
    frontend, _, _ = load_frontend(pipeline.frontend)
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = frontend(images)
        frontend.variability = True
        assert torch.equal(frontend.eval()(images), plain)
        frontend.train()
        drawn = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            drawn.append(frontend(images))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    top = frontend.layers[-1].activation.heights.amax()
    torch.testing.assert_close((drawn[0] * top).round(), drawn[0] * top, atol=1e-4, rtol=0)


def test_drawn_counts_have_the_simulated_distribution(pipeline):
    frontend, _, _ = load_frontend(pipeline.frontend)
    layer, images = frontend.layers[0], torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    with torch.no_grad():
        spikes = frontend.encode(images)
        steps = layer(spikes)
        drawn = torch.stack([layer.draw(spikes) for _ in range(400)]) - steps
    for level in steps.round().unique().int().tolist():
        mine, expected = drawn[:, steps.round() == level], layer.deviations[level]
        error = expected.std().item() / mine.numel() ** 0.5
        assert abs(mine.mean().item() - expected.mean().item()) <= 5 * error + 1e-6
        assert set(mine.unique().tolist()) <= set(expected.tolist())


def test_gradients_pass_drawn_counts(pipeline):
    frontend, _, _ = load_frontend(pipeline.frontend)
    spec = ModelSpec(
        Architecture(width=0.25, variations=Variations(variability=True)), (1, 8, 8), tuple("0123456789"), frontend.spec
    )
    network = build_model(spec, frontend).train()
    network(torch.rand(4, 1, 8, 8)).sum().backward()
    assert frontend.layers[0].norm.weight.grad.abs().sum() > 0
    with pytest.raises(UserError, match="`variability`"):
        replace(spec.architecture, variant="mu")


def test_spikes_of_random_phase_are_counted_in_a_window_of_a_regular_train():
    # 6 spikes lie between intensities 0 and 1, after 3 of f_min: 10 to 30 Hz for 300 ms.
    images = torch.tensor([0.0, 0.1, 0.37, 0.75, 1.0]).repeat(4000, 1).requires_grad_()
    spikes = Preprocess("spikes").build().train()
    torch.manual_seed(0)
    counts = 3 + 6 * spikes(images)
    random = np.random.default_rng(0)
    for column, intensity in enumerate((0.0, 0.1, 0.37, 0.75, 1.0)):
        period = 1000 / (10 + 20 * intensity)
        # The naive count: spikes at opening + period, opening + 2 periods, ... of a window at a random place.
        naive = [sum(0 <= phase + k * period < 300 for k in range(12)) for phase in random.random(4000) * period]
        found = counts[:, column].detach()
        torch.testing.assert_close(found.round(), found, atol=1e-4, rtol=0)
        assert set(found.round().int().tolist()) == set(naive)
        assert found.mean().item() == pytest.approx(np.mean(naive), abs=0.05)
        assert found.mean().item() == pytest.approx(3 + 6 * intensity, abs=0.04)
    spikes(images).sum().backward()
    assert torch.equal(images.grad, torch.ones_like(images))
    assert spikes.eval()(images) is images


def test_preprocessing_is_done_in_the_order_written():
    images = torch.rand(2, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    average, quantise = Preprocess("average:3").build(), Preprocess("quantise").build()
    assert torch.equal(Preprocess("average:3+quantise").build()(images), quantise(average(images)))
    assert torch.equal(Preprocess("quantise+average:3").build()(images), average(quantise(images)))
    with pytest.raises(UserError, match="`auxiliary_input` average:3\\+blur"):
        Preprocess.parse("average:3+blur", "auxiliary_input")
    with pytest.raises(UserError, match=r"`auxiliary_input` 'average:3'.*Preprocess\('average:3'\)"):
        Variations(auxiliary_input="average:3")
