"""Pretrained weights that a training starts from: what fits is taken, what does not is told, strangers are refused."""

import hashlib
import os
import pickle
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import h5py
import pytest
import torch
import torchvision

import hybrid
from bridge.frontend import FrontEndSpec, LayerSpec
from hybrid.architecture import ModelSpec, build_model
from hybrid.backbones import BACKBONES
from hybrid.pretrained import Weights, open_weights, start_from
from hybrid.storage import load_model
from hybrid.train import main
from snn.data import load_images
from snn.data_source import DataSource
from snn.parameters import Encoding
from snn.runtime.errors import UserError

FRONTEND = "pretrained:cifar10-retina"
SMALL = ["--data", "digits", "--limit-train", "140", "--batch-size", "16", "--epochs", "1", "--no-figures"]
BASELINE = [*SMALL, "--variant", "baseline"]
KEPT = {
    "mobilenet_v2": lambda whole: {"features.1": whole.features[3], "features.16": whole.features[18]},
    "resnet18": lambda whole: {"layer2": whole.layer2, "layer4": whole.layer4},
    "densenet121": lambda whole: {
        "features.denseblock1.denselayer1.conv2": whole.features.denseblock1.denselayer2.conv2,
        "features.denseblock1.denselayer5.norm2": whole.features.denseblock1.denselayer6.norm2,
        "features.denseblock2": whole.features.denseblock2,
        "features.norm5": whole.features.norm5,
    },
    "resnet101": lambda whole: {"layer1.1": whole.layer1[2], "layer3": whole.layer3},
}
"""Modules of the main CNN behind a front end, by name, and which module of torchvision's network each is."""
STEMS = {
    "mobilenet_v2": "features.0.0",
    "resnet18": "conv1",
    "densenet121": "features.conv0",
    "resnet101": "conv1",
}


@pytest.fixture(scope="module", params=[*list(KEPT)[:3], pytest.param("resnet101", marks=pytest.mark.slow)])
def published(request, tmp_path_factory):
    """Name of a backbone, torchvision's network of this name, and a file with its state dict."""
    torch.manual_seed(3)
    whole = getattr(torchvision.models, request.param)(weights=None)
    with torch.no_grad():
        for name, values in whole.state_dict().items():
            if "running" in name:
                values.uniform_(0.5, 1.5)
    file = tmp_path_factory.mktemp("published") / f"{request.param}.pth"
    torch.save(whole.state_dict(), file)
    return request.param, whole, file


def same(module, other) -> bool:
    """Whether two modules have the same weights and statistics, in the same order."""
    one, two = ([v for name, v in m.state_dict().items() if "num_batches" not in name] for m in (module, other))
    return len(one) == len(two) and all(map(torch.equal, one, two))


def test_a_whole_backbone_takes_all_of_a_torchvision_network_but_head_and_small_stem(published):
    name, whole, file = published
    for size, classes in ((224, 1000), (32, 10)):
        network = hybrid.baseline((3, size, size), name, classes)
        fresh = {key: values.clone() for key, values in network.state_dict().items()}
        taken = start_from(network, open_weights(file, name))
        state, theirs = network.main.state_dict(), whole.state_dict()
        if size == 224:
            assert (taken.other_shape, taken.missing, taken.unused) == ((), (), ())
            assert same(network.main, whole)
            continue
        names = {key.removeprefix("main.") for key in taken.names}
        assert all(torch.equal(state[key], theirs[key]) for key in names)
        left = {key for key in state if "num_batches" not in key} - names
        smaller = {f"{STEMS[name]}.weight"} if name != "mobilenet_v2" else set()
        head = BACKBONES[name].head
        assert left == smaller | {f"{head}.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias")}
        assert all(torch.equal(state[key], fresh[f"main.{key}"]) for key in left)
        assert set(taken.unused) == {f"{head}.weight", f"{head}.bias"}


def test_behind_a_front_end_the_kept_blocks_find_their_place(published):
    name, whole, file = published
    network = hybrid.safe_dnn(FRONTEND, name)
    fresh = {key: values.clone() for key, values in network.state_dict().items()}
    taken = start_from(network, open_weights(file, name))
    for place, module in KEPT[name](whole).items():
        assert same(network.main.get_submodule(place), module), place
    state = network.state_dict()
    changed = {key for key, values in state.items() if not torch.equal(values, fresh[key])}
    assert changed <= set(taken.names)
    assert not any(key.startswith(("frontend.", "normalise.", "auxiliary.")) for key in taken.names)
    # The block that reads the joined features is made for other channels; the stem is gone.
    assert len(taken.other_shape) in (1, 30)
    assert f"{STEMS[name]}.weight" in taken.unused
    told = "\n".join(taken.lines(file.name))
    assert f"{len(taken.names)} of {len(taken.names) + len(taken.other_shape) + len(taken.missing)} tensors" in told
    assert len(told.splitlines()) == 4
    assert "auxiliary.0" in told


def test_older_names_of_densenets_weights_are_known(tmp_path):
    whole = torchvision.models.densenet121(weights=None)
    old = {}
    for name, values in whole.state_dict().items():
        for part in ("norm1", "conv1", "norm2", "conv2"):
            if "denselayer" in name:
                name = name.replace(f".{part}.", f".{part[:4]}.{part[4:]}.")
        old[name] = values
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "old.pth")
    network = hybrid.baseline((3, 224, 224), "densenet121", 1000)
    start_from(network, open_weights(tmp_path / "old.pth", "densenet121"))
    assert same(network.main, whole)


def test_fast_cnn_takes_its_own_weights_whole_and_behind_a_front_end(tmp_path):
    whole = hybrid.baseline((3, 32, 32), "fast_cnn").main
    torch.save(
        {"state_dict": {f"module.{name}": values for name, values in whole.state_dict().items()}}, tmp_path / "x.pth"
    )
    weights = open_weights(tmp_path / "x.pth", "fast_cnn")
    network, behind = hybrid.baseline((3, 32, 32), "fast_cnn"), hybrid.safe_dnn(FRONTEND, "fast_cnn")
    start_from(network, weights)
    assert same(network.main, whole)
    start_from(behind, weights)
    assert same(behind.main.stages[0][1], whole.stages[0][2])
    assert same(behind.main.stages[1:], whole.stages[1:])
    assert same(behind.main.classifier, whole.classifier)
    assert not same(behind.main.stages[0][0][0], whole.stages[0][1][0])


KEPT_WITHOUT_STEM = {
    "mobilenet_v2": lambda whole: {"features.1": whole.features[2], "features.17": whole.features[18]},
    "resnet18": lambda whole: {"layer1.1": whole.layer1[1], "layer2": whole.layer2},
    "densenet121": lambda whole: {
        "features.denseblock1.denselayer6.conv2": whole.features.denseblock1.denselayer6.conv2,
        "features.denseblock2": whole.features.denseblock2,
    },
    "fast_cnn": lambda whole: {"stages.0.1": whole.stages[0][1], "stages.1": whole.stages[1]},
    "resnet101": lambda whole: {"layer1.1": whole.layer1[1], "layer3": whole.layer3},
}
KEPT_WITHOUT_BLOCK = {
    "mobilenet_v2": lambda main: {"features.1": main.features[2]},
    "resnet18": lambda main: {"layer2": main.layer2},
    "densenet121": lambda main: {"features.denseblock2": main.features.denseblock2},
    "fast_cnn": lambda main: {"stages.0.1": main.stages[0][2], "stages.1": main.stages[1]},
    "resnet101": lambda main: {"layer1.1": main.layer1[2], "layer3": main.layer3},
}


@pytest.mark.parametrize("name", [*list(KEPT_WITHOUT_STEM)[:-1], pytest.param("resnet101", marks=pytest.mark.slow)])
def test_where_only_the_stem_is_dropped_all_blocks_find_their_place(name):
    torch.manual_seed(7)
    baseline, deep = hybrid.baseline((3, 32, 32), name), hybrid.safe_dnn(FRONTEND, name, dropped_blocks=0)
    weights = Weights("x", name, baseline.main.state_dict())
    taken = start_from(deep, weights)
    for place, module in KEPT_WITHOUT_STEM[name](baseline.main).items():
        assert same(deep.main.get_submodule(place), module), place
    assert f"{BACKBONES[name].stem}.weight" in taken.unused
    # A network that lacks a block more starts from this one, and it from another such network.
    safe, other = hybrid.safe_dnn(FRONTEND, name), hybrid.safe_dnn(FRONTEND, name)
    start_from(safe, Weights("x", name, deep.state_dict(), deep.spec))
    for place, module in KEPT_WITHOUT_BLOCK[name](deep.main).items():
        assert same(safe.main.get_submodule(place), module), place
    start_from(deep, Weights("x", name, other.state_dict(), other.spec))
    for place, module in KEPT_WITHOUT_BLOCK[name](deep.main).items():
        assert same(other.main.get_submodule(place), module), place
    # A whole backbone starts from it, too.
    again = hybrid.baseline((3, 32, 32), name)
    start_from(again, Weights("x", name, deep.state_dict(), deep.spec))
    for place, module in KEPT_WITHOUT_STEM[name](again.main).items():
        assert same(deep.main.get_submodule(place), module), place


def test_a_rebuilt_first_block_of_mobilenet_takes_nothing_of_the_stock_one():
    # With fewer features than its 32 inner channels it widens them first, as the stock one does not.
    front = FrontEndSpec((3, 32, 32), (LayerSpec(24, 3, 1, 1, 5, False),), Encoding())
    architecture = hybrid.Architecture(auxiliary_maps=0, dropped_blocks=0)
    deep = build_model(ModelSpec(architecture, (3, 32, 32), tuple("abcd"), front))
    whole = hybrid.baseline((3, 32, 32))
    assert [len(network.conv) for network in (deep.main.features[0], whole.main.features[1])] == [4, 3]
    taken = start_from(deep, Weights("x", "mobilenet_v2", whole.main.state_dict()))
    assert not [name for name in taken.names if name.startswith("main.features.0.")]
    assert same(deep.main.features[1:], whole.main.features[2:])


def test_networks_of_this_project_are_a_start_for_each_other(pipeline, tmp_path):
    # A whole backbone for one behind a front end, and back.
    safe, whole = load_model(pipeline.safe), load_model(pipeline.baseline)
    network = hybrid.safe_dnn(str(pipeline.frontend), width=0.25)
    taken = start_from(network, open_weights(pipeline.baseline, "mobilenet_v2"))
    assert same(network.main.features[1:], whole.network.main.features[3:])
    assert same(network.main.classifier, whole.network.main.classifier)
    assert "features.0.0" in "\n".join(taken.lines("baseline"))
    back = hybrid.baseline(whole.spec.input_shape, width=0.25)
    start_from(back, open_weights(pipeline.safe, "mobilenet_v2"))
    assert same(back.main.features[3:], safe.network.main.features[1:])
    # With the same frozen layers what is trained behind them is taken, too; with others it is not.
    again = hybrid.safe_dnn(str(pipeline.frontend), width=0.25)
    assert not start_from(again, open_weights(pipeline.safe, "mobilenet_v2")).lines("safe")[1:]
    assert same(again.frontend, safe.network.frontend)
    assert same(again.auxiliary, safe.network.auxiliary)
    other = hybrid.safe_dnn(str(pipeline.frontend), width=0.25)
    other.frontend.layers[0].weight.data += 1 / 64
    before = {name: values.clone() for name, values in other.frontend.state_dict().items()}
    start_from(other, open_weights(pipeline.safe, "mobilenet_v2"))
    assert all(torch.equal(values, before[name]) for name, values in other.frontend.state_dict().items())
    with pytest.raises(UserError, match="a network on mobilenet_v2, this one is on resnet18"):
        open_weights(pipeline.safe, "resnet18")


def test_training_starts_from_the_weights_and_records_them(tmp_path):
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), file := tmp_path / "mine.pth")
    data = load_images(DataSource(limit_train=40), "train", seed=0)
    architecture, still = hybrid.Architecture("resnet18", "baseline"), hybrid.Recipe(1, 16, learning_rate=0.0)
    model = hybrid.train(data, architecture, still, weights=file)
    kernels = torch.load(file, weights_only=True)
    assert torch.equal(model.network.main.layer3[0].conv1.weight, kernels["layer3.0.conv1.weight"])
    hybrid.save(model, tmp_path / "x.h5")
    read = load_model(tmp_path / "x.h5")
    assert (read.weights, read.weights_digest) == ("mine.pth", open_weights(file, "resnet18").digest)
    assert len(read.weights_digest) == 64
    # The digest is that of the values, whatever the file is called.
    file.rename(tmp_path / "other.pth")
    assert open_weights(tmp_path / "other.pth", "resnet18").digest == read.weights_digest
    assert (hybrid.train(data, architecture, still).weights_digest) == ""


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64])
def test_weights_of_other_types_are_taken(kind, tmp_path):
    torch.manual_seed(6)
    head = torch.randn(1280, 10).to(kind).t()
    torch.save({"classifier.1.weight": head}, tmp_path / "x.pth")
    weights, network = open_weights(tmp_path / "x.pth", "mobilenet_v2"), hybrid.baseline((3, 224, 224), classes=10)
    start_from(network, weights)
    assert torch.equal(network.main.classifier[1].weight, head.float())
    assert len(weights.digest) == 64


PLUGIN = """
import torch
from torch import nn
from hybrid.backbones import Adapter, register_backbone

@register_backbone("tiny")
class Tiny(Adapter):
    stem, head, strides, imagenet = "0", "4", (1, 1), "https://nowhere.invalid/models/{file}"
    def build(self, classes, width):
        layers = nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes)
        return nn.Sequential(*layers)
    def use_small_strides(self, network):
        pass
    def drop_stem(self, network, channels, stride):
        pass
"""


@pytest.fixture
def cached(tmp_path):
    """A plugin with a backbone, its file of weights in PyTorch's cache, and arguments that name both."""
    torch.manual_seed(5)
    linear = torch.nn.Linear(4, 128)
    torch.save({"4.0.weight": linear.weight, "4.0.bias": linear.bias}, tmp_path / "file")
    digits = hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest()[:8]
    cache = tmp_path / "home" / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    file = (tmp_path / "file").rename(cache / f"tiny-{digits}.pth")
    plugin = tmp_path / "tiny_backbone.py"
    plugin.write_text(PLUGIN.replace("{file}", file.name))
    return [*BASELINE, "--plugin", str(plugin), "--backbone", "tiny", "--weights", "imagenet"], file, linear


@pytest.mark.slow
def test_published_weights_come_from_the_cache_without_a_network(cached, tmp_path):
    arguments, _, linear = cached
    still = ["--learning-rate", "1e-9", "--weight-decay", "0", "--out", str(tmp_path / "x.h5")]
    result = subprocess.run(
        [sys.executable, "-m", "hybrid.train", *arguments, *still], capture_output=True, text=True, check=False,
        env=os.environ | {"TORCH_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "weights imagenet: 2 of 5 tensors of this network start from them" in result.stdout
    with h5py.File(tmp_path / "x.h5") as stored:
        assert stored["weights"].attrs["name"] == "imagenet"
        torch.testing.assert_close(torch.from_numpy(stored["state/main.4.0.weight"][:]), linear.weight.detach())


def test_another_file_of_that_name_and_a_missing_one_are_told_in_one_line(cached, tmp_path, monkeypatch, capsys):
    _, file, _ = cached
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(type(BACKBONES["resnet18"]), "imagenet", f"http://127.0.0.1:9/models/{file.name}")
    arguments = [*BASELINE, "--backbone", "resnet18", "--weights", "imagenet", "--out", str(tmp_path / "y.h5")]
    file.write_bytes(file.read_bytes() + b" ")
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{file} is damaged, or another file" in line
    # Nothing answers there.
    file.unlink()
    assert main(arguments) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be loaded from the network" in line
    assert file.name in line
    assert str(file.parent) in line
    assert not (tmp_path / "y.h5").exists()
    assert not list(file.parent.iterdir())


class Attack:
    """Makes a file when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch unpickled",)


def hostile(folder: Path) -> dict[str, Path]:
    """Files that are no weights, by what the message says of them."""
    torch.save({"x": Attack()}, folder / "code.pth")
    (folder / "pickle.pth").write_bytes(pickle.dumps(Attack()))
    torch.save({"conv1.weight": torch.zeros(4)}, folder / "plain.pth")
    with zipfile.ZipFile(folder / "plain.pth") as plain, zipfile.ZipFile(folder / "packed.pth", "w") as packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member) + bytes(10**6), compress_type=zipfile.ZIP_DEFLATED)
    whole = (folder / "plain.pth").read_bytes()
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "text.pth").write_text("no weights")
    (folder / "empty.pth").write_bytes(b"")
    (folder / "signature.h5").write_bytes(b"\x89HDF\r\n\x1a\n")
    names = {"list": [torch.zeros(3)], "numbers": {1: torch.zeros(3)}, "none": {}, "texts": {"conv1.weight": "x"}}
    names["stretched"] = {"conv1.weight": torch.ones(1).expand(10**13)}
    names["sparse"] = {"conv1.weight": torch.eye(3).to_sparse()}
    state = torchvision.models.resnet18(weights=None).state_dict()
    names["nan"] = OrderedDict(state, **{"layer1.0.bn1.weight": torch.full((64,), torch.nan)})
    names["negative"] = OrderedDict(state, **{"layer1.0.bn1.running_var": torch.full((64,), -1.0)})
    names["foreign"] = {"layer1.9999999999999.x": torch.zeros(3), "layer1.x": torch.zeros(3), "": torch.zeros(2)}
    for name, content in names.items():
        torch.save(content, folder / f"{name}.pth")
    return {path.name: path for path in sorted(folder.glob("*.*"))}


def test_strangers_are_refused_in_one_line_and_run_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "given").mkdir()
    files = hostile(tmp_path / "given")
    assert len(files) == 17
    for path in (*files.values(), tmp_path / "given", tmp_path / "nowhere.pth"):
        assert main([*BASELINE, "--backbone", "resnet18", "--weights", str(path), "--out", "x.h5"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, (path, lines)
        assert path.name in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["given"]


def test_weights_that_cannot_be_meant_are_refused(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "resnet.pth")
    cases = {
        "--backbone fast_cnn --weights imagenet": "there are none for fast_cnn; leave it out",
        "--backbone mobilenet_v2_shallow --weights imagenet": "mobilenet_v2, resnet101, resnet18",
        "--backbone mobilenet_v2 --weights resnet.pth": "no kernel fits mobilenet_v2 of --width 1",
        "--weights pretrained:nobody": "does not ship",
        "--backbone resnet18 --weights resnet.pth --out resnet.pth": "it is read by this command",
    }
    for flags, words in cases.items():
        out = [] if "--out" in flags else ["--out", "x.h5"]
        assert main([*BASELINE, *flags.split(), *out]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert words in lines[0], lines
    assert [path.name for path in tmp_path.iterdir()] == ["resnet.pth"]
