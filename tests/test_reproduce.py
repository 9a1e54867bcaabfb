"""Runs by what they are, their reuse after an interruption, and the tables made of them."""

import csv
import os
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from hybrid.paper.experiments import SCALES, UNSEEING, Experiments, Run, in_order, table_cells
from hybrid.paper.maker import Maker
from hybrid.paper.networks import ABLATIONS, BASELINE, MU, SAFE, SEARCH, noise_trained
from hybrid.paper.numbers import paper_value
from hybrid.paper.tables import table_lines, table_rows
from hybrid.reproduce import PARTS, ReproduceConfig, experiments, main
from hybrid.storage import load_model
from snn.runtime.errors import UserError
from snn.storage import load_network

TINY = ["--scale", "small", "--data", "digits", "--limit-train", "90", "--limit-test", "40", "--epochs", "1",
        "--width", "0.1", "--device", "cpu"]  # fmt: skip


@pytest.fixture
def digits():
    return Experiments(("--data", "digits"), SCALES["small"])


def test_runs_are_identified_by_all_that_decides_their_result(digits):
    run = digits.train(SAFE)
    assert run.identity == Experiments(("--data", "digits"), SCALES["small"]).train(SAFE).identity
    others = [
        digits.train(SAFE, seed=1),
        digits.train(SAFE, "resnet101"),
        digits.train(replace(SAFE, rule="deterministic")),
        digits.train(replace(SAFE, conductances="random")),
        digits.train(replace(SAFE, conversion=("--steps", "3"))),
        digits.train(replace(SAFE, learning=("--stdp.beta-p", "1"))),
        digits.train(replace(SAFE, training=("--auxiliary-maps", "0"))),
        digits.train(noise_trained("awgn:30")),
        digits.train(BASELINE),
        digits.train(MU),
        replace(digits, data=("--data", "cifar10")).train(SAFE),
        Experiments(("--data", "digits"), replace(SCALES["small"], learning=("--maps", "4"))).train(SAFE),
    ]
    assert len({run.identity, *(other.identity for other in others)}) == 1 + len(others)


def test_what_is_read_is_made_first_and_once(digits):
    models = digits.swap(0), digits.train(SAFE)
    runs = in_order([digits.evaluate((model,), ("clean",)) for model in models])
    made = [run.module for run in runs]
    assert made == ["snn.learn", "bridge.convert", "hybrid.train", "hybrid.swap", "hybrid.evaluate", "hybrid.train",
                    "hybrid.evaluate"]  # fmt: skip
    for number, run in enumerate(runs):
        assert all(read in runs[:number] for _, read in run.inputs)


@pytest.mark.parametrize("table", [2, 3, 4, 5, 6, 7])
def test_tables_hold_every_number_of_the_paper(digits, table):
    from hybrid.paper.numbers import _values

    cells = {(cell.model, cell.condition, cell.metric) for cell in table_cells(f"table{table}", digits, digits)}
    wanted = {key[1:] for key in _values() if key[0] == table}
    assert len(wanted) > 8
    assert wanted <= cells


def test_rows_hold_mean_deviation_and_difference(tmp_path):
    scale = replace(SCALES["small"], seeds=3)
    cells = [
        cell for cell in table_cells("table2", *[Experiments(("--data", "digits"), scale)] * 2)
        if cell.model in ("safe resnet101", "average-filter-trained resnet101") and cell.condition == "awgn:20"
    ]  # fmt: skip
    values = {}
    for cell in cells:
        for number, run in enumerate(cell.runs):
            values.setdefault(cell.model, []).append(80.0 + number**2)
            name = cell.networks[number].file(tmp_path).stem
            with open(run.file(tmp_path), "w") as file:
                print(
                    "model,condition,metric,paths,value_percent,standard_error_percent,images,model_digest", file=file
                )
                print("other,awgn:20,top1,both,5,0,40,abc", file=file)
                print(f"{name},awgn:20,top5,both,99,0,40,abc\n{name},awgn:20,top1,spiking,1,0,40,abc", file=file)
                print(f"{name},awgn:20,top1,both,{80 + number**2},0.5,40,abc", file=file)
    rows = {row["model"]: row for row in table_rows("table2", cells, tmp_path)}
    row, paper = rows["safe resnet101"], paper_value(2, "safe resnet101", "awgn:20", "top1")
    mean = float(np.mean(values["safe resnet101"]))
    assert (row["ours_percent"], row["seeds"], row["paper_percent"]) == (round(mean, 3), 3, paper)
    assert row["deviation_percent"] == round(float(np.std([80, 81, 84], ddof=1)), 3)
    assert row["difference_percent"] == pytest.approx(mean - paper, abs=1e-3)
    assert rows["average-filter-trained resnet101"]["paper_percent"] == ""
    text = table_lines(list(rows.values()))
    assert f"| safe resnet101 | {mean:.1f} ± 2.1 ({paper:.1f}, {mean - paper:+.1f}) |" in text


def test_an_interrupted_reproduction_goes_on(tmp_path):
    arguments = [
        "fig5",
        "fig6",
        *TINY,
        "--workers",
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
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/frontend-fd-*.h5")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    # Learning that was interrupted leaves the layers that it has, and goes on.
    first = {
        path.name: path.stat().st_mtime_ns
        for path in tmp_path.glob("runs/*.h5")
        if not path.name.startswith("snn-") or load_network(path)[0].complete
    }
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


@pytest.mark.parametrize(("limit", "learned", "corrupted"), [(None, "4000", "1000"), (300, "300", "300"),
                                                            (9000, "4000", "1000")])  # fmt: skip
def test_a_limit_of_images_holds_for_every_run(limit, learned, corrupted):
    limits = dict(limit_train=limit, limit_test=limit)
    cifar, _ = experiments(ReproduceConfig(("table2",), scale="reduced", data="folder:images", **limits))
    learn, (evaluate, *_) = cifar.learn(SAFE), cifar.corruption_table()[0].runs

    def last(run, flag):
        flags = dict(zip(run.flags, run.flags[1:], strict=False))
        return flags[flag]

    assert last(learn, "--limit-train") == learned
    assert last(evaluate, "--limit-test") == corrupted
    assert last(cifar.train(SAFE), "--limit-train") == str(limit or 15000)


def test_failed_runs_are_told(tmp_path, capsys):
    arguments = ["fig5", "--data", "folder:nowhere", "--out", str(tmp_path / "o"), "--runs", str(tmp_path / "r")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "nowhere" in error
    assert "failed" in error
    assert main([*arguments, "--seeds", "0"]) == 2


def test_workers_end_at_a_failure_and_keep_its_log(tmp_path):
    runs = [Run("lost", "bridge.convert", (), (("", Run("no", "snn.learn", ("--data", "nowhere"))),)),
            Run("also", "snn.learn", ("--data", "nothing"))]  # fmt: skip
    with pytest.raises(UserError, match=r"snn\.learn .* failed"):
        Maker(tmp_path, "cpu", workers=2).make(runs)
    assert {path.name.split("-")[0] for path in (tmp_path / "logs").iterdir()} <= {"no", "also"}
    assert any("unknown data set" in path.read_text() for path in (tmp_path / "logs").iterdir())
    assert not list(tmp_path.glob("*.h5"))


WAITING = """
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from hybrid.paper.experiments import Run
from hybrid.paper.maker import Maker
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.errors import check


@dataclass(frozen=True)
class Config:
    out: Path
    fails: bool = False
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)


def wait(config):
    started = config.out.with_name("started")
    if not config.fails:
        started.touch()
        time.sleep(300)
    while not started.exists():
        time.sleep(0.01)
    check(False, "fails")


def main(argv):
    return run_command(Config, wait, argv)


if __name__ == "__main__":
    runs = [Run("waits", "waiting", ()), Run("fails", "waiting", ("--fails",))]
    Maker(Path(sys.argv[1]), "cpu", workers=2).make(runs)
"""


def test_a_failure_ends_workers_that_are_amid_a_run(tmp_path):
    """A worker takes SIGTERM as an interrupt of its command; the idle one dies with the lock of the queue."""
    (tmp_path / "waiting.py").write_text(WAITING)
    command = [sys.executable, str(tmp_path / "waiting.py"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert "UserError: python -m waiting --fails" in result.stderr.replace("snn.runtime.errors.", "")
    (log,) = tmp_path.glob("logs/waits-*.txt")
    assert "interrupted" in log.read_text()


def test_networks_of_a_list_have_names_and_results_of_their_own(digits):
    for networks in (SEARCH, ABLATIONS):
        assert len({network.name for network in networks}) == len(networks)
        assert len({digits.train(network).identity for network in networks}) == len(networks)


def test_corruptions_of_a_seed_are_computed_once_for_all_networks():
    cells = table_cells("corruptions", *[Experiments(("--data", "cifar10"), replace(SCALES["small"], seeds=2))] * 2)
    evaluations = {run.identity for cell in cells for run in cell.runs}
    assert len(evaluations) == 2
    first = cells[0].runs[0]
    assert [flag for flag, _ in first.inputs] == [""] * len(UNSEEING)
    assert all(cell.networks[0] in [run for _, run in first.inputs] for cell in cells)


def test_arguments_put_files_where_the_command_expects_them(tmp_path):
    learned = Run("a", "snn.learn", ("--x", "1"))
    source = Run("b", "hybrid.train", ())
    run = Run("c", "hybrid.evaluate", ("--noise", "clean"), (("--attack-model", source), ("", learned)), ".csv")
    arguments = run.arguments(tmp_path)
    assert arguments[0] == str(learned.file(tmp_path))
    assert arguments[1:3] == ["--attack-model", str(source.file(tmp_path))]
    assert arguments[-2:] == ["--out", str(run.file(tmp_path))]
    assert run.file(tmp_path).suffix == ".csv"
