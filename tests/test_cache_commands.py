"""Every command that loads images of a folder takes them from the cache that it is told of."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.features import main as features
from benchmarks.frequency_dependence import main as frequency_dependence
from benchmarks.frontend import main as frontend
from bridge.convert import main as convert
from hybrid.embedding import main as embedding
from hybrid.evaluate import main as evaluate
from hybrid.export import main as export
from hybrid.margins import main as margins
from hybrid.report import main as report
from hybrid.reproduce import main as reproduce
from hybrid.ship import main as ship
from hybrid.swap import main as swap
from hybrid.train import main as train
from snn.data import load_images
from snn.data_source import DataSource
from snn.learn import main as learn
from snn.storage import images_digest

LEARN = ["--image-size", "8", "--maps", "4", "--kernel-sizes", "3", "--min-updates", "1"]
TRAIN = [
    *("--image-size", "8", "--preset", "cifar10", "--backbone", "fast_cnn", "--width", "0.25"),
    *("--epochs", "1", "--batch-size", "4", "--no-figures"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Folder with networks that have seen ``photos``, whose files can no longer be read, and their ``cache``."""
    place = tmp_path_factory.mktemp("place")
    photos, cache = place / "photos", place / "cache"
    random = np.random.default_rng(0)
    for number in range(48):
        path = photos / ("train" if number % 2 else "test") / "ab"[number // 2 % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (500, 500, 3), np.uint8)).save(path)
    source = DataSource(f"folder:{photos}", image_size=8)
    for split in ("train", "test"):
        assert load_images(source, split, cache=cache).images.shape == (24, 3, 8, 8)
    for file in photos.rglob("*.bmp"):
        status = file.stat()
        file.write_bytes(b"x" * status.st_size)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    given = ["--data", f"folder:{photos}", "--cache", str(cache)]
    file = {name: str(place / f"{name}.h5") for name in ("snn", "frontend", "safe", "mu")}
    assert learn([*given, *LEARN, "--out", file["snn"]]) == 0
    assert convert([file["snn"], "--cache", str(cache), "--images", "9", "--out", file["frontend"]]) == 0
    for variant in ("safe", "mu"):
        variation = ["--variant", variant, "--frontend", file["frontend"]]
        assert train([*given, *TRAIN, *variation, "--out", file[variant]]) == 0
    return place


def arguments(place: Path) -> dict[str, tuple]:
    """Each command and its flags, but for the cache and the output."""
    data = ["--data", f"folder:{place / 'photos'}"]
    snn, step, safe, mu = (place / f"{name}.h5" for name in ("snn", "frontend", "safe", "mu"))
    return {
        "learn": (learn, [*data, *LEARN]),
        "convert": (convert, [snn]),
        "train": (train, [*data, *TRAIN, "--variant", "baseline"]),
        "evaluate": (evaluate, [safe, "--noise", "clean"]),
        "evaluate held-out": (evaluate, [safe, "--noise", "clean", "--split", "held-out"]),
        "margins": (margins, [step, "--limit-test", "9"]),
        "embedding": (embedding, [safe, "--noise", "awgn:20"]),
        "swap": (swap, [mu, "--frontend", step]),
        "ship": (ship, [safe, *data]),
        "export": (export, [safe, "--int8", "--calibration", "4"]),
        "report": (report, [safe, *data]),
    }


SUFFIX = {"export": ".onnx", "report": ".html", "embedding": ".png", "learn": ".h5", "convert": ".h5", "train": ".h5"}
COMMANDS = [
    *("learn", "convert", "train", "evaluate", "evaluate held-out", "margins", "embedding", "swap", "ship", "report"),
    pytest.param("export", marks=pytest.mark.needs_export),
]


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_take_images_from_the_cache(place, tmp_path, capsys, command):
    main, given = arguments(place)[command]
    words = [*map(str, given), "--out", str(tmp_path / f"out{SUFFIX.get(command, '')}")]
    assert main([*words, "--cache", "none"]) == 2
    assert "is not a readable image" in capsys.readouterr().err
    before = {path: path.stat().st_mtime_ns for path in (place / "cache").iterdir()}
    assert main([*words, "--cache", str(place / "cache")]) == 0
    # Nothing was written for parts of them.
    assert {path: path.stat().st_mtime_ns for path in (place / "cache").iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("main", [features, frequency_dependence, frontend], ids=lambda main: main.__module__)
def test_benchmarks_take_images_from_the_cache(place, tmp_path, capsys, main):
    words = ["--data", f"folder:{place / 'photos'}", "--image-size", "8", "--out", str(tmp_path / "out.png")]
    words += ["--snn", str(place / "snn.h5")] if main is frontend else []
    assert main([*words, "--cache", "none"]) == 2
    assert "is not a readable image" in capsys.readouterr().err
    # What they say once they have loaded them: such experiments need more.
    assert main([*words, "--cache", str(place / "cache")]) == 2
    assert re.search("has 24 (training )?images", capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.needs_reproduce
def test_jobs_of_a_reproduction_are_told_of_the_cache(tmp_path, capsys):
    words = ["table2", "--scale", "small", "--data", "digits", "--runs", str(tmp_path), "--dry-run"]
    assert reproduce([*words, "--cache", str(tmp_path / "a b")]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert len(commands) > 3
    flag = f" --cache {shlex.quote(f'{tmp_path}/a b')}"
    # An exchange of the auxiliary input reads no images.
    assert all(line.count(flag) == (" --auxiliary-input " not in line) for line in commands)
    assert reproduce(words) == 0
    # And make the same files.
    assert capsys.readouterr().out.splitlines() == [line.replace(flag, "") for line in commands]


def test_a_cache_without_a_folder_of_images_is_said_to_have_no_effect(tmp_path, capsys):
    words = ["--data", "digits", "--limit-train", "20", "--maps", "2", "--min-updates", "1", "--no-figures"]
    assert learn([*words, "--out", str(tmp_path / "snn.h5"), "--cache", str(tmp_path / "cache")]) == 0
    assert f"warning: --cache {tmp_path / 'cache'} has no effect without --data folder:PATH" in capsys.readouterr().err
    for cache in ([], ["--cache", "none"]):
        assert learn([*words, "--out", str(tmp_path / "snn.h5"), *cache]) == 0
        assert "cache" not in capsys.readouterr().err
    assert learn([*words, "--out", str(tmp_path / "snn.h5"), "--cache", ""]) == 2
    assert "--cache: give a folder, auto or none" in capsys.readouterr().err


RANKS = """
import sys
from snn.data import load_images
from snn.decoded import known_digest
from snn.runtime.processes import start_processes
from snn.storage import images_digest
folder, cache, out = sys.argv[1:]
processes, device = start_processes("cpu", 2, 1)
data = processes.in_turn(lambda: load_images(f"folder:{folder}", "train", cache=cache))
with open(f"{out}/{processes.rank}", "w") as file:
    print(known_digest(data.images), images_digest(data.images.clone()), data.labels.tolist(), file=file)
"""


@pytest.mark.slow
def test_processes_that_learn_together_map_one_file(tmp_path):
    for number in range(24):
        path = tmp_path / "photos" / ("train" if number % 2 else "test") / "ab"[number // 2 % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (700, 700), (number, 0, 0)).save(path)
    (tmp_path / "script.py").write_text(RANKS)
    words = [sys.executable, "script.py", str(tmp_path / "photos"), str(tmp_path / "cache"), str(tmp_path)]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    plain = load_images(f"folder:{tmp_path / 'photos'}", "train")
    digest = images_digest(plain.images)
    expected = f"{digest} {digest} {plain.labels.tolist()}\n"
    assert [(tmp_path / rank).read_text() for rank in "01"] == [expected, expected]
