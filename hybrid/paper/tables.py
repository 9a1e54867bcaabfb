"""Results of runs as rows (CSV) and as Markdown; the same functions write the tables and check those of a document."""

import csv
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np

from hybrid.conditions.corruptions import Corruption
from hybrid.paper.experiments import Cell
from hybrid.paper.numbers import paper_value

CATEGORIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
}
"""Of the common corruptions (Hendrycks and Dietterich, 2019)."""


LEAST_LOSS = 2.0
"""Points that the baseline must lose for a share of its loss to be told."""


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _read_values(cell: Cell, folder: Path, read: Callable[[Path], list[dict]]) -> list[dict]:
    """The row of each of its networks, with both paths (the first noise seed)."""
    found = []
    for run, network in zip(cell.runs, cell.networks, strict=True):
        wanted = (network.file(folder).stem, cell.condition, cell.metric, "both")
        rows = read(run.file(folder))
        found.append(next(r for r in rows if (r["model"], r["condition"], r["metric"], r["paths"]) == wanted))
    return found


def table_rows(name: str, cells: list[Cell], folder: Path) -> list[dict]:
    """One row per cell: our mean and deviation over seeds, the paper's number, the difference."""
    rows = []
    # A file holds many cells, and is read once.
    read = cache(read_rows)
    for cell in cells:
        found = _read_values(cell, folder, read)
        values = [float(row["value_percent"]) for row in found]
        number = int(name[-1]) if name.startswith("table") else 0
        paper = paper_value(number, cell.model, cell.condition, cell.metric)
        rows.append(
            {
                "table": name,
                "model": cell.model,
                "factor": cell.factor,
                "condition": cell.condition,
                "metric": cell.metric,
                **_mean(values),
                "values_percent": " ".join(f"{value:.3f}" for value in values),
                "standard_error_percent": found[0]["standard_error_percent"],
                "seeds": len(values),
                "images": found[0]["images"],
                "paper_percent": "" if paper is None else paper,
                "difference_percent": "" if paper is None else round(float(np.mean(values)) - paper, 3),
                "model_digests": " ".join(row["model_digest"] for row in found),
            }
        )
    return rows


def _mean(values: list[float]) -> dict:
    deviation = round(float(np.std(values, ddof=1)), 3) if len(values) > 1 else ""
    return {"ours_percent": round(float(np.mean(values)), 3), "deviation_percent": deviation}


def _by_seed(rows: list[dict]) -> dict[tuple[str, str], np.ndarray]:
    """Values of each model under each condition, one for each seed."""
    return {(r["model"], r["condition"]): np.array(list(map(float, r["values_percent"].split()))) for r in rows}


def _derived(table: str, model: str, condition: str, seeds: np.ndarray) -> dict:
    """A row of what is computed of other rows, which the paper does not have."""
    row = {"table": table, "model": model, "factor": "", "condition": condition}
    return row | _mean(seeds.tolist()) | {"paper_percent": "", "difference_percent": ""}


def recovered_rows(rows: list[dict], baseline: str) -> list[dict]:
    """Which share of the baseline's loss under noise other networks win back: 100 (ours - its) / (its clean - its).

    Args:
        rows: of :func:`table_rows`, with a clean condition.
        baseline: model to compare with, seed by seed.

    Returns:
        Rows of the networks under the conditions that cost the baseline :data:`LEAST_LOSS` points or more on average.
    """
    values = _by_seed(rows)
    clean, found = values[baseline, "clean"], []
    for (model, condition), ours in values.items():
        loss = clean - values[baseline, condition]
        if model != baseline and loss.mean() >= LEAST_LOSS:
            # One ratio of means: a seed whose baseline happens to lose little would have the say otherwise.
            gain = ours - values[baseline, condition]
            share = gain.mean() / loss.mean()
            # To first order, how much each seed moves that ratio.
            each = (gain - share * loss) / loss.mean()
            row = _derived("recovered", model, condition, 100 * (share + each))
            found.append(row | {"baseline_loss_points": round(float(loss.mean()), 3)})
    return found


def difference_rows(rows: list[dict], pairs: Iterable[tuple[str, str, str]], conditions: Iterable[str]) -> list[dict]:
    """How many points networks have more than others, seed by seed: what a part contributes.

    Args:
        rows: of :func:`table_rows`.
        pairs: name of the difference, model, model that is taken away.
        conditions: wanted.
    """
    values = _by_seed(rows)
    return [
        _derived("contributions", name, condition, values[model, condition] - values[other, condition])
        | {"compared": f"{model} less {other}"}
        for name, model, other in pairs
        for condition in conditions
    ]


def category_rows(rows: list[dict]) -> list[dict]:
    """Rows of common corruptions taken together: the mean of each category, and of all, seed by seed."""
    wanted = {"mean": tuple(name for names in CATEGORIES.values() for name in names), **CATEGORIES}
    values = _by_seed(rows)
    made = []
    for model in dict.fromkeys(row["model"] for row in rows):
        for category, names in wanted.items():
            mine = [seeds for (m, c), seeds in values.items() if m == model and Corruption.parse(c).corruption in names]
            made.append(_derived("corruptions", model, category, np.mean(mine, axis=0)))
    return made


def table_lines(rows: list[dict]) -> list[str]:
    """A row per network and a column per condition: ours ± deviation, then the paper's number and the difference.

    ``rows`` are those of one of the functions above, or what :func:`read_rows` finds in the file written of them.
    """
    if rows[0]["table"] == "corruptions":
        rows = category_rows(rows)
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    found = {(row["model"], row["condition"]): row for row in rows}
    factors = {row["model"]: row["factor"] for row in rows}
    told = any(factors.values())
    unit = " (%)" if rows[0]["table"] == "recovered" else ""
    first = "contribution" if rows[0]["table"] == "contributions" else "network"
    names = [first, *(["tried for"] if told else []), *(f"`{c}`{unit}" for c in conditions)]
    lines = [_line(names), "|---" * (2 if told else 1) + "|---:" * len(conditions) + "|"]
    for model, factor in factors.items():
        cells = [_cell(found[model, c]) if (model, c) in found else "" for c in conditions]
        lines.append(_line([model, *([factor] if told else []), *cells]))
    return lines


def _line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(row: dict) -> str:
    # Differences have a sign, shares of a small loss no decimals.
    kind = {"recovered": ".0f", "contributions": "+.1f"}.get(row["table"], ".1f")
    ours = format(float(row["ours_percent"]), kind)
    if row["deviation_percent"] != "":
        ours += " ± " + format(float(row["deviation_percent"]), kind.lstrip("+"))
    if row["paper_percent"] == "":
        return ours
    return f"{ours} ({float(row['paper_percent']):.1f}, {float(row['difference_percent']):+.1f})"
