"""What the README shows is what runs and what was measured, and it is short."""

import csv
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree

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


def test_at_most_150_lines():
    assert README.count("\n") <= 150


def test_what_it_links_to_is_there():
    links = re.findall(r"\]\(([^)\s#]+)", README)
    assert len(links) > 20
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_accuracies_are_those_of_the_tables():
    with open(ROOT / "docs" / "results" / "unseen.csv", newline="") as file:
        measured = {(row["model"], row["condition"]): float(row["ours_percent"]) for row in csv.DictReader(file)}
    sentence = README[README.index("Where 5 % of the pixels") : README.index("White noise is")]
    networks = ("robust safe, spike counts", "baseline", "baseline, spike counts")
    assert re.findall(r"[\d.]+(?= %)", sentence)[1:] == [
        f"{measured[network, 'salt-pepper:0.05']:.1f}" for network in networks
    ]


def test_the_picture_of_the_architecture_needs_nothing_else():
    picture = (ROOT / "docs" / "figures" / "architecture.svg").read_text()
    elements = list(ElementTree.fromstring(picture).iter())
    assert not [part.tag for part in elements if part.tag.endswith(("}script", "}image", "}use", "}foreignObject"))]
    assert not [name for part in elements for name in part.attrib if name.endswith("href")]
    assert re.findall(r"url\((?!#)|@import|https?://(?!www\.w3\.org/2000/svg)", picture) == []
    # Every colour that the dark form names is one of the light form.
    light, dark = (set(re.findall(r"(--[\w-]+):", block)) for block in re.findall(r":root \{(.*?)\}", picture, re.S))
    assert light == dark == set(re.findall(r"var\((--[\w-]+)\)", picture))
