"""Numbers of the paper's Tables 1 to 7, from ``paper_tables.csv``: accuracies in %, parameters in M, MACs in G."""

import csv
from functools import cache
from pathlib import Path


@cache
def _values() -> dict[tuple[int, str, str, str], float]:
    with open(Path(__file__).parent / "paper_tables.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return {(int(row["table"]), row["model"], row["condition"], row["metric"]): float(row["value"]) for row in rows}


def paper_value(table: int, model: str, condition: str, metric: str) -> float | None:
    """One number, or None where the paper has none; for example (2, "safe mobilenet_v2", "awgn:20", "top1")."""
    return _values().get((table, model, condition, metric))
