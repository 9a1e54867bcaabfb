"""Numbers of the paper's Tables 1 to 7, from ``paper_tables.csv``: accuracies in %, parameters in M, MACs in G."""

import csv
from functools import cache
from pathlib import Path


@cache
def _values() -> dict[tuple[int, str, str, str], float]:
    with open(Path(__file__).parent / "paper_tables.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {(int(row["table"]), row["model"], row["condition"], row["metric"]): float(row["value"]) for row in rows}


def paper_value(table: int, model: str, condition: str, metric: str) -> float | None:
    """One number, or None where the paper has none; for example (2, "safe mobilenet_v2", "awgn:20", "top1")."""
    return _values().get((table, model, condition, metric))


def paper_rows(table: int) -> list[dict[str, str | float]]:
    """The rows of one table, in its order, with keys model, condition, metric and value; [] for an unknown table."""
    keys = ("model", "condition", "metric")
    return [
        dict(zip(keys, names, strict=True)) | {"value": value}
        for (number, *names), value in _values().items()
        if number == table
    ]
