"""Elementwise arithmetic that no memory holds up (Triton): what a card's integer and float units do at most."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
UNROLLED = tl.constexpr(16)
"""Rounds that follow each other without a jump; two operations each."""


@triton.jit
def change(values, others, out, rounds, FLOATS: tl.constexpr, BLOCK: tl.constexpr):
    """Each number changed ``rounds`` times by two operations that no compiler can join.

    Of integers these are an addition and an exclusive or. Of floats they are two additions: a multiplication and an
    addition would be fused.
    """
    number = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x, y = tl.load(values + number), tl.load(others + number)
    for _ in range(rounds // UNROLLED):
        for _ in tl.static_range(UNROLLED):
            x = (x + y) + 1.5 if FLOATS else (x + y) ^ 0x55
    tl.store(out + number, x)


def run_rounds(values: Tensor, others: Tensor, rounds: int) -> Tensor:
    """``values`` after so many rounds, int32 or float32, a multiple of :data:`BLOCK` of them; ``rounds`` of 16."""
    kernel: Any = change
    out, floats = values.new_empty(values.shape), values.dtype.is_floating_point
    kernel[(values.numel() // BLOCK,)](values, others, out, rounds, FLOATS=floats, BLOCK=BLOCK)
    return out
