"""Threads that share the images of a batch, and sums that must not be shared."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def for_each(function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Results of ``function``, in order, computed by as many threads as PyTorch uses besides this one."""
    items = list(items)
    threads = torch.get_num_threads()
    if threads == 1 or len(items) <= 1:
        return [function(item) for item in items]
    # The first here: waking a thread takes as long as a short item.
    others = [_pool(threads).submit(function, item) for item in items[1:]]
    return [function(items[0]), *(other.result() for other in others)]


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch and its libraries use one thread, so that sums do not depend on how many there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="spikes")
