"""Files from strangers: whatever is in them, they are read as they were written or refused in one line."""

import os
import re
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from faults.files import NONSENSE, Kind, damaged, forged_value, hostile, leaves, reproved, stamped, with_value

from bridge.sau import SpecialActivationUnit
from bridge.storage import SCHEMA as FRONTEND
from bridge.storage import load_frontend, load_spiking_layers
from hybrid.storage import SCHEMA as HYBRID
from hybrid.storage import load_model, save_model
from snn.data import load_images
from snn.data_source import DataSource
from snn.learner import learn
from snn.runtime import h5, h5_guard
from snn.runtime.errors import UserError
from snn.runtime.h5 import BLOCK, Schema, read_file, write_file
from snn.runtime.tree import Stored
from snn.storage import SCHEMA as SNN
from snn.storage import load_network, save

RECORDED = ("unit", "fidelity", "candidates", "fit", "source_digest", "seed", "input", "images_digest")
"""Parts of a file, or ends of their names, that say how it came about or are read where they are used."""
MEMORY = 2 * 2**30
BEFORE: dict[str, int] = {}
COUNTS = [500, pytest.param(10_000, marks=pytest.mark.long)]


@pytest.fixture(scope="module")
def kinds(pipeline, tmp_path_factory) -> list[Kind]:
    """A file of each kind, and one of unfinished learning."""
    unfinished = tmp_path_factory.mktemp("unfinished") / "snn.h5"
    finished = load_network(pipeline.snn).network
    seen = []
    learn(load_images(DataSource(limit_train=40), "train").images, finished.learning, save=seen.append)
    save(seen[len(seen) * 3 // 4], unfinished)
    return [
        Kind.of("snn", SNN, load_network, pipeline.snn),
        Kind.of("unfinished", SNN, load_network, unfinished),
        Kind.of("frontend", FRONTEND, load_all_layers, pipeline.frontend),
        Kind.of("hybrid", HYBRID, load_model, with_all_parts(pipeline.safe, unfinished.with_name("hybrid.h5"))),
    ]


def with_all_parts(file: Path, out: Path) -> Path:
    """A trained network's file as if it had started from pretrained weights and then gone on."""
    model = replace(load_model(file), cycles=(1, 1), weights="imagenet", weights_digest="0" * 64)
    save_model(out, model, "a test", model.parent_digest)
    return out


def load_all_layers(path: Path) -> None:
    """Read the front end, and the spiking layers that it came from."""
    load_frontend(path)
    load_spiking_layers(path)


def refusal(kind: Kind, path: Path) -> str:
    """The message with which a file is refused, "" if it is not; nothing else may happen."""
    start = time.monotonic()
    try:
        kind.load(path)
        message = ""
    except UserError as error:
        message = str(error)
        assert "\n" not in message
        assert str(path) in message
    assert time.monotonic() - start < h5_guard.SECONDS + 10
    for child in h5_guard.idle:
        status = Path(f"/proc/{child._process.pid}/status").read_text()
        assert int(status.split("VmHWM:")[1].split()[0]) * 1024 < MEMORY
    assert own_memory() < MEMORY
    return message


def own_memory() -> int:
    """Bytes that this process holds more than when the first file was refused."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return (pages - BEFORE.setdefault("pages", pages)) * resource.getpagesize()


def by_turns(kinds: list[Kind], number: int) -> Kind:
    """Seldom a trained network, which takes longest."""
    return kinds[3] if number % 25 == 0 else kinds[number % 3]


@pytest.mark.parametrize("count", COUNTS)
def test_no_damage_goes_unseen(kinds, tmp_path, count):
    random, path = np.random.default_rng(0), tmp_path / "damaged.h5"
    for number in range(count):
        kind = by_turns(kinds, number)
        file = damaged(kind.file, random)
        path.write_bytes(file)
        assert bool(refusal(kind, path)) == (file != kind.file)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("old", [False, True], ids=["with a block that fits", "without a block"])
def test_damage_with_valid_proof_is_refused_or_harmless(kinds, tmp_path, monkeypatch, count, old):
    random, path = np.random.default_rng(1), tmp_path / "damaged.h5"
    files = [kind.file for kind in kinds]
    if old:
        # As files were once written: no block, and a format without checksums.
        monkeypatch.setattr(h5, "FORMAT", ("earliest", "v110"))
        files = [stamped(kind.tree, kind.schema)[BLOCK:] for kind in kinds]
    whole = {kind.name: kind.tree["digest"] for kind in kinds}
    for number in range(count // 2):
        kind = by_turns(kinds, number)
        file = damaged(files[kinds.index(kind)], random)
        path.write_bytes(file if old else reproved(file))
        if not refusal(kind, path):
            # Damage where nothing lies, or in how the file was made.
            assert read_file(path, kind.schema, Stored.loaded)["digest"] == whole[kind.name]


@pytest.mark.parametrize("count", COUNTS)
def test_forged_content_is_refused(kinds, tmp_path, count):
    random, path = np.random.default_rng(2), tmp_path / "forged.h5"
    refused = 0
    for number in range(count):
        kind = by_turns(kinds, number)
        places = [(where, value) for where, value in leaves(kind.tree) if not recorded(where)]
        where, value = places[random.integers(len(places))]
        forged = forged_value(value, random)
        path.write_bytes(stamped(with_value(kind.tree, where, forged), kind.schema))
        message = refusal(kind, path)
        refused += bool(message)
        # A setting may have another value of its own type; an array of another type or shape, or not finite, never.
        numbers = isinstance(forged, int | float) and np.isfinite(forged) and isinstance(value, int | float | bool)
        alike = numbers or isinstance(forged, str) == isinstance(value, str) != isinstance(value, np.ndarray | dict)
        edges = where[-1].endswith("activation.edges") and isinstance(forged, np.ndarray)
        assert message or alike or edges, (kind.name, where, forged)
    assert refused > count / 3


def settings(kind: Kind) -> list[tuple[str, ...]]:
    """Places of all values and groups, but for the hundreds of arrays of a trained network."""
    arrays = kind.name == "hybrid"
    return [where for where, value in leaves(kind.tree) if not (arrays and isinstance(value, np.ndarray))]


VALUES = [(None,), pytest.param((None, *NONSENSE), marks=pytest.mark.long)]


@pytest.mark.slow
@pytest.mark.parametrize("values", VALUES, ids=["missing", "nonsense"])
def test_every_part_may_be_missing_or_nonsense(kinds, tmp_path, values):
    path = tmp_path / "part.h5"
    for kind in kinds:
        refused, places = 0, settings(kind)
        for where in places:
            for value in values:
                path.write_bytes(stamped(with_value(kind.tree, where, value), kind.schema))
                refused += bool(refusal(kind, path))
        # The others have defaults, or say how the file was made.
        assert refused > len(places) * len(values) / 4, kind.name


def recorded(where: tuple[str, ...]) -> bool:
    return any(name in RECORDED or name.endswith("_unit") for name in where)


def test_traps_are_refused_by_name(kinds, tmp_path):
    path = tmp_path / "file.h5"
    for trap, file in hostile(tmp_path).items():
        path.write_bytes(file)
        for kind in kinds:
            assert refusal(kind, path), trap


LAYER = ("layers", "conv1")
STATE = (*LAYER, "state")
SPEC = ("config", "frontend")


def at(tree, where):
    """What is stored there, or None."""
    for name in where:
        tree = tree.get(name)
    return tree


@pytest.mark.parametrize(
    ("kind", "where", "value"),
    [
        *[("snn", (*LAYER, "conductance"), lambda g, t=t: g.astype(t)) for t in ("i4", "f2", "u2", "f8")],
        ("snn", (*LAYER, "conductance"), lambda g: g[:0]),
        ("snn", (*LAYER, "conductance"), lambda g: np.pad(g, [(0, 0), (0, 0), (1, 1), (1, 1)])),
        ("snn", (*LAYER, "conductance"), lambda g: g + 1),
        ("snn", (*LAYER, "gain"), lambda gain: gain[:1]),
        ("snn", (*LAYER, "gain"), lambda gain: gain[:0]),
        ("snn", (*LAYER, "gain"), lambda gain: -gain),
        ("snn", (*LAYER, "v_threshold"), lambda v: v - 30),
        *[("snn", (*LAYER, "geometry", "stride"), lambda _, s=s: s) for s in (1.5, 0, -1, 3, "x")],
        *[("snn", (*LAYER, "geometry", "kernel_size"), lambda _, s=s: s) for s in (10**9, 5, 0)],
        *[("snn", (*LAYER, "geometry", "maps"), lambda _, m=m: m) for m in (1, 10**9)],
        ("snn", (*LAYER, "geometry", "pulse_width"), lambda _: 1e300),
        ("snn", (*LAYER, "lif", "membrane_time_scale"), lambda _: float("inf")),
        ("snn", ("learning", "encoding", "dt"), lambda _: 1e-9),
        ("snn", ("learning", "encoding", "presentation"), lambda _: 2.5e9),
        ("snn", ("learning", "encoding", "kind"), lambda _: "weird"),
        ("snn", (*LAYER, "rate_low"), lambda _: float("nan")),
        ("snn", (*LAYER, "rate_low"), lambda _: 1e9),
        ("snn", ("layers",), lambda layers: {"conv1": layers["conv2"], "conv2": layers["conv1"]}),
        ("snn", ("layers",), lambda layers: {**layers, "conv3": layers["conv2"]}),
        ("snn", ("layers",), lambda layers: {"conv1": layers["conv1"], "conv3": layers["conv2"]}),
        *[(k, ("input", "image_size"), lambda _, s=s: s) for k in ("snn", "hybrid") for s in ("x", 1.5)],
        *[(k, ("input", "height"), lambda _, s=s: s) for k in ("snn", "frontend", "hybrid") for s in ("x", 10**6, 0)],
        *[("snn", ("seed",), lambda _, s=s: s) for s in ("x", -1, 2**32)],
        *[("hybrid", ("seed",), lambda _, s=s: s) for s in ("x", -1)],
        ("unfinished", ("progress", "now", "v_threshold"), lambda v: v[:1]),
        ("unfinished", ("progress", "start", "gain"), lambda gain: gain[:0]),
        ("unfinished", ("progress", "ltd_factor"), lambda f: f[:1]),
        ("unfinished", ("progress", "window"), lambda w: w[0]),
        ("unfinished", ("progress", "history", "wins"), lambda w: w[1:]),
        ("unfinished", ("progress", "history", "images"), lambda images: images[::-1].copy()),
        ("frontend", (*STATE, "activation.edges"), lambda e: e[..., ::-1].copy()),
        ("frontend", (*STATE, "activation.edges"), lambda e: np.full_like(e, e.flat[0])),
        ("frontend", (*STATE, "activation.edges"), lambda e: np.full_like(e, np.nan)),
        ("frontend", (*STATE, "activation.heights"), lambda h: np.full_like(h, np.inf)),
        ("frontend", (*STATE, "activation.heights"), lambda h: h * 1e6),
        ("frontend", (*STATE, "norm.running_var"), lambda v: -v),
        ("frontend", (*STATE, "norm.running_var"), lambda v: np.full_like(v, np.inf)),
        ("frontend", (*STATE, "weight"), lambda w: np.full_like(w, np.nan)),
        ("frontend", (*LAYER, "response", "channel"), lambda c: c + 1000),
        *[("frontend", ("spec", "strides"), lambda s, v=v: [v] * len(s)) for v in (0, -1, 1.5, "x", 10**9)],
        *[("frontend", ("spec", "paddings"), lambda s, v=v: [v] * len(s)) for v in (-1, 10**6, None)],
        *[("frontend", ("spec", "maps"), lambda s, v=v: [v] * len(s)) for v in (1, 10**9)],
        ("frontend", ("spec", "steps"), lambda s: s[:1]),
        ("frontend", ("spec", "retina_size"), lambda _: 10**6),
        *[("hybrid", (*SPEC, "strides"), lambda s, v=v: [v] * len(s)) for v in (0, -1, 1.5)],
        (
            "hybrid",
            ("state",),
            lambda s: {k: np.full_like(v, np.nan) if v.dtype.kind == "f" else v for k, v in s.items()},
        ),
        ("hybrid", ("state",), lambda s: dict(list(s.items())[1:])),
        ("hybrid", ("state",), lambda s: {**s, "more": np.zeros(3, np.float32)}),
        ("hybrid", ("scales",), lambda _: {"more": np.zeros(3, np.float32)}),
        ("hybrid", ("config", "architecture", "embedding"), lambda _: 10**12),
        ("hybrid", ("config", "architecture", "width"), lambda _: 1e5),
        ("hybrid", ("config", "architecture", "preprocess"), lambda _: 1.5),
        ("hybrid", ("config", "classes"), lambda _: "abc"),
        ("hybrid", ("config", "classes"), lambda names: [names[0], *names[:-1]]),
        ("hybrid", ("history", "train_loss"), lambda h: h[:1]),
        ("hybrid", ("recipe", "holdout"), lambda _: "x"),
        ("hybrid", ("deviations",), lambda _: {"conv1": np.zeros((2, 1024), np.float32)}),
    ],
)
def test_content_that_cannot_be_is_refused_where_it_is_read(kinds, tmp_path, kind, where, value):
    chosen, path = next(each for each in kinds if each.name == kind), tmp_path / "forged.h5"
    path.write_bytes(stamped(with_value(chosen.tree, where, value(at(chosen.tree, where))), chosen.schema))
    assert refusal(chosen, path)


def test_spiking_layers_of_a_front_end_are_checked_where_they_are_used(kinds, tmp_path):
    chosen, path = kinds[2], tmp_path / "forged.h5"
    gain = chosen.tree["layers"]["conv1"]["spiking"]["gain"]
    path.write_bytes(stamped(with_value(chosen.tree, (*LAYER, "spiking", "gain"), gain[:1]), chosen.schema))
    with pytest.raises(UserError, match=r"layers/conv1/spiking/gain is float32 of shape \(1,\), expected"):
        load_spiking_layers(path)
    path.write_bytes(stamped(with_value(chosen.tree, (*LAYER, "spiking", "geometry", "stride"), 2), chosen.schema))
    load_frontend(path)
    with pytest.raises(UserError, match=r"layers/conv1/spiking/geometry is LayerSpec\(.*stride=2.*, its spec says"):
        load_spiking_layers(path)


@pytest.mark.parametrize("name", [None, 5, "snn/99"])
def test_the_schema_of_a_file_is_known(kinds, tmp_path, name):
    path = tmp_path / "forged.h5"
    path.write_bytes(stamped(with_value(kinds[0].tree, ("schema",), name), kinds[0].schema))
    with pytest.raises(UserError, match="schema"):
        load_network(path)


def test_steps_are_checked_when_they_are_loaded():
    unit = SpecialActivationUnit(torch.tensor([1.0, 2.0]), torch.arange(3.0))
    for edges in ([2.0, 1.0], [1.0, 1.0], [float("nan"), 2.0], [float("inf"), float("inf")]):
        with pytest.raises(UserError, match="edges must increase"):
            unit.load_state_dict({"edges": torch.tensor(edges), "heights": torch.arange(3.0)})


def test_a_whole_file_is_read_by_other_readers(pipeline):
    with h5py.File(pipeline.snn) as file:
        assert file.userblock_size == BLOCK
        assert file.attrs["schema"] == "snn/3"
        assert file["layers/conv1/conductance"].dtype == np.float32
    title, size, digest = pipeline.snn.read_bytes()[:BLOCK].rstrip(b"\0\n").rsplit(b" ", 2)
    assert title.startswith(b"safe-dnn")
    assert int(size) == pipeline.snn.stat().st_size - BLOCK
    assert re.fullmatch(rb"[0-9a-f]{64}", digest)


def test_a_file_that_another_process_writes_is_said_to_be_in_use(tmp_path):
    path = tmp_path / "file.h5"
    write_file(path, Schema("test/1", "the remedy"), {"a": 1}, seed=0, command="")
    program = "import h5py, sys; file = h5py.File(sys.argv[1], 'r+'); print('open', flush=True); sys.stdin.read()"
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout.readline() == "open\n"
        with pytest.raises(UserError, match=r"file\.h5 is open for writing in another process"):
            read_file(path, Schema("test/1", "the remedy"), Stored.loaded)
    finally:
        writer.communicate("")


@pytest.mark.parametrize(
    ("trouble", "ends"),
    [
        ("while True: pass", True),
        ("import os; os.abort()", True),
        ("import os; os._exit(0)", True),
        ("bytearray(10**11)", False),
    ],
)
def test_what_the_library_does_with_the_worst_of_files_ends_with_a_refusal(tmp_path, monkeypatch, trouble, ends):
    path, schema = tmp_path / "file.h5", Schema("test/1", "the remedy")
    write_file(path, schema, {"a": np.arange(5)}, seed=0, command="")
    script = tmp_path / "h5_child.py"
    child = Path(h5_guard.__file__).with_name("h5_child.py").read_text()
    script.write_text(child.replace("walk = _Walk(", f"exec({trouble!r}); walk = _Walk("))
    monkeypatch.setattr(h5_guard, "CHILD", script)
    monkeypatch.setattr(h5_guard, "SECONDS", 3)
    idle = []
    monkeypatch.setattr(h5_guard, "idle", idle)
    with pytest.raises(UserError, match=r"file\.h5 is truncated or not an HDF5 file"):
        read_file(path, schema, Stored.loaded)
    assert len(idle) == (0 if ends else 1)
    for process in idle:
        process.end()
    # The next file is read as ever.
    monkeypatch.undo()
    assert list(read_file(path, schema, Stored.loaded)["a"]) == [0, 1, 2, 3, 4]


def test_a_process_that_reads_files_and_has_died_is_replaced(tmp_path, monkeypatch):
    path, schema = tmp_path / "file.h5", Schema("test/1", "the remedy")
    write_file(path, schema, {"a": np.arange(5)}, seed=0, command="")
    read_file(path, schema, Stored.loaded)
    for child in h5_guard.idle:
        child._process.kill()
        child._process.wait()
    assert list(read_file(path, schema, Stored.loaded)["a"]) == [0, 1, 2, 3, 4]
    monkeypatch.setattr(h5_guard, "CHILD", tmp_path / "absent.py")
    monkeypatch.setattr(h5_guard, "idle", [])
    with pytest.raises(OSError, match="cannot start the process that reads HDF5 files"):
        read_file(path, schema, Stored.loaded)


def test_files_are_read_while_others_are_read(tmp_path):
    path, schema = tmp_path / "file.h5", Schema("test/1", "the remedy")
    write_file(path, schema, {"a": np.arange(5)}, seed=0, command="")

    def both(tree):
        return tree.loaded()["a"] + read_file(path, schema, Stored.loaded)["a"]

    assert read_file(path, schema, both).tolist() == [0, 2, 4, 6, 8]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: read_file(path, schema, both).tolist(), range(20)))
    assert found == [[0, 2, 4, 6, 8]] * 20


def test_a_file_that_is_removed_while_it_is_read_is_not_called_damaged(tmp_path, monkeypatch):
    path, schema = tmp_path / "file.h5", Schema("test/1", "the remedy")
    write_file(path, schema, {"a": np.arange(5)}, seed=0, command="")

    def late(file):
        file.unlink()
        return h5_guard.parsed(file)

    monkeypatch.setattr("snn.runtime.h5.parsed", late)
    with pytest.raises(UserError, match=r"file.h5 was removed while it was read; make it again with: the remedy"):
        read_file(path, schema, Stored.loaded)


def test_a_forked_process_reads_files_of_its_own(tmp_path):
    path, schema = tmp_path / "file.h5", Schema("test/1", "the remedy")
    write_file(path, schema, {"a": np.arange(5)}, seed=0, command="")
    read_file(path, schema, Stored.loaded)
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if read_file(path, schema, Stored.loaded)["a"].tolist() == [0, 1, 2, 3, 4] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert read_file(path, schema, Stored.loaded)["a"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.needs_export
@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("snn.learn --data digits --limit-train 40 --maps 8 --min-updates 3 --no-figures", "network.h5"),
        ("bridge.convert {snn} --images 40 --no-figures", "frontend.h5"),
        ("bridge.export {frontend} --format onnx", "frontend.onnx"),
        ("bridge.export {frontend} --format nir", "frontend.nir"),
    ],
)
def test_a_limit_of_file_size_ends_in_one_line(pipeline, tmp_path, command, name):
    out = tmp_path / name
    out.write_bytes(b"an earlier result")
    words = command.format(snn=pipeline.snn, frontend=pipeline.frontend)
    limited = f"ulimit -f 2; exec {sys.executable} -m {words} --out {out}"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True)
    assert done.returncode == 2
    *warnings, error = done.stderr.strip().splitlines()
    assert f"cannot write {out}: File too large" in error
    assert out.read_bytes() == b"an earlier result"
    # Logs that cannot be written end no learning.
    logs = out.with_name("network_learning")
    assert all(f"warning: cannot write {logs}: File too large; learning goes on" in line for line in warnings)
    assert len(warnings) == ("snn.learn" in command)
    assert {path for path in tmp_path.iterdir()} - {logs} == {out}
