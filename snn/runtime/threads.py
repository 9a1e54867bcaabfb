"""Threads that share the images of a batch, sums that must not be shared, and how many threads are fastest."""

import os
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from time import perf_counter
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
TURNS = 5
"""Measured turns of each number of threads, at most."""
WORTH = 0.95
"""Threads are added only where they take less than this share of the time: smaller differences are chance."""


def for_each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Results of ``function``, in order, computed by as many threads as PyTorch uses besides this one."""
    items = list(items)
    threads = torch.get_num_threads()
    if threads == 1 or len(items) <= 1:
        return [function(item) for item in items]
    # The first here: waking a thread takes as long as a short item.
    pool = _pool(threads, os.getpid())
    others = [pool.submit(function, item) for item in items[1:]]
    return [function(items[0]), *(other.result() for other in others)]


@contextmanager
def use_threads(number: int) -> Iterator[None]:
    """PyTorch and its libraries use so many threads. With one, sums do not depend on how many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def numbers_of_threads(limit: int) -> list[int]:
    """1, 2, 4 and so on, and ``limit``."""
    return [*(2**power for power in range(limit.bit_length()) if 2**power < limit), limit]


def seconds_by_threads(work: Callable[[], object], limit: int, budget: float) -> dict[int, float]:
    """Median seconds of ``work`` with 1, 2, 4, ... and ``limit`` threads, measured in about ``budget`` seconds.

    They take turns, so that other load on the machine slows all alike. The first turn, in which libraries prepare what
    they need, is not measured; the second always is.
    """
    times: dict[int, list[float]] = {number: [] for number in numbers_of_threads(limit)}
    began = perf_counter()
    for turn in range(1 + TURNS):
        turn_began = perf_counter()
        for number, measured in times.items():
            with use_threads(number):
                started = perf_counter()
                work()
                if turn:
                    measured.append(perf_counter() - started)
        now = perf_counter()
        if turn and now - began + (now - turn_began) > budget:
            break
    return {number: statistics.median(measured) for number, measured in times.items()}


def fastest(seconds: Mapping[int, float]) -> int:
    """The number of threads that is worth it, given the seconds that each takes: ties go to fewer."""
    chosen = min(seconds)
    for number in sorted(seconds):
        if seconds[number] < WORTH * seconds[chosen]:
            chosen = number
    return chosen


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of one process: after a fork, the parent's do not run in the child."""
    return ThreadPoolExecutor(threads, thread_name_prefix="spikes")


if hasattr(os, "register_at_fork"):
    # The threads of PyTorch's own pool do not run in the child either, which would wait for them for ever.
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
