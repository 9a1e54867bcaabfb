"""Whether work fits into this machine's memory, asked before it starts; and how a process takes memory."""

import ctypes
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from snn.runtime.errors import check

AVAILABLE = Path("/proc/meminfo")
"""Linux's figures, in KiB."""
OWN_GROUP = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
"""Limits of containers and jobs: each group's own, in a folder within that of the group around it."""
TRIM_THRESHOLD, MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt."""


def keep_freed_memory() -> None:
    """Let this process keep memory that it frees, for the next tensor.

    By default glibc gives each block of some megabytes back to the system, which clears all its pages when the next
    one is made. On a CPU that was a quarter of the time of ``hybrid.evaluate`` and a twentieth of a training step's.
    Nothing is changed where the C library is another, or where the environment already says what glibc is to do
    (``MALLOC_...``, ``GLIBC_TUNABLES``).
    """
    chosen = any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ)
    if chosen or not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(MMAP_MAX, 0)
        mallopt(TRIM_THRESHOLD, -1)


def memory() -> float:
    """Bytes that are free, or that the container or job may have at all; infinite where the system does not tell."""
    limits = [float("inf")]
    if AVAILABLE.is_file() and (found := re.search(r"MemAvailable:\s*(\d+)", AVAILABLE.read_text())):
        limits.append(int(found[1]) * 2**10)
    elif hasattr(os, "sysconf"):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min([*limits, *_group_limits()])


def _group_limits() -> Iterator[int]:
    own = re.search(r"^0::/(.*)$", OWN_GROUP.read_text(), re.M) if OWN_GROUP.is_file() else None
    group = GROUPS / own[1] if own else GROUPS
    for folder in (group, *group.parents):
        if folder.is_relative_to(GROUPS):
            limit = folder / "memory.max"
            if limit.is_file() and (text := limit.read_text().strip()).isdigit():
                yield int(text)


def check_memory(needed: float, what: str, remedy: str) -> None:
    """Raise :class:`UserError` if ``what`` needs more bytes than there are."""
    there = memory()
    check(
        needed <= there, f"{what} would take {needed / 2**30:.3g} GiB, and there are {there / 2**30:.3g} GiB; {remedy}"
    )
