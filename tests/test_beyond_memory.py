"""Sets of images larger than the memory that may be taken: each stage reads them from a mapped file.

Each stage runs in a process of its own. On a few images it first loads and compiles what it needs; then the system
allows it less memory than the images take, of which the pages of a mapped file are no part (RLIMIT_DATA).
"""

import ctypes
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hybrid
import snn
from hybrid.network import Normalise
from snn.data import Images
from snn.parameters import Encoding, RetinaParameters
from snn.retina import learn_retina
from snn.storage import images_digest
from snn.subset import Subset

SHAPE = (3, 16, 16)
FEW, MOST = 600, 500_000
"""Images before the limit, and in the file."""
SHARE = 0.5
"""Of the images' bytes: what may be taken under the limit."""
CLASSES = tuple("0123456789")
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's limit of private memory")


class Tiny(nn.Module):
    """Images (B, 3, H, W) to logits: what is measured is memory."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.head = nn.Linear(8, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(images).relu().mean((2, 3)))


@hybrid.register_backbone("tiny")
class TinyAdapter(hybrid.Adapter[Tiny]):
    stem, head, strides = "stem", "head", (4, 4)

    def build(self, classes: int, width: float) -> Tiny:
        return Tiny(classes)

    def use_small_strides(self, network: Tiny) -> None:
        pass

    def drop_stem(self, network: Tiny, channels: int, stride: int) -> None:
        network.stem = nn.Conv2d(channels, 8, 3, stride, padding=1)


LEARNING = snn.Learning(
    maps=(2,), strides=(4,), min_updates=1, batch_size=64, calibration_images=8, encoding=Encoding(presentation=60.0),
    output_rate=20.0,
)  # fmt: skip


def learn(data: Images) -> str:
    network = snn.learn(data, LEARNING)
    return images_digest(network.layers[0].layer.conductance)


def look_at_all(data: Images) -> str:
    """What is done once with all images, whoever learns or trains."""
    retina = learn_retina(data.images, RetinaParameters("whiten", kernel_size=3, patches=1000), seed=0)
    images_digest(data.images)
    normalise = Normalise(SHAPE[0])
    normalise.measure(part.images for part in Subset(data, torch.arange(1, len(data.labels))).portions())
    return str([retina.filters.tolist(), normalise.mean.tolist()])


def train(data: Images, workers: int = 0) -> str:
    recipe = hybrid.Recipe(epochs=1, batch_size=128, holdout=0.3, first_layer="whitening")
    hardware = hybrid.Hardware(threads=1, workers=workers)
    model = hybrid.train(data, hybrid.Architecture("tiny", "baseline"), recipe, hardware=hardware)
    return images_digest(torch.cat([values.flatten() for values in model.network.state_dict().values()]))


def evaluate(data: Images) -> str:
    torch.manual_seed(0)
    network = Tiny(len(CLASSES))
    rows = torch.arange(1, len(data.labels))
    results = [
        hybrid.evaluate(network, part, ["clean", "awgn:20", "fgsm:4"], attack_model=network, mirror=True)
        for part in (data, Subset(data, rows))
    ]
    assert [result[0]["images"] for result in results] == [len(data.labels), len(rows)]
    return json.dumps([row["correct"] for result in results for row in result])


STAGES = {
    "look at all": (look_at_all, MOST),
    "learn": (learn, 50_000),
    "train": (train, 100_000),
    "train with workers": (lambda data: train(data, workers=2), 100_000),
    "evaluate": (evaluate, 50_000),
}
"""Each with the number of images under the limit."""


def mapped(file: Path, count: int) -> Images:
    """The first ``count`` images of a file."""
    pixels = np.memmap(file, np.uint8, "r", shape=(count, *SHAPE))
    return Images(snn.data.as_images(pixels), torch.arange(count) % len(CLASSES), CLASSES)


def taken() -> int:
    """Bytes of private memory that this process may write to."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmData:")[1].split()[0])


def run_stage(name: str, file: Path) -> str:
    """Result of a stage on all images, under the limit."""
    import resource

    stage, count = STAGES[name]
    # Stacks of threads count, too: readers have one each.
    threading.stack_size(2**19)
    stage(mapped(file, FEW))
    # What the first run has freed goes back to the system: no copy may hide in it.
    ctypes.CDLL(None).malloc_trim(0)
    data = mapped(file, count)
    limit = taken() + int(SHARE * data.images.nbytes)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))
    return stage(data)


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Random images, and random ones that share a tint, so that classes differ."""
    path, random = tmp_path_factory.mktemp("set") / "images", np.random.default_rng(0)
    with path.open("wb") as out:
        for first in range(0, MOST, 1000):
            images = random.integers(0, 256, (1000, *SHAPE), np.uint8)
            images[:, 0] //= (1 + np.arange(first, first + 1000) % len(CLASSES))[:, None, None].astype(np.uint8)
            out.write(images.tobytes())
    return path


@LINUX
@pytest.mark.slow
@pytest.mark.parametrize("name", STAGES)
def test_a_stage_does_not_hold_the_images(name, file):
    command = [sys.executable, __file__, name, str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    print(run_stage(sys.argv[1], Path(sys.argv[2])))
