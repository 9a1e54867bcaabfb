"""Contrast of images, the filters that are learned for it, and layers that learn behind it."""

import os
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from snn.learn import main
from snn.learner import learn
from snn.learning import Inhibition, Learning
from snn.parameters import RetinaParameters
from snn.retina import (
    INTENSITY_STEPS,
    LEVELS,
    Retina,
    difference_of_gaussians,
    learn_retina,
    sample_patches,
    whitening,
)
from snn.runtime.errors import UserError
from snn.storage import load_network, save

WHITEN = RetinaParameters(kind="whiten", kernel_size=5, patches=2000, quantile=0.9)
DOG = RetinaParameters(kind="dog", kernel_size=5)


def natural_images(count: int, colours: int = 3, size: int = 12, seed: int = 0) -> torch.Tensor:
    """Smooth random images, uint8 (N, C, H, W), whose colours depend on each other and differ in their means."""
    random = np.random.default_rng(seed)
    noise = gaussian_filter(random.normal(size=(count, colours, size, size)), (0, 0, 0.7, 1.3))
    mixed = np.einsum("oc,nchw->nohw", np.eye(colours) + 0.4 * random.normal(size=(colours, colours)), noise)
    mean = np.linspace(90, 150, colours).reshape(-1, 1, 1)
    return torch.from_numpy(np.clip(np.rint(mean + 50 * mixed / mixed.std()), 0, 255).astype(np.uint8))


def asymmetric(colours: int, size: int = 3) -> Retina:
    """Filters in which no weight equals another of its plane, on a grid of 1/64, with offsets."""
    random, number = np.random.default_rng(7), colours**2 * size**2
    filters = (1 + random.permutation(number)) * (81 // number) / 64 * random.choice([-1, 1], number)
    filters = filters.reshape(colours, colours, size, size)
    # A medium grey has little contrast.
    offset = np.arange(colours) - INTENSITY_STEPS / 2 * filters.sum((1, 2, 3))
    return Retina(torch.from_numpy(filters).float(), torch.from_numpy(offset).float())


def naive_contrast(retina: Retina, steps: np.ndarray, levels: int) -> np.ndarray:
    """ON and OFF contrast of intensities in whole steps, by loops over every weight."""
    filters, offset = retina.filters.double().numpy(), retina.offset.double().numpy()
    (count, colours, height, width), size = steps.shape, filters.shape[-1]
    contrast = np.zeros((count, 2 * colours, height, width))
    for n, out, y, x in np.ndindex(count, colours, height, width):
        answer = offset[out]
        for own, ky, kx in np.ndindex(colours, size, size):
            row = min(max(y + ky - size // 2, 0), height - 1)
            column = min(max(x + kx - size // 2, 0), width - 1)
            answer += filters[out, own, ky, kx] * steps[n, own, row, column]
        answer *= levels / INTENSITY_STEPS
        contrast[n, out if answer > 0 else colours + out, y, x] = min(round(abs(answer)), levels)
    return contrast


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("levels", [LEVELS, INTENSITY_STEPS])
def test_contrast_equals_a_naive_loop(colours, levels):
    retina, random = asymmetric(colours), np.random.default_rng(3)
    steps = random.integers(0, INTENSITY_STEPS + 1, (2, colours, 5, 6))
    found = retina(torch.from_numpy(steps / INTENSITY_STEPS).float(), levels)
    expected = naive_contrast(retina, steps, levels)
    on, off = expected[:, :colours], expected[:, colours:]
    assert (on > 0).any()
    assert (off > 0).any()
    assert (expected == levels).any()
    assert ((expected > 0) & (expected < levels)).any()
    assert np.array_equal(found.numpy(), expected)
    # At most one of the two is active.
    assert not ((found[:, :colours] > 0) & (found[:, colours:] > 0)).any()


def test_a_bright_pixel_is_on_and_a_dark_one_off():
    retina = learn_retina(natural_images(30), DOG, seed=0)
    for light, dark, (active, silent) in ((200, 50, (slice(3), slice(3, 6))), (50, 200, (slice(3, 6), slice(3)))):
        image = torch.full((1, 3, 9, 9), dark, dtype=torch.uint8)
        image[..., 4, 4] = light
        contrast = retina.encode(image)
        assert (contrast[0, active, 4, 4] > 20).all()
        assert (contrast[0, silent, 4, 4] == 0).all()
        # Its surround has the other sign.
        assert (contrast[0, silent, 4, 6] > 0).all()


@pytest.mark.parametrize("colours", [1, 3])
def test_an_even_surface_has_no_contrast(colours):
    images = natural_images(30, colours)
    retina = learn_retina(images, DOG, seed=0)
    levels = torch.arange(256).reshape(-1, 1, 1, 1).expand(-1, colours, 7, 8).to(torch.uint8)
    assert not retina.encode(levels).any()
    assert not retina(levels / 255).any()
    # A whitening filter lets some of the brightness pass, but not of the mean colour: off by rounding of images alone.
    learned = learn_retina(images, WHITEN, seed=0)
    mean = images.double().mean((0, 2, 3)) * (INTENSITY_STEPS / LEVELS)
    response = learned.response(mean.float().reshape(1, -1, 1, 1).expand(1, colours, 7, 8))
    assert response.abs().max() < 0.5
    assert learned.encode(torch.full((1, colours, 7, 8), 255, dtype=torch.uint8)).min(1).values.max() == 0
    assert learned.encode(torch.full((1, colours, 7, 8), 255, dtype=torch.uint8)).max() > 100


def test_filters_of_independent_pixels_are_a_point():
    # Patches plus and minus 1 along every axis: their covariance is 2/(2 n - 1) times the identity.
    n, epsilon = 2 * 9, 0.05
    patches = torch.cat([torch.eye(n), -torch.eye(n)]).double().reshape(-1, 2, 3, 3)
    filters, variance = whitening(patches, epsilon)
    assert variance.numpy() == pytest.approx(np.full(n, 2 / (2 * n - 1)))
    expected = np.zeros((2, 2, 3, 3))
    expected[[0, 1], [0, 1], 1, 1] = (2 / (2 * n - 1) + epsilon) ** -0.5
    assert filters.numpy() == pytest.approx(expected, abs=1e-12)


def test_whitened_patches_have_the_covariance_of_the_closed_form():
    images, epsilon = natural_images(40), 0.01
    patches = sample_patches(images, WHITEN, seed=0)
    # With each patch comes its reflection, so that the mean over both filters changes nothing.
    patches = torch.cat([patches, patches.flip((2, 3))])
    filters, variance = whitening(patches, epsilon)
    flat = patches.flatten(1).numpy()
    covariance = np.cov(flat.T)
    assert variance.numpy() == pytest.approx(np.linalg.svd(covariance, compute_uv=False)[::-1], abs=1e-12)
    assert np.trace(covariance) == pytest.approx(variance.sum().item())
    answers = flat @ filters.flatten(1).numpy().T
    centre = np.arange(3) * 25 + 12
    # W C W for W = (C + epsilon)^(-1/2) is C (C + epsilon)^-1.
    expected = np.linalg.solve(covariance + epsilon * np.eye(len(covariance)), covariance)[np.ix_(centre, centre)]
    assert np.cov(answers.T) == pytest.approx(expected, abs=1e-9)
    # Made for noise, the filters are those times the Wiener filter C (C + noise)^-1.
    against_noise, _ = whitening(patches, epsilon, noise=0.02)
    wiener = np.linalg.solve(covariance + 0.02 * np.eye(len(covariance)), covariance)
    rows = (filters.flatten(1).numpy() @ wiener).reshape(filters.shape)
    np.testing.assert_allclose(against_noise, (rows + rows[..., ::-1, ::-1]) / 2, rtol=0, atol=1e-6)
    # A larger epsilon lets less detail pass: neighbours are taken off less.
    blurred, _ = whitening(patches, 100 * epsilon)
    share = [f[0, 0].sum() / f[0, 0].abs().sum() for f in (filters, blurred)]
    assert share[0] < share[1]


def test_patches_are_windows_of_the_images():
    # Each pixel names its image, row and column.
    image, y, x = np.indices((4, 8, 8))
    images = torch.from_numpy((image * 64 + y * 8 + x).astype(np.uint8)[:, None])
    p = replace(WHITEN, kernel_size=3, patches=4000)
    patches = (sample_patches(images, p, seed=5) * 255).round().long()
    corner = patches[:, 0, 0, 0]
    row, column = torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij")
    assert torch.equal(patches[:, 0], corner.reshape(-1, 1, 1) + row * 8 + column)
    # All 4 x 6 x 6 windows are as likely.
    _, counts = corner.unique(return_counts=True)
    assert len(counts) == 144
    assert counts.min() > 8
    assert not torch.equal(sample_patches(images, p, seed=6), sample_patches(images, p, seed=5))


def test_a_difference_of_gaussians_is_that_of_its_formula():
    p = replace(DOG, kernel_size=7, centre=0.7, surround=1.9)
    filters = difference_of_gaussians(2, p)
    y, x = np.indices((7, 7)) - 3
    centre, surround = (np.exp(-(x**2 + y**2) / (2 * sigma**2)) for sigma in (0.7, 1.9))
    expected = centre / centre.sum() - surround / surround.sum()
    assert filters[0, 0].numpy() == pytest.approx(expected)
    assert torch.equal(filters[0, 0], filters[1, 1])
    assert not filters[0, 1].any()
    assert not filters[1, 0].any()


@pytest.mark.parametrize("p", [WHITEN, DOG])
def test_filters_have_no_phase(p):
    retina = learn_retina(natural_images(40), p, seed=0)
    assert torch.equal(retina.filters, retina.filters.flip((2, 3)))
    assert retina.filters.abs().argmax() % 25 == 12


@pytest.mark.parametrize("quantile", [0.7, 0.95])
def test_the_quantile_of_contrast_becomes_one(quantile):
    images, p = natural_images(60), replace(WHITEN, quantile=quantile)
    retina = learn_retina(images, p, seed=0)
    steps = retina.response(images.float() * 4).abs()
    assert (steps > INTENSITY_STEPS).double().mean().item() == pytest.approx(1 - quantile, abs=2e-3)
    assert retina.history.clipped == pytest.approx(1 - quantile, abs=1e-4)
    contrast = retina(images / 255)
    assert contrast.max() == INTENSITY_STEPS
    assert (contrast == INTENSITY_STEPS).double().mean().item() == pytest.approx((1 - quantile) / 2, abs=2e-3)
    # Scales are in the unit of the filter before: twice the contrast is twice the scale.
    other = learn_retina(images, replace(p, quantile=1.0), seed=0)
    ratio = other.history.scale / retina.history.scale
    assert torch.allclose(other.filters * ratio, retina.filters, atol=2e-3 * retina.filters.max().item())
    assert other.history.clipped == 0


def test_mean_colour_is_that_of_all_images():
    # More images than are added at a time, the last few unlike the others.
    images = natural_images(2100, 1, size=3)
    images[2048:] = 255
    retina = learn_retina(images, replace(WHITEN, kernel_size=3), seed=0)
    mean = images.numpy().mean() / 255
    expected = -INTENSITY_STEPS * retina.filters.double().sum().item() * mean
    assert retina.offset.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("p", [WHITEN, DOG])
def test_contrast_is_the_same_in_every_batch_order_of_memory_and_order_of_sums(p, colours):
    images = natural_images(40, colours)
    retina = learn_retina(images, p, seed=0)
    values = images[:6] / 255
    expected = retina(values)
    assert torch.equal(torch.cat([retina(image[None]) for image in values]), expected)
    assert torch.equal(retina(values.contiguous(memory_format=torch.channels_last)), expected)
    # Every order of the sum, in single and in double precision, to the last bit.
    steps = torch.randint(INTENSITY_STEPS + 1, (50, colours, 5, 5), generator=torch.Generator().manual_seed(0)).float()
    terms = torch.cat([(steps[:, None] * retina.filters).flatten(2), retina.offset.expand(50, colours)[..., None]], 2)
    exact = terms.double().sum(2)
    for seed in range(20):
        order = torch.randperm(terms.shape[2], generator=torch.Generator().manual_seed(seed))
        total = torch.zeros(50, colours)
        for term in order:
            total += terms[..., term]
        assert torch.equal(total.double(), exact)
    assert torch.equal(retina.response(steps)[:, :, 2, 2].double(), exact)
    # No sum of the largest intensities leaves the range in which whole multiples are exact.
    grid = 2.0 ** np.floor(np.log2(np.abs(retina.filters.numpy()[retina.filters.numpy() != 0]).min()))
    while not np.array_equal(retina.filters.numpy() % grid, 0 * retina.filters.numpy()):
        grid /= 2
    assert INTENSITY_STEPS * retina.filters.abs().sum((1, 2, 3)).max() / grid < 2**24


def test_eight_bits_and_intensities_have_the_same_contrast():
    images = natural_images(40)
    retina = learn_retina(images, WHITEN, seed=0)
    encoded = retina.encode(images)
    assert encoded.dtype == torch.uint8
    assert encoded.shape == (40, 6, 12, 12)
    assert torch.equal(encoded.float(), retina(images / 255, LEVELS))
    # Levels are rounded from the finer steps, which hold four of each.
    fine = retina.response(images.float() * 4)
    expected = torch.cat([fine, -fine], 1).clamp(0, INTENSITY_STEPS).double() / 4
    assert torch.equal(encoded.double(), torch.round(expected))


def test_the_gradient_ignores_rounding():
    retina, generator = asymmetric(2), torch.Generator().manual_seed(1)
    images = torch.rand(2, 2, 6, 5, generator=generator).requires_grad_()
    outward = torch.rand(2, 4, 6, 5, generator=generator)
    contrast = retina(images)
    (contrast * outward).sum().backward()
    inside = (contrast > 0) & (contrast < INTENSITY_STEPS)
    assert inside.any()
    signed = (outward * inside)[:, :2] - (outward * inside)[:, 2:]
    expected = np.zeros(images.shape)
    for n, out, y, x in np.ndindex(2, 2, 6, 5):
        for own, ky, kx in np.ndindex(2, 3, 3):
            row, column = min(max(y + ky - 1, 0), 5), min(max(x + kx - 1, 0), 4)
            expected[n, own, row, column] += (signed[n, out, y, x] * retina.filters[out, own, ky, kx]).item()
    assert images.grad.numpy() == pytest.approx(INTENSITY_STEPS * expected, rel=1e-4, abs=1e-2)


def test_what_cannot_be_done_is_refused_in_one_line():
    images = natural_images(10, size=6)
    assert learn_retina(images, RetinaParameters(), seed=0) is None
    for p in (WHITEN, DOG):
        with pytest.raises(UserError, match=r"`kernel_size` 7: the images are only 6x6 pixels; give a smaller filter"):
            learn_retina(images, replace(p, kernel_size=7), seed=0)
        with pytest.raises(UserError, match="no contrast"):
            learn_retina(torch.full((10, 3, 8, 8), 77, dtype=torch.uint8), p, seed=0)
    with pytest.raises(UserError, match="uint8"):
        asymmetric(3).encode(images / 255)
    for wrong, words in (
        ({"kernel_size": 4}, "odd"),
        ({"kernel_size": 1}, "`kernel_size` 1: expected 3 to 255 pixels"),
        ({"epsilon": 0.0}, "`epsilon` 0.0: expected above 0"),
        ({"epsilon": float("inf")}, "`epsilon` inf"),
        ({"noise": float("inf")}, "`noise` inf"),
        ({"surround": float("inf")}, "`surround` inf"),
        ({"kind": "whitn"}, "`retina` whitn: unknown; choose from none, whiten, dog"),
        ({"patches": 10}, "`patches` 10: expected 1000 to"),
        ({"centre": 2.0, "surround": 1.0}, "centre < surround"),
        ({"quantile": 0.0}, "`quantile` 0.0: expected above 0 to 1"),
    ):
        with pytest.raises(UserError, match=words):
            RetinaParameters(**{"kind": "whiten"} | wrong)
    with pytest.raises(UserError, match="`feed_forward` frozn: unknown; choose from none, learning, frozen, both"):
        Inhibition("frozn")


def test_a_retina_does_not_depend_on_the_number_of_threads():
    images, before, retinas = natural_images(200), torch.get_num_threads(), []
    p = replace(WHITEN, patches=20_000)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            retinas.append(learn_retina(images, p, seed=0))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    one, other = retinas
    assert torch.equal(one.filters, other.filters)
    assert torch.equal(one.offset, other.offset)
    assert one.history.scale == other.history.scale
    assert torch.equal(one.history.variance, other.history.variance)


SETTINGS = Learning(
    maps=(3, 4), min_updates=5, batch_size=8, retina=replace(WHITEN, kernel_size=3), inhibition=Inhibition("both")
)
"""Two small layers that learn from contrast."""


@pytest.fixture(scope="module")
def images():
    return natural_images(20, size=8)


@pytest.fixture(scope="module")
def learned(images):
    return learn(images, SETTINGS)


def test_layers_learn_from_contrast(images, learned):
    assert learned.layers[0].layer.conductance.shape == (3, 6, 3, 3)
    expected = learn_retina(images, SETTINGS.retina, seed=0)
    assert torch.equal(learned.retina.filters, expected.filters)
    # Without the retina, the same images encoded by hand give the same layers.
    plain = learn(expected.encode(images), replace(SETTINGS, retina=RetinaParameters()))
    for ours, theirs in zip(learned.layers, plain.layers, strict=True):
        assert torch.equal(ours.layer.conductance, theirs.layer.conductance)
        assert torch.equal(ours.layer.gain, theirs.layer.gain)


def test_a_stored_retina_is_the_same(learned, tmp_path):
    path = tmp_path / "snn.h5"
    digest = save(learned, path)
    network, _, stored_digest = load_network(path)
    assert stored_digest == digest
    for name in ("filters", "offset"):
        assert torch.equal(getattr(network.retina, name), getattr(learned.retina, name))
    assert network.retina.history.scale == learned.retina.history.scale
    assert network.retina.history.clipped == learned.retina.history.clipped
    assert torch.equal(network.retina.history.variance, learned.retina.history.variance)
    assert network.learning == learned.learning
    assert all(part.layer.geometry.feed_forward_inhibition for part in network.layers)
    assert save(network, tmp_path / "again.h5") == digest
    with h5py.File(path) as file:
        assert file.attrs["schema"] == "snn/3"
        assert file["retina"].attrs["filters_unit"] == "contrast per intensity (C_out, C_in, k, k)"
    # Filters are part of what the digest stands for.
    turned = Retina(learned.retina.filters.mT.contiguous(), learned.retina.offset, learned.retina.history)
    assert save(replace(learned, retina=turned), tmp_path / "turned.h5") != digest
    with h5py.File(path, "a") as file:
        file["retina/filters"][0, 0, 0, 0] += 1
    with pytest.raises(UserError, match="digest"):
        load_network(path)


def test_interrupted_learning_goes_on_to_the_same_bits(images, learned, tmp_path):
    expected, seen = save(learned, tmp_path / "all.h5"), []
    learn(images, SETTINGS, save=seen.append)
    # In the first layer, and in the second.
    assert len(seen) > 10
    for number in (1, len(seen) - 3):
        assert not seen[number].complete
        save(seen[number], tmp_path / "part.h5")
        rest = learn(images, SETTINGS, resume=load_network(tmp_path / "part.h5").network)
        assert save(rest, tmp_path / "rest.h5") == expected


def test_engines_learn_the_same_bits(images, learned, tmp_path):
    other = learn(images, SETTINGS, engine="norse")
    assert save(other, tmp_path / "norse.h5") == save(learned, tmp_path / "events.h5")


FLAGS = ["--data", "digits", "--limit-train", "29", "--maps", "4", "5", "--batch-size", "7", "--min-updates", "5",
         "--retina", "whiten", "--retina.kernel-size", "5", "--retina.patches", "2000", "--inhibition.feed-forward",
         "both", "--device", "cpu", "--no-figures"]  # fmt: skip


# The last mini-batch of a pass holds one image: of two processes one has none.
@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    assert main([*FLAGS, "--out", str(tmp_path / "one.h5")]) == 0
    command = [sys.executable, "-m", "snn.learn", *FLAGS, "--out", str(tmp_path / "two.h5"), "--devices", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    one, two = (load_network(tmp_path / f"{name}.h5") for name in ("one", "two"))
    assert one.network.retina.filters.shape == (1, 1, 5, 5)
    assert one.digest == two.digest


def test_a_filter_that_the_images_cannot_hold_ends_the_command_in_one_line(tmp_path, capsys):
    flags = [*FLAGS, "--retina.kernel-size", "9", "--out", str(tmp_path / "snn.h5")]
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "--retina.kernel-size 9" in error
    assert not (tmp_path / "snn.h5").exists()
