"""Two commands with one output: the second is refused. What processes that are dead left is removed."""

import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hybrid.train import main as train
from snn.learn import main as learn
from snn.runtime.locks import locked
from snn.runtime.outputs import remove_leftovers, write_atomically
from snn.storage import load_network

LEARN = ["--data", "digits", "--limit-train", "40", "--maps", "4", "--no-figures", "--checkpoint-interval", "0"]
TRAIN = ["--data", "digits", "--limit-train", "60", "--width", "0.1", "--batch-size", "16", "--variant", "baseline",
         "--backbone", "fast_cnn", "--no-figures", "--checkpoint-interval", "0"]  # fmt: skip
QUICK = {learn: [*LEARN, "--min-updates", "3"], train: [*TRAIN, "--epochs", "1"]}
ENDLESS = {learn: [*LEARN, "--min-updates", "1000000"], train: [*TRAIN, "--epochs", "10000"]}


def wait_for(path: Path, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 90
    while not path.exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    assert path.exists()


@pytest.mark.slow
@pytest.mark.parametrize("main", [learn, train])
def test_a_second_command_with_the_same_output_is_refused_until_the_first_is_dead(main, tmp_path, capsys):
    out = tmp_path / "model.h5"
    command = [sys.executable, "-m", main.__module__, *ENDLESS[main], "--out", str(out)]
    first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        wait_for(out if main is learn else tmp_path / "model_training" / "progress.ckpt", first)
        # The second name would share the folder of logs.
        for name, flags in (("model.h5", []), ("model.h5", ["--resume"]), ("model", ["--no-figures"])):
            if main is learn and name == "model":
                continue
            assert main([*ENDLESS[main], "--out", str(tmp_path / name), *flags]) == 2
            (line,) = capsys.readouterr().err.splitlines()
            assert f"process {first.pid} on {platform.node()}" in line
            assert f"is writing {tmp_path / 'model'}" in line
            assert "--out" in line
        if main is train:
            for name in ("progress.ckpt", "new.h5"):
                assert learn([*QUICK[learn], "--out", str(tmp_path / "model_training" / name)]) == 2
                assert f"process {first.pid} on {platform.node()}" in (said := capsys.readouterr().err)
                assert f"is writing into {tmp_path / 'model_training'}" in said
        # Another output is another matter.
        assert main([*QUICK[main], "--out", str(tmp_path / "other.h5")]) == 0
        assert first.poll() is None
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    # Its lock vanished with it: what the next command says is about the work that it left.
    assert main([*ENDLESS[main], "--out", str(out)]) == 2
    assert "unfinished" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".lock")] == []


def test_a_lock_is_held_once_and_leaves_no_file(tmp_path):
    lock = tmp_path / ".x.lock"
    lock.write_text("left by a dead process")
    program = f"""
from pathlib import Path
from snn.runtime.locks import locked
with locked(Path({str(lock)!r}), "{{holder}} is first"):
    print("taken", flush=True)
"""
    second = [sys.executable, "-c", program]
    with locked(lock, "nobody"):
        refused = subprocess.run(second, capture_output=True, text=True, check=False)
        assert f"UserError: process {os.getpid()} on" in refused.stderr
        assert "is first" in refused.stderr
        # A child that was forked does not take the lock away with it.
        child = os.fork()
        if not child:
            os._exit(0)
        os.waitpid(child, 0)
        assert subprocess.run(second, capture_output=True, check=False).returncode == 1
    assert not lock.exists()
    assert subprocess.run(second, capture_output=True, text=True, check=True).stdout == "taken\n"
    assert not lock.exists()


def test_what_dead_processes_left_is_removed_and_nothing_else(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host, out = platform.node(), tmp_path / "snn.h5"
    left = [f".snn.{host}.{dead.pid}.h5", f".snn_kernels.{host}.{dead.pid}.png"]
    others = [
        f".snn.{host}.{os.getpid()}.h5",
        f".snn.{host}.1.h5",
        f".snn.elsewhere.{dead.pid}.h5",
        f".other.{host}.{dead.pid}.h5",
        f".snn.{host}.{dead.pid}.csv",
        f".snn.{dead.pid}.h5",
        f"snn.{host}.{dead.pid}.h5",
    ]
    for name in (*left, *others):
        (tmp_path / name).write_text("part")
    flags = [flag for flag in QUICK[learn] if flag != "--no-figures"]
    assert learn([*flags, "--out", str(out)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["snn.h5", "snn_kernels.png", "snn_learning", *others[1:]]
    )
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir() if "other" in path.name) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_what_a_killed_process_left_is_removed_while_the_system_takes_it_apart(tmp_path):
    # Its locks are free before it has ended. Much memory makes that time long enough to be seen.
    program = """
import mmap, time
memory = mmap.mmap(-1, 2**28, mmap.MAP_PRIVATE)
memory.madvise(mmap.MADV_NOHUGEPAGE)
memory[::mmap.PAGESIZE] = bytes(len(memory) // mmap.PAGESIZE)
print("ready", flush=True)
time.sleep(600)
"""

    def removed_before_it_ended() -> bool:
        with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
            assert process.stdout
            assert process.stdout.readline() == b"ready\n"
            left = tmp_path / f".snn.{platform.node()}.{process.pid}.h5"
            left.touch()
            remove_leftovers(tmp_path)
            assert left.exists()
            process.kill()
            while left.exists():
                remove_leftovers(tmp_path)
            return b") Z " not in Path(f"/proc/{process.pid}/stat").read_bytes()

    assert any(removed_before_it_ended() for _ in range(20))


@pytest.mark.slow
def test_a_command_killed_while_it_writes_leaves_nothing_after_the_next(tmp_path):
    out = tmp_path / "snn.h5"
    program = f"""
import os, signal
from pathlib import Path
from snn.runtime.outputs import write_atomically
def write(temporary):
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path({str(out)!r}), write)
"""
    killed = subprocess.run([sys.executable, "-c", program], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    assert learn([*QUICK[learn], "--out", str(out)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snn.h5", "snn_learning"]
    assert load_network(out).network.complete
    write_atomically(tmp_path / "x.txt", lambda temporary: temporary.write_text("whole"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["snn.h5", "snn_learning", "x.txt"]
