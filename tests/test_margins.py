import csv

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.conversion import convert
from bridge.frontend import whole_spikes
from bridge.margins import drive_margin, pixel_margin, summed_change
from bridge.sau import SpecialActivationUnit
from bridge.storage import load_frontend
from hybrid.conditions import Noise
from hybrid.margins import main, measure_margins
from snn.data import load_images
from snn.parameters import Encoding
from snn.storage import load_network

SEEDS = st.integers(0, 2**31)
ENCODINGS = st.sampled_from([Encoding(), Encoding(f_min=1, f_max=22, presentation=400), Encoding(f_min=0)])


def images_of(seed, channels=1, size=8):
    """Images of all kinds: 8-bit or not, dark, bright, flat."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(4, channels, size, size, generator=generator)
    images[1] = (images[1] * 255).round() / 255
    images[2] = images[2] ** 4
    images[3] = images[3, 0, 0, 0]
    return images, generator


@pytest.fixture(scope="module")
def frontends(pipeline):
    """Of the same network, without and with the encoder's floor."""
    network, data, _ = load_network(pipeline.snn)
    images = load_images(data, "train", seed=0).images[:60]
    return [convert(network, images, quantise_input=quantised).frontend for quantised in (False, True)]


def test_pixel_margin_is_the_papers():
    # F T = 3 + 6 x: at x = 0.25 it is 4.5, half a spike from both edges; at 0.4 it is 5.4, at 0.55 it is 6.3.
    margin = pixel_margin(torch.tensor([0.25, 0.4, 0.55]), Encoding())
    assert margin.tolist() == pytest.approx([0.5 / 6, 0.4 / 6, 0.3 / 6], abs=1e-4)
    # Black lies on an edge, but can only become brighter.
    assert pixel_margin(torch.tensor([0.0, 0.02]), Encoding()).tolist() == pytest.approx([1 / 6, 0.88 / 6], abs=1e-4)
    # With 4 to 4.5 spikes no count ever changes.
    assert pixel_margin(torch.tensor([0.0, 0.5]), Encoding(f_min=10, f_max=11.2, presentation=400)).tolist() == [1, 1]


@settings(deadline=None)
@given(SEEDS, ENCODINGS, st.floats(0, 0.999))
def test_pixel_changes_below_the_margin_change_no_spike_count(seed, p, part):
    images, generator = images_of(seed)
    direction = torch.rand(images.shape, generator=generator) * 2 - 1
    changed = (images + part * pixel_margin(images, p) * direction.sign()).clamp(0, 1)
    # Where the margin is of the order of rounding, adding it may round up to it.
    sure = pixel_margin(images, p) * (1 - part) > 1e-6
    before, after = (whole_spikes(x, p) for x in (images, changed))
    assert torch.equal(before[sure], after[sure])


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.floats(0, 0.99))
def test_with_the_floor_nothing_changes_at_all_below_the_margin(frontends, seed, part):
    images, generator = images_of(seed)
    frontend = frontends[1]
    margin = pixel_margin(images, frontend.spec.encoding)
    direction = torch.rand(images.shape, generator=generator) * 2 - 1
    # Pixels on an edge may not change: their margin is no more than rounding.
    allowed = torch.where(margin > 1e-4, margin, 0.0)
    changed = (images + part * allowed * direction.sign()).clamp(0, 1)
    assert not torch.equal(images, changed) or part * allowed.max() < 1e-6
    with torch.no_grad():
        for before, after in zip(frontend.spikes(images), frontend.spikes(changed), strict=True):
            assert torch.equal(before, after)
    # Beyond the margin, something does change.
    one_spike = 1 / (frontend.spec.encoding.presentation / 1000 * 20)
    assert not torch.equal(frontend.encode(images + one_spike), frontend.encode(images))


@pytest.mark.parametrize("floor", [False, True])
@settings(deadline=None, max_examples=40)
@given(seed=SEEDS, kind=st.sampled_from(["every pixel", "one pixel", "sparse", "smooth"]), size=st.floats(1e-3, 0.3))
def test_outputs_stay_while_summed_changes_stay_below_the_margin(frontends, floor, seed, kind, size):
    images, generator = images_of(seed)
    frontend = frontends[floor]
    change = torch.randn(images.shape, generator=generator)
    if kind == "one pixel":
        only = torch.zeros_like(change)
        only[..., 7, seed % 8] = 1.0
        change *= only
    elif kind == "sparse":
        change *= torch.rand(images.shape, generator=generator) < 0.1
    elif kind == "smooth":
        change = change.mean((2, 3), keepdim=True).expand_as(images)
    layer, inputs = frontend.layers[0], [frontend.encode(x) for x in (images, images + size * change)]
    with torch.no_grad():
        drives = [layer.norm(layer.drive(spikes)) for spikes in inputs]
        margin = drive_margin(drives[0], layer.activation)
        bound = summed_change(layer, inputs[1] - inputs[0])
        # The bound holds whatever the signs are.
        assert ((drives[1] - drives[0]).abs() <= bound * 1.001 + 1e-4).all()
        outputs = [layer(spikes) for spikes in inputs]
        safe = bound < margin - 1e-4
        assert torch.equal(outputs[0][safe], outputs[1][safe])


@pytest.mark.parametrize("floor", [False, True])
def test_when_every_neuron_of_the_first_layer_is_safe_no_layer_changes(frontends, floor):
    # Single pixels change by one step of the input, as little as can be: then all neurons are often safe.
    frontend, tested = frontends[floor], 0
    layer = frontend.layers[0]
    with torch.no_grad():
        for seed in range(400):
            images, generator = images_of(seed)
            before = frontend.encode(images)
            step = torch.zeros_like(before)
            y, x = torch.randint(8, (2,), generator=generator).tolist()
            step[:, :, y, x] = 1 - 2 * (seed % 2)
            margin = drive_margin(layer.norm(layer.drive(before)), layer.activation)
            safe = (summed_change(layer, step) < margin - 1e-5).flatten(1).all(1)
            tested += int(safe.sum())
            spikes = [before[safe], (before + step)[safe]]
            for each in frontend.layers:
                spikes = [each(value) for value in spikes]
                assert torch.equal(*spikes)
    assert tested > (400 if not floor else 4), tested


def test_drive_margin_is_the_distance_to_the_nearest_edge():
    drive = torch.tensor([0.0, 1.4, 1.6, 3.5, 9.0]).reshape(1, 1, 1, 5)
    shared = SpecialActivationUnit(torch.tensor([1.0, 2.0, 4.0]), torch.arange(4.0))
    assert drive_margin(drive, shared).flatten().tolist() == pytest.approx([1, 0.4, 0.4, 0.5, 5])
    own = SpecialActivationUnit(torch.tensor([[1.0, 2.0], [3.0, torch.inf]]), torch.zeros(2, 3))
    margin = drive_margin(drive.expand(1, 2, 1, 5), own)
    assert margin[0, 1].flatten().tolist() == pytest.approx([3, 1.6, 1.4, 0.5, 6])


def test_less_stays_within_its_step_the_stronger_the_noise_is(pipeline, tmp_path, capsys):
    out = tmp_path / "margins.csv"
    assert main([str(pipeline.frontend), "--out", str(out), "--snr", "30", "15", "--limit-test", "40"]) == 0
    assert "drives within step by bound" in capsys.readouterr().out
    assert out.with_suffix(".png").stat().st_size > 10_000
    with open(out) as file:
        high, low = csv.DictReader(file)
    assert (high["snr_dB"], low["snr_dB"]) == ("30.0", "15.0")
    shares = [name for name in high if name.endswith("percent")]
    assert len(shares) == 7
    assert all(0 <= float(low[name]) < float(high[name]) <= 100 for name in shares)
    for row in (high, low):
        # What is safe by the bound is within its step, and what is within its step answers as before.
        assert float(row["drives_within_step_by_bound_percent"]) <= float(row["drives_within_step_percent"])
        assert float(row["drives_within_step_percent"]) <= float(row["conv1_same_output_percent"])
        assert float(row["pixels_changed_less_than_margin_percent"]) <= float(row["pixels_same_count_percent"])


def test_margins_follow_the_seed(pipeline):
    frontend, data, _ = load_frontend(pipeline.frontend)
    images = load_images(data, "test", seed=0).images[:300]
    first, again, other = (measure_margins(frontend, images, (20.0,), seed=seed) for seed in (3, 3, 4))
    assert first == again != other


def test_behind_a_retina_margins_are_those_of_contrast(contrast):
    frontend, data, _ = load_frontend(contrast.frontend)
    images = load_images(data, "test", seed=0).images[:200]
    (row,) = measure_margins(frontend, images, (25.0,), seed=3)
    assert not any(name.startswith("pixels") for name in row)
    # With the same noise: counts of the encoder, by the definition.
    noisy = torch.cat(list(Noise.parse("awgn:25", "snr").batches(images, 3)))
    p, counts = frontend.spec.encoding, []
    for x in (images / 255, noisy):
        contrasts = (frontend.retina(x, 255) / 255).double()
        counts.append(((contrasts * (p.f_max - p.f_min) + p.f_min) * 0.3 + 1e-9).floor())
    assert row["contrasts_same_count_percent"] == pytest.approx(100 * (counts[0] == counts[1]).double().mean().item())
    assert row["contrasts_changed_less_than_margin_percent"] <= row["contrasts_same_count_percent"] < 100
    # What noise of pixels becomes in the filter's signed answer, measured.
    grey = torch.full((200, 1, 8, 8), 0.5)
    disturbed = grey + 0.05 * torch.randn(grey.shape, generator=torch.Generator().manual_seed(0))
    response = [frontend.retina.response((x * 1020).round())[..., 2:-2, 2:-2] / 1020 for x in (grey, disturbed)]
    growth = (response[1] - response[0]).std() / 0.05
    sigma = ((images / 255).square().mean((1, 2, 3), keepdim=True) / 10**2.5).sqrt()
    contrasts = frontend.retina(images / 255, 255) / 255
    expected = 100 * (pixel_margin(contrasts, p) > growth * sigma).double().mean().item()
    assert row["contrasts_further_than_sigma_percent"] == pytest.approx(expected, abs=2)
    assert 5 < expected < 95


@pytest.mark.parametrize("part", [0.5, 0.95])
def test_contrast_changes_below_the_margin_change_no_spike_count(contrast, part):
    frontend, data, _ = load_frontend(contrast.frontend)
    p, contrasts = frontend.spec.encoding, frontend.retina(load_images(data, "test", seed=0).images[:50] / 255, 255)
    contrasts = contrasts / 255
    margin = pixel_margin(contrasts, p)
    for sign in (-1, 1):
        changed = (contrasts + sign * part * margin).clamp(0, 1)
        sure = margin * (1 - part) > 1e-6
        assert torch.equal(whole_spikes(contrasts, p)[sure], whole_spikes(changed, p)[sure])
        assert (changed != contrasts).any()
