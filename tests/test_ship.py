"""Trained networks as small files, and by name."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import hybrid
from bridge.storage import load_frontend
from hybrid.architecture import Architecture, safe_dnn
from hybrid.embedding import main as embedding
from hybrid.evaluate import main as evaluate
from hybrid.evaluation import name_models, predict
from hybrid.recipe import Recipe
from hybrid.ship import main as ship
from hybrid.storage import SHIPPED_NETWORKS, TrainedModel, load_model, save, save_model
from hybrid.swap import main as swap
from hybrid.training import train
from snn.data import load_images
from snn.data_source import DataSource
from snn.runtime.errors import UserError
from snn.runtime.h5 import content_digest

EXISTING = sorted(SHIPPED_NETWORKS.glob("*.h5"))


@pytest.fixture(scope="module")
def shipped(pipeline, tmp_path_factory) -> Path:
    """A folder with the networks safe, baseline and mu of the small run, as if they shipped."""
    folder = tmp_path_factory.mktemp("shipped")
    data, frontend = load_images(DataSource(limit_train=60), "train", seed=0), load_frontend(pipeline.frontend).frontend
    recipe = Recipe(epochs=1, batch_size=16)
    mu = train(data, Architecture(variant="mu", width=0.25), recipe, frontend=frontend)
    save(mu, folder / "own.h5")
    for name, file in {"safe": pipeline.safe, "baseline": pipeline.baseline, "mu": folder / "own.h5"}.items():
        assert ship([str(file), "--out", str(folder / f"tiny-{name}.h5"), "--limit-test", "40"]) == 0
    (folder / "own.h5").unlink()
    return folder


@pytest.fixture
def by_name(shipped, monkeypatch):
    monkeypatch.setattr("hybrid.storage.SHIPPED_NETWORKS", shipped)


def states(first, second):
    """Name and both values of each tensor of two networks."""
    one, other = first.network.state_dict(), second.network.state_dict()
    assert one.keys() == other.keys()
    return [(name, value, other[name]) for name, value in one.items()]


def rounded_by_hand(weight, bits):
    """A weight (C_out, ...) in float16, or as multiples of a 127th of the largest of each output channel."""
    if bits == 16:
        return weight.astype(np.float16).astype(np.float32)
    rows = [row / (np.abs(row).max() / np.float32(127)) for row in weight]
    return np.stack(
        [np.rint(row) * (np.abs(own).max() / np.float32(127)) for row, own in zip(rows, weight, strict=True)]
    )


@pytest.mark.parametrize("name", ["safe", "baseline"])
@pytest.mark.parametrize("bits", [8, 16])
def test_kernels_and_matrices_are_rounded_once_and_all_else_is_exact(pipeline, tmp_path, name, bits):
    file = getattr(pipeline, name)
    assert ship([str(file), "--out", str(tmp_path / "small.h5"), "--limit-test", "40", "--bits", str(bits)]) == 0
    model, small = load_model(file), load_model(tmp_path / "small.h5")
    assert small.spec == model.spec
    assert small.recipe == model.recipe
    assert small.parent_digest == model.digest
    trained, rounded = {key for key, _ in model.network.named_parameters()}, 0
    for key, before, after in states(model, small):
        assert before.dtype == after.dtype
        if key in trained and before.ndim > 1 and not key.startswith("frontend."):
            np.testing.assert_allclose(after.numpy(), rounded_by_hand(before.numpy(), bits), rtol=1e-6, atol=0)
            rounded += before.numel()
        else:
            assert torch.equal(before, after), key
    # What is rounded is nearly the whole network.
    assert rounded > 0.9 * sum(value.numel() for value in model.network.state_dict().values())
    assert (tmp_path / "small.h5").stat().st_size < {16: 0.7, 8: 0.5}[bits] * file.stat().st_size
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(small(images), model(images), rtol=0.02, atol={16: 0.01, 8: 0.05}[bits])
    if name == "safe":
        # Every spike is the same.
        assert torch.equal(small.network.frontend(images), model.network.frontend(images))


def test_a_channel_of_zeros_stays_one(pipeline, tmp_path):
    model = load_model(pipeline.baseline)
    weight = next(p for p in model.network.main.parameters() if p.ndim > 1)
    with torch.no_grad():
        weight[0] = 0
    save(model, tmp_path / "x.h5", bits=8)
    loaded = next(p for p in load_model(tmp_path / "x.h5").network.main.parameters() if p.ndim > 1)
    assert not loaded[0].any()
    assert loaded[1:].isfinite().all()


@pytest.mark.parametrize(("bits", "kind"), [(8, "int8"), (16, "float16")])
def test_a_rounded_network_is_not_rounded_again(pipeline, tmp_path, bits, kind):
    save(load_model(pipeline.safe), tmp_path / "first.h5", bits=bits)
    first = load_model(tmp_path / "first.h5")
    save(first, tmp_path / "whole.h5")
    save(first, tmp_path / "again.h5", bits=bits)
    for path in ("whole.h5", "again.h5"):
        for _, one, other in states(first, load_model(tmp_path / path)):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0)
    assert (tmp_path / "again.h5").stat().st_size < (tmp_path / "whole.h5").stat().st_size
    with h5py.File(tmp_path / "again.h5") as file:
        types = {name: file["state"][name].dtype for name in file["state"]}
    assert {str(each) for each in types.values()} == {kind, "float32", "int64"}
    assert all(each != kind for name, each in types.items() if name.startswith(("frontend", "normalise")))


def test_a_small_file_is_checked_as_others_are(shipped, tmp_path):
    path = tmp_path / "damaged.h5"
    path.write_bytes((shipped / "tiny-baseline.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        name = next(name for name in file["state"] if file["state"][name].dtype == np.int8)
        values = file["state"][name]
        values[(0,) * values.ndim] ^= np.int8(1)
    with pytest.raises(UserError, match="does not match its digest"):
        load_model(path)
    # The type of values is part of the digest.
    tree = {"a": np.ones(2, np.float16)}
    assert content_digest(tree) != content_digest({"a": np.ones(2, np.float32)})


@pytest.mark.parametrize(
    ("bits", "value", "shown"), [(16, -7e4, "70000"), (8, float("-inf"), "inf"), (8, float("nan"), "nan")]
)
def test_weights_beyond_the_range_are_refused(pipeline, tmp_path, bits, value, shown):
    model = load_model(pipeline.baseline)
    weight = next(p for p in model.network.main.parameters() if p.ndim > 1)
    with torch.no_grad():
        weight.flatten()[0] = value
    with pytest.raises(UserError, match=rf"weight {shown} of main.* is beyond {bits} bits"):
        save_model(tmp_path / "x.h5", model, "test", "", bits=bits)
    assert not (tmp_path / "x.h5").exists()


def test_a_network_that_draws_is_rounded_with_its_deviations(pipeline, tmp_path):
    network = safe_dnn(pipeline.frontend, width=0.25, variations=hybrid.Variations(variability=True)).eval()
    model = TrainedModel(network.spec, network, DataSource(), 0, {"train_loss": np.zeros(1)}, {})
    save(model, tmp_path / "x.h5", bits=8)
    loaded = load_model(tmp_path / "x.h5").network
    for mine, other in zip(loaded.frontend.layers, network.frontend.layers, strict=True):
        assert torch.equal(mine.deviations, other.deviations)


def test_the_command_reports_size_and_difference(pipeline, models, image_folder, tmp_path, capsys):
    out, numbers = tmp_path / "small.h5", tmp_path / "small.json"
    given = [str(pipeline.safe), "--out", str(out), "--limit-test", "50", "--json", str(numbers)]
    assert ship(given) == 0
    assert "keep their class" in capsys.readouterr().out
    report = json.loads(numbers.read_text())
    images = load_images(DataSource(limit_test=50), "test", seed=0).images / 255
    before, after = (predict(model.network, images, "cpu") for model in (models["safe"], load_model(out)))
    assert report["max_logit_difference"] == pytest.approx((before - after).abs().max().item(), abs=1e-6)
    assert report["images"] == 50
    assert report["same_class_percent"] == 100 * (before.argmax(1) == after.argmax(1)).double().mean().item()
    assert (report["bytes"], report["bytes_before"]) == (out.stat().st_size, pipeline.safe.stat().st_size)
    assert report["parent_digest"] == models["safe"].digest
    # Images of another size cannot be compared on; the network is not lost.
    assert ship([*given, "--data", "folder:nowhere"]) == 2
    assert ship([str(out), "--out", str(out)]) == 2
    assert "is read by this command" in capsys.readouterr().err


def test_a_shipped_file_does_not_say_where_images_lay(models, tmp_path, capsys):
    source = DataSource(f"folder:{tmp_path}/private/photos", root=tmp_path, download=True)
    save(replace(models["baseline"], data_source=source), tmp_path / "model.h5")
    assert ship([str(tmp_path / "model.h5"), "--out", str(tmp_path / "small.h5")]) == 0
    assert "answers were not compared" in capsys.readouterr().out
    assert load_model(tmp_path / "small.h5").data_source == DataSource("folder:photos")
    # The command holds only what was typed.
    with h5py.File(tmp_path / "small.h5") as file:
        stored = [str(value) for value in file["input"].attrs.values()]
    assert not any(str(tmp_path) in value for value in stored)


@pytest.mark.usefixtures("by_name")
def test_commands_take_networks_by_name(pipeline, tmp_path, capsys):
    safe, own = "pretrained:tiny-safe", str(pipeline.baseline)
    out = tmp_path / "r.csv"
    given = ["--noise", "clean", "fgsm:8", "--limit-test", "30", "--no-figures", "--out", str(out)]
    assert evaluate([safe, own, "--attack-model", "pretrained:tiny-baseline", *given]) == 0
    with open(out) as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} == {"tiny-safe", "baseline"}
    digests = {row["model_digest"] for row in rows if row["model"] == "tiny-safe"}
    assert digests == {load_model(safe).digest}
    attacked = {row["source_digest"] for row in rows if row["condition"] == "fgsm:8"}
    assert attacked == {load_model("pretrained:tiny-baseline").digest}
    picture = tmp_path / "e.png"
    assert embedding([safe, own, "--noise", "clean", "--limit-test", "30", "--out", str(picture)]) == 0
    with open(tmp_path / "e.csv") as file:
        assert [row["model"] for row in csv.DictReader(file)] == ["tiny-safe", "baseline"]
    steps = [*("--frontend", str(pipeline.frontend), "--images", "20", "--out", str(tmp_path / "lambda.h5"))]
    assert swap(["pretrained:tiny-mu", *steps]) == 0
    assert load_model(tmp_path / "lambda.h5").parent_digest == load_model("pretrained:tiny-mu").digest
    assert ship([safe, "--out", str(tmp_path / "again.h5"), "--limit-test", "20"]) == 0
    capsys.readouterr()
    assert evaluate(["pretrained:tiny", *given[:2], *given[3:]]) == 2
    error = capsys.readouterr().err
    assert "choose from: pretrained:tiny-baseline, pretrained:tiny-mu, pretrained:tiny-safe" in error


@pytest.mark.usefixtures("by_name")
def test_a_shipped_file_is_not_replaced_by_what_is_made_of_it(shipped, tmp_path, capsys):
    before = (shipped / "tiny-safe.h5").read_bytes()
    assert ship(["pretrained:tiny-safe", "--out", str(shipped / "tiny-safe.h5")]) == 2
    assert "is read by this command" in capsys.readouterr().err
    for command in (evaluate, embedding):
        out = shipped / ("tiny-safe.h5" if command is evaluate else "tiny-safe.png")
        argument = ["--json", str(shipped / "tiny-safe.h5")] if command is embedding else []
        assert command(["pretrained:tiny-safe", "--noise", "clean", "--out", str(out), *argument]) == 2
    assert (shipped / "tiny-safe.h5").read_bytes() == before


@pytest.mark.usefixtures("by_name")
def test_functions_take_networks_by_name(pipeline, shipped, digits):
    assert hybrid.load("pretrained:tiny-safe").digest == hybrid.load(shipped / "tiny-safe.h5").digest
    rows = hybrid.evaluate("pretrained:tiny-safe", digits, "fgsm:8", attack_model="pretrained:tiny-baseline")
    assert {row["model"] for row in rows} == {"tiny-safe"}
    same = hybrid.evaluate(shipped / "tiny-safe.h5", digits, "fgsm:8", attack_model=shipped / "tiny-baseline.h5")
    assert same == rows


def test_names_of_shipped_networks_read_well():
    names = ["pretrained:cifar10-safe", "runs/baseline.h5", Path("pretrained:cifar10-v1.5")]
    assert name_models(names) == ["cifar10-safe", "baseline", "cifar10-v1.5"]
    # Of two with the same name, each is called as it was given.
    assert name_models(["pretrained:safe", "safe.h5"]) == ["pretrained:safe", "safe.h5"]


def test_unknown_names_are_refused_where_nothing_ships(tmp_path, monkeypatch):
    monkeypatch.setattr("hybrid.storage.SHIPPED_NETWORKS", tmp_path)
    with pytest.raises(UserError, match=r"pretrained:x does not ship with this package; .*a file of your own"):
        hybrid.load("pretrained:x")


@pytest.mark.skipif(not EXISTING, reason="no trained network is in hybrid/shipped")
@pytest.mark.parametrize("file", EXISTING, ids=lambda path: path.stem)
def test_networks_that_ship_answer_and_say_nothing_of_places(file):
    model = load_model(f"pretrained:{file.stem}")
    images = torch.rand(4, *model.spec.input_shape, generator=torch.Generator().manual_seed(0))
    logits = model(images)
    assert logits.shape == (4, len(model.spec.classes))
    assert logits.isfinite().all()
    assert {value.dtype for value in model.network.state_dict().values()} <= {torch.float32, torch.int64}
    assert model.data_source.root == DataSource.root
    assert "/" not in model.data_source.data
    with h5py.File(file) as stored:
        assert "/tmp" not in stored.attrs["command"]
        assert " /" not in stored.attrs["command"]
        assert any(stored["state"][name].dtype == np.int8 for name in stored["state"])
