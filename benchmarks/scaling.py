"""How time and memory of learning grow with images, presentation time and positions: each by a factor of 16.

    python -m benchmarks.scaling --out scaling.csv

Each measurement is a process of its own: one layer of 32 maps learns on random images of three channels, with
mini-batches of 16. Memory is the process's peak less what it held before learning (programs, libraries and the images).
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch

from snn.learner import learn
from snn.learning import Learning
from snn.monitor import peak_memory
from snn.parameters import Encoding
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.outputs import Outputs, write_csv
from snn.runtime.progress import progress

ROOT = Path(__file__).resolve().parents[1]


class Case(NamedTuple):
    """One size of the problem."""

    grows: str
    images: int = 128
    presentation: float = 300.0
    """In ms."""
    side: int = 32
    """Of the square images, in pixels."""


CASES = (
    *(Case("images", images=n) for n in (128, 512, 2048)),
    *(Case("presentation", presentation=t) for t in (150.0, 600.0, 2400.0)),
    *(Case("positions", side=n) for n in (16, 32, 64)),
)


@dataclass(frozen=True)
class ScalingConfig:
    """Measure how learning scales."""

    out: Path | None = None
    """Also write the table to this CSV file."""


def measure(case: Case) -> dict[str, float]:
    """Seconds and MiB of one case, in this process."""
    size = (case.images, 3, case.side, case.side)
    images = torch.randint(256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    # The gain is set on the same few images in each case, so only learning grows.
    settings = Learning(maps=(32,), min_updates=1, encoding=Encoding(presentation=case.presentation))
    learn(images[:16], settings)
    before, began = 1024 * peak_memory(), perf_counter()
    learn(images, settings)
    return {"seconds": perf_counter() - began, "memory_mib": 1024 * peak_memory() - before, "before_mib": before}


def run(config: ScalingConfig) -> None:
    """The command: measure, print, write."""
    outputs = Outputs(config.out, options=RunOptions())
    rows = []
    for case in progress(CASES, "measuring", "case"):
        command = [sys.executable, "-m", "benchmarks.scaling", "--case", json.dumps(case)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        rows.append(case._asdict() | json.loads(done.stdout.splitlines()[-1]))
    print(
        "| grows | images | presentation (ms) | positions | s | ms per image | ns per image, step and position | MiB |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for row in rows:
        per_image, positions = row["seconds"] / row["images"], row["side"] ** 2
        steps = row["presentation"] / Encoding.dt
        print(
            f"| {row['grows']} | {row['images']} | {row['presentation']:g} | {positions} | {row['seconds']:.2f} "
            f"| {1e3 * per_image:.2f} | {1e9 * per_image / steps / positions:.1f} | {row['memory_mib']:.0f} |"
        )
    write_csv(config.out, rows)
    outputs.finish({})


if __name__ == "__main__":
    # --case is what the measuring processes are given.
    if sys.argv[1:2] == ["--case"]:
        print(json.dumps(measure(Case(*json.loads(sys.argv[2])))))
    else:
        sys.exit(run_command(ScalingConfig, run, None))
