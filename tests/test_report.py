"""Reports: what they say, what they make of damaged and hostile files, and the page in a browser."""

import base64
import csv
import io
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from hybrid.evaluate import main as evaluate
from hybrid.report import groups_of
from hybrid.report import main as report
from hybrid.reporting.files import read_runs
from hybrid.reporting.images import hardest_noise, stage_differences
from hybrid.reporting.page import Section, Table, render
from hybrid.reporting.sections import lineage, marks, mismatches, standard_error
from hybrid.storage import load_model, save_model
from hybrid.views import views
from snn.runtime.errors import UserError

TITLES = [
    "What was run",
    "Kernels and conductances",
    "Responses and activation units",
    "Training",
    "Accuracy under noise",
    "Classes",
    "Embedding",
    "What noise does on the way through",
    "How to make it again",
    "What is not here",
]
FEW = ["--limit-test", "60", "--examples", "2"]


class Page(HTMLParser):
    """The words of a page by part, its pictures, and the cells of its tables, as a browser reads them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.alts: list[str] = []
        self.words: dict[str, list[str]] = {}
        self.rows: dict[str, list[list[tuple[str, str]]]] = {}
        self.titles: list[str] = []
        self._part, self._cell, self._inside = "", False, ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.tags.append(tag)
        self._inside = tag
        if tag == "section":
            self._part = given["id"]
        if tag == "img":
            self.addresses.append(given["src"])
            self.alts.append(given["alt"])
        if tag == "tr":
            self.rows.setdefault(self._part, []).append([])
        if tag in ("td", "th"):
            self.rows[self._part][-1].append(("", given.get("class", "")))
            self._cell = True

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._cell = False
        self._inside = ""

    def handle_data(self, data):
        self.words.setdefault(self._part, []).append(data)
        if self._inside == "h2":
            self.titles.append(data.partition(". ")[2])
        if self._cell:
            text, kind = self.rows[self._part][-1][-1]
            self.rows[self._part][-1][-1] = (text + data, kind)

    def text(self, part: str) -> str:
        return " ".join(" ".join(self.words[part]).split())


PARTS = ("snn", "frontend", "safe", "baseline")
"""Files of the small run."""


@pytest.fixture(scope="module")
def runs(pipeline, tmp_path_factory) -> Path:
    """The small run, with a confusion matrix."""
    folder = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(pipeline.folder, folder)
    # Other tests may have left networks of their own.
    for file in folder.iterdir():
        if file.name.startswith("results") or (file.suffix == ".h5" and file.stem not in PARTS):
            file.unlink()
    models = [str(folder / "safe.h5"), str(folder / "baseline.h5")]
    noise = ["clean", "awgn:12", "salt-pepper:0.2"]
    given = [*models, "--noise", *noise, "--repeats", "2", "--limit-test", "200", "--confusion"]
    assert evaluate([*given, "--out", str(folder / "results.csv")]) == 0
    return folder


@pytest.fixture(scope="module")
def written(runs) -> str:
    """The page on the small run, which lies in its folder."""
    assert report([str(runs), "--out", str(runs / "report.html"), *FEW]) == 0
    return (runs / "report.html").read_text(encoding="utf-8")


@pytest.fixture
def folder(runs, tmp_path) -> Path:
    """A folder with the tables of the small run, to change."""
    for name in ("results.csv", "results_confusion.csv"):
        shutil.copy(runs / name, tmp_path / name)
    return tmp_path


def table(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def rewrite(path: Path, rows: list[dict]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def test_marks():
    assert marks([90.0, 80.0], [1.0, 1.0]) == ["best", ""]
    # sqrt(3^2 + 4^2) = 5.
    assert marks([85.0, 90.0, 84.9], [4.0, 3.0, 4.0]) == ["near", "best", ""]
    assert marks([50.0, 50.0, 49.0], [0.0, 0.0, 0.0]) == ["best", "best", ""]
    assert marks([50.0], [1.0]) == [""]


def test_standard_error():
    rows = [{"value_percent": value, "standard_error_percent": 3.0} for value in (60.0, 68.0)]
    # Deviation over seeds sqrt(32), of their mean 4.
    assert standard_error(rows) == pytest.approx(5.0)
    assert standard_error(rows[:1]) == 3.0


def test_differences_of_stages(models, digits):
    clean = digits.images[:7].float() / 255
    noisy = (clean + 0.1 * torch.rand(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    network = models["safe"].network
    found = stage_differences(network, [(clean, noisy)])
    assert list(found) == ["image", "conv1", "conv2", "auxiliary"]
    for stage in ("image", "conv1"):
        before, after = (views(network, images)[stage].double().numpy() for images in (clean, noisy))
        shares = []
        for a, b in zip(before, after, strict=True):
            if a.any():
                shares.append(math.sqrt(((b - a) ** 2).sum() / (a**2).sum()))
        assert found[stage] == pytest.approx(100 * np.mean(shares))
    assert stage_differences(network, [(clean, clean)])["conv2"] == 0
    assert "image" not in stage_differences(network, [(0 * clean, noisy)])


def test_the_parts_of_a_report(written):
    page = Page(written)
    assert page.titles == TITLES
    assert written.count("<figure>") == 7
    assert all(page.alts)
    assert len(written) < 5e6
    lineage = page.text("runs")
    words = ("snn.h5 2 spiking", "frontend.h5 front end", "safe.h5 safe mobilenet_v2", "results.csv accuracy of safe")
    places = [lineage.index(found) for found in words]
    assert places == sorted(places)
    commands = page.text("again")
    # The fixture calls the commands in its own process.
    assert "frontend.h5: bridge.convert called as a library" in commands
    assert "hybrid.evaluate safe.h5 baseline.h5 --noise clean awgn:12 salt-pepper:0.2 --repeats 2" in commands
    assert "--confusion --out results.csv" in commands


def test_it_needs_nothing_else(written):
    page = Page(written)
    assert not {"script", "link", "iframe", "object", "base", "form"} & set(page.tags)
    assert "default-src 'none'" in written
    for address in page.addresses:
        kind, _, content = address.partition(";base64,")
        data = base64.b64decode(content, validate=True)
        if kind == "data:image/svg+xml":
            # Whole, and nothing in it is fetched or runs.
            elements = list(ElementTree.fromstring(data).iter())
            links = [value for part in elements for name, value in part.attrib.items() if name.endswith("href")]
            assert all(link.startswith(("#", "data:image/png")) for link in links)
            assert not [part for part in elements if part.tag.endswith("}script")]
        else:
            assert kind == "data:image/png"
            Image.open(io.BytesIO(data)).load()
    rest = re.sub(r'src="data:[^"]*"', "", written)
    assert not re.findall(r"https?://|url\(|@import| on\w+=", rest)


def test_accuracies_are_those_of_the_table(written, runs):
    rows = [row for row in table(runs / "results.csv") if (row["paths"], row["metric"]) == ("both", "top1")]
    expected: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        expected.setdefault((row["condition"], row["model"]), []).append(float(row["value_percent"]))
    page = Page(written)
    start = next(k for k, row in enumerate(page.rows["noise"]) if row[0][0] == "condition")
    models = [text for text, _ in page.rows["noise"][start][2:]]
    assert models == ["safe", "baseline"]
    shown = page.rows["noise"][start + 1 : start + 4]
    assert [row[0][0] for row in shown] == ["clean", "awgn:12", "salt-pepper:0.2"]
    for row in shown:
        means = [np.mean(expected[row[0][0], model]) for model in models]
        assert [text.partition(" ")[0] for text, _ in row[2:]] == [f"{mean:.1f}" for mean in means]
        best = [kind.endswith("best") for _, kind in row[2:]]
        assert best == [mean == max(means) for mean in means]


def test_accuracies_of_classes(written, runs):
    rows = [
        row for row in table(runs / "results_confusion.csv") if (row["model"], row["condition"]) == ("safe", "clean")
    ]
    shown = {row[0][0]: [text for text, _ in row] for row in Page(written).rows["classes"]}
    assert shown["class"][:3] == ["class", "images", "safe, clean"]
    for name in map(str, range(10)):
        images = sum(int(row["images"]) for row in rows if row["true_class"] == name)
        right = sum(int(row["images"]) for row in rows if row["true_class"] == row["predicted_class"] == name)
        assert shown[name][1:3] == [str(images), f"{100 * right / images:.1f}"]


def test_columns_of_pictures_are_centred_and_name_the_class(written):
    assert re.search(r"Test image \d+, of class \d\.", written)
    # The baseline has no contrast: its dash stands below the pictures of the network that has.
    assert re.search(r'<td class="shown">–</td>', written)
    assert not re.search(r'<td class="number plain">–</td>\s*<td class="shown">', written)


def test_same_bytes_again_also_from_another_folder(written, runs, tmp_path):
    assert report([str(runs), "--out", str(tmp_path / "other.html"), *FEW]) == 0
    assert (tmp_path / "other.html").read_text() == written
    assert report([str(runs), "--out", str(runs / "report.html"), *FEW]) == 0
    assert (runs / "report.html").read_text() == written


def test_noise_that_is_hardest(runs):
    results = read_runs([runs]).results
    rows = [row for row in results[0].rows if (row["paths"], row["metric"]) == ("both", "top1")]
    values = {name: np.mean([r["value_percent"] for r in rows if r["condition"] == name]) for name in
              ("awgn:12", "salt-pepper:0.2")}  # fmt: skip
    assert str(hardest_noise(results)) == min(values, key=values.__getitem__)
    assert str(hardest_noise([])) == "awgn:15"


MARKUP = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def test_names_with_markup_are_text(folder):
    rows = table(folder / "results.csv")
    for row in rows:
        row["model"] = row["model"].replace("safe", MARKUP)
        row["condition"] = row["condition"].replace("awgn:12", '"><b>{{ 7*7 }}&amp;</b>')
    rewrite(folder / "results.csv", rows)
    rows = table(folder / "results_confusion.csv")
    for row in rows:
        for column in ("true_class", "predicted_class"):
            row[column] = row[column].replace("7", f"{MARKUP}$x^$")
    rewrite(folder / "results_confusion.csv", rows)
    (folder / "<svg onload=alert(3)>.csv").write_text("a,b\n1,2\n")
    out = folder / "r.html"
    assert report([str(folder), "--out", str(out)]) == 0
    text = out.read_text()
    page = Page(text)
    assert not {"script", "b>"} & set(page.tags)
    assert text.count("<img") == len(page.addresses) == 2
    assert all(address.startswith("data:") for address in page.addresses)
    cells = {cell for rows in page.rows.values() for row in rows for cell, _ in row}
    assert {MARKUP, '"><b>{{ 7*7 }}&amp;</b>', f"{MARKUP}$x^$"} <= cells
    assert "<svg onload=alert(3)>.csv" in page.text("left-out")


def test_what_does_not_fit_together_is_said(runs, tmp_path, capsys):
    for name in ("snn.h5", "safe.h5", "results.csv"):
        shutil.copy(runs / name, tmp_path / name)
    (first, second) = mismatches(read_runs([tmp_path])) + [""] * (2 - len(mismatches(read_runs([tmp_path]))))
    assert "baseline" in first
    assert not second
    rows = table(tmp_path / "results.csv")
    for row in rows:
        row["model_digest"] = "0" * 64
    rewrite(tmp_path / "results.csv", rows)
    found = " ".join(mismatches(read_runs([tmp_path])))
    digest = read_runs([tmp_path]).models[0].stamp.digest[:10]
    assert f"network safe with digest 0000000000, which is not here; safe.h5 has {digest}" in found


def test_a_network_made_from_another_front_end(runs, contrast, tmp_path):
    shutil.copy(runs / "safe.h5", tmp_path)
    shutil.copy(contrast.frontend, tmp_path / "frontend.h5")
    (problem,) = mismatches(read_runs([tmp_path]))
    assert problem.startswith("safe.h5 was made from a file with digest ")
    assert "frontend.h5 has " in problem


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("value_percent", "nan", "expected a number"),
        ("value_percent", "101", "expected 0 to 100"),
        ("standard_error_percent", "", "expected a number"),
        ("noise_seed", "-1", "expected 0 to"),
        ("images", "1.5", "expected 1 to"),
        ("snr_dB", "x", "expected a number"),
        ("condition", "other", "under each of its conditions"),
    ],
)
def test_tables_with_nonsense_are_left_out(folder, column, value, reason):
    rows = table(folder / "results.csv")
    rows[0][column] = value
    rewrite(folder / "results.csv", rows)
    found = read_runs([folder])
    assert not found.results
    ((name, told),) = found.left_out
    assert name == "results.csv"
    assert reason in told


def test_damaged_files(folder, runs, capsys):
    whole = (runs / "safe.h5").read_bytes()
    (folder / "cut.h5").write_bytes(whole[: len(whole) // 2])
    (folder / "text.h5").write_text("no HDF5")
    (folder / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    (folder / "ragged.csv").write_text("a,b\n1\n")
    (folder / "empty.csv").write_text("")
    (folder / "results.pt").write_bytes(b"")
    (folder / "broken.h5").symlink_to(folder / "nowhere")
    found = dict(read_runs([folder]).left_out)
    assert set(found) == {"cut.h5", "text.h5", "bytes.csv", "ragged.csv", "empty.csv", "results.pt", "broken.h5"}
    assert "truncated" in found["cut.h5"]
    capsys.readouterr()
    assert report([str(folder / "cut.h5"), "--out", str(folder / "r.html")]) == 2
    assert "truncated" in capsys.readouterr().err


def test_nothing_to_report_on(tmp_path):
    for given, words in (([tmp_path], "nothing to report on"), ([tmp_path / "no"], "does not exist"),
                         ([Path("pretrained:no")], "choose from")):  # fmt: skip
        with pytest.raises(UserError, match=words):
            read_runs(given)


def test_flags_that_need_a_network(folder, capsys):
    for flag in (["--noise", "awgn:15"], ["--data", "digits"], ["--examples", "2"], ["--limit-test", "10"]):
        assert report([str(folder), *flag, "--out", str(folder / "r.html")]) == 2
        assert f"{flag[0]} would be ignored" in capsys.readouterr().err


def test_networks_whose_images_are_not_here(tmp_path):
    out, numbers = tmp_path / "r.html", tmp_path / "r.json"
    given = ["pretrained:cifar10-retina", "pretrained:baseline-cifar10"]
    assert report([*given, "--out", str(out), "--json", str(numbers)]) == 0
    page = Page(out.read_text())
    assert page.titles[:3] == TITLES[:3]
    left_out = {entry["name"]: entry["reason"] for entry in json.loads(numbers.read_text())["left_out"]}
    assert {"Embedding", TITLES[7], "Test images of pretrained:baseline-cifar10"} <= left_out.keys()


def test_networks_of_one_name_from_two_folders(runs, tmp_path):
    places = [tmp_path / name / "run" for name in ("first", "second")]
    for place, model in zip(places, ("safe.h5", "baseline.h5"), strict=True):
        place.mkdir(parents=True)
        shutil.copy(runs / model, place / "model.h5")
    found = read_runs(places)
    assert [file.name for file in found.models] == [str(place / "model.h5") for place in places]
    assert [file.name for file in read_runs([places[0]]).models] == ["model.h5"]
    assert [len(models) for models in groups_of(found)] == [2]


def test_a_network_made_from_another_one_stands_below_it_alone(runs, tmp_path):
    shutil.copy(runs / "baseline.h5", tmp_path / "b.h5")
    model = load_model(tmp_path / "b.h5")
    save_model(tmp_path / "a.h5", model, "python -m hybrid.swap", model.digest)
    (node,) = lineage(read_runs([tmp_path])).blocks[0].nodes
    assert (node.name, [below.name for below in node.children]) == ("b.h5", ["a.h5"])


@pytest.mark.slow
def test_a_noise_that_is_named_twice_and_none_are_shown_once(runs, tmp_path):
    out = tmp_path / "r.html"
    noise = ["--noise", "clean", "awgn:15", "awgn:15.0"]
    assert report([str(runs / "baseline.h5"), *noise, *FEW, "--out", str(out)]) == 0
    rows = Page(out.read_text()).rows["embedding"]
    assert [row[1][0] for row in rows] == ["condition", "clean", "awgn:15.0"]


def test_texts_are_escaped():
    text = render("a & b", [Section("x", "y <z>", [Table("", ("k",), [["<v>"]])])], [])
    page = Page(text)
    assert page.rows["x"] == [[("k", "word")], [("<v>", "word")]]
    assert page.titles == ["y <z>"]


PROBE = """<script>
addEventListener("load", () => {
  const images = [...document.images], root = document.scrollingElement;
  parent.postMessage(JSON.stringify({
    images: images.length, drawn: images.filter((image) => image.complete && image.naturalWidth > 0).length,
    width: innerWidth, needed: root.scrollWidth, alts: images.filter((image) => image.alt).length,
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    page: getComputedStyle(document.body).backgroundColor,
  }), "*");
});
</script></body>"""


# A browser's window has a smallest width, a frame has none.
FRAME = """<!DOCTYPE html><meta name="color-scheme" content="light dark"><body style="margin: 0"><script>
addEventListener("message", (event) => { document.body.dataset.found = event.data; });
</script><iframe src="probe.html" style="border: 0; width: WIDTHpx; height: 800px"></iframe></body>"""


def browse(page: Path, folder: Path, width: int, *flags: str) -> tuple[dict, Image.Image]:
    """What a browser says of a page at this width, and how it looks."""
    copy, picture = folder / "probe.html", folder / f"{width}.png"
    # The page's own policy forbids scripts, also that of the probe.
    text = re.sub(r"<meta http-equiv=[^>]*>", "", page.read_text(encoding="utf-8"))
    copy.write_text(text.replace("</body>", PROBE), encoding="utf-8")
    frame = folder / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command += [f"--window-size={width},1600", "--virtual-time-budget=20000", *flags]
    run = {"capture_output": True, "text": True, "timeout": 120, "check": True}
    dom = subprocess.run([*command, "--dump-dom", frame.as_uri()], **run).stdout  # type: ignore[call-overload]
    subprocess.run([*command, f"--screenshot={picture}", page.as_uri()], **run)  # type: ignore[call-overload]
    found = re.search(r'data-found="([^"]*)"', dom)
    assert found
    return json.loads(found[1].replace("&quot;", '"')), Image.open(picture).convert("RGB")


@pytest.mark.needs_chromium
@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_in_a_browser(written, runs, tmp_path, width, dark):
    found, shot = browse(runs / "report.html", tmp_path, width, f"--blink-settings=preferredColorScheme={1 - dark}")
    assert found["images"] == found["drawn"] == found["alts"] == len(Page(written).addresses)
    assert found["width"] == width
    assert found["needed"] <= found["width"]
    assert found["dark"] == dark
    assert found["page"] == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
    assert shot.width == width
    # There is something on it, on a page of the right colour.
    assert shot.getpixel((2, 2)) == ((20, 24, 29) if dark else (255, 255, 255))
    assert len(shot.getcolors(2**24)) > 100


@pytest.mark.needs_chromium
@pytest.mark.slow
def test_names_that_cannot_be_broken_do_not_widen_the_page(folder, tmp_path):
    rows = table(folder / "results.csv")
    for row in rows:
        row["model"] = row["model"].replace("safe", "x" * 300)
    rewrite(folder / "results.csv", rows)
    out = folder / "r.html"
    assert report([str(folder), "--out", str(out)]) == 0
    found, _ = browse(out, tmp_path, 390)
    assert found["needed"] <= found["width"] == 390
