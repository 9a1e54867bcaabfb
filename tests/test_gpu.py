"""What a GPU computes is what the CPU computes: to the last bit where sums are exact, else up to rounding.

Every test runs on the CPU, too. There it compares the ways of computing that devices choose between: engines and the
search for steps that run on any device, with the event-driven engine and independent sums.
"""

import csv
import importlib
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch
from conftest import DEVICES, LEARN, TRAIN, Pipeline

from bridge.convert import main as convert
from bridge.sau import SpecialActivationUnit
from bridge.storage import SHIPPED_FRONTENDS, load_frontend
from hybrid.classify import main as classify
from hybrid.conditions.attack import fgsm
from hybrid.embedding import main as embedding
from hybrid.evaluate import main as evaluate
from hybrid.evaluation import predict
from hybrid.margins import main as margins
from hybrid.reproduce import main as reproduce
from hybrid.storage import load_model
from hybrid.swap import main as swap
from hybrid.train import main as train
from snn.calibration import mean_count, normalised_rates, sample_drive
from snn.engines.base import Engine, choose_engine
from snn.geometry import ConvGeometry
from snn.layer import SpikingConv2d
from snn.learn import main as learn
from snn.parameters import Encoding, LayerParameters, LIFParameters, RetinaParameters, STDPParameters
from snn.registries import ENGINES, RULES
from snn.retina import INTENSITY_STEPS, LEVELS, learn_retina
from snn.runtime.device import choose_device
from snn.runtime.random import stream
from snn.spikes import Spikes, as_dense
from snn.storage import load_network

EVENTS = choose_engine("events", "cpu")
"""The engine that the others are compared with."""
SEEDS = torch.tensor([3, 2**61 - 1, 77])
EDGES = torch.tensor([[1.0, 2.0, 4.0], [-1.0, 3.0, torch.inf], [0.5, 0.75, 9.0]])
CONTRAST = ["--retina", "whiten", "--retina.kernel-size", "5", "--retina.patches", "2000", "--inhibition.feed-forward",
            "both"]  # fmt: skip
"""Flags of layers that learn from contrast, with feed-forward inhibition."""
HEIGHTS = torch.tensor([[0.0, 5.0, 7.0, 12.0], [1.0, 2.0, 3.0, 3.0], [0.0, 2.0, 1.0, 6.0]])


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    """Set up as commands set it up: without TF32 on a GPU."""
    return choose_device(request.param).type


@pytest.fixture(params=[name for name in ENGINES if name != "events"])
def engine(request, device) -> Engine:
    """Every other engine, where it simulates on the device."""
    _skip_unless_simulating(request.param, device)
    return choose_engine(request.param, device)


def _skip_unless_simulating(engine: str, device: str) -> None:
    if not ENGINES[engine]().preference(device):
        pytest.skip(f"{engine} does not simulate on {device}")


@pytest.fixture(scope="module")
def contrast(tmp_path_factory) -> Pipeline:
    """Its first two stages as in the small run, on contrast."""
    files = Pipeline(tmp_path_factory.mktemp("contrast"))
    assert learn([*LEARN, *CONTRAST, "--no-figures", "--device", "cpu", "--out", str(files.snn)]) == 0
    arguments = [str(files.snn), "--images", "40", "--no-figures", "--device", "cpu", "--out", str(files.frontend)]
    assert convert(arguments) == 0
    return files


@pytest.fixture(params=["pipeline", "contrast"])
def files(request) -> Pipeline:
    """Files of either run; of the second, its network and front end."""
    return request.getfixturevalue(request.param)


def dense(spikes: Spikes) -> torch.Tensor:
    return as_dense(spikes).cpu()


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def random_spikes(*shape: int, share: float, seed: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def random_layer(stride: int = 1, feed_forward: bool = False) -> SpikingConv2d:
    generator = torch.Generator().manual_seed(5)
    return SpikingConv2d(
        conductance=torch.rand(7, 3, 3, 3, generator=generator),
        gain=(6 + torch.rand(7, generator=generator)) * (12 if feed_forward else 1),
        v_threshold=-60.2 - torch.rand(7, generator=generator),
        geometry=LayerParameters(7, 3, stride, 1, feed_forward_inhibition=feed_forward),
        lif=LIFParameters(),
        dt=2.5,
    )


def digest(path: Path) -> str:
    with h5py.File(path) as file:
        return file.attrs["digest"]


@pytest.mark.parametrize("kind", ["regular", "poisson"])
def test_encoded_spikes_are_those_of_the_event_driven_engine(device, engine, kind):
    images, p = random_images(3, 2, 5, 7), Encoding(kind=kind, f_min=0, quiet=50)
    spikes = engine.encode(images.to(device), p, SEEDS.to(device))
    expected = dense(EVENTS.encode(images, p, SEEDS))
    assert expected.any()
    assert torch.equal(dense(spikes), expected)


@pytest.mark.parametrize("kind", ["whiten", "dog"])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_contrast_is_that_of_single_images_on_the_cpu(device, kind, memory_format):
    images = random_images(40, 3, 16, 14)
    retina = learn_retina(images, RetinaParameters(kind=kind, patches=2000), seed=0)
    assert retina is not None
    expected = torch.cat([retina(image[None] / 255) for image in images])
    on_device, values = retina.copy_to(device), images.to(device, memory_format=memory_format)
    assert len(expected.unique()) > 500
    assert torch.equal(on_device(values / 255).cpu(), expected)
    # Exact sums, each of whole numbers times the filters, in double precision.
    steps = images.double() * (INTENSITY_STEPS // LEVELS)
    exact = torch.nn.functional.pad(steps, (3,) * 4, mode="replicate").unfold(2, 7, 1).unfold(3, 7, 1)
    exact = torch.einsum("bihwkl,oikl->bohw", exact, retina.filters.double()) + retina.offset.reshape(-1, 1, 1)
    assert torch.equal(on_device.response(values.float() * (INTENSITY_STEPS // LEVELS)).cpu().double(), exact)
    assert torch.equal(on_device.encode(values).cpu(), retina.encode(images))


@pytest.mark.parametrize("inhibition", [False, True])
@pytest.mark.parametrize("feed_forward", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_spikes_of_a_layer_are_those_of_the_event_driven_engine(device, engine, inhibition, feed_forward, stride):
    layer, pre = random_layer(stride, feed_forward), random_spikes(80, 3, 3, 8, 6, share=0.08, seed=1)
    expected = dense(EVENTS.simulate(layer, pre, inhibition=inhibition, seeds=SEEDS))
    spikes = engine.simulate(layer.to(device), pre.to(device), inhibition=inhibition, seeds=SEEDS.to(device))
    assert expected.sum() > 100
    assert torch.equal(dense(spikes), expected)


@pytest.mark.parametrize("feed_forward", [False, True])
def test_measured_drives_and_rates_are_those_of_the_event_driven_engine(device, engine, feed_forward):
    layer, pre = random_layer(feed_forward=feed_forward), random_spikes(80, 3, 3, 8, 6, share=0.08, seed=1)
    expected = sample_drive(EVENTS, layer, pre, stream("places"))
    drive = sample_drive(engine, layer.to(device), pre.to(device), stream("places"))
    assert torch.equal(drive.cpu(), expected)
    assert mean_count(engine, layer.to(device), drive) == mean_count(EVENTS, layer, expected) > 0


@pytest.mark.parametrize("rule", list(RULES))
@pytest.mark.parametrize("pairing", ["post", "two-sided"])
def test_counts_of_synaptic_events_are_those_of_the_event_driven_engine(device, engine, rule, pairing):
    p = STDPParameters(rule=rule, pairing=pairing, ltd_delay=100.0)
    pre, post = random_spikes(60, 3, 3, 8, 6, share=0.06, seed=1), random_spikes(60, 3, 4, 4, 3, share=0.1, seed=2)
    rates = normalised_rates(pre, 150.0, (0.0, 40.0))
    tables = RULES[rule](p).chances(len(pre), 2.5, rates.fn)
    geometry = ConvGeometry.of(LayerParameters(4, 3, stride=2, padding=1), (3, 8, 6))
    expected = EVENTS.count_events(pre, post, rates.level, tables, geometry, SEEDS)
    on_device = [values.to(device) for values in (pre, post, rates.level)]
    counts = engine.count_events(*on_device, tables, geometry, SEEDS.to(device))
    for ours, theirs in zip(counts, expected, strict=True):
        assert theirs.sum() > 0
        assert torch.equal(ours.cpu(), theirs)


@pytest.mark.parametrize("engine", ["auto", *(name for name in ENGINES if name != "events")])
def test_a_learned_network_is_the_cpus(device, engine, files, tmp_path):
    if engine != "auto":
        _skip_unless_simulating(engine, device)
    out = tmp_path / "snn.h5"
    expected = load_network(files.snn).network
    flags = [*LEARN, *CONTRAST] if expected.retina else LEARN
    assert learn([*flags, "--no-figures", "--device", device, "--engine", engine, "--out", str(out)]) == 0
    assert digest(out) == digest(files.snn)


def test_a_converted_front_end_is_the_cpus(device, files, tmp_path):
    out = tmp_path / "frontend.h5"
    arguments = [str(files.snn), "--images", "40", "--no-figures", "--device", device, "--out", str(out)]
    assert convert(arguments) == 0
    if device == "cpu":
        assert digest(out) == digest(files.frontend)
    ours, theirs = (load_frontend(path)[0] for path in (out, files.frontend))
    for layer, other in zip(ours.layers, theirs.layers, strict=True):
        assert torch.equal(layer.weight, other.weight)
        assert torch.equal(layer.activation.heights, other.activation.heights)
        torch.testing.assert_close(layer.activation.edges, other.activation.edges, rtol=1e-5, atol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", ["pipeline", "contrast", "shipped"])
def test_features_are_those_of_single_images_on_the_cpu(device, name, memory_format, request):
    shipped = SHIPPED_FRONTENDS / "cifar10-fd.h5"
    file = shipped if name == "shipped" else request.getfixturevalue(name).frontend
    frontend, *_ = load_frontend(file)
    images = random_images(12, *frontend.spec.input_shape).float() / 255
    with torch.no_grad():
        expected = torch.cat([frontend(image[None]) for image in images])
        features = frontend.to(device)(images.to(device, memory_format=memory_format))
    assert len(expected.unique()) > 3
    assert torch.equal(features.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_steps_and_their_slope_in_every_precision(device, dtype, memory_format):
    x = (torch.randn(4, 3, 70, 61, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    # On the edges themselves, where they are numbers of this type.
    x[0, :, 0, :3] = EDGES.to(dtype)
    unit = SpecialActivationUnit(EDGES, HEIGHTS).to(device, dtype)
    drive = x.to(device, memory_format=memory_format).requires_grad_()
    spikes = unit(drive)
    spikes.sum().backward()
    assert (spikes.dtype, spikes.device.type) == (dtype, device)
    assert spikes.stride() == drive.stride()
    for channel, (edges, heights) in enumerate(zip(EDGES, HEIGHTS, strict=True)):
        values, expected = x[:, channel].double(), torch.full_like(x[:, channel], heights[0], dtype=torch.float64)
        for edge, height in zip(edges, heights[1:], strict=True):
            expected[values >= edge] = height
        assert torch.equal(spikes[:, channel].double().cpu(), expected)
        slope, low, high = (getattr(unit, name)[channel].cpu() for name in ("slope", "low", "high"))
        inside = (x[:, channel].float() >= low) & (x[:, channel].float() < high)
        assert inside.any()
        torch.testing.assert_close(drive.grad[:, channel].cpu(), (inside * slope).to(dtype))


@pytest.fixture(params=["safe", "baseline"])
def model(request, pipeline):
    return load_model(getattr(pipeline, request.param))


def test_logits_and_attacks_are_those_of_the_cpu(device, model, digits):
    images, labels = digits.images.float() / 255, digits.labels
    with torch.inference_mode():
        expected = torch.cat([model.network(image[None]) for image in images])
    attack = fgsm(model.network, images, labels, 8)
    torch.testing.assert_close(predict(model.network, images, device, batch_size=23), expected, rtol=1e-3, atol=1e-3)
    moved = fgsm(model.network.to(device), images.to(device), labels.to(device), 8).cpu()
    # The sign of a gradient that is all but zero may turn.
    assert (moved != attack).float().mean() < 0.01
    assert (moved - images).abs().amax() == pytest.approx(8 / 255, abs=1e-6)


@pytest.mark.parametrize("variant", ["safe", "baseline"])
def test_a_training_in_this_devices_precision_learns(device, variant, pipeline, tmp_path):
    out = tmp_path / "model.h5"
    flags = ["--frontend", str(pipeline.frontend)] if variant == "safe" else ["--variant", variant]
    assert train([*TRAIN, *flags, "--no-figures", "--device", device, "--out", str(out)]) == 0
    trained, reference = load_model(out), load_model(getattr(pipeline, variant))
    if device == "cpu":
        assert trained.digest == reference.digest
    assert all(value.isfinite().all() for value in trained.network.state_dict().values())
    for name in ("train_loss", "val_loss"):
        # bfloat16 keeps 8 bits.
        assert trained.history[name] == pytest.approx(reference.history[name], rel=0.1)
    if variant == "safe":
        # The frozen layers have kept every bit.
        for layer, frozen in zip(trained.network.frontend.layers, load_frontend(pipeline.frontend)[0].layers,
                                 strict=True):  # fmt: skip
            assert torch.equal(layer.weight, frozen.weight)
            assert torch.equal(layer.activation.edges, frozen.activation.edges)


def test_evaluated_accuracies_are_those_of_the_cpu(device, pipeline, tmp_path):
    out = tmp_path / "results.csv"
    conditions = ["--noise", "clean", "awgn:12", "salt-pepper:0.2"]
    models = [str(pipeline.safe), str(pipeline.baseline)]
    assert evaluate([*models, *conditions, "--no-figures", "--device", device, "--out", str(out)]) == 0
    if device == "cpu":
        assert out.read_bytes() == pipeline.results.read_bytes()
    with open(out) as ours, open(pipeline.results) as theirs:
        for row, other in zip(csv.DictReader(ours), csv.DictReader(theirs), strict=True):
            assert row["condition"] == other["condition"]
            assert abs(int(row["correct"]) - int(other["correct"])) <= 6


@pytest.fixture(scope="module")
def mu(pipeline, tmp_path_factory) -> Path:
    """A network that hybrid.swap takes."""
    out = tmp_path_factory.mktemp("mu") / "mu.h5"
    flags = ["--variant", "mu", "--frontend", str(pipeline.frontend), "--epochs", "1", "--no-figures"]
    assert train([*TRAIN, *flags, "--out", str(out)]) == 0
    return out


PHOTO = str(Path(__file__).parents[1] / "docs" / "figures" / "network.png")
COMMANDS: dict[str, tuple[Callable[[list[str]], int], list[str]]] = {
    "answers.png": (classify, ["{safe}", PHOTO, "--noise", "awgn:15"]),
    "attack.csv": (evaluate, ["{baseline}", "--attack-model", "{safe}", "--noise", "fgsm:8", "--limit-test", "60"]),
    "embedding.png": (embedding, ["{safe}", "--noise", "clean", "--limit-test", "60"]),
    "lambda.h5": (swap, ["{mu}", "--frontend", "{frontend}", "--images", "60"]),
    "margins.csv": (margins, ["{frontend}", "--limit-test", "40"]),
    "tables": (reproduce, ["table2", "--dry-run", "--data", "digits", "--scale", "small"]),
}
"""Commands that no test above runs, by what they write."""


@pytest.mark.parametrize("out", COMMANDS)
def test_every_other_command_runs(device, out, pipeline, mu, tmp_path):
    main, arguments = COMMANDS[out]
    files = {file: str(getattr(pipeline, file)) for file in ("safe", "baseline", "frontend")} | {"mu": str(mu)}
    arguments = [argument.format(**files) for argument in arguments]
    assert main([*arguments, "--device", device, "--out", str(tmp_path / out)]) == 0


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.needs_validation
@pytest.mark.parametrize(
    ("command", "flags"),
    [
        ("hybrid.complexity", []),
        ("validation.freq_response", ["--quick"]),
        ("validation.network", ["--quick"]),
        ("validation.stdp_window", ["--quick"]),
    ],
)
def test_commands_that_take_long_on_a_cpu(command, flags, tmp_path):
    main = importlib.import_module(command).main
    assert main([*flags, "--device", "cuda", "--out", str(tmp_path / "out")]) == 0
