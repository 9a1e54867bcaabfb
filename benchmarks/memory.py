"""Memory of each stage on a mapped set of images, and on one ten times as large.

    python -m benchmarks.memory --out memory.csv

Each measurement is a process of its own, which learns, converts, trains or evaluates with generated images that lie in
a file. Two peaks tell how it went. *Anonymous* memory is what the process has allocated itself: a copy of the images
would be here. *Resident* memory also has the pages of files that are mapped, which the system takes back when it needs
them. Below the table stands the time that one core needs to decode a photograph (a JPEG file of 500 x 375 pixels, made
from smooth noise) to 224 x 224 pixels, from which docs/guides/scale.md plans larger sets.
"""

import json
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from time import process_time
from typing import Annotated, NamedTuple

import numpy as np
import torch
from PIL import Image

from bridge.conversion import convert
from hybrid.architecture import Architecture, baseline
from hybrid.evaluation import evaluate
from hybrid.printing import print_table
from hybrid.recipe import Recipe
from hybrid.training import train
from snn.data import Images, as_images
from snn.image_files import read_image
from snn.learner import learn
from snn.learning import Learning
from snn.parameters import Encoding
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.outputs import Outputs, write_csv
from snn.runtime.progress import progress
from snn.runtime.ranges import COUNT, Range, check_fields
from snn.storage import images_digest

ROOT = Path(__file__).resolve().parents[1]
CLASSES = tuple("0123456789")
LEARNING = Learning(maps=(8,), strides=(2,), min_updates=1, encoding=Encoding(presentation=60.0), output_rate=20.0)
"""Short presentations: memory is measured, not what is learned."""
CONVERTED = 256
"""Images on which responses are simulated, as bridge.convert takes them."""
INTERVAL = 0.005
"""Seconds between two looks at the memory."""
PHOTOGRAPH, DECODED, PHOTOGRAPHS = (500, 375), 224, 50
"""Width and height of a photograph, side after decoding, and how many are decoded."""


@dataclass(frozen=True)
class MemoryConfig:
    """Measure how memory grows with the images."""

    images: Annotated[int, COUNT] = 4000
    """Generated images of the smaller set."""
    times: Annotated[int, Range(2, 1000)] = 10
    """Size of the larger set, in smaller ones."""
    side: Annotated[int, Range(32, 1024, unit="pixels")] = 32
    """Height and width of the images."""
    out: Path | None = None
    """Also write the table to this CSV file."""

    def __post_init__(self) -> None:
        check_fields(self)


class Case(NamedTuple):
    """What a measuring process does."""

    stage: str
    file: str
    """Holds the images."""
    images: int
    side: int


def learning(data: Images) -> None:
    """What ``snn.learn`` does with images."""
    images_digest(data.images)
    learn(data, LEARNING)


def conversion(data: Images) -> None:
    """What ``bridge.convert`` does."""
    chosen = data.images[torch.linspace(0, len(data.labels) - 1, CONVERTED).long()]
    network = learn(chosen, LEARNING)
    convert(network, chosen)


def training(data: Images) -> None:
    """What ``hybrid.train`` does."""
    recipe = Recipe(epochs=1, batch_size=128, first_layer="whitening")
    train(data, Architecture("fast_cnn", "baseline", width=0.1), recipe)


def evaluation(data: Images) -> None:
    """What ``hybrid.evaluate`` does."""
    network = baseline(data.shape, "fast_cnn", CLASSES, width=0.1)
    evaluate(network, data, ["clean", "awgn:20", "fgsm:4"], attack_model=network)


STAGES = {"learning": learning, "conversion": conversion, "training": training, "evaluation": evaluation}


class Watch:
    """Peak of the anonymous memory in MiB, looked at again and again by a thread."""

    def __init__(self) -> None:
        self.peak, self._ended = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(INTERVAL):
            self.peak = max(self.peak, status("RssAnon"))


def status(name: str) -> float:
    """A figure of this process's memory that Linux tells, in MiB."""
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024


def measure(case: Case) -> dict[str, float]:
    """Peaks in MiB, and seconds of processor time, of a stage in this process."""
    pixels = np.memmap(case.file, np.uint8, "r", shape=(case.images, 3, case.side, case.side))
    data = Images(as_images(pixels), torch.arange(case.images) % len(CLASSES), CLASSES)
    began = process_time()
    with Watch() as watch:
        STAGES[case.stage](data)
    seconds = process_time() - began
    return {"seconds": seconds, "anonymous_mib": watch.peak, "resident_mib": status("VmHWM")}


def generate(file: Path, count: int, side: int) -> None:
    """Write random images, uint8 (count, 3, side, side)."""
    random = np.random.default_rng(0)
    with file.open("wb") as out:
        for _ in range(count):
            out.write(random.bytes(3 * side**2))


def decoding_milliseconds(folder: Path) -> float:
    """Milliseconds of one core to read and resize a photograph."""
    random, files = np.random.default_rng(0), []
    for number in range(PHOTOGRAPHS):
        coarse = random.integers(0, 256, (48, 64, 3), np.uint8)
        photograph = np.asarray(Image.fromarray(coarse).resize(PHOTOGRAPH, Image.Resampling.BICUBIC)).astype(np.int16)
        grain = random.integers(-16, 17, photograph.shape, np.int16)
        files.append(folder / f"{number}.jpg")
        Image.fromarray((photograph + grain).clip(0, 255).astype(np.uint8)).save(files[-1], quality=90)
    read_image(files[0], DECODED)
    began = process_time()
    for file in files:
        read_image(file, DECODED)
    return 1e3 * (process_time() - began) / len(files)


def run(config: MemoryConfig) -> None:
    """The command: generate, measure, print, write."""
    outputs = Outputs(config.out, options=RunOptions())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        file, counts = Path(folder) / "images", (config.images, config.times * config.images)
        generate(file, counts[-1], config.side)
        cases = [Case(stage, str(file), count, config.side) for stage in STAGES for count in counts]
        for case in progress(cases, "measuring", "case"):
            command = [sys.executable, "-m", "benchmarks.memory", "--case", json.dumps(case)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            rows.append(
                {"stage": case.stage, "images": case.images, "images_mib": case.images * 3 * case.side**2 / 2**20}
                | json.loads(done.stdout.splitlines()[-1])
            )
        decoding = decoding_milliseconds(Path(folder))
    lines = [[row["stage"], f"{row['images']}", *(f"{row[name]:.0f}" for name in list(row)[2:])] for row in rows]
    headings = ("stage", "images", "images (MiB)", "processor (s)", "peak anonymous (MiB)", "peak resident (MiB)")
    print_table("Memory of each stage on a mapped set of images", headings, lines)
    print(f"one core decodes a photograph to {DECODED}x{DECODED} pixels in {decoding:.1f} ms")
    write_csv(config.out, rows)
    outputs.finish({"rows": rows, "decoding_ms": decoding})


if __name__ == "__main__":
    # --case is what the measuring processes are given.
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure(Case(*json.loads(sys.argv[2])))))
    else:
        sys.exit(run_command(MemoryConfig, run, None))
