"""Whether work fits into this machine's memory, asked before it starts."""

import os
import re
from pathlib import Path

from snn.runtime.errors import check

AVAILABLE = Path("/proc/meminfo")
"""Linux's figures, in KiB."""
CONTAINER = Path("/sys/fs/cgroup/memory.max")
"""Limit of the container, or "max"."""


def memory() -> float:
    """Bytes that are free, or that the container may have at all; infinite where the system does not tell."""
    limits = [float("inf")]
    if AVAILABLE.is_file() and (found := re.search(r"MemAvailable:\s*(\d+)", AVAILABLE.read_text())):
        limits.append(int(found[1]) * 2**10)
    elif hasattr(os, "sysconf"):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if CONTAINER.is_file() and (text := CONTAINER.read_text().strip()).isdigit():
        limits.append(int(text))
    return min(limits)


def check_memory(needed: float, what: str, remedy: str) -> None:
    """Raise :class:`UserError` if ``what`` needs more bytes than there are."""
    there = memory()
    check(
        needed <= there, f"{what} would take {needed / 2**30:.3g} GiB, and there are {there / 2**30:.3g} GiB; {remedy}"
    )
