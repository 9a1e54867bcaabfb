"""Compiled step function: a block of drives stays in the cache while all its edges are compared."""

import numpy as np
from numba import njit

BLOCK = 1024


@njit(nogil=True, cache=True)
def fill_steps(x, first_row, edges, heights, out):
    """Write the step function of each row of ``x`` (rows, n) to ``out``.

    Row ``i`` is of channel ``(first_row + i) % channels``; ``edges`` (channels, steps) and ``heights``
    (channels, steps + 1) have the type of ``x``.
    """
    channels, steps = edges.shape
    rows, size = x.shape
    for i in range(rows):
        channel = (first_row + i) % channels
        for begin in range(0, size, BLOCK):
            drives = x[i, begin : min(begin + BLOCK, size)]
            found = out[i, begin : min(begin + BLOCK, size)]
            lowest = heights[channel, 0]
            for k in range(len(drives)):
                found[k] = lowest if drives[k] == drives[k] else np.nan
            for step in range(steps):
                edge, height = edges[channel, step], heights[channel, step + 1]
                for k in range(len(drives)):
                    found[k] = height if drives[k] >= edge else found[k]
