"""What every adapter of the STDP benchmark shares: the workload file, calibration, timing, and the JSON line it prints.

An adapter runs in its own environment, so this file needs nothing but NumPy and PyTorch. One process makes one
measurement: ``python <adapter> workload.npz --track rule --repeats 5``.
"""

import argparse
import json
import resource
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

CALIBRATION_IMAGES = 8
"""Images of the batch on which the peers' weights are scaled; all are drawn alike, so more would not move the scale."""
BISECTIONS = 16
TOLERANCE = 0.02
"""Calibration stops when the spike count is this close to the target; the benchmark asks for 0.1."""
LEARNING_RATE = 0.1
"""Change of a weight, as a share of the largest, if its map paired once at every place of every image: small, so that
a peer's spike count stays where calibration put it while its weights move."""
GROUPS = (1, 8)
"""Image counts that :func:`fastest_group` tries; larger ones leave the cache, never win, and would raise the peak."""
TAU_TRACE = 15.0
"""Time constant of the peers' spike traces, in ms; the cost of a step does not depend on it."""
TAU_MEMBRANE = 253.0
"""Membrane time constant of the peers' neurons, in ms: about that of this project's."""


@dataclass(frozen=True)
class Workload:
    """One batch of spike trains and the layer that learns on it; the convolution is square, stride 1."""

    pre: Tensor
    """bool (T, B, C_in, H, W)."""
    post: Tensor
    """bool (T, B, C_out, H, W): spikes of this project's layer, the ones that track ``rule`` is given."""
    weight: Tensor
    """float32 (C_out, C_in, k, k) in [0, 1], at the start."""
    gain: float
    """Current per unit of conductance of this project's layer."""
    padding: int
    dt: float
    """Time step, in ms."""
    rate_limits: tuple[float, float]
    """Lowest and highest presynaptic rate, in Hz."""

    def first(self, images: int) -> "Workload":
        """The first ``images`` of the batch."""
        return replace(self, pre=self.pre[:, :images], post=self.post[:, :images])

    @property
    def learning_rate(self) -> float:
        """Weight change, as a share of the largest weight, of one pairing."""
        return LEARNING_RATE / self.post[0, :, 0].numel()


def save(path: str, workload: Workload) -> None:
    """Write the workload; spikes take a bit each."""
    arrays = {"weight": workload.weight.numpy(), "gain": workload.gain, "padding": workload.padding}
    for name in ("pre", "post"):
        spikes = getattr(workload, name)
        arrays |= {name: np.packbits(spikes.numpy()), f"{name}_shape": spikes.shape}
    np.savez(path, dt=workload.dt, rate_limits=workload.rate_limits, **arrays)


def load(path: str) -> Workload:
    """The workload that :func:`save` wrote."""
    with np.load(path) as file:

        def spikes(name: str) -> Tensor:
            shape = tuple(file[f"{name}_shape"].tolist())
            bits = np.unpackbits(file[name], count=int(np.prod(shape)))
            return torch.from_numpy(bits.view(bool).reshape(shape))

        low, high = file["rate_limits"].tolist()
        numbers = (file["gain"].item(), file["padding"].item(), file["dt"].item())
        return Workload(spikes("pre"), spikes("post"), torch.from_numpy(file["weight"]), *numbers, (low, high))


class Adapter(ABC):
    """A library set up for one workload. Set-up and :meth:`reset` are not timed, :meth:`rule` and :meth:`full` are."""

    package: str
    calibrated = True
    """Whether weights are scaled in track ``full`` until the neurons fire as often as this project's."""

    def __init__(self, workload: Workload, weight: Tensor, w_max: float, track: str) -> None:
        self.workload = workload
        self.start = weight
        self.w_max = w_max
        self.track = track

    @abstractmethod
    def reset(self) -> None:
        """Back to the weights and states before learning."""

    @abstractmethod
    def rule(self) -> None:
        """Learn from the given pre- and postsynaptic spikes."""

    @abstractmethod
    def full(self, watch: Callable[[Tensor], None] | None) -> None:
        """Simulate the neurons on the given input and learn; ``watch`` (untimed pass) is given all their spikes."""

    @abstractmethod
    def weight_now(self) -> Tensor:
        """The weights, the shape of ``workload.weight``."""

    @classmethod
    def count(cls, workload: Workload, weight: Tensor) -> float:
        """Spikes on the workload's input with these weights, not learning."""
        raise NotImplementedError


class GroupedAdapter(Adapter):
    """A library whose rule is called on as many images at a time as is fastest; its weights are a tensor of its own."""

    weight: Tensor
    group: int

    @abstractmethod
    def stdp(self, pre: Tensor, post: Tensor) -> None:
        """One time step of the rule, float32 (B, C, H, W), in groups."""

    def choose_group(self) -> None:
        """Set ``group``."""
        pre, post = self.workload.pre[0].float(), self.workload.post[0].float()

        def step(size: int) -> None:
            self.group = size
            self.reset()
            self.stdp(pre, post)

        self.group = fastest_group(step, self.workload.pre.shape[1])

    def split(self, pre: Tensor, post: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Groups of images."""
        return list(zip(pre.split(self.group), post.split(self.group), strict=True))

    def rule(self) -> None:
        for pre, post in zip(self.workload.pre, self.workload.post, strict=True):
            self.stdp(pre.float(), post.float())

    def weight_now(self) -> Tensor:
        return self.weight


def main(adapter: type[Adapter]) -> None:
    """Command line of an adapter: make one measurement and print it as a line of JSON."""
    parser = argparse.ArgumentParser(description=f"Measure the STDP learning speed of {adapter.package}.")
    parser.add_argument("workload", help="file (.npz) that benchmarks/stdp.py wrote")
    parser.add_argument("--track", choices=("rule", "full"), required=True)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    with torch.no_grad():
        print(json.dumps(measure(adapter, load(arguments.workload), arguments.track, arguments.repeats)))


def measure(adapter: type[Adapter], workload: Workload, track: str, repeats: int) -> dict:
    """The figures of one library, workload and track."""
    scale = find_scale(adapter, workload) if track == "full" and adapter.calibrated else 1.0
    subject = adapter(workload, workload.weight * scale, scale, track)
    baseline = peak_memory()
    places = torch.zeros(workload.post.shape[-2:], dtype=torch.int64)

    def watch(post: Tensor) -> None:
        places.add_(post.reshape(-1, *post.shape[-2:]).sum(0, dtype=torch.int64))

    # The warm-up, which repeats the timed work bit for bit, is also the pass in which spikes are counted.
    subject.reset()
    if track == "rule":
        for post in workload.post:
            watch(post)
        subject.rule()
    else:
        subject.full(watch)
    learn = subject.rule if track == "rule" else partial(subject.full, None)
    seconds = []
    for _ in range(repeats):
        subject.reset()
        began = time.perf_counter()
        learn()
        seconds.append(time.perf_counter() - began)
    images = workload.pre.shape[1]
    return {
        "version": version(adapter.package),
        "torch": torch.__version__,
        "seconds": seconds,
        "peak_mib": peak_memory(),
        "setup_mib": baseline,
        "post_spikes_per_image": places.sum().item() / images,
        "updates_per_image": (places * synapses(workload)).sum().item() / images,
        "weights_changed": (subject.weight_now() != subject.start).float().mean().item(),
        "weight_scale": scale,
    }


def synapses(workload: Workload) -> Tensor:
    """Synapses of a neuron at each place (H, W); those that would fall on padding do not exist."""
    fan_in = torch.ones_like(workload.weight[:1])
    covered = torch.ones_like(workload.pre[0, :1], dtype=fan_in.dtype)
    return torch.nn.functional.conv2d(covered, fan_in, padding=workload.padding)[0, 0].round().long()


def find_scale(adapter: type[Adapter], workload: Workload) -> float:
    """Factor on the weights at which the library's neurons fire as often as this project's on the same images."""
    part = workload.first(CALIBRATION_IMAGES)
    target = part.post.sum().item()

    def count(scale: float) -> float:
        return adapter.count(part, workload.weight * scale)

    low = high = 1e-3
    while count(high) < target:
        low, high = high, 4 * high
        if high > 1e9:
            sys.exit(f"no weight scale gives {target} postsynaptic spikes")
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        spikes = count(middle)
        if abs(spikes - target) <= TOLERANCE * target:
            return middle
        low, high = (middle, high) if spikes < target else (low, middle)
    return middle


def fastest_group(step: Callable[[int], None], batch: int) -> int:
    """Images to hand to a library at a time: of :data:`GROUPS`, that with which one time step takes least."""

    def seconds(size: int) -> float:
        step(size)
        times = []
        for _ in range(3):
            began = time.perf_counter()
            step(size)
            times.append(time.perf_counter() - began)
        return min(times)

    return min({min(size, batch) for size in GROUPS}, key=seconds)


def peak_memory() -> float:
    """Largest resident memory of this process until now, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux's ru_maxrss starts at that of the process that started this one.
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
