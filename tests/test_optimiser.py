"""What recipe fast is made of: Muon, augmentation, small images, averaged weights and a first layer that whitens."""

import copy
from dataclasses import replace

import lightning
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from bridge.storage import load_frontend
from hybrid.architecture import Architecture, ModelSpec, baseline, build_model
from hybrid.augment import augment, cover
from hybrid.lightning_module import Classifier
from hybrid.optimiser import Muon, hidden_kernels, one_cycle, orthogonal
from hybrid.recipe import RECIPES, Recipe
from hybrid.training import Checkpointing, Hardware, train, whiten_first_layer
from snn.data import as_labelled, load_images
from snn.data_source import DataSource
from snn.runtime.errors import UserError
from snn.subset import Subset


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def polynomial(values):
    return 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5


def orthogonal_by_svd(matrix):
    """The polynomial, three times, of the singular values of the matrix of norm 1."""
    left, values, right = np.linalg.svd(matrix / np.linalg.norm(matrix), full_matrices=False)
    for _ in range(3):
        values = polynomial(values)
    return left @ np.diag(values) @ right


@pytest.mark.parametrize("shape", [(5, 12), (12, 5), (7, 7), (1, 9)])
def test_the_iteration_applies_its_polynomial_to_the_singular_values(shape):
    matrix = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    found = orthogonal(matrix)
    np.testing.assert_allclose(found.numpy(), orthogonal_by_svd(matrix.numpy()), atol=1e-5)
    # The length of the matrix does not matter.
    torch.testing.assert_close(orthogonal(1000 * matrix), found, atol=1e-5, rtol=0)
    values = torch.linalg.svdvals(found)
    assert (values > 0.3).all()
    assert (values < 1.3).all()
    assert torch.equal(orthogonal(torch.zeros(shape)), torch.zeros(shape))


def test_parameters_that_are_not_turned_step_as_with_sgd():
    random = seeded(1)
    weights = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in ((4, 3), (5,))]
    gradients = [[torch.randn(w.shape, generator=random, dtype=torch.float64) for w in weights] for _ in range(4)]

    def groups(parameters):
        return [
            {"params": [parameters[0]], "lr": 0.3, "momentum": 0.8, "weight_decay": 0.02},
            {"params": [parameters[1]], "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0},
        ]

    mine, theirs = ([nn.Parameter(w.clone()) for w in weights] for _ in range(2))
    steppers = Muon(groups(mine)), torch.optim.SGD(groups(theirs), momentum=0.5, nesterov=True)
    naive = [w.numpy().copy() for w in weights]
    means = [np.zeros(w.shape) for w in weights]
    for step in gradients:
        for parameters, stepper in zip((mine, theirs), steppers, strict=True):
            for parameter, gradient in zip(parameters, step, strict=True):
                parameter.grad = gradient.clone()
            stepper.step()
        for number, (rate, momentum, decay) in enumerate([(0.3, 0.8, 0.02), (0.1, 0.9, 0.0)]):
            gradient = step[number].numpy() + decay * naive[number]
            means[number] = momentum * means[number] + gradient
            naive[number] = naive[number] - rate * (gradient + momentum * means[number])
    for own, other, expected in zip(mine, theirs, naive, strict=True):
        torch.testing.assert_close(own, other, atol=1e-13, rtol=0)
        np.testing.assert_allclose(own.detach().numpy(), expected, atol=1e-13)


@pytest.mark.parametrize("shape", [(6, 2, 3, 3), (20, 1, 3, 3)], ids=["wide", "tall"])
def test_kernels_keep_their_norm_and_step_in_orthogonal_directions(shape):
    random, rate, momentum, decay = seeded(2), 0.05, 0.6, 0.01
    start = torch.randn(shape, generator=random, dtype=torch.float64)
    kernel, expected, mean = nn.Parameter(start.clone()), start.numpy().copy(), np.zeros(shape)
    group = {"lr": rate, "momentum": momentum, "weight_decay": decay, "orthogonal": True}
    stepper = Muon([{"params": [kernel], **group}])
    for _ in range(3):
        drawn = torch.randn(shape, generator=random, dtype=torch.float64)
        kernel.grad = drawn.clone()
        stepper.step()
        gradient = drawn.numpy() + decay * expected
        mean = momentum * mean + gradient
        change = orthogonal_by_svd((gradient + momentum * mean).reshape(shape[0], -1)).reshape(shape)
        expected = expected * (shape[0] ** 0.5 / np.linalg.norm(expected)) - rate * change
        np.testing.assert_allclose(kernel.detach().numpy(), expected, atol=1e-6)
    stepper.param_groups[0]["lr"] = 0.0
    kernel.grad = torch.ones(shape, dtype=torch.float64)
    stepper.step()
    assert kernel.norm().item() == pytest.approx(shape[0] ** 0.5)
    # Without a gradient nothing moves.
    before, kernel.grad = kernel.detach().clone(), None
    stepper.step()
    assert torch.equal(kernel.detach(), before)


def test_a_stored_state_goes_on_to_the_same_bits():
    random = seeded(3)
    values = [torch.randn(4, 3, 3, 3, generator=random), torch.randn(5, generator=random)]
    steps = [[torch.randn(v.shape, generator=random) for v in values] for _ in range(6)]

    def made(parameters):
        return Muon([{"params": parameters[:1], "lr": 0.2, "orthogonal": True}, {"params": parameters[1:], "lr": 0.1}])

    def go(stepper, parameters, part):
        for gradients in part:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient.clone()
            stepper.step()

    whole = [nn.Parameter(v.clone()) for v in values]
    stepper = made(whole)
    go(stepper, whole, steps[:3])
    state, others = copy.deepcopy(stepper.state_dict()), [nn.Parameter(p.detach().clone()) for p in whole]
    go(stepper, whole, steps[3:])
    resumed = made(others)
    resumed.load_state_dict(state)
    go(resumed, others, steps[3:])
    forgetful = [nn.Parameter(v.clone()) for v in values]
    go(made(forgetful), forgetful, steps[3:])
    for own, other, without in zip(whole, others, forgetful, strict=True):
        assert torch.equal(own, other)
        assert not torch.equal(own, without)


def test_hidden_kernels_are_those_of_dense_trainable_convolutions_behind_the_first(pipeline):
    mobile = baseline((3, 32, 32), "mobilenet_v2", 10, width=0.25)
    found = set(map(id, hidden_kernels(mobile)))
    for convolution in (m for m in mobile.modules() if isinstance(m, nn.Conv2d)):
        depthwise, reads_image = convolution.groups > 1, convolution.in_channels == 3
        assert (id(convolution.weight) in found) == (not depthwise and not reads_image)
    fast = baseline((1, 8, 8), "fast_cnn", 10, width=0.5)
    assert [p.shape[1] for p in hidden_kernels(fast)] == [16, *[32] * 3, *[128] * 5]
    # Spiking layers are frozen; in their place, layers of 1 and 6 input channels read what is as narrow as images.
    frontend, _, _ = load_frontend(pipeline.frontend)
    for variant in ("safe", "mu"):
        spec = ModelSpec(Architecture("fast_cnn", variant, 0.5), (1, 8, 8), tuple("0123456789"), frontend.spec)
        network = build_model(spec, copy.deepcopy(frontend))
        turned = set(map(id, hidden_kernels(network)))
        owners = {name for name, parameter in network.named_parameters() if id(parameter) in turned}
        assert len(owners) == 9
        # The auxiliary CNN's first layer reads the image.
        assert all(name.startswith("main.stages.") or name == "auxiliary.3.weight" for name in owners)
    for parameter in fast.main.stages[1].parameters():
        parameter.requires_grad_(False)
    assert [p.shape[1] for p in hidden_kernels(fast)] == [16, *[32] * 2, *[128] * 3]


@pytest.mark.filterwarnings("ignore:.*LeafSpec")
@pytest.mark.parametrize("optimiser", ["sgd", "muon"])
def test_every_trainable_parameter_is_in_one_group_with_its_rate_and_decay(optimiser):
    recipe = Recipe(epochs=1, batch_size=4, learning_rate=0.3, muon_rate=0.07, weight_decay=0.01, optimiser=optimiser)
    network = baseline((1, 8, 8), "fast_cnn", 4, width=0.5)
    # A kernel's bias is no kernel.
    network.main.stages[2][1][0].bias = nn.Parameter(torch.zeros(128))
    network.main.stages[0][1][0].weight.requires_grad_(False)
    images = torch.randint(256, (8, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = Subset(as_labelled((images, torch.arange(8) % 4)))
    module = Classifier(network, recipe, "none", 0, training=data, held_out=data)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module)
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, Muon if optimiser == "muon" else torch.optim.SGD)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(groups)
    assert groups.keys() == {id(p) for p in network.parameters() if p.requires_grad}
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            continue
        turned = optimiser == "muon" and parameter.ndim == 4 and not name.startswith("main.stem")
        group = groups[id(parameter)]
        assert group.get("orthogonal", False) == turned, name
        assert group["initial_lr"] == (0.07 if turned else 0.3)
        assert group["momentum"] == (0.6 if turned else 0.9)
        assert group["weight_decay"] == (0.01 if parameter.ndim > 1 and not turned else 0)


def test_the_rate_rises_over_the_share_of_warmup():
    assert [one_cycle(step, 100, 0.1) for step in range(10)] == pytest.approx([(n + 1) / 11 for n in range(10)])
    for warmup in (0.0, 0.1, 0.5):
        rates = [one_cycle(step, 100, warmup) for step in range(101)]
        assert rates.index(1.0) == 100 * warmup
        assert rates[round(50 + 50 * warmup)] == pytest.approx(0.5)
        assert rates[100] == pytest.approx(0)


def naive_shift(image, top, left, margin, mirrored, border):
    """Pixel by pixel. Beyond an edge, "reflect" goes back without repeating the last pixel."""
    _, height, width = image.shape
    out = np.zeros_like(image)
    for y in range(height):
        for x in range(width):
            row, column = y + top - margin, (width - 1 - x if mirrored else x) + left - margin
            if border == "reflect":
                row, column = abs(row), abs(column)
                row, column = min(row, 2 * (height - 1) - row), min(column, 2 * (width - 1) - column)
            elif not (0 <= row < height and 0 <= column < width):
                continue
            out[:, y, x] = image[:, row, column]
    return out


@pytest.mark.parametrize("border", ["black", "reflect"])
def test_shifts_and_mirrors_are_those_of_a_naive_loop(border):
    images = torch.randint(1, 256, (40, 2, 16, 19), generator=seeded(), dtype=torch.uint8)
    mirrored = torch.rand(40, generator=seeded(1)) < 0.5
    found = augment(images, "shift-flip", seeded(5), mirrored, border).numpy()
    # The first that the generator draws: from 0 to twice the margin of two pixels.
    top, left = torch.randint(5, (2, 40, 1), generator=seeded(5)).squeeze(2).tolist()
    assert {*top, *left} == {0, 1, 2, 3, 4}
    for number, image in enumerate(images.numpy()):
        expected = naive_shift(image, top[number], left[number], 2, mirrored[number].item(), border)
        np.testing.assert_array_equal(found[number], expected)
    unmirrored = augment(images, "shift", seeded(5), mirrored, border).numpy()
    assert (unmirrored == found).all((1, 2, 3)).tolist() == (~mirrored).tolist()
    assert (found == 0).any() == (border == "black")


def test_covers_are_squares_of_grey_with_their_centre_anywhere():
    images = torch.zeros(3000, 2, 6, 9, dtype=torch.uint8)
    covered = cover(images, 4, seeded())
    assert covered.unique().tolist() == [0, 128]
    assert not images.any()
    expected = {}
    for y in range(6):
        for x in range(9):
            image = np.zeros((6, 9), int)
            for row in range(y - 2, y + 2):
                for column in range(x - 2, x + 2):
                    if 0 <= row < 6 and 0 <= column < 9:
                        image[row, column] = 128
            expected[y, x] = image.tobytes()
    places = {image: place for place, image in expected.items()}
    assert len(places) == 54
    counts = dict.fromkeys(expected, 0)
    for image in covered.numpy().astype(int):
        np.testing.assert_array_equal(image[0], image[1])
        counts[places[image[0].tobytes()]] += 1
    # All places are equally likely: 3000 / 54 of each, with a deviation of 7.4.
    assert min(counts.values()) > 55.6 - 5 * 7.4
    assert max(counts.values()) < 55.6 + 5 * 7.4


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"warmup": 1.0}, "warmup"),
        ({"warmup": -0.1}, "warmup"),
        ({"small_share": 1.0}, "small_share"),
        ({"average": 1.0}, "average"),
        ({"average": float("nan")}, "average"),
        ({"cutout": -1}, "cutout"),
        ({"muon_rate": -0.1}, "muon_rate"),
        ({"muon_rate": float("inf")}, "muon_rate"),
        ({"optimiser": "adam"}, "optimiser"),
        ({"border": "white"}, "border"),
        ({"flips": "never"}, "flips"),
        ({"first_layer": "zca"}, "first_layer"),
    ],
)
def test_impossible_recipes_are_refused(changes, named):
    with pytest.raises(UserError, match=f"`{named}` "):
        Recipe(**changes)


def test_a_recipe_is_stored_with_all_its_fields_and_older_ones_are_read():
    tree = RECIPES["fast"].as_tree()
    assert Recipe.from_tree(tree) == RECIPES["fast"]
    assert (tree["optimiser"], tree["flips"], tree["border"]) == ("muon", "alternating", "reflect")
    assert Recipe.from_tree({"epochs": 7}) == Recipe(epochs=7)


PIXELS = 16
BATCH = 8
ONE_THREAD = Hardware(threads=1)


def marked_images():
    """44 images: each a bright pixel of its own brightness, left of the centre by 4 to 3 places."""
    images = torch.zeros(44, 1, PIXELS, PIXELS, dtype=torch.uint8)
    images[torch.arange(44), 0, 8, 4] = 100 + torch.arange(44, dtype=torch.uint8)
    return images, torch.arange(44) % 4


def watched(data, recipe, seen, seed=0, checkpointing=None, stop=None):
    """Train a small network; ``seen`` gets (training mode, images, first kernel) of each of its forward passes."""
    torch.manual_seed(0)
    network = baseline((1, PIXELS, PIXELS), "fast_cnn", 4, width=0.05)
    first = "main.stem.0.weight"

    def watch(module, inputs):
        if stop is not None and len(seen) == stop:
            raise KeyboardInterrupt
        seen.append((module.training, inputs[0].clone(), module.get_parameter(first).detach().clone()))

    network.register_forward_pre_hook(watch)
    return train(data, network, recipe, seed=seed, hardware=ONE_THREAD, checkpointing=checkpointing)


def mirrored_by_pass(seen, steps):
    """For each pass of so many steps: whether each image, known by its brightness, was mirrored."""
    training = [images for is_training, images, _ in seen if is_training]
    passes = []
    for start in range(0, len(training), steps):
        found = {}
        for image in torch.cat(training[start : start + steps]):
            column = image[0].amax(0).argmax().item()
            found[round(255 * image.max().item())] = column > 7
        passes.append(found)
    return passes


FLIPS = Recipe(epochs=4, batch_size=BATCH, augmentation="shift-flip", flips="alternating", learning_rate=0.01)


def test_each_image_is_mirrored_in_every_other_pass():
    passes = {}
    for seed in (0, 1):
        watched(marked_images(), FLIPS, seen := [], seed)
        passes[seed] = mirrored_by_pass(seen, steps=5)
        one, other, third, fourth = passes[seed]
        assert len(one) == 40
        assert one == third
        assert other == fourth == {image: not mirrored for image, mirrored in one.items()}
        assert 8 < sum(one.values()) < 32
    common = passes[0][0].keys() & passes[1][0].keys()
    assert any(passes[0][0][image] != passes[1][0][image] for image in common)
    watched(marked_images(), replace(FLIPS, flips="random"), seen := [])
    one, other, *_ = mirrored_by_pass(seen, steps=5)
    assert one != other != {image: not mirrored for image, mirrored in one.items()}


def test_a_resumed_training_mirrors_and_averages_as_it_would_have(tmp_path):
    recipe = replace(FLIPS, average=0.5, optimiser="muon", cutout=3)
    whole = watched(marked_images(), recipe, seen := [])
    checkpointing = Checkpointing(tmp_path / "progress", resume=True, checkpoint_interval=0)
    with pytest.raises(KeyboardInterrupt):
        # In the middle of the second pass: five steps and a validation, then three steps.
        watched(marked_images(), recipe, parts := [], checkpointing=checkpointing, stop=9)
    resumed = watched(marked_images(), recipe, rest := [], checkpointing=checkpointing)
    again = [images for is_training, images, _ in rest if is_training]
    expected = [images for is_training, images, _ in seen if is_training]
    assert len(parts) == 9
    assert 5 < len(again) < 20
    for mine, other in zip(again, expected[-len(again) :], strict=True):
        assert torch.equal(mine, other)
    for name, value in whole.network.state_dict().items():
        assert torch.equal(value, resumed.network.state_dict()[name]), name


def test_the_first_passes_see_smaller_images():
    recipe = Recipe(epochs=4, batch_size=BATCH, augmentation="none", small_share=0.3)
    watched(marked_images(), recipe, seen := [])
    sides = [images.shape[-1] for is_training, images, _ in seen if is_training]
    # 0.3 of 20 steps, at three quarters of 16 pixels; held-out images keep their size.
    assert sides == [12] * 6 + [16] * 14
    assert {images.shape[-1] for is_training, images, _ in seen if not is_training} == {16}
    total = [images.sum((1, 2, 3)) * (16 / images.shape[-1]) ** 2 for is_training, images, _ in seen if is_training]
    torch.testing.assert_close(total[0].sort().values.mean(), total[-1].mean(), rtol=0.1, atol=0)


@pytest.mark.parametrize("pixels", [8, 10])
def test_images_too_small_to_be_made_smaller_are_refused(pixels):
    images, labels = torch.zeros(40, 1, pixels, pixels, dtype=torch.uint8), torch.arange(40) % 4
    architecture = Architecture("fast_cnn", "baseline", width=0.05)
    recipe = Recipe(epochs=1, batch_size=BATCH, small_share=0.5)
    with pytest.raises(UserError, match=f"`small_share` 0.5: trains on images of {int(0.75 * pixels)} pixels"):
        train((images, labels), architecture, recipe, hardware=ONE_THREAD)


def test_evaluation_uses_the_average_of_the_weights():
    recipe = Recipe(epochs=3, batch_size=BATCH, augmentation="none", average=0.75, learning_rate=0.2)
    model = watched(marked_images(), recipe, seen := [])
    # The average starts with the weights behind the first step.
    weights = [kernel.double() for is_training, _, kernel in seen if is_training]
    average, expected = weights[1], {}
    for step, weight in enumerate(weights[2:], 2):
        average = 0.75 * average + 0.25 * weight
        expected[step] = average
    used = [kernel.double() for is_training, _, kernel in seen if not is_training]
    assert len(used) == 3
    for number, step in enumerate((5, 10)):
        torch.testing.assert_close(used[number], expected[step], atol=1e-6, rtol=0)
        assert (used[number] - weights[step]).abs().max() > 1e-4
    kernel = model.network.main.stem[0].weight.double()
    torch.testing.assert_close(kernel, used[2], atol=0, rtol=0)


def test_averaging_leaves_every_bit_of_a_frozen_front_end(pipeline):
    data, frontend = load_images(DataSource(limit_train=80), "train", seed=0), load_frontend(pipeline.frontend).frontend
    before = copy.deepcopy(frontend.state_dict())
    recipe = Recipe(epochs=2, batch_size=16, average=0.9, optimiser="muon", muon_rate=0.1)
    model = train(data, Architecture("fast_cnn", width=0.1), recipe, frontend=frontend, hardware=ONE_THREAD)
    after = model.network.frontend.state_dict()
    frozen = [name for name in before if not name.endswith(("norm.weight", "norm.bias"))]
    assert len(frozen) > 8
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert any(not torch.equal(before[name], after[name]) for name in before.keys() - frozen)


def test_filters_of_the_first_layer_whiten_patches_in_pairs_of_opposite_sign():
    data = Subset(load_images(DataSource(limit_train=500), "train", seed=0))
    images = data.images
    torch.manual_seed(0)
    network = baseline((1, 8, 8), "fast_cnn", 10, width=0.875)
    network.normalise.measure([images])
    first = network.main.stem[0]
    start = first.weight.detach().clone()
    whiten_first_layer(network, data, seed=0)
    filters = first.weight.detach()
    # Nine axes of 3 x 3 patches, of either sign; of 24 filters, six are left as they were.
    assert len(filters) == 24
    assert torch.equal(filters[:9], -filters[9:18])
    assert torch.equal(filters[18:], start[18:])
    # All patches, not the drawn ones.
    responses = conv2d(network.normalise(images / 255), filters[:9]).transpose(0, 1).flatten(1)
    covariance = torch.cov(responses.double())
    patches = nn.functional.unfold(network.normalise(images / 255), 3).transpose(0, 1).flatten(1).double()
    variances = torch.linalg.eigvalsh(torch.cov(patches)).flip(0)
    expected = torch.diag(variances / (variances + 5e-4))
    torch.testing.assert_close(covariance, expected, atol=0.06, rtol=0)
    # Largest axes first: their filters are the shortest.
    lengths = filters[:9].flatten(1).norm(dim=1)
    assert (lengths.diff() > 0).all()


def test_the_first_layer_that_whitens_depends_on_the_seed_and_is_where_images_are_read(pipeline):
    data = Subset(load_images(DataSource(limit_train=100), "train", seed=0))
    narrow = baseline((1, 8, 8), "fast_cnn", 10, width=0.25)
    kernels = []
    for seed in (0, 0, 1):
        whiten_first_layer(narrow, data, seed)
        kernels.append(narrow.main.stem[0].weight.detach().clone())
    assert torch.equal(kernels[0], kernels[1])
    assert not torch.equal(kernels[0], kernels[2])
    # Eight filters hold the four largest axes.
    assert torch.equal(kernels[0][:4], -kernels[0][4:])
    frontend = load_frontend(pipeline.frontend).frontend
    for maps in (0, 8):
        spec = ModelSpec(
            Architecture("fast_cnn", width=0.25, auxiliary_maps=maps), (1, 8, 8), tuple("0123456789"), frontend.spec
        )
        network = build_model(spec, copy.deepcopy(frontend))
        before = copy.deepcopy(network.state_dict())
        whiten_first_layer(network, data, seed=0)
        changed = [name for name, value in network.state_dict().items() if not torch.equal(value, before[name])]
        assert changed == (["auxiliary.0.weight"] if maps else [])
