"""Networks with other conductances: what they are, and that nothing else differs from the learned network."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from snn.calibration import mean_count, sample_drive
from snn.controls import control, kmeans_centroids
from snn.data import load_images
from snn.engines.base import choose_engine, feed_forward
from snn.gabor import COLOURS, gabor_bank
from snn.layer import SpikingConv2d
from snn.parameters import LayerParameters, LIFParameters
from snn.runtime.errors import UserError
from snn.runtime.random import draw_seeds, stream
from snn.storage import load_network

CONTROLS = ("shuffled", "random", "balanced", "gabor", "kmeans")


def passes_on_the_same_rate(network, images):
    """Whether each layer of a control fires as often as the learning's target says, on the calibration images."""
    engine, p = choose_engine(), network.learning
    images = images[: p.calibration_images]
    seeds = draw_seeds(len(images), stream("control presentation", 0))
    wanted = p.output_rate * p.encoding.presentation / 1000
    for number, learned in enumerate(network.layers):
        below = [lower.layer for lower in network.layers[:number]]
        drive = sample_drive(
            engine,
            learned.layer,
            feed_forward(engine, below, network.encode(engine, images, seeds)),
            stream("control places", 0, number),
        )
        assert mean_count(engine, learned.layer, drive) == pytest.approx(wanted, rel=0.05)


@pytest.mark.parametrize("kind", ["shuffled", "random", "balanced", "kmeans"])
def test_controls_of_the_papers_network_pass_on_the_same_rate(pipeline, kind):
    network, source, _ = load_network(pipeline.snn)
    images = load_images(source, "train", 0).images
    changed = control(network, images, kind)
    passes_on_the_same_rate(changed, images)
    for before, after in zip(network.layers, changed.layers, strict=True):
        old, new = before.layer, after.layer
        assert replace(new.geometry, feed_forward_inhibition=False) == old.geometry
        assert new.geometry.feed_forward_inhibition == (kind == "balanced")
        assert torch.equal(new.v_threshold, torch.full_like(new.v_threshold, -60.2 - 1.0))
        assert torch.equal(new.conductance, old.conductance) == (kind == "balanced")
        assert 0 <= new.conductance.min() < new.conductance.max() <= 1


def test_kernels_without_mean_are_balanced(pipeline):
    network, source, _ = load_network(pipeline.snn)
    layer = control(network, load_images(source, "train", 0).images, "balanced").layers[0].layer
    learned = network.layers[0].layer.conductance
    torch.testing.assert_close(layer.weight.sum((1, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(layer.weight + learned.mean((1, 2, 3), keepdim=True), learned)


@pytest.mark.parametrize("kind", CONTROLS)
def test_controls_of_contrast_keep_retina_inhibition_and_rate(contrast, kind):
    network, source, _ = load_network(contrast.snn)
    images = load_images(source, "train", 0).images
    changed = control(network, images, kind)
    passes_on_the_same_rate(changed, images)
    old, new = network.layers[0].layer, changed.layers[0].layer
    assert new.geometry == old.geometry
    assert new.geometry.feed_forward_inhibition
    assert changed.retina is network.retina
    assert new.conductance.shape == old.conductance.shape == (6, 2, 3, 3)
    if kind == "shuffled":
        for before, after in zip(old.conductance, new.conductance, strict=True):
            assert not torch.equal(before, after)
            assert torch.equal(before.flatten().sort().values, after.flatten().sort().values)
    elif kind == "random":
        # Uniform: mean 1/2, variance 1/12.
        assert new.conductance.mean().item() == pytest.approx(0.5, abs=0.1)
        assert new.conductance.var().item() == pytest.approx(1 / 12, abs=0.03)
    elif kind == "gabor":
        # At no place do ON and OFF cells both excite, and ON less OFF has no mean: not even without inhibition.
        on, off = new.conductance[:, 0], new.conductance[:, 1]
        assert ((on == 0) | (off == 0)).all()
        torch.testing.assert_close((on - off).sum((1, 2)), torch.zeros(6), atol=1e-5, rtol=0)
    elif kind == "kmeans":
        torch.testing.assert_close(new.conductance.amax((1, 2, 3)), torch.ones(6))
    # Synaptic scaling while learning, where there is no inhibition: gains go inversely with the sum of conductances.
    if kind not in ("shuffled", "balanced"):
        product = new.gain * new.conductance.mean((1, 2, 3))
        torch.testing.assert_close(product / product[0], torch.ones(6))


def test_controls_follow_the_seed(contrast, monkeypatch):
    monkeypatch.setattr("snn.controls.PATCHES", 2000)
    network, source, _ = load_network(contrast.snn)
    images = load_images(source, "train", 0).images[:40]
    for kind in ("shuffled", "random", "gabor", "kmeans"):
        first, again, other = (control(network, images, kind, seed).layers[0].layer for seed in (1, 1, 2))
        assert torch.equal(first.conductance, again.conductance)
        assert torch.equal(first.gain, again.gain)
        assert not torch.equal(first.conductance, other.conductance)


def test_gabor_functions_without_a_retina_lie_around_the_middle(pipeline):
    network, source, _ = load_network(pipeline.snn)
    images = load_images(source, "train", 0).images
    with pytest.raises(UserError, match=r"`conductances` gabor: .* not 2 layers.* give `layers` 1"):
        control(network, images, "gabor")
    alone = control(replace(network, layers=network.layers[:1]), images, "gabor").layers[0].layer
    torch.testing.assert_close(alone.conductance.mean((1, 2, 3)), torch.full((6,), 0.5))
    torch.testing.assert_close((alone.conductance - 0.5).abs().amax((1, 2, 3)), torch.full((6,), 0.5))


def test_positive_parts_of_a_gabor_function_are_excited_by_on_cells(contrast, monkeypatch):
    network, source, _ = load_network(contrast.snn)
    images = load_images(source, "train", 0).images[:40]
    # In place of the bank: a bright centre in a dark surround, and the reverse.
    centre = torch.full((1, 1, 3, 3), -1 / 8).double()
    centre[..., 1, 1] = 1.0
    bank = torch.cat([centre, -centre] * 3)
    monkeypatch.setattr("snn.controls.gabor_bank", lambda *_: bank)
    layer = control(network, images, "gabor").layers[0].layer
    spots = torch.full((2, 1, 9, 9), 128, dtype=torch.uint8)
    spots[0, 0, 4, 4], spots[1, 0, 4, 4] = 178, 78
    drive = torch.nn.functional.conv2d(network.retina.encode(spots).float(), layer.weight)[:, :, 3, 3]
    bright, dark = drive
    assert (bright - dark).sign().tolist() == [1, -1] * 3


def spectrum(kernel, points=256):
    """Power of a square kernel over its frequencies in cycles per pixel, and these: (points, points) each."""
    frequency = np.fft.fftfreq(points)
    power = np.abs(np.fft.fft2(kernel, (points, points))) ** 2
    y, x = np.meshgrid(frequency, frequency, indexing="ij")
    return power, x, y


def peak(kernel):
    """Orientation in degrees, 0 to 180, and frequency of a kernel's strongest grating."""
    power, x, y = spectrum(kernel)
    at = np.unravel_index(power.argmax(), power.shape)
    return np.degrees(np.arctan2(y[at], x[at])) % 180, np.hypot(x[at], y[at])


def test_orientations_and_frequencies_of_a_bank_are_spread():
    # Kernels large enough to see whole envelopes.
    maps, size = 36, 31
    bank = gabor_bank(maps, 1, size, torch.Generator().manual_seed(0)).numpy()
    assert np.abs(bank.sum((1, 2, 3))).max() < 1e-9
    np.testing.assert_allclose(np.abs(bank).max((1, 2, 3)), 1)
    peaks = np.array([peak(kernel[0]) for kernel in bank])
    # One orientation in every 36th part of 180 degrees, up to what the sampling of low frequencies blurs.
    bins = np.histogram(peaks[:, 0], bins=6, range=(0, 180))[0]
    assert bins.min() >= 4
    assert bins.max() <= 8
    # Uniform in octaves from one cycle in a kernel up to 0.4 cycles per pixel.
    octaves = np.log2(peaks[:, 1])
    assert 2 ** octaves.min() == pytest.approx(1 / size, rel=0.5)
    assert 2 ** octaves.max() == pytest.approx(0.4, rel=0.1)
    quarters = np.histogram(octaves, bins=3, range=(np.log2(1 / size), np.log2(0.4)))[0]
    assert quarters.min() >= 8
    # Neither does phase follow orientation: kernels are odd and even, and of both signs.
    symmetric = [(kernel[0] * kernel[0, ::-1, ::-1]).sum() / (kernel**2).sum() for kernel in bank]
    assert min(symmetric) < -0.8
    assert max(symmetric) > 0.8
    # Odd kernels rise along their orientation, of 0 to 180 degrees, or fall.
    place = np.arange(size) - size // 2
    odd = []
    for kernel, (angle, frequency) in zip(bank[:, 0], peaks, strict=True):
        across = np.cos(np.radians(angle)) * place + np.sin(np.radians(angle)) * place[:, None]
        odd.append((kernel * np.sin(2 * np.pi * frequency * across)).sum() / np.abs(kernel).sum())
    assert sum(value > 0.3 for value in odd) >= 6
    assert sum(value < -0.3 for value in odd) >= 6


def test_a_gabor_function_has_the_bandwidths_of_simple_cells():
    bank = gabor_bank(60, 1, 61, torch.Generator().manual_seed(1)).numpy()[:, 0]
    octaves, degrees = [], []
    for kernel in bank:
        angle, frequency = peak(kernel)
        # With the envelope well inside the kernel, and the peak far from the constant term and from aliases.
        if not 0.1 < frequency < 0.2:
            continue
        amplitude = np.sqrt(spectrum(kernel, 512)[0])
        frequencies, turn = np.linspace(0.02, 0.45, 400), np.radians(np.linspace(-60, 60, 241))
        radial = along(amplitude, frequencies, np.full(400, np.radians(angle)))
        above = frequencies[radial > radial.max() / 2]
        octaves.append(np.log2(above.max() / above.min()))
        circular = along(amplitude, np.full(241, frequency), np.radians(angle) + turn)
        above = np.degrees(turn[circular > circular.max() / 2])
        degrees.append(above.max() - above.min())
    assert len(octaves) > 5
    assert np.median(octaves) == pytest.approx(1.4, abs=0.15)
    assert np.median(degrees) == pytest.approx(40, abs=4)


def along(amplitude, frequency, angle):
    """Amplitudes (n, n) of a discrete spectrum at polar frequencies, in cycles per pixel and radians; nearest ones."""
    points = len(amplitude)
    row, column = (np.rint(frequency * part(angle) * points).astype(int) % points for part in (np.sin, np.cos))
    return amplitude[row, column]


def test_colours_of_a_bank_are_luminance_and_opponent():
    bank = gabor_bank(20, 3, 7, torch.Generator().manual_seed(0))
    for kernel, colour in zip(bank, ["luminance"] * 12 + ["red-green"] * 4 + ["blue-yellow"] * 4, strict=True):
        # Each colour's kernel is the same grating, times its weight.
        grating = kernel[2] / COLOURS[colour][2] if colour != "red-green" else kernel[0]
        for own, weight in zip(kernel, COLOURS[colour], strict=True):
            torch.testing.assert_close(own, grating * weight)
    with pytest.raises(UserError, match="gabor kernels of 1 x 1 pixels: too small"):
        gabor_bank(4, 3, 1, torch.Generator())


def layer_of(maps, channels, size):
    return SpikingConv2d(
        torch.zeros(maps, channels, size, size),
        torch.ones(maps),
        torch.full((maps,), -60.2),
        LayerParameters(maps, size, padding=size // 2),
        LIFParameters(),
        2.5,
    )


def test_kmeans_finds_planted_patches():
    # Images have the size of a kernel, so each is one patch: one of four patterns, each count raised by 0 or 1.
    random = np.random.default_rng(0)
    planted = random.integers(0, 12, (4, 2, 5, 5))
    planted[0, 1] = 0
    which = random.integers(0, 4, 600)
    counts = planted[which] + random.integers(0, 2, (600, 2, 5, 5))
    # Patches without any spike are not among those that it learns from.
    counts[:200] = 0
    found = kmeans_centroids(torch.from_numpy(counts).short(), layer_of(4, 2, 5), torch.Generator().manual_seed(0))
    assert found.shape == (4, 2, 5, 5)
    distance = (found.numpy()[:, None] - (planted + 0.5)).reshape(4, 4, -1)
    nearest = np.abs(distance).max(2)
    assert sorted(nearest.argmin(1)) == [0, 1, 2, 3]
    assert nearest.min(1).max() < 0.2


def test_kmeans_needs_patches_with_spikes():
    counts = torch.zeros(10, 1, 6, 6, dtype=torch.int16)
    with pytest.raises(UserError, match="only 0 patches of the layer's input have spikes, for 4 maps"):
        kmeans_centroids(counts, layer_of(4, 1, 3), torch.Generator())
    with pytest.raises(UserError, match="6x6 places have no room for 7x7 kernels"):
        kmeans_centroids(counts, layer_of(4, 1, 7), torch.Generator())
