import contextlib
import io
import sys
import tracemalloc
import types
from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binom
from sklearn.datasets import load_sample_images

from hybrid.conditions import Condition, corruptions
from hybrid.conditions.corruptions import CORRUPTIONS, corrupt, load_corrupted
from hybrid.evaluation import evaluate
from snn.data import Images
from snn.runtime.errors import UserError

PER_SEVERITY = 40
DRAW_NOTHING = {"defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"}


def write(folder, name="fog", pixels=None, labels=None):
    """Files as published, with fewer images; the first channel value of each image is its number."""
    if pixels is None:
        pixels = np.random.default_rng(0).integers(0, 256, (5 * PER_SEVERITY, 32, 32, 3), dtype=np.uint8)
        pixels[:, 0, 0, 0] = np.arange(5 * PER_SEVERITY)
    if labels is None:
        labels = np.tile(np.arange(PER_SEVERITY) % 10, 5).astype(np.uint8)
    np.save(folder / f"{name}.npy", pixels)
    np.save(folder / "labels.npy", labels)
    return pixels, labels


def refused(*parts, folder, name="fog", severity=1, limit=None):
    with pytest.raises(UserError) as caught:
        load_corrupted(folder, name, severity, limit)
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_names_are_the_published_ones():
    assert len(set(CORRUPTIONS)) == 15
    library = pytest.importorskip("imagecorruptions")
    assert list(CORRUPTIONS) == library.get_corruption_names()


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_a_severity_is_its_fifth_of_the_file(tmp_path, severity):
    labels = np.random.default_rng(1).integers(0, 10, 5 * PER_SEVERITY)
    pixels, _ = write(tmp_path, labels=labels)
    data = load_corrupted(tmp_path, "fog", severity)
    first = (severity - 1) * PER_SEVERITY
    assert data.images.dtype == torch.uint8
    assert data.images.shape == (PER_SEVERITY, 3, 32, 32)
    for number in (0, 7, PER_SEVERITY - 1):
        for channel in range(3):
            expected = pixels[first + number, :, :, channel].tolist()
            assert data.images[number, channel].tolist() == expected
    assert data.labels.dtype == torch.int64
    assert data.labels.tolist() == labels[first : first + PER_SEVERITY].tolist()
    assert list(data.classes) == sorted(data.classes)
    assert len(data.classes) == 10


def test_limit_takes_classes_evenly_and_the_same_images_everywhere(tmp_path):
    for name in ("fog", "snow"):
        write(tmp_path, name)

    def numbers(name, severity, seed=3):
        data = load_corrupted(tmp_path, name, severity, limit=20, seed=seed)
        assert torch.bincount(data.labels).tolist() == [2] * 10
        numbers = data.images[:, 0, 0, 0].long() - (severity - 1) * PER_SEVERITY
        assert torch.equal(numbers % 10, data.labels)
        return numbers.tolist()

    assert numbers("fog", 1) == numbers("fog", 5) == numbers("snow", 2)
    assert numbers("fog", 1) != numbers("fog", 1, seed=4)
    assert len(load_corrupted(tmp_path, "fog", 1, limit=1000).labels) == PER_SEVERITY


def test_only_the_wanted_images_are_read(tmp_path):
    # At full size, without taking the space: what is not written of this file is a hole that reads as zeros.
    pixels = np.lib.format.open_memmap(tmp_path / "snow.npy", "w+", np.uint8, (50000, 32, 32, 3))
    pixels[40000:] = 9
    pixels.flush()
    np.save(tmp_path / "labels.npy", np.tile(np.arange(10000) % 10, 5).astype(np.uint8))
    tracemalloc.start()
    data = load_corrupted(tmp_path, "snow", 5, limit=100)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert data.images.unique().tolist() == [9]
    assert data.images.shape == (100, 3, 32, 32)
    assert peak < 4e6


def test_missing_files(tmp_path):
    refused("nowhere", "no such folder", "zenodo", folder=tmp_path / "nowhere")
    refused("fog.npy", "no such file", folder=tmp_path)
    write(tmp_path)
    refused("snow.npy", "no such file", folder=tmp_path, name="snow")
    (tmp_path / "frost.npy").mkdir()
    refused("frost.npy", "no such file", folder=tmp_path, name="frost")
    (tmp_path / "labels.npy").unlink()
    refused("labels.npy", "no such file", folder=tmp_path)


def test_what_was_asked_for_is_checked(tmp_path):
    write(tmp_path)
    refused("'mist'", "unknown", "jpeg_compression", folder=tmp_path, name="mist")
    for severity in (0, 6, -1, 2.0):
        refused(f"severity {severity}", "1 to 5", folder=tmp_path, severity=severity)
    refused("limit 0", "1 or more", folder=tmp_path, limit=0)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((40, 32, 32, 3), np.float32),
        ((42, 32, 32, 3), np.uint8),
        ((0, 32, 32, 3), np.uint8),
        ((40, 3, 32, 32), np.uint8),
        ((40, 64, 64, 3), np.uint8),
        ((40, 32, 32), np.uint8),
        ((), np.uint8),
    ],
)
def test_other_images_are_refused(tmp_path, shape, dtype):
    write(tmp_path, pixels=np.zeros(shape, dtype), labels=np.zeros(shape[:1], np.uint8))
    refused("fog.npy", np.dtype(dtype).name, str(shape), "expected uint8", folder=tmp_path)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.zeros(199, np.uint8), "(199,)"),
        (np.zeros((200, 1), np.uint8), "(200, 1)"),
        (np.zeros(200), "float64"),
        (np.arange(200, dtype=np.int64) % 100, "0 to 99"),
        (np.arange(200, dtype=np.int64) % 10 - 1, "-1 to 8"),
    ],
)
def test_other_labels_are_refused(tmp_path, labels, found):
    write(tmp_path, labels=labels)
    refused("labels.npy", found, "expected", folder=tmp_path)


@pytest.mark.parametrize("content", [b"", b"no array", b"PK\x03\x04 no archive", b"\x93NUMPY", b"\x80\x04N."])
def test_unreadable_files_are_refused(tmp_path, content):
    write(tmp_path)
    (tmp_path / "fog.npy").write_bytes(content)
    refused("fog.npy", "not a readable .npy file", folder=tmp_path)


def test_cut_and_packed_files_are_refused(tmp_path):
    pixels, _ = write(tmp_path)
    whole = (tmp_path / "fog.npy").read_bytes()
    (tmp_path / "fog.npy").write_bytes(whole[:-1])
    refused("fog.npy", "not a readable .npy file", folder=tmp_path)
    with open(tmp_path / "fog.npy", "wb") as file:
        np.savez(file, pixels)
    refused("fog.npy", "archive", folder=tmp_path)


def test_no_code_in_a_file_runs(tmp_path):
    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "trapped"), "w")

    write(tmp_path)
    np.save(tmp_path / "fog.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    refused("fog.npy", "not a readable .npy file", folder=tmp_path)
    assert not (tmp_path / "trapped").exists()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 127), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_headers_are_refused_or_harmless(tmp_path, changes):
    write(tmp_path, pixels=np.zeros((10, 32, 32, 3), np.uint8), labels=np.zeros(10, np.uint8))
    content = bytearray((tmp_path / "fog.npy").read_bytes())
    for place, value in changes:
        content[place] = value
    (tmp_path / "fog.npy").write_bytes(content)
    with contextlib.suppress(UserError):
        assert load_corrupted(tmp_path, "fog", 1).images.shape == (2, 3, 32, 32)


@pytest.fixture(scope="module")
def photos():
    """Parts of scikit-learn's two photographs, uint8 (24, 3, 32, 32)."""
    pytest.importorskip("imagecorruptions")
    parts = []
    for photo in load_sample_images().images:
        for row in range(3):
            for column in range(4):
                part = Image.fromarray(photo[140 * row : 140 * row + 128, 150 * column : 150 * column + 128])
                parts.append(np.asarray(part.resize((32, 32), Image.Resampling.BOX)))
    return torch.from_numpy(np.stack(parts)).permute(0, 3, 1, 2)


def grey(value, count=20):
    pytest.importorskip("imagecorruptions")
    return torch.full((count, 3, 32, 32), value, dtype=torch.uint8)


def test_results_depend_on_seed_and_place_alone(photos):
    for name in CORRUPTIONS:
        results = corrupt(photos, name, 3, seed=5)
        assert results.shape == photos.shape
        assert results.dtype == torch.uint8
        assert results.is_contiguous()
        assert (results != photos).flatten(1).any(1).all(), name
        assert torch.equal(corrupt(photos[:3], name, 3, seed=5), results[:3]), name
        other = corrupt(photos[:3], name, 3, seed=6)
        assert torch.equal(other, results[:3]) == (name in DRAW_NOTHING), name
        # Two equal images get different draws.
        twins = corrupt(photos[:1].expand(2, -1, -1, -1), name, 3, seed=5)
        assert torch.equal(twins[0], twins[1]) == (name in DRAW_NOTHING), name


def test_conditions_know_which_corruptions_draw():
    drawn = {name for name in CORRUPTIONS if Condition.parse(f"corruption:{name},3").draws}
    assert drawn == set(CORRUPTIONS) - DRAW_NOTHING
    assert not any(Condition.parse(f"cifar10-c:{name},3").draws for name in CORRUPTIONS)


def test_repeats_repeat_only_corruptions_that_draw(photos):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 10))
    data = Images(photos, torch.arange(len(photos)) % 10, tuple("0123456789"))
    rows = evaluate(network, data, ["corruption:contrast,1", "corruption:snow,1"], repeats=3, seed=4)
    seeds = {name: [row["noise_seed"] for row in rows if name in row["condition"]] for name in ("contrast", "snow")}
    assert seeds == {"contrast": [4, 4], "snow": [4, 4, 5, 5, 6, 6]}
    # The accuracy is that of the images that the function above makes.
    with torch.no_grad():
        logits = network(corrupt(photos, "snow", 1, seed=5).float() / 255)
    assert rows[4]["correct"] == (logits.argmax(1) == data.labels).sum().item()


def test_larger_and_oblong_images(photos):
    large = torch.nn.functional.interpolate(photos[:1], (64, 48))
    for name in CORRUPTIONS:
        assert corrupt(large, name, 5, seed=0).shape == (1, 3, 64, 48)
    assert corrupt(photos[:0], "snow", 5, seed=0).shape == (0, 3, 32, 32)


def test_global_random_states_stay(photos, monkeypatch):
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected, expected_torch = np.random.random(4).tolist(), torch.rand(4).tolist()  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    for name in CORRUPTIONS:
        corrupt(photos[:2], name, 1, seed=0)

    def fail(*args, **kwargs):
        np.random.random(9)  # noqa: NPY002
        raise RuntimeError

    monkeypatch.setattr("imagecorruptions.corrupt", fail)
    with pytest.raises(RuntimeError):
        corrupt(photos[:2], "snow", 1, seed=0)
    assert np.random.random(4).tolist() == expected  # noqa: NPY002
    assert torch.rand(4).tolist() == expected_torch


def test_a_higher_severity_changes_more(photos):
    for name in sorted(set(CORRUPTIONS) - {"glass_blur", "frost"}):
        errors = [(corrupt(photos, name, s, seed=0).double() - photos).square().mean().item() for s in range(1, 6)]
        assert errors == sorted(errors), f"{name}: {errors}"
        assert errors[4] > 1.2 * errors[0]


def test_blurs_take_detail_away(photos):
    def detail(images):
        return images.double().diff(dim=2).square().mean() + images.double().diff(dim=3).square().mean()

    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"):
        assert detail(corrupt(photos, name, 3, seed=0)) < 0.7 * detail(photos), name


@pytest.mark.parametrize(
    ("severity", "sigma", "peak", "share"), [(1, 0.08, 60, 0.03), (3, 0.18, 12, 0.09), (5, 0.38, 3, 0.27)]
)
def test_noises_have_imagenet_cs_levels(severity, sigma, peak, share):
    # Results are rounded down, which takes half a grey level of the mean and next to nothing of the spread.
    clean = grey(128)
    noisy = corrupt(clean, "gaussian_noise", severity, seed=0).double() / 255
    # Half the spread lies within 0.6745 standard deviations, which clipping does not reach.
    quartiles = torch.tensor([0.25, 0.75], dtype=torch.float64)
    low, high = torch.quantile(noisy.flatten(), quartiles).tolist()
    assert (high - low) / (2 * 0.6745) == pytest.approx(sigma, rel=0.04)
    # A Poisson count of mean 0.5 peak, over the peak; below the white level where clipping is rare.
    dark = corrupt(grey(26), "shot_noise", severity, seed=0).double() / 255
    assert dark.mean().item() == pytest.approx(26 / 255, abs=0.006)
    assert dark.var().item() == pytest.approx(26 / 255 / peak, rel=0.1)
    changed = (corrupt(clean, "impulse_noise", severity, seed=0) != clean).sum().item()
    least, most = binom.interval(1 - 1e-7, clean.numel(), share)
    assert least <= changed <= most


@pytest.mark.parametrize("severity", [1, 2, 3, 4, 5])
def test_corruptions_with_a_closed_form(photos, severity):
    brighter = corrupt(grey(100, 2), "brightness", severity, seed=0)
    assert (brighter.double() - (100 + 25.5 * severity)).abs().max() <= 1
    factor = [0.4, 0.3, 0.2, 0.1, 0.05][severity - 1]
    means = photos.double().mean((2, 3), keepdim=True)
    expected = means + factor * (photos - means)
    assert (corrupt(photos, "contrast", severity, seed=0).double() - expected).abs().max() <= 1
    compressed = corrupt(photos[:2], "jpeg_compression", severity, seed=0)
    for photo, result in zip(photos[:2], compressed, strict=True):
        file = io.BytesIO()
        Image.fromarray(photo.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=[25, 18, 15, 10, 7][severity - 1])
        assert np.array_equal(np.asarray(Image.open(file)), result.permute(1, 2, 0).numpy())
    snowy = corrupt(photos, "snow", severity, seed=0).double()
    assert (snowy >= photos.double() - 1).all()


def test_other_requests_are_refused():
    good = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    for images in (good[:, :1], good[..., :31], good[0], good.float(), good.expand(1, 3, 32, 32)[:, :, :8, :8]):
        with pytest.raises(UserError, match="expected uint8 RGB") as caught:
            corrupt(images, "fog", 1, seed=0)
        assert str(tuple(images.shape)) in str(caught.value)
    with pytest.raises(UserError, match="'mist': unknown"):
        corrupt(good, "mist", 1, seed=0)
    with pytest.raises(UserError, match="severity 6"):
        corrupt(good, "fog", 6, seed=0)


def test_a_missing_library_is_named_with_its_remedy(monkeypatch, tmp_path):
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(UserError, match=r"pip install 'safe-dnn\[corruptions\]'"):
        corrupt(images, "fog", 1, seed=0)

    def not_installed(name):
        raise PackageNotFoundError(name)

    # Another package of the same module.
    monkeypatch.setitem(sys.modules, "imagecorruptions", types.ModuleType("imagecorruptions"))
    monkeypatch.setattr(corruptions, "version", not_installed)
    with pytest.raises(UserError, match=r"imagecorruptions-imaug.*pip install 'safe-dnn\[corruptions\]'"):
        corrupt(images, "fog", 1, seed=0)
    monkeypatch.delitem(sys.modules, "imagecorruptions")
    (tmp_path / "imagecorruptions.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"libGL\.so\.1.*opencv-python-headless"):
        corrupt(images, "fog", 1, seed=0)
