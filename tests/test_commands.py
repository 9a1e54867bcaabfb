"""The commands: what they write, that they repeat themselves bit by bit, and how they refuse wrong input."""

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import CONDITIONS, LEARN, TRAIN, run_pipeline

from bridge.convert import main as convert
from bridge.export.__main__ import main as export
from bridge.storage import load_frontend
from hybrid.classify import main as classify
from hybrid.complexity import main as complexity
from hybrid.embedding import main as embedding
from hybrid.evaluate import main as evaluate
from hybrid.export import main as export_network
from hybrid.margins import main as margins
from hybrid.reproduce import main as reproduce
from hybrid.swap import main as swap
from hybrid.train import main as train
from snn.data import load_images
from snn.data_source import DataSource
from snn.learn import main as learn
from snn.runtime.cli import run_command
from snn.runtime.errors import UserError
from snn.runtime.outputs import write_atomically, write_json
from snn.storage import load_network, save
from validation.freq_response import main as freq_response
from validation.network import main as network
from validation.stdp_window import main as stdp_window


def arrays(path: Path) -> dict[str, bytes]:
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item[()].tobytes()}) if isinstance(item, h5py.Dataset) else None
        )
    return found


def digest(path: Path) -> str:
    with h5py.File(path) as file:
        return file.attrs["digest"]


@pytest.mark.slow
def test_every_stage_repeats_itself_bit_by_bit(pipeline, tmp_path):
    again = run_pipeline(tmp_path)
    for name in ("snn", "frontend", "safe", "baseline"):
        first, second = getattr(pipeline, name), getattr(again, name)
        assert arrays(first) == arrays(second), name
        assert digest(first) == digest(second), name
    assert pipeline.results.read_bytes() == again.results.read_bytes()


def test_another_seed_learns_something_else(pipeline, tmp_path):
    assert learn([*LEARN, "--out", str(tmp_path / "snn.h5"), "--seed", "1"]) == 0
    other, first = arrays(tmp_path / "snn.h5"), arrays(pipeline.snn)
    assert other["layers/conv1/conductance"] != first["layers/conv1/conductance"]


def test_learning_is_alive_and_recorded(pipeline):
    network, _, _ = load_network(pipeline.snn)
    assert [learned.layer.geometry.maps for learned in network.layers] == [6, 8]
    for learned in network.layers:
        assert learned.mean_move > 0.05
        assert learned.winning_share >= 0.8
        assert learned.mean_rate == pytest.approx(12.0, abs=0.3)
        assert learned.layer.lif.v_leak < learned.layer.v_threshold[0] <= learned.layer.lif.v_threshold
        assert 0 <= learned.layer.conductance.min() < learned.layer.conductance.max() <= 1
        assert (learned.history.mean_change > 0).all()
        assert learned.history.images[-1] == 200
    figures = json.loads((pipeline.folder / "snn.json").read_text())
    assert figures["layers"]["conv1"]["mean_conductance_change_from_start"] == network.layers[0].mean_move


def test_snn_file_round_trip(pipeline, tmp_path):
    network, source, file_digest = load_network(pipeline.snn)
    again = tmp_path / "again.h5"
    assert save(network, again, source, command="copy") == file_digest
    assert arrays(again) == arrays(pipeline.snn)
    loaded, loaded_source, _ = load_network(again)
    assert loaded.learning == network.learning
    assert loaded_source == source
    for ours, theirs in zip(loaded.layers, network.layers, strict=True):
        assert (ours.layer.geometry, ours.layer.lif) == (theirs.layer.geometry, theirs.layer.lif)
        assert torch.equal(ours.layer.conductance, theirs.layer.conductance)


def test_figures_are_drawn(pipeline):
    names = {p.name for p in pipeline.folder.glob("*.png")}
    drawn = {"snn_kernels", "frontend_response", "frontend_fidelity", "safe_training", "baseline_training", "results"}
    assert names == {f"{name}.png" for name in drawn}
    assert all((pipeline.folder / name).read_bytes().startswith(b"\x89PNG") for name in names)


def test_results_are_traceable_and_do_not_depend_on_the_batch_size(pipeline, tmp_path, capsys):
    with open(pipeline.results) as file:
        rows = list(csv.DictReader(file))
    both = [row for row in rows if row["paths"] == "both"]
    assert [(row["model"], row["condition"], row["metric"]) for row in both] == [
        (model, condition, metric)
        for model in ("safe", "baseline")
        for condition in CONDITIONS
        for metric in ("top1", "top5")
    ]
    assert [row["paths"] for row in rows if row["paths"] != "both"] == ["spiking"] * 2 + ["auxiliary"] * 2
    for row in rows:
        assert row["model_digest"] == digest(getattr(pipeline, row["model"]))
        assert float(row["value_percent"]) == pytest.approx(100 * int(row["correct"]) / 600, abs=1e-3)
    images = load_images(DataSource(), "test", seed=0).images.double() / 255
    sigma = (images.square().mean((1, 2, 3)) / 10**1.2).sqrt().mean().item()
    assert float(both[2]["mean_sigma_intensity"]) == pytest.approx(sigma, abs=1e-5)
    models = [str(pipeline.safe), str(pipeline.baseline)]
    out, figures = tmp_path / "other.csv", tmp_path / "other.json"
    options = ["--batch-size", "77", "--json", str(figures), "--no-figures"]
    assert evaluate([*models, "--noise", *CONDITIONS, "--out", str(out), *options]) == 0
    assert out.read_bytes() == pipeline.results.read_bytes()
    results = json.loads(figures.read_text())["results"]
    assert [row["correct"] for row in results] == [int(row["correct"]) for row in rows]
    shown = capsys.readouterr().out
    told = [row for row in rows if row["paths"] == "both" or row["metric"] == "top1"]
    assert all(f"{float(row['value_percent']):.1f}" in shown for row in told)


@pytest.mark.slow
def test_commands_run_as_processes_on_a_folder_of_images(image_folder, tmp_path, capsys):
    def python(*arguments):
        command = [sys.executable, "-m", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    data = ["--data", f"folder:{image_folder}"]
    steps = [
        ["snn.learn", *data, "--out", "snn.h5", "--maps", "4", "--min-updates", "3"],
        ["bridge.convert", "snn.h5", "--out", "frontend.h5", "--images", "20"],
        ["hybrid.train", *data, "--frontend", "frontend.h5", "--out", "safe.h5", "--width", "0.25", "--epochs", "1",
         "--batch-size", "8"],
        ["hybrid.evaluate", "safe.h5", "--noise", "clean", "--out", "results.csv"],
    ]  # fmt: skip
    for step in steps:
        result = python(*step)
        assert result.returncode == 0, result.stderr
        assert re.search(rf"^wrote {step[step.index('--out') + 1]}", result.stdout, re.MULTILINE)
    with h5py.File(tmp_path / "snn.h5") as file:
        assert file.attrs["command"].startswith("python -m snn.learn --data folder:")
        assert file["layers/conv1/conductance"].shape == (4, 3, 3, 3)
    result = python("snn.learn", "--data", "folder:nowhere", "--out", "other.h5")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "nowhere" in result.stderr
    assert train([*data, "--frontend", str(tmp_path / "snn.h5"), "--out", str(tmp_path / "other.h5")]) == 2
    assert "schema 'snn/3', expected 'frontend/3'" in capsys.readouterr().err


@pytest.mark.parametrize("main", [learn, convert, export, train, evaluate, margins, swap, embedding])
def test_help_names_units_and_defaults(main, capsys):
    words = help_of(main, capsys)
    assert "--format {onnx,nir}" in words if main is export else "--out PATH" in words
    assert "(required)" in words
    assert "(default: 0)" in words
    if main is learn:
        assert "Rate of intensity 1, in Hz (paper 4.2; ParallelSpikeSim 2019). (default: 30.0)" in words


@pytest.mark.parametrize("main", [classify, complexity, reproduce, freq_response, network, stdp_window])
def test_help_of_commands_that_have_a_default_for_every_flag(main, capsys):
    words = help_of(main, capsys)
    assert "--out" in words
    assert "(default: 0)" in words


def test_help_breaks_no_line_where_the_source_does(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        export_network(["--help"])
    # The source has a line break behind the bracket.
    assert any("NAME_int8.onnx), in the working folder." in line for line in capsys.readouterr().out.splitlines())


def test_help_breaks_lines_only_where_they_are_full(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    with pytest.raises(SystemExit):
        classify(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert any("which registers rules, encoders, engines, perturbations or backbones." in line for line in lines)
    assert any("crop: its shorter side is resized, and the middle is cut out. pad: all of it" in line for line in lines)


def help_of(main, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert not stop.value.code
    return " ".join(re.sub(r"[│─╭╮╰╯]", " ", capsys.readouterr().out).split())


@pytest.fixture
def refused(tmp_path, capsys):
    """Call a command; expect status 2, one line on stderr with all ``words``, and nothing new on disk."""

    def call(main, *arguments, words):
        capsys.readouterr()
        before = sorted(tmp_path.rglob("*"))
        assert main([str(a) for a in arguments]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        assert all(word in lines[0] for word in words), lines[0]
        assert sorted(tmp_path.rglob("*")) == before

    return call


def test_wrong_data_is_refused(refused, image_folder, tmp_path):
    out, data = tmp_path / "x.h5", f"folder:{image_folder}"
    for main, extra in ((learn, ()), (train, ("--variant", "baseline"))):
        refused(main, "--data", "folder:nowhere", "--out", out, *extra, words=["nowhere", "no such folder"])
        bad = image_folder / "train" / "one" / "bad.jpg"
        bad.write_text("no image")
        refused(main, "--data", data, "--out", out, *extra, words=["bad.jpg", "not a readable image"])
        bad.unlink()
        (image_folder / "test" / "nine").mkdir()
        refused(main, "--data", data, "--out", out, *extra, words=["nine", "train"])
        (image_folder / "test" / "nine").rmdir()
    (image_folder / "test").rename(image_folder / "elsewhere")
    # Learning needs no test images.
    refused(train, "--data", data, "--out", out, *extra, words=["'test'", "train/CLASS and test/CLASS"])


def test_wrong_outputs_are_refused_before_any_work(refused, pipeline, tmp_path):
    commands = [
        (learn, []),
        (convert, [pipeline.snn]),
        (train, ["--variant", "baseline"]),
        (evaluate, [pipeline.safe]),
    ]
    for main, arguments in commands:
        refused(main, *arguments, "--out", tmp_path / "missing" / "x", words=["missing", "does not exist"])
        refused(main, *arguments, "--out", "/proc/x", words=["/proc/x", "cannot write"])
        refused(main, *arguments, "--out", tmp_path, words=["it is a folder"])
        json_out = ["--out", tmp_path / "x", "--json", tmp_path / "missing" / "y"]
        refused(main, *arguments, *json_out, words=["missing"])


def test_outputs_never_replace_inputs_or_each_other(refused, pipeline, tmp_path):
    snn, safe, out = pipeline.snn, pipeline.safe, tmp_path / "x"
    before = [path.read_bytes() for path in (snn, safe)]
    refused(convert, snn, "--out", snn, words=["snn.h5", "is read by this command"])
    refused(train, *TRAIN, "--frontend", snn, "--out", snn.parent / "." / "snn.h5", words=["is read by this command"])
    refused(evaluate, safe, "--out", out, "--json", safe, words=["is read by this command"])
    refused(learn, "--out", out, "--json", out, words=["another output"])
    refused(evaluate, safe, "--out", tmp_path / "r.png", words=["another output"])
    refused(learn, "--out", "/dev/null", words=["not a regular file"])
    refused(learn, "--out", ".", words=["it is a folder"])
    refused(learn, "--out", tmp_path / ("x" * 300), words=["too long"])
    assert before == [path.read_bytes() for path in (snn, safe)]


def test_wrong_flags_end_in_one_line(refused, pipeline, tmp_path):
    out = ["--out", tmp_path / "x"]
    refused(learn, words=["error: missing: --out", "(required); see python -m snn.learn --help"])
    refused(learn, *out, "--no-such-flag", words=["error: Unrecognized options: --no-such-flag; see python -m"])
    refused(learn, *out, "--stdp.rle", "fd", words=["--stdp.rle, fd; perhaps you meant: --stdp.rule"])
    refused(learn, *out, "--device", "tpu", words=["tpu", "cuda"])
    refused(learn, *out, "--seed", "many", words=["many"])
    refused(learn, *out, "--seed", "-1", words=["--seed -1"])
    refused(learn, *out, "--maps", "8", "-3", words=["--maps"])
    refused(learn, *out, "--kernel-sizes", "-1", words=["--kernel-sizes"])
    refused(learn, *out, "--encoding.dt", "2", words=["--pulse-width 15.0 ms", "multiple of --encoding.dt"])
    refused(learn, *out, "--encoding.presentation", "inf", words=["inf"])
    refused(train, *out, "--auxiliary-maps", "-1", words=["--auxiliary-maps -1"])
    refused(train, *out, "--variations.auxiliary-kernel", "4", words=["--variations.auxiliary-kernel 4", "odd"])
    refused(train, *out, "--weight-decay", "-1", words=["--weight-decay -1"])
    refused(train, *out, "--label-smoothing", "2", words=["--label-smoothing 2"])


@pytest.mark.parametrize("images", [["--limit-train", "300"], ["--limit-train", "20", "--batch-size", "8"]])
def test_diverged_training_writes_nothing(images, tmp_path, capsys):
    flags = ["--variant", "baseline", "--learning-rate", "1e6", "--weight-decay", "0", "--epochs", "1", *images]
    # With checkpoints, from which nobody could go on.
    flags += ["--checkpoint-interval", "0"]
    assert train([*TRAIN, *flags, "--out", str(tmp_path / "x"), "--json", str(tmp_path / "y")]) == 2
    # A slow machine shows a progress bar first.
    last = capsys.readouterr().err.splitlines()[-1]
    assert "diverged with --learning-rate 1000000.0: the loss" in last
    assert [path.name for path in tmp_path.iterdir()] == ["x_training"]
    assert not list((tmp_path / "x_training").glob("*.ckpt"))


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "free some space"), (errno.EACCES, "Permission denied; give another name")],
)
def test_errors_of_writing_name_their_reason(number, words, tmp_path):
    def write(temporary):
        raise OSError(number, os.strerror(number), str(temporary))

    with pytest.raises(UserError, match=f"cannot write .*x.json: {os.strerror(number)}; ") as caught:
        write_atomically(tmp_path / "x.json", write)
    assert words in str(caught.value)
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match="Is a directory; give another name"):
        write_json(tmp_path / "folder", {})
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_shortest_trainings_run(tmp_path):
    for steps in (1, 2, 5):
        images = ["--limit-train", str(9 * steps + 2), "--batch-size", "8", "--epochs", "1", "--width", "0.1"]
        assert train([*images, "--variant", "baseline", "--out", str(tmp_path / "x.h5"), "--no-figures"]) == 0


def test_damaged_files_are_refused_or_unharmed_wherever_the_damage_is(pipeline, tmp_path):
    damaged, whole = tmp_path / "damaged.h5", pipeline.frontend.read_bytes()
    random, refusals = np.random.default_rng(0), []
    for length in [1, 16, 400] * 12:
        content = bytearray(whole)
        start = int(random.integers(len(content) - length))
        content[start : start + length] = random.bytes(length)
        damaged.write_bytes(content)
        try:
            # Damage may fall into unused space: then all values are as they were.
            assert load_frontend(damaged)[2] == digest(pipeline.frontend)
        except UserError as error:
            refusals.append(str(error))
    assert len(refusals) > 18
    assert all("damaged.h5" in message for message in refusals)


def test_wrong_frontends_and_files_are_refused(refused, pipeline, tmp_path):
    out = ["--out", tmp_path / "x.h5"]
    refused(train, *TRAIN, *out, words=["--frontend", "bridge.convert"])
    refused(train, *TRAIN, *out, "--frontend", tmp_path / "no.h5", words=["no.h5", "does not exist"])
    refused(train, *TRAIN, *out, "--frontend", pipeline.snn, words=["snn/3", "frontend/3"])
    refused(convert, pipeline.frontend, *out, words=["frontend/3", "snn/3"])
    refused(evaluate, pipeline.frontend, *out, words=["frontend/3", "hybrid/6"])
    size = ["--image-size", "12", "--frontend", pipeline.frontend]
    refused(train, *TRAIN, *out, *size, words=["(1, 8, 8)", "(1, 12, 12)"])
    both = ["--variant", "baseline", "--frontend", pipeline.frontend]
    refused(train, *TRAIN, *out, *both, words=["--variant baseline"])
    cut = tmp_path / "cut.h5"
    for source, main, flags in (
        (pipeline.snn, convert, [cut]),
        (pipeline.frontend, train, [*TRAIN, "--frontend", cut]),
        (pipeline.safe, evaluate, [cut]),
    ):
        whole = source.read_bytes()
        cut.write_bytes(whole[: len(whole) * 2 // 3])
        refused(main, *flags, *out, words=["cut.h5", "truncated"])


def test_interrupted_learning_is_converted_only_as_far_as_it_is_told(refused, pipeline, tmp_path, capsys):
    network, source, _ = load_network(pipeline.snn)
    part, out = tmp_path / "part.h5", tmp_path / "frontend.h5"
    save(replace(network, layers=network.layers[:1]), part, source, command="interrupted")
    flags = [part, "--out", out, "--images", "20", "--test-images", "10"]
    refused(convert, *flags, words=["part.h5 holds 1 of the 2 layers", "interrupted", "--resume", "--layers 1"])
    refused(convert, *flags, "--layers", "2", words=["--layers 2", "1 of the 2", "--resume"])
    refused(
        convert, pipeline.snn, *flags[1:], "--layers", "3", words=["--layers 3", "2 of the 2", "--layers 2 or less"]
    )
    refused(convert, pipeline.snn, *flags[1:], "--layers", "0", words=["--layers 0"])
    save(replace(network, layers=()), part, source, command="interrupted")
    refused(convert, *flags, words=["part.h5 holds 0 of the 2 layers", "--resume"])
    save(replace(network, layers=network.layers[:1]), part, source, command="interrupted")
    for file in (part, pipeline.snn):
        assert convert([str(file), *map(str, flags[1:]), "--layers", "1"]) == 0
        frontend, _, _ = load_frontend(out)
        assert frontend(torch.rand(2, 1, 8, 8)).shape == (2, 6, 8, 8)
    assert "converted 1 layers of learned" in capsys.readouterr().out


def test_wrong_choices_are_refused(refused, pipeline, tmp_path):
    out = ["--out", tmp_path / "x"]
    refused(train, *out, "--backbone", "vgg", "--variant", "baseline", words=["vgg", "mobilenet_v2"])
    refused(train, *out, "--variant", "nu", words=["nu", "baseline"])
    refused(train, *out, "--variant", "lambda", words=["lambda", "hybrid.swap"])
    refused(train, *TRAIN, *out, "--variant", "mu", words=["--variant mu", "--frontend"])
    refused(evaluate, pipeline.safe, *out, "--noise", "clean", "snow:3", words=["snow", "awgn"])
    refused(evaluate, pipeline.safe, *out, "--noise", "salt-pepper:1.2", words=["1.2", "from 0 to 1"])
    refused(evaluate, pipeline.safe, *out, "--noise", "awgn:1e9", words=["1e9", "dB"])
    refused(evaluate, *out, words=["no model"])
    refused(learn, *out, "--encoding.f-max", "5", words=["5.0", "f_min < f_max"])
    refused(learn, *out, "--limit-train", "0", words=["--limit-train 0"])
    if not torch.cuda.is_available():
        for main, arguments in (
            (learn, []),
            (convert, [pipeline.snn]),
            (train, ["--variant", "baseline"]),
            (evaluate, [pipeline.safe]),
        ):
            refused(main, *arguments, *out, "--device", "cuda", words=["--device cuda", "cpu"])


def test_models_of_other_data_are_refused(refused, pipeline, image_folder, tmp_path):
    data = ["--data", f"folder:{image_folder}"]
    words = ["safe", "10 classes", "3 classes"]
    refused(evaluate, pipeline.safe, *data, "--out", tmp_path / "x.csv", words=words)
    refused(convert, pipeline.snn, *data, "--out", tmp_path / "x.h5", words=["(1, 8, 8)", "(3, 8, 8)"])


def test_an_interrupt_while_an_object_is_deleted_is_not_lost():
    @dataclass(frozen=True)
    class Config:
        """Nothing to configure."""

    class Deleted:
        def __del__(self):
            raise KeyboardInterrupt

    def work(config):
        Deleted()
        time.sleep(20)

    began = time.monotonic()
    assert run_command(Config, work, []) == 130
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("cause", [KeyboardInterrupt(), ValueError("else")])
def test_only_an_interrupt_makes_a_system_error_an_interruption(cause):
    @dataclass(frozen=True)
    class Config:
        """Nothing to configure."""

    def work(config):
        try:
            raise SystemError("a function returned a result with an exception set") from cause
        except SystemError as error:
            raise SystemError("another one") from error

    if isinstance(cause, KeyboardInterrupt):
        assert run_command(Config, work, []) == 130
    else:
        with pytest.raises(SystemError, match="another one"):
            run_command(Config, work, [])


@pytest.mark.slow
def test_interrupted_learning_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "snn.learn", "--data", "digits", "--out", str(tmp_path / "snn.h5")]
    process = subprocess.Popen(
        [*command, "--epochs", "1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background may ignore interrupts, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline().startswith("learning layers of 32, 40, 56 maps on 1197 images")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted; every file left is whole" in stderr
    assert list(tmp_path.iterdir()) == []


def test_stored_history_has_an_entry_per_update(pipeline):
    with h5py.File(pipeline.snn) as file:
        history = file["history/conv1"]
        assert history["wins"].shape == (13, 6)
        assert np.all(np.diff(history["images"][()]) > 0)
        assert file["layers/conv1"].attrs["v_threshold_unit"] == "mV"
