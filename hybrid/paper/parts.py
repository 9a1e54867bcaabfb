"""Writes a table or figure of the paper once its runs are there: Markdown, CSV and picture."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hybrid.complexity import complexity_rows, draw_complexity
from hybrid.conditions.drawn import parse_condition
from hybrid.embedding import draw_embedding, embed_models, panel_rows
from hybrid.evaluation import load_test_images
from hybrid.figures import draw_training
from hybrid.paper.experiments import Experiments
from hybrid.paper.results import Row, table_lines, table_rows
from hybrid.paper.runs import Place, Run
from hybrid.paper.tables import ComplexitySpec, EmbeddingSpec, Part, TableSpec, TrainingSpec
from hybrid.storage import history_rows, load_model
from snn.runtime.device import choose_device
from snn.runtime.outputs import write_atomically, write_csv

EMBEDDED = 1000
"""Test images in the panels of Figures 6 and 7, at most."""


@dataclass(frozen=True)
class Writer:
    """Writes parts into a folder, from the runs of another.

    Args:
        out: folder of Markdown, CSV and pictures.
        place: of the runs.
        cifar, traffic: the experiments, by what a table says of its data.
        made: how the numbers were made, for captions.
        stand_in: note on the data of tables of traffic images, where other images stand in for these.
        pictures: whether to draw.
    """

    out: Path
    place: Place
    cifar: Experiments
    traffic: Experiments
    made: str
    stand_in: str = ""
    pictures: bool = True
    rows: dict[str, list[Row]] = field(default_factory=dict)
    """What was written, by part."""

    def plan(self, part: Part) -> Experiments:
        """The experiments that a part is made of."""
        return self.traffic if isinstance(part, TableSpec) and part.data == "traffic" else self.cifar

    def runs(self, part: Part) -> list[Run]:
        """What must be there before a part is written."""
        return part.runs(self.plan(part))

    def write(self, part: Part) -> list[Path]:
        """Write one part; return its files."""
        files = [self.out / f"{part.name}{suffix}" for suffix in (".md", ".csv", ".png")[: 3 if self.pictures else 2]]
        picture = files[2] if self.pictures else None
        match part:
            case TableSpec():
                rows, text = self._table(part, picture)
            case ComplexitySpec():
                rows, text = self._complexity(picture)
            case TrainingSpec():
                rows, text = self._training(part, picture)
            case EmbeddingSpec():
                rows, text = self._embedding(part, picture)
        self.rows[part.name] = rows
        write_csv(files[1], rows)
        document = "\n".join([f"# {part.title}", "", *text]) + "\n"
        write_atomically(files[0], lambda temporary: temporary.write_text(document))
        return files

    def _table(self, part: TableSpec, picture: Path | None) -> tuple[list[Row], list[str]]:
        plan = self.plan(part)
        cells = part.cells(plan)
        lines = list(dict.fromkeys(cell.line for cell in cells))
        rows = table_rows(part.name, part.number, part.metric, cells, self.place.folder)
        data, seeds = plan.source.data, rows[0]["seeds"]
        note = self.stand_in if part.data == "traffic" else ""
        compared = any(row["paper_percent"] != "" for row in rows)
        caption = (
            f"{part.metric} accuracy in %, {data}{note}, {rows[0]['images']} "
            f"{'held-out training' if part.evaluation.split == 'held-out' else 'test'} images; {self.made}. Ours"
            + (f" ± standard deviation over {seeds} training seeds" if seeds > 1 else " (one training seed)")
            + ("; in brackets the paper's number and the difference." if compared else ".")
        )
        text = [caption, "", *table_lines(rows)]
        for derived in part.derived:
            if further := derived.rows(rows, lines):
                write_csv(self.out / f"{derived.name}.csv", further)
                text += ["", derived.caption, "", *table_lines(further)]
        if picture:
            # Where a folder of images lies is of no interest in a picture.
            shown = Path(data).name if data.startswith("folder:") else data + note
            subject = part.subject or f"{part.title}: {part.metric} accuracy"
            part.draw(part.condense(rows), lines, f"{subject} on {shown}", picture)
        return rows, text

    def _complexity(self, picture: Path | None) -> tuple[list[Row], list[str]]:
        rows = complexity_rows()
        if picture:
            draw_complexity(rows, picture)
        text = ["Parameters (M) and multiply-accumulates (G), ours and the paper's.", "", *_markdown(rows)]
        return rows, text

    def _training(self, part: TrainingSpec, picture: Path | None) -> tuple[list[Row], list[str]]:
        (run,) = self.runs(part)
        model, data = load_model(run.file(self.place.folder)), self.cifar.source.data
        rows = history_rows({name: values.tolist() for name, values in model.history.items()})
        if picture:
            draw_training(model, f"SAFE-MobileNetV2 on {data}", picture)
        last = rows[-1]
        text = [
            f"SAFE-MobileNetV2 on {data}, {self.made}; held-out training images in place of the paper's test images, "
            "which are looked at once, for the tables.",
            "",
            "| after the last epoch | training | held out |",
            "|---|---|---|",
            f"| loss (nat) | {last['train_loss']:.3f} | {last['val_loss']:.3f} |",
            f"| accuracy (%) | {100 * last['train_accuracy']:.1f} | {100 * last['val_accuracy']:.1f} |",
        ]
        return rows, text

    def _embedding(self, part: EmbeddingSpec, picture: Path | None) -> tuple[list[Row], list[str]]:
        files = (run.file(self.place.folder) for run in self.runs(part))
        models = dict(zip(part.networks, map(load_model, files), strict=True))
        limit = min(EMBEDDED, self.cifar.scale.limit_test or EMBEDDED)
        seed, device = self.cifar.seed, choose_device(self.place.device)
        data = load_test_images(models, None, self.place.root, limit, seed)
        panels = embed_models(models, data, [parse_condition(text) for text in part.conditions], seed, device)
        rows = panel_rows(panels)
        if picture:
            draw_embedding(panels, data.classes, picture)
        shown = [
            {
                "model": row["model"],
                "condition": f"`{row['condition']}`",
                "silhouette": row["silhouette"],
                "top1 (%)": f"{row['accuracy_percent']:.1f}",
            }
            for row in rows
        ]
        return rows, [f"Embedding of test images of {data.source.data}, {self.made}.", "", *_markdown(shown)]


def _markdown(rows: list[dict[str, Any]]) -> list[str]:
    """A table of all columns; floating-point numbers with three decimals."""
    cells = [list(rows[0]), *([f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)]
    lines = ["| " + " | ".join(words) + " |" for words in cells]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]
