"""Durations in whole time steps."""

import math


def whole_steps(duration: float, dt: float) -> int:
    """``duration / dt`` (both ms) as an integer, or -1 if it is not one."""
    if not (dt > 0 and math.isfinite(duration / dt)):
        return -1
    steps = round(duration / dt)
    return steps if math.isclose(steps * dt, duration, rel_tol=1e-9, abs_tol=1e-9) else -1
