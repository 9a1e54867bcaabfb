"""Each example runs as its first lines say, and finds what they say; one test a file of the folder."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

from examples.photographs import main as photographs

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "examples"
NOTEBOOK = FOLDER / "kernels_grow.ipynb"


def run(*arguments: str) -> str:
    """What a module prints on stdout, in a process of its own."""
    done = subprocess.run([sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def numbers(text: str, first: str) -> list[float]:
    """Those behind the word with which a line begins."""
    (line,) = (line for line in text.splitlines() if line.split()[:1] == [first])
    return [float(number) for number in re.findall(r"[\d.]+", line[line.index(first) + len(first) :])]


def colours(path: Path) -> int:
    """Of a picture; an empty one has few."""
    return len(np.unique(np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3), axis=0))


def test_every_example_is_tested():
    text = Path(__file__).read_text()
    for file in FOLDER.iterdir():
        assert file.name.startswith("__") or f"examples.{file.stem}" in text or file == NOTEBOOK


@pytest.mark.slow
def test_new_rule(tmp_path):
    said = run("examples.new_rule", "--out", str(tmp_path / "new" / "folder"))
    assert colours(tmp_path / "new" / "folder" / "new_rule.png") > 50
    # Mean conductance; accuracy clean, under white noise, with impulses.
    learned, linear, random = (numbers(said, rule) for rule in ("fd", "linear", "random"))
    assert 0 < learned[0] < random[0] < 1
    assert learned != linear
    for accuracy in (learned[1:], linear[1:], random[1:]):
        assert 100 >= accuracy[0] > accuracy[-1] > 10
        assert accuracy[0] > 90
    # Features that were learned resist impulses better than random ones.
    assert min(learned[-1], linear[-1]) > random[-1]


@pytest.mark.slow
def test_new_backbone_is_a_plugin_too(tmp_path):
    said = run("examples.new_backbone", "--out", str(tmp_path))
    assert colours(tmp_path / "new_backbone.png") > 50
    safe, baseline = numbers(said, "clean")
    assert min(safe, baseline) > 90
    assert numbers(said, "salt-pepper:0.20")[0] > numbers(said, "salt-pepper:0.20")[1]
    # Trained in memory, the networks do not know their data: it is named.
    measured = run(
        *("hybrid.evaluate", str(tmp_path / "SAFE.h5"), "--plugin", str(FOLDER / "new_backbone.py")),
        *("--data", "digits", "--noise", "clean", "--out", str(tmp_path / "results.csv"), "--no-figures"),
    )
    assert f"{safe:.1f}" in measured


@pytest.mark.slow
def test_photographs(tmp_path, capsys):
    said = run("examples.photographs", "--out", str(tmp_path), "--draws", "6")
    assert "chelsea.png: SAFE says cat" in said
    assert colours(tmp_path / "chelsea.png") > 1000
    # More noise, fewer answers that stay.
    assert numbers(said, "awgn:25") == [6, 6]
    assert max(numbers(said, "salt-pepper:0.20")) < 6

    # One's own: a file of another size and mode, turned by its orientation.
    photograph = Image.fromarray(np.arange(90 * 50, dtype=np.uint8).reshape(90, 50))
    orientation = Image.Exif()
    orientation[0x0112] = 6
    photograph.save(tmp_path / "own.jpg", exif=orientation)
    assert photographs([str(tmp_path / "own.jpg"), "--out", str(tmp_path / "out"), "--draws", "1"]) == 0
    assert "own.jpg: SAFE says" in capsys.readouterr().out
    assert (tmp_path / "out" / "own.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.jpg", "--out", "OUT"], "none.jpg"),
        ([str(ROOT / "README.md"), "--out", "OUT"], "README.md is not a readable image"),
        (["--draws", "0", "--out", "OUT"], "--draws 0"),
        (["--out", str(ROOT / "README.md")], "README.md"),
    ],
)
def test_photographs_says_what_is_wrong_in_one_line(arguments, message, tmp_path, capsys):
    assert photographs([argument.replace("OUT", str(tmp_path)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.slow
def test_the_notebook_gives_what_it_shows():
    shown = nbformat.read(NOTEBOOK, as_version=4)
    made = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(made, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}).execute()

    def printed(notebook: nbformat.NotebookNode) -> list[str]:
        return [output.text for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output]

    def pictures(notebook: nbformat.NotebookNode) -> int:
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        return sum("image/png" in output.get("data", {}) for output in outputs)

    assert printed(made) == printed(shown)
    assert len(printed(shown)) == 2
    assert pictures(made) == pictures(shown) == 4


def test_the_page_shows_how_to_watch():
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "examples.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(compile(block, "examples.md", "exec"), names)
    *during, finished = names["snapshots"]
    assert finished is None
    assert len(during) >= 5
    assert not during[0].equal(during[-1])


def test_the_notebook_names_no_folder_of_the_machine_that_made_it():
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/", NOTEBOOK.read_text())
