"""STDP learning speed on the CPU: this project against SpikingJelly, BindsNET and norse.

    python -m benchmarks.stdp --workloads B C --batches 1 16 64 --tracks rule full --out stdp.csv

Track ``rule`` gives every library the same pre- and postsynaptic spikes and times the STDP rule over all steps;
track ``full`` times a complete learning step: neurons simulated on the same input, plus the rule. Peers have no
inhibition between maps; their weights are scaled, untimed, until they fire as often as this project's layer.

Each measurement is a process of its own, and each peer has its own environment, here in the default place:

    python3 -m venv benchmarks/.envs/norse && benchmarks/.envs/norse/bin/pip install torch torchvision norse

With ``--presets --data folder:cifar10`` it times instead the first layers of the presets cifar10 and retina as
``snn.learn`` learns them, encoder, retina and homeostasis included.

An update is a pairing that the rule evaluates: a postsynaptic spike and one existing synapse of that neuron. The
weights of a batch are held by this project until its end, and moved after every time step by the peers.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro

from benchmarks.peers.protocol import Workload, save
from benchmarks.presets import learning_speed, learning_table
from benchmarks.safe_dnn_stdp import layer_spikes, starting_gain
from snn.data import image_folders, load_images
from snn.data_source import DataSource
from snn.image_cache import Caching
from snn.runtime.cli import check_left_out, run_command
from snn.runtime.errors import check
from snn.runtime.outputs import check_outputs, write_csv
from snn.runtime.progress import progress

ROOT = Path(__file__).resolve().parents[1]
OURS = "safe_dnn"
PACKAGES = {"spikingjelly": "torch spikingjelly", "bindsnet": "torch torchvision bindsnet", "norse": "torch norse"}
STEPS = 100
DT = 2.5
"""Time step, in ms."""
SIDE = 32
RATE_LIMITS = (10.0, 30.0)
"""Lowest and highest rate of the input, in Hz."""
GAIN_IMAGES = 8
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
"""Of every measurement: no GPU, and freed memory is kept (glibc), without which libraries that make large tensors at
every step spend up to half of their time on page faults."""
TOLERANCE = 0.1
"""Largest departure of a peer's spike count from ours that is not reported."""
SLOW = 60.0
"""Seconds a repeat from which the table says that the library is slow."""

Peer = Literal["spikingjelly", "bindsnet", "norse"]
Track = Literal["rule", "full"]
WorkloadName = Literal["B", "C"]


@dataclass(frozen=True)
class Shape:
    """A layer of the benchmark; kernel 3 x 3, padding 1, stride 1."""

    inputs: int
    maps: int
    regular: bool
    """Regular trains of 10 to 30 Hz, drawn for each pixel; else 5 % of all neurons at each step."""


SHAPES = {"B": Shape(3, 32, True), "C": Shape(32, 40, False)}


@dataclass(frozen=True)
class BenchmarkConfig:
    """Measure STDP learning speed on the CPU, beside peer libraries."""

    workloads: tuple[WorkloadName, ...] = ("B", "C")
    """B: 3 x 32 x 32 to 32 maps, regular trains; C: 32 x 32 x 32 to 40 maps, 5 % spikes. Both 100 steps, kernel 3."""
    batches: tuple[int, ...] = (1, 16, 64)
    """Images learned at once."""
    tracks: tuple[Track, ...] = ("rule", "full")
    """rule: STDP on given spikes; full: neurons and STDP."""
    peers: tuple[Peer, ...] = ("spikingjelly", "bindsnet", "norse")
    """Libraries beside this project."""
    peer_python: tuple[str, ...] = ()
    """NAME=PATH of a peer's interpreter; default benchmarks/.envs/NAME/bin/python."""
    repeats: int = 5
    """Timed repeats after a warm-up."""
    threads: int = 2
    """Threads of each library."""
    time_limit: float = 3600.0
    """Seconds after which a measurement is given up."""
    seed: int = 0
    """Seed of all spikes and weights."""
    presets: bool = False
    """Time the first layers of presets on images of --data, and no other library."""
    out: Path | None = None
    """Also write every repeat to this CSV file."""
    data_source: Annotated[DataSource, tyro.conf.arg(name="")] = field(default_factory=DataSource)
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)

    def __post_init__(self) -> None:
        check(len(self.batches) > 0 and min(self.batches) >= 1, f"`batches` {self.batches}: expected 1 or more")
        check(self.repeats >= 5, f"`repeats` {self.repeats}: a median and range need 5 or more")
        check(self.threads >= 1, f"`threads` {self.threads}: expected 1 or more")
        check(self.time_limit > 0, f"`time_limit` {self.time_limit}: must be positive")
        check(0 <= self.seed < 2**32, f"`seed` {self.seed}: expected a whole number from 0 to {2**32 - 1}")
        if self.presets:
            of_peers = ("workloads", "batches", "tracks", "peers", "peer_python", "time_limit")
            check_left_out(self, of_peers, "`presets` times no other library")
        else:
            check_left_out(self, ("data_source", "caching"), "only `presets` takes images")

    def interpreters(self) -> dict[str, Path]:
        """Where each peer's Python is, whether it exists or not."""
        given = dict(self._parse(entry) for entry in self.peer_python)
        return {name: given.get(name, ROOT / "benchmarks" / ".envs" / name / "bin" / "python") for name in self.peers}

    def _parse(self, entry: str) -> tuple[str, Path]:
        name, _, path = entry.partition("=")
        check(name in PACKAGES and path, f"`peer_python` {entry}: expected NAME=PATH, NAME of {', '.join(PACKAGES)}")
        check(os.access(path, os.X_OK) and Path(path).is_file(), f"`peer_python` {entry}: no program at {path}")
        # An environment's interpreter is a link that must not be followed.
        return name, Path(path).absolute()


@dataclass(frozen=True)
class Result:
    """One measurement; ``figures`` as printed by the adapter, ``problem`` in their place if it failed."""

    subject: str
    """Library that was measured."""
    workload: str
    batch: int
    track: str
    figures: dict = field(default_factory=dict)
    problem: str = ""

    @property
    def median(self) -> float:
        """Images per second; the time of the median repeat, whatever the number of repeats."""
        return self.batch / statistics.median(self.figures["seconds"])


def input_spikes(shape: Shape, image: int, seed: int) -> np.ndarray:
    """Spikes of one image, bool (T, C, H, W); the same whatever the batch it is in."""
    rng = np.random.default_rng([seed, shape.inputs, image])
    size = (shape.inputs, SIDE, SIDE)
    if not shape.regular:
        return rng.random((STEPS, *size), dtype=np.float32) < 0.05
    per_step = rng.uniform(*RATE_LIMITS, size) * DT / 1000
    phase = rng.random(size)
    counts = np.floor(per_step * np.arange(STEPS + 1)[:, None, None, None] + phase)
    return np.diff(counts, axis=0) > 0


def make_workload(name: str, batch: int, seed: int) -> Workload:
    """Spikes of ``batch`` images, the layer, and what it fires on them."""
    shape = SHAPES[name]
    rng = np.random.default_rng([seed, shape.maps])
    weight = torch.from_numpy(rng.uniform(0.2, 0.8, (shape.maps, shape.inputs, 3, 3)).astype(np.float32))
    images = max(batch, GAIN_IMAGES)
    pre = torch.from_numpy(np.stack([input_spikes(shape, image, seed) for image in range(images)], axis=1))
    # The gain is found on the same images for all batches, so that an image has about as many spikes in each.
    gain = starting_gain(weight, 1, DT, pre[:, :GAIN_IMAGES], seed)
    pre = pre[:, :batch].contiguous()
    post = layer_spikes(weight, gain, 1, DT, pre, seed)
    return Workload(pre, post, weight, gain, padding=1, dt=DT, rate_limits=RATE_LIMITS)


def find_peers(config: BenchmarkConfig) -> tuple[dict[str, list[str]], list[str]]:
    """Commands of the libraries that can be run, and lines on those that cannot."""
    commands, missing = {OURS: [sys.executable, "-m", "benchmarks.safe_dnn_stdp"]}, []
    for name, python in config.interpreters().items():
        query = f"from importlib.metadata import version; version('torch'); version('{name}')"
        try:
            installed = not subprocess.run([python, "-c", query], capture_output=True, check=False).returncode
        except OSError:
            installed = False
        if installed:
            commands[name] = [str(python), str(ROOT / "benchmarks" / "peers" / f"{name}_stdp.py")]
        else:
            folder = f"benchmarks/.envs/{name}"
            remedy = f"python3 -m venv {folder} && {folder}/bin/pip install {PACKAGES[name]}"
            missing.append(f"{name}: not installed in {python}; remedy: {remedy}")
    return commands, missing


def run_adapter(command: list[str], file: Path, track: str, config: BenchmarkConfig) -> tuple[dict, str]:
    """The figures that one process prints, or a problem."""
    arguments = ["--track", track, "--repeats", str(config.repeats), "--threads", str(config.threads)]
    settings = {name: str(config.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")} | ENVIRONMENT
    try:
        done = subprocess.run(
            [*command, str(file), *arguments],
            cwd=ROOT,
            env=os.environ | settings,
            capture_output=True,
            text=True,
            timeout=config.time_limit,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {}, f"given up after {config.time_limit:g} s"
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {}, f"failed with exit status {done.returncode}: {last}"
    return json.loads(lines[-1]), ""


def measure_all(config: BenchmarkConfig, commands: dict[str, list[str]]) -> list[Result]:
    """Every measurement, one after another."""
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in config.workloads:
            for batch in config.batches:
                file = Path(folder) / f"{name}{batch}.npz"
                save(str(file), make_workload(name, batch, config.seed))
                runs = [(track, library) for track in config.tracks for library in commands]
                for track, library in progress(runs, f"workload {name}, batch {batch}", "measurement"):
                    figures, problem = run_adapter(commands[library], file, track, config)
                    results.append(Result(library, name, batch, track, figures, problem))
                file.unlink()
    return results


def table(results: list[Result]) -> str:
    """All results in Markdown."""
    lines = [
        "| workload | batch | track | library | images/s (range) | steps/s | peak MiB (before learning) "
        "| post spikes/image | updates/image | weights changed | note |",
        "|---|---:|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    targets = {
        (r.workload, r.batch): r.figures["post_spikes_per_image"] for r in results if r.subject == OURS and r.figures
    }
    for r in results:
        start = f"| {r.workload} | {r.batch} | {r.track} | {r.subject} |"
        if r.problem:
            lines.append(f"{start} | | | | | | {r.problem.replace('|', '/')} |")
            continue
        f, speeds = r.figures, [r.batch / seconds for seconds in r.figures["seconds"]]
        lines.append(
            f"{start} {r.median:.3g} ({min(speeds):.3g} to {max(speeds):.3g}) | {r.median * STEPS:.3g} "
            f"| {f['peak_mib']:.0f} ({f['setup_mib']:.0f}) | {f['post_spikes_per_image']:.0f} "
            f"| {f['updates_per_image']:.4g} | {f['weights_changed']:.1%} "
            f"| {note(r, targets.get((r.workload, r.batch)))} |"
        )
    return "\n".join(lines)


def note(result: Result, target: float | None) -> str:
    """What a reader must know to trust a row."""
    notes, seconds = [], statistics.median(result.figures["seconds"])
    if seconds > SLOW:
        notes.append(f"{seconds:.0f} s a repeat")
    if target and abs(result.figures["post_spikes_per_image"] / target - 1) > TOLERANCE:
        notes.append("spike count not within 10 % of ours")
    if result.figures["weights_changed"] == 0:
        notes.append("learned nothing")
    return ", ".join(notes)


def ratios(results: list[Result]) -> str:
    """This project's speed over the fastest peer's, in Markdown."""
    lines = ["| workload | batch | track | fastest peer | ours / fastest peer |", "|---|---:|---|---|---:|"]
    for ours in results:
        if ours.subject != OURS or ours.problem:
            continue
        case = (ours.workload, ours.batch, ours.track)
        peers = [
            r
            for r in results
            # A run that learned nothing does not compete.
            if (r.workload, r.batch, r.track) == case and r.subject != OURS and r.figures.get("weights_changed")
        ]
        if peers:
            best = max(peers, key=lambda r: r.median)
            lines.append(f"| {' | '.join(map(str, case))} | {best.subject} | {ours.median / best.median:.3g} |")
    return "\n".join(lines)


def rows(results: list[Result]) -> list[dict]:
    """One for each repeat."""
    same = ("peak_mib", "setup_mib", "post_spikes_per_image", "updates_per_image", "weights_changed", "weight_scale")
    found = []
    for r in results:
        for repeat, seconds in enumerate(r.figures.get("seconds", ())):
            speed = r.batch / seconds
            case = {"library": r.subject, "version": r.figures["version"], "torch": r.figures["torch"]}
            case |= {"workload": r.workload, "batch": r.batch, "track": r.track, "repeat": repeat, "seconds": seconds}
            case |= {"images_per_s": speed, "steps_per_s": speed * STEPS}
            found.append(case | {name: r.figures[name] for name in same})
    return found


def run(config: BenchmarkConfig) -> None:
    """The command: measure, print, write."""
    check_outputs(config.out, inputs=image_folders(config.data_source))
    torch.set_num_threads(config.threads)
    if config.presets:
        images = load_images(config.data_source, "train", config.seed, cache=config.caching.cache).images
        measured = learning_speed(images, config.repeats, config.seed)
        print(learning_table(measured), f"\n{config.threads} threads, {config.repeats} repeats", sep="\n")
    else:
        measured = measure_libraries(config)
    if config.out is not None and measured:
        write_csv(config.out, measured)
        print(f"wrote {config.out}")


def measure_libraries(config: BenchmarkConfig) -> list[dict]:
    """Measure this project beside its peers, print tables, return a row for each repeat."""
    commands, missing = find_peers(config)
    results = measure_all(config, commands)
    versions = {f"{r.subject} {r.figures['version']} (torch {r.figures['torch']})": None for r in results if r.figures}
    print(table(results), ratios(results), "", sep="\n\n", end="")
    print(f"{', '.join(versions)}; {config.threads} threads, {config.repeats} repeats, seed {config.seed}")
    for line in missing:
        print(line)
    return rows(results)


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m benchmarks.stdp``."""
    return run_command(BenchmarkConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
