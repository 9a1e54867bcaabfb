"""Two nodes with a network and folders of their own: learning and training end when one is gone, and can go on.

A node is a network namespace of this machine, which the system removes with its last process.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hybrid.storage import load_model
from snn.learn import main as learn
from snn.storage import load_network

LINK = "link0"
SILENCE = 3
"""Seconds without an answer after which these tests give a node up, in place of the usual minute."""
FLAGS = [
    "--data",
    "folder:images",
    "--no-figures",
    "--device",
    "cpu",
    "--checkpoint-interval",
    "0",
    "--out",
    "runs/x.h5",
]
LEARN = [*FLAGS, "--maps", "4", "--batch-size", "6", "--min-updates", "200"]
TRAIN = [*FLAGS, "--variant", "baseline", "--backbone", "fast_cnn", "--width", "0.1", "--batch-size", "4",
         "--epochs", "12", "--threads", "1"]  # fmt: skip
ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}
LONGEST = 120.0
"""Seconds that anything in this file takes at most, and far more than it needs."""


@dataclass
class Node:
    """A network namespace; ``keeper`` is a process that does nothing but live in it."""

    number: int
    keeper: subprocess.Popen
    folder: Path
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.folder / "log.txt"

    def inside(self, *command: str) -> list[str]:
        within = ["nsenter", "--user", "--preserve-credentials", "--net", f"--target={self.keeper.pid}"]
        return [*within, *command]

    def set_link(self, state: str) -> None:
        subprocess.run(self.inside("ip", "link", "set", LINK, state), check=True)

    def start(self, *command: str) -> subprocess.Popen:
        """A command of this project as one of two processes on two nodes."""
        place = ["--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(self.number)]
        place += ["--master-addr", "10.231.0.1", "--master-port", "29500"]
        with open(self.log, "w") as log:
            return subprocess.Popen(
                self.inside(sys.executable, "-m", "torch.distributed.run", *place, "-m", *command),
                cwd=self.folder, env=ONE_THREAD, stdout=log, stderr=log,
            )  # fmt: skip

    def processes(self) -> list[int]:
        """All processes of this node but the keeper."""
        place, found = os.readlink(f"/proc/{self.keeper.pid}/ns/net"), []
        for path in Path("/proc").glob("[0-9]*/ns/net"):
            with contextlib.suppress(OSError):
                if os.readlink(path) == place:
                    found.append(int(path.parts[2]))
        return [process for process in found if process != self.keeper.pid]

    def kill(self) -> None:
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    @property
    def error(self) -> str:
        """The line of its last command that says what was wrong."""
        (line,) = (line for line in self.log.read_text().splitlines() if ": error: " in line)
        return line


@pytest.fixture
def nodes(tmp_path, image_folder) -> Iterator[list[Node]]:
    """Two nodes with addresses 10.231.0.1 and .2; their folders hold the same images and have names of their own."""
    for program in ("ip", "nsenter", "unshare"):
        if shutil.which(program) is None:
            pytest.skip(f"needs the program {program}: apt-get install iproute2 util-linux")
    made: list[Node] = []
    with contextlib.ExitStack() as stack:
        for number in (0, 1):
            # The keeper ends with the pipe that it reads, however this process ends.
            within = ["nsenter", "--user", "--preserve-credentials", f"--target={made[0].keeper.pid}"] if made else []
            unshare = [*within, "unshare", "--net"] if made else ["unshare", "--map-root-user", "--net"]
            keeper = subprocess.Popen(
                [*unshare, "sh", "-c", "echo; exec cat"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            stack.enter_context(keeper)
            if keeper.stdout.readline() != "\n":
                pytest.skip(f"needs namespaces, which this system refuses: {keeper.stderr.read().strip()}")
            folder = tmp_path / f"node{number}"
            shutil.copytree(image_folder, folder / "images")
            made.append(Node(number, keeper, folder))
            stack.callback(made[-1].kill)
        first, second = (str(node.keeper.pid) for node in made)
        pair = ["ip", "link", "add", LINK, "netns", first, "type", "veth", "peer", "name", LINK, "netns", second]
        joined = subprocess.run(made[0].inside(*pair), capture_output=True, text=True, check=False)
        if joined.returncode:
            pytest.skip(f"needs pairs of network devices, which this system refuses: {joined.stderr.strip()}")
        for node in made:
            address = ["ip", "addr", "add", f"10.231.0.{node.number + 1}/24", "dev", LINK]
            subprocess.run(node.inside(*address), check=True)
            # A node reaches its own address over the loopback.
            subprocess.run(node.inside("ip", "link", "set", "lo", "up"), check=True)
            node.set_link("up")
        yield made


def until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {LONGEST} s"
        time.sleep(0.02)


def started(nodes: list[Node], *command: str, written: str = "") -> list[subprocess.Popen]:
    """A command on both nodes, once the first has written the file ``written``, if it is named, some more times."""
    path = nodes[0].folder / written
    before = path.stat().st_mtime_ns if path.exists() else 0
    processes = [node.start(*command) for node in nodes]
    if written:
        until(lambda: path.exists() and path.stat().st_mtime_ns != before, f"{written} is written")
        time.sleep(0.5)
    return processes


def whole(nodes: list[Node], *command: str) -> None:
    """Run a command on both nodes to its end."""
    statuses = [process.wait(LONGEST) for process in started(nodes, *command)]
    assert statuses == [0, 0], [node.log.read_text() for node in nodes]
    # The second writes nothing, wherever it is.
    assert {path.name for path in nodes[1].folder.iterdir()} == {"images", "log.txt"}


def killed(nodes: list[Node], number: int, *command: str, written: str) -> None:
    """Kill all processes of one node in the middle of a command: the other ends soon, and says why."""
    other = nodes[1 - number]
    processes = started(nodes, *command, written=written)
    nodes[number].kill()
    assert processes[1 - number].wait(30) != 0
    assert f"process {number} (10.231.0.{number + 1}) has ended without a word" in other.error
    assert "--resume" in other.error
    assert "[rank" not in other.log.read_text()
    assert other.processes() == []


@pytest.mark.slow
@pytest.mark.parametrize("lost", [1, pytest.param(0, marks=pytest.mark.long)])
def test_learning_goes_on_after_a_broken_network_and_a_lost_node(lost, nodes, monkeypatch):
    shorter = nodes[0].folder.parent / "shorter.py"
    shorter.write_text(f"from snn.runtime import lifeline\nlifeline.SILENCE = {SILENCE}\n")
    (nodes[0].folder / "runs").mkdir()
    command = ["snn.learn", *LEARN, "--resume"]
    processes = started(nodes, *command, "--plugin", str(shorter), written="runs/x.h5")
    nodes[1].set_link("down")
    assert [process.wait(LONGEST) != 0 for process in processes] == [True, True]
    for node, other in zip(nodes, ("process 1 (10.231.0.2)", "process 0 (10.231.0.1)"), strict=True):
        assert f"{other} has not answered for {SILENCE} s" in node.error
        assert "--resume" in node.error
    nodes[1].set_link("up")
    killed(nodes, lost, *command, written="runs/x.h5")
    assert not load_network(nodes[0].folder / "runs" / "x.h5").network.complete
    whole(nodes, *command)
    monkeypatch.chdir(nodes[0].folder)
    assert learn([*LEARN, "--out", "runs/alone.h5"]) == 0
    assert load_network(Path("runs/x.h5")).digest == load_network(Path("runs/alone.h5")).digest


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, pytest.param(1, marks=pytest.mark.long)])
def test_training_goes_on_after_a_lost_node(lost, nodes):
    folder = nodes[0].folder
    (folder / "runs").mkdir()
    command = ["hybrid.train", *TRAIN, "--resume"]
    killed(nodes, lost, *command, written="runs/x_training/progress.ckpt")
    assert not (folder / "runs" / "x.h5").exists()
    whole(nodes, *command)
    # What two processes of one machine train.
    alone = subprocess.run(
        [sys.executable, "-m", "hybrid.train", *TRAIN, "--devices", "2", "--out", "runs/alone.h5"],
        cwd=folder, env=ONE_THREAD, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    assert load_model(folder / "runs" / "x.h5").digest == load_model(folder / "runs" / "alone.h5").digest


@pytest.mark.long
def test_the_second_node_knows_from_the_first_that_a_training_is_complete(nodes):
    (nodes[0].folder / "runs").mkdir()
    for words in ("wrote runs/x.h5", "nothing to do"):
        whole(nodes, "hybrid.train", *TRAIN, "--resume")
        assert words in nodes[0].log.read_text()


@pytest.mark.slow
def test_what_one_node_is_refused_ends_both(nodes):
    # The folder "runs" is nowhere: the first process is refused; the second would write nothing there, and is told.
    processes = started(nodes, "snn.learn", *LEARN)
    assert [process.wait(LONGEST) != 0 for process in processes] == [True, True]
    assert "folder runs does not exist" in nodes[0].error
    assert "process 0 (10.231.0.1) has ended: cannot write runs/x.h5: folder runs" in nodes[1].error
    (nodes[0].folder / "runs").mkdir()
    processes = [node.start("hybrid.train", *TRAIN, "--seed", str(node.number)) for node in nodes]
    assert [process.wait(LONGEST) != 0 for process in processes] == [True, True]
    assert "the same flags" in nodes[1].error
    assert "process 1 (10.231.0.2) has ended: the first process has other settings" in nodes[0].error
