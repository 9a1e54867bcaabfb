"""Tables on the terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> None:
    """Print a table of texts, the first ``words`` columns aligned to the left, the others, numbers, to the right."""
    columns = [
        Column(escape(heading), justify="left" if number < words else "right", overflow="fold")
        for number, heading in enumerate(headings)
    ]
    table = Table(*columns, title=escape(title))
    for row in rows:
        table.add_row(*map(escape, row))
    Console().print(table)
