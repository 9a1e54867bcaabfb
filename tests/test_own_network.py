"""Networks of a user's own program, evaluated beside ours: what is loaded, how it is named, and what is refused."""

import csv
import hashlib
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

import hybrid
from hybrid.evaluate import main as evaluate
from hybrid.evaluation import name_models, predict
from hybrid.own_network import OwnReference, is_own, own_network
from snn.data import load_images
from snn.runtime.errors import UserError

PROGRAM = """
import torch
from torch import nn
from part_{name} import WIDTH

class Views(nn.Module):
    # As in many tutorials: a view, which needs channels before height in memory.
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, WIDTH, 3)
        self.fc = nn.Linear(WIDTH * 36, 10)

    def forward(self, x):
        return self.fc(self.conv(x).relu().view(-1, WIDTH * 36))

class Plain(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)

linear = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
def dropout(): return nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(64, 10))
def fails(): raise KeyError("no such thing")
def leaves(): raise SystemExit("usage: none")
def number(): return 3
def needs(width): return nn.Linear(width, 10)
def pair(): return Plain(lambda x: (x, x))
def whole(): return Plain(lambda x: x.flatten(1)[:, :10].long())
def half(): return Plain(lambda x: x.flatten(1)[:, :10].half())
def eleven(): return Plain(lambda x: x.flatten(1)[:, :11])
def colour(): return nn.Sequential(nn.Conv2d(3, 10, 8), nn.Flatten())
def detached(): return Plain(lambda x: x.detach().flatten(1)[:, :10])
def constant(): return Plain(lambda x, w=torch.zeros(10, requires_grad=True): w.expand(len(x), 10))
value = 3
"""


@pytest.fixture
def program(tmp_path, monkeypatch) -> str:
    """A file with networks, whose neighbour it imports; its name is new in every test, as modules are loaded once."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"nets_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"part_{name}.py").write_text("WIDTH = 4\n")
    (tmp_path / f"{name}.py").write_text(PROGRAM.replace("{name}", name))
    return f"{name}.py"


def weights(network: nn.Module, path: str, seed: int = 0) -> str:
    torch.manual_seed(seed)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    torch.save(network.state_dict(), path)
    return path


def rows_of(path: str) -> dict[str, dict]:
    """Rows of clean images and top1, by model."""
    with open(path) as file:
        rows = list(csv.DictReader(file))
    return {
        row["model"]: row
        for row in rows
        if (row["condition"], row["metric"], row["paths"]) == ("clean", "top1", "both")
    }


@pytest.mark.slow
def test_a_network_of_ones_own_beside_ours(program, pipeline):
    first, second = own_network(f"{program}:linear"), own_network(f"{program}:Views")
    weights(first.network, "a.pt"), weights(second.network, "b.pt", 1)
    command = [sys.executable, "-m", "hybrid.evaluate", str(pipeline.safe), f"{program}:linear", f"./{program}:Views"]
    flags = ["--weights", "a.pt", "--weights", "b.pt", "--limit-test", "80", "--noise", "clean", "fgsm:4"]
    flags += ["--attack-model", f"{program}:linear", "--out", "r.csv", "--no-figures", "--seed", "3"]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    rows, digits = rows_of("r.csv"), load_images("digits", "test", 3, limit=80)
    assert list(rows) == ["safe", "linear", "Views"]
    for name, network, file in (("linear", first.network, "a.pt"), ("Views", second.network, "b.pt")):
        with torch.no_grad():
            answer = network(digits.images / 255).argmax(1)
        assert int(rows[name]["correct"]) == (answer == digits.labels).sum()
        assert rows[name]["model_digest"] == hashlib.sha256(Path(file).read_bytes()).hexdigest()
        assert {rows[name][key] for key in ("variant", "backbone", "train_noise", "training_seed")} == {""}
    ours = predict(hybrid.load(pipeline.safe).network, digits.images / 255, "cpu").argmax(1)
    assert int(rows["safe"]["correct"]) == (ours == digits.labels).sum()
    with open("r.csv") as file:
        attacked = {row["source_digest"] for row in csv.DictReader(file) if row["condition"] == "fgsm:4"}
    assert attacked == {rows["linear"]["model_digest"]}


def test_an_attack_model_of_ones_own_has_the_last_weights(program, pipeline, capsys):
    weights(own_network(f"{program}:linear").network, "a.pt")
    weights(own_network(f"{program}:Views").network, "b.pt")
    flags = ["--limit-test", "40", "--noise", "clean", "fgsm:4", "--out", "r.csv", "--no-figures"]
    given = [f"{program}:Views", "--attack-model", f"{program}:linear", "--weights", "b.pt", "--weights", "a.pt"]
    assert evaluate([*given, "--data", "digits", *flags]) == 0
    with open("r.csv") as file:
        rows = list(csv.DictReader(file))
    digest = {name: hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in ("a.pt", "b.pt")}
    assert {row["model_digest"] for row in rows} == {digest["b.pt"]}
    assert {row["source_digest"] for row in rows} == {"", digest["a.pt"]}
    for name, words in (("detached", "has no gradient for images"), ("constant", "do not depend on the images")):
        assert evaluate([str(pipeline.safe), "--attack-model", f"{program}:{name}", *flags]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
        assert "--attack-model" in line


def test_networks_are_in_evaluation_mode_and_drawn_weights_repeat(program):
    images = torch.rand(8, 1, 8, 8)
    network = own_network(f"{program}:dropout", seed=4)
    state = torch.random.get_rng_state()
    with torch.no_grad():
        assert torch.equal(network(images), network(images))
        assert torch.equal(network(images), own_network(f"{program}:dropout", seed=4)(images))
        assert not torch.equal(network(images), own_network(f"{program}:dropout", seed=5)(images))
    assert torch.equal(state, torch.random.get_rng_state())
    assert own_network(f"{program}:half")(images).dtype == torch.float32


def test_names_are_those_of_functions_and_longer_where_they_are_equal():
    first, second = OwnReference("a.py:net"), OwnReference("b.py:net")
    assert name_models([first, Path("x/safe.h5"), OwnReference("torchvision.models:resnet18")]) == [
        "net",
        "safe",
        "resnet18",
    ]
    assert name_models([first, second, Path("x/safe.h5")]) == ["a.py:net", "b.py:net", "x/safe.h5"]
    both = [first._replace(weights=Path(name)) for name in ("1.pt", "2.pt")]
    assert name_models(both) == ["a.py:net 1.pt", "a.py:net 2.pt"]
    assert name_models([OwnReference("a.py:safe"), Path("safe.h5")]) == ["a.py:safe", "safe.h5"]


def test_which_texts_name_a_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in ("net.py:build", "a/b c/net.py:Net_2", "package.module:f", "C:/x.py:f"):
        assert is_own(text), text
    Path("run:one").touch()
    for text in (
        "safe.h5",
        "pretrained:safe",
        "net.py:",
        ":f",
        "net.py:2",
        "runs/10:30/safe.h5",
        "run:one",
        "net.py:a.b",
    ):
        assert not is_own(text), text


def test_two_files_for_one_network_and_none(program, capsys):
    weights(own_network(f"{program}:linear").network, "a.pt")
    weights(own_network(f"{program}:linear").network, "b.pt", 1)
    flags = ["--data", "digits", "--limit-test", "30", "--noise", "clean", "--no-figures", "--out", "r.csv"]
    given = [f"{program}:linear"] * 3 + [f"{program}:dropout"]
    files = ["a.pt", "b.pt", "./a.pt", "none"]
    assert evaluate([*given, *(word for file in files for word in ("--weights", file)), *flags]) == 0
    rows = rows_of("r.csv")
    assert list(rows) == [f"{program}:linear a.pt", f"{program}:linear b.pt", f"{program}:dropout"]
    assert rows[f"{program}:dropout"]["model_digest"] == ""
    assert f"model {program}:linear is given 2 times: measured once" in capsys.readouterr().err
    assert evaluate([*given, "--weights", "a.pt", *flags]) == 2
    assert "--weights: 1 for 4 networks of your own" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fails", "line 26: KeyError: 'no such thing'; mend it"),
        ("leaves", "line 27: SystemExit: usage: none; mend it"),
        ("number", "it returns a int; expected a torch.nn.Module"),
        ("needs", "missing 1 required positional argument: 'width'"),
        ("nothing", "has no function nothing; it has Views, Plain, linear, dropout, fails and"),
        ("value", "has no function value; it has"),
        ("pair", "returns tuple for images of shape (30, 1, 8, 8); expected logits, floating-point (30, classes)"),
        ("whole", "returns torch.int64 (30, 10) for images"),
        ("eleven", "model eleven gives 11 logits for 10 classes"),
        ("colour", "fails on images of shape (30, 1, 8, 8): RuntimeError: Given groups=1"),
    ],
)
def test_functions_and_networks_that_cannot_be_used_are_refused(program, name, words, capsys):
    flags = ["--data", "digits", "--limit-test", "30", "--noise", "clean", "--no-figures", "--out", "r.csv"]
    assert evaluate([f"{program}:{name}", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert f"{program}:{name}" in line or name == "eleven"
    assert not Path("r.csv").exists()


class Code:
    def __reduce__(self):
        return os.system, ("touch executed",)


def packed(path: str) -> None:
    torch.save({"x": torch.zeros(10**6)}, "unpacked.pt")
    with zipfile.ZipFile("unpacked.pt") as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for member in old.namelist():
            new.writestr(member, old.read(member))


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda path: None, "there is no such file"),
        (lambda path: Path(path).write_bytes(b"junk" * 99), "PyTorch does not read it as tensors alone"),
        (lambda path: Path(path).write_bytes(b""), "PyTorch does not read it as tensors alone"),
        (lambda path: Path(path).write_bytes(pickle.dumps(Code())), "PyTorch does not read it as tensors alone"),
        (lambda path: torch.save({"1.bias": Code()}, path), "PyTorch does not read it as tensors alone"),
        (lambda path: torch.save(nn.Linear(64, 10), path), "PyTorch does not read it as tensors alone"),
        (packed, "PyTorch does not read it as tensors alone"),
        (lambda path: torch.save([torch.zeros(3)], path), "it holds no tensors by name"),
        (lambda path: torch.save({"epoch": 3}, path), "it holds no tensors by name"),
        (lambda path: torch.save({1: torch.zeros(3)}, path), "it holds no tensors by name"),
        (
            lambda path: torch.save({"1.weight": torch.zeros(10, 65), "more": torch.zeros(2)}, path),
            "1 missing: 1.bias; 1 unexpected: more; 1 of another shape: 1.weight (10x65, the network has 10x64)",
        ),
        (
            lambda path: torch.save({"1.weight": 3, "1.bias": torch.zeros(10)}, path),
            "1.weight (int, the network has 10x64)",
        ),
        (
            lambda path: torch.save({"1.weight": torch.full((10, 64), torch.nan), "1.bias": torch.zeros(10)}, path),
            "gives logits that are not finite numbers",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_run_nothing(program, write, words, capsys):
    write("w.pt")
    flags = ["--data", "digits", "--limit-test", "30", "--noise", "clean", "--no-figures", "--out", "r.csv"]
    assert evaluate([f"{program}:linear", "--weights", "w.pt", *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert not Path("executed").exists()
    assert not Path("r.csv").exists()


def test_weights_of_checkpoints_and_of_several_gpus_are_taken(program):
    network = own_network(f"{program}:linear").network
    state = torch.load(weights(network, "a.pt"))
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, "b.pt")
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        for file in ("a.pt", "b.pt"):
            assert torch.equal(own_network(f"{program}:linear", file)(images), network(images))


def test_what_they_are_read_from_is_not_overwritten_and_data_are_asked_for(program, capsys):
    weights(own_network(f"{program}:linear").network, "a.pt")
    flags = ["--data", "digits", "--limit-test", "30", "--noise", "clean", "--no-figures"]
    for out in ("a.pt", program):
        before = Path(out).read_bytes()
        assert evaluate([f"{program}:linear", "--weights", "a.pt", *flags, "--out", out]) == 2
        assert f"cannot write {out}: it is read by this command" in capsys.readouterr().err
        assert Path(out).read_bytes() == before
    for given, words in (
        ([], "--data: no model here records its images"),
        (["gone.py:net", "--data", "digits"], "MODELS gone.py: there is no such file"),
        (["no_such_module_at_all:net", "--data", "digits"], "No module named 'no_such_module_at_all'"),
        (["--data", "digits", "--weights", "a.pt", "--weights", "a.pt"], "--weights: 2 for 1 networks of your own"),
        (["--split", "held-out"], "--split held-out takes images of a training run, and no model has one"),
    ):
        assert evaluate([f"{program}:linear", *given, "--out", "r.csv"]) == 2
        assert words in capsys.readouterr().err


def test_the_library_takes_them_like_any_module(program, models, digits):
    network = own_network(OwnReference(f"{program}:linear"), seed=1)
    rows = hybrid.evaluate([network, models["safe"]], digits, "clean")
    assert [row["model"] for row in rows if row["metric"] == "top1" and row["paths"] == "both"] == [
        "linear",
        "safe mobilenet_v2",
    ]
    with pytest.raises(UserError, match="network nonsense: expected FILE"):
        own_network("nonsense")
