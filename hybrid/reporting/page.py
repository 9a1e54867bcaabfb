"""The page of a report: its parts, and HTML made of them.

Every text is escaped as it is put into the page (jinja2's autoescape). Pictures lie in the page itself, and it has no
scripts: its own policy forbids a browser to fetch or run anything.
"""

import base64
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image


@dataclass(frozen=True)
class Cell:
    """One place of a table."""

    text: str
    mark: str = ""
    """best: in bold. near: not separable from the best."""
    picture: str = ""
    """Address of a picture above the text, with ``alt`` in its place for those who cannot see it."""
    alt: str = ""


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    warning: bool = False
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Commands:
    """Lines for a shell."""

    text: str
    kind: ClassVar[str] = "commands"


@dataclass(frozen=True)
class Figure:
    """A picture with its caption."""

    address: str
    alt: str
    caption: str
    width: int
    """In pixels at which it is shown where there is room."""
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Table:
    """A table."""

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    words: int = 1
    """First columns, which are texts; the others are numbers."""
    kind: ClassVar[str] = "table"

    @property
    def cells(self) -> list[list[Cell]]:
        """The rows, with a :class:`Cell` in each place."""
        return [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in self.rows]

    @property
    def pictured(self) -> set[int]:
        """Columns with pictures, from 0."""
        return {column for row in self.cells for column, cell in enumerate(row) if cell.picture}

    @property
    def marked(self) -> bool:
        """Whether a place of it has a mark."""
        return any(cell.mark for row in self.cells for cell in row)


@dataclass(frozen=True)
class Node:
    """A file in the tree of what was made from what."""

    name: str
    text: str
    children: "Sequence[Node]"


@dataclass(frozen=True)
class Tree:
    """Files, each below the one that it was made from."""

    nodes: Sequence[Node]
    kind: ClassVar[str] = "tree"


Block = Text | Commands | Figure | Table | Tree


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    name: str
    """Of its anchor."""
    title: str
    blocks: Sequence[Block]


def figure(draw: Callable[[BinaryIO], None], alt: str, caption: str) -> Figure:
    """What ``draw`` writes as SVG into a stream, as a figure."""
    stream = io.BytesIO()
    draw(stream)
    content = stream.getvalue()
    points = re.search(rb'<svg[^>]*? width="([\d.]+)pt"', content)
    width = round(float(points[1]) * 4 / 3) if points else 640
    return Figure(_address("image/svg+xml", content), alt, caption, width)


def picture(content: bytes, alt: str, caption: str) -> Figure:
    """A PNG picture as a figure."""
    with Image.open(io.BytesIO(content)) as image:
        return Figure(_address("image/png", content), alt, caption, image.width * 2 // 3)


def pixels(values: np.ndarray) -> str:
    """Address of a picture (H, W) or (H, W, 3) of values in [0, 1]."""
    out = io.BytesIO()
    Image.fromarray((255 * np.clip(values, 0, 1)).round().astype(np.uint8)).save(out, "PNG", optimize=True)
    return _address("image/png", out.getvalue())


def _address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def render(title: str, sections: Sequence[Section], left_out: Sequence[tuple[str, str]]) -> str:
    """The page as HTML. ``left_out`` are names and reasons of what is missing."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(title=title, sections=sections, left_out=left_out)
    return page.rstrip() + "\n"
