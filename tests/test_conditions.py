"""Perturbations: their distributions, their text, their seeds, and how a user adds one."""

import csv
import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from scipy.stats import binom, invgauss, kstest, poisson

from hybrid.architecture import Architecture
from hybrid.conditions import Condition, Noise, register_condition
from hybrid.conditions.drawn import awgn_sigma, inverse_gaussian
from hybrid.evaluate import main
from hybrid.evaluation import evaluate, summarise
from hybrid.preprocess import Preprocess
from hybrid.recipe import Recipe
from hybrid.storage import load_model, save_model
from hybrid.train import main as train_main
from hybrid.training import train
from snn.data import load_images
from snn.data_source import DataSource
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
        torch.cat(list(Noise.parse(text).batches(digits, seed)))
        for text, seed in (("awgn:20", 0), ("awgn:20.0", 0), ("awgn:20", 1), ("awgn:21", 0))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other_seed)
    noise = [(noisy - digits / 255).flatten() for noisy in (first, other_level)]
    assert torch.corrcoef(torch.stack(noise))[0, 1].abs() < 0.1


@pytest.mark.parametrize(
    ("text", "key"),
    [("clean", "clean()"), ("awgn:20", "awgn(20.0,)"), ("wald:3,0.3", "wald(3.0, 0.3)"), ("fgsm:8", "fgsm(8.0,)"),
     ("corruption:fog,3", "corruptionfog(3.0,)"), ("cifar10-c:snow,5", "cifar10-csnow(5.0,)")],
)  # fmt: skip
def test_keys_stay_as_they_were_so_that_noise_does(text, key):
    assert Condition.parse(text).key == key
    assert str(Condition.parse(text)) == text


def test_noise_is_drawn_from_the_seed_and_the_key_in_chunks_of_256():
    digits = torch.randint(0, 256, (260, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (word,) = np.random.SeedSequence([7, *b"salt-pepper(0.3,)"]).generate_state(1, np.uint64)
    generator = torch.Generator().manual_seed(int(word) >> 1)
    for batch, start, count in zip(Noise.parse("salt-pepper:0.3").batches(digits, 7), (0, 256), (256, 4), strict=True):
        draw = torch.rand((count, 1, 8, 8), generator=generator)
        expected = torch.where(draw < 0.15, 1.0, torch.where(draw < 0.3, 0.0, digits[start : start + count] / 255))
        assert torch.equal(batch, expected)


def test_conditions_know_what_they_are():
    texts = ["clean", "awgn:20", "salt-pepper:0.1", "poisson:75", "wald:3,0.3", "fgsm:8"]
    conditions = {text: Condition.parse(text) for text in texts}
    assert [text for text, condition in conditions.items() if condition.draws] == texts[1:5]
    assert [text for text, condition in conditions.items() if condition.needs_attack_model] == ["fgsm:8"]
    assert {text: c.snr for text, c in conditions.items() if c.snr is not None} == {"awgn:20": 20.0}
    assert all(isinstance(conditions[text], Noise) for text in texts[:5])
    with pytest.raises(UserError, match="`train_noise` fgsm:8: 'fgsm' cannot be used here; choose from clean, awgn"):
        Noise.parse("fgsm:8", "train_noise")
    with pytest.raises(UserError, match="perturbation 'awgn' is registered already"):
        register_condition("awgn")(type(conditions["clean"]))


PLUGIN = """
from hybrid.conditions import Noise, register_condition

@register_condition("darken")
class Darker(Noise):
    form, meaning, ranges = "SHARE", "a share of the intensity from 0 to 1", ((0, 1),)

    def add(self, images, generator):
        return images * (1 - self.levels[0])
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """A user's file."""
    path = tmp_path_factory.mktemp("plugin") / "my_noise.py"
    path.write_text(PLUGIN)
    return str(path)


def test_a_users_own_file_adds_a_perturbation(pipeline, plugin, tmp_path, capsys):
    results, trained = tmp_path / "r.csv", tmp_path / "x.h5"
    measure = [str(pipeline.safe), "--no-figures", "--out", str(results), "--limit-test", "100", "--plugin", plugin]
    assert main([*measure, "--noise", "clean", "darken:0", "darken:1"]) == 0
    with open(results) as file:
        rows = [r for r in csv.DictReader(file) if (r["metric"], r["paths"]) == ("top1", "both")]
    correct = {row["condition"]: int(row["correct"]) for row in rows}
    assert correct["darken:0"] == correct["clean"]
    # All images are black, and so of one class for the network: that of 10 images.
    assert correct["darken:1"] == 10
    training = ["--variant", "baseline", "--limit-train", "100", "--width", "0.1", "--epochs", "1", "--no-figures"]
    training += ["--batch-size", "16", "--train-noise", "darken:0.5", "--out", str(trained), "--plugin", plugin]
    assert train_main(training) == 0
    assert load_model(trained).recipe["train_noise"] == "darken:0.5"
    capsys.readouterr()
    assert main([*measure, "--noise", "darken:2"]) == 2
    expected = "--noise darken:2: level out of range; expected darken:SHARE with a share of the intensity"
    assert expected in capsys.readouterr().err
    assert main([*measure, "--noise", "brighten:2"]) == 2
    assert "cifar10-c, darken, or add one with --plugin" in capsys.readouterr().err


def test_help_lists_what_a_users_own_file_adds(plugin):
    command = [sys.executable, "-m", "hybrid.train", "--help", "--plugin", plugin]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "wald:MEAN,SCALE|darken:SHARE}" in "".join(text.replace("│", "").split())


def test_perturbations_are_stored_as_they_are_written(tmp_path):
    noise, preprocess = Noise.parse("wald:3,0.30"), Preprocess("average:2+quantise")
    data = load_images(DataSource(limit_train=60), "train", seed=0)
    architecture = Architecture(variant="baseline", width=0.1, preprocess=preprocess)
    trained = train(data, architecture, Recipe(epochs=1, batch_size=16, train_noise=noise))
    save_model(tmp_path / "x.h5", trained, "test", "")
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["recipe"].attrs["train_noise"] == "wald:3,0.30"
        assert file["config/architecture"].attrs["preprocess"] == "average:2+quantise"
        assert file["config/architecture"].attrs["auxiliary_input"] == "none"
    loaded = load_model(tmp_path / "x.h5")
    assert loaded.spec.architecture == architecture
    assert Recipe.from_tree(loaded.recipe).train_noise == noise


def test_one_call_measures_files_models_and_modules(pipeline, models, digits, tmp_path):
    class First(torch.nn.Module):
        """Always class 0; it has no description."""

        def forward(self, images):
            return torch.eye(10)[:1].expand(len(images), -1)

    files = [str(pipeline.safe), pipeline.baseline]
    rows = evaluate([*files, First()], digits, ["clean", Noise.parse("awgn:20")])
    assert list(dict.fromkeys(row["model"] for row in rows)) == ["safe", "baseline", "First"]
    loaded = evaluate(models, digits, ["clean", "awgn:20"])
    assert loaded == [row for row in rows if row["model"] != "First"]
    plain = [row for row in rows if row["model"] == "First"]
    assert [(row["metric"], row["correct"]) for row in plain[:1]] == [("top1", (digits.labels == 0).sum().item())]
    assert {plain[0][name] for name in ("variant", "backbone", "train_noise", "training_seed", "model_digest")} == {""}
    (alone,) = summarise(evaluate(models["safe"], digits, ["clean"]), "top1", "both")
    assert alone["model"] == "safe mobilenet_v2"
    assert alone["correct"] == loaded[0]["correct"]
    out = tmp_path / "r.csv"
    arguments = [*map(str, files), "--noise", "clean", "awgn:20", "--limit-test", "60", "--no-figures"]
    assert main([*arguments, "--out", str(out)]) == 0
    with open(out) as file:
        assert list(csv.DictReader(file)) == [{name: str(value) for name, value in row.items()} for row in loaded]
    with pytest.raises(UserError, match="`conditions` awgn: level out of range"):
        evaluate(models, digits, ["awgn"])
    with pytest.raises(UserError, match="only models of one data set"):
        evaluate(models, digits._replace(classes=tuple("abcdefghij")))
