"""The pages build without a warning, their links lead somewhere, and what they show runs."""

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


class Page(HTMLParser):
    """The targets of a page's links and images, and the names that links to it can have behind #."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {name for key in ("id", "name") if (name := values.get(key))}
        self.targets += [value for key in ("href", "src") if (value := values.get(key)) is not None]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "-b", "html"]
    doctrees = ["-d", str(tmp_path_factory.mktemp("doctrees"))]
    done = subprocess.run([*command, *doctrees, str(DOCS), str(out)], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return out


@pytest.mark.slow
@pytest.mark.needs_docs
def test_links_inside_the_site_lead_somewhere(site):
    pages = {file: Page(file) for file in site.rglob("*.html")}
    assert len(pages) > 30
    followed = 0
    for file, page in pages.items():
        for target in page.targets:
            place = urlsplit(target)
            if place.scheme or target == "#":
                continue
            goal = (file.parent / unquote(place.path)).resolve() if place.path else file
            assert goal.exists(), f"{file.name}: {target}"
            if place.fragment and goal in pages:
                assert unquote(place.fragment) in pages[goal].anchors, f"{file.name}: {target}"
                followed += 1
    assert followed > 500


@pytest.mark.slow
@pytest.mark.needs_docs
def test_nothing_is_fetched_from_elsewhere(site):
    for file in site.rglob("*.html"):
        sources = re.findall(r"<(?:script|img|iframe)[^>]*src=\"([^\"]*)\"", file.read_text(encoding="utf-8"))
        sources += re.findall(r"<link[^>]*href=\"([^\"]*)\"", file.read_text(encoding="utf-8"))
        assert not [source for source in sources if urlsplit(source).scheme not in ("", "data")], file


@pytest.mark.slow
@pytest.mark.needs_docs
def test_commands_show_their_flags(site):
    text = (site / "commands.html").read_text(encoding="utf-8")
    for flag in ("--stdp.rule", "--train-noise", "--conductances", "--attack-model", "--quick"):
        assert flag in text


@pytest.mark.slow
@pytest.mark.needs_docs
def test_texts_of_fields_stay_whole(site):
    text = (site / "api.html").read_text(encoding="utf-8")
    plain = re.sub(r"<[^>]*>", "", text)
    assert "Names of the classes, in the order of the labels; none: the images have no labels." in plain
    # A part of the text taken for a type would stand in a list of its own.
    assert re.findall(r"<dt[^>]*>Type<.*?</dd>", text, flags=re.S) == []


def links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text))


def test_links_work_where_the_files_are_read_as_they_are():
    pages = [*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *(ROOT / "benchmarks").glob("*.md")]
    pages = [page for page in pages if "_build" not in page.parts]
    for page in pages:
        for link in links(page):
            path = urlsplit(link).path
            if path and not urlsplit(link).scheme:
                assert (page.parent / unquote(path)).exists(), f"{page.relative_to(ROOT)}: {link}"


@pytest.mark.parametrize("package", ["snn", "bridge", "hybrid"])
def test_the_library_reference_has_every_public_name(package):
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (\w+): ", text, flags=re.M)
    own = parts[parts.index(package) + 1]
    stub = ast.parse((ROOT / package / "__init__.pyi").read_text(encoding="utf-8"))
    names = {alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    described = set(re.findall(r"^\.\. (?:auto)?(?:function|class|data):: (\w+)", own, flags=re.M))
    assert names - described - {"UserError"} == set()


def test_the_page_of_commands_has_every_command():
    shown = set(re.findall(r"^```\{help\} (\S+)$", (DOCS / "commands.md").read_text(encoding="utf-8"), flags=re.M))
    commands = set()
    for package in ("snn", "bridge", "hybrid", "validation"):
        for file in (ROOT / package).rglob("*.py"):
            if 'if __name__ == "__main__":' in file.read_text(encoding="utf-8"):
                commands.add(".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__"))
    # Commands of others, which nobody types.
    assert commands - {"snn.runtime.h5_child", "hybrid.paper.job"} == shown


def first_block(page: str) -> str:
    return re.search(r"^```python\n(.*?)^```", (DOCS / "guides" / page).read_text(), flags=re.M | re.S)[1]


@pytest.mark.parametrize(
    ("page", "registry", "name"),
    [
        ("rule.md", "snn.registries.RULES", "linear"),
        ("encoder.md", "snn.registries.ENCODERS", "burst"),
        ("engine.md", "snn.registries.ENGINES", "timed"),
        ("noise.md", "hybrid.conditions.CONDITIONS", "uniform"),
        ("backbone.md", "hybrid.backbones.BACKBONES", "resnet34"),
    ],
)
def test_parts_of_guides_are_registered_from_one_file(page, registry, name, tmp_path):
    (tmp_path / "part.py").write_text(first_block(page))
    module, attribute = registry.rsplit(".", 1)
    code = (
        f"import sys; from snn.runtime.registry import load_plugin; load_plugin({str(tmp_path / 'part.py')!r}); "
        f"from {module} import {attribute} as registry; assert {name!r} in registry.names(), registry.names()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
