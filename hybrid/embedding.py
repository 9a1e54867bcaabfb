"""What the last layer is given, drawn by t-SNE: the paper's Figures 6 and 7.

Each panel has the silhouette score of the true classes in its title: how much closer an image lies to its own class
than to the next, from -1 to 1. It is computed in the embedding itself, as t-SNE distorts distances.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from torch import Tensor, nn

from hybrid.conditions import NOISE_CHUNK, perturb
from hybrid.evaluate import check_same_data
from hybrid.model import TrainedModel, embed, load_model
from hybrid.noise import Condition, parse_condition
from snn.command import (
    RunOptions,
    beside,
    check_outputs,
    choose_device,
    progress,
    run_command,
    save_figure,
    write_csv,
    write_json,
)
from snn.data import Images, load_images
from snn.errors import check


@dataclass(frozen=True)
class EmbeddingConfig:
    """Draw the embedding of test images under noise by t-SNE, with silhouette score and accuracy."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Files written by hybrid.train or hybrid.swap: a row of panels each."""
    out: Path
    """PNG file to write; a CSV file with the scores comes beside it."""
    noise: tuple[str, ...] = ("awgn:20", "awgn:18", "awgn:15")
    """Conditions, a column each, as for hybrid.evaluate (drawn noise and clean)."""
    names: tuple[str, ...] | None = None
    """Names of the models in the figure; None: those of the files."""
    data: str | None = None
    """Test images, if not those of the training run: digits, cifar10 or folder:PATH."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the training run."""
    limit_test: int = 1000
    """Take at most this many test images, balanced over classes."""
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check(len(self.models) >= 1, "no model given; name at least one file written by hybrid.train")
        check(len(self.noise) >= 1, "--noise: give at least one condition, for example awgn:20")
        names = self.names or tuple(path.stem for path in self.models)
        check(
            len(set(names)) == len(self.models),
            f"names {', '.join(names)} for {len(self.models)} models: give one to each, all different, with --names",
        )


class Panel(NamedTuple):
    """One model under one condition."""

    model: str
    condition: str
    points: np.ndarray
    """By t-SNE, (N, 2)."""
    labels: np.ndarray
    """True classes (N,)."""
    silhouette: float
    """In the embedding, -1 to 1."""
    accuracy: float
    """Top-1 in %."""


def embeddings(network: nn.Module, images: Tensor, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """What the last linear layer is given (N, D), and logits (N, classes), on the CPU, of images in [0, 1]."""
    network = network.to(device).eval()
    with torch.inference_mode():
        found = [embed(network, batch.to(device)) for batch in images.split(NOISE_CHUNK)]
    return torch.cat([pair[0].cpu() for pair in found]), torch.cat([pair[1].cpu() for pair in found])


def embed_models(
    models: dict[str, TrainedModel],
    data: Images,
    conditions: list[Condition],
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Panel]:
    """A panel for each model and condition, models first.

    Raises :class:`snn.errors.UserError` for too few images or classes, and for conditions that are no draws.
    """
    classes = len(data.labels.unique())
    check(
        classes >= 2 and len(data.labels) > max(3, classes),
        f"{len(data.labels)} test images of {classes} classes: a silhouette needs two classes and more images than "
        "classes; raise --limit-test",
    )
    for condition in conditions:
        check(condition.drawn, f"--noise {condition.name}: embeddings are drawn for noise only, such as awgn:20")
    panels, labels = [], data.labels.numpy()
    for name, condition in progress([(m, c) for m in models for c in conditions], "embedding", "panel"):
        images = perturb(data, condition, seed).images
        found, logits = embeddings(models[name].network, images, device)
        values = found.numpy()
        perplexity = min(30.0, (len(values) - 1) / 3)
        points = TSNE(init="pca", perplexity=perplexity, random_state=seed).fit_transform(values)
        accuracy = 100 * (logits.argmax(1) == data.labels).double().mean().item()
        panels.append(Panel(name, condition.name, points, labels, float(silhouette_score(values, labels)), accuracy))
    return panels


def panel_rows(panels: list[Panel]) -> list[dict]:
    """The scores of each panel."""
    return [
        {
            "model": panel.model,
            "condition": panel.condition,
            "images": len(panel.labels),
            "silhouette": round(panel.silhouette, 4),
            "accuracy_percent": round(panel.accuracy, 3),
        }
        for panel in panels
    ]


def draw_embedding(panels: list[Panel], classes: tuple[str, ...], path: Path) -> None:
    """A row of panels for each model, a colour for each class."""
    models, conditions = (list(dict.fromkeys(values)) for values in zip(*(panel[:2] for panel in panels), strict=True))
    figure = Figure(figsize=(1.6 + 3.0 * len(conditions), 0.5 + 3.1 * len(models)), layout="constrained")
    axes = figure.subplots(len(models), len(conditions), squeeze=False)
    colours = matplotlib.colormaps["tab10" if len(classes) <= 10 else "tab20"]
    for panel in panels:
        place = axes[models.index(panel.model)][conditions.index(panel.condition)]
        for label, name in enumerate(classes):
            points = panel.points[panel.labels == label]
            place.scatter(points[:, 0], points[:, 1], s=6, color=colours(label % colours.N), label=name, linewidths=0)
        place.set_title(f"{panel.condition}: silhouette {panel.silhouette:.2f}, {panel.accuracy:.1f} %", fontsize=9)
        place.set_xticks([])
        place.set_yticks([])
    for row, model in zip(axes, models, strict=True):
        row[0].set_ylabel(model)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, markerscale=3, fontsize=8)
    save_figure(figure, path)


def run(config: EmbeddingConfig) -> None:
    """The command: load, embed, draw, report."""
    table = beside(config.out, ".csv")
    check_outputs(config.out, table, config.options.json, inputs=config.models)
    device, seed = choose_device(config.options.device), config.options.seed
    conditions = [parse_condition(text) for text in dict.fromkeys(config.noise)]
    names = config.names or tuple(path.stem for path in config.models)
    models = {name: load_model(path) for name, path in zip(names, config.models, strict=True)}
    source = next(iter(models.values())).source
    source = source.override(data=config.data, root=config.root, limit_test=config.limit_test)
    data = load_images(source, "test", seed)
    check_same_data(models, data)
    panels = embed_models(models, data, conditions, seed, device)
    about = {
        name: {"noise_seed": seed, "training_seed": m.seed, "model_digest": m.digest} for name, m in models.items()
    }
    rows = [row | about[row["model"]] for row in panel_rows(panels)]
    write_csv(table, rows)
    write_json(config.options.json, {"panels": rows})
    draw_embedding(panels, data.classes, config.out)
    shown = Table(title=f"Embeddings of {len(data.labels)} test images")
    for heading in ("model", "condition", "silhouette", "top1 (%)"):
        shown.add_column(heading, justify="right" if heading in ("silhouette", "top1 (%)") else "left")
    for row in rows:
        shown.add_row(row["model"], row["condition"], f"{row['silhouette']:.3f}", f"{row['accuracy_percent']:.1f}")
    Console().print(shown)
    print(f"wrote {config.out} and {table}")


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.embedding``."""
    return run_command(EmbeddingConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
