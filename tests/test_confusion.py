"""Which class is taken for which: counts against scikit-learn's, what the command writes, and the picture."""

import csv
import json

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from sklearn.metrics import confusion_matrix, recall_score
from torch import nn

import hybrid
from hybrid.confusion import Confusion
from hybrid.evaluate import main as evaluate
from hybrid.evaluation import predict
from hybrid.figures import draw_confusion
from snn.data import Images, load_images
from snn.runtime.errors import UserError


def test_counts_are_those_of_scikit_learn():
    random, counted = np.random.default_rng(0), Confusion()
    names = [f"class {number}" for number in range(7)]
    drawn = {}
    for seed in (3, 4):
        true, predicted = random.integers(0, 6, 200), random.integers(1, 7, 200)
        drawn[seed] = (true, predicted)
        counted.add("net", "awgn:20", seed, torch.from_numpy(true), torch.from_numpy(predicted), names)
    labels = range(7)
    for seed, (true, predicted) in drawn.items():
        expected = confusion_matrix(true, predicted, labels=labels)
        assert np.array_equal(counted.matrix("net", "awgn:20", seed), expected)
        rows = [row for row in counted.rows() if row["noise_seed"] == seed]
        assert {(row["true_class"], row["predicted_class"]): row["images"] for row in rows} == {
            (names[t], names[p]): expected[t, p] for t in labels for p in labels if expected[t, p]
        }
    true, predicted = (np.concatenate(both) for both in zip(*drawn.values(), strict=True))
    assert np.array_equal(counted.matrix("net", "awgn:20"), confusion_matrix(true, predicted, labels=labels))
    recall = recall_score(true, predicted, labels=range(6), average=None, zero_division=0)
    assert list(counted.class_accuracy("net", "awgn:20")) == names[:6]
    assert list(counted.class_accuracy("net", "awgn:20").values()) == pytest.approx(list(100 * recall))
    with pytest.raises(UserError, match=r"nothing was counted for model other.*there are models net"):
        counted.matrix("other", "awgn:20")


def test_images_of_other_classes_are_counted_apart():
    counted, labels = Confusion(), torch.tensor([0, 1])
    counted.add("net", "clean", 0, labels, torch.tensor([0, 2]), ("cat", "dog"))
    counted.add("net", "clean", 1, labels, labels, ("cat", "dog"))
    assert counted.classes == ("cat", "dog", "2")
    assert counted.matrix("net", "clean").tolist() == [[2, 0, 0], [0, 1, 1], [0, 0, 0]]
    with pytest.raises(UserError, match="classes bus, car cannot be counted with those of cat, dog"):
        counted.add("net", "clean", 2, labels, labels, ("bus", "car"))


def test_evaluation_counts_what_the_networks_answer(models, digits):
    counted = Confusion()
    given = {name: model.network for name, model in models.items()}
    rows = hybrid.evaluate(given, digits, ["awgn:12", "clean"], repeats=2, seed=5, confusion=counted)
    assert rows == hybrid.evaluate(given, digits, ["awgn:12", "clean"], repeats=2, seed=5)
    assert counted.classes == digits.classes
    assert (counted.models, counted.first) == (["safe", "baseline"], "clean")
    for name, network in given.items():
        answer = predict(network, digits.images.float() / 255, "cpu").argmax(1)
        expected = confusion_matrix(digits.labels, answer, labels=range(10))
        assert np.array_equal(counted.matrix(name, "clean"), expected)
    for row in rows:
        if (row["paths"], row["metric"]) == ("both", "top1"):
            counts = counted.matrix(row["model"], row["condition"], row["noise_seed"])
            assert (np.trace(counts), counts.sum()) == (row["correct"], row["images"])


def test_no_image_is_computed_twice(digits):
    class Counting(nn.Module):
        seen = 0

        def forward(self, images):
            self.seen += len(images)
            return images.flatten(1)[:, :10]

    network = Counting()
    hybrid.evaluate(network, digits, "clean", confusion=Confusion())
    assert network.seen == len(digits.images)


def test_the_strongest_condition_is_the_one_with_most_errors():
    counted, true = Confusion(), torch.arange(10) % 2
    for condition, wrong in (("clean", 1), ("a", 7), ("b", 4)):
        predicted = torch.where(torch.arange(10) < wrong, 1 - true, true)
        counted.add("net", condition, 0, true, predicted, ("no", "yes"))
    assert counted.strongest() == "a"
    counted.add("net", "clean", 0, true, 1 - true, ("no", "yes"))
    assert (counted.first, counted.strongest()) == ("clean", "a")


def test_the_command_writes_and_prints_it(pipeline, tmp_path, capsys):
    out = tmp_path / "r.csv"
    flags = ["--noise", "awgn:12", "clean", "--repeats", "2", "--limit-test", "100", "--json", str(tmp_path / "r.json")]
    models = [str(pipeline.safe), str(pipeline.baseline)]
    assert evaluate([*models, *flags, "--confusion", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    with open(tmp_path / "r_confusion.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["model", "condition", "noise_seed", "true_class", "predicted_class", "images"]
    runs = [("safe", "awgn:12", "0"), ("safe", "awgn:12", "1"), ("safe", "clean", "0")]
    runs += [("baseline", *rest) for _, *rest in runs]
    assert list(dict.fromkeys((row["model"], row["condition"], row["noise_seed"]) for row in rows)) == runs
    digits = load_images("digits", "test", limit=100)
    answer = predict(hybrid.load(pipeline.safe).network, digits.images.float() / 255, "cpu").argmax(1)
    expected = confusion_matrix(digits.labels, answer, labels=range(10))
    counts = np.zeros((10, 10), int)
    for row in rows:
        if (row["model"], row["condition"]) == ("safe", "clean"):
            counts[int(row["true_class"]), int(row["predicted_class"])] = row["images"]
    assert np.array_equal(counts, expected)
    shares = 100 * np.diag(expected) / expected.sum(1)
    accuracy = json.loads((tmp_path / "r.json").read_text())["class_accuracy_percent"]["safe"]
    assert list(accuracy.values()) == pytest.approx(list(shares))
    lines = printed[printed.index("top1 accuracy of each") :].splitlines()
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert [row[:3] for row in cells] == [[str(n), "10", f"{shares[n]:.1f}"] for n in range(10)]
    assert (tmp_path / "r_confusion.png").read_bytes().startswith(b"\x89PNG")
    # Without it, all else is the same.
    assert evaluate([*models, *flags, "--no-figures", "--out", str(tmp_path / "plain.csv")]) == 0
    assert (tmp_path / "plain.csv").read_bytes() == out.read_bytes()
    assert not (tmp_path / "plain_confusion.csv").exists()


@pytest.mark.parametrize("classes", [1, 2, 10, 100, 300])
def test_pictures_of_few_and_many_classes(classes, tmp_path):
    counted, true = Confusion(), torch.arange(2 * classes) % classes
    names = ["$x^$ " + "long name " * 5, *(f"{number}" for number in range(1, classes))]
    for condition, shift in (("clean", 0), ("awgn:20", 1)):
        # The last class has no images.
        kept = true < max(1, classes - 1)
        counted.add("[red]", condition, 0, true[kept], (true[kept] + shift) % classes, names)
    draw_confusion(counted, tmp_path / "x.png")
    height, width, _ = imread(tmp_path / "x.png").shape
    assert 300 < height < width < 4000


def test_more_logits_than_labels_are_named_by_number():
    data = torch.zeros(4, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1, 0, 1])

    class Third(nn.Module):
        def forward(self, images):
            return torch.tensor([[0.0, 0.0, 1.0]]).expand(len(images), 3)

    counted = Confusion()
    hybrid.evaluate(Third(), data, "clean", confusion=counted)
    assert counted.classes == ("0", "1", "2")
    assert counted.matrix("Third", "clean").tolist() == [[0, 0, 2], [0, 0, 2], [0, 0, 0]]
    with pytest.raises(UserError, match="model Third gives 3 logits for 2 classes"):
        hybrid.evaluate(Third(), Images(*data, ("no", "yes")), "clean")
