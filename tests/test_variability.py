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


INTENSITIES = torch.tensor([0.0, 0.13, 0.37, 0.5, 0.81, 1.0])


def variance_by_quadrature(intensity, longest):
    """Variance of counts over the time of presentation, floor(x + u) - x having f (1 - f), f the fraction of x."""
    # The inverse of the time, in units of the shortest, is uniform from 300 / longest to 1.
    least = 300 / longest
    inverse = least + (1 - least) * (np.arange(200_000) + 0.5) / 200_000
    fraction = np.mod((3 + 6 * intensity) / inverse, 1)
    return np.mean(fraction * (1 - fraction) * (inverse / 6) ** 2)


@pytest.mark.parametrize("longest", ["300", "450", "1200", "inf"])
def test_counts_of_longer_presentations_have_the_mean_and_smaller_deviations(longest):
    images = INTENSITIES.repeat(40_000, 1)[:, None, None]
    spikes = Preprocess(f"spikes:10,30,300,{longest}").build().train()
    torch.manual_seed(0)
    deviations = (spikes(images) - images).double().flatten(1)
    for column, intensity in enumerate(INTENSITIES.double().numpy()):
        expected = variance_by_quadrature(intensity, float(longest))
        found = deviations[:, column]
        # Where a whole number of spikes lies in the only presentation, it is always counted: the variance is 0.
        assert found.var().item() == pytest.approx(expected, rel=0.04, abs=1e-7)
        assert abs(found.mean().item()) <= 5 * (expected / 40_000) ** 0.5 + 1e-6
    assert spikes.eval()(images) is images


def test_deviations_are_inversely_proportional_to_the_time():
    # An intensity that both times count between two numbers with even chances: 3.5 and 10.5 spikes.
    images = torch.full((20_000, 1, 1, 1), 1 / 12)
    found = []
    for time in (300, 900):
        torch.manual_seed(0)
        found.append(Preprocess(f"spikes:10,30,{time}").build().train()(images).std().item())
    # Half a spike, of which there are 6 and 18 between dark and bright.
    assert found == pytest.approx([0.5 / 6, 0.5 / 18], rel=0.01)


def test_all_pixels_of_an_image_share_its_presentation_and_images_do_not():
    # Half of each image has one intensity, half another: neither is a whole number of spikes for long.
    halves = torch.tensor([0.2133, 0.6917]).repeat_interleave(500).repeat(200, 1)[:, None, None]
    torch.manual_seed(0)
    seen = Preprocess("spikes:10,30,300,inf").build().train()(halves).flatten(1)
    spacings = []
    for image in seen:
        steps = []
        for half in image.split(500):
            levels = half.unique()
            # Two counts that follow each other; values of one differ in their last bits.
            steps.append((levels.max() - levels.min()).item())
            assert ((levels - levels.min() < 1e-6) | (levels.max() - levels < 1e-6)).all()
        if min(steps) > 1e-4:
            assert steps[0] == pytest.approx(steps[1], rel=1e-2, abs=2e-6)
            spacings.append(steps[0])
    # One spike of 6, in the shortest presentation; its share is uniform.
    shares = 6 * np.array(spacings)
    assert len(shares) > 150
    assert shares.max() <= 1 + 1e-4
    assert np.histogram(shares, bins=4, range=(0, 1))[0].min() > 20


@pytest.mark.parametrize(
    "text",
    ["spikes:10,30,300,299", "spikes:10,30,300,nan", "quantise:10,30,300,400", "spikes:10,30", "spikes:1,2,3,4,5"],
)
def test_impossible_presentations_are_refused(text):
    with pytest.raises(UserError, match=r"unknown; expected|LONGEST"):
        Preprocess(text)
