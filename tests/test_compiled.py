"""Compiled code is kept on disk where that is possible, and never decides whether a command runs."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COUNT = """
import numpy as np
import bridge.sau_kernel
from snn.engines import kernels
print(kernels.count_spikes(np.array([0, 2, 2], np.int32), 4))
"""
RESULT = "[1 0 2 0]\n"


@pytest.fixture
def packages(tmp_path) -> Path:
    """A copy of the packages that no earlier run left compiled code in."""
    for name in ("snn", "bridge"):
        shutil.copytree(ROOT / name, tmp_path / "packages" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "packages"


def count(packages: Path, **variables: str) -> None:
    names = ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in names} | variables
    result = subprocess.run(
        [sys.executable, "-c", COUNT], cwd=packages, env=environment | {"PYTHONPATH": str(packages)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (result.stdout, result.stderr) == (RESULT, "")


@pytest.mark.slow
def test_packages_that_cannot_be_written_to_compute_without_a_word(packages):
    # A file in place of the folder stops the superuser, too.
    for folder in [packages, *packages.rglob("*/")]:
        if folder.is_dir():
            (folder / "__pycache__").touch()
    count(packages, HOME="/proc/nowhere")


@pytest.mark.slow
def test_damaged_and_foreign_caches_do_not_matter(packages, tmp_path):
    cache = tmp_path / "cache"
    count(packages, NUMBA_CACHE_DIR=str(cache))
    for ending in ("nbi", "nbc"):
        kept = list(cache.rglob(f"*.{ending}"))
        assert kept
        for content in (b"", b"of another program"):
            for file in kept:
                file.write_bytes(content)
            count(packages, NUMBA_CACHE_DIR=str(cache))
    for file in [*cache.rglob("*.nbi"), *cache.rglob("*.nbc")]:
        # Neither to be read nor to be replaced.
        file.unlink()
        file.mkdir()
    count(packages, NUMBA_CACHE_DIR=str(cache))
