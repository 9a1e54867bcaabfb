"""How Sphinx builds these pages (``make docs``): without network, warnings as errors."""

import contextlib
import importlib
import io
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any, get_origin
from unittest.mock import patch

import sphinx.util.typing
from docutils import nodes
from docutils.parsers.rst import Directive
from latex2mathml.converter import convert
from sphinx.application import Sphinx

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent))

project = "safe-dnn"
author = "the authors of safe-dnn"
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "myst_nb",
]
exclude_patterns = ["_build"]
nb_execution_mode = "off"

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "exclude-members": "__new__"}
# Fields follow below their class, each with its default.
autodoc_class_signature = "separated"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# Types of arguments are in the signature.
python_maximum_signature_line_length = 88

# Flags begin with two hyphens.
smartquotes = False

html_theme = "furo"
html_title = "safe-dnn"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {"navigation_with_keys": True}
html_show_sourcelink = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp"

stringify_annotation = sphinx.util.typing.stringify_annotation


def without_range(annotation: Any, *arguments: Any, **options: Any) -> str:
    """A type as text, without the range and the flag that are annotated to it."""
    plain = annotation.__origin__ if get_origin(annotation) is Annotated else annotation
    return stringify_annotation(plain, *arguments, **options)


sphinx.util.typing.stringify_annotation = without_range

# Sphinx reads what lies in this folder alone.
NOTEBOOK = DOCS.parent / "examples" / "kernels_grow.ipynb"
(DOCS / "_notebooks").mkdir(exist_ok=True)
shutil.copy(NOTEBOOK, DOCS / "_notebooks")

OUTSIDE = {
    "../examples/kernels_grow.ipynb": "_notebooks/kernels_grow.ipynb",
    "../benchmarks/README.md": "benchmarks.md",
    "../SECURITY.md": "security.md",
    "../README.md": "index.md",
}
"""Links of pages in this folder to pages beside it, which work where the files are read as they are, and the page that
holds the same on the site."""


class Help(Directive):
    """What ``python -m MODULE --help`` prints, as the code is now."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        name = self.arguments[0]
        module = importlib.import_module(name if name != "bridge.export" else "bridge.export.__main__")
        printed = io.StringIO()
        environment = {"COLUMNS": "92", "NO_COLOR": "1", "TERM": "dumb"}
        with patch.dict(os.environ, environment), contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            module.main(["--help"])
        text = re.sub(r"\x1b\[[0-9;]*m", "", printed.getvalue())
        if not text:
            raise self.error(f"python -m {name} --help printed nothing")
        block = nodes.literal_block(text, text)
        block["language"] = "text"
        return [block]


def link_inside(app: Sphinx, docname: str, source: list[str]) -> None:
    """Lead links to pages beside this folder to those of the site."""
    depth = docname.count("/")
    for outside, inside in OUTSIDE.items():
        source[0] = source[0].replace(f"]({'../' * depth}{outside}", f"]({'../' * depth}{inside}")
    if docname in ("benchmarks", "security"):
        # These pages are written for their own folder.
        folder = DOCS.parent / ("benchmarks" if docname == "benchmarks" else "")
        text = (folder / ("README.md" if docname == "benchmarks" else "SECURITY.md")).read_text(encoding="utf-8")
        source[0] = re.sub(r"\]\((?:\.\./)?docs/", "](", text)


def plain_text(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings of fields as they are: none where Python writes its own, and no type before a colon."""
    if lines and lines[0].startswith("Alias for field number"):
        lines.clear()
    elif what in ("attribute", "property", "data"):
        # Napoleon would take what stands before a colon in the first line of text for a type. It skips empty lines; an
        # empty comment is a line to it, and nothing on the page.
        lines[:0] = ["..", ""]


def made_from_elsewhere(app: Sphinx, *_: object) -> list[str]:
    """Pages to read again each time: what they show lies outside this folder."""
    return ["api", "benchmarks", "commands", "equations", "security"]


def inline_math(self, node: nodes.math) -> None:  # type: ignore[no-untyped-def]
    self.body.append(convert(node.astext(), display="inline"))
    raise nodes.SkipNode


def block_math(self, node: nodes.math_block) -> None:  # type: ignore[no-untyped-def]
    number = f'<span class="eqno">({node["number"]})</span>' if node.get("number") else ""
    self.body.append(f'<div class="math">{convert(node.astext(), display="block")}{number}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Registers what is above."""
    app.add_directive("help", Help)
    app.connect("source-read", link_inside)
    app.connect("env-get-outdated", made_from_elsewhere)
    app.connect("autodoc-process-docstring", plain_text, priority=400)
    # Every current browser draws MathML by itself, offline and in print.
    app.add_html_math_renderer("mathml", inline_renderers=(inline_math, None), block_renderers=(block_math, None))


html_math_renderer = "mathml"
