"""Tables on the terminal."""

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from snn.runtime.errors import visible


def print_table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> None:
    """Print a table of texts, the first ``words`` columns aligned to the left, the others, numbers, to the right.

    Names may be those of a stranger's file: what would steer the terminal is not printed (:func:`visible`).
    """
    # As Text, brackets and colons of a name are no markup.
    columns = [
        Column(Text(visible(heading)), justify="left" if number < words else "right", overflow="fold")
        for number, heading in enumerate(headings)
    ]
    console = Console()
    # A narrow table is widened, so that its title stays in one line.
    width = min(cell_len(visible(title)), console.width)
    table = Table(*columns, title=Text(visible(title), style="table.title"), min_width=width)
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    console.print(table)
