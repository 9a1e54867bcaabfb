"""FGSM as a transfer attack, and evaluation with it, with repeats and with filters."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from hybrid.conditions import Condition, Context
from hybrid.conditions.attack import fgsm
from hybrid.evaluate import main
from hybrid.evaluation import correct_in, evaluate, summarise
from hybrid.storage import load_model, save_model
from snn.data import load_images
from snn.data_source import DataSource


def test_the_step_has_the_stated_size_and_the_gradients_direction():
    weight = torch.tensor([[0.5, -2.0, 0.0, 1.0], [-1.0, 1.0, 0.0, 0.0]])
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2, bias=False))
    network[1].weight.data = weight
    images = torch.tensor([[[[0.5, 0.4], [0.3, 0.99]]], [[[0.5, 0.4], [0.3, 0.0]]]])
    labels = torch.tensor([0, 1])
    moved = fgsm(network, images, labels, 8)
    # Of cross-entropy the gradient is sum_k (p_k - [k = label]) w_k: away from the label's weights.
    share = torch.softmax(network(images), 1) - nn.functional.one_hot(labels, 2)
    expected = images + 8 / 255 * (share @ weight).sign().reshape(images.shape)
    torch.testing.assert_close(moved, expected.clamp(0, 1))
    size = (moved - images).abs()
    assert torch.allclose(size[0, 0, 0], torch.tensor(8 / 255))
    assert size[:, 0, 1, 0].tolist() == [0, 0]


@pytest.mark.parametrize("name", ["baseline", "safe"])
def test_the_loss_of_the_source_rises_and_values_stay_in_range(models, digits, name):
    network, condition = models[name].network, Condition.parse("fgsm:8")
    moved = condition.perturb(Context(digits, attack_model=network))
    clean = digits.images.float() / 255
    with torch.no_grad():
        losses = [cross_entropy(network(images), digits.labels) for images in (clean, moved.images)]
    assert losses[1] > losses[0]
    assert 0 <= moved.images.min() <= moved.images.max() <= 1
    size = (moved.images - clean).abs()
    inside = (moved.images > 0) & (moved.images < 1)
    moved_ones = size[inside & (size > 0)]
    torch.testing.assert_close(moved_ones, torch.full_like(moved_ones, 8 / 255), atol=1e-6, rtol=0)
    assert size.max() <= 8 / 255 + 1e-6


def test_gradients_of_an_image_do_not_depend_on_the_others(models, digits):
    network, images = models["baseline"].network, digits.images.float() / 255
    together = fgsm(network, images, digits.labels, 4)
    alone = torch.cat([fgsm(network, images[i : i + 1], digits.labels[i : i + 1], 4) for i in range(5)])
    # Sums in another order may turn the sign of a gradient that is all but zero.
    assert (together[:5] != alone).float().mean() < 0.01


def test_a_transferred_attack_never_asks_for_the_targets_gradient(models, digits):
    class Target(nn.Module):
        def forward(self, images):
            assert not torch.is_grad_enabled()
            assert torch.is_inference_mode_enabled()
            assert not images.requires_grad
            return models["safe"].network(images)

    from dataclasses import replace

    target = replace(models["safe"], network=Target())
    rows = evaluate({"target": target}, digits, [Condition.parse("fgsm:16")], attack_model=models["baseline"])
    assert [row["metric"] for row in rows] == ["top1", "top5"]
    assert {row["source_digest"] for row in rows} == {models["baseline"].digest}
    assert all(p.grad is None for model in models.values() for p in model.network.parameters())
    # The perturbed images are those of the source, whatever the target.
    moved = Condition.parse("fgsm:16").perturb(Context(digits, attack_model=models["baseline"].network))
    with torch.no_grad():
        correct = (models["safe"].network(moved.images).argmax(1) == digits.labels).sum().item()
    assert rows[0]["correct"] == correct


def test_top5_counts_the_five_highest():
    logits = torch.tensor([[5.0, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5]])
    assert correct_in(logits, torch.tensor([4, 0]), 5) == 1
    assert correct_in(logits, torch.tensor([0, 0]), 1) == 1
    assert correct_in(logits[:, :3], torch.tensor([2, 0]), 5) == 2


def test_repeats_are_seeds_and_their_mean_is_told(models, digits):
    conditions = [Condition.parse("clean"), Condition.parse("awgn:10")]
    rows = evaluate(models, digits, conditions, repeats=3, seed=5)
    noisy = [row for row in rows if (row["model"], row["condition"], row["metric"]) == ("safe", "awgn:10", "top1")]
    assert [row["noise_seed"] for row in noisy] == [5, 6, 7]
    values = [row["value_percent"] for row in noisy]
    (told,) = (r for r in summarise(noisy) if r["condition"] == "awgn:10")
    assert told["value_percent"] == pytest.approx(np.mean(values))
    assert told["deviation_percent"] == pytest.approx(np.std(values, ddof=1))
    alone = evaluate({"safe": models["safe"]}, digits, conditions[1:], seed=6)
    assert alone[0]["correct"] == noisy[1]["correct"]
    clean = [r for r in rows if (r["model"], r["condition"], r["paths"]) == ("baseline", "clean", "both")]
    assert [row["metric"] for row in clean] == ["top1", "top5"]


def test_a_filter_in_evaluation_alone_is_the_filter_before_the_model(models, digits):
    rows = evaluate({"baseline": models["baseline"]}, digits, [Condition.parse("clean")], preprocess="average:2")
    from hybrid.preprocess import AverageFilter

    with torch.no_grad():
        logits = models["baseline"].network(AverageFilter(2)(digits.images / 255))
    assert rows[0]["correct"] == (logits.argmax(1) == digits.labels).sum().item()
    assert rows[0]["preprocess"] == "average:2"


def test_attack_and_published_corruptions_through_the_command(pipeline, tmp_path, capsys):
    out = tmp_path / "r.csv"
    given = [str(pipeline.safe), "--out", str(out), "--limit-test", "60", "--no-figures", "--noise", "fgsm:8"]
    assert main(given) == 2
    assert "--attack-model" in capsys.readouterr().err
    assert main([*given, "--attack-model", str(pipeline.baseline), "--repeats", "2"]) == 2
    assert "--repeats would be ignored: no condition of --noise draws" in capsys.readouterr().err
    assert main([*given, "--attack-model", str(pipeline.baseline)]) == 0
    with open(out) as file:
        rows = list(csv.DictReader(file))
    assert [(row["condition"], row["metric"]) for row in rows if row["paths"] == "both"] == [
        ("fgsm:8", "top1"),
        ("fgsm:8", "top5"),
    ]
    assert {row["source_digest"] for row in rows} == {load_model(pipeline.baseline).digest}
    assert main([*given[:-1], "cifar10-c:fog,3"]) == 2
    assert "--cifar10-c" in capsys.readouterr().err
    assert main([*given[:-1], "cifar10-c:fog,3.5"]) == 2
    assert main([*given[:-1], "corruption:haze,3"]) == 2
    assert "gaussian_noise" in capsys.readouterr().err


def test_a_model_file_needs_nothing_beside_it(pipeline, tmp_path, monkeypatch):
    copy = tmp_path / "elsewhere" / "model.h5"
    copy.parent.mkdir()
    copy.write_bytes(pipeline.safe.read_bytes())
    monkeypatch.chdir(copy.parent)
    assert main(["model.h5", "--noise", "clean", "--limit-test", "60", "--out", "r.csv", "--no-figures"]) == 0
    with open("r.csv") as file:
        row = next(csv.DictReader(file))
    model, digits = load_model(pipeline.safe), load_images(DataSource(limit_test=60), "test", seed=0)
    with torch.no_grad():
        correct = (model.network(digits.images / 255).argmax(1) == digits.labels).sum().item()
    assert int(row["correct"]) == correct


def test_held_out_images_are_those_of_the_validation_curve(pipeline, models, tmp_path, capsys):
    out = tmp_path / "r.csv"
    given = ["--split", "held-out", "--noise", "clean", "--no-figures", "--out", str(out)]
    assert main([str(pipeline.safe), str(pipeline.baseline), *given]) == 0
    with open(out) as file:
        rows = [r for r in csv.DictReader(file) if (r["paths"], r["metric"]) == ("both", "top1")]
    assert len(rows) == 2
    for row in rows:
        assert row["images"] == "30"
        # What training measured after its last epoch.
        assert float(row["value_percent"]) == pytest.approx(
            100 * models[row["model"]].history["val_accuracy"][-1], abs=1e-3
        )
    capsys.readouterr()
    assert main([str(pipeline.safe), *given, "--limit-test", "9"]) == 2
    assert "leave out --data and --limit-test" in capsys.readouterr().err


def test_held_out_images_must_be_those_of_all_networks_but_of_a_source(pipeline, models, tmp_path, capsys):
    moved, other = tmp_path / "moved.h5", tmp_path / "other.h5"
    safe = models["safe"]
    for path, model in (
        (moved, replace(safe, data_source=replace(safe.data_source, root=tmp_path))),
        (other, replace(models["baseline"], seed=7)),
    ):
        save_model(path, model, "test", safe.parent_digest)
    given = ["--split", "held-out", "--no-figures", "--out", str(tmp_path / "r.csv")]
    assert main([str(pipeline.safe), str(moved), *given, "--noise", "clean"]) == 0
    assert main([str(pipeline.safe), "--attack-model", str(other), *given, "--noise", "fgsm:8"]) == 0
    assert main([str(pipeline.safe), str(other), *given, "--noise", "clean"]) == 2
    assert "held out different images" in capsys.readouterr().err
