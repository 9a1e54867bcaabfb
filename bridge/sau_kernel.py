"""Compiled step function. It compares a drive with eight edges at a time while the drive is in a register."""

import numpy as np

from snn.runtime.compiled import compiled

GROUP = 8


@compiled
def fill_steps(x, first_row, edges, heights, out):
    """Write the step function of each row of ``x`` (rows, n) to ``out``. NaN stays NaN.

    Row ``i`` belongs to channel ``(first_row + i) % channels``. ``edges`` (channels, steps) and ``heights``
    (channels, steps + 1) come from :func:`pad_steps` and have the type of ``x``.
    """
    channels, steps = edges.shape
    for i in range(len(x)):
        channel = (first_row + i) % channels
        drives, values = x[i], out[i]
        lowest = heights[channel, 0]
        for k in range(len(drives)):
            values[k] = lowest if drives[k] == drives[k] else drives[k]
        for begin in range(0, steps, GROUP):
            e, h = edges[channel, begin : begin + GROUP], heights[channel, begin + 1 : begin + 1 + GROUP]
            e0, e1, e2, e3, e4, e5, e6, e7 = e[0], e[1], e[2], e[3], e[4], e[5], e[6], e[7]
            h0, h1, h2, h3, h4, h5, h6, h7 = h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]
            for k in range(len(drives)):
                v = drives[k]
                y = h0 if v >= e0 else values[k]
                y = h1 if v >= e1 else y
                y = h2 if v >= e2 else y
                y = h3 if v >= e3 else y
                y = h4 if v >= e4 else y
                y = h5 if v >= e5 else y
                y = h6 if v >= e6 else y
                values[k] = h7 if v >= e7 else y


def pad_steps(edges: np.ndarray, heights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same steps, padded to a multiple of :data:`GROUP` by steps at infinity, which change nothing."""
    missing = -edges.shape[1] % GROUP
    return (
        np.pad(edges, ((0, 0), (0, missing)), constant_values=np.inf),
        np.pad(heights, ((0, 0), (0, missing)), mode="edge"),
    )
