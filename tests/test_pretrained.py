"""The results that ship with the package, by name."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images

import bridge
from bridge.convert import main as convert
from bridge.fidelity import measure_fidelity
from bridge.responses import simulate_counts
from bridge.storage import SHIPPED_FRONTENDS, load_frontend
from hybrid.train import main as train
from snn.learning import PRESETS
from snn.runtime.errors import UserError
from snn.runtime.pretrained import resolve
from snn.runtime.random import stream
from snn.storage import SHIPPED_NETWORKS, load_network

NAME = Path("pretrained:cifar10-fd")
SHIPPED = pytest.mark.parametrize(
    ("name", "preset"), [(NAME, "cifar10"), (Path("pretrained:cifar10-retina"), "retina")], ids=["fd", "retina"]
)


@pytest.fixture
def photos(tmp_path) -> Path:
    random = np.random.default_rng(0)
    for split, label in ((split, label) for split in ("train", "test") for label in ("a", "b")):
        folder = tmp_path / "photos" / split / label
        folder.mkdir(parents=True)
        for number in range(6):
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return tmp_path / "photos"


@SHIPPED
def test_the_network_was_learned_with_the_preset_and_tells_how(name, preset):
    network, data, digest = load_network(resolve(name, SHIPPED_NETWORKS))
    assert network.complete
    assert network.learning == PRESETS[preset]
    assert network.input_shape == (3, 32, 32)
    for learned in network.layers:
        wins, p = learned.history.wins, network.learning
        assert len(wins) == p.updates(learned.history.images[-1].item())
        assert learned.winning_share >= 0.9
        assert learned.fair_shares.max() <= 5
        assert learned.mean_move > 0.1
        assert learned.mean_rate == pytest.approx(p.output_rate, abs=0.1)
    assert len(network.layers[0].history.wins) == 3125
    frontend, _, _ = load_frontend(resolve(name, SHIPPED_FRONTENDS))
    assert frontend(torch.rand(2, 3, 32, 32)).shape == (2, network.learning.maps[-1], 32, 32)
    assert frontend.spec.channels == network.learning.maps
    assert data.data.startswith("folder:")
    if network.retina:
        assert frontend.retina
        assert torch.equal(frontend.retina.filters, network.retina.filters)
        assert network.retina.history
        assert network.retina.history.clipped == pytest.approx(0.03, abs=1e-4)
    with h5py.File(resolve(name, SHIPPED_FRONTENDS)) as file:
        assert file.attrs["source_digest"] == digest


@SHIPPED
def test_the_front_end_answers_as_the_network_does(name, preset):
    network, _, _ = load_network(resolve(name, SHIPPED_NETWORKS))
    frontend, _, _ = load_frontend(resolve(name, SHIPPED_FRONTENDS))
    # Photographs, reduced fourfold, in parts of 32 pixels a side.
    photos = torch.from_numpy(np.stack(load_sample_images().images)).permute(0, 3, 1, 2).float()
    small = torch.nn.functional.interpolate(photos, (106, 160), mode="area").round().to(torch.uint8)
    images = small.unfold(2, 32, 32).unfold(3, 32, 32).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
    counts = simulate_counts(network, images, stream("photographs"))[1:]
    measured = measure_fidelity(frontend, images, counts)
    # Measured on test images when it was converted; the limits are what this bridge promises.
    limits = ((0.05, 0.98), (0.08, 0.95), (0.08, 0.95))[: len(network.layers)]
    # Most neurons are silent where a layer passes on few spikes.
    fewest_levels = {"cifar10": 4, "retina": 2}[preset]
    with h5py.File(resolve(name, SHIPPED_FRONTENDS)) as file:
        for number, (off, correlation) in enumerate(limits, 1):
            faithful, paper = (
                file[f"layers/conv{number}/fidelity/{mode}_quantise_input"].attrs for mode in ("with", "without")
            )
            assert faithful["off_share"] < off
            assert faithful["correlation"] >= correlation
            assert faithful["levels"] == paper["levels"] >= fewest_levels
            assert paper["off_share"] < (0.08 if number == 1 else 0.09)
            assert paper["correlation"] >= 0.95
            fidelity = measured[number - 1]
            assert fidelity.off_share == pytest.approx(paper["off_share"], abs=0.02)
            assert fidelity.correlation == pytest.approx(paper["correlation"], abs=0.02)
            assert fidelity.mean_rate == pytest.approx(paper["mean_rate_Hz"], rel=0.2)
            assert fidelity.levels == paper["levels"]


def test_commands_take_it_by_name(photos, tmp_path):
    data, frontend = ["--data", f"folder:{photos}"], str(tmp_path / "frontend.h5")
    assert convert([str(NAME), *data, "--images", "4", "--out", frontend, "--no-figures"]) == 0
    options = ["--width", "0.1", "--epochs", "1", "--batch-size", "4", "--no-figures"]
    assert train([*data, *options, "--frontend", str(NAME), "--out", str(tmp_path / "safe.h5")]) == 0


def test_functions_take_it_by_name():
    x = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(bridge.load(str(NAME))(x), bridge.load(SHIPPED_FRONTENDS / "cifar10-fd.h5")(x))
    _, data, digest = load_network(resolve(NAME, SHIPPED_NETWORKS))
    conversion = bridge.convert(str(NAME), (x * 255).to(torch.uint8), layers=1)
    assert (conversion.data_source, conversion.parent_digest) == (data, digest)
    assert conversion.frontend(x).shape == (2, 32, 32, 32)


def test_unknown_names_are_refused_with_those_that_exist(tmp_path):
    with pytest.raises(UserError, match="choose from: pretrained:cifar10-fd"):
        resolve(Path("pretrained:cifar11"), SHIPPED_NETWORKS)
    with pytest.raises(UserError, match="choose from: pretrained:cifar10-fd"):
        bridge.load("pretrained:cifar11")
    assert resolve(tmp_path / "own.h5", SHIPPED_NETWORKS) == tmp_path / "own.h5"
