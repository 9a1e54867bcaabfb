"""Runs by what they are, their reuse after an interruption, and the tables made of them."""

import csv
import dataclasses
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hybrid.backbones import BACKBONES
from hybrid.conditions import Noise
from hybrid.paper.experiments import SCALES, Experiments
from hybrid.paper.networks import (
    ABLATIONS,
    BASELINE,
    DETERMINISTIC,
    MU,
    NOWHERE,
    RETINA,
    SAFE,
    SEARCH,
    lambda_network,
    noise_trained,
)
from hybrid.paper.numbers import paper_rows, paper_value
from hybrid.paper.results import table_lines, table_rows
from hybrid.paper.runs import NOT_DECIDING, TEMPLATES, Place, Run, arguments, default, in_order, missing_runs
from hybrid.paper.tables import COMPARED, PARTS
from hybrid.paper.workflow import Engine, make
from hybrid.preprocess import Preprocess
from hybrid.recipe import RECIPES
from hybrid.reproduce import ReproduceConfig, experiments, how_made, main
from hybrid.storage import load_model
from snn.data_source import DataSource
from snn.image_cache import Caching
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.registry import PLUGINS
from snn.storage import load_network

TINY = ["--scale", "small", "--data", "digits", "--limit-train", "90", "--limit-test", "40", "--epochs", "1",
        "--width", "0.1", "--device", "cpu"]  # fmt: skip


@pytest.fixture
def digits():
    return Experiments(DataSource("digits"), SCALES["small"])


def runs_of_all_tables(scale="full"):
    """Every run of every part, on 32 and on 224 pixels."""
    config = ReproduceConfig(("all",), scale=scale, data="cifar10", traffic="folder:photos", traffic_size=224)
    cifar, traffic = experiments(config)
    plans = {name: traffic if getattr(part, "data", "") == "traffic" else cifar for name, part in PARTS.items()}
    return in_order(run for name, part in PARTS.items() for run in part.runs(plans[name]))


def test_runs_are_identified_by_all_that_decides_their_result(digits):
    run = digits.train(SAFE)
    assert run.identity == Experiments(DataSource("digits"), SCALES["small"]).train(SAFE).identity
    others = [
        digits.train(SAFE, seed=1),
        digits.train(SAFE, "resnet101"),
        digits.train(DETERMINISTIC),
        digits.train(SAFE.converts("random")),
        digits.train(SAFE.converts(steps=3)),
        digits.train(SAFE.learns(beta_p=1.0)),
        digits.train(SAFE.has(auxiliary_maps=0)),
        digits.train(noise_trained("awgn:30")),
        digits.train(BASELINE),
        digits.train(MU),
        replace(digits, source=DataSource("cifar10")).train(SAFE),
        Experiments(DataSource("digits"), replace(SCALES["small"], maps=(4,))).train(SAFE),
        replace(digits, seed=1).train(SAFE),
    ]
    assert len({run.identity, *(other.identity for other in others)}) == 1 + len(others)


OTHER = {
    "backbone": "resnet18",
    "engine": "events",
    "variant": "mu",
    "preprocess": Preprocess("average:2"),
    "auxiliary_input": Preprocess("average:2"),
    "auxiliary_activation": "steps",
    "auxiliary_kernel": 5,
    "train_noise": Noise.parse("awgn:30"),
    "augmentation": "shift",
    "noise": (Noise.parse("clean"),),
    "kernel_sizes": (5,),
    "kernel_size": 5,
    "feed_forward": "frozen",
    "maps": (8, 8, 12),
    "strides": (2,),
    "rule": "stochastic",
    "pairing": "two-sided",
    "kind": "poisson",
    "conductances": "random",
    "data": "cifar10",
    "split": "held-out",
    "scale": "literal",
    "device": "cuda",
    "ltd_delay": 50.0,
    "dt": 1.25,
    "quiet": 25.0,
    "presentation": 200.0,
    "models": (Path("a"), Path("b")),
    "plugin": ("rules.py",),
    "preset": "imagenet",
    "embedding": 64,
    "threads": 3,
    "optimiser": "muon",
    "border": "reflect",
    "flips": "alternating",
    "first_layer": "whitening",
    "small_share": 0.25,
    "average": 0.5,
    "auxiliary_source": "retina",
    "weights": "imagenet",
    "watch": (Noise.parse("awgn:15"),),
    "class_weights": "balanced",
    "precision": "bfloat16",
    "dropped_blocks": 0,
    "cache": "elsewhere",
}
"""Another valid value of each field whose type does not suggest one."""


def other_value(name, value):
    # Noise is a tuple of conditions in one command, and a variance in another.
    if name in OTHER and not (name == "noise" and isinstance(value, float)):
        # An encoder and a retina are of a kind.
        if isinstance(value, tuple) and name == "weights":
            # Of hybrid.evaluate: files of networks of a user's own.
            return (Path("a.pt"),)
        return "whiten" if (name, value) == ("kind", "none") else OTHER[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value * 0.999 if value else 0.01
    assert value is None or isinstance(value, Path), name
    return (
        Path("elsewhere")
        if isinstance(value, Path) or name in ("frontend", "attack_model", "folder", "cifar10_c", "root", "json")
        else 5
    )


def variants(config):
    """(dataclass, field, copy of ``config`` with that field changed) for each field, at any depth."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and not isinstance(value, Noise | Preprocess):
            for owner, name, changed in variants(value):
                yield owner, name, replace(config, **{field.name: changed})
        else:
            changed = other_value(field.name, value)
            assert changed != value
            yield type(config), field.name, replace(config, **{field.name: changed})


@pytest.mark.parametrize("command", TEMPLATES, ids=lambda command: command.__name__)
def test_every_field_that_decides_a_result_is_part_of_the_identity(command):
    """Whoever adds a field to a configuration must say whether it decides the result."""
    config = TEMPLATES[command]
    identity, seen = Run("run", config).identity, set()
    for owner, name, changed in variants(config):
        same = Run("run", changed).identity == identity
        assert same == (name in NOT_DECIDING.get(owner, ())), f"{owner.__name__}.{name}"
        seen.add((owner, name))
    assert len(seen) > 5
    unknown = {(owner, name) for owner, names in NOT_DECIDING.items() for name in names} - seen
    assert not {owner for owner, _ in unknown} & {owner for owner, _ in seen}


def test_identity_follows_schemas_inputs_and_image_files(digits, image_folder, monkeypatch):
    from hybrid.paper import runs

    run = digits.convert(SAFE)
    before = run.identity
    monkeypatch.setitem(runs.SCHEMAS, type(run.config), "frontend/another")
    assert digits.convert(SAFE).identity != before
    assert digits.train(SAFE).identity != digits.train(SAFE.learns(tau_p=20.0)).identity
    plan = replace(digits, source=DataSource(f"folder:{image_folder}"))
    before = plan.train(BASELINE).identity
    (image_folder / "train" / "one" / "00.png").rename(image_folder / "train" / "one" / "12.png")
    runs.image_files.cache_clear()
    assert plan.train(BASELINE).identity != before


def test_identity_follows_plugins_and_what_auto_and_none_stand_for(digits, monkeypatch):
    before = digits.train(BASELINE).identity
    monkeypatch.setattr(BACKBONES["mobilenet_v2"], "embedding", 64)
    assert digits.train(BASELINE).identity != before
    monkeypatch.undo()
    assert digits.train(BASELINE).identity == before
    monkeypatch.setattr("hybrid.paper.runs.resolve_augmentation", lambda name, data: "none")
    assert digits.train(BASELINE).identity != before
    monkeypatch.undo()
    identities = []
    for content in ("one", "other"):
        monkeypatch.setitem(PLUGINS, "my_backbone.py", content)
        identities.append(digits.train(BASELINE).identity)
    assert len({before, *identities}) == 3


def parsed(run, place):
    """The configuration that its command line is read as."""
    configs = []

    def keep(config):
        configs.append(config)

    module = sys.modules[run.module]
    words = run.command(place)
    assert words[:2] == ["-m", run.module]
    assert run_command(type(run.config), keep, words[2:], getattr(module, "with_preset", None)) == 0
    return configs[0]


@pytest.mark.parametrize("scale", SCALES)
def test_command_lines_are_read_as_the_configurations_they_were_made_of(scale):
    place = Place(Path("runs"), "cpu", Path("images"), ("math", "cmath"), threads=3, precision="bfloat16",
                  caching=Caching("a b"))  # fmt: skip
    # All sorts of networks and evaluations; other seeds and backbones have the same flags.
    sorts = {}
    for run in runs_of_all_tables(scale):
        plain = replace(run.configuration(place), out=NOWHERE)
        options = replace(plain.options, seed=0)
        if hasattr(plain, "architecture"):
            plain = replace(plain, architecture=replace(plain.architecture, backbone="mobilenet_v2"), frontend=None)
        for name in ("snn", "model", "frontend", "attack_model", "models"):
            if isinstance(getattr(plain, name, None), Path | tuple):
                plain = replace(plain, **{name: (NOWHERE,) if name == "models" else NOWHERE})
        sorts.setdefault(replace(plain, options=options), run)
    assert len(sorts) > 40
    for run in sorts.values():
        assert parsed(run, place) == run.configuration(place)
    trainings = [run.configuration(place) for run in sorts.values() if run.module == "hybrid.train"]
    assert {(config.hardware.threads, config.recipe.precision) for config in trainings} == {(3, "bfloat16")}


def test_flags_are_only_of_fields_that_differ(digits):
    run = digits.train(BASELINE)
    config = replace(run.config, out=Path("a.h5"), options=replace(run.config.options, figures=False))
    assert arguments(config, default(config)) == [
        *("--out", "a.h5", "--limit-train", "400", "--limit-test", "200", "--variant", "baseline", "--width", "0.25"),
        *("--preset", "digits", "--epochs", "4", "--batch-size", "24", "--no-figures"),
    ]


def test_what_is_read_is_made_first_and_once(digits):
    models = digits.model(lambda_network("range")), digits.train(SAFE)
    runs = in_order([digits.evaluate((model,), ("clean",)) for model in models])
    made = [run.module for run in runs]
    assert made == ["snn.learn", "bridge.convert", "hybrid.train", "hybrid.swap", "hybrid.evaluate", "hybrid.train",
                    "hybrid.evaluate"]  # fmt: skip
    for number, run in enumerate(runs):
        assert all(read in runs[:number] for _, read in run.inputs)


@pytest.mark.parametrize("auxiliary_input", ["trimmed:3,1", "none"])
def test_an_exchange_of_the_auxiliary_input_reads_a_trained_network_alone(digits, auxiliary_input):
    plan = replace(digits, seed=7)
    network = SAFE.sees(Preprocess(auxiliary_input))
    run, trained = plan.model(network, seed=8), plan.train(SAFE, seed=8)
    assert run.inputs == (("model", trained),)
    assert run.name.startswith("swapped-safe-mobilenet_v2-seed8-")
    place = Place(Path("runs"), "cpu", Path("images"))
    assert run.command(place) == [
        *("-m", "hybrid.swap", f"runs/{trained.name}.h5", "--out", f"runs/{run.name}.h5"),
        *("--auxiliary-input", auxiliary_input, "--device", "cpu"),
    ]
    assert parsed(run, place) == run.configuration(place)


@pytest.mark.parametrize("table", [2, 3, 4, 5, 6, 7])
def test_tables_hold_every_number_of_the_paper(digits, table):
    part = PARTS[f"table{table}"]
    cells = {(cell.line.name, cell.condition, part.metric) for cell in part.cells(digits)}
    wanted = {(row["model"], row["condition"], row["metric"]) for row in paper_rows(table)}
    assert part.number == table
    assert len(wanted) > 8
    assert wanted <= cells


def test_rows_hold_mean_deviation_and_difference(tmp_path):
    scale = replace(SCALES["small"], seeds=3)
    cells = [
        cell for cell in PARTS["table2"].cells(Experiments(DataSource("digits"), scale))
        if cell.line.name in ("safe resnet101", "average-filter-trained resnet101") and cell.condition == "awgn:20"
    ]  # fmt: skip
    values = {}
    for cell in cells:
        for number, run in enumerate(cell.runs):
            values.setdefault(cell.line.name, []).append(80.0 + number**2)
            name = cell.models[number].file(tmp_path).stem
            with open(run.file(tmp_path), "w") as file:
                print(
                    "model,condition,metric,paths,value_percent,standard_error_percent,images,model_digest", file=file
                )
                print("other,awgn:20,top1,both,5,0,40,abc", file=file)
                print(f"{name},awgn:20,top5,both,99,0,40,abc\n{name},awgn:20,top1,spiking,1,0,40,abc", file=file)
                print(f"{name},awgn:20,top1,both,{80 + number**2},0.5,40,abc", file=file)
    rows = {row["model"]: row for row in table_rows("table2", 2, "top1", cells, tmp_path)}
    row, paper = rows["safe resnet101"], paper_value(2, "safe resnet101", "awgn:20", "top1")
    mean = float(np.mean(values["safe resnet101"]))
    assert (row["ours_percent"], row["seeds"], row["paper_percent"]) == (round(mean, 3), 3, paper)
    assert row["deviation_percent"] == round(float(np.std([80, 81, 84], ddof=1)), 3)
    assert row["difference_percent"] == pytest.approx(mean - paper, abs=1e-3)
    assert rows["average-filter-trained resnet101"]["paper_percent"] == ""
    text = table_lines(list(rows.values()))
    assert f"| safe resnet101 | {mean:.1f} ± 2.1 ({paper:.1f}, {mean - paper:+.1f}) |" in text


@pytest.mark.slow
@pytest.mark.needs_reproduce
def test_an_interrupted_reproduction_goes_on(tmp_path):
    arguments = [
        "fig5",
        "fig6",
        *TINY,
        "--jobs",
        "2",
        "--out",
        str(tmp_path / "out"),
        "--runs",
        str(tmp_path / "runs"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "hybrid.reproduce", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_until(lambda: list(tmp_path.glob("runs/frontend-fd-*.h5")))
    process.kill()
    process.wait()
    # Nobody told Snakemake and its jobs; they end by themselves.
    wait_until(lambda: not processes_with(tmp_path))
    first = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*.h5")}
    assert all(load_network(path).network.complete for path in tmp_path.glob("runs/snn-*.h5"))
    assert any(name.startswith("frontend-fd-") for name in first)
    assert main(arguments) == 0
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*.h5")}
    assert all(after[name] == made for name, made in first.items())
    assert len(after) > len(first)
    assert main(arguments) == 0
    assert after == {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*.h5")}
    for part in ("fig5", "fig6"):
        assert (tmp_path / "out" / f"{part}.md").read_text().startswith(f"# Figure {part[-1]}")
        assert (tmp_path / "out" / f"{part}.png").read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "out" / "fig6.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["condition"]) for row in rows] == [
        (model, noise) for model in ("FD stochastic", "deterministic") for noise in ("awgn:20", "awgn:18", "awgn:15")
    ]
    trained = load_model(next(tmp_path.glob("runs/safe-mobilenet_v2-seed0-*.h5")))
    assert trained.recipe["epochs"] == 1


def test_dry_runs_list_commands_and_make_nothing(tmp_path, capsys):
    assert main(["all", *TINY, "--dry-run", "--out", str(tmp_path / "o"), "--runs", str(tmp_path / "r")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(line.startswith("python -m ") for line in lines)
    assert len(lines) == len(set(lines)) > 60
    # Digits are too small for common corruptions.
    assert not any("corruption:" in line for line in lines)
    assert list(tmp_path.iterdir()) == []
    assert len(PARTS) == 14


@pytest.mark.parametrize(("limit", "learned", "corrupted"), [(None, None, 1000), (300, 300, 300), (9000, 9000, 1000)])
def test_a_limit_of_images_holds_for_every_run(limit, learned, corrupted):
    limits = dict(limit_train=limit, limit_test=limit)
    cifar, _ = experiments(ReproduceConfig(("table2",), scale="fast", data="folder:images", **limits))
    evaluate, *_ = PARTS["corruptions"].runs(cifar)
    assert cifar.learn(SAFE).config.data_source.limit_train == learned
    assert evaluate.config.limit_test == corrupted
    assert cifar.train(SAFE).config.data_source.limit_train == limit
    few = replace(cifar, scale=replace(cifar.scale, learned=4000))
    assert few.learn(SAFE).config.data_source.limit_train == min(4000, limit or 4000)
    assert few.train(SAFE).config.data_source.limit_train == limit


@pytest.mark.needs_reproduce
def test_failed_runs_are_told_with_their_log_and_leave_no_file(tmp_path, capfd):
    arguments = ["fig5", "--data", "folder:nowhere", "--out", str(tmp_path / "o"), "--runs", str(tmp_path / "r")]
    assert main(arguments) == 2
    error = capfd.readouterr().err
    last = error.splitlines()[-1]
    assert "nowhere" in last
    assert "failed" in last
    (log,) = (tmp_path / "r" / "logs").iterdir()
    assert f"{log.stem} failed, see {log}" in last
    assert "there is no such folder" in log.read_text()
    assert not list(tmp_path.glob("r/**/*.h5"))
    assert main([*arguments, "--seeds", "0"]) == 2


def processes_with(folder):
    """Processes whose command line names a folder, apart from this one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes() and path.parent.name != str(os.getpid()):
                found.append(path.parent.name)
        except OSError:
            continue
    return found


def wait_until(condition, seconds=300):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.needs_reproduce
def test_ctrl_c_ends_everything_and_learning_goes_on_where_it_was(tmp_path):
    """Learning writes its progress beside its file, and the file appears once it is complete."""
    arguments = ["fig5", *TINY, "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]
    process = subprocess.Popen(
        [sys.executable, "-m", "hybrid.reproduce", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    wait_until(lambda: list(tmp_path.glob("runs/progress/snn-fd-*.h5")))
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in error.splitlines()[-1]
    assert processes_with(tmp_path) == []
    assert list(tmp_path.glob("runs/*.h5")) == []
    (unfinished,) = tmp_path.glob("runs/progress/snn-fd-*.h5")
    learned = load_network(unfinished).network
    assert not learned.complete
    # A command started by hand may leave unfinished learning in the place of the file: it is not taken for complete.
    unfinished.rename(tmp_path / "runs" / unfinished.name)
    assert main([*arguments, "--no-figures", "--json", str(tmp_path / "numbers.json")]) == 0
    assert load_network(tmp_path / "runs" / unfinished.name).network.complete
    (log,) = tmp_path.glob("runs/logs/snn-fd-*.txt")
    assert "resuming after" in log.read_text()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"fig5.md", "fig5.csv"}
    with open(tmp_path / "out" / "fig5.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["parts"]["fig5"][0]["train_loss"] == float(row["train_loss"])


@pytest.mark.slow
@pytest.mark.needs_reproduce
def test_runs_are_sent_wherever_an_executor_sends_them(tmp_path):
    """A script that starts jobs in the background stands for a cluster's submit command."""
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    submit, jobs = tmp_path / "submit.sh", tmp_path / "jobs"
    submit.write_text(f'#!/bin/sh\necho "$1" >> {jobs}\nsh "$1" > /dev/null 2>&1 &\necho $!\n')
    submit.chmod(0o755)
    config = ReproduceConfig(
        ("table2",), scale="small", data="digits", limit_train=60, limit_test=40, epochs=1, width=0.1
    )
    plan, place = experiments(config)[0], Place(tmp_path / "runs", "cpu")
    place.folder.mkdir()
    run = plan.evaluate((plan.train(BASELINE),), ("clean",))
    make([run], place, Engine(2, 1, "cluster-generic"), ["--cluster-generic-submit-cmd", str(submit)])
    assert len(jobs.read_text().splitlines()) == 2
    with open(run.file(place.folder)) as file:
        assert {row["model"] for row in csv.DictReader(file)} == {plan.train(BASELINE).name}


def test_the_seed_is_that_of_all_runs():
    cifar, _ = experiments(ReproduceConfig(("table2",), seeds=2, options=RunOptions(seed=7)))
    assert list(cifar.seeds) == [7, 8]
    runs = in_order(PARTS["fig7"].runs(cifar))
    assert len(runs) > 5
    assert {run.config.options.seed for run in runs} == {7}


def test_another_process_in_the_same_folder_is_told(tmp_path, capsys):
    import fcntl

    (tmp_path / "runs").mkdir()
    with open(tmp_path / "runs" / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert main(["fig5", *TINY, "--out", str(tmp_path / "out"), "--runs", str(tmp_path / "runs")]) == 2
    assert "another process makes runs in" in capsys.readouterr().err


def test_networks_of_a_list_have_names_and_results_of_their_own(digits):
    for networks in (SEARCH, ABLATIONS):
        assert len({network.name for network in networks}) == len(networks)
        assert len({digits.model(network).identity for network in networks}) == len(networks)


def test_corruptions_of_a_seed_are_computed_once_for_all_networks():
    plan = Experiments(DataSource("cifar10"), replace(SCALES["small"], seeds=2))
    cells = PARTS["corruptions"].cells(plan)
    evaluations = {run.identity for cell in cells for run in cell.runs}
    assert len(evaluations) == 2
    first = cells[0].runs[0]
    assert [name for name, _ in first.inputs] == ["models"] * len(COMPARED)
    assert all(cell.models[0] in [run for _, run in first.inputs] for cell in cells)


def test_arguments_put_files_where_the_command_expects_them(digits, tmp_path):
    model, attacked = digits.train(BASELINE), digits.train(BASELINE, seed=1000)
    run = digits.evaluate((model,), ("clean",), attacked=attacked)
    words = run.command(Place(tmp_path))
    assert words[:3] == ["-m", "hybrid.evaluate", str(model.file(tmp_path))]
    assert words[words.index("--attack-model") + 1] == str(attacked.file(tmp_path))
    assert words[words.index("--out") + 1] == str(run.file(tmp_path))
    assert run.file(tmp_path).suffix == ".csv"


def test_runs_that_are_there_need_not_be_what_they_were_made_from(digits, tmp_path):
    mixed, safe = digits.model(lambda_network("range")), digits.train(SAFE)
    wanted = [digits.evaluate((model,), ("clean",)) for model in (mixed, safe)]
    assert missing_runs(wanted, tmp_path) == in_order(wanted)
    # The training of the lambda is there, and so it is swapped, but not trained; the front end is still needed.
    (_, trained), (_, converted) = mixed.inputs
    trained.file(tmp_path).touch()
    missing = [run.module for run in missing_runs(wanted, tmp_path)]
    assert missing == ["snn.learn", "bridge.convert", "hybrid.swap", "hybrid.evaluate", "hybrid.train",
                       "hybrid.evaluate"]  # fmt: skip
    # Nothing that a front end is made of, once it is there; nothing at all that results were made of.
    converted.file(tmp_path).touch()
    assert [run.module for run in missing_runs(wanted, tmp_path)] == missing[2:]
    wanted[0].file(tmp_path).touch()
    assert missing_runs(wanted, tmp_path) == [safe, wanted[1]]
    wanted[1].file(tmp_path).touch()
    assert missing_runs(wanted, tmp_path) == []


def test_a_field_that_names_its_own_flag_is_given_by_it(digits):
    run = digits.learn(RETINA)
    words = arguments(run.config, default(run.config))
    assert words[words.index("--retina") + 1] == "whiten"
    assert words[words.index("--retina.epsilon") + 1] == "0.02"
    assert not any("retina.kind" in word or "learning" in word for word in words)
    place = Place(Path("runs"))
    assert parsed(run, place) == run.configuration(place)


def test_at_scale_fast_another_backbone_stands_beside_the_papers_numbers(tmp_path):
    cifar, _ = experiments(ReproduceConfig(("table2",), scale="fast", data="digits"))
    cells = [cell for cell in PARTS["table2"].cells(cifar) if cell.line.entry == "safe"]
    line = cells[0].line
    assert (line.name, line.backbone, line.paper) == ("safe fast_cnn", "fast_cnn", "safe mobilenet_v2")
    config = cells[0].models[0].config
    assert (config.architecture.backbone, config.architecture.width, config.preset) == ("fast_cnn", 0.75, "fast")
    assert config.recipe == RECIPES["fast"]
    assert len(cells[0].runs) == 3
    for run, model in zip(cells[0].runs, cells[0].models, strict=True):
        result(run, model, tmp_path, {cell.condition: 60.0 for cell in cells})
    for row in table_rows("table2", 2, "top1", cells, tmp_path):
        paper = paper_value(2, "safe mobilenet_v2", row["condition"], "top1")
        assert paper is not None
        assert (row["model"], row["paper_percent"]) == ("safe fast_cnn", paper)
        assert row["difference_percent"] == pytest.approx(60 - paper, abs=1e-3)
    # Each line of the paper's table is beside one of ours, but those of its other backbones.
    shown = {cell.line.paper for cell in PARTS["table2"].cells(cifar)}
    of_mobilenet = {row["model"] for row in paper_rows(2) if row["model"].endswith("mobilenet_v2")}
    assert of_mobilenet <= shown


@pytest.mark.parametrize("table", ["table2", "unseen"])
def test_a_backbone_that_is_named_is_trained_at_scale_fast_too(table):
    config = ReproduceConfig((table,), scale="fast", data="digits", backbones=("mobilenet_v2",), width=1.0, seeds=1)
    cifar, _ = experiments(config)
    cells = PARTS[table].cells(cifar)
    assert {cell.line.backbone for cell in cells} == {"mobilenet_v2"}
    trained = [run for cell in cells for run in in_order(cell.runs) if run.module == "hybrid.train"]
    assert {run.config.architecture.backbone for run in trained} == {"mobilenet_v2"}
    assert {run.config.preset for run in trained} == {"fast"}
    made = "mobilenet_v2 of 1 of its width, recipe fast, all images, averaged over each image and its mirror image"
    assert how_made(config, cifar) == made


def result(run, model, folder, accuracies):
    """Write a file as an evaluation does: a row for each condition and its accuracy."""
    with open(run.file(folder), "w", newline="") as file:
        names = ["model", "condition", "metric", "paths", "value_percent", "standard_error_percent", "images"]
        writer = csv.DictWriter(file, [*names, "model_digest"])
        writer.writeheader()
        for condition, value in accuracies.items():
            values = (model.name, condition, "top1", "both", value, 0.5, 40, "abc")
            writer.writerow(dict(zip(writer.fieldnames, values, strict=True)))


def test_partial_tables_show_the_runs_that_are_there_and_pair_their_common_seeds(tmp_path, capsys):
    flags = ["ablations", *TINY, "--seeds", "3", "--partial", "--no-figures"]
    plan, _ = experiments(ReproduceConfig(("ablations",), scale="small", data="digits", limit_train=90, limit_test=40,
                                          epochs=1, width=0.1, seeds=3))  # fmt: skip
    part, runs, out = PARTS["ablations"], tmp_path / "runs", tmp_path / "out"
    cells = {cell.line.name: cell for cell in part.cells(plan)}
    accuracies = {
        "baseline": {0: 50.0, 1: 56.0},
        "retina safe": {0: 61.0, 1: 65.0, 2: 72.0},
        "retina safe, random conductances": {1: 60.5, 2: 66.0},
        "safe": {2: 58.0},
    }
    assert main([*flags, "--runs", str(runs), "--out", str(out)]) == 2
    assert "no run of ablations is there" in capsys.readouterr().err
    for name, seeds in accuracies.items():
        for seed, value in seeds.items():
            # Under noise 10 points less.
            values = {c: value - 10 * (c != "clean") for c in part.conditions}
            result(cells[name].runs[seed], cells[name].models[seed], runs, values)
    before = {path.name for path in runs.iterdir()}
    assert main([*flags, "--runs", str(runs), "--out", str(out)]) == 0
    assert {path.name for path in runs.iterdir()} == before
    assert {path.name for path in out.iterdir()} >= {"ablations.md", "ablations.csv", "contributions.csv"}
    with open(out / "ablations.csv", newline="") as file:
        rows = {row["model"]: row for row in csv.DictReader(file) if row["condition"] == "clean"}
    assert {name: row["training_seeds"] for name, row in rows.items()} == {
        name: " ".join(map(str, seeds)) for name, seeds in accuracies.items()
    }
    for name, seeds in accuracies.items():
        assert float(rows[name]["ours_percent"]) == pytest.approx(np.mean(list(seeds.values())), abs=1e-3)
        assert (rows[name]["deviation_percent"] == "") == (len(seeds) == 1)
    text = (out / "ablations.md").read_text()
    assert "up to 3 training seeds" in text
    assert "| network | seeds | `clean` |" in text
    assert "| baseline | 2 | 53.0 ± 4.2 |" in text
    assert "| safe | 1 | 58.0 |" in text
    with open(out / "contributions.csv", newline="") as file:
        differences = {row["compared"]: row for row in csv.DictReader(file) if row["condition"] == "clean"}
    # Seeds 1 and 2, then 0 and 1, then 1 alone; safe and the baseline have none in common.
    assert {pair: (row["seeds"], float(row["ours_percent"])) for pair, row in differences.items()} == {
        "retina safe less retina safe, random conductances": ("2", (4.5 + 6.0) / 2),
        "retina safe less baseline": ("2", (11.0 + 9.0) / 2),
        "retina safe, random conductances less baseline": ("1", 60.5 - 56.0),
    }
    # As many seeds everywhere: no column for their number.
    for name in ("baseline", "safe"):
        for run in cells[name].runs:
            run.file(runs).unlink(missing_ok=True)
    cells["retina safe"].runs[0].file(runs).unlink()
    assert main([*flags, "--runs", str(runs), "--out", str(out)]) == 0
    text = (out / "ablations.md").read_text()
    assert "| network | `clean` |" in text
    assert "over 2 training seeds" in text


def test_runs_have_the_names_of_earlier_versions(tmp_path, capsys):
    """Or runs that were made with these are made again. If a default that decides a result changes, this changes."""
    tables = ["table2", "table7", "ablations", "unseen"]
    assert main([*tables, "--dry-run", "--runs", str(tmp_path / "runs"), "--device", "cpu"]) == 0
    names = sorted(set(re.findall(r"[\w.-]+-[0-9a-f]{12}\.(?:h5|csv)", capsys.readouterr().out)))
    assert len(names) == 593
    assert hashlib.sha256("\n".join(names).encode()).hexdigest()[:16] == "fcbdf3a780545225"
