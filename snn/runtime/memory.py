"""Whether work fits into this machine's memory, asked before it starts."""

import os
from pathlib import Path

from snn.runtime.errors import check

CONTAINER = Path("/sys/fs/cgroup/memory.max")
"""Limit of the container, or "max"."""


def memory() -> float:
    """Bytes of this machine, or of the container that this process is in; infinite where the system does not tell."""
    limits = [float("inf")]
    if hasattr(os, "sysconf"):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    if CONTAINER.is_file() and (text := CONTAINER.read_text().strip()).isdigit():
        limits.append(int(text))
    return min(limits)


def check_memory(needed: float, what: str, remedy: str) -> None:
    """Raise :class:`UserError` if ``what`` needs more bytes than there are at all."""
    there = memory()
    check(
        needed <= there, f"{what} would take {needed / 2**30:.3g} GiB, and there are {there / 2**30:.3g} GiB; {remedy}"
    )
