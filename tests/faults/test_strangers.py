"""What strangers and surroundings do to a command that has done nothing wrong."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hybrid.evaluate import main as evaluate
from snn.learn import main as learn

QUICK = ["--data", "digits", "--limit-train", "40", "--maps", "3", "--min-updates", "2", "--no-figures"]


def test_an_image_that_is_a_program_is_refused_and_not_run(tmp_path, monkeypatch, capsys):
    folder, ran = tmp_path / "data", tmp_path / "ran"
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(np.full((6, 6), 9, np.uint8)).save(folder / name / "0.png")
    # Pillow gives Encapsulated PostScript to a program of this name.
    (folder / "train/a/1.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 6\n%%EndComments\n%%EOF\n")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "gs").write_text(f"#!/bin/sh\ntouch {ran}\nexit 0\n")
    (tmp_path / "bin" / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    assert learn([*QUICK, "--data", f"folder:{folder}", "--out", str(tmp_path / "x.h5")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "1.png is not a readable image" in line
    assert not ran.exists()


@pytest.mark.parametrize("flag", ["--out", "--json"])
def test_a_plugin_is_not_overwritten(flag, tmp_path, capsys):
    plugin = tmp_path / f"plugin{flag.strip('-')}.py"
    plugin.write_text("LEFT = True\n")
    out = [] if flag == "--out" else ["--out", str(tmp_path / "x.h5")]
    assert learn([*QUICK, "--plugin", str(plugin), flag, str(plugin), *out]) == 2
    assert f"cannot write {plugin}: it is read by this command" in capsys.readouterr().err
    assert plugin.read_text() == "LEFT = True\n"
    assert [path.name for path in tmp_path.iterdir()] == [plugin.name]


def test_a_command_of_one_process_refuses_to_be_started_several_times(pipeline, tmp_path, monkeypatch, capsys):
    for name, value in {"NTASKS": "4", "STEP_NUM_TASKS": "4", "PROCID": "1", "LOCALID": "1", "NODEID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    out = tmp_path / "r.csv"
    assert evaluate([str(pipeline.baseline), "--noise", "clean", "--limit-test", "9", "--out", str(out)]) == 2
    assert "srun started 4 tasks of this command, which is one process" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_variables_that_are_empty_say_nothing(tmp_path, monkeypatch):
    for name in ("NTASKS", "PROCID", "STEP_NUM_TASKS"):
        monkeypatch.setenv(f"SLURM_{name}", "")
    assert learn([*QUICK, "--out", str(tmp_path / "x.h5")]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-"])
def test_a_command_without_a_stream_works(closed, tmp_path):
    words = [sys.executable, "-m", "snn.learn", *QUICK, "--out", str(tmp_path / "x.h5"), closed]
    assert subprocess.run(["bash", "-c", " ".join(words)]).returncode == 0
    assert (tmp_path / "x.h5").stat().st_size > 1000


@pytest.mark.slow
def test_a_limit_of_memory_ends_in_one_line(pipeline, tmp_path):
    words = f"{sys.executable} -m hybrid.evaluate {pipeline.baseline} --noise clean --out {tmp_path / 'r.csv'}"
    # So little that PyTorch itself cannot be loaded, on any machine.
    done = subprocess.run(["bash", "-c", f"ulimit -v 1200000; exec {words}"], capture_output=True, text=True)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "not enough memory" in line


@pytest.mark.slow
def test_a_training_that_cannot_write_leaves_nothing(tmp_path):
    words = [sys.executable, "-m", "hybrid.train", "--data", "digits", "--limit-train", "60", "--variant", "baseline"]
    words += ["--width", "0.25", "--epochs", "1", "--batch-size", "16", "--no-figures", "--out", str(tmp_path / "x.h5")]
    words += ["--checkpoint-interval", "0"]
    done = subprocess.run(["bash", "-c", f"ulimit -f 20; exec {' '.join(words)}"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "cannot write" in done.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
