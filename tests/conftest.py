"""A small run of all four stages on digits, made once, a small folder of images, and tests that need more than that."""

import os
import shutil
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

if find_spec("triton") and not torch.cuda.is_available():
    # Triton's interpreter runs the kernels of the GPU engine on the CPU, slowly. Whether it does is decided when they
    # are first imported; the engine offers itself only where the variable is set (tests/test_gpu_engine.py).
    os.environ["TRITON_INTERPRET"] = "1"
    import snn.engines.gpu.kernels  # noqa: F401

    del os.environ["TRITON_INTERPRET"]

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from bridge.convert import main as convert
from hybrid.evaluate import main as evaluate
from hybrid.storage import TrainedModel, load_model
from hybrid.train import main as train
from snn.data import Images, load_images
from snn.data_source import DataSource
from snn.learn import main as learn

LEARN = ["--data", "digits", "--limit-train", "200", "--maps", "6", "8", "--min-updates", "13"]
TRAIN = ["--data", "digits", "--limit-train", "300", "--width", "0.25", "--epochs", "2", "--batch-size", "32"]
CONTRAST = [
    *("--data", "digits", "--limit-train", "200", "--preset", "retina", "--maps", "6", "--kernel-sizes", "3"),
    *("--retina.kernel-size", "5", "--retina.patches", "2000", "--min-updates", "13"),
]
CONDITIONS = ["clean", "awgn:12", "salt-pepper:0.2"]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
"""Values of a test's parameter ``device``: the same body runs on the CPU everywhere, and on CUDA where there is one."""
EXTRAS = {
    "validation": ["brian2", "scipy"],
    "corruptions": ["imagecorruptions"],
    "export": ["onnx", "onnxscript", "onnxruntime", "nir", "nirtorch"],
    "reproduce": ["snakemake"],
    "docs": ["sphinx", "furo", "myst_nb", "sphinx_copybutton", "sphinx_design", "latex2mathml"],
}
"""Modules that each optional extra brings."""

# Neither tests nor processes that they start see this program's part of the user's cache; other programs' are as ever.
_own = tempfile.TemporaryDirectory(prefix="safe-dnn-tests-")
_users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
for entry in _users.iterdir() if _users.is_dir() else ():
    if entry.name != "safe-dnn":
        Path(_own.name, entry.name).symlink_to(entry)
os.environ["XDG_CACHE_HOME"] = _own.name
# Processes that tests start import the packages from where the tests do, whatever folder they run in.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent.parent), os.getenv("PYTHONPATH")]))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes an hour, unless it is asked for."""
    if "long" not in config.getoption("markexpr"):
        long = [item for item in items if item.get_closest_marker("long")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, with its reason, what cannot run here."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if item.get_closest_marker("needs_chromium") and not shutil.which("chromium"):
        pytest.skip("needs the browser Chromium: apt-get install chromium")
    for extra, modules in EXTRAS.items():
        lacking = [module for module in modules if find_spec(module) is None]
        if item.get_closest_marker(f"needs_{extra}") and lacking:
            pytest.skip(f"needs {', '.join(lacking)}: pip install '.[{extra}]'")


@dataclass(frozen=True)
class Pipeline:
    """Files of the small run."""

    folder: Path

    def __getattr__(self, name: str) -> Path:
        return self.folder / f"{name}.h5"

    @property
    def results(self) -> Path:
        return self.folder / "results.csv"


def run_pipeline(folder: Path) -> Pipeline:
    files = Pipeline(folder)
    assert learn([*LEARN, "--out", str(files.snn), "--json", str(folder / "snn.json")]) == 0
    assert convert([str(files.snn), "--out", str(files.frontend), "--images", "40"]) == 0
    assert train([*TRAIN, "--frontend", str(files.frontend), "--out", str(files.safe)]) == 0
    assert train([*TRAIN, "--variant", "baseline", "--out", str(files.baseline)]) == 0
    models = [str(files.safe), str(files.baseline)]
    assert evaluate([*models, "--noise", *CONDITIONS, "--out", str(files.results)]) == 0
    return files


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory) -> Pipeline:
    return run_pipeline(tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="session")
def contrast(tmp_path_factory) -> Pipeline:
    """Files snn and frontend of a layer behind a retina, with feed-forward inhibition once it has learned."""
    files = Pipeline(tmp_path_factory.mktemp("contrast"))
    assert learn([*CONTRAST, "--out", str(files.snn)]) == 0
    assert convert([str(files.snn), "--out", str(files.frontend), "--images", "60"]) == 0
    return files


@pytest.fixture(scope="module")
def models(pipeline) -> dict[str, TrainedModel]:
    """Those of the small run."""
    return {name: load_model(getattr(pipeline, name)) for name in ("safe", "baseline")}


@pytest.fixture(scope="module")
def digits() -> Images:
    """60 test images."""
    return load_images(DataSource(limit_test=60), "test", seed=0)


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """train/CLASS and test/CLASS with 12 and 5 digits of three classes, 8x8, grey PNG."""
    digits = load_digits()
    root = tmp_path / "images"
    for label, name in enumerate(("nought", "one", "two")):
        images = digits.images[digits.target == label]
        for split, part in (("train", images[:12]), ("test", images[12:17])):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number, image in enumerate(part):
                Image.fromarray((image * 15).astype(np.uint8)).save(folder / f"{number:02d}.png")
    return root
