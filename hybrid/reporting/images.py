"""The parts of a report for which networks see test images: embeddings, and what noise does on the way through."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from hybrid.conditions import Condition, Context, Noise
from hybrid.conditions.drawn import CLEAN
from hybrid.embedding import draw_embedding, embed_models, panel_rows
from hybrid.evaluation import predict, summarise
from hybrid.network import Network
from hybrid.reporting.files import Runs, Table
from hybrid.reporting.page import Block, Cell, Section, Text, figure, picture, pixels
from hybrid.reporting.page import Table as Shown
from hybrid.storage import TrainedModel
from hybrid.views import AUXILIARY, CONTRAST, IMAGE, views
from hybrid.views import picture as picture_of
from snn.data import Images
from snn.runtime.errors import UserError, visible

DEFAULT_NOISE = "awgn:15"
"""Noise of these parts where no results say which is hard."""
CHUNK = 128
"""Images of which all stages are held at once."""
TITLES = {IMAGE: "image", CONTRAST: "contrast (ON less OFF)", AUXILIARY: "auxiliary CNN"}


def hardest_noise(tables: Sequence[Table]) -> Noise:
    """The noise under which the results are lowest, on average over networks; awgn:15 without results."""
    found: dict[str, list[float]] = {}
    for table in tables:
        for row in summarise(table.rows, "top1", "both"):
            found.setdefault(row["condition"], []).append(row["value_percent"])
    for text in sorted(found, key=lambda name: sum(found[name]) / len(found[name])):
        try:
            noise = Noise.parse(text)
        except UserError:
            # An attack, or of a plugin that is not here.
            continue
        if noise.draws:
            return noise
    return Noise.parse(DEFAULT_NOISE)


def embedding(
    runs: Runs,
    groups: Sequence[tuple[Mapping[str, TrainedModel], Images]],
    noises: Sequence[Noise],
    seed: int,
    device: torch.device,
) -> Section | None:
    """Embeddings of the runs if they have some, else of these networks on these images."""
    blocks: list[Block] = []
    for table in runs.embeddings:
        if table.picture:
            caption = (
                f"{table.name}: embeddings of {table.rows[0]['images']} test images, as hybrid.embedding drew them."
            )
            blocks.append(picture(table.picture, "Embeddings of test images by t-SNE", caption))
        blocks.append(_scores(table.rows))
    if not blocks:
        conditions: list[Condition] = [Noise.parse("clean"), *noises]
        for models, data in groups:
            panels = embed_models(dict(models), data, conditions, seed, device)
            names = tuple(map(visible, data.classes))
            caption = (
                f"Input of the last linear layer for {len(data.labels)} test images of "
                f"{visible(data.data_source.data)}, laid out by t-SNE; colours are true classes."
            )
            alt = f"Embeddings of {', '.join(models)} by t-SNE"
            blocks += [figure(partial(draw_embedding, panels, names), alt, caption), _scores(panel_rows(panels))]
    return Section("embedding", "Embedding", blocks) if blocks else None


def _scores(rows: Sequence[Mapping]) -> Block:
    caption = (
        "The silhouette score is 1 for classes far apart in the embedding, 0 for overlapping ones; it is computed "
        "there, not in the picture."
    )
    shown = [
        [row["model"], row["condition"], f"{row['silhouette']:.3f}", f"{row['accuracy_percent']:.1f}"] for row in rows
    ]
    return Shown(caption, ("network", "condition", "silhouette", "top-1 (%)"), shown, words=2)


def stage_differences(network: Network, pairs: Iterable[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """How far noise moves what each stage sees, in %: |noisy - clean| / |clean|, the mean over images.

    The clean and the noisy images come in pairs of mini-batches, float32 (B, C, H, W) in [0, 1]; the norm is over all
    values of an image at this stage. Images at which a stage is silent are left out. The network stays on its device.
    """
    shares: dict[str, list[Tensor]] = {}
    for before, after in pairs:
        seen, moved = views(network, before), views(network, after)
        for stage, maps in seen.items():
            norm = maps.double().flatten(1).norm(dim=1)
            distance = (moved[stage].double() - maps.double()).flatten(1).norm(dim=1)
            shares.setdefault(stage, []).append((distance / norm)[norm > 0])
    joined = {stage: torch.cat(parts) for stage, parts in shares.items()}
    return {stage: 100 * values.mean().item() for stage, values in joined.items() if len(values)}


def clean_and_noisy(data: Images, noise: Noise, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Test images in [0, 1] and the same under noise, :data:`CHUNK` at a time."""
    context = Context(data, seed)
    for clean, noisy in zip(CLEAN.parts(context), noise.parts(context), strict=True):
        yield from zip(clean.images.split(CHUNK), noisy.images.split(CHUNK), strict=True)


def walk(
    groups: Sequence[tuple[Mapping[str, TrainedModel], Images]],
    noises: Sequence[Noise],
    examples: int,
    seed: int,
    device: torch.device,
) -> tuple[Section | None, list[dict]]:
    """What noise does to a few test images at each stage of each network, and the mean differences as rows."""
    blocks: list[Block] = []
    figures: list[dict] = []
    for models, data in groups:
        for model in models.values():
            model.network.to(device)
        rows = [
            {"model": name, "condition": str(noise), "stage": stage, "difference_percent": round(share, 3)}
            for name, model in models.items()
            for noise in noises
            for stage, share in stage_differences(model.network, clean_and_noisy(data, noise, seed)).items()
        ]
        figures += rows
        blocks += [*_differences(rows, len(data.labels)), *_examples(models, data, noises, examples, seed, device)]
    return (Section("walk", "What noise does on the way through", blocks) if blocks else None), figures


def _differences(rows: Sequence[Mapping], images: int) -> list[Block]:
    stages = _ordered({row["stage"] for row in rows})
    shares = {(row["model"], row["condition"], row["stage"]): row["difference_percent"] for row in rows}
    lines = [
        [*pair, *(f"{shares[(*pair, stage)]:.1f}" if (*pair, stage) in shares else "–" for stage in stages)]
        for pair in dict.fromkeys((row["model"], row["condition"]) for row in rows)
    ]
    caption = (
        f"Difference that noise makes at each stage, in %: |noisy - clean| / |clean|, mean over {images} test images. "
        "A stage with a smaller number than the one before it takes noise away."
    )
    return [Shown(caption, ("network", "noise", *(TITLES.get(stage, stage) for stage in stages)), lines, words=2)]


def _ordered(stages: set[str]) -> list[str]:
    """Stages of several networks in order; the auxiliary CNN, which stands beside the layers, is the last."""
    first = [stage for stage in (IMAGE, CONTRAST) if stage in stages]
    layers = sorted(stages - {IMAGE, CONTRAST, AUXILIARY}, key=lambda stage: (len(stage), stage))
    return [*first, *layers, *(stage for stage in (AUXILIARY,) if stage in stages)]


def _examples(
    models: Mapping[str, TrainedModel],
    data: Images,
    noises: Sequence[Noise],
    examples: int,
    seed: int,
    device: torch.device,
) -> list[Block]:
    blocks: list[Block] = []
    names = tuple(map(visible, data.classes))
    # Of different classes as far as there are.
    order = list(zip(_occurrences(data.labels), data.labels.tolist(), strict=True))
    chosen = sorted(range(len(order)), key=order.__getitem__)
    shown: dict[int, dict[str, Tensor]] = {row: {} for row in chosen[:examples]}
    for noise in (CLEAN, *noises):
        first = 0
        for part in noise.parts(Context(data, seed)):
            for row in shown:
                if first <= row < first + len(part.images):
                    # A copy: a view would keep the whole part.
                    shown[row][str(noise)] = part.images[row - first][None].clone()
            first += len(part.images)
    for row, conditions in shown.items():
        seen = {
            (name, condition): views(model.network, image)
            for name, model in models.items()
            for condition, image in conditions.items()
        }
        stages = _ordered({stage for maps in seen.values() for stage in maps})
        true = int(data.labels[row])
        lines: list[list[str | Cell]] = []
        for name, model in models.items():
            largest = {s: max(seen[name, c][s].max().item() for c in conditions) for s in seen[name, "clean"]}
            for condition, image in conditions.items():
                maps, before = seen[name, condition], seen[name, "clean"]
                cells = [_cell(s, maps, before, largest[s], condition) if s in maps else Cell("–") for s in stages]
                answer = _answer(model.network, image, names, true, device)
                lines.append([name, condition, *cells, answer])
        headings = ("network", "noise", *(TITLES.get(stage, stage) for stage in stages), "answer")
        caption = f"Test image {row + 1}, of class {names[true]}. Numbers: difference from the clean image."
        blocks.append(Shown(caption, headings, lines, words=2))
    if blocks:
        explained = (
            "Features of a stage are drawn side by side by their square root, on one scale for the clean and the noisy "
            "image. Answers have their probability."
        )
        blocks.insert(0, Text(explained))
    return blocks


def _occurrences(labels: Tensor) -> list[int]:
    """Of each image, how many before it have its class."""
    seen: Counter[int] = Counter()
    before = []
    for label in labels.tolist():
        before.append(seen[label])
        seen[label] += 1
    return before


def _cell(stage: str, maps: Mapping[str, Tensor], clean: Mapping[str, Tensor], largest: float, condition: str) -> Cell:
    shown = picture_of(stage, maps[stage][0], largest)
    if stage not in (IMAGE, CONTRAST):
        # Few features are strong: by their square root the others can be seen, too.
        shown = shown**0.5
    norm = clean[stage].double().norm().item()
    difference = (maps[stage].double() - clean[stage].double()).norm().item()
    text = "" if condition == "clean" else f"{100 * difference / norm:.0f} %" if norm else "–"
    return Cell(text, picture=pixels(shown), alt=f"{TITLES.get(stage, stage)}, {condition}")


def _answer(network: Network, image: Tensor, names: Sequence[str], true: int, device: torch.device) -> str:
    chances = predict(network, image, device).softmax(1)[0]
    best = int(chances.argmax())
    return f"{names[best]} ({100 * chances[best].item():.0f} %)" + ("" if best == true else ", wrong")
