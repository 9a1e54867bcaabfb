"""The GPU engine's kernels, run by Triton's interpreter where there is no GPU: the bits of the event-driven engine."""

import os
import subprocess
import sys

import pytest
import torch
from conftest import DEVICES

import snn
from snn.calibration import normalised_rates
from snn.data_source import UNNAMED
from snn.engines.base import choose_engine
from snn.engines.gpu.packed import PackedSpikes, words_of
from snn.engines.gpu.tiles import Tile
from snn.geometry import ConvGeometry
from snn.layer import SpikingConv2d
from snn.learning import Inhibition
from snn.parameters import Encoding, LayerParameters, LIFParameters, RetinaParameters, STDPParameters
from snn.registries import ENGINES, RULES
from snn.spikes import SpikeEvents, as_dense
from snn.storage import save

EVENTS = choose_engine("events")
SEEDS = torch.tensor([3, 2**61 - 1, 77])
STEPS = 37
"""Not a whole number of words of 32 steps."""


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch) -> str:
    if request.param == "cpu":
        if torch.cuda.is_available():
            pytest.skip("the kernels are compiled, as there is a GPU")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    if not ENGINES["gpu"]().preference(request.param):
        pytest.skip("Triton is not installed")
    return request.param


@pytest.fixture
def engine(device):
    return choose_engine("gpu", device)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_spikes(*shape: int, share: float = 0.08, seed: int = 1) -> torch.Tensor:
    return torch.rand(shape, generator=generator(seed)) < share


def random_layer(channels: int, channels_in: int, *, gain: float = 1.0, **geometry) -> SpikingConv2d:
    """A layer that fires, whose channels differ in gain and threshold."""
    p = LayerParameters(channels, **geometry)
    shape = (channels, channels_in, p.kernel_size, p.kernel_size)
    draws = generator(5)
    strength = 150 * gain / (channels_in * p.kernel_size**2) * (8 if p.feed_forward_inhibition else 1)
    return SpikingConv2d(
        conductance=torch.rand(shape, generator=draws),
        gain=strength * (1 + torch.rand(channels, generator=draws)),
        v_threshold=-60.2 - torch.rand(channels, generator=draws),
        geometry=p,
        lif=LIFParameters(),
        dt=2.5,
    )


@pytest.mark.parametrize("steps", [1, 31, 32, 33, 70])
def test_packing_loses_nothing(device, steps):
    spikes = random_spikes(steps, 2, 3, 4, 5, share=0.3)
    packed = PackedSpikes.from_dense(spikes.to(device))
    assert packed.words.shape == (2, words_of(steps), 4, 5, 3)
    assert (len(packed), packed.batch_size, packed.shape) == (steps, 2, (3, 4, 5))
    assert torch.equal(packed.to_dense().cpu(), spikes)
    assert torch.equal(packed.counts().cpu(), spikes.sum(0, dtype=torch.int16))
    # Bit t of the words of a neuron is its step t.
    for t in range(steps):
        assert torch.equal((packed.words[:, t // 32] >> t % 32 & 1).bool().permute(0, 3, 1, 2).cpu(), spikes[t])


@pytest.mark.parametrize("kind", ["regular", "poisson"])
def test_encoded_bits_are_the_spikes_of_the_event_driven_engine(engine, device, kind):
    images = torch.randint(256, (3, 2, 9, 17), dtype=torch.uint8, generator=generator(0))
    p = Encoding(kind=kind, f_min=0, f_max=60, presentation=92.5, quiet=10)
    spikes = engine.encode(images.to(device), p, SEEDS.to(device))
    assert isinstance(spikes, PackedSpikes)
    expected = EVENTS.encode(images, p, SEEDS).to_dense()
    assert expected.sum() > 500
    assert torch.equal(spikes.to_dense().cpu(), expected)


@pytest.mark.parametrize("pulse", [1, 2, 6, 31, 32, 33, 50])
def test_pulses_last_as_long_as_they_should(engine, device, pulse):
    spikes = random_spikes(75, 2, 1, 5, 4, share=0.02)
    layer = random_layer(1, 1, kernel_size=1, stride=1, padding=0, pulse_width=2.5 * pulse)
    drive = engine.sample_drive(layer.to(device), spikes.to(device), torch.arange(40))
    for image, y, x in [(0, 0, 0), (1, 2, 3), (1, 4, 1)]:
        for t in range(75):
            open_ = spikes[max(0, t - pulse + 1) : t + 1, image, 0, y, x].any()
            assert (drive[t, (image * 5 + y) * 4 + x, 0] > 0) == open_


def test_arguments_that_are_not_contiguous_are_read_as_they_are(engine, device):
    """As the share of a process in a mini-batch."""
    seeds, places = torch.arange(6, dtype=torch.int64) * 2**40, torch.arange(60).flip(0)[::2]
    images = torch.randint(256, (6, 6, 5, 2), dtype=torch.uint8, generator=generator(0)).permute(0, 3, 1, 2)
    layer, p = random_layer(4, 2, kernel_size=3, stride=1, padding=1), Encoding(f_max=60, presentation=92.5, quiet=10)
    layer = layer.with_values(gain=layer.gain[:1].expand(4), v_threshold=layer.v_threshold[:1].expand(4))
    level = torch.zeros(6, 5, 6, 2, dtype=torch.int64).permute(0, 3, 2, 1)[1::2]
    table, results = torch.full((38, 1), 2**29, dtype=torch.int32), []
    table[::2] *= -1
    for simulator, where in ((EVENTS, "cpu"), (engine, device)):
        on_device = [each.to(where) for each in (images[1::2], seeds, level)]
        share = on_device[1][1::2]
        assert not share.is_contiguous()
        pre, placed = simulator.encode(on_device[0], p, share), layer.to(where)
        post = simulator.simulate(placed, pre, inhibition=True, seeds=share)
        counts = simulator.count_events(pre, post, on_device[2], [table], layer.convolution((2, 6, 5)), share)
        drive = simulator.sample_drive(placed, pre, places)
        results.append([as_dense(pre).cpu(), as_dense(post).cpu(), *(each.cpu() for each in (*counts, drive))])
    assert all(each.any() for each in results[0])
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


LAYERS = {
    "one synapse": (3, 1, dict(kernel_size=1, stride=1, padding=0)),
    "two synapses": (2, 2, dict(kernel_size=1, stride=2, padding=0)),
    "stride": (7, 3, dict(kernel_size=3, stride=2, padding=1)),
    "gaps": (4, 2, dict(kernel_size=2, stride=3, padding=0)),
    "padding": (17, 2, dict(kernel_size=5, stride=1, padding=2)),
    "wide padding": (5, 2, dict(kernel_size=4, stride=1, padding=3)),
    "several tiles": (33, 3, dict(kernel_size=3, stride=1, padding=1)),
    "long pulses": (6, 3, dict(kernel_size=3, stride=1, padding=1, pulse_width=50.0)),
    "long inhibition": (6, 3, dict(kernel_size=3, stride=1, padding=1, inhibition_time=40.0)),
    "feed-forward": (6, 3, dict(kernel_size=3, stride=1, padding=1, feed_forward_inhibition=True)),
    "inhibition without end": (4, 2, dict(kernel_size=3, stride=1, padding=1, inhibition_time=1e6)),
    "two digits": (4, 64, dict(kernel_size=3, stride=2, padding=1)),
}
"""Channels, input channels and geometry of layers; images of 9 x 8 pixels have more than 64 places."""


@pytest.mark.parametrize("inhibition", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_spikes_are_those_of_the_event_driven_engine(engine, device, name, inhibition):
    channels, channels_in, geometry = LAYERS[name]
    layer, pre = random_layer(channels, channels_in, **geometry), random_spikes(STEPS, 2, channels_in, 9, 8)
    expected = EVENTS.simulate(layer, pre, inhibition=inhibition, seeds=SEEDS[:2])
    packed = PackedSpikes.from_dense(pre.to(device))
    spikes = engine.simulate(layer.to(device), packed, inhibition=inhibition, seeds=SEEDS[:2].to(device))
    assert isinstance(spikes, PackedSpikes)
    assert expected.sum() > 20
    assert torch.equal(spikes.to_dense().cpu(), expected)


def test_draws_between_equal_channels_are_those_of_the_event_driven_engine(engine, device):
    layer = random_layer(6, 2, kernel_size=3, stride=1, padding=1)
    # Three channels are equal, and a fourth is weaker.
    rows = torch.tensor([0, 1, 0, 0, 1, 2])
    equal = {name: getattr(layer, name)[rows] for name in ("conductance", "gain", "v_threshold")}
    layer = layer.with_values(**equal)
    pre = random_spikes(STEPS, 3, 2, 5, 5, share=0.15)
    expected = EVENTS.simulate(layer, pre, inhibition=True, seeds=SEEDS)
    assert all(expected[:, :, channel].sum() > 10 for channel in (0, 2, 3))
    spikes = engine.simulate(layer.to(device), pre.to(device), inhibition=True, seeds=SEEDS.to(device))
    assert torch.equal(spikes.cpu(), expected)
    other = EVENTS.simulate(layer, pre, inhibition=True, seeds=SEEDS + 1)
    assert not torch.equal(other, expected)


@pytest.mark.parametrize("name", LAYERS)
def test_drives_and_rates_are_those_of_the_event_driven_engine(engine, device, name):
    channels, channels_in, geometry = LAYERS[name]
    layer, pre = random_layer(channels, channels_in, **geometry), random_spikes(STEPS, 2, channels_in, 9, 8)
    places = torch.randperm(2 * layer.convolution((channels_in, 9, 8)).places_out, generator=generator(2))[:70]
    expected = EVENTS.sample_drive(layer, pre, places)
    placed = layer.to(device)
    drive = engine.sample_drive(placed, pre.to(device), places)
    assert torch.equal(drive.cpu(), expected)
    assert engine.count_driven(placed, drive) == EVENTS.count_driven(layer, expected) > 0


@pytest.mark.parametrize("pairing", ["post", "two-sided"])
@pytest.mark.parametrize(
    ("channels", "channels_in", "geometry"),
    [(3, 2, (3, 1, 1)), (4, 3, (2, 2, 0)), (2, 2, (5, 3, 2)), (2, 64, (3, 2, 1))],
)
def test_events_are_those_of_the_event_driven_engine(engine, device, pairing, channels, channels_in, geometry):
    kernel, stride, padding = geometry
    convolution = ConvGeometry.of(LayerParameters(channels, kernel, stride, padding), (channels_in, 7, 6))
    # Steps of three words: the nearest spike may lie in another one, or nowhere.
    pre = random_spikes(70, 2, channels_in, 7, 6, share=0.03)
    post = random_spikes(70, 2, *convolution.shape_out, share=0.005, seed=2)
    p = STDPParameters(pairing=pairing, ltd_delay=100.0)
    rates = normalised_rates(pre, 175.0, (0.0, 40.0))
    tables = RULES["fd"](p).chances(70, 2.5, rates.fn)
    expected = EVENTS.count_events(pre, post, rates.level, tables, convolution, SEEDS[:2])
    on_device = (values.to(device) for values in (pre, post, rates.level))
    counts = engine.count_events(*on_device, tables, convolution, SEEDS[:2].to(device))
    for ours, theirs in zip(counts, expected, strict=True):
        assert theirs.sum() > 0
        assert torch.equal(ours.cpu(), theirs)


def test_a_learned_file_is_that_of_the_cpu(engine, device, tmp_path):
    p = snn.Learning(
        maps=(3, 2),
        kernel_sizes=(3,),
        min_updates=2,
        batch_size=2,
        calibration_images=2,
        start_count=1.0,
        encoding=Encoding(f_min=10.0, f_max=200.0, presentation=40.0, quiet=5.0),
        retina=RetinaParameters("whiten", kernel_size=3, patches=1000),
        inhibition=Inhibition("both"),
    )
    images = torch.randint(256, (3, 1, 4, 4), dtype=torch.uint8, generator=generator(0))
    digests = []
    for simulator, where in ((EVENTS, "cpu"), (engine, device)):
        network = snn.learn(images, p, seed=1, device=where, engine=simulator)
        assert all(learned.history.wins.sum() > 0 for learned in network.layers)
        assert all(learned.mean_move > 0 for learned in network.layers)
        digests.append(save(network, tmp_path / f"{len(digests)}.h5", UNNAMED))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("inhibition", [False, True])
def test_layers_in_double_precision_are_simulated_too(engine, device, inhibition):
    layer, pre = random_layer(3, 2, kernel_size=3, stride=1, padding=1).to(torch.float64), random_spikes(9, 2, 2, 5, 4)
    expected = EVENTS.simulate(layer, pre, inhibition=inhibition, seeds=SEEDS[:2])
    packed, placed = PackedSpikes.from_dense(pre.to(device)), layer.to(device)
    spikes = engine.simulate(placed, packed, inhibition=inhibition, seeds=SEEDS[:2].to(device))
    assert expected.any()
    assert torch.equal(as_dense(spikes).cpu(), expected)
    places = torch.arange(40)
    drive = engine.sample_drive(placed, packed, places)
    assert torch.equal(drive.cpu(), EVENTS.sample_drive(layer, pre, places))
    assert engine.count_driven(placed, drive) == EVENTS.count_driven(layer, drive.cpu())


def test_layers_of_more_maps_than_fit_are_simulated_too(engine, device):
    layer, pre = random_layer(1025, 1, kernel_size=1, stride=1, padding=0), random_spikes(9, 1, 1, 4, 4)
    spikes = engine.simulate(layer.to(device), pre.to(device), inhibition=False)
    assert torch.equal(spikes.cpu(), EVENTS.simulate(layer, pre, inhibition=False))
    tiles = [Tile.of(channels, 576) for channels in (1, 16, 40, 100, 256, 257, 1024)]
    assert [tile.channels for tile in tiles] == [16, 16, 64, 128, 256, 512, 1024]
    # Registers of a program are those of a multiprocessor at most.
    assert all(32 * tile.options["num_warps"] * tile.options["maxnreg"] <= 2**16 for tile in tiles)


def test_other_engines_take_its_spikes(engine, device):
    layer, pre = random_layer(3, 2, kernel_size=3, stride=1, padding=1), random_spikes(STEPS, 2, 2, 5, 4)
    packed = PackedSpikes.from_dense(pre)
    spikes = EVENTS.simulate(layer, packed, inhibition=False)
    assert isinstance(spikes, SpikeEvents)
    assert torch.equal(spikes.to_dense(), EVENTS.simulate(layer, pre, inhibition=False))
    assert torch.equal(choose_engine("norse").simulate(layer, packed, inhibition=False), spikes.to_dense())
    lists = SpikeEvents.from_dense(pre)
    if device == "cpu":
        assert torch.equal(engine.simulate(layer, lists, inhibition=False).to_dense(), spikes.to_dense())


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "architecture"), [("cifar10", 90), ("retina", 90), ("cifar10", 80)])
def test_kernels_compile_without_a_gpu(preset, architecture, tmp_path):
    command = [sys.executable, "-m", "benchmarks.kernel_resources", "--preset", preset]
    variables = os.environ | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [*command, "--architecture", str(architecture)], capture_output=True, text=True, env=variables
    )
    assert done.returncode == 0, done.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in done.stdout.splitlines()[2:]]
    assert len(rows) == 2 + 7 * {"cifar10": 3, "retina": 1}[preset]
    for _, kernel, _, registers, spilled, _, programs, products, fused in rows:
        # A fused multiply-add would round otherwise than the CPU.
        assert int(fused) == 0
        assert int(registers) <= 255
        assert int(programs) >= 1
        sums = kernel.startswith("simulate") or kernel == "sample_drive"
        assert products == ("none" if not sums else "wgmma" if architecture == 90 else "mma.sync")
        assert int(spilled) == 0 or architecture == 80


def test_without_gpu_and_interpreter_the_engine_is_not_offered():
    program = (
        "from snn.engines.base import choose_engine; from snn.registries import ENGINES, RULES;"
        "print(ENGINES['gpu']().preference('cpu'), type(choose_engine('auto', 'cpu')).__name__);"
        "choose_engine('gpu', 'cpu')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "0 EventEngine\n"
    assert "`engine` gpu: it does not simulate on `device` cpu; choose auto" in done.stderr
