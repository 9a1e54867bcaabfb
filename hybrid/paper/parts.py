"""Writes a table or figure of the paper once its runs are there: Markdown, CSV and picture."""

from dataclasses import dataclass, field
from pathlib import Path

from hybrid.complexity import complexity_rows, draw_complexity
from hybrid.conditions import Noise
from hybrid.embedding import draw_embedding, embed_models, panel_rows
from hybrid.evaluation import load_test_images
from hybrid.figures import draw_training
from hybrid.paper.experiments import Experiments
from hybrid.paper.results import Row, table_lines, table_rows
from hybrid.paper.runs import Place, Run
from hybrid.paper.tables import FigureSpec, Part, TableSpec
from hybrid.storage import TrainedModel, history_rows, load_model
from snn.runtime.device import choose_device
from snn.runtime.outputs import write_atomically, write_csv

EMBEDDED = 1000
"""Largest number of test images in a panel of Figures 6 and 7."""


@dataclass(frozen=True)
class Writer:
    """Writes parts into a folder.

    Args:
        out: folder of Markdown, CSV and pictures.
        place: folder of the runs.
        cifar, traffic: experiments for the parts on CIFAR-10 and on traffic images.
        made: how the numbers were made, for captions.
        stand_in: added to the name of the data where other images stand in for traffic images.
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
    """Rows of each part that was written."""

    def plan(self, part: Part) -> Experiments:
        """The experiments that a part is made of."""
        return self.traffic if isinstance(part, TableSpec) and part.data == "traffic" else self.cifar

    def runs(self, part: Part) -> list[Run]:
        """The runs whose files a part is written from."""
        return part.runs(self.plan(part))

    def write(self, part: Part) -> list[Path]:
        """Write one part; return its files."""
        files = [self.out / f"{part.name}{suffix}" for suffix in (".md", ".csv", ".png")[: 3 if self.pictures else 2]]
        picture = files[2] if self.pictures else None
        if isinstance(part, TableSpec):
            rows, text = self._table(part, picture)
        elif part.kind == "complexity":
            rows, text = self._complexity(picture)
        else:
            rows, text = self._training(part, picture) if part.kind == "training" else self._embedding(part, picture)
        self.rows[part.name] = rows
        write_csv(files[1], rows)
        document = "\n".join([f"# {part.title}", "", *text]) + "\n"
        write_text(files[0], document)
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
        cells = ([f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)
        first, *others = ("| " + " | ".join(words) + " |" for words in (list(rows[0]), *cells))
        text = ["Parameters (M) and multiply-accumulates (G), ours and the paper's.", "", first]
        return rows, [*text, "|---" * len(rows[0]) + "|", *others]

    def _models(self, part: FigureSpec) -> dict[str, TrainedModel]:
        files = (run.file(self.place.folder) for run in self.runs(part))
        return dict(zip(part.networks, map(load_model, files), strict=True))

    def _training(self, part: FigureSpec, picture: Path | None) -> tuple[list[Row], list[str]]:
        ((name, model),) = self._models(part).items()
        subject = f"{name} on {self.cifar.source.data}"
        rows = history_rows({column: values.tolist() for column, values in model.history.items()})
        if picture:
            draw_training(model, subject, picture)
        last = rows[-1]
        text = [
            f"{subject}, {self.made}; held-out training images in place of the paper's test images, which "
            "are looked at once, for the tables.",
            "",
            "| after the last epoch | training | held out |",
            "|---|---|---|",
            f"| loss (nat) | {last['train_loss']:.3f} | {last['val_loss']:.3f} |",
            f"| accuracy (%) | {100 * last['train_accuracy']:.1f} | {100 * last['val_accuracy']:.1f} |",
        ]
        return rows, text

    def _embedding(self, part: FigureSpec, picture: Path | None) -> tuple[list[Row], list[str]]:
        models = self._models(part)
        limit = min(EMBEDDED, self.cifar.scale.limit_test or EMBEDDED)
        seed, device = self.cifar.seed, choose_device(self.place.device)
        data = load_test_images(models, None, self.place.root, limit, seed)
        panels = embed_models(models, data, [Noise.parse(text) for text in part.conditions], seed, device)
        rows = panel_rows(panels)
        if picture:
            draw_embedding(panels, data.classes, picture)
        text = [f"Embedding of test images of {data.data_source.data}, {self.made}.", ""]
        text += ["| model | condition | silhouette | top1 (%) |", "|---|---|---|---|"]
        text += [
            f"| {r['model']} | `{r['condition']}` | {r['silhouette']:.3f} | {r['accuracy_percent']:.1f} |" for r in rows
        ]
        return rows, text


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(text)

    write_atomically(path, write)
