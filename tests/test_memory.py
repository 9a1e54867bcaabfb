"""A command keeps the memory that it frees, unless its environment says otherwise."""

import os
import platform
import subprocess
import sys

import pytest

BLOCKS, PAGES = 12, 2**26 // os.sysconf("SC_PAGE_SIZE")
"""Tensors of 64 MiB that are made and freed one after the other, and the pages of each."""
COMMAND = f"""
import resource
import sys
from dataclasses import dataclass

import torch

from snn.runtime.cli import run_command


@dataclass(frozen=True)
class Config:
    pass


def run(config):
    for _ in range({BLOCKS}):
        torch.ones(2**24)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)


sys.exit(run_command(Config, run, []))
"""


def new_pages(**environment: str) -> int:
    """Pages that the system gave for all tensors but the first."""
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    usual |= {"OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "0"} | environment
    result = subprocess.run(
        [sys.executable, "-c", COMMAND], env=usual, capture_output=True, text=True, check=True, timeout=120
    )
    faults = list(map(int, result.stdout.split()))
    assert len(faults) == BLOCKS
    return faults[-1] - faults[0]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
def test_commands_keep_freed_memory_unless_the_environment_decides():
    assert new_pages() < 2 * PAGES
    # glibc's own default, given by name.
    assert new_pages(MALLOC_TOP_PAD_="131072") > (BLOCKS - 2) * PAGES
