"""No command writes among the images that it reads."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.features import main as features
from benchmarks.frontend import main as frontend
from benchmarks.recipe import main as recipe
from benchmarks.stdp import main as stdp
from bridge.convert import main as convert
from hybrid.classify import main as classify
from hybrid.embedding import main as embedding
from hybrid.evaluate import main as evaluate
from hybrid.export import main as export
from hybrid.margins import main as margins
from hybrid.report import main as report
from hybrid.reproduce import main as reproduce
from hybrid.ship import main as ship
from hybrid.storage import save_model
from hybrid.swap import main as swap
from hybrid.train import main as train
from snn.data_source import DataSource
from snn.learn import main as learn

PLACES = {
    "image": "images/train/one/00.png",
    "new": "images/train/one/new.png",
    "top": "images/new.png",
    "linked": "elsewhere/deep/new.png",
    "around": "images/../other/../images/test/new.png",
    "behind a link": "link/new.png",
}
"""Places in the folder of images, by what is special about each."""


@pytest.fixture
def place(image_folder, tmp_path):
    """The folder in which :data:`PLACES` lie: of the images, some lie behind a link."""
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "elsewhere" / "deep" / "0.png")
    (image_folder / "train" / "two" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "other").mkdir()
    (tmp_path / "link").symlink_to(image_folder / "train")
    return tmp_path


def contents(folder: Path) -> dict[Path, bytes | None]:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(place, capsys):
    """Call a command; expect one line that names output and folder, exit status 2, and that nothing has changed."""

    def call(main, *arguments: object, out: Path, folder: Path | None = None) -> None:
        before = contents(place)
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert f"cannot write {out}: " in line
        assert f"it lies in {folder}" in line if folder else "whose files this command reads" in line
        assert contents(place) == before

    return call


@pytest.fixture
def arguments(pipeline, place):
    """For each command that reads images: the command, and its flags but for its outputs."""
    data = ["--data", f"folder:{place / 'images'}"]
    model = pipeline.folder / "on-folder.h5"

    def on_folder(models) -> Path:
        source = DataSource(f"folder:{place / 'images'}")
        save_model(model, replace(models["safe"], data_source=source), "test", "")
        return model

    return lambda models: {
        "learn": (learn, data),
        "convert": (convert, [pipeline.snn, *data]),
        "train": (train, [*data, "--variant", "baseline"]),
        "evaluate": (evaluate, [pipeline.safe, *data]),
        "evaluate what was trained on it": (evaluate, [on_folder(models)]),
        "evaluate held-out": (evaluate, [on_folder(models), "--split", "held-out"]),
        "swap": (swap, [on_folder(models), "--frontend", pipeline.frontend]),
        "classify": (classify, [pipeline.safe, place / "images"]),
        "embedding": (embedding, [pipeline.safe, *data]),
        "margins": (margins, [pipeline.frontend, *data]),
        "ship": (ship, [pipeline.safe, *data]),
        "export": (export, [on_folder(models), "--int8"]),
        "report": (report, [on_folder(models)]),
        "features": (features, data),
        "frontend": (frontend, ["--snn", pipeline.snn, *data]),
        "recipe": (recipe, data),
        "stdp": (stdp, ["--presets", *data]),
    }


COMMANDS = (
    *("learn", "convert", "train", "evaluate", "evaluate what was trained on it", "evaluate held-out"),
    *("swap", "classify", "embedding", "margins", "ship", "features", "frontend", "recipe", "stdp"),
    *("export", "report"),
)
SUFFIX = {"export": ".onnx", "report": ".html"}
"""Of ``--out``, where it must have one that no image has."""


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_refuse_to_write_among_the_images_they_read(refused, arguments, models, place, command):
    main, given = arguments(models)[command]
    out = place / PLACES["new" if command in SUFFIX else "image"]
    out = out.with_suffix(SUFFIX.get(command, ".png"))
    # The table beside a picture is the first of two outputs.
    named = out.with_suffix(".csv") if command == "embedding" else out
    refused(main, *given, "--out", out, out=named, folder=place / "images")


@pytest.mark.parametrize("where", PLACES)
def test_every_place_among_the_images_is_refused_for_every_output(refused, pipeline, place, where):
    out, data = place / PLACES[where], ["--data", f"folder:{place / 'images'}"]
    refused(learn, *data, "--out", out, out=out)
    refused(learn, *data, "--out", place / "fine.h5", "--json", out, out=out)
    refused(evaluate, pipeline.safe, *data, "--out", out, out=out)


def test_the_folder_of_a_training_is_not_that_of_the_images(place, capsys):
    (place / "images").rename(place / "run_training")
    before = contents(place / "run_training")
    data = ["--data", f"folder:{place / 'run_training'}", "--variant", "baseline", "--no-figures"]
    assert train([*data, "--out", str(place / "run.h5")]) == 2
    assert f"cannot write {place / 'run_training'}: it is read by this command" in capsys.readouterr().err
    assert contents(place / "run_training") == before


def test_tables_and_runs_stay_out_of_the_images(refused, place):
    images = place / "images"
    given = ["table2", "--scale", "small", "--data", f"folder:{images}"]
    for flags in (["--out", images / "x"], ["--runs", images / "x", "--out", place / "tables"]):
        refused(reproduce, *given, *flags, out=images / "x", folder=images)


def test_outputs_among_the_files_of_cifar10_are_refused(refused, place, monkeypatch):
    monkeypatch.chdir(place)
    batches = place / "cifar-10-batches-py"
    batches.mkdir()
    (batches / "data_batch_1").write_bytes(np.arange(9, dtype=np.uint8).tobytes())
    out = batches / "data_batch_1"
    refused(learn, "--data", "cifar10", "--root", place, "--out", out, out=out, folder=batches)
    refused(learn, "--data", "cifar10", "--root", ".", "--out", out, out=out)


def test_the_folder_of_published_corruptions_is_not_written_to(refused, pipeline, place):
    (place / "published").mkdir()
    out = place / "published" / "fog.npy"
    noise = ("--noise", "cifar10-c:fog,1")
    refused(evaluate, pipeline.safe, *noise, "--cifar10-c", place / "published", "--out", out, out=out)


def test_outputs_beside_the_images_are_written(place):
    data = ["--data", f"folder:{place / 'images'}", "--maps", "2", "--min-updates", "1", "--limit-train", "6"]
    assert learn([*data, "--out", str(place / "images.h5"), "--json", str(place / "other" / "x.json")]) == 0
    written = {"images", "images.h5", "images_kernels.png", "images_learning"}
    assert {path.name for path in place.glob("images*")} == written
