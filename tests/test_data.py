import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits

from snn.data import balanced_subset, load_images
from snn.data_source import DataSource
from snn.runtime.errors import UserError


def test_digits_are_the_bundled_images_split_once():
    train, test = (load_images(DataSource(), split, seed=0) for split in ("train", "test"))
    assert train.images.shape == (1197, 1, 8, 8)
    assert test.images.shape == (600, 1, 8, 8)
    together = torch.cat((train.images, test.images)).flatten(1)
    scaled = np.rint(load_digits().data * 255 / 16).astype(np.uint8)
    assert sorted(map(bytes, together.numpy())) == sorted(map(bytes, scaled))
    again = load_images(DataSource(), "test", seed=99)
    assert torch.equal(again.images, test.images)


@given(st.lists(st.integers(1, 30), min_size=2, max_size=6), st.data())
def test_limits_take_classes_evenly(sizes, data):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    limit = data.draw(st.integers(1, len(labels)))
    chosen = balanced_subset(labels, limit, seed=data.draw(st.integers(0, 1000)))
    assert len(set(chosen)) == len(chosen) == limit
    taken = np.bincount(labels[chosen], minlength=len(sizes))
    # No class has two more than another, unless that other one is used up.
    assert all(count == size or count >= taken.max() - 1 for count, size in zip(taken, sizes, strict=True))


def test_limit_depends_on_the_seed_only():
    source = DataSource(limit_train=50)
    first, again, other = (load_images(source, "train", seed) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)
    assert torch.bincount(first.labels).tolist() == [5] * 10


def test_folder_of_images(image_folder):
    images = load_images(DataSource(data=f"folder:{image_folder}"), "train", seed=0)
    assert images.classes == ("nought", "one", "two")
    assert images.images.shape == (36, 3, 8, 8)
    assert images.images.dtype == torch.uint8
    assert torch.bincount(images.labels).tolist() == [12, 12, 12]
    first = np.asarray(Image.open(image_folder / "train" / "nought" / "00.png"))
    assert np.array_equal(images.images[0].numpy(), np.repeat(first[None], 3, axis=0))
    larger = load_images(DataSource(data=f"folder:{image_folder}", image_size=16), "test", seed=0)
    assert larger.images.shape == (15, 3, 16, 16)


def test_unusual_images_are_read_without_loss_or_refused(image_folder):
    source, folder = DataSource(data=f"folder:{image_folder}"), image_folder / "train" / "nought"
    ramp = np.arange(64).reshape(8, 8)
    Image.fromarray((ramp * 257 * 4).astype(np.uint16)).save(folder / "00.png")
    transparent = np.zeros((8, 8, 4), np.uint8)
    transparent[..., 0] = 200
    transparent[4:, :, 3] = 255
    Image.fromarray(transparent).save(folder / "01.png")
    (image_folder / "test" / ".hidden").mkdir()
    images = load_images(source, "train", seed=0).images
    assert torch.equal(images[0], torch.from_numpy(ramp * 4).to(torch.uint8).expand(3, 8, 8))
    assert images[1, 0, :4].unique().tolist() == [0]
    assert images[1, 0, 4:].unique().tolist() == [200]
    Image.fromarray(ramp.astype(np.float32)).save(folder / "00.tiff")
    refused(source, "00.tiff", "mode F")


def test_cifar10_comes_from_torchvisions_files(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = random.integers(0, 256, (60, 3072), dtype=np.uint8)
    names = [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]
    for number, name in enumerate(names):
        rows = slice(number * 10, number * 10 + 10)
        (folder / name).write_bytes(pickle.dumps({"data": pixels[rows], "labels": list(range(10))}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {n}" for n in range(10)]}))
    # The files are ours, so their checksums are not those of the published ones.
    monkeypatch.setattr("torchvision.datasets.CIFAR10._check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *arguments: True)
    source = DataSource(data="cifar10", root=tmp_path)
    train, test = (load_images(source, split, seed=0) for split in ("train", "test"))
    assert np.array_equal(train.images.numpy(), pixels[:50].reshape(-1, 3, 32, 32))
    assert np.array_equal(test.images.numpy(), pixels[50:].reshape(-1, 3, 32, 32))
    assert train.labels.tolist() == list(range(10)) * 5
    assert train.classes == tuple(f"class {n}" for n in range(10))


def refused(source: DataSource, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_images(source, "train", seed=0)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_unusable_folders_are_refused_by_name(image_folder, tmp_path):
    source = DataSource(data=f"folder:{image_folder}")
    refused(DataSource(data=f"folder:{tmp_path / 'nowhere'}"), "nowhere", "no such folder")
    refused(DataSource(data="mnist"), "mnist", "digits, cifar10 or folder:PATH")
    refused(DataSource(data="cifar10", root=tmp_path), "cifar10", "--download")
    with pytest.raises(UserError, match="`limit_train` 0"):
        DataSource(limit_train=0)
    (image_folder / "test" / "three").mkdir()
    refused(source, "three", "not in")
    (image_folder / "test" / "three").rmdir()
    Image.new("L", (9, 8)).save(image_folder / "train" / "two" / "zz.png")
    refused(source, "zz.png", "9x8", "`image_size`")
    (image_folder / "train" / "two" / "zz.png").write_text("not an image")
    refused(source, "zz.png", "not a readable image")
    (image_folder / "train" / "two" / "zz.png").unlink()
    (image_folder / "test").rename(image_folder / "held-out")
    refused(source, "'test'")
