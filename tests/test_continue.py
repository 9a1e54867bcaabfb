"""Finished trainings that go on, noise that is watched, and classes that weigh alike."""

import csv
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.nn.functional import log_softmax

import hybrid
from hybrid import lightning_module
from hybrid.batches import MiniBatch
from hybrid.checkpoint import PREVIOUS, PROGRESS
from hybrid.conditions import Noise
from hybrid.lightning_module import Classifier
from hybrid.recipe import class_weights
from hybrid.storage import load_model
from hybrid.train import main
from snn.data import load_images
from snn.data_source import DataSource
from snn.runtime.errors import UserError
from snn.runtime.random import stream
from snn.subset import Subset

SMALL = ["--data", "digits", "--limit-train", "140", "--width", "0.1", "--batch-size", "16", "--variant", "baseline",
         "--no-figures", "--threads", "1", "--holdout", "0.2"]  # fmt: skip
# Not in the order of the alphabet, in which a file keeps them.
WATCHED = ["--watch", "salt-pepper:0.2", "awgn:12", "--class-weights", "balanced"]
AWGN = "val_accuracy_awgn:12"
STEPS = 112 // 16


@pytest.fixture(scope="module")
def data():
    return load_images(DataSource(limit_train=140), "train", seed=0)


@pytest.fixture(scope="module")
def continued(tmp_path_factory):
    """A training of 2 epochs that went on for 2 and for 1 more, and its file after each."""
    out = tmp_path_factory.mktemp("continued") / "model.h5"
    models = []
    for epochs in ("2", "4", "5"):
        assert main([*SMALL, *WATCHED, "--epochs", epochs, "--resume", "--out", str(out)]) == 0
        models.append((load_model(out), out.read_bytes()))
    return out, models


def test_a_finished_training_goes_on_twice_and_says_so(continued, capsys):
    out, models = continued
    first, second, third = (model for model, _ in models)
    assert [model.cycles for model, _ in models] == [(), (2, 2), (2, 2, 1)]
    assert [model.recipe["epochs"] for model, _ in models] == [2, 4, 5]
    for name, values in first.history.items():
        np.testing.assert_array_equal(second.history[name][:2], values)
        np.testing.assert_array_equal(third.history[name][:4], second.history[name])
        assert len(third.history[name]) == 5
    # Each cycle ends at 0, and rises before.
    np.testing.assert_allclose(third.history["learning_rate"][[1, 3, 4]], 0, atol=1e-12)
    assert third.history["learning_rate"][2] > 0.01
    with open(out.parent / "model_training" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3, 4, 5]
    np.testing.assert_array_equal([float(row[AWGN]) for row in rows], third.history[AWGN])
    events = EventAccumulator(str(out.parent / "model_training"))
    events.Reload()
    assert [event.step for event in events.Scalars(AWGN)] == [0, 1, 2, 3, 4]
    before = out.read_bytes()
    arguments = [*SMALL, *WATCHED, "--resume", "--out", str(out)]
    assert main([*arguments, "--epochs", "5"]) == 0
    assert "complete: nothing to do" in capsys.readouterr().out
    refused = {
        "--epochs 4": "--epochs 4: ",
        "--epochs 7 --learning-rate 0.1": "was trained with another --learning-rate: give the same",
        "--epochs 7 --seed 1": "was trained with another --seed: give the same",
        "--epochs 7 --class-weights none --limit-train 50": "with another --class-weights, --limit-train: give",
        "--epochs 7 --watch awgn:12": "--watch awgn:12: the finished training watched awgn:12 salt-pepper:0.2",
    }
    for flags, words in refused.items():
        assert main([*arguments, *flags.split()]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert out.read_bytes() == before


@pytest.mark.slow
def test_an_interrupted_continuation_goes_on_to_the_same_bits(continued, tmp_path):
    _, models = continued
    out, folder = tmp_path / "model.h5", tmp_path / "model_training"
    out.write_bytes(models[0][1])
    arguments = [*SMALL, *WATCHED, "--epochs", "4", "--resume", "--checkpoint-interval", "0", "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "hybrid.train", *arguments], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 90
    while not (folder / PREVIOUS).exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    # The finished training is still there, and so is what was added to it.
    assert out.read_bytes() == models[0][1]
    assert (folder / PROGRESS).exists() or (folder / PREVIOUS).exists()
    assert main(arguments) == 0
    assert load_model(out).digest == models[1][0].digest
    assert not (folder / PROGRESS).exists()


def test_the_library_goes_on_from_a_model(data, continued, tmp_path):
    recipe = hybrid.Recipe(epochs=1, batch_size=16, average=0.5, flips="alternating", augmentation="shift-flip")
    architecture = hybrid.Architecture("resnet18", "baseline")
    first = hybrid.train(data, architecture, recipe)
    before = {name: values.clone() for name, values in first.network.state_dict().items()}
    longer = replace(recipe, epochs=2)
    one, two = (hybrid.train(data, architecture, longer, after=first) for _ in range(2))
    assert all(torch.equal(before[name], values) for name, values in first.network.state_dict().items())
    assert one.cycles == (1, 1)
    state = two.network.state_dict()
    assert all(torch.equal(values, state[name]) for name, values in one.network.state_dict().items())
    other = load_images(DataSource(limit_train=150), "train", seed=0)
    wrong = [
        (other, longer, {}, "on other images"),
        (data, recipe, {}, "`epochs` 1: the finished training had 1"),
        (data, replace(longer, average=0.6), {}, "other settings"),
        (data, longer, {"seed": 1}, "other settings"),
        (data, longer, {"watch": ["awgn:20"]}, "`watch` awgn:20: the finished training watched nothing"),
    ]
    for images, settings, options, words in wrong:
        with pytest.raises(UserError, match=words):
            hybrid.train(images, architecture, settings, after=first, **options)


def test_a_network_without_its_curve_does_not_go_on(continued, tmp_path, capsys):
    _, models = continued
    out, model = tmp_path / "x.h5", models[0][0]
    for history in ({name: values[:0] for name, values in model.history.items()}, {}):
        hybrid.save(replace(model, history=history), out)
        before = out.read_bytes()
        assert main([*SMALL, *WATCHED, "--epochs", "4", "--resume", "--out", str(out)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "the finished training has no curve of its epochs" in line
        assert out.read_bytes() == before


def classifier(data, recipe, before=None, **options):
    network = hybrid.baseline((1, 8, 8), width=0.1)
    part = Subset(data, torch.arange(112))
    module = Classifier(network, recipe, "none", 0, training=part, held_out=part, before=before, **options)
    module.trainer = SimpleNamespace(global_rank=0, world_size=1, global_step=0, current_epoch=0, max_epochs=3)
    return module


def test_draws_of_a_continuation_are_those_after_the_first_epochs(data, continued):
    _, models = continued
    recipe = hybrid.Recipe(batch_size=16, flips="alternating")
    fresh, going_on = classifier(data, recipe), classifier(data, recipe, models[0][0].history)
    assert (fresh.steps, fresh.passes, going_on.steps, going_on.passes) == (0, 0, 2 * STEPS, 2)
    orders = [torch.cat([batch.rows for batch in module.train_dataloader()]) for module in (fresh, going_on)]
    for order, epoch in zip(orders, (0, 2), strict=True):
        assert torch.equal(order, torch.randperm(112, generator=stream(0, "order", epoch)))
    going_on.trainer.current_epoch = 1
    rows = torch.arange(112)
    assert torch.equal(going_on.mirrored(rows), ~fresh.mirrored(rows))


def test_small_images_belong_to_the_first_cycle(data, continued, monkeypatch):
    _, models = continued
    sizes = []

    def watched(images, **options):
        sizes.append(images.shape)
        return images

    monkeypatch.setattr(lightning_module, "interpolate", watched)
    recipe = hybrid.Recipe(batch_size=16, small_share=0.5)
    for before, small in ((None, 1), (models[0][0].history, 0)):
        sizes.clear()
        module = classifier(data, recipe, before)
        module.training_step(next(iter(module.train_dataloader())), 0)
        assert len(sizes) == small


@pytest.fixture(scope="module")
def unwatched(data):
    return train_watching(data, ())


def train_watching(data, watch):
    torch.manual_seed(9)
    recipe = hybrid.Recipe(epochs=3, batch_size=16, holdout=0.3, average=0.3, learning_rate=0.02)
    return hybrid.train(data, hybrid.Architecture("resnet18", "baseline"), recipe, watch=watch)


class Negative(Noise):
    """Makes the negative of each image, and disturbs the global generator."""

    def add(self, images, generator):
        torch.rand(7)
        assert len(torch.rand(2, generator=generator)) == 2
        return 1 - images


def test_watching_measures_what_it_says_and_changes_no_bit(data, unwatched, tmp_path):
    model = train_watching(data, [Negative("negative"), "awgn:100"])
    state = unwatched.network.state_dict()
    assert all(torch.equal(values, state[name]) for name, values in model.network.state_dict().items())
    for name, values in unwatched.history.items():
        np.testing.assert_array_equal(values, model.history[name])
    added = {name: values for name, values in model.history.items() if name not in unwatched.history}
    assert list(added) == ["val_accuracy_negative", "val_accuracy_awgn:100"]
    rows = hybrid.Recipe(**model.recipe | {"train_noise": Noise.parse("clean")}).held_out(data.labels, 0)
    images, labels = data.images[rows] / 255, data.labels[rows]
    right = (model(1 - images).argmax(1) == labels).double().mean().item()
    assert added["val_accuracy_negative"][-1] == right
    # Noise of a hundred thousandth of the amplitude.
    np.testing.assert_allclose(added["val_accuracy_awgn:100"], model.history["val_accuracy"], atol=1 / len(rows))
    assert not np.array_equal(added["val_accuracy_negative"], model.history["val_accuracy"])
    hybrid.save(model, tmp_path / "x.h5")
    read = load_model(tmp_path / "x.h5").history["val_accuracy_negative"]
    np.testing.assert_array_equal(read, added["val_accuracy_negative"])


def test_noise_of_an_image_is_its_own_in_any_process(data):
    module = classifier(data, hybrid.Recipe(batch_size=16), watch=[Noise.parse("awgn:10")])
    (noise,) = module.watched
    images = data.images[:6]
    whole = module.perturbed(noise, images, [*range(6)])
    for first in (0, 1):
        assert torch.equal(whole[first::2], module.perturbed(noise, images[first::2], [*range(first, 6, 2)]))
    clean = images / 255
    assert len({round(values.item(), 5) for values in (whole - clean).flatten(1).std(1)}) == 6
    power, error = clean.square().mean((1, 2, 3)), (whole - clean).square().mean((1, 2, 3))
    # Clipping at 0 takes about half of the noise of a black background away.
    assert (error < power / 10 * 1.6).all()
    assert (error > power / 10 * 0.2).all()


@pytest.mark.slow
def test_two_processes_watch_every_image_once(tmp_path):
    command = [sys.executable, "-m", "hybrid.train", *SMALL, *WATCHED, "--epochs", "1", "--device", "cpu"]
    arguments = ["--devices", "2", "--out", str(tmp_path / "x.h5")]
    result = subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    right = 28 * load_model(tmp_path / "x.h5").history[AWGN]
    np.testing.assert_allclose(right, right.round(), atol=1e-9)
    assert (right <= 28).all()


@pytest.mark.parametrize(("noise", "words"), [
    ("clean", "accuracy without noise is always recorded"), ("fgsm:8", "cannot be used here"),
    ("awgn:12 awgn:12.0", "named twice"), ("awgn:x", "is not a number"),
])  # fmt: skip
def test_what_cannot_be_watched_is_refused(noise, words, tmp_path, capsys):
    assert main([*SMALL, "--watch", *noise.split(), "--out", str(tmp_path / "x.h5")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert "--watch" in line
    assert not list(tmp_path.iterdir())


def test_balanced_weights_are_those_of_the_field():
    labels = torch.tensor([0] * 5 + [1] * 20 + [4] * 3 + [2])
    weights = class_weights(labels)
    present = np.unique(labels)
    expected = compute_class_weight("balanced", classes=present, y=labels.numpy())
    np.testing.assert_allclose(weights[present], expected, rtol=1e-6)
    assert weights[labels].mean().item() == pytest.approx(1)
    assert weights[3].isfinite()


def test_the_balanced_loss_is_the_mean_of_each_images_weighted_one(data):
    recipe = hybrid.Recipe(batch_size=16, label_smoothing=0.2, class_weights="balanced")
    module, rows = classifier(data, recipe), torch.arange(3, 19)
    images, labels = data.images[rows], data.labels[rows]
    batch = MiniBatch(rows, images, labels)
    counts = [int((data.labels[:112] == label).sum()) for label in range(10)]
    for part in module.network.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
    loss = module.training_step(batch, 0).item()
    expected = 0.0
    for logits, label in zip(log_softmax(module.network(images / 255), 1), labels.tolist(), strict=True):
        smoothed = [0.2 / 10 + (0.8 if other == label else 0) for other in range(10)]
        weight = 112 / (10 * counts[label])
        expected -= weight * sum(q * p.item() for q, p in zip(smoothed, logits, strict=True)) / 16
    assert loss == pytest.approx(expected, rel=1e-4)
    assert len(set(counts)) > 1
    plain = classifier(data, replace(recipe, class_weights="none")).training_step(batch, 0).item()
    assert plain != pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize(("name", "value"), [("class_weights", "balanced"), ("precision", "bfloat16")])
def test_files_and_identities_know_of_later_settings_where_they_are_used(name, value):
    plain, other = hybrid.Recipe(), hybrid.Recipe(**{name: value})
    assert name not in plain.as_tree()
    assert other.as_tree()[name] == value
    assert hybrid.Recipe.from_tree(plain.as_tree()) == plain
    assert hybrid.Recipe.from_tree(other.as_tree()) == other
    # Of a recipe of before there were these settings.
    assert plain.identity == repr(plain).partition(", class_weights=")[0] + ")"
    assert other.identity == f"{plain.identity[:-1]}, {name}={value!r})"


def test_the_curve_has_a_line_for_each_noise_and_a_mark_between_cycles(continued, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    from hybrid.figures import draw_training

    drawn = []
    monkeypatch.setattr("hybrid.figures.save_figure", lambda figure, path: drawn.append(figure))
    _, models = continued
    draw_training(models[2][0], "title", Path("x.png"))
    figure: Figure = drawn[0]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["training (augmented)", "held out", "held out, awgn:12", "held out, salt-pepper:0.2"]
    marks = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    assert marks == [2.5, 4.5]


@pytest.mark.parametrize(("loss", "scale"), [(500.0, "log"), (3.0, "linear")])
def test_a_loss_beyond_chance_makes_the_axis_logarithmic(continued, loss, scale, monkeypatch):
    from hybrid.figures import draw_training

    drawn = []
    monkeypatch.setattr("hybrid.figures.save_figure", lambda figure, path: drawn.append(figure))
    model = continued[1][0][0]
    history = {**model.history, "val_loss": np.array([loss, 1.0])}
    draw_training(replace(model, history=history), "title", Path("x.png"))
    assert drawn[0].axes[0].get_yscale() == scale


def test_a_training_anew_leaves_no_curves_of_the_one_before(tmp_path):
    arguments = [*SMALL, "--out", str(tmp_path / "model.h5")]
    for epochs in ("2", "1"):
        assert main([*arguments, "--epochs", epochs]) == 0
    events = EventAccumulator(str(tmp_path / "model_training"))
    events.Reload()
    assert [event.step for event in events.Scalars("val_accuracy")] == [0]
