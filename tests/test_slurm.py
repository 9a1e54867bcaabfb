"""Processes that Slurm's srun starts share the work as any group does; a job without srun is one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.storage import load_model
from hybrid.train import main as train
from snn.learn import main as learn
from snn.runtime.processes import first_process
from snn.storage import load_network

LEARN = ["--data", "digits", "--limit-train", "40", "--maps", "4", "--no-figures", "--min-updates", "3"]
TRAIN = ["--data", "digits", "--limit-train", "60", "--width", "0.1", "--batch-size", "16", "--variant", "baseline",
         "--backbone", "fast_cnn", "--no-figures", "--epochs", "2", "--checkpoint-interval", "0"]  # fmt: skip
FLAGS = {learn: LEARN, train: TRAIN}
JOB = {"SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "77", "SLURM_NTASKS": "2"}


def task(number: int, step: int) -> dict[str, str]:
    """What srun sets for one of two tasks on one node."""
    return JOB | {
        "SLURM_STEP_ID": str(step), "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NODELIST": "localhost", "SLURM_PROCID": str(number), "SLURM_LOCALID": str(number),
        "SLURM_NODEID": "0",
    }  # fmt: skip


@pytest.fixture
def variables(monkeypatch):
    def put(values: dict[str, str]) -> None:
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


def start(main, arguments: list[str], environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", main.__module__, *arguments, "--device", "cpu"],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("main", [learn, train])
def test_a_job_of_several_tasks_without_srun_is_one_process(main, variables, tmp_path):
    variables(JOB | {"SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "4", "SLURM_NNODES": "1", "SLURM_PROCID": "0"})
    assert main([*FLAGS[main], "--out", str(tmp_path / "x.h5"), "--device", "cpu"]) == 0
    assert (tmp_path / "x.h5").exists()


@pytest.mark.slow
@pytest.mark.parametrize("main", [learn, train])
def test_of_two_tasks_the_first_alone_prints_and_writes(main, tmp_path):
    out, alone = tmp_path / "group" / "x.h5", tmp_path / "alone" / "x.h5"
    for path in (out, alone):
        path.parent.mkdir()
    step = os.getpid() % 15_000
    arguments = [*FLAGS[main], "--devices", "2", "--out"]
    tasks = [start(main, [*arguments, str(out)], task(number, step)) for number in range(2)]
    (printed, error), (silent, other) = (process.communicate(timeout=300) for process in tasks)
    assert [process.returncode for process in tasks] == [0, 0], error + other
    assert f"wrote {out}" in printed
    assert silent == ""
    left = {str(path.relative_to(out.parent)) for path in out.parent.rglob("*") if "tfevents" not in path.name}
    logs = (
        {"x_training", "x_training/metrics.csv", "x_training/hparams.yaml"}
        if main is train
        else {"x_learning", "x_learning/conv1"}
    )
    assert left == {"x.h5"} | logs
    # It is what a group of Lightning's own processes makes.
    process = start(main, [*arguments, str(alone)], {})
    _, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    read = (lambda path: load_network(path).digest) if main is learn else (lambda path: load_model(path).digest)
    assert read(out) == read(alone)


@pytest.mark.parametrize("main", [learn, train])
@pytest.mark.parametrize("devices", ["1", "3"])
def test_tasks_that_nobody_asked_for_are_refused(main, devices, variables, tmp_path, capsys):
    variables(task(0, 3))
    assert main([*FLAGS[main], "--out", str(tmp_path / "x.h5"), "--device", "cpu", "--devices", devices]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"2 tasks of this command on 1 nodes, and --devices {devices}" in line
    assert "give --devices 2 --num-nodes 1" in line
    assert list(Path(tmp_path).iterdir()) == []


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID"])
def test_the_first_process_is_known_by_what_its_launcher_sets(name, variables):
    assert first_process()
    variables(JOB | {name: "0"})
    assert first_process()
    variables({name: "1"})
    assert not first_process()
