"""What the README shows is what runs."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def code_blocks(language: str) -> list[str]:
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [text for name, text in blocks if name == language]


def commands(text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    return [" ".join(line[line.index("-m ") :].split()) for line in lines if "-m snn." in line or "-m bridge." in line
            or "-m hybrid." in line]  # fmt: skip


def test_demo_runs_the_commands_shown():
    (block,) = (block for block in code_blocks("") if "mkdir -p runs/demo" in block)
    shown = commands(block)
    planned = subprocess.run(["make", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert len(shown) == 6
    assert shown == commands(planned)


def test_library_example_runs():
    (block,) = code_blocks("python")
    assert sum(line.startswith(("import ", "from ")) for line in block.splitlines()) in (1, 2)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["kernels"].shape == (8, 1, 3, 3)
    assert names["features"].shape == (4, 8, 8, 8)
    assert names["logits"].shape == (4, 10)
    assert {row["condition"] for row in names["rows"]} == {"clean", "awgn:20"}
