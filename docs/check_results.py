"""Check that the tables of docs/results.md are those of the CSV files beside it, number by number.

    python docs/check_results.py            # exit status 1 where a table differs
    python docs/check_results.py --write    # put the tables of the CSV files into the document

A table stands behind a line ``<!-- results/NAME.csv -->``, which names its file.
"""

import re
import sys
from pathlib import Path

# Started as a file: imports find the rest of the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hybrid.paper.results import read_rows, table_lines

DOCUMENT = Path(__file__).with_name("results.md")
TABLE = re.compile(r"^<!-- (results/[\w-]+\.csv) -->\n\n((?:\|.*\n)*)\n*", re.MULTILINE)


def with_tables(text: str, folder: Path) -> str:
    """``text`` with each table made anew from its file, which lies in ``folder``."""

    def table(match: re.Match) -> str:
        lines = table_lines(read_rows(folder / match[1]))
        # Without an empty line what follows would be a row of the table.
        return f"<!-- {match[1]} -->\n\n" + "".join(f"{line}\n" for line in lines) + "\n"

    return TABLE.sub(table, text)


def differences(text: str, folder: Path) -> list[str]:
    """What does not agree: a line for each table that differs, and for each file or table without the other."""
    tables = TABLE.findall(text)
    named = [name for name, _ in tables]
    found = [f"{name}: the document has no table of it" for name in sorted(_files(folder) - set(named))]
    found += [f"{name}: there is no such file" for name in named if not (folder / name).exists()]
    for name, lines in tables:
        if (folder / name).exists() and lines.splitlines() != table_lines(read_rows(folder / name)):
            found.append(f"{name}: the document's table differs from it")
    # A table that names no file would go unchecked.
    unnamed = len(re.findall(r"^\|---", text, re.MULTILINE)) - sum("|---" in lines for _, lines in tables)
    return found + ([f"{unnamed} tables name no file"] if unnamed else [])


def _files(folder: Path) -> set[str]:
    return {f"results/{path.name}" for path in (folder / "results").glob("*.csv")}


def main(argv: list[str], document: Path = DOCUMENT) -> int:
    """Command line of ``python docs/check_results.py``."""
    text = document.read_text()
    if "--write" in argv:
        text = with_tables(text, document.parent)
        document.write_text(text)
    found = differences(text, document.parent)
    print("\n".join(found) if found else f"{len(TABLE.findall(text))} tables equal their files")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
