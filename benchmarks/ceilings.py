"""Part ``ceilings`` of ``python -m benchmarks.gpu``: the most that a card does, as measured on it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu_setting import Setting
from benchmarks.jobs import Job, Row
from benchmarks.timing import once, repeated

COPIED = 2**30
"""Bytes of the block that is copied: far more than caches hold."""
SIDE = 8192
"""Of the square matrices that are multiplied."""
ELEMENTS = 2**24
"""Numbers of the elementwise arithmetic."""
ROUNDS = 1024
"""How often each of them is changed, by two operations, between a load and a store."""
LAUNCHES = 2000


def measure_ceilings(job: Job, setting: Setting) -> None:
    """Operations or bytes a second of each resource, and the seconds of a launch."""
    side, elements, copied = (64, 2**10, 2**16) if setting.tiny else (SIDE, ELEMENTS, COPIED)
    measurements: dict[str, Callable[[], Row]] = {
        "bytes": partial(copy, setting, copied),
        "int8": partial(multiply, setting, side, torch.int8),
        "bfloat16": partial(multiply, setting, side, torch.bfloat16),
        "TF32": partial(multiply, setting, side, torch.float32, tf32=True),
        "float32 matrices": partial(multiply, setting, side, torch.float32),
        "int32": partial(arithmetic, setting, elements, torch.int32),
        "float32": partial(arithmetic, setting, elements, torch.float32),
        "launches": partial(launch, setting),
    }
    for resource, measure in measurements.items():
        job.attempt({"resource": resource}, measure)


def per_second(setting: Setting, call: Callable[[], object], amount: float) -> Row:
    """Of calls that do so much each."""
    row = repeated(call, setting.device, 0.02 if setting.tiny else 0.5)
    return row | {"per_second": amount / row["seconds"]}


def copy(setting: Setting, size: int) -> Row:
    """Bytes read and written by copying a block."""
    source = torch.ones(size, dtype=torch.uint8, device=setting.device)
    target = torch.empty_like(source)
    return per_second(setting, lambda: target.copy_(source), 2 * size)


def multiply(setting: Setting, side: int, dtype: torch.dtype, *, tf32: bool = False) -> Row:
    """Operations of products of square matrices; int8 ones are summed in int32."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-8, 8, (side, side), generator=generator).to(setting.device, dtype) for _ in range(2))
    if dtype == torch.int8:
        # Its fastest form takes the second matrix column by column.
        b = b.t()
        return per_second(setting, lambda: torch._int_mm(a, b), 2 * side**3)
    with precision(tf32):
        return per_second(setting, lambda: a @ b, 2 * side**3)


@contextmanager
def precision(tf32: bool) -> Iterator[None]:
    """Whether products of float32 matrices may keep 10 bits of each number."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def arithmetic(setting: Setting, elements: int, dtype: torch.dtype) -> Row:
    """Operations of elementwise arithmetic, each number changed many times between a load and a store."""
    values = torch.ones(elements, dtype=dtype, device=setting.device)
    others = torch.full_like(values, 3)
    rounds = ROUNDS if setting.on_gpu else 1
    run = run_rounds() if setting.on_gpu else one_round
    return per_second(setting, lambda: run(values, others, rounds), 2.0 * rounds * elements)


def run_rounds() -> Callable[[Tensor, Tensor, int], Tensor]:
    """The kernels for a GPU, loaded where there is one: Triton is not everywhere."""
    from benchmarks import ceiling_kernels

    return ceiling_kernels.run_rounds


def one_round(values: Tensor, others: Tensor, _: int) -> Tensor:
    """What stands for them on a CPU, in a tiny setting."""
    return (values + others) + 1


def launch(setting: Setting) -> Row:
    """Launches of kernels that do almost nothing."""
    value = torch.zeros(1, device=setting.device)
    count = 10 if setting.tiny else LAUNCHES

    def launches() -> None:
        for _ in range(count):
            value.add_(1)

    once(launches, setting.device)
    seconds = once(launches, setting.device)
    return {"seconds": seconds / count, "per_second": count / seconds}
