"""The page for contributors names every file of the project, and none that is not there."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the list of files is git's")
def test_the_tree_names_every_file_once():
    page = (ROOT / "docs" / "contributing.md").read_text()
    tree = page[page.index("## The tree") : page.index("## Tests")]
    named = [
        line.split("  ")[0]
        for block in re.findall(r"^```\n(.*?)^```", tree, re.M | re.S)
        for line in block.splitlines()
    ]
    assert len(named) == len(set(named))
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = tuple(name for name in named if name.endswith("/"))
    # Files of a folder that stands as a whole need no line of their own.
    assert sorted(name for name in named if name not in folders) == sorted(
        f for f in files if not f.startswith(folders)
    )
