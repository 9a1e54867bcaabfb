"""Everything worth knowing on a GPU, in one call of less than ten minutes.

    python -m benchmarks.gpu --out gpu.json     # on a machine with a GPU
    python -m benchmarks.gpu --plan             # anywhere: what the engine's kernels should take, computed

Parts, each in a process of its own:

- ceilings: the most that the card does a second of copies, matrix products and elementwise arithmetic;
- tests: the tests marked gpu;
- engine: the GPU engine's calls on all layers of preset cifar10, beside engine norse, and whole simulations beside the
  loop of a user of norse (as it is, compiled, as a CUDA graph) and SpikingJelly's CuPy neuron;
- pass: updates of each layer and their parts, and the pass over 50,000 images that they make;
- frontend: images/s of the converted front end, and of SAFE behind it;
- training: images/s of training steps, SAFE beside its baseline.

Each result is in ``--out`` as soon as it is there. A part that fails says why, and the next goes on. The same command
does again what failed or was stopped, and keeps the rest. The figure beside ``--out`` is the roofline: what each kernel
reached, below what the card can do.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import monotonic
from typing import Annotated, Any, Literal, get_args

import torch

from benchmarks.ceilings import measure_ceilings
from benchmarks.engine_costs import H100
from benchmarks.engine_plan import NETWORKS, frontend_speed, plan_pass
from benchmarks.gpu_engine import measure_engine, measure_pass
from benchmarks.gpu_networks import measure_frontend, measure_training
from benchmarks.gpu_report import (
    draw_roofline,
    measured_ceilings,
    print_part,
    print_plan,
    print_roofline,
    print_summary,
    roofline,
)
from benchmarks.gpu_setting import Setting
from benchmarks.gpu_tests import measure_tests
from benchmarks.jobs import NO_TIME, Job, Row, run_part
from snn.data import image_folders
from snn.data_source import DataSource, check_data
from snn.runtime.cli import RunOptions, check_left_out, run_command
from snn.runtime.errors import UserError, check
from snn.runtime.outputs import Outputs, beside, save_figure, write_json
from snn.runtime.provenance import git_commit, versions
from snn.runtime.ranges import Range, check_fields

PartName = Literal["ceilings", "tests", "engine", "pass", "frontend", "training"]
PARTS: tuple[PartName, ...] = get_args(PartName)
WEIGHTS: dict[PartName, int] = dict(zip(PARTS, (6, 24, 28, 22, 10, 10), strict=True))
"""How the time is shared; what a part leaves goes to those after it."""
WORK: dict[PartName, Callable[[Job, Setting], None]] = {
    "ceilings": measure_ceilings,
    "engine": measure_engine,
    "pass": measure_pass,
    "frontend": measure_frontend,
    "training": measure_training,
}
"""Part ``tests`` takes other arguments."""
SCHEMA = "safe-dnn benchmarks.gpu 1"
SAVE_EVERY = 1.0
"""Seconds between two states of a part in the file."""


@dataclass(frozen=True)
class GpuConfig:
    """Measure what a GPU does, or compute what it should."""

    out: Path | None = None
    """JSON file that keeps every part; the roofline is drawn beside it. Parts that it holds are not measured again."""
    parts: tuple[PartName, ...] = PARTS
    """What to measure, in this order."""
    seconds: Annotated[float, Range(1, 1e5, unit="s")] = 540.0
    """Time for all parts together."""
    data: str | None = None
    """Images to learn from, 32x32: cifar10 or folder:PATH; without it, smooth random ones."""
    tests: tuple[str, ...] = ("tests",)
    """Files and folders whose tests marked gpu are run."""
    tiny: bool = False
    """Try the code in sizes that take seconds, on the CPU if there is no GPU."""
    plan: bool = False
    """Measure nothing: compute what the kernels should take on an H100."""

    def __post_init__(self) -> None:
        check_fields(self)
        check(len(self.parts) > 0, "`parts`: give at least one")
        if self.data is not None:
            check_data("data", self.data)
        if self.plan:
            check_left_out(self, ("out", "parts", "seconds", "data", "tests", "tiny"), "`plan` measures nothing")

    @property
    def setting(self) -> Setting:
        """What the parts are given."""
        found = torch.cuda.is_available()
        check(found or self.tiny, "PyTorch finds no CUDA device: give `plan` to compute, or `tiny` to try the code")
        return Setting("cuda" if found else "cpu", self.tiny, self.data)


def describe(setting: Setting) -> Row:
    """The card and the programs, as a file records them."""
    packages: Row = dict(versions())
    for name in ("triton", "cupy", "spikingjelly"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    card: Row = {"name": "CPU"}
    if setting.on_gpu:
        found = torch.cuda.get_device_properties(0)
        card = {"name": found.name, "memory_bytes": found.total_memory, "multiprocessors": found.multi_processor_count}
        card |= {"capability": f"{found.major}.{found.minor}", "cuda": torch.version.cuda}
    return {"card": card, "versions": packages, "tiny": setting.tiny, "data": setting.data or "synthetic"}


class Results:
    """The parts that were measured, kept in a JSON file (None: only here)."""

    def __init__(self, path: Path | None, about: Row) -> None:
        self.path = path
        self.content: Row = {"schema": SCHEMA, **about, "parts": {}, "roofline": []}
        if path and path.exists():
            self.content["parts"] = self._earlier(path)["parts"]

    def _earlier(self, path: Path) -> Any:
        """What the file holds, of the same card, sizes and images."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"`out` {path}: it is no file of this command; give another name") from error
        same = isinstance(found, dict) and all(
            found.get(name) == self.content[name] for name in ("schema", "card", "tiny", "data")
        )
        check(same, f"`out` {path}: it holds something else, or results of another card or setting; give another name")
        return found

    @property
    def parts(self) -> dict[str, Row]:
        """By their names."""
        return self.content["parts"]

    def done(self, name: PartName) -> bool:
        """Whether the part was measured to its end, and nothing failed or found no time."""
        return (
            name in self.parts
            and not self.parts[name]["problem"]
            and not any("traceback" in row or row.get("note") == NO_TIME for row in self.rows(name))
        )

    def rows(self, name: PartName) -> list[Row]:
        """Of a part; none if it was not measured."""
        return self.parts[name]["rows"] if name in self.parts else []

    def save(self) -> None:
        """Write the file."""
        write_json(self.path, self.content)


def measure(name: PartName, seconds: float, config: GpuConfig, results: Results) -> None:
    """One part, within its time."""
    part: Row = {"commit": git_commit(), "seconds": 0.0, "problem": "not at its end", "rows": []}
    results.parts[name] = part
    began = saved = monotonic()

    def record(row: Row) -> None:
        nonlocal saved
        part["rows"].append(row)
        part["seconds"] = monotonic() - began
        if monotonic() - saved > SAVE_EVERY:
            results.save()
            saved = monotonic()

    try:
        if name == "tests":
            part["problem"] = run_part(measure_tests, seconds, record, config.tests)
        else:
            part["problem"] = run_part(WORK[name], seconds, record, config.setting)
    finally:
        part["seconds"] = monotonic() - began
        results.save()
    print_part(name, part)


def run(config: GpuConfig) -> None:
    """The command."""
    if config.plan:
        for preset in NETWORKS:
            print_plan(preset, plan_pass(preset, H100), H100)
            print(f"Preset {preset}: converted front end, at most {frontend_speed(preset, H100):,.0f} images/s\n")
        return
    setting = config.setting
    figure = beside(config.out, "_roofline.png") if config.out else None
    folders = image_folders(DataSource().override(data=config.data)) if config.data else []
    Outputs(config.out, options=RunOptions(), figures=[figure] if figure else [], inputs=folders)
    results, end = Results(config.out, describe(setting)), monotonic() + config.seconds
    waiting = [name for name in dict.fromkeys(config.parts) if not results.done(name)]
    for name in config.parts:
        if name not in waiting:
            print_part(name, results.parts[name])
    while waiting:
        share = WEIGHTS[waiting[0]] / sum(WEIGHTS[name] for name in waiting)
        measure(waiting.pop(0), max(1.0, share * (end - monotonic())), config, results)
    finish(results, figure)


def finish(results: Results, figure: Path | None) -> None:
    """Print, keep and draw the roofline of what was measured, and say what was written."""
    ceilings = results.rows("ceilings")
    most = measured_ceilings(ceilings)
    points = roofline(results.rows("engine"), most) if most else []
    if points:
        print_roofline(points)
        if figure:
            save_figure(draw_roofline(points, ceilings), figure)
    print_summary(results.parts)
    results.content["roofline"] = points
    results.save()
    if figure:
        print(f"wrote {results.path}" + (f", {figure}" if points else ""))


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m benchmarks.gpu``."""
    return run_command(GpuConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
