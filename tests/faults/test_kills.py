"""Kills at random moments, most of them inside writes, lose nothing: what is resumed ends at the digest of a whole run.

The commands run in forks of this process, which has imported and compiled everything; checkpoints are written after
every step. ``make test-long`` kills more often.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bridge.storage import load_frontend
from hybrid.storage import load_model
from hybrid.train import main as train
from snn.learn import main as learn
from snn.storage import load_network

LEARN = ["--data", "digits", "--limit-train", "20", "--maps", "3", "4", "--min-updates", "10", "--no-figures",
         "--batch-size", "4"]  # fmt: skip
TRAIN = ["--data", "digits", "--limit-train", "140", "--width", "0.1", "--epochs", "3", "--batch-size", "16",
         "--variant", "baseline", "--backbone", "fast_cnn", "--no-figures", "--threads", "1"]  # fmt: skip
REPRODUCE = ["fig5", "--scale", "small", "--data", "digits", "--limit-train", "90", "--limit-test", "40", "--epochs",
             "1", "--width", "0.1", "--device", "cpu", "--no-figures"]  # fmt: skip
COMMANDS: dict[str, tuple[Callable[[list[str]], int], list[str], Callable[[Path], object]]] = {
    "learn": (learn, LEARN, lambda path: load_network(path).digest),
    "train": (train, TRAIN, lambda path: load_model(path).digest),
}
LONGEST = 60.0
"""Seconds that a command of this file takes at most, and far more than it needs."""


def forked(main: Callable[[list[str]], int], arguments: list[str], seconds: float) -> int | None:
    """Run a command in a fork, killed after ``seconds``; its exit status, or None if the kill hit it."""
    child = os.fork()
    if not child:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        try:
            os._exit(main(arguments))
        finally:
            os._exit(99)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if status == -signal.SIGKILL else status


def kill_often(command: str, kills: int, folder: Path) -> None:
    """Kill a command so many times, always resuming it; each time that it ends it has the digest of a whole run."""
    main, flags, digest = COMMANDS[command]
    whole, out = folder / "whole.h5", folder / "killed" / "x.h5"
    out.parent.mkdir()
    assert main([*flags, "--out", str(whole)]) == 0
    arguments = [*flags, "--out", str(out), "--checkpoint-interval", "0", "--resume"]
    began = time.monotonic()
    assert forked(main, arguments, LONGEST) == 0
    # Time enough for what a run does from its start to the first checkpoints, and on.
    length, random, hits = time.monotonic() - began, np.random.default_rng(kills), 0
    while hits < kills:
        out.unlink()
        while (status := forked(main, arguments, random.uniform(0, length) if hits < kills else LONGEST)) is None:
            hits += 1
            assert hits <= kills, f"{command} did not end within {LONGEST} s"
        assert status == 0
        assert digest(out) == digest(whole)
    # Of killed processes nothing is left.
    assert [path.name for path in out.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_commands_resume_to_the_digest_of_a_whole_run(command, tmp_path):
    kill_often(command, 5, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_killed_very_often_resume_to_the_digest_of_a_whole_run(command, tmp_path):
    kill_often(command, 94, tmp_path)


def kill_reproduction(kills: int, folder: Path) -> None:
    def start(where: str) -> subprocess.Popen:
        out = ["--out", str(folder / where / "out"), "--runs", str(folder / where / "runs")]
        (folder / where).mkdir(exist_ok=True)
        command = [sys.executable, "-m", "hybrid.reproduce", *REPRODUCE, *out]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def digests(where: str) -> dict[str, object]:
        runs = folder / where / "runs"
        readers = {"snn": load_network, "frontend": load_frontend, "safe": load_model}
        found = {path.name: readers[path.name.split("-")[0]](path).digest for path in runs.glob("*.h5")}
        assert found
        return found

    began = time.monotonic()
    assert start("whole").wait(10 * LONGEST) == 0
    length, random, hits = time.monotonic() - began, np.random.default_rng(kills), 0
    while hits < kills:
        process = start("killed")
        try:
            assert process.wait(random.uniform(0, length)) == 0
            assert digests("killed") == digests("whole")
            shutil.rmtree(folder / "killed")
        except subprocess.TimeoutExpired:
            process.kill()
        hits += process.wait() == -signal.SIGKILL
        # Nobody told Snakemake and its jobs, which share the lock; they end by themselves.
        while processes_with(folder / "killed"):
            time.sleep(0.05)
    assert start("killed").wait(10 * LONGEST) == 0
    assert digests("killed") == digests("whole")
    # The lock's file stays, as jobs share it that may outlive the command.
    left = [path.name for path in (folder / "killed").rglob(".*") if path.is_file()]
    assert left == [".lock"]


def processes_with(folder: Path) -> list[str]:
    """Processes whose command line names a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(folder).encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


@pytest.mark.slow
@pytest.mark.needs_reproduce
def test_a_killed_reproduction_makes_the_same_runs(tmp_path):
    kill_reproduction(2, tmp_path)


@pytest.mark.long
@pytest.mark.needs_reproduce
def test_a_reproduction_killed_often_makes_the_same_runs(tmp_path):
    kill_reproduction(12, tmp_path)
