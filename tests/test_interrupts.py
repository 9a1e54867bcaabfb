"""Ctrl-C and SIGTERM while a command's modules load: exit status 130 and one line."""

import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "snn.learn": ["--data", "digits"],
    "bridge.convert": ["pretrained:cifar10-fd", "--data", "digits"],
    "bridge.export": ["pretrained:cifar10-fd", "--format", "nir"],
    "hybrid.train": ["--variant", "baseline", "--data", "digits"],
    "hybrid.evaluate": ["pretrained:safe-cifar10"],
    "hybrid.complexity": [],
    "hybrid.reproduce": ["table2"],
    "validation.freq_response": [],
    "hybrid.paper.job": ["-", "-", "-", "hybrid.complexity"],
}
# Modules that load early, in between and late, whichever command it is.
MOMENTS = ["ast", "numpy._core.multiarray", "torch._C", "torch"]


def interrupted(command: str, moment: str, number: signal.Signals, folder: Path) -> tuple[int, list[str]]:
    """Start a command, send it a signal once the module ``moment`` has loaded; its exit status and lines on stderr."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", command, *COMMANDS[command], "--out", str(folder / "x.h5")],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        # A test run in the background may ignore interrupts, and its children with it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert process.stderr is not None
    # Without the signal, as where the module is not loaded, it would go on.
    limit = threading.Timer(120, process.kill)
    limit.start()
    lines: list[str] = []
    for line in process.stderr:
        if line.startswith("import time:"):
            if re.search(rf"\| +{re.escape(moment)}$", line):
                process.send_signal(number)
        else:
            lines.append(line)
    limit.cancel()
    return process.wait(timeout=60), lines


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(("command", "number"), [*zip(COMMANDS, itertools.cycle([signal.SIGINT, signal.SIGTERM]))])
def test_an_interrupt_while_modules_load_is_one_line(command, number, moment, tmp_path):
    status, lines = interrupted(command, moment, number, tmp_path)
    # A job says what it runs, once that loads.
    (line,) = lines
    names = [command] if command != "hybrid.paper.job" else [command, "hybrid.complexity"]
    assert line in [f"python -m {name}: interrupted; every file left is whole\n" for name in names]
    assert status == 130
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_imports_the_packages_keeps_its_own_handlers():
    code = "import signal, snn, bridge, hybrid; "
    code += "print(signal.getsignal(2) is signal.default_int_handler, int(signal.getsignal(15)))"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=dict(os.environ),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    assert result.stdout.split() == ["True", "0"]


def test_a_process_that_waits_for_others_can_be_ended(tmp_path):
    # The library that waits for the other node never comes back to Python.
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--data", "digits", "--limit-train", "20", "--device", "cpu", "--out", str(tmp_path / "x.h5")]
    process = subprocess.Popen(
        [sys.executable, "-m", "snn.learn", *flags, "--num-nodes", "2"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"},
    )  # fmt: skip
    assert process.stderr is not None
    while "MEMBER: 1/2" not in process.stderr.readline():
        assert process.poll() is None
    process.terminate()
    _, last = process.communicate(timeout=60)
    assert process.returncode == 130
    assert last.splitlines()[-1] == "python -m snn.learn: interrupted; every file left is whole"
    assert list(tmp_path.glob("*.h5")) == []
