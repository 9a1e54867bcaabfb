"""Networks taken from torchvision, whole and without their first blocks; and the variants built on them."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import generic_filter, median_filter
from torch import nn
from torchvision.models import EfficientNet, densenet121, efficientnet_b0, resnet18, resnet101

from bridge.frontend import FrontEndSpec, LayerSpec
from bridge.storage import load_frontend
from hybrid.architecture import Architecture, ModelSpec, build_model
from hybrid.backbones import BACKBONES, Adapter, full_backbone, last_linear, main_cnn, register_backbone
from hybrid.backbones.base import EMBEDDING
from hybrid.complexity import count_macs
from hybrid.evaluate import main as evaluate_command
from hybrid.network import embed
from hybrid.preprocess import Preprocess
from hybrid.recipe import Recipe
from hybrid.swap import percentile, swap
from hybrid.train import main as train_command
from hybrid.training import train
from snn.data import load_images
from snn.data_source import DataSource
from snn.parameters import Encoding
from snn.runtime.errors import UserError

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
PAPER_PARAMETERS = {"mobilenet_v2": 3.50, "resnet101": 44.55, "densenet121": 7.98}


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def spec(variant: str, backbone: str = "mobilenet_v2", size: int = 16, strides=(1, 1), **architecture) -> ModelSpec:
    layers = (LayerSpec(6, 3, strides[0], 1, 5, False), LayerSpec(10, 3, strides[1], 1, 7, True))
    front = FrontEndSpec((3, size, size), layers, Encoding())
    given = Architecture(variant=variant, backbone=backbone, **architecture)
    return ModelSpec(given, (3, size, size), tuple("abcd"), None if variant == "baseline" else front)


@pytest.mark.parametrize("build", [resnet101, densenet121, resnet18])
def test_stock_networks_are_torchvisions(build):
    ours, theirs = full_backbone(build.__name__, 3, 7, 224).eval(), build(num_classes=7).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("name", PAPER_PARAMETERS)
def test_baselines_have_the_papers_parameters(name):
    assert round(count(full_backbone(name, 3, 1000, 224)) / 1e6, 2) == PAPER_PARAMETERS[name]


@pytest.mark.parametrize("name", list(BACKBONES))
@pytest.mark.parametrize(("size", "stride"), [(8, 1), (32, 1), (96, 1), (96, 2), (96, 4)])
@pytest.mark.parametrize("dropped", [1, 0])
def test_what_is_kept_works_at_its_usual_resolution(name, size, stride, dropped):
    sizes, features = {}, torch.rand(2, 24, size // stride, size // stride)
    for built, images in (
        (full_backbone(name, 3, 10, size), torch.rand(2, 3, size, size)),
        (main_cnn(name, 24, 10, size, front_stride=stride, dropped_blocks=dropped), features),
    ):
        seen: list[torch.Size] = []
        handles = [
            module.register_forward_hook(lambda m, i, output, seen=seen: seen.append(output.shape[1:]))
            for module in built.modules()
            if isinstance(module, nn.Conv2d)
        ]
        with torch.no_grad():
            assert built.eval()(images).shape == (2, 10)
        for handle in handles:
            handle.remove()
        sizes[built] = seen
    full, main = sizes.values()
    # From the second kept block on all shapes are those of the whole network.
    tail = len(main) * 3 // 4
    assert main[-tail:] == full[-tail:]
    if dropped:
        assert len(main) < len(full)
    else:
        # The stem is gone. The rebuilt block may have a convolution more, which widens the features.
        assert len(full) - 1 <= len(main) <= len(full)


@pytest.mark.parametrize("name", [n for n in BACKBONES if BACKBONES[n].has_width])
def test_width_makes_networks_narrower(name):
    assert count(full_backbone(name, 3, 10, 32, width=0.25)) < 0.5 * count(full_backbone(name, 3, 10, 32))


@pytest.mark.parametrize(
    ("size", "front_stride", "dropped_blocks", "resolutions"),
    [
        # Stem, then two convolutions in each of three stages, the first before its 2 x 2 maximum. Stem and the first
        # of them are dropped; the maximum behind the second then leaves the resolution that theirs left.
        (32, None, None, [32, 32, 16, 16, 16, 8, 8, 8, 4, 4]),
        (32, 1, 1, [32, 16, 16, 8, 8, 8, 4, 4]),
        (32, 4, 1, [8, 8, 8, 4, 4, 4, 2, 2]),
        (224, None, None, [56, 56, 28, 28, 28, 14, 14, 14, 7, 7]),
        (224, 1, 1, [224, 28, 28, 14, 14, 14, 7, 7]),
        (224, 4, 1, [56, 28, 28, 14, 14, 14, 7, 7]),
        (8, None, None, [8, 8, 4, 4, 4, 2, 2, 2, 1, 1]),
        # Where only the stem is dropped, the first convolution of a stage keeps its maximum.
        (32, 1, 0, [32, 16, 16, 16, 8, 8, 8, 4, 4]),
        (224, 4, 0, [56, 28, 28, 28, 14, 14, 14, 7, 7]),
    ],
)
def test_fast_cnn_halves_its_resolution_in_each_stage(size, front_stride, dropped_blocks, resolutions):
    if front_stride is None:
        network, images = full_backbone("fast_cnn", 3, 10, size, width=0.25), torch.rand(1, 3, size, size)
    else:
        network = main_cnn("fast_cnn", 18, 10, size, 0.25, front_stride=front_stride, dropped_blocks=dropped_blocks)
        images = torch.rand(1, 18, size // front_stride, size // front_stride)
    seen = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, inputs, output: seen.append(output.shape[-1]))
    with torch.no_grad():
        assert network.eval()(images).shape == (1, 10)
    assert seen == resolutions
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    # 7 x 7 pixels at stride 4 only where the stem reads a large image.
    first = (7, 4) if size == 224 and front_stride is None else (3, 1)
    assert [(c.kernel_size[0], c.stride[0]) for c in convolutions] == [first] + [(3, 1)] * (len(seen) - 1)
    widths = {None: [8, 16], 0: [16], 1: []}[dropped_blocks] + [16] * 2 + [64] * 6
    assert [c.out_channels for c in convolutions] == widths


def test_fast_cnn_has_widths_of_eights_one_linear_layer_and_images_of_8_pixels_or_more():
    for width in (0.03, 0.3, 0.75, 1.0, 1.37):
        network = full_backbone("fast_cnn", 1, 7, 8, width=width).eval()
        convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
        assert convolutions[0].in_channels == 1
        for found, base in zip(convolutions, [24, *[64] * 3, *[256] * 6], strict=True):
            assert found.out_channels % 8 == 0
            assert found.out_channels == 8 or abs(found.out_channels - width * base) <= 4
        assert network(torch.rand(2, 1, 8, 8)).shape == (2, 7)
        assert sum(isinstance(m, nn.Linear) for m in network.modules()) == 1
        assert sum(isinstance(m, nn.Linear) for m in full_backbone("fast_cnn", 1, 7, 8, width, 32).modules()) == 2
    with pytest.raises(UserError, match="images of 7 pixels: fast_cnn needs 8"):
        full_backbone("fast_cnn", 1, 7, 7)


def test_fast_cnn_costs_what_its_convolutions_do():
    # Places, input and output channels of each 3 x 3 convolution.
    places = [n**2 for n in (32, 32, 16, 16, 16, 8, 8, 8, 4, 4)]
    channels = [3, 24, *[64] * 3, *[256] * 6]
    weights = [9 * a * b for a, b in pairwise(channels)]
    products = [n * kernel for n, kernel in zip(places, weights, strict=True)]
    network = full_backbone("fast_cnn", 3, 10, 32)
    assert count_macs(network, (3, 32, 32)) == sum(products) + 256 * 10
    assert count(network) == sum(weights) + 2 * sum(channels[1:]) + 256 * 10 + 10


def test_the_last_convolution_of_a_stage_of_fast_cnn_is_added_to_its_input():
    torch.manual_seed(0)
    network = full_backbone("fast_cnn", 3, 10, 32, width=0.25).eval()
    for stage, resolution in zip(network.stages, (32, 16, 8), strict=True):
        for module in stage.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean)
        features = torch.rand(2, next(stage.parameters()).shape[1], resolution, resolution)
        (*first, second, last), convolutions = stage, [m for m in stage.modules() if isinstance(m, nn.Conv2d)]
        with torch.no_grad():
            before = second(first[0](features))
            normalised = last[1](nn.functional.conv2d(before, convolutions[2].weight, padding=1))
            torch.testing.assert_close(stage(features), before + nn.functional.gelu(normalised))


def test_impossible_backbones_are_refused():
    with pytest.raises(UserError, match=r"`width` 0\.5: resnet18"):
        full_backbone("resnet18", 3, 10, 32, width=0.5)
    with pytest.raises(UserError, match="densenet121 needs 8"):
        full_backbone("densenet121", 3, 10, 4)


def test_an_adapter_of_a_few_lines_brings_another_classifier():
    @register_backbone("my_efficientnet")
    class EfficientNetB0(Adapter[EfficientNet]):
        stem, head, strides, has_width = "features.0.0", "classifier.1", (4, 2), False

        def build(self, classes, width):
            return efficientnet_b0(num_classes=classes)

        def use_small_strides(self, network):
            network.features[0][0].stride = (1, 1)

        def drop_stem(self, network, channels, stride):
            # The next block is a downsampling one: a 1x1 convolution brings the features to its depth.
            bridge = nn.Conv2d(channels, 16, 1, max(1, stride // 2), bias=False)
            network.features = nn.Sequential(bridge, *network.features[2:])

    with pytest.raises(UserError, match=r"`dropped_blocks` 0: .*`drops_only_stem`"):
        Architecture("my_efficientnet", dropped_blocks=0)
    for variant in ("baseline", "mu"):
        network = build_model(spec(variant, "my_efficientnet", size=32)).eval()
        assert network(torch.rand(2, 3, 32, 32)).shape == (2, 4)
    with pytest.raises(UserError, match="my_efficientnet"):
        full_backbone("alexnet", 3, 10, 32)
    with pytest.raises(UserError, match="registered already"):
        register_backbone("my_efficientnet")(EfficientNetB0)


RESNET34 = """
from torchvision.models import resnet34

from hybrid.backbones import register_backbone
from hybrid.backbones.resnet import ResNetAdapter


@register_backbone("my_resnet34")
class ResNet34(ResNetAdapter):
    has_width = False

    def build(self, classes, width):
        return resnet34(num_classes=classes)
"""


def test_a_backbone_of_a_plugin_is_trained_and_evaluated_by_the_commands(pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my_backbone.py").write_text(RESNET34)
    plugin = ["--plugin", "my_backbone.py"]
    images = ["--limit-train", "30", "--epochs", "1", "--batch-size", "8", "--no-figures"]
    evaluation = ["my.h5", "--noise", "clean", "--limit-test", "20", "--out", "my.csv"]
    network = ["--backbone", "my_resnet34", "--frontend", str(pipeline.frontend)]
    assert train_command([*plugin, *network, *images, "--out", "my.h5"]) == 0
    assert evaluate_command([*plugin, *evaluation]) == 0
    assert "my_resnet34" in Path("my.csv").read_text()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train_command([*plugin, "--help"])
    words = "".join(re.findall(r"[\w,{}]", capsys.readouterr().out))
    assert "mobilenet_v2_shallow" in words
    assert "my_resnet34}" in words
    # Another process does not know it without the plugin.
    command = [sys.executable, "-m", "hybrid.evaluate", *evaluation]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "backbone 'my_resnet34': unknown" in result.stderr
    assert "--plugin" in result.stderr


@pytest.mark.parametrize("name", list(BACKBONES))
def test_the_embedding_lies_between_two_fully_connected_layers(name):
    # One has such layers only where it is told.
    own = BACKBONES[name].embedding
    network = build_model(spec("baseline", name, embedding=None if own else EMBEDDING)).eval()
    images = torch.rand(3, 3, 16, 16)
    with torch.no_grad():
        embedding, logits = embed(network, images)
        assert embedding.shape == (3, EMBEDDING)
        assert torch.equal(last_linear(network.main)(embedding), logits)
        assert torch.equal(network(images), logits)
    assert [m.in_features for m in network.main.modules() if isinstance(m, nn.Linear)][-1] == EMBEDDING
    stock = build_model(spec("baseline", name, embedding=0))
    assert sum(isinstance(m, nn.Linear) for m in stock.modules()) == 1


def test_mu_has_the_shape_of_safe_and_all_of_it_trains():
    mu, safe = build_model(spec("mu")), build_model(spec("safe"))
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert mu.eval().frontend(images).shape == safe.eval().frontend(images).shape == (2, 10, 16, 16)
    assert [p.shape for p in mu.main.parameters()] == [p.shape for p in safe.main.parameters()]
    convolutions = [layer.conv.weight for layer in mu.frontend.layers]
    assert [c.shape for c in convolutions] == [layer.weight.shape for layer in safe.frontend.layers]
    mu.train()(images).sum().backward()
    assert all(c.grad is not None and c.grad.any() for c in convolutions)


def test_without_auxiliary_cnn_the_front_end_is_all_there_is():
    network = build_model(spec("safe", auxiliary_maps=0)).eval()
    for layer in network.frontend.layers:
        # Empty step functions have no height to be a share of.
        layer.activation.heights.fill_(1.0)
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(network(images), network.main(network.frontend(images)))
    assert not network.has_two_paths


def test_average_filter_is_the_mean_of_a_window():
    images = torch.rand(2, 3, 5, 6)
    padded = torch.cat((images, images[..., -1:]), 3)
    padded = torch.cat((padded, padded[:, :, -1:]), 2)
    expected = torch.empty_like(images)
    for y in range(5):
        for x in range(6):
            expected[:, :, y, x] = padded[:, :, y : y + 2, x : x + 2].mean((2, 3))
    torch.testing.assert_close(Preprocess("average:2").build()(images), expected)
    assert torch.equal(Preprocess("average:1").build()(images), images)
    assert Preprocess("average:3").build()(images).shape == images.shape


@pytest.mark.parametrize("window", [3, 5])
def test_median_filter_is_the_median_of_a_window(window):
    # Equal values, too.
    images = torch.randint(0, 20, (2, 3, 5, 6)) / 20
    expected = median_filter(images.numpy(), size=(1, 1, window, window), mode="nearest")
    assert torch.equal(Preprocess(f"median:{window}").build()(images), torch.from_numpy(expected))


@pytest.mark.parametrize(("window", "trimmed"), [(3, 1), (3, 3), (5, 2), (5, 11)])
def test_trimmed_filter_is_the_mean_of_the_middle_values(window, trimmed):
    images = torch.randint(0, 20, (2, 3, 5, 6)) / 20

    def middle(values):
        return np.sort(values)[trimmed:-trimmed].mean()

    expected = generic_filter(images.double().numpy(), middle, size=(1, 1, window, window), mode="nearest")
    found = Preprocess(f"trimmed:{window},{trimmed}").build()(images)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)


def test_trimmed_filter_passes_the_gradient_to_the_values_that_it_keeps():
    images = torch.rand(1, 1, 3, 3, requires_grad=True)
    Preprocess("trimmed:3,1").build()(images)[0, 0, 1, 1].backward()
    outside = (images == images.max()) | (images == images.min())
    torch.testing.assert_close(images.grad, (~outside) / 7)


def test_median_filter_passes_the_gradient_to_the_median_alone():
    images = torch.rand(1, 1, 5, 5, requires_grad=True)
    middle = Preprocess("median:5").build()(images)[0, 0, 2, 2]
    middle.backward()
    assert torch.equal(images.grad, (images == images.median()).float())


def test_quantising_keeps_the_encoders_levels():
    images = torch.arange(256.0).reshape(1, 1, 16, 16) / 255
    levels = Preprocess("quantise").build()(images)
    # 3 to 9 spikes in 300 ms at 10 to 30 Hz.
    expected = [(int(3 + 6 * value / 255 + 1e-9) - 3) / 6 for value in range(256)]
    torch.testing.assert_close(levels.flatten(), torch.tensor(expected))
    assert len(Preprocess("quantise:0,20,400").build()(images).unique()) == 9
    images.requires_grad_()
    Preprocess("quantise").build()(images).sum().backward()
    torch.testing.assert_close(images.grad, torch.ones_like(images))


@pytest.mark.parametrize(
    "text",
    [
        "average",
        "average:0",
        "average:x",
        "median",
        "median:2",
        "median:7",
        "trimmed:3",
        "trimmed:3,0",
        "trimmed:3,4",
        "trimmed:4,1",
        "trimmed:3,1.5",
        "blur",
        "none:1",
        "quantise:1",
        "quantise:9,3,300",
    ],
)
def test_unknown_preprocessing_is_refused(text):
    with pytest.raises(UserError, match=r"preprocess|encoding rates"):
        Architecture(preprocess=Preprocess.parse(text))


@pytest.fixture(scope="module")
def mu(pipeline):
    data = load_images(DataSource(limit_train=120), "train", seed=0)
    frontend, _, _ = load_frontend(pipeline.frontend)
    model = train(data, Architecture(variant="mu", width=0.25), Recipe(epochs=1, batch_size=16), frontend=frontend)
    return model, frontend, data.images


def test_literal_lambda_has_the_front_ends_steps(mu):
    model, frontend, images = mu
    made = swap(model, frontend, images, "literal")
    for layer, converted in zip(made.network.frontend.layers, frontend.layers, strict=True):
        assert torch.equal(layer.activation.edges, converted.activation.edges)
    tops = [layer.activation.heights.max().item() for layer in made.network.frontend.layers]
    assert tops == [frontend.layers[0].activation.heights.max().item(), 1.0]
    assert made.spec.architecture == replace(model.spec.architecture, variant="lambda")


def test_rescaled_lambda_follows_the_activations(mu):
    model, frontend, images = mu
    made = swap(model, frontend, images, "range")
    before, after = model.network, made.network
    with torch.no_grad():
        x = before.normalise(images / 255)
        first, stepped = before.frontend.layers[0], after.frontend.layers[0]
        drive = first.norm(first.conv(x))
        top = drive.relu().flatten().quantile(0.999)
        torch.testing.assert_close(stepped.activation.edges.max(), top)
        torch.testing.assert_close(stepped.activation.heights.max(), top)
        correlation = torch.corrcoef(torch.stack((drive.relu().flatten(), stepped(x).flatten())))[0, 1]
        assert correlation > 0.8
    # Nothing else changed, and nothing of the mu.
    kept = [key for key in before.state_dict() if "activation" not in key]
    assert all(torch.equal(before.state_dict()[key], after.state_dict()[key]) for key in kept)
    assert isinstance(before.frontend.layers[0].activation, nn.ReLU)


def test_lambda_is_made_of_a_mu_and_its_front_end_only(mu, pipeline):
    model, frontend, images = mu
    other = replace(model, spec=replace(model.spec, architecture=replace(model.spec.architecture, variant="safe")))
    with pytest.raises(UserError, match="`variant` mu"):
        swap(other, frontend, images, "range")
    assert percentile(torch.arange(1001.0)) == pytest.approx(999)
