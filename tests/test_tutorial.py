"""All commands and programs of the tutorial, in order, in a folder of their own, with one pass of training."""

import os
import re
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "tutorial.md").read_text()


def blocks() -> list[tuple[str, str]]:
    """Language and text of each block of code, in order."""
    return re.findall(r"^```(\w*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Calls of this project's commands in a block."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith("python -m ")]


def test_its_times_are_of_its_steps():
    table = PAGE[PAGE.index("| step |") : PAGE.index("You need the package")]
    steps = re.findall(r"^## (\d\. .*)$", PAGE, re.MULTILINE)
    assert re.findall(r"\[(\d\. .*?)\]", table) == steps


@pytest.mark.slow
@pytest.mark.needs_export
@pytest.mark.skipif(not (find_spec("hybrid.report") and find_spec("hybrid.export")), reason="needs all its commands")
def test_all_of_it_runs(tmp_path):
    (tmp_path / "runs").mkdir()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    called, programs = [], []
    for language, text in blocks():
        for command in commands(text):
            # Trained for a pass only: what the networks read does not matter here.
            run(*command, *(["--epochs", "1"] if "hybrid.train" in command else []))
            called.append(command[1])
        if language == "python":
            programs.append(run("-c", text))
    assert called == [
        *("snn.learn", "bridge.convert", "hybrid.train", "hybrid.train", "hybrid.evaluate", "hybrid.report"),
        "hybrid.export",
    ]
    assert len(list((tmp_path / "photos").rglob("*.png"))) == 1797
    assert len(programs) == 2
    assert re.fullmatch(r"digit \d\n", programs[1])
    for name in ("snn_kernels.png", "frontend_response.png", "results.png", "results_confusion.png", "report.html"):
        assert (tmp_path / "runs" / name).stat().st_size > 1000
