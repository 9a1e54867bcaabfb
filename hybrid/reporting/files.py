"""Which files of a run say what: networks by their schema, tables by their columns.

Anybody may have made them: what is not as the commands write it is left out, with the reason.
"""

import csv
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from PIL import Image

from bridge.storage import SHIPPED_FRONTENDS, FrontEndFile, load_frontend
from hybrid.confusion import Confusion
from hybrid.storage import SHIPPED_NETWORKS as SHIPPED_MODELS
from hybrid.storage import TrainedModel, load_model
from snn.runtime.errors import UserError, check, visible
from snn.runtime.h5 import Stamp, read_stamp
from snn.runtime.pretrained import PREFIX
from snn.runtime.text_flag import read_number
from snn.storage import SHIPPED_NETWORKS, NetworkFile, load_network

Content = TypeVar("Content")

REPORTS = (".html", ".htm")
"""Ends of names that are passed over: of earlier reports."""
MOST_FILES = 5000
"""Files in all folders of a report."""
MOST_BYTES = 32 * 2**20
"""Size of a table or of a picture."""
MOST_CLASSES = 1000
"""Classes of a confusion matrix."""
MOST_PIXELS = 4e7
"""Size of a picture."""
RESULTS = {"model", "paths", "condition", "snr_dB", "mean_sigma_intensity", "images", "metric", "value_percent"} | {
    "standard_error_percent",
    "noise_seed",
    "draws",
    "mirror",
    "preprocess",
    "model_digest",
}
"""Columns of a table of hybrid.evaluate."""
CONFUSION = {"model", "condition", "noise_seed", "true_class", "predicted_class", "images"}
"""Columns of the table that hybrid.evaluate --confusion writes."""
EMBEDDING = {"model", "condition", "images", "silhouette", "accuracy_percent", "model_digest"}
"""Columns of a table of hybrid.embedding."""


@dataclass(frozen=True)
class StampedFile(Generic[Content]):
    """An HDF5 file of the project."""

    name: str
    """By which the report calls it."""
    path: Path
    stamp: Stamp
    content: Content


class Table(NamedTuple):
    """Rows of a CSV file, of which the numbers are read."""

    name: str
    rows: list[dict]


class ConfusionTable(NamedTuple):
    """Confusion matrices of hybrid.evaluate."""

    name: str
    confusion: Confusion


class EmbeddingTable(NamedTuple):
    """Scores of hybrid.embedding, with its picture (PNG), where it is there."""

    name: str
    rows: list[dict]
    picture: bytes | None


@dataclass
class Runs:
    """What was found in the folders of a report."""

    networks: list[StampedFile[NetworkFile]] = field(default_factory=list)
    frontends: list[StampedFile[FrontEndFile]] = field(default_factory=list)
    models: list[StampedFile[TrainedModel]] = field(default_factory=list)
    results: list[Table] = field(default_factory=list)
    confusions: list[ConfusionTable] = field(default_factory=list)
    embeddings: list[EmbeddingTable] = field(default_factory=list)
    paths: list[Path] = field(default_factory=list)
    """Of all these."""
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of each other file."""

    @property
    def stamped(self) -> list[StampedFile]:
        """All HDF5 files, in the order of the stages."""
        return [*self.networks, *self.frontends, *self.models]

    @property
    def tables(self) -> int:
        """Number of tables."""
        return len(self.results) + len(self.confusions) + len(self.embeddings)


def read_runs(given: Sequence[Path]) -> Runs:
    """Read folders with all that lies in them, single files, and results that ship (``pretrained:NAME``).

    Pages (.html) are passed over, as earlier reports are, and names that start with a dot.

    Raises :class:`UserError` for what does not exist, for a file named itself that is of no use, and if there is
    nothing to report on.
    """
    runs = Runs()
    seen: set[Path] = set()
    several = sum(not str(place).startswith(PREFIX) for place in given) > 1
    found: list[tuple[Path, str, bool]] = []
    for place in given:
        if str(place).startswith(PREFIX):
            _add_shipped(runs, str(place), seen)
            continue
        check(place.exists(), f"{place} does not exist; give a folder with results, or pretrained:NAME")
        if not place.is_dir():
            found.append((place, place.name, True))
            continue
        for path in _files(place):
            check(len(found) < MOST_FILES, f"{place} holds more than {MOST_FILES} files; give folders of single runs")
            found.append((path, str(path.relative_to(place.parent if several and place.name else place)), False))
    # What has the name of another is called by its whole path.
    times = Counter(name for _, name, _ in found)
    found = [(path, name if times[name] == 1 else str(path), named) for path, name, named in found]
    # Networks first: they name the classes of tables.
    for path, name, named in sorted(found, key=lambda file: file[0].suffix.lower() == ".csv"):
        reason = _add(runs, path, name, seen)
        check(not (named and reason), f"{path}: {reason}; give files that the commands wrote, or their folder")
        if reason:
            runs.left_out.append((visible(name), reason))
    check(
        bool(runs.stamped or runs.tables),
        f"{', '.join(map(str, given))}: nothing to report on; give a folder with what snn.learn, bridge.convert, "
        "hybrid.train or hybrid.evaluate wrote",
    )
    return runs


def _files(folder: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith(".") and not name.lower().endswith(REPORTS):
                yield Path(place) / name


def _add_shipped(runs: Runs, name: str, seen: set[Path]) -> None:
    """Add all files that ship under a name: a learned network and its front end have the same."""
    folders = (SHIPPED_NETWORKS, SHIPPED_FRONTENDS, SHIPPED_MODELS)
    plain = name.removeprefix(PREFIX)
    known = sorted({path.stem for folder in folders for path in folder.glob("*.h5")})
    check(plain in known, f"{name} does not ship with this package; choose from: {', '.join(known)}")
    for folder in folders:
        if (path := folder / f"{plain}.h5").is_file():
            label = {SHIPPED_NETWORKS: f"{name} (layers)", SHIPPED_FRONTENDS: f"{name} (front end)"}.get(folder, name)
            reason = _add(runs, path, label, seen)
            check(not reason, f"{name}: {reason}")


def _add(runs: Runs, path: Path, name: str, seen: set[Path]) -> str:
    """Add a file to those found; else say why not."""
    name = visible(name)
    if path.resolve() in seen:
        return ""
    seen.add(path.resolve())
    if not path.is_file():
        return "no regular file"
    readers: dict[str, Callable[[Runs, Path, str], str]] = {".h5": _add_stamped, ".hdf5": _add_stamped}
    readers[".csv"] = _add_table
    reader = readers.get(path.suffix.lower())
    if reader is None:
        return (
            "pictures; what they show is drawn anew"
            if path.suffix.lower() == ".png"
            else "not of a kind that is reported"
        )
    try:
        reason = reader(runs, path, name)
    except (UserError, OSError) as error:
        return " ".join(str(error).replace(str(path), "it").split())
    if not reason:
        runs.paths.append(path)
    return reason


def _add_stamped(runs: Runs, path: Path, name: str) -> str:
    stamp = read_stamp(path)
    known = [file for file in runs.stamped if file.stamp.digest == stamp.digest]
    if known:
        return f"the same content as {known[0].name}"
    kind = stamp.schema.partition("/")[0]
    if kind == "snn":
        runs.networks.append(StampedFile(name, path, stamp, load_network(path)))
    elif kind == "frontend":
        runs.frontends.append(StampedFile(name, path, stamp, load_frontend(path)))
    elif kind == "hybrid":
        runs.models.append(StampedFile(name, path, stamp, load_model(path)))
    else:
        return f"a file of schema {visible(stamp.schema)}, of which nothing is reported"
    return ""


def _add_table(runs: Runs, path: Path, name: str) -> str:
    check(path.stat().st_size <= MOST_BYTES, f"it has more than {MOST_BYTES >> 20} MiB")
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file, strict=True)
            columns, rows = set(reader.fieldnames or ()), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"it is no CSV file in UTF-8 ({error})") from error
    check(all(None not in row and None not in row.values() for row in rows), "its rows differ in length")
    if not rows:
        return "a table without rows"
    if columns >= RESULTS:
        runs.results.append(Table(name, _results(rows)))
    elif columns == CONFUSION:
        runs.confusions.append(ConfusionTable(name, _confusion(runs, rows)))
    elif columns >= EMBEDDING:
        runs.embeddings.append(EmbeddingTable(name, _scores(rows), _picture(path.with_suffix(".png"))))
    else:
        return "tables of which nothing is reported"
    return ""


def _results(rows: list[dict[str, str]]) -> list[dict]:
    numbers = {
        "value_percent": (0.0, 100.0),
        "standard_error_percent": (0.0, 100.0),
        "images": (1, 10**9),
        "noise_seed": (0, 2**64),
        "draws": (1, 10**9),
    }
    read: list[dict] = []
    for row in rows:
        optional = {"snr_dB": (-1000.0, 1000.0), "mean_sigma_intensity": (0.0, 1000.0)}
        ranges = numbers | {name: limits for name, limits in optional.items() if row[name] != ""}
        read.append(_texts(row) | _numbers(row, ranges))
    shown = {(row["model"], row["condition"]) for row in read if row["metric"] == "top1" and row["paths"] == "both"}
    models, conditions = ({pair[place] for pair in shown} for place in (0, 1))
    check(
        bool(shown) and len(shown) == len(models) * len(conditions),
        "it does not have the top-1 accuracy of each of its models under each of its conditions",
    )
    return read


def _confusion(runs: Runs, rows: list[dict[str, str]]) -> Confusion:
    read = [_texts(row) | _numbers(row, {"noise_seed": (0, 2**64), "images": (1, 10**9)}) for row in rows]
    named = {row[column] for row in read for column in ("true_class", "predicted_class")}
    check(len(named) <= MOST_CLASSES, f"it has more than {MOST_CLASSES} classes")
    counted = len({(row["model"], row["condition"], row["noise_seed"]) for row in read})
    # In the order of a network with these classes.
    classes = next(
        (model.content.spec.classes for model in runs.models if named <= set(model.content.spec.classes)), ()
    )
    check(counted * max(len(named), len(classes)) ** 2 <= 10**8, "it has too many matrices")
    confusion = Confusion.from_rows(read, tuple(map(visible, classes)))
    pairs = {(row["model"], row["condition"]) for row in read}
    check(
        len(pairs) == len(confusion.models) * len(confusion.conditions),
        "it does not have each of its models under each of its conditions",
    )
    return confusion


def _scores(rows: list[dict[str, str]]) -> list[dict]:
    ranges = {"images": (1, 10**9), "silhouette": (-1.0, 1.0), "accuracy_percent": (0.0, 100.0)}
    return [_texts(row) | _numbers(row, ranges) for row in rows]


def _texts(row: Mapping[str, str]) -> dict:
    return {name: visible(value) for name, value in row.items()}


def _numbers(row: Mapping[str, str], ranges: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """The values of these columns as numbers in their ranges, whole ones if the ranges are."""
    numbers = {}
    for name, (low, high) in ranges.items():
        whole = isinstance(low, int)
        try:
            value = int(row[name]) if whole and row[name].isdecimal() else read_number(row[name])
        except ValueError as error:
            raise UserError(f"column {name} has {row[name]!r:.50}, expected a number") from error
        valid = math.isfinite(value) and low <= value <= high and (isinstance(value, int) or not whole)
        check(valid, f"column {name} has {row[name]!r:.50}, expected {low:g} to {high:g}")
        numbers[name] = value
    return numbers


def _picture(path: Path) -> bytes | None:
    """The picture beside a table, decoded and encoded again as PNG; None where there is none that can be shown."""
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        return None
    try:
        with Image.open(path, formats=("PNG",)) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            out = io.BytesIO()
            image.convert("RGB").quantize(128).save(out, "PNG", optimize=True)
            return out.getvalue()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
