"""Writes a table or figure of the paper once its runs are there: Markdown, CSV and picture."""

from dataclasses import dataclass, field
from pathlib import Path

from hybrid.complexity import complexity_rows, draw_complexity
from hybrid.conditions import Noise
from hybrid.embedding import draw_embedding, embed_models, panel_rows
from hybrid.evaluation import load_test_images
from hybrid.figures import draw_frontier, draw_table, draw_training
from hybrid.paper.experiments import Experiments
from hybrid.paper.results import Row, markdown, shown_rows, table_lines, table_rows
from hybrid.paper.runs import Place, Run
from hybrid.paper.tables import FigureSpec, Part, TableSpec
from hybrid.storage import TrainedModel, history_rows, load_model
from snn.runtime.device import choose_device
from snn.runtime.outputs import write_atomically, write_csv

EMBEDDED = 1000
"""Largest number of test images in a panel of Figures 6 and 7."""


@dataclass(frozen=True)
class Writer:
    """Writes parts into the folder ``out``, from the runs in ``place``."""

    out: Path
    place: Place
    cifar: Experiments
    traffic: Experiments
    """Experiments of Tables 3, 4 and 6; ``cifar`` has all others."""
    provenance: str
    """How the numbers were made, for captions."""
    stand_in: str = ""
    """Added to the name of the data where other images stand in for traffic images."""
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
        files = [self.out / f"{part.name}{suffix}" for suffix in (".md", ".csv", ".png")]
        picture = files[2] if self.pictures else None
        if isinstance(part, TableSpec):
            rows, text = self._table(part, picture)
        elif part.kind == "complexity":
            rows, text = self._complexity(picture)
        elif part.kind == "training":
            rows, text = self._training(part, picture)
        else:
            rows, text = self._embedding(part, picture)
        self.rows[part.name] = rows
        write_csv(files[1], rows)
        document = "\n".join([f"# {part.title}", "", *text]) + "\n"
        write_atomically(files[0], lambda temporary: temporary.write_text(document, encoding="utf-8"))
        return files if picture else files[:2]

    def _table(self, part: TableSpec, picture: Path | None) -> tuple[list[Row], list[str]]:
        plan = self.plan(part)
        cells = part.cells(plan)
        lines = list(dict.fromkeys(cell.line for cell in cells))
        rows = table_rows(part.name, part.number, part.metric, cells, self.place.folder)
        data, seeds = plan.source.data, max(row["seeds"] for row in rows)
        note = self.stand_in if part.data == "traffic" else ""
        few = "" if all(row["seeds"] == seeds for row in rows) else "up to "
        compared = any(row["paper_percent"] != "" for row in rows)
        caption = (
            f"{part.metric} accuracy in %, {data}{note}, {rows[0]['images']} "
            f"{'held-out training' if part.evaluation.split == 'held-out' else 'test'} images; {self.provenance}. Ours"
            + (f" ± standard deviation over {few}{seeds} training seeds" if seeds > 1 else " (one training seed)")
            + ("; in brackets the paper's number and the difference." if compared else ".")
        )
        text = [caption, "", *table_lines(rows)]
        for derived in part.derived:
            if further := derived.rows(rows, lines):
                write_csv(self.out / f"{derived.name}.csv", further)
                text += ["", derived.caption, "", *table_lines(further)]
        if picture and part.search:
            draw_frontier(rows, picture)
        elif picture:
            # Where a folder of images lies is of no interest in a picture.
            shown = Path(data).name if data.startswith("folder:") else data + note
            title = f"{part.subject or f'{part.title}: {part.metric} accuracy'} on {shown}"
            draw_table(shown_rows(rows), {line.name: (line.backbone, line.entry) for line in lines}, title, picture)
        return rows, text

    def _complexity(self, picture: Path | None) -> tuple[list[Row], list[str]]:
        rows = complexity_rows()
        if picture:
            draw_complexity(rows, picture)
        cells = ([f"{v:.3f}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows)
        text = ["Parameters (M) and multiply-accumulates (G), ours and the paper's.", ""]
        return rows, text + markdown(list(rows[0]), cells)

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
        caption = (
            f"{subject}, {self.provenance}; held-out training images in place of the paper's test images, which "
            "are looked at once, for the tables."
        )
        cells = [
            ["loss (nat)", f"{last['train_loss']:.3f}", f"{last['val_loss']:.3f}"],
            ["accuracy (%)", f"{100 * last['train_accuracy']:.1f}", f"{100 * last['val_accuracy']:.1f}"],
        ]
        return rows, [caption, "", *markdown(["after the last epoch", "training", "held out"], cells)]

    def _embedding(self, part: FigureSpec, picture: Path | None) -> tuple[list[Row], list[str]]:
        models = self._models(part)
        limit = min(EMBEDDED, self.cifar.scale.limit_test or EMBEDDED)
        seed, device = self.cifar.seed, choose_device(self.place.device)
        data = load_test_images(models, None, self.place.root, limit, seed, cache=self.place.caching.cache)
        panels = embed_models(models, data, [Noise.parse(text) for text in part.conditions], seed, device)
        rows = panel_rows(panels)
        if picture:
            draw_embedding(panels, data.classes, picture)
        cells = (
            [r["model"], f"`{r['condition']}`", f"{r['silhouette']:.3f}", f"{r['accuracy_percent']:.1f}"] for r in rows
        )
        text = [f"Embedding of test images of {data.data_source.data}, {self.provenance}.", ""]
        return rows, text + markdown(["model", "condition", "silhouette", "top1 (%)"], cells)
