"""Results of runs as rows (CSV) and as Markdown; the same functions write the tables and check those of a document."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hybrid.conditions.corruptions import Corruption
from hybrid.paper.numbers import paper_value
from hybrid.paper.runs import Run

Row = dict[str, Any]
"""One row of a CSV file: of numbers as computed, or of text as read."""

CATEGORIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
"""Categories of the common corruptions (Hendrycks and Dietterich, 2019)."""

LEAST_LOSS = 2.0
"""Shares of a loss are given only where the baseline loses so many points."""


@dataclass(frozen=True)
class Line:
    """One line of a table: a network, whatever the condition."""

    name: str
    """Name in our table."""
    entry: str
    """Name without the backbone."""
    backbone: str
    factor: str = ""
    """The factor that the search examines with it."""
    paper: str = ""
    """Name of the line in the paper's table (paper_tables.csv), which need not have it."""


@dataclass(frozen=True)
class Cell:
    """One number of a table."""

    line: Line
    condition: str
    runs: tuple[Run, ...]
    """Evaluations, one for each training seed."""
    models: tuple[Run, ...]
    """The model of each evaluation whose accuracy is meant."""
    seeds: tuple[int, ...]
    """Seeds of their trainings."""


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table_rows(name: str, number: int, metric: str, cells: Iterable[Cell], folder: Path) -> list[Row]:
    """One row for each cell of table ``name``: our mean and deviation over seeds, the paper's number, the difference.

    ``number`` is that of the paper's table to compare with (0: none). ``folder`` holds the runs; seeds whose run it
    lacks are left out, and cells without any.
    """
    # A file holds many cells, and is read once.
    read = cache(read_rows)

    def measured(cell: Cell, run: Run, model: Run) -> dict[str, str]:
        """Its row in the file of the evaluation, with both paths of the network."""
        key = (model.name, cell.condition, metric, "both")
        rows = read(run.file(folder))
        return next(row for row in rows if (row["model"], row["condition"], row["metric"], row["paths"]) == key)

    rows = []
    for cell in cells:
        trainings = zip(cell.seeds, cell.runs, cell.models, strict=True)
        there = {seed: measured(cell, run, model) for seed, run, model in trainings if run.file(folder).exists()}
        if not there:
            continue
        results = list(there.values())
        values = [float(row["value_percent"]) for row in results]
        paper = paper_value(number, cell.line.paper, cell.condition, metric)
        rows.append(
            {
                "table": name,
                "model": cell.line.name,
                "factor": cell.line.factor,
                "condition": cell.condition,
                "metric": metric,
                **mean_over_seeds(values),
                "values_percent": " ".join(f"{value:.3f}" for value in values),
                "standard_error_percent": results[0]["standard_error_percent"],
                "seeds": len(values),
                "training_seeds": " ".join(map(str, there)),
                "images": results[0]["images"],
                "paper_percent": "" if paper is None else paper,
                "difference_percent": "" if paper is None else round(float(np.mean(values)) - paper, 3),
                "model_digests": " ".join(row["model_digest"] for row in results),
            }
        )
    return rows


def mean_over_seeds(values: Sequence[float]) -> Row:
    """Mean and standard deviation (ddof=1; "" of one value), as rows hold them."""
    deviation = round(float(np.std(values, ddof=1)), 3) if len(values) > 1 else ""
    return {"ours_percent": round(float(np.mean(values)), 3), "deviation_percent": deviation}


def values_by_seed(row: Row) -> dict[str, float]:
    """Values of a row of a table by the seed of the training."""
    values = list(map(float, row["values_percent"].split()))
    # Rows that do not name their seeds have them from 0 on.
    names = row.get("training_seeds") or " ".join(map(str, range(len(values))))
    return dict(zip(names.split(), values, strict=True))


def paired(*values: Mapping[str, float]) -> np.ndarray:
    """Values of the seeds that all have, (number of arguments, seeds)."""
    common = [seed for seed in values[0] if all(seed in others for others in values)]
    return np.array([[each[seed] for seed in common] for each in values])


def _by_seed(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, float]]:
    """Values of each model under each condition, by seed."""
    return {(row["model"], row["condition"]): values_by_seed(row) for row in rows}


def _derived(table: str, model: str, condition: str, seeds: np.ndarray) -> Row:
    """A row computed from others, for which the paper has no number."""
    row = {"table": table, "model": model, "factor": "", "condition": condition, "seeds": len(seeds)}
    return row | mean_over_seeds(seeds.tolist()) | {"paper_percent": "", "difference_percent": ""}


def recovered_rows(rows: Sequence[Row], baseline: str) -> list[Row]:
    """Share of the baseline's loss under noise that each network recovers: 100 (ours - its) / (its clean - its).

    Args:
        rows: of :func:`table_rows`, with a clean condition.
        baseline: model to compare with, seed by seed.

    Returns:
        Rows of the networks under the conditions that cost the baseline :data:`LEAST_LOSS` points or more on average.
    """
    values, shares = _by_seed(rows), []
    for (model, condition), own in values.items():
        if model == baseline:
            continue
        ours, clean, noisy = paired(own, *(values.get((baseline, name), {}) for name in ("clean", condition)))
        loss = clean - noisy
        if len(loss) and loss.mean() >= LEAST_LOSS:
            # A ratio of means: in a mean of ratios, a seed whose baseline loses little would dominate.
            gain = ours - noisy
            share = gain.mean() / loss.mean()
            # Contribution of each seed to the ratio's deviation, to first order.
            each = (gain - share * loss) / loss.mean()
            row = _derived("recovered", model, condition, 100 * (share + each))
            shares.append(row | {"baseline_loss_points": round(float(loss.mean()), 3)})
    return shares


def difference_rows(rows: Sequence[Row], pairs: Iterable[tuple[str, str, str]], conditions: Iterable[str]) -> list[Row]:
    """Differences between pairs of networks in points, seed by seed: what a part contributes.

    Each pair is the name of the difference, a model, and the model that is subtracted. Pairs without a common seed are
    left out.
    """
    values, differences = _by_seed(rows), []
    for name, model, other in pairs:
        for condition in conditions:
            first, second = paired(*(values.get((which, condition), {}) for which in (model, other)))
            if len(first):
                row = _derived("contributions", name, condition, first - second)
                differences.append(row | {"compared": f"{model} less {other}"})
    return differences


def category_rows(rows: Sequence[Row]) -> list[Row]:
    """Means over all common corruptions and over each category, seed by seed."""
    wanted = {"mean": tuple(name for names in CATEGORIES.values() for name in names), **CATEGORIES}
    values = _by_seed(rows)
    means = []
    for model in dict.fromkeys(row["model"] for row in rows):
        for category, names in wanted.items():
            members = [v for (m, c), v in values.items() if m == model and Corruption.parse(c).corruption in names]
            mean = np.mean(paired(*members), axis=0)
            row = _derived("corruptions", model, category, mean)
            means.append(row | {"values_percent": " ".join(f"{value:.3f}" for value in mean)})
    return means


def shown_rows(rows: Sequence[Row]) -> Sequence[Row]:
    """What is printed and drawn of a table: all its rows, but means over the common corruptions."""
    return category_rows(rows) if rows[0]["table"] == "corruptions" else rows


def markdown(names: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> list[str]:
    """Lines of a Markdown table; the last ``numbers`` columns are aligned to the right."""
    first, *others = ("| " + " | ".join(cells) + " |" for cells in (names, *rows))
    return [first, "|---" * (len(names) - numbers) + "|---:" * numbers + "|", *others]


def table_lines(rows: Sequence[Row]) -> list[str]:
    """Markdown with a row per network and a column per condition: ours ± deviation (the paper's, difference).

    ``rows`` are those of one of the functions above, or what :func:`read_rows` finds in the file written of them.
    """
    rows = shown_rows(rows)
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    by_place = {(row["model"], row["condition"]): row for row in rows}
    factors = {row["model"]: row["factor"] for row in rows}
    unit = " (%)" if rows[0]["table"] == "recovered" else ""
    first = "contribution" if rows[0]["table"] == "contributions" else "network"
    counts: dict[str, set[int]] = {model: set() for model in factors}
    for row in rows:
        counts[row["model"]].add(int(row.get("seeds") or 0))
    # Conditions of a line can have been measured on different numbers of trainings.
    seeds = {model: "-".join(map(str, sorted({min(own), max(own)}))) for model, own in counts.items()}
    with_factor, with_seeds = any(factors.values()), len(set(seeds.values())) > 1
    optional = [*(["tried for"] if with_factor else []), *(["seeds"] if with_seeds else [])]
    names = [first, *optional, *(f"`{c}`{unit}" for c in conditions)]
    lines = []
    for model, factor in factors.items():
        cells = [_cell(by_place[model, c]) if (model, c) in by_place else "" for c in conditions]
        lines.append([model, *([factor] if with_factor else []), *([seeds[model]] if with_seeds else []), *cells])
    return markdown(names, lines, len(conditions))


def _cell(row: Row) -> str:
    # Differences have a sign, shares of a small loss no decimals.
    kind = {"recovered": ".0f", "contributions": "+.1f"}.get(row["table"], ".1f")
    ours = format(float(row["ours_percent"]), kind)
    if row["deviation_percent"] != "":
        ours += " ± " + format(float(row["deviation_percent"]), kind.lstrip("+"))
    if row["paper_percent"] == "":
        return ours
    return f"{ours} ({float(row['paper_percent']):.1f}, {float(row['difference_percent']):+.1f})"
