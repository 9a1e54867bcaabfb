"""How well a network's last layer separates the classes under noise, as pictures and as a number (paper, Fig. 6 and 7).

The embedding is the input of the last linear layer. Each panel shows its t-SNE layout in the plane. t-SNE keeps
neighbours together but distorts distances and the sizes of clusters, and another seed gives another picture. The
silhouette score in a panel's title is therefore computed from the embedding, in all its dimensions, with the true
classes as clusters. It is 1 for tight clusters far apart, 0 for overlapping ones, and negative where images are nearer
to another class than to their own (Rousseeuw 1987).
"""

import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import tyro
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from threadpoolctl import threadpool_limits
from torch import Tensor

from hybrid.conditions import Condition, Noise, condition_flag
from hybrid.evaluation import common_source, different, distinct, load_test_images, match_classes, name_models
from hybrid.figures import LONGEST_NAME, shortened
from hybrid.network import Network, embed
from hybrid.printing import print_table
from hybrid.storage import TrainedModel, load_model, model_file
from snn.data import Images, image_folders
from snn.data_source import IMAGES, SIDE, note_root
from snn.image_cache import Caching
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs, Target, beside, save_figure, write_csv
from snn.runtime.progress import progress
from snn.runtime.ranges import check_fields

PERPLEXITY = 30.0
"""Perplexity of t-SNE, smaller for fewer than 91 images (scikit-learn's default; the paper states none)."""
CAPTION = (
    "t-SNE of the input of the last linear layer. Silhouette scores are computed in that space with the true classes, "
    "not in the picture, which distorts distances."
)


@dataclass(frozen=True)
class EmbeddingConfig:
    """Draw the embeddings of saved models under noise, one row per model, one column per condition."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Files written by hybrid.train or hybrid.swap, or pretrained:NAME."""
    out: Path
    """PNG file to write, for example fig6.png; a CSV file goes beside it."""
    noise: Annotated[tuple[Noise, ...], condition_flag(Noise, many=True)] = (
        Noise.parse("awgn:20"),
        Noise.parse("awgn:18"),
        Noise.parse("awgn:15"),
    )
    """Noise on the test images, a column for each."""
    names: tuple[str, ...] = ()
    """Names of the rows, one for each model; by default the names of the files."""
    data: str | None = None
    """Test images, if not those of the training run: digits, cifar10 or folder:PATH."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the training run."""
    image_size: Annotated[int | None, SIDE] = None
    """Resize images to this height and width, in pixels; None: as in the training run."""
    limit_test: Annotated[int, IMAGES] = 1000
    """Take at most this many test images, balanced over classes."""
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_fields(self)
        check(len(self.models) >= 1, "no model given; name at least one file written by hybrid.train")
        check(len(self.noise) >= 1, "`noise`: give at least one condition, for example awgn:20")
        check(
            not self.names or len(self.names) == len(self.models),
            f"`names` {' '.join(self.names)}: {len(self.names)} for {len(self.models)} models; give one for each",
        )
        check(
            len(set(self.names)) == len(self.names),
            f"`names` {' '.join(self.names)}: rows need different names; change one",
        )
        check(self.out.suffix.lower() == ".png", f"`out` {self.out}: expected a name that ends in .png")


class Panel(NamedTuple):
    """One model under one condition."""

    model: str
    condition: str
    points: np.ndarray
    """t-SNE layout, float32 (N, 2), in arbitrary units."""
    labels: np.ndarray
    """True classes, int64 (N,)."""
    silhouette: float
    """Silhouette score of the embedding (not of ``points``), -1 to 1."""
    accuracy: float
    """Top-1 accuracy, in %."""


@torch.no_grad()
def embeddings(network: Network, batches: Iterable[Tensor], device: torch.device | str) -> tuple[Tensor, Tensor]:
    """The embedding (N, D) and the logits (N, classes) of images in [0, 1], float32, on the CPU.

    The images come in mini-batches (B, C, H, W). The network is moved to ``device`` and set to evaluation mode.
    """
    network.to(device).eval()
    placed = (batch.to(device).contiguous(memory_format=torch.channels_last) for batch in batches)
    results = [embed(network, batch) for batch in placed]
    embedding, logits = (torch.cat([part.cpu() for part in parts]) for parts in zip(*results, strict=True))
    return embedding, logits


def lay_out(embedding: Tensor, seed: int) -> np.ndarray:
    """Points (N, 2), float32, of an embedding (N, D) with N >= 3, by t-SNE (van der Maaten and Hinton 2008).

    It starts from the two principal components. The same seed gives the same bits.
    """
    vectors = embedding.double().numpy()
    if np.ptp(vectors, axis=0).max() == 0:
        # scikit-learn divides by the spread of the first component.
        return np.zeros((len(vectors), 2), dtype=np.float32)
    if vectors.shape[1] == 1:
        # Two components need two columns; a constant one changes no distance.
        vectors = np.pad(vectors, ((0, 0), (0, 1)))
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    # The sum over several threads depends on the order in which they end.
    with threadpool_limits(1):
        return TSNE(init="pca", random_state=seed, perplexity=perplexity).fit_transform(vectors).astype(np.float32)


def embed_models(
    models: dict[str, TrainedModel],
    data: Images,
    conditions: Sequence[Condition],
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[Panel]:
    """A panel for each model (outer), by the name of its row, and each condition (inner).

    Every model sees the same noise on the test images; ``seed`` is that of the noise and of t-SNE. Raises
    :class:`UserError` for a condition that is no noise, models of other data, and too few images or classes.
    """
    for condition in conditions:
        check(isinstance(condition, Noise), f"`conditions` {condition}: embeddings are drawn for noise only")
    noises = [condition for condition in conditions if isinstance(condition, Noise)]
    data = match_classes(models, data)
    _check_images(data)
    labels = data.labels.numpy()
    panels = []
    with progress(None, "drawing embeddings", "panel", total=len(models) * len(conditions)) as bar:
        for noise in noises:
            for name, model in models.items():
                # Drawn anew for each model, to the same bits.
                embedding, logits = embeddings(model.network, noise.batches(data.images, seed), device)
                score = float(silhouette_score(embedding.double().numpy(), labels))
                accuracy = 100 * (logits.argmax(1) == data.labels).double().mean().item()
                panels.append(Panel(name, str(noise), lay_out(embedding, seed), labels, score, accuracy))
                bar.update()
    return sorted(panels, key=lambda panel: list(models).index(panel.model))


def _check_images(data: Images) -> None:
    name, count = data.data_source.data, len(data.labels)
    check(count >= 3, f"{name}: {count} test images, t-SNE needs 3 or more; raise `limit_test` or add images")
    present = data.labels.unique().tolist()
    check(
        len(present) >= 2,
        f"{name}: all {count} test images are of class {data.classes[present[0]]!r}, the silhouette score needs 2 "
        "classes or more; add images of another class",
    )
    check(
        len(present) < count,
        f"{name}: {count} test images of {len(present)} classes, the silhouette score needs a class with 2 images or "
        "more; raise `limit_test` or add images",
    )


def draw_embedding(panels: list[Panel], classes: tuple[str, ...], target: Target) -> None:
    """Draw panels of :func:`embed_models` as a grid of models x conditions, beside a legend of the classes, as PNG."""
    models = list(dict.fromkeys(panel.model for panel in panels))
    conditions = list(dict.fromkeys(panel.condition for panel in panels))
    colours = _colours(len(classes))
    names = [shortened(name, LONGEST_NAME) for name in classes]
    # In inches. An entry of the legend is 0.19 high; the figure is wider than its panels by the columns of the legend.
    height = 0.5 + 3.1 * len(models)
    legend_columns = -(-len(names) // int((height - 0.6) / 0.19))
    legend_width = legend_columns * (0.5 + 0.075 * max(map(len, names)))
    figure = Figure(figsize=(0.4 + 2.8 * len(conditions) + legend_width, height), layout="constrained")
    axes = figure.subplots(len(models), len(conditions), squeeze=False)
    for panel in panels:
        row, column = models.index(panel.model), conditions.index(panel.condition)
        _draw_panel(axes[row, column], panel, colours)
        if column == 0:
            axes[row, column].set_ylabel(panel.model, fontsize=10)
    handles = [Line2D([], [], linestyle="", marker="o", markersize=6, color=colour) for colour in colours]
    legend = figure.legend(
        handles,
        # Texts are set below: matplotlib leaves out labels that start with an underscore.
        [" "] * len(handles),
        loc="outside right center",
        ncols=legend_columns,
        fontsize=9,
        frameon=False,
        handletextpad=0.2,
        columnspacing=1.0,
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
    # A letter of this size is 0.066 inches wide.
    caption = textwrap.fill(CAPTION, max(20, int(figure.get_figwidth() / 0.066)))
    figure.supxlabel(caption, fontsize=8, color="0.35")
    save_figure(figure, target)


def _draw_panel(axes: Axes, panel: Panel, colours: list) -> None:
    # In random order, so that no class covers all others where they overlap.
    order = np.random.default_rng(0).permutation(len(panel.labels))
    points, labels = panel.points[order], panel.labels[order]
    size = float(np.clip(6000 / len(points), 4, 24))
    colour = [colours[label] for label in labels]
    axes.scatter(points[:, 0], points[:, 1], s=size, c=colour, alpha=0.8, linewidths=0)
    title = f"{panel.condition}\nsilhouette {panel.silhouette:.3f}, top-1 {panel.accuracy:.1f} %"
    axes.set_title(title, fontsize=9, linespacing=1.3)
    axes.set(xticks=[], yticks=[], box_aspect=1)
    axes.spines[:].set_color("0.8")


def _colours(count: int) -> list:
    """A colour for each class: tab10, tab20, or as many hues as needed."""
    if count > 20:
        return [colormaps["hsv"](number / count) for number in range(count)]
    return [colormaps["tab10" if count <= 10 else "tab20"](number) for number in range(count)]


def panel_rows(panels: list[Panel]) -> list[dict]:
    """The scores of each panel, as rows of a table."""
    return [
        {"model": panel.model, "condition": panel.condition, "images": len(panel.labels)}
        | {"silhouette": round(panel.silhouette, 6), "accuracy_percent": round(panel.accuracy, 3)}
        for panel in panels
    ]


def run(config: EmbeddingConfig) -> None:
    """The command: load, embed, write, report."""
    table = beside(config.out, ".csv")
    paths = list(config.models) if config.names else different(config.models)
    models = dict(zip(config.names or name_models(paths), map(load_model, paths), strict=True))
    source = common_source(models, config.data, config.root)
    inputs = [*map(model_file, paths), *image_folders(source)]
    outputs = Outputs(table, options=config.options, figures=[config.out], inputs=inputs)
    device = choose_device(config.options.device)
    seed = config.options.seed
    note_root(source, config.root)
    data = load_test_images(
        models, config.data, config.root, config.limit_test, seed, config.image_size, cache=config.caching.cache
    )
    panels = embed_models(models, data, distinct(config.noise), seed, device)
    about = {
        name: {"noise_seed": seed, "training_seed": model.seed, "model_digest": model.digest}
        for name, model in models.items()
    }
    rows = [row | about[row["model"]] for row in panel_rows(panels)]
    write_csv(table, rows)
    lines = [(r["model"], r["condition"], f"{r['silhouette']:.3f}", f"{r['accuracy_percent']:.1f}") for r in rows]
    headings = ("model", "condition", "silhouette", "top-1 (%)")
    print_table(f"Embeddings of {len(data.labels)} test images", headings, lines, words=2)
    for figure in outputs.figures:
        draw_embedding(panels, data.classes, figure)
    outputs.finish({"panels": rows, "seed": seed})


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.embedding``."""
    return run_command(EmbeddingConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
