"""Check that the numbers of the pages on results, in tables and prose, are those of the CSV files in results.

    python docs/check_results.py            # exit status 1 where a number differs
    python docs/check_results.py --write    # put the tables and numbers of the CSV files into the documents

A table stands behind a line ``<!-- results/NAME.csv -->``, which names its file. A number of the prose stands before a
comment that says where it comes from, as in ``83.5<!-- table2: safe | awgn:15 -->``; docs/contributing.md has all
forms. Once the document has a line ``<!-- prose checked -->``, decimal numbers without such a comment are reported.
"""

import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

# Started as a file: imports find the rest of the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hybrid.paper.numbers import paper_rows
from hybrid.paper.results import (
    Row,
    category_rows,
    mean_over_seeds,
    paired,
    read_rows,
    table_lines,
    values_by_seed,
)
from snn.runtime.errors import UserError, check

DOCUMENTS = tuple(Path(__file__).with_name(name) for name in ("results.md", "results-other.md", "results-search.md"))
TABLE = re.compile(r"^<!-- (results/[\w-]+\.csv) -->\n\n((?:\|.*\n)*)\n*", re.MULTILINE)

# What is no prose: fenced code, lines of tables, code between backticks (within a paragraph), targets of links.
NO_PROSE = re.compile(r"^```.*?^```$|^\|.*?$|`(?:[^`\n]|\n(?!\n))*`|\]\([^)\s]*\)", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!--((?:(?!-->).)*)-->", re.DOTALL)
# No part of a word, a version or a file's name.
NUMBER = r"(?<![\w./])(?P<mean>[+-]?\d+{decimals})(?:\s±\s(?P<deviation>\d+(?:\.\d+)?))?"
MARKED = re.compile(NUMBER.format(decimals=r"(?:\.\d+)?") + r"\**" + COMMENT.pattern, re.DOTALL)
UNMARKED = re.compile(NUMBER.format(decimals=r"\.\d+") + r"(?![\w/]|\.\w)")
LIST = re.compile(r"unchecked: (.*)", re.DOTALL)
PROSE_CHECKED = "prose checked"

TERM = re.compile(
    r"(?:(?P<column>paper|deviation|error) )?(?:(?P<table>[\w-]+): )?(?P<model>[^|]+?)(?: \| (?P<condition>[^|]+))?"
)
PUBLISHED = re.compile(r"paper-table(\d)")
"""Names of the paper's own tables, top-1 accuracy."""
COLUMNS = {"paper": "paper_percent", "deviation": "deviation_percent", "error": "standard_error_percent"}


class Value(NamedTuple):
    """What a comment stands for."""

    mean: float
    deviation: float | None
    """None where there is but one value."""


class Marked(NamedTuple):
    """A number of the prose that a comment speaks of: one of the two of "mean ± deviation"."""

    span: tuple[int, int]
    found: str
    expected: str
    comment: str


@dataclass
class Term:
    """One number of a CSV file."""

    column: str
    """Of :data:`COLUMNS`; "" for values of seeds."""
    table: str
    model: str
    condition: str

    @classmethod
    def parse(cls, text: str) -> "Term":
        """The term written so; what it leaves out is ""."""
        match = TERM.fullmatch(text)
        check(match is not None, f'"{text}": expected TABLE: MODEL | CONDITION')
        return cls(**{name: value or "" for name, value in match.groupdict().items()})


class Tables:
    """The CSV files of a folder, and what expressions over them are worth."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._rows = cache(self._read)

    def value(self, expression: str) -> Value:
        """Of an expression in a comment; raises :class:`UserError` where it means nothing."""
        which, listed = re.fullmatch(r"(?:(max|min) )?(.*)", expression).groups()
        # A difference, and "- TERM" alone, begin with a first part that may be empty.
        parts = [re.split(r"(?:^| )- ", part) for part in listed.split("; ")]
        terms = [[Term.parse(text) for text in texts if text] for texts in parts]
        flat = [term for group in terms for term in group]
        # Tables hold for the terms that follow, conditions for those before.
        for before, term in zip(flat, flat[1:], strict=False):
            term.table = term.table or before.table
        for term, after in zip(flat[-2::-1], flat[:0:-1], strict=True):
            term.condition = term.condition or after.condition
        check(all(terms), f'"{expression}": expected TABLE: MODEL | CONDITION')
        values = [self._sum(group, negative=not texts[0]) for group, texts in zip(terms, parts, strict=True)]
        check(bool(which) or len(values) == 1, f'"{expression}": a list needs max or min before it')
        return (min if which == "min" else max)(values, key=lambda value: value.mean)

    def _sum(self, terms: list[Term], negative: bool) -> Value:
        """Of the first term less the others (``negative``: less all), seed by seed."""
        if len(terms) == 1:
            row, column = self._row(terms[0]), COLUMNS.get(terms[0].column, "ours_percent")
            mean = float(_cell(row, column))
            deviation = "" if terms[0].column else row["deviation_percent"]
            return Value(-mean if negative else mean, None if deviation == "" else float(deviation))
        rows = [self._row(term) for term in terms]
        measured = [
            values_by_seed(row | {"values_percent": _cell(row, "values_percent")})
            for term, row in zip(terms, rows, strict=True)
            if not term.column
        ]
        many = sorted({len(values) for values in measured})
        named = all(row.get("training_seeds") for row in rows)
        check(named or len(many) <= 1, f"numbers of seeds differ: {many}; give rows of equal ones")
        aligned = paired(*measured) if measured else np.empty((0, 1))
        check(not measured or aligned.size > 0, "the rows have no seed in common")
        common = iter(aligned)
        seeds = [
            np.array(float(_cell(row, COLUMNS[term.column]))) if term.column else next(common)
            for term, row in zip(terms, rows, strict=True)
        ]
        row = mean_over_seeds(np.atleast_1d(-sum(seeds) if negative else seeds[0] - sum(seeds[1:])).tolist())
        return Value(row["ours_percent"], None if row["deviation_percent"] == "" else row["deviation_percent"])

    def _row(self, term: Term) -> Row:
        rows = self._rows(term.table)
        models = dict.fromkeys(row["model"] for row in rows)
        # A name may lack the backbone where only one follows it.
        fitting = [term.model] if term.model in models else [m for m in models if m.startswith(term.model + " ")]
        near = " or ".join(fitting or difflib.get_close_matches(term.model, models, cutoff=0.3))
        check(len(fitting) == 1, f'{term.table} has no model "{term.model}"; it has {near or ", ".join(models)}')
        found = [row for row in rows if (row["model"], row["condition"]) == (fitting[0], term.condition)]
        conditions = ", ".join(dict.fromkeys(row["condition"] for row in rows if row["model"] == fitting[0]))
        check(
            len(found) == 1,
            f'{term.table} has {len(found)} rows of {fitting[0]} under "{term.condition}"; conditions: {conditions}',
        )
        return found[0]

    def _read(self, name: str) -> list[Row]:
        if published := PUBLISHED.fullmatch(name):
            rows = [row for row in paper_rows(int(published[1])) if row["metric"] == "top1"]
            shown = {"table": name, "deviation_percent": ""}
            return [row | dict.fromkeys(("ours_percent", "values_percent"), row["value"]) | shown for row in rows]
        path = self.folder / "results" / f"{name}.csv"
        check(path.exists(), f"there is no results/{name}.csv; expected TABLE: MODEL | CONDITION")
        rows: list[Row] = list(read_rows(path))
        return rows + (category_rows(rows) if name == "corruptions" else [])


def with_tables(text: str, folder: Path) -> str:
    """``text`` with each table made anew from its file, which lies in ``folder``."""

    def table(match: re.Match) -> str:
        lines = table_lines(read_rows(folder / match[1]))
        # Without an empty line what follows would be a row of the table.
        return f"<!-- {match[1]} -->\n\n" + "".join(f"{line}\n" for line in lines) + "\n"

    return TABLE.sub(table, text)


def with_numbers(text: str, folder: Path) -> str:
    """``text`` with each number that has a comment as the files have it; as it is where the comment means nothing."""
    # From the end, so that places before stay where they are.
    for number in sorted(marked_numbers(text, folder)[0], reverse=True):
        begin, end = number.span
        text = text[:begin] + number.expected + text[end:]
    return text


def differences(text: str, folder: Path) -> list[str]:
    """What does not agree: a line for each table that differs, and for each that names no file or one that is gone."""
    tables = TABLE.findall(text)
    found = [f"{name}: there is no such file" for name, _ in tables if not (folder / name).exists()]
    for name, lines in tables:
        if (folder / name).exists() and lines.splitlines() != table_lines(read_rows(folder / name)):
            found.append(f"{name}: the document's table differs from it")
    # A table that names no file would go unchecked.
    unnamed = len(re.findall(r"^\|---", text, re.MULTILINE)) - sum("|---" in lines for _, lines in tables)
    return found + ([f"{unnamed} tables name no file"] if unnamed else [])


def marked_numbers(text: str, folder: Path) -> tuple[list[Marked], list[str]]:
    """All numbers of the prose that have a comment, and a line for each comment that cannot be followed."""
    prose, tables = _prose(text), Tables(folder)
    behind = {match.end(): match for match in MARKED.finditer(prose)}
    numbers, problems = [], []
    for comment in COMMENT.finditer(prose):
        expression, match = " ".join(comment[1].split()), behind.get(comment.end())
        if TABLE.match(prose, comment.start()) or LIST.match(expression) or expression == PROSE_CHECKED:
            continue
        try:
            check(match is not None, "no number stands directly before this comment")
            # Markdown would see a list or a heading there.
            check(not re.search(r"\n\s*[-+*#>]", comment[1]), "a line in a comment begins with a sign; break elsewhere")
            value = tables.value(expression)
            check(match["deviation"] is None or value.deviation is not None, "there is no deviation; leave out ±")
        except UserError as error:
            problems.append(f"line {_line(text, comment.start())}: {error} ({expression})")
            continue
        for part in ("mean", "deviation"):
            if written := match[part]:
                decimals, sign = len(written.partition(".")[2]), "+" if written[0] == "+" else ""
                expected = format(getattr(value, part), f"{sign}.{decimals}f")
                numbers.append(Marked(match.span(part), written, expected, expression))
    return numbers, problems


def prose_differences(text: str, folder: Path) -> list[str]:
    """A line for each number of the prose that its comment does not give, or that has none where all must have one."""
    numbers, problems = marked_numbers(text, folder)
    for number in numbers:
        if number.found != number.expected:
            place = _line(text, number.span[0])
            problems.append(f"line {place}: found {number.found}, expected {number.expected} ({number.comment})")
    return problems + list(_unmarked(text))


def _unmarked(text: str) -> Iterator[str]:
    """Numbers without a comment that no list names, and numbers of a list that the prose does not hold."""
    prose = _prose(text)
    comments = [" ".join(comment.split()) for comment in COMMENT.findall(prose)]
    if PROSE_CHECKED not in comments:
        return
    allowed = {number for comment in comments if (found := LIST.match(comment)) for number in found[1].split(", ")}
    prose = COMMENT.sub(_blank, MARKED.sub(_blank, prose))
    seen = set()
    for match in UNMARKED.finditer(prose):
        seen.add(match[0])
        if match[0] not in allowed:
            yield f"line {_line(text, match.start())}: {match[0]} has no comment that says where it comes from"
    for number in sorted(allowed - seen):
        yield f"the list of unchecked numbers has {number}, and the prose does not; take it out"


def _cell(row: Row, column: str) -> str:
    text = row.get(column, "")
    check(text != "", f"{row['table']} has no {column} of {row['model']} under {row['condition']}")
    return str(text)


def _prose(text: str) -> str:
    """``text`` with blanks in place of everything else, at the same places."""
    return NO_PROSE.sub(_blank, text)


def _blank(match: re.Match) -> str:
    return re.sub(r"[^\n]", " ", match[0])


def _line(text: str, place: int) -> int:
    return text.count("\n", 0, place) + 1


def _files(folder: Path) -> set[str]:
    return {f"results/{path.name}" for path in (folder / "results").glob("*.csv")}


def main(argv: list[str], documents: Sequence[Path] = DOCUMENTS) -> int:
    """Command line of ``python docs/check_results.py``; the documents lie in one folder."""
    folder, found, shown, numbers = documents[0].parent, [], set(), 0
    for document in documents:
        text = document.read_text(encoding="utf-8")
        if "--write" in argv:
            text = with_numbers(with_tables(text, folder), folder)
            document.write_text(text, encoding="utf-8")
        found += [
            f"{document.name}: {problem}" for problem in differences(text, folder) + prose_differences(text, folder)
        ]
        shown |= {name for name, _ in TABLE.findall(text)}
        numbers += len(marked_numbers(text, folder)[0])
    found += [f"{name}: no document has a table of it" for name in sorted(_files(folder) - shown)]
    equal = f"{len(shown)} tables and {numbers} numbers of the prose equal their files"
    print("\n".join(found) if found else equal)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
