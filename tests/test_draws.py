"""Evaluation that averages over draws of the encoder."""

import copy
import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from bridge.drawing import drawing, random_modules
from bridge.frontend import DRAWS
from hybrid.architecture import baseline, safe_dnn
from hybrid.conditions.attack import fgsm
from hybrid.evaluate import main
from hybrid.evaluation import evaluate, predict
from hybrid.preprocess import Preprocess
from hybrid.storage import TrainedModel, load_model, save
from hybrid.variations import Variations
from snn.data_source import DataSource
from snn.runtime.errors import UserError
from snn.runtime.progress import progress
from snn.runtime.random import stream


def awake(network, digits):
    """Statistics of digits in every normalisation, so that the answers of a hardly trained network depend on them."""
    torch.manual_seed(1)
    network.train()
    with torch.no_grad():
        for _ in range(20):
            network(digits.images / 255)
    return network.eval()


@pytest.fixture(scope="module")
def models(models, digits):
    return {name: replace(m, network=awake(copy.deepcopy(m.network), digits)) for name, m in models.items()}


@pytest.fixture(scope="module")
def network(pipeline, digits):
    """Draws in four places: spike counts for both paths, those of two layers, and again for the auxiliary CNN."""
    torch.manual_seed(0)
    variations = Variations(variability=True, auxiliary_input=Preprocess("average:3+spikes:10,30,600"))
    network = safe_dnn(pipeline.frontend, width=0.25, preprocess=Preprocess("spikes"), variations=variations)
    return awake(network, digits)


@pytest.fixture(scope="module")
def conventional(digits):
    torch.manual_seed(0)
    return awake(baseline((1, 8, 8), width=0.25, preprocess=Preprocess("average:2+spikes:10,30,300,900")), digits)


def pixels(digits, count=12):
    return digits.images[:count] / 255


def counted(intensity, generator, seconds=0.3, times=1.0):
    """The intensity that a spike count of random phase stands for, from 10 to 30 Hz, of one image (C, H, W)."""
    spikes = (10 + 20 * intensity) * seconds * times
    count = torch.floor(spikes + torch.rand(intensity.shape, generator=generator))
    return intensity + (count - spikes) / (20 * seconds * times)


def mean_of(answers):
    """Logarithm of the mean of the probabilities (draws, classes), in NumPy."""
    answers = np.exp(answers.double().numpy())
    return torch.from_numpy(np.log((answers / answers.sum(1, keepdims=True)).mean(0))).float()


def safe_by_hand(network, image, generator):
    """Logits of one image (1, C, H, W), from the parts of the network, with all draws written out."""
    seen = counted(image[0], generator)[None]
    frontend = network.frontend
    x = frontend.encode(seen)
    for layer in frontend.layers:
        step = layer(x)[0]
        number = torch.randint(DRAWS, step.shape, generator=generator)
        x = (step + layer.deviations[step.round().long(), number])[None]
    features = x / frontend.layers[-1].activation.heights.amax()
    averaged = network.auxiliary_input[0](seen)
    auxiliary = network.auxiliary(network.normalise(counted(averaged[0], generator, 0.6)[None]))
    return network.main(torch.cat((features, auxiliary), 1))


def baseline_by_hand(network, image, generator):
    averaged = network.preprocess[0](image)[0]
    # The inverse of the time is uniform between those of 300 and 900 ms.
    times = 1 / (1 / 3 + 2 / 3 * torch.rand(1, 1, 1, generator=generator))
    return network.main(network.normalise(counted(averaged, generator, times=times)[None]))


@pytest.mark.parametrize(("kind", "by_hand"), [("network", safe_by_hand), ("conventional", baseline_by_hand)])
def test_the_answer_is_the_mean_over_draws_made_by_hand(kind, by_hand, request, digits):
    model, images = request.getfixturevalue(kind), pixels(digits, 5)
    with torch.no_grad():
        expected = [
            mean_of(torch.cat([by_hand(model, image[None], stream(7, "draw", k, row)) for k in range(3)]))
            for row, image in enumerate(images)
        ]
    found = predict(model, images, "cpu", draws=3, seed=7)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, predict(model, images, "cpu", draws=3, seed=8))
    # Logarithms of probabilities.
    torch.testing.assert_close(found.exp().sum(1), torch.ones(len(images)))


def test_draws_of_evaluation_come_before_those_of_the_network(conventional, digits):
    step, images = Preprocess("spikes").build().eval(), pixels(digits, 3)
    with torch.no_grad():
        answers = [[] for _ in images]
        for row, k in np.ndindex(3, 4):
            generator = stream(0, "draw", k, row)
            seen = counted(images[row], generator)[None]
            answers[row].append(baseline_by_hand(conventional, seen, generator))
        expected = torch.stack([mean_of(torch.cat(some)) for some in answers])
    found = predict(conventional, images, "cpu", preprocess=step, draws=4)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["network", "conventional"])
def test_one_draw_is_the_mean_input_to_the_last_bit(kind, request, digits):
    model, images = request.getfixturevalue(kind), pixels(digits)
    with torch.no_grad():
        expected = model(images.contiguous(memory_format=torch.channels_last))
    assert torch.equal(predict(model, images, "cpu"), expected)
    assert torch.equal(predict(model, images, "cpu", draws=1, seed=3), expected)
    # After averaging, the network answers as before.
    predict(model, images, "cpu", draws=2)
    assert torch.equal(predict(model, images, "cpu"), expected)


def joined(network, images, batch_size):
    """What reaches the main CNN in each of three draws, (3, N, C, H, W)."""
    seen = []
    with network.main.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0])):
        predict(network, images, "cpu", batch_size=batch_size, draws=3, seed=1)
    return torch.stack([torch.cat(seen[k::3]) for k in range(3)])


def test_draws_depend_neither_on_the_batch_size_nor_on_the_global_generator(network, digits):
    images = pixels(digits, 20)
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    whole = joined(network, images, 256)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(1)
    channels = network.frontend.spec.channels[-1]
    for batch_size in (1, 7, 20):
        parts = joined(network, images, batch_size)
        # The front end's sums are exact; the auxiliary CNN's are as exact as float32.
        assert torch.equal(parts[:, :, :channels], whole[:, :, :channels])
        torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)
    assert not torch.equal(whole[0], whole[1])


def test_accuracies_depend_neither_on_the_batch_size_nor_on_other_models(models, digits):
    given = {"draws": 3, "preprocess": "spikes", "seed": 2}
    rows = evaluate(models, digits, ["clean", "awgn:10"], **given)
    assert {row["draws"] for row in rows} == {3}
    assert evaluate(models, digits, ["clean", "awgn:10"], batch_size=7, **given) == rows
    alone = evaluate({"baseline": models["baseline"]}, digits, ["awgn:10"], **given)
    measured = [r for r in rows if (r["model"], r["condition"]) == ("baseline", "awgn:10")]
    assert [row["correct"] for row in alone] == [row["correct"] for row in measured]
    # As the noise, the draws are those of the row's seed.
    repeated = evaluate({"baseline": models["baseline"]}, digits, ["awgn:10"], repeats=3, **{**given, "seed": 1})
    assert [row["correct"] for row in repeated if row["noise_seed"] == 2] == [row["correct"] for row in measured]
    logits = predict(models["baseline"].network, pixels(digits, 60), "cpu", draws=3, seed=2,
                     preprocess=Preprocess("spikes").build())  # fmt: skip
    clean = next(r for r in rows if (r["model"], r["condition"]) == ("baseline", "clean"))
    assert clean["correct"] == (logits.argmax(1) == digits.labels).sum().item()


def test_the_estimate_counts_answers_of_every_path_and_draw(models, digits, monkeypatch):
    bars = []

    def kept(*arguments, **named):
        bars.append(progress(*arguments, **named))
        return bars[-1]

    monkeypatch.setattr("hybrid.evaluation.progress", kept)
    rows = evaluate(models, digits, ["awgn:10", "awgn:5"], repeats=2, draws=3, preprocess="spikes")
    assert {row["paths"] for row in rows} == {"both", "spiking", "auxiliary"}
    (bar,) = bars
    assert bar.n == bar.total == sum(row["images"] * row["draws"] for row in rows if row["metric"] == "top1")


def test_more_draws_deviate_less(digits):
    torch.manual_seed(0)
    network, step, images = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), Preprocess("spikes").build(), pixels(digits)

    def variance(draws):
        answers = [predict(network, images, "cpu", preprocess=step, draws=draws, seed=s).exp() for s in range(80)]
        return torch.stack(answers).double().var(0).mean().item()

    # Means of independent draws: 8 times as many have an eighth of the variance.
    assert variance(2) / variance(16) == pytest.approx(8, rel=0.35)


def test_networks_that_draw_nothing_have_one_pass(models, conventional, digits):
    plain = {"baseline": models["baseline"]}
    with pytest.raises(UserError, match=r"`draws` 2: the encoder of baseline draws nothing; .*`preprocess` spikes"):
        evaluate(plain, digits, ["clean"], draws=2)
    with pytest.raises(UserError, match="`draws` 0"):
        evaluate(plain, digits, ["clean"], draws=0)
    # Neither dropout nor rounding is a draw of the encoder.
    dropout = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10))
    with pytest.raises(UserError, match="draws nothing"):
        evaluate({"net": dropout}, digits, ["clean"], draws=2, preprocess="quantise")
    rows = evaluate({**plain, "drawing": conventional}, digits, ["clean"], draws=2)
    assert {row["model"]: row["draws"] for row in rows} == {"baseline": 1, "drawing": 2}
    (before, _) = evaluate(plain, digits, ["clean"])
    assert rows[0] == before


def test_a_file_holds_the_deviations_of_a_network_that_draws_them(network, pipeline, digits, tmp_path):
    model = TrainedModel(network.spec, network, DataSource(), 0, {"train_loss": np.zeros(1)}, {})
    save(model, tmp_path / "drawing.h5")
    loaded, images = load_model(tmp_path / "drawing.h5").network, pixels(digits)
    assert torch.equal(predict(loaded, images, "cpu", draws=2), predict(network, images, "cpu", draws=2))
    for mine, other in zip(loaded.frontend.layers, network.frontend.layers, strict=True):
        assert other.deviations.any()
        assert torch.equal(mine.deviations, other.deviations)
    # Older files lack them: a network read from one can only be evaluated with its mean.
    model = replace(model, network=copy.deepcopy(network))
    for layer in model.network.frontend.layers:
        layer.deviations = torch.zeros(1, DRAWS)
    save(model, tmp_path / "older.h5")
    older = load_model(tmp_path / "older.h5")
    assert torch.equal(predict(older.network, images, "cpu"), predict(loaded, images, "cpu"))
    with pytest.raises(UserError, match=r"deviations .* unknown.*train the network anew"):
        evaluate({"older": older}, digits, ["clean"], draws=2)
    # A front end without variability says nothing of them.
    assert random_modules(load_model(pipeline.safe).network) == []


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_training_draws_what_it_always_drew(memory_format):
    images = torch.rand(5, 3, 6, 4, generator=torch.Generator().manual_seed(0)).contiguous(memory_format=memory_format)
    spikes = Preprocess("spikes:10,30,300,900").build().train()
    torch.manual_seed(4)
    found = spikes(images)
    after = torch.rand(1)
    torch.manual_seed(4)
    times = 1 / (1 / 3 + (1 - 1 / 3) * torch.rand(5, 1, 1, 1))
    expected = (images * 6.0 + 3.0) * times
    expected = images + (torch.floor(expected + torch.rand_like(expected)) - expected) / (6.0 * times)
    torch.testing.assert_close(found, expected)
    assert torch.equal(torch.rand(1), after)


def test_an_error_inside_leaves_the_network_as_it_was(network, digits):
    modules = random_modules(network)
    assert len(modules) == 3
    with pytest.raises(RuntimeError), drawing(modules, [stream(0)]):
        raise RuntimeError
    with torch.no_grad():
        assert torch.equal(network(pixels(digits)), network(pixels(digits)))


def test_the_command_averages_and_records_it(models, digits, tmp_path, capsys):
    save(models["baseline"], tmp_path / "baseline.h5")
    out, numbers = tmp_path / "r.csv", tmp_path / "r.json"
    given = [str(tmp_path / "baseline.h5"), "--noise", "clean", "awgn:10", "--limit-test", "60", "--no-figures"]
    given += ["--out", str(out), "--json", str(numbers)]
    assert main([*given, "--draws", "2"]) == 2
    assert "--draws 2: the encoder of baseline draws nothing" in capsys.readouterr().err
    assert main([*given, "--draws", "0"]) == 2
    capsys.readouterr()
    assert main([*given, "--draws", "4", "--preprocess", "spikes"]) == 0
    assert "4 draws of the encoder" in capsys.readouterr().out
    with open(out) as file:
        rows = list(csv.DictReader(file))
    expected = evaluate({"baseline": models["baseline"]}, digits, ["clean", "awgn:10"], draws=4, preprocess="spikes")
    assert [(row["draws"], int(row["correct"])) for row in rows] == [("4", row["correct"]) for row in expected]
    assert {row["draws"] for row in json.loads(numbers.read_text())["results"]} == {4}
    assert main(given) == 0
    assert "draws of the encoder" not in capsys.readouterr().out
    with open(out) as file:
        assert {row["draws"] for row in csv.DictReader(file)} == {"1"}


def test_an_attack_takes_the_gradient_of_the_mean(models, conventional, digits):
    about = replace(models["baseline"], network=conventional, spec=conventional.spec)
    (attacked, _) = evaluate({"a": about}, digits, ["fgsm:8"], attack_model=about, draws=3)
    moved = fgsm(conventional, pixels(digits, 60), digits.labels, 8)
    answers = predict(conventional, moved, "cpu", draws=3)
    assert attacked["correct"] == (answers.argmax(1) == digits.labels).sum().item()
    assert attacked["draws"] == 3


def test_mirror_is_the_mean_over_an_image_and_its_mirror_image(conventional, network, digits):
    images = pixels(digits)
    for each in (conventional, network):
        both = torch.stack([predict(each, images, "cpu"), predict(each, images.flip(3), "cpu")])
        assert not torch.allclose(both[0], both[1])
        expected = torch.stack([mean_of(answers) for answers in both.unbind(1)])
        torch.testing.assert_close(predict(each, images, "cpu", mirror=True), expected)
        drawn = torch.stack([predict(each, x, "cpu", draws=3, seed=2) for x in (images, images.flip(3))])
        expected = torch.stack([mean_of(answers) for answers in drawn.unbind(1)])
        torch.testing.assert_close(predict(each, images, "cpu", draws=3, mirror=True, seed=2), expected)


def shifted_by_one(images, step):
    """Images moved by ``step`` pixels down and right, each uncovered pixel the reflected one."""
    _, _, height, width = images.shape
    moved = torch.empty_like(images)
    for y in range(height):
        for x in range(width):
            row, column = abs(y - step), abs(x - step)
            row, column = min(row, 2 * height - 2 - row), min(column, 2 * width - 2 - column)
            moved[:, :, y, x] = images[:, :, row, column]
    return moved


@pytest.mark.parametrize("mirror", [False, True])
def test_shifts_are_the_mean_over_an_image_and_it_moved_both_ways(conventional, network, digits, mirror):
    images = pixels(digits)
    views = [images, shifted_by_one(images, -1), shifted_by_one(images, 1)]
    views += [view.flip(3) for view in views] if mirror else []
    for each in (conventional, network):
        answers = torch.stack([predict(each, view, "cpu") for view in views])
        assert all(not torch.allclose(answers[0], other) for other in answers[1:])
        expected = torch.stack([mean_of(one) for one in answers.unbind(1)])
        found = predict(each, images, "cpu", mirror=mirror, shifts=True)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        drawn = torch.stack([predict(each, view, "cpu", draws=2, seed=2) for view in views])
        expected = torch.stack([mean_of(one) for one in drawn.unbind(1)])
        found = predict(each, images, "cpu", draws=2, mirror=mirror, shifts=True, seed=2)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_images_of_one_pixel_cannot_be_shifted():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3, 2))
    with pytest.raises(UserError, match="`shifts`: images of 1 x 3 pixels are too small"):
        predict(network, torch.rand(2, 1, 1, 3), "cpu", shifts=True)


def test_the_command_averages_mirror_images_and_records_it(models, digits, tmp_path, capsys):
    file, out = tmp_path / "model.h5", tmp_path / "results.csv"
    save(next(iter(models.values())), file)
    arguments = [str(file), "--noise", "clean", "awgn:10", "--limit-test", "50"]
    main([*arguments, "--mirror", "--out", str(out)])
    assert "each averaged with its mirror image" in " ".join(capsys.readouterr().out.split())
    rows = list(csv.DictReader(out.open()))
    assert {row["mirror"] for row in rows} == {"True"}
    main([*arguments, "--out", str(tmp_path / "plain.csv")])
    assert "mirror" not in capsys.readouterr().out
    assert {row["mirror"] for row in csv.DictReader((tmp_path / "plain.csv").open())} == {"False"}
    main([*arguments, "--mirror", "--shifts", "--out", str(tmp_path / "shifts.csv")])
    assert "each averaged with its mirror image and shifts by a pixel" in " ".join(capsys.readouterr().out.split())
    rows = list(csv.DictReader((tmp_path / "shifts.csv").open()))
    assert {(row["mirror"], row["shifts"]) for row in rows} == {("True", "True")}
