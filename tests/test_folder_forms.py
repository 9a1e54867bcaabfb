"""Folders without labels or without training images: which form a folder has, and what each command makes of it."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from bridge.convert import main as convert
from bridge.storage import load_frontend
from hybrid.evaluate import main as evaluate
from hybrid.margins import main as margins
from hybrid.train import main as train
from snn.data import Images, as_labelled, load_images
from snn.data_source import DataSource
from snn.image_files import find_layout, kept_apart
from snn.learn import main as learn
from snn.runtime.errors import UserError
from snn.storage import load_network


def make(folder: Path, *names: str) -> Path:
    """A file at each of these paths, whose shade is its number; a path that ends with a slash is a folder."""
    for number, name in enumerate(names):
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), (number,) * 3).save(path)
    return folder


def shades(
    folder: Path, split: str, labels: bool = True, **limits: int
) -> tuple[list[int], list[int], tuple[str, ...]]:
    data = load_images(DataSource(f"folder:{folder}", **limits), split, labels=labels)
    return data.images[:, 0, 0, 0].tolist(), data.labels.tolist(), data.classes


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["test/b/0.png", "test/a/0.png", "test/b/x/1.png"], ([1, 0, 2], [0, 1, 1], ("a", "b"))),
        (["b/0.png", "a/0.png", "b/x/1.png", "note.png"], ([1, 0, 2], [0, 1, 1], ("a", "b"))),
        (["only/0.png"], ([0], [0], ("only",))),
        # Unlabelled training images beside sorted test images.
        (["train/0.png", "test/b/0.png", "test/a/0.png"], ([2, 1], [0, 1], ("a", "b"))),
        # Classes that happen to have the splits' names.
        (["train/0.png", "bus/0.png", "tram/0.png"], ([1, 0, 2], [0, 1, 2], ("bus", "train", "tram"))),
        (["quiz/0.png", "test/0.png"], ([0, 1], [0, 1], ("quiz", "test"))),
        # A folder beside both splits is none of their classes.
        (["train/a/0.png", "train/b/0.png", "test/b/0.png", "val/c/0.png"], ([2], [1], ("a", "b"))),
    ],
)
def test_test_images_have_the_labels_of_their_folders(tmp_path, names, expected):
    assert shades(make(tmp_path, *names), "test") == expected


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        # Both splits in one place, of which a tenth is kept for tests.
        ([f"{n:02d}.png" for n in range(20)], 18, 2),
        ([f"train/{n:02d}.png" for n in range(12)], 11, 1),
        ([f"{'ab'[n % 2]}/{n:02d}.png" for n in range(10)], 9, 1),
        ([f"train/{'ab'[n % 2]}/{n:02d}.png" for n in range(10)], 9, 1),
        (["0.png", "deep/deeper/1.png"], 1, 1),
        # Test images of their own, with labels or without.
        (["train/0.png", "train/1.png", "test/0.png"], 2, 1),
        (["train/0.png", "train/1.png", "test/a/0.png", "test/b/0.png", "test/b/1.png"], 2, 3),
        (["train/one/0.png", "train/one/1.png", "test/one/0.png"], 2, 1),
    ],
)
def test_images_without_labels_are_split_once(tmp_path, names, train, test):
    folder = make(tmp_path, *names)
    parts = [shades(folder, split, labels=False) for split in ("train", "test")]
    assert [len(images) for images, _, _ in parts] == [train, test]
    assert sorted(parts[0][0] + parts[1][0]) == list(range(len(names)))
    for images, labels, classes in parts:
        assert images == sorted(images, key=lambda number: Path(names[number]).parts)
        assert set(labels) == {-1}
        assert classes == ()
    for seed in (1, 7):
        again = load_images(DataSource(f"folder:{folder}"), "train", seed, labels=False)
        assert again.images[:, 0, 0, 0].tolist() == parts[0][0]


def test_limits_take_a_part_of_images_without_labels(tmp_path):
    folder = make(tmp_path, *(f"{n:02d}.png" for n in range(40)))
    all_of_them, few = shades(folder, "train", labels=False)[0], shades(folder, "train", labels=False, limit_train=5)[0]
    assert len(few) == 5
    assert set(few) < set(all_of_them)
    other = load_images(DataSource(f"folder:{folder}", limit_train=5), "train", 3, labels=False)
    assert other.images[:, 0, 0, 0].tolist() != few


def test_sorted_folders_and_data_sets_are_the_same_without_labels(image_folder):
    for data in (f"folder:{image_folder}", "digits"):
        for split in ("train", "test"):
            first, second = (
                load_images(DataSource(data, limit_train=20), split, 3, labels=flag) for flag in (True, False)
            )
            assert torch.equal(first.images, second.images)
            assert torch.equal(first.labels, second.labels)
            assert first.classes == second.classes


@pytest.mark.parametrize(
    ("names", "split", "labels", "words"),
    [
        (["0.png", "1.png"], "test", True, "its images have no labels; expected test/CLASS, or folders CLASS"),
        (["0.png", "1.png"], "train", True, "no folder 'train'.*images without labels serve snn.learn"),
        (["a/0.png", "b/0.png"], "train", True, "no folder 'train'; expected train/CLASS and test/CLASS"),
        (["test/a/0.png"], "train", True, "no folder 'train'"),
        (["test/a/0.png"], "train", False, "it holds test images only; expected images in train/"),
        (["train/0.png", "train/1.png"], "test", True, "no folder 'test'"),
        (["train/0.png", "test/0.png"], "test", True, "test holds no class folders; expected test/CLASS"),
        (["train/0.png", "test/a/0.png"], "train", True, "train holds no class folders; expected train/CLASS"),
        (["train/a/0.png", "test/a/0.png"], "train", True, "train holds 1 class folders; at least 2 are needed"),
        (["train/a/0.png", "train/b/0.png"], "train", True, "no folder 'test'"),
        (["0.png"], "train", False, "0.png is the only image: give 2 or more"),
        (["train/"], "train", False, "train holds no images"),
        (["a/", "b/"], "test", True, "holds no images; expected files under CLASS"),
        (["test/a/"], "test", True, "holds no images; expected files under test/CLASS"),
    ],
)
def test_what_a_folder_lacks_is_said(tmp_path, names, split, labels, words):
    with pytest.raises(UserError, match=words):
        shades(make(tmp_path / "data", *names), split, labels)


def test_what_is_not_read_and_not_tested_is_said(tmp_path, capsys):
    folder = make(tmp_path / "data", "a/0.png", "b/", "outside.png", "a/.hidden.png")
    (folder / "a" / "note.txt").write_text("no image")
    assert shades(folder, "test")[0] == [0]
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith(f"warning: {folder}: not read are ")
    for part in ("files outside the class folders: 1", "names that start with a dot: 1", "files that are no images: 1"):
        assert part in lines[0]
    assert lines[1] == f"warning: {folder} holds no images of class b: results on it say nothing about that"
    flat = make(tmp_path / "flat", *(f"{n}.png" for n in range(20)))
    shades(flat, "train", labels=False)
    assert "2 of 20 images without labels are kept apart, as test images" in capsys.readouterr().err


def test_links_in_a_folder_without_labels_are_followed_once(tmp_path):
    folder = make(tmp_path / "data", "0.png", "deep/1.png")
    make(tmp_path / "more", "2.png", "3.png")
    (folder / "linked").symlink_to(tmp_path / "more")
    (folder / "deep" / "up").symlink_to("..")
    files = find_layout(folder, "train", labels=False).files().paths
    assert [Path(file).name for file in files] == ["0.png", "1.png", "2.png", "3.png"]
    # Test images that lie behind a link in train/ are not learned from.
    both = make(tmp_path / "both", "train/0.png", "test/1.png")
    (both / "train" / "all").symlink_to("../test")
    assert [Path(file).name for file in find_layout(both, "train", labels=False).files().paths] == ["0.png"]


def test_the_images_that_are_kept_apart_are_a_tenth():
    files = [Path(f"{n:03d}.png") for n in range(237)]
    train, test = ([files[row] for row in kept_apart(files, split)] for split in ("train", "test"))
    assert len(test) == 23
    assert sorted(train + test) == files
    assert train == sorted(train)
    # Not the last ones alone, nor every tenth.
    assert len(set(np.diff([files.index(file) for file in test]))) > 5


def test_images_without_labels_are_refused_where_labels_are_needed(tmp_path):
    folder = make(tmp_path, *(f"{n}.png" for n in range(5)))
    data = load_images(DataSource(f"folder:{folder}"), "train", labels=False)
    with pytest.raises(UserError, match="have no labels; sort them"):
        as_labelled(data)
    assert as_labelled(Images(data.images, torch.zeros(4, dtype=torch.int64), ("a",))).classes == ("a",)


@pytest.fixture(scope="module")
def flat(tmp_path_factory) -> Path:
    """50 digits in one folder, 8x8, grey PNG, without labels."""
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(load_digits().images[:50]):
        Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"{number:02d}.png")
    return folder


def test_stages_go_on_with_images_without_labels(flat, tmp_path, capsys):
    snn, frontend, out = tmp_path / "snn.h5", tmp_path / "frontend.h5", tmp_path / "margins.csv"
    flags = ["--maps", "4", "--min-updates", "3", "--no-figures", "--out", str(snn)]
    assert learn(["--data", f"folder:{flat}", *flags]) == 0
    assert "learned 1 layer on 45 images" in capsys.readouterr().out
    network, source, _ = load_network(snn)
    assert source == DataSource(f"folder:{flat}")
    assert network.input_shape == (3, 8, 8)
    assert convert([str(snn), "--no-figures", "--out", str(frontend)]) == 0
    assert "fitted on 45 training images; on 5 test images" in capsys.readouterr().out
    assert load_frontend(frontend).data_source == source
    assert margins([str(frontend), "--no-figures", "--out", str(out)]) == 0
    assert "5 test images" in " ".join(capsys.readouterr().out.split())
    for command, given in ((train, ["--frontend", str(frontend)]), (evaluate, ["pretrained:safe-cifar10"])):
        assert command([*given, "--data", f"folder:{flat}", "--out", str(tmp_path / "x")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "labels" in line
        assert "train/CLASS and test/CLASS" in line or "expected test/CLASS" in line
    assert not (tmp_path / "x").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[Path, Path]:
    """A folder with train/CLASS and test/CLASS of three digits, and a network that was trained on it."""
    place = tmp_path_factory.mktemp("sorted")
    digits, folder = load_digits(), place / "images"
    for label, name in enumerate(("nought", "one", "two")):
        for number, image in enumerate(digits.images[digits.target == label][:30]):
            path = folder / ("train" if number < 20 else "test") / name / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 15).astype(np.uint8)).save(path)
    flags = ["--variant", "baseline", "--width", "0.1", "--epochs", "2", "--batch-size", "16", "--no-figures"]
    assert train(["--data", f"folder:{folder}", *flags, "--out", str(place / "model.h5")]) == 0
    return folder, place / "model.h5"


def test_test_images_alone_give_the_same_results(trained, tmp_path, capsys):
    folder, model = trained
    shutil.copytree(folder / "test", tmp_path / "alone" / "test")
    shutil.copytree(folder / "test", tmp_path / "classes")
    found = []
    for number, data in enumerate((folder, tmp_path / "alone", tmp_path / "classes")):
        out = tmp_path / f"{number}.csv"
        flags = ["--noise", "clean", "awgn:10", "--no-figures", "--out", str(out)]
        assert evaluate([str(model), "--data", f"folder:{data}", *flags]) == 0
        found.append(out.read_bytes())
    assert found[0] == found[1] == found[2]
    printed = capsys.readouterr()
    assert not printed.err
    # Of three classes five answers are always right.
    assert "top1 accuracy" in printed.out
    assert "top5 accuracy" not in printed.out


def test_a_part_of_the_classes_is_matched_by_name(trained, tmp_path, capsys):
    folder, model = trained
    for name in ("two", "nought"):
        shutil.copytree(folder / "test" / name, tmp_path / "part" / name)
    counts = {}
    for data in (folder, tmp_path / "part"):
        out = tmp_path / "out.csv"
        flags = ["--noise", "clean", "--confusion", "--no-figures", "--out", str(out)]
        assert evaluate([str(model), "--data", f"folder:{data}", *flags]) == 0
        with open(tmp_path / "out_confusion.csv") as file:
            counts[data] = [tuple(row.values()) for row in csv.DictReader(file)]
    assert counts[tmp_path / "part"] == [row for row in counts[folder] if row[3] != "one"]
    assert "has no images of class one: results say nothing about that" in capsys.readouterr().err
    make(tmp_path / "part", "three/0.png")
    shutil.copy(folder / "test" / "one" / "20.png", tmp_path / "part" / "three" / "0.png")
    assert evaluate([str(model), "--data", f"folder:{tmp_path / 'part'}", *flags]) == 2
    assert "model model was trained on 3 classes (nought, one, two), class three of folder:" in capsys.readouterr().err


def test_images_of_another_size_are_resized_if_asked(trained, tmp_path, capsys):
    _, model = trained
    make(tmp_path / "large", "one/0.png", "two/0.png")
    flags = ["--data", f"folder:{tmp_path / 'large'}", "--noise", "clean", "--no-figures", "--out", str(tmp_path / "x")]
    assert evaluate([str(model), *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "have 6x5 pixels, model model is for 8x8; give --image-size 8" in line
    assert evaluate([str(model), *flags, "--image-size", "8"]) == 0
    capsys.readouterr()
    assert evaluate([str(model), "--split", "held-out", "--image-size", "8", *flags[2:]]) == 2
    assert "--split held-out takes images of the training run, of their size there" in capsys.readouterr().err
