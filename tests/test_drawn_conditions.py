import numpy as np
import pytest
import torch
from scipy.stats import binom, invgauss, kstest, poisson

from hybrid.conditions import Condition, Noise
from hybrid.conditions.drawn import awgn_sigma, inverse_gaussian
from snn.runtime.errors import UserError


def images(count, low=0.3, high=0.7, seed=0):
    """Intensities far enough from 0 and 1 that clipping changes nothing at the levels used here."""
    generator = torch.Generator().manual_seed(seed)
    return low + (high - low) * torch.rand(count, 3, 32, 32, generator=generator)


def perturb(text, clean, seed=1):
    return Noise.parse(text).apply(clean, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("decibel", [40, 30, 20, 17])
def test_measured_snr_is_the_stated_one(decibel):
    clean = images(1000)
    noise = (perturb(f"awgn:{decibel}", clean) - clean).double()
    power, noise_power = clean.double().square().mean((1, 2, 3)), noise.square().mean((1, 2, 3))
    measured = 10 * torch.log10(power / noise_power)
    assert measured.mean().item() == pytest.approx(decibel, abs=0.1)
    assert measured.std() < 0.2


def test_sigma_follows_each_image():
    clean = torch.stack((torch.full((3, 4, 4), 0.5), torch.full((3, 4, 4), 0.1)))
    assert awgn_sigma(clean, 20).flatten().tolist() == pytest.approx([0.05, 0.01])


def test_salt_and_pepper_hits_whole_pixels_half_white_half_black():
    clean = images(100)
    noisy = perturb("salt-pepper:0.2", clean)
    changed = noisy != clean
    assert (changed.any(1) == changed.all(1)).all()
    pixels = changed.any(1).numel()
    for count, share in (
        (changed.any(1).sum(), 0.2),
        ((noisy == 1).all(1).sum(), 0.1),
        ((noisy == 0).all(1).sum(), 0.1),
    ):
        low, high = binom.interval(1 - 1e-7, pixels, share)
        assert low <= count.item() <= high
    assert torch.equal(perturb("salt-pepper:0", clean), clean)
    assert set(perturb("salt-pepper:1", clean).unique().tolist()) == {0.0, 1.0}


def test_poisson_noise_has_the_distribution():
    clean = torch.full((1, 1, 200, 200), 0.4)
    counts = (perturb("poisson:75", clean) * 75).round().flatten().numpy()
    values = np.arange(15, 46)
    assert np.abs(np.array([(counts <= v).mean() for v in values]) - poisson.cdf(values, 30)).max() < 0.01


def test_wald_noise_has_the_distribution_in_8_bit_units():
    clean = torch.full((1, 1, 100, 100), 0.1, dtype=torch.float64)
    added = (perturb("wald:13,1", clean) - clean).flatten() * 255
    # Inverse Gaussian with mean m and scale s; values beyond the clip are compared as one.
    inside = added[added < 200].numpy()
    law = invgauss(13.0, scale=1.0)
    assert kstest(law.cdf(inside) / law.cdf(200), "uniform").pvalue > 1e-3
    assert added.min() > 0


@pytest.mark.parametrize(("mean", "scale"), [(3, 0.3), (13, 1), (5, 0.3), (25, 1), (1, 50)])
def test_inverse_gaussian_draws_have_scipys_law(mean, scale):
    # SciPy writes the law with mean m and shape s as invgauss(m / s, scale=s).
    values = inverse_gaussian((20_000,), mean, scale, torch.Generator().manual_seed(0)).numpy()
    assert kstest(values, invgauss(mean / scale, scale=scale).cdf).pvalue > 1e-3
    deviation = (mean**3 / scale / len(values)) ** 0.5
    assert abs(values.mean() - mean) < 5 * deviation


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("text", ["clean", "awgn:20", "salt-pepper:0.2", "poisson:75", "wald:13,1"])
def test_noise_keeps_the_type_and_hits_every_image_of_a_batch(text, dtype):
    clean = images(3).to(dtype)
    noisy = perturb(text, clean)
    assert noisy.dtype == dtype
    assert noisy.shape == clean.shape
    if text != "clean":
        # Equal images get different noise, and one image is a batch, too.
        assert perturb(text, clean[:1]).shape == (1, 3, 32, 32)
        same = perturb(text, clean[:1].expand(2, -1, -1, -1).contiguous())
        assert not torch.equal(same[0], same[1])
        assert (noisy != clean).flatten(1).any(1).all()


@pytest.mark.parametrize("text", ["clean", "awgn:5", "salt-pepper:0.3", "poisson:45", "wald:25,1"])
def test_noise_is_clipped_seeded_and_leaves_its_input_alone(text):
    clean = images(20, 0, 1)
    before = clean.clone()
    noisy = perturb(text, clean)
    assert noisy.min() >= 0
    assert noisy.max() <= 1
    assert noisy.shape == clean.shape
    assert torch.equal(noisy, perturb(text, clean))
    assert torch.equal(clean, before)
    assert torch.equal(noisy, clean) == (text == "clean")
    if text != "clean":
        assert not torch.equal(noisy, perturb(text, clean, seed=2))


@pytest.mark.parametrize(
    "text",
    ["gauss:3", "awgn", "awgn:x", "awgn:nan", "awgn:1000", "awgn:20,3", "salt-pepper:1.5", "salt-pepper:-0.1",
     "poisson:0", "wald:3", "wald:0,1", "clean:1", "clean:", "awgn:", ""],
)  # fmt: skip
def test_unknown_noise_and_levels_out_of_range_are_refused(text):
    with pytest.raises(UserError, match="`noise`"):
        Condition.parse(text)


def test_all_models_see_the_same_noise_however_a_condition_is_spelled():
    digits = torch.randint(0, 256, (300, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    first, again, other_seed, other_level = (
        torch.cat(Noise.parse(text).batches(digits, seed))
        for text, seed in (("awgn:20", 0), ("awgn:20.0", 0), ("awgn:20", 1), ("awgn:21", 0))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other_seed)
    noise = [(noisy - digits / 255).flatten() for noisy in (first, other_level)]
    assert torch.corrcoef(torch.stack(noise))[0, 1].abs() < 0.1
