"""Seconds of a call on a CPU or a GPU."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch
from torch.utils.benchmark import Timer


def wait(device: torch.device) -> None:
    """Until the device has done all that was launched."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def once(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, until the device is done."""
    wait(device)
    began = perf_counter()
    call()
    wait(device)
    return perf_counter() - began


def repeated(call: Callable[[], object], device: torch.device, seconds: float) -> dict[str, float]:
    """Median ``seconds`` of a call and their interquartile range, measured for about ``seconds``.

    ``first_s`` is the first call, which compiles what is compiled.
    """
    first = once(call, device)
    measured = Timer("call()", globals={"call": call}).blocked_autorange(min_run_time=seconds)
    return {"seconds": measured.median, "iqr_s": measured.iqr, "first_s": first}


class Clock:
    """Seconds of named parts, the device being waited for before and after each."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds = device, dict[str, float]()

    def run(self, part: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call and return what is returned."""
        wait(self.device)
        began = perf_counter()
        made = call(*arguments, **options)
        wait(self.device)
        self.seconds[part] = self.seconds.get(part, 0.0) + perf_counter() - began
        return made


def kernel_times(call: Callable[[], object], calls: int = 1) -> dict[str, dict[str, float]]:
    """Launches and seconds of each kernel of a GPU in a call, by the kernel's name, the longest first.

    The mean of ``calls`` calls. Copies count as kernels.
    """
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    found = [event for event in profiler.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    found.sort(key=lambda event: -event.self_device_time_total)
    return {
        event.key: {"launches": event.count / calls, "seconds": event.self_device_time_total / 1e6 / calls}
        for event in found
    }
