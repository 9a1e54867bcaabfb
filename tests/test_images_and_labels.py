"""Images and labels that learning, conversion, training and evaluation take, and what they refuse in the same words."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

import bridge
import hybrid
import snn
from hybrid.architecture import Architecture
from hybrid.recipe import Recipe
from snn.data import Images
from snn.learning import Learning
from snn.runtime.errors import UserError

SETTINGS = Learning(maps=(3,), min_updates=2)
BASELINE, RECIPE = Architecture(variant="baseline", width=0.1), Recipe(epochs=1, batch_size=8)


def images(count: int = 24, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *(shape or (1, 8, 8))), dtype=np.uint8)


LABELS = np.arange(24) % 3


@pytest.fixture(scope="module")
def network():
    return snn.learn(torch.from_numpy(images()), SETTINGS)


class Classifier(nn.Module):
    """Mean intensities of as many columns as there are classes."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, x):
        return x.mean((1, 2))[:, : self.classes]


@pytest.fixture(scope="module")
def functions(network) -> dict[str, Callable]:
    """The four functions, each of images and labels."""
    return {
        "learn": lambda given, _: snn.learn(given, SETTINGS),
        "convert": lambda given, _: bridge.convert(network, given),
        "train": lambda given, labels: hybrid.train((given, labels), BASELINE, RECIPE),
        "evaluate": lambda given, labels: hybrid.evaluate(Classifier(), (given, labels), "clean"),
    }


def message(call: Callable, *arguments: object) -> str:
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (images() / 255, "images are float64; give uint8, from 0 to 255"),
        (torch.from_numpy(images()) / 255, "images are float32; give uint8, from 0 to 255"),
        (torch.from_numpy(images()).long(), "images are int64; give uint8"),
        (images() > 0, "images are bool; give uint8"),
        (images().tolist(), "images are of type list; give a tensor or NumPy array"),
        (images(24, 8, 8), "images have shape (24, 8, 8); expected (N, C, H, W)"),
        (images(24, 8, 8, 3), "expected (N, C, H, W), of N images with C channels; channels come before height"),
        (images(24, 8, 8, 1), "give permute(0, 3, 1, 2)"),
        (images(24, 12, 8, 4), "give permute(0, 3, 1, 2)"),
        (images(24, 0, 8, 8), "images have shape (24, 0, 8, 8)"),
        (images(0), "images have shape (0, 1, 8, 8): there are none"),
        (images(24, 1, 3, 8), "images have 8x3 pixels; expected sides of 4 to 16384 pixels"),
    ],
)
def test_images_are_refused_everywhere_in_the_same_words(functions, given, words):
    (said,) = {message(function, given, LABELS) for function in functions.values()}
    assert words in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LABELS / 1, "labels are float64; give whole numbers as int64"),
        (LABELS > 0, "labels are bool; give whole numbers"),
        (LABELS.tolist(), "labels are of type list"),
        (LABELS[:-1], "labels have shape (23,) for 24 images; give one for each"),
        (LABELS[:, None], "labels have shape (24, 1) for 24 images"),
        (LABELS - 1, "labels go from -1 to 1; expected 0 to 1, indices of 2 classes"),
        (LABELS + 10**12, "expected 0 to 99999"),
        (np.ma.masked_array(LABELS, LABELS == 1), "labels are sparse, masked, nested"),
        (torch.from_numpy(LABELS).to_sparse(), "labels are sparse"),
    ],
)
def test_labels_are_refused_in_training_and_evaluation_in_the_same_words(functions, labels, words):
    (said,) = {message(functions[name], images(), labels) for name in ("train", "evaluate")}
    assert words in said


def test_labels_beyond_the_named_classes_are_refused():
    data = Images(torch.from_numpy(images()), torch.from_numpy(LABELS), ("a", "b"))
    for call in (lambda: hybrid.train(data, BASELINE, RECIPE), lambda: hybrid.evaluate(Classifier(), data, "clean")):
        assert "labels go from 0 to 2; expected 0 to 1, indices of 2 classes" in message(call)


def test_arrays_of_numpy_give_what_tensors_give(functions, network):
    array, labels = images(), LABELS.astype(np.uint8)
    array.flags.writeable = labels.flags.writeable = False
    # Of the same values: from back to front in memory, and big-endian.
    backward, swapped = array[::-1].copy()[::-1], LABELS.astype(">i4")
    given = torch.from_numpy(images()), torch.from_numpy(LABELS)
    learned = {key: [layer.layer.conductance for layer in functions["learn"](value, None).layers]
               for key, value in (("array", array), ("tensor", given[0]))}  # fmt: skip
    assert all(map(torch.equal, learned["array"], learned["tensor"]))
    states = [functions["convert"](value, None).frontend.state_dict() for value in (array, given[0])]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    models = [functions["train"](*pair).network.state_dict() for pair in ((array, labels), given, (backward, swapped))]
    assert all(torch.equal(models[0][name], other[name]) for other in models[1:] for name in other)
    rows = [functions["evaluate"](*pair) for pair in ((array, labels), given)]
    assert rows[0] == rows[1]
    correct = (images()[:, 0].mean(1)[:, :3].argmax(1) == LABELS).sum()
    assert rows[0][0]["correct"] == correct


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch_size": 0}, "`batch_size` 0: expected 1 to"),
        ({"batch_size": 1.5}, "`batch_size` 1.5: expected a whole number"),
        ({"repeats": 10**9}, "`repeats` 1000000000: expected 1 to 1000000"),
        ({"draws": "a"}, "`draws` 'a': expected a whole number"),
        ({"seed": -1}, "`seed` -1: expected 0 to"),
        ({"device": "nope"}, "`device` 'nope': unknown; give cpu or cuda"),
    ],
)
def test_settings_of_evaluation_are_checked(given, words):
    assert words in message(lambda: hybrid.evaluate(Classifier(), (images(), LABELS), "clean", **given))


class Broken(torch.nn.Module):
    """Answers with something of its own making."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: torch.full((len(x), 3), torch.nan), "gives logits that are not finite numbers"),
        (lambda x: torch.eye(3)[:1].repeat(len(x), 1) / 0, "gives logits that are not finite numbers"),
        (lambda x: torch.zeros(len(x) - 1, 3), "gives no logits: expected a tensor (N, classes)"),
        (lambda x: (x, x), "gives no logits"),
        (lambda x: x.numpy(), "gives no logits"),
        (lambda x: None, "gives no logits"),
    ],
)
def test_answers_that_are_no_logits_are_refused(answer, words):
    assert words in message(lambda: hybrid.evaluate(Broken(answer), (images(), LABELS), "clean"))
    assert "of type int; give a module" in message(lambda: hybrid.evaluate([5], (images(), LABELS), "clean"))


@pytest.mark.parametrize("seed", ["x", 1.5, True, -1])
def test_seeds_are_whole_numbers(functions, seed):
    said = {message(lambda: snn.learn(images(), snn.Learning(maps=(2,)), seed=seed)),
            message(lambda: hybrid.train((images(), LABELS), BASELINE, RECIPE, seed=seed))}  # fmt: skip
    assert all(f"`seed` {seed!r}: expected" in words for words in said)


def test_data_that_is_no_pair_is_refused():
    assert "of type ndarray: give images and labels" in message(lambda: hybrid.train(images(), BASELINE, RECIPE))
    assert "of type str; give snn.Learning" in message(lambda: snn.learn(images(), "cifar10"))


def test_labels_beyond_a_models_classes_are_refused():
    data = images(), LABELS
    assert hybrid.evaluate(Classifier(3), data, "clean")[0]["images"] == 24
    said = message(lambda: hybrid.evaluate({"small": Classifier(2)}, data, "clean"))
    assert "model small gives logits of shape (24, 2); labels go up to 2" in said


def test_more_classes_than_a_trained_model_has_are_refused(functions):
    model = functions["train"](images(), LABELS)
    assert hybrid.evaluate(model, (images(), LABELS), "clean")[0]["images"] == 24
    said = message(lambda: hybrid.evaluate(model, (images(), np.arange(24) % 4), "clean"))
    assert "was trained on 3 classes" in said
    assert "class 3 of unnamed is none of them" in said


def test_one_image_of_one_class_is_learned_from_but_not_trained_on(functions):
    one = images(1)
    learned = functions["learn"](one, None)
    assert learned.layers[0].layer.conductance.isfinite().all()
    converted = bridge.convert(learned, one).frontend
    with torch.no_grad():
        assert converted(torch.from_numpy(one) / 255).isfinite().all()
    assert "training needs 2 or more" in message(functions["train"], one, LABELS[:1])
    assert "training needs 2 or more" in message(functions["train"], images(), 0 * LABELS)
    assert "every class has one image" in message(functions["train"], images(3), LABELS[:3])


@pytest.mark.parametrize("value", [0, 128, 255])
def test_constant_images_are_learned_from_without_nonsense(functions, value):
    constant = np.full((24, 1, 8, 8), value, np.uint8)
    layer = functions["learn"](constant, None).layers[0].layer
    assert layer.conductance.isfinite().all()
    assert layer.gain.isfinite().all()
    model = functions["train"](constant, LABELS)
    assert all(values.isfinite().all() for values in model.network.state_dict().values())
    assert np.isfinite(model.history["val_loss"]).all()


def test_the_seed_changes_what_is_learned_but_not_the_images(functions):
    first, second = (snn.learn(images(), SETTINGS, seed=seed).layers[0].layer for seed in (0, 1))
    assert not torch.equal(first.conductance, second.conductance)
    loaded = [snn.load_images("digits", "train", seed) for seed in (0, 1)]
    assert torch.equal(loaded[0].images, loaded[1].images)
    assert torch.equal(loaded[0].labels, loaded[1].labels)
