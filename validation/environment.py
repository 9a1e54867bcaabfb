"""What this machine computes with, and whether it computes rightly: to read oneself, or to put into a report of a bug.

The checks take seconds and need no Brian2. The three other commands of this package compare far more.
"""

import os
import platform
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import h5py
import numpy as np
import torch
import tyro

from bridge.storage import load as load_frontend
from snn.engines.base import choose_engine
from snn.layer import SpikingConv2d
from snn.parameters import LayerParameters, LIFParameters
from snn.registries import ENGINES
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import UserError
from snn.runtime.memory import memory
from snn.runtime.outputs import Outputs
from snn.runtime.progress import progress
from snn.runtime.provenance import git_commit, versions
from snn.runtime.random import stream
from snn.runtime.threads import use_threads
from snn.spikes import as_dense
from snn.storage import load, load_network, save
from validation.report import Report

NETWORK = "pretrained:cifar10-retina"
IMAGES = 4
DT = 0.1
"""Of the single neuron, in ms."""
CURRENT = 100.0
"""That drives it, in the units of Eq. 1."""
VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "NUMBA_CACHE_DIR",
    "NUMBA_DISABLE_JIT",
    "HDF5_USE_FILE_LOCKING",
    "PYTHONHASHSEED",
    "PYTORCH_CUDA_ALLOC_CONF",
    "SLURM_JOB_ID",
)
"""Environment variables that change how things are computed, or where."""


@dataclass(frozen=True)
class EnvironmentConfig:
    """Print versions, devices and limits of this machine, and check that it computes what it should."""

    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)


def describe() -> dict[str, str]:
    """What the machine and its software are, by name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    devices = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    variables = (f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ)
    return {
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": platform.platform(),
        "processor": f"{platform.machine()}, {cores} cores, {torch.get_num_threads()} threads of PyTorch",
        "memory": f"{memory() / 2**30:.1f} GiB free for this process",
        "CUDA": f"{torch.version.cuda}: {', '.join(devices)}" if devices else "no device",
        "packages": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "HDF5 library": h5py.version.hdf5_version,
        "commit": git_commit(),
        "engines": ", ".join(ENGINES),
        "cache of compiled code": _cache(),
        "temporary folder": _folder(Path(tempfile.gettempdir())),
        "output": f"{sys.stdout.encoding}, {'a terminal' if sys.stdout.isatty() else 'no terminal'}",
        "variables": ", ".join(variables) or "none that matter",
    }


def _folder(folder: Path) -> str:
    return f"{folder} ({'can' if os.access(folder, os.W_OK) else 'cannot'} be written to)"


def _cache() -> str:
    from snn.engines import kernels

    caches = (getattr(function, "_cache", None) for function in vars(kernels).values())
    path = next(filter(None, (getattr(cache, "cache_path", None) for cache in caches)), None)
    return _folder(Path(path)) if path else "none: each process compiles anew"


def check_neuron(report: Report) -> None:
    """Interval between spikes of one neuron that a constant current drives, against the closed form."""
    lif = LIFParameters()
    expected = lif.interspike_interval(CURRENT)
    geometry = LayerParameters(maps=1, kernel_size=1, padding=0, pulse_width=DT)
    layer = SpikingConv2d(
        torch.ones(1, 1, 1, 1), torch.tensor([CURRENT]), torch.tensor([lif.v_threshold]), geometry, lif, DT
    )
    steps = round(10 * expected / DT)
    spikes = as_dense(choose_engine("norse").simulate(layer, torch.ones(steps, 1, 1, 1, 1).bool(), inhibition=False))
    intervals = np.diff(np.flatnonzero(spikes.flatten().numpy())) * DT
    off = float(np.abs(intervals - expected).max()) if len(intervals) else float("nan")
    report.add(
        "interval between spikes of a neuron, norse and closed form",
        f"{off:.3f} ms apart",
        f"{DT} ms, the time step",
        off <= DT,
        of=len(intervals),
        figures=[off],
    )


def check_engines(report: Report, device: torch.device, seed: int) -> None:
    """Spikes of a learned layer, which all engines and numbers of threads give to the last bit."""
    network = load(NETWORK)
    generator = stream(seed, "environment")
    images = torch.randint(0, 256, (IMAGES, *network.input_shape), generator=generator, dtype=torch.uint8)
    seeds = torch.arange(IMAGES)

    def spikes(name: str, where: torch.device) -> torch.Tensor:
        engine = choose_engine(name, where)
        placed = network.to(where)
        layers = placed.simulate(engine, placed.encode(engine, images.to(where), seeds.to(where)))
        return as_dense(layers[-1]).cpu()

    with use_threads(1):
        reference = spikes("norse", torch.device("cpu"))
    total = int(reference.sum())
    for name in ENGINES:
        for where in {torch.device("cpu"), device}:
            if ENGINES[name]().preference(where.type) > 0:
                with use_threads(2):
                    differing = int((spikes(name, where) != reference).sum())
                report.add(
                    f"spikes of engine {name} on {where.type} and of norse on one thread",
                    f"{differing} of {total} differ",
                    "0",
                    differing == 0,
                    of=total,
                )


def check_front_end(report: Report, device: torch.device, seed: int) -> None:
    """Features of a front end, which do not depend on threads, batches or devices."""
    frontend = load_frontend(NETWORK)
    images = torch.rand(IMAGES, *frontend.spec.input_shape, generator=stream(seed, "environment"))
    with torch.no_grad():
        with use_threads(1):
            reference = torch.cat([frontend(image[None]) for image in images])
        with use_threads(2):
            found = frontend.to(device)(images.to(device)).cpu()
    differing = int((found != reference).sum())
    report.add(
        f"features of a front end, image by image and as a batch on {device.type}",
        f"{differing} of {reference.numel()} differ",
        "0",
        differing == 0,
        of=int((reference > 0).sum()),
    )


def check_files(report: Report) -> None:
    """A network that is written is read back, and one changed bit is noticed."""
    network, source, _ = load_network(NETWORK)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snn.h5"
        again = save(network, path, source)
        read = load_network(path).digest
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        try:
            load_network(path)
            noticed = False
        except UserError:
            noticed = True
    report.add(
        "a file written and read again, and with one bit changed",
        f"digest {'as before' if again == read else 'changed'}, change {'noticed' if noticed else 'not noticed'}",
        "as before, noticed",
        again == read and noticed,
        of=1,
    )


def run(config: EnvironmentConfig) -> int:
    """The command: describe, check, report."""
    outputs = Outputs(options=config.options)
    described = describe()
    width = max(map(len, described))
    for name, value in described.items():
        print(f"{name:{width}}  {value}")
    device = choose_device(config.options.device)
    report = Report("validation.environment")
    checks = (
        lambda: check_neuron(report),
        lambda: check_engines(report, device, config.options.seed),
        lambda: check_front_end(report, device, config.options.seed),
        lambda: check_files(report),
    )
    for check in progress(checks, "checking", "check"):
        check()
    return report.close(outputs, {"environment": described})


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m validation.environment``."""
    return run_command(EnvironmentConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
