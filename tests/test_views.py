"""What each stage of a network sees of images, against the network's own answer and naive pictures."""

import numpy as np
import pytest
import torch
from torch import Tensor

import bridge
import hybrid
from hybrid.network import HybridNetwork
from hybrid.views import picture, tile, views
from snn.retina import Retina


def image_batch(count: int = 3) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def safe() -> hybrid.TrainedModel:
    return hybrid.load("pretrained:safe-cifar10")


def test_the_stages_of_a_shipped_network_in_order(safe: hybrid.TrainedModel) -> None:
    seen = views(safe.network, image_batch())
    assert {stage: tuple(maps.shape) for stage, maps in seen.items()} == {
        "image": (3, 3, 32, 32),
        "contrast": (3, 6, 32, 32),
        "conv1": (3, 64, 32, 32),
        "auxiliary": (3, 32, 32, 32),
    }
    assert all(maps.dtype == torch.float32 for maps in seen.values())


def test_the_main_network_answers_from_what_the_views_show(safe: hybrid.TrainedModel) -> None:
    images, network = image_batch(), safe.network
    assert isinstance(network, HybridNetwork)
    seen = views(network, images)
    with torch.no_grad():
        answer = network.main(torch.cat([seen["conv1"], seen["auxiliary"]], dim=1))
    torch.testing.assert_close(answer, safe(images), rtol=1e-4, atol=1e-4)


def test_contrast_is_the_filter_and_its_reverse(safe: hybrid.TrainedModel) -> None:
    images = image_batch(1)
    retina = safe.network.get_submodule("frontend.retina")
    assert isinstance(retina, Retina)
    # By hand, one place away from the border: intensities in whole steps of 1/1020.
    steps = (images[0, :, 7:14, 10:17] * 1020).round().double()
    signed = (retina.filters[1].double() * steps).sum() + retina.offset[1].double()
    seen = views(safe.network, images)["contrast"][0]
    assert seen[1, 10, 13].item() == pytest.approx(max(0, min(1, signed.round().item() / 1020)), abs=1e-6)
    assert seen[4, 10, 13].item() == pytest.approx(max(0, min(1, -signed.round().item() / 1020)), abs=1e-6)


def test_preprocessing_comes_first_and_the_mode_is_evaluation() -> None:
    network = hybrid.baseline((3, 32, 32), "fast_cnn", width=0.25, preprocess=hybrid.Preprocess("average:3")).train()
    images = image_batch(1)
    seen = views(network, images)
    assert list(seen) == ["image"]
    assert seen["image"][0, 2, 5, 9].item() == pytest.approx(images[0, 2, 4:7, 8:11].mean().item(), abs=1e-6)
    assert not network.training


@pytest.mark.parametrize("variant", ["mu", "lambda"])
def test_trainable_layers_each_have_a_stage(variant: str) -> None:
    frontend = bridge.load("pretrained:cifar10-fd")
    network = hybrid.safe_dnn(frontend, "fast_cnn", width=0.25, variant=variant, auxiliary_maps=0)
    assert isinstance(network, HybridNetwork)
    images = image_batch(2)
    seen = views(network, images)
    layers = len(frontend.spec.layers)
    assert list(seen) == ["image", *(f"conv{number}" for number in range(1, layers + 1))]
    with torch.no_grad():
        torch.testing.assert_close(network.main(seen[f"conv{layers}"]), network(images))


def test_spiking_layers_are_shares_of_their_most_spikes() -> None:
    frontend = bridge.load("pretrained:cifar10-fd")
    network = hybrid.safe_dnn(frontend, "fast_cnn", width=0.25)
    seen = views(network, image_batch(2))
    for number, (layer, spikes) in enumerate(zip(frontend.layers, frontend.spikes(image_batch(2)), strict=True), 1):
        shown = seen[f"conv{number}"]
        torch.testing.assert_close(shown * layer.activation.heights.max(), spikes)
        assert 0 <= shown.min() <= shown.max() <= 1


def test_tiles_against_a_naive_loop() -> None:
    maps = torch.arange(5 * 2 * 4, dtype=torch.float32).reshape(5, 2, 4)
    # Five maps of 2 x 4: two columns and three rows are nearest to a square.
    expected = np.ones((3 * 2 + 2, 2 * 4 + 1))
    for number in range(5):
        for y in range(2):
            for x in range(4):
                expected[number // 2 * 3 + y, number % 2 * 5 + x] = maps[number, y, x].item() / 39
    np.testing.assert_allclose(tile(maps), expected, rtol=1e-6)
    np.testing.assert_allclose(tile(maps, 78.0)[0, 1], 1 / 78, rtol=1e-6)
    assert tile(torch.zeros(1, 2, 2)).tolist() == [[0, 0], [0, 0]]


def test_pictures_of_colours_contrast_and_grey() -> None:
    colour = image_batch(1)[0]
    np.testing.assert_array_equal(picture("image", colour)[5, 9], colour[:, 5, 9].numpy())
    assert picture("image", colour[:1]).shape == (32, 32)
    contrast = torch.zeros(6, 4, 4)
    contrast[1, 2, 3], contrast[5, 2, 3] = 1.0, 0.5
    shown = picture("contrast", contrast)
    assert shown[2, 3].tolist() == [0.5, 1.0, 0.25]
    assert shown[0, 0].tolist() == [0.5, 0.5, 0.5]
    assert picture("contrast", torch.zeros(2, 4, 4)).tolist() == [[0.5] * 4] * 4
    # Colours that a screen cannot mix are tiles.
    assert picture("image", torch.zeros(2, 4, 4)).shape == (4, 9)
