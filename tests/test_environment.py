"""What a machine computes with, and that it computes rightly."""

import json
import os
import subprocess
import sys

import pytest

from validation.environment import main

WRONG = """
from snn.engines.events import EventEngine
from snn.spikes import as_dense
from snn.registries import register_engine


@register_engine("wrong")
class Wrong(EventEngine):
    def preference(self, device_type):
        return 1

    def simulate(self, layer, pre, **options):
        spikes = as_dense(super().simulate(layer, pre, **options)).clone()
        spikes[-1, 0, 0, 0, 0] ^= True
        return spikes
"""


def test_a_sound_machine_agrees_and_says_what_it_is(tmp_path, capsys):
    assert main(["--json", str(tmp_path / "environment.json")]) == 0
    told = json.loads((tmp_path / "environment.json").read_text(encoding="utf-8"))
    assert told["verdict"] == "agree"
    assert len(told["comparisons"]) >= 5
    assert told["environment"]["python"].startswith(".".join(map(str, sys.version_info[:3])))
    assert f"numpy {__import__('numpy').__version__}" in told["environment"]["packages"]
    printed = capsys.readouterr().out
    assert all(value in printed for value in told["environment"].values())


@pytest.mark.slow
def test_an_engine_with_one_wrong_spike_is_found(tmp_path):
    (tmp_path / "wrong.py").write_text(WRONG)
    command = [sys.executable, "-m", "validation.environment", "--plugin", str(tmp_path / "wrong.py")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "DIFFERS" in line]
    assert "spikes of engine wrong" in line
    assert "1 of" in line


@pytest.mark.slow
def test_a_terminal_of_few_characters_loses_nothing(pipeline, tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "hybrid.evaluate", str(pipeline.baseline), "--limit-test", "50"]
    command += ["--noise", "clean", "awgn:12", "--out", str(tmp_path / "r.csv"), "--json", str(tmp_path / "r.json")]
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "±" not in done.stdout.decode("ascii")
    for name in ("r.csv", "r.json"):
        assert (tmp_path / name).read_text(encoding="utf-8")
    assert (tmp_path / "r.png").stat().st_size > 1000
