"""Training images that are held out: drawn in proportion to the classes, warned of, and measured again."""

import csv

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hybrid.architecture import Architecture
from hybrid.evaluate import main as evaluate
from hybrid.recipe import Recipe
from hybrid.storage import load_model
from hybrid.train import main as train
from hybrid.training import train as train_images
from snn.data import Images, proportional_subset
from snn.runtime.errors import UserError


def in_equal_numbers(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """What networks on data of equal classes were trained with: as many of each class as possible, drawn."""
    random = np.random.default_rng(seed)
    order, rank = random.permutation(len(labels)), np.empty(len(labels), int)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    ties = random.permutation(len(labels))
    return np.sort(np.lexsort((ties, rank))[:count])


@pytest.mark.parametrize(
    ("classes", "each", "holdout"), [(10, 5000, 0.02), (10, 500, 0.1), (3, 12, 0.25), (7, 30, 0.1)]
)
def test_classes_of_one_size_hold_out_the_images_that_they_always_did(classes, each, holdout):
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(classes), each))
    for seed in (0, 7):
        drawn = Recipe(holdout=holdout).held_out(torch.from_numpy(labels), seed)
        assert np.array_equal(drawn, in_equal_numbers(labels, round(holdout * classes * each), seed))
        if holdout * each == round(holdout * each):
            assert np.bincount(labels[drawn]).tolist() == [holdout * each] * classes


@pytest.mark.parametrize(
    ("sizes", "holdout", "expected"),
    [
        ([180, 15, 5], 0.1, {(18, 2, 0), (18, 1, 1)}),
        ([180, 15, 5], 0.2, {(36, 3, 1)}),
        ([180, 15, 5], 0.99, {(179, 14, 4)}),
        ([2000] * 10 + [20] * 5, 0.02, {(40,) * 10 + (0,) * 5}),
        ([100, 1], 0.1, {(10, 0)}),
    ],
)
def test_rare_classes_stay_in_training(sizes, holdout, expected):
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    counts = np.bincount(labels[Recipe(holdout=holdout).held_out(labels, 0)], minlength=len(sizes))
    # 402 of 20,100: two more than 40 for each of the large classes.
    near = [sum(abs(a - b) for a, b in zip(counts, wanted, strict=True)) for wanted in expected]
    assert min(near) <= (2 if len(sizes) == 15 else 0)
    assert (np.array(sizes) - counts >= 1).all()


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.data())
def test_no_other_division_is_nearer_to_proportion(sizes, data):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    count = data.draw(st.integers(1, len(labels)))
    drawn = proportional_subset(labels, count, seed=data.draw(st.integers(0, 1000)))
    assert len(set(drawn)) == len(drawn) == min(count, sum(sizes) - len(sizes))
    taken = np.bincount(labels[drawn], minlength=len(sizes))
    size, open_to_more = np.array(sizes), taken < np.array(sizes) - 1
    assert (taken < size).all()
    # Webster's criterion: no item would stand nearer to its class's share in another class.
    last = ((taken - 0.5) / size)[taken > 0]
    following = ((taken + 0.5) / size)[open_to_more]
    assert not len(last) or not len(following) or last.max() <= following.min() + 1e-12


@pytest.fixture
def uneven(tmp_path):
    """A folder of 60, 12 and 4 training images of 8 x 8 pixels."""
    random = np.random.default_rng(0)
    for label, (name, count) in enumerate({"common": 60, "few": 12, "rare": 4}.items()):
        for split, number in (("train", count), ("test", 1)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                pixels = random.integers(0, 80, (8, 8, 3)) + 80 * label
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index:02d}.png")
    return tmp_path / "images"


def test_the_same_images_are_measured_again_and_classes_without_one_are_named(uneven, tmp_path, capsys):
    model, results = tmp_path / "m.h5", tmp_path / "r.csv"
    given = ["--data", f"folder:{uneven}", "--variant", "baseline", "--width", "0.25", "--batch-size", "8"]
    given += ["--holdout", "0.1"]
    assert train([*given, "--epochs", "2", "--no-figures", "--out", str(model)]) == 0
    warning = "warning: no image of class rare is held out"
    assert capsys.readouterr().err.count(warning) == 1
    assert evaluate([str(model), "--split", "held-out", "--noise", "clean", "--no-figures", "--out", str(results)]) == 0
    assert capsys.readouterr().err.count(warning) == 1
    with open(results) as file:
        row = next(row for row in csv.DictReader(file) if row["metric"] == "top1")
    # A tenth of 76 images, where 3 + 3 + 2 would be equal numbers.
    assert row["images"] == "8"
    shown = 100 * load_model(model).history["val_accuracy"][-1]
    assert float(row["value_percent"]) == pytest.approx(shown, abs=1e-3)


def test_classes_without_training_images_are_named(capsys):
    data = Images(torch.zeros(24, 1, 8, 8, dtype=torch.uint8), torch.arange(24) % 2, ("a", "b", "c"))
    recipe = Recipe(epochs=1, batch_size=8)
    train_images(data, Architecture(variant="baseline", width=0.1), recipe)
    assert "warning: there is no training image of class c" in capsys.readouterr().err
    alone = data._replace(images=data.images[:2], labels=data.labels[:2])
    with pytest.raises(UserError, match="every class has one image"):
        train_images(alone, Architecture(variant="baseline", width=0.1), recipe)
