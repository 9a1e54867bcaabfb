"""Accuracy of trained networks on clean and perturbed images."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hybrid.architecture import Paths
from hybrid.conditions.drawn import Condition, awgn_sigma
from hybrid.conditions.perturb import perturb
from hybrid.preprocess import parse_preprocess
from hybrid.recipe import Recipe
from hybrid.storage import TrainedModel
from snn.data import Images, load_images
from snn.runtime.errors import check
from snn.runtime.progress import progress
from snn.runtime.tree import from_tree

METRICS = {"top1": 1, "top5": 5}
"""Accuracies by name: the true class is among so many of the highest logits."""


def predict(
    network: nn.Module,
    images: Tensor,
    device: torch.device | str,
    *,
    batch_size: int = 256,
    preprocess: nn.Module | None = None,
    paths: Paths = "both",
) -> Tensor:
    """Logits (N, classes), on the CPU, of images (N, C, H, W) in [0, 1]."""
    network = network.to(device).eval()
    arguments = {} if paths == "both" else {"paths": paths}
    logits = []
    with torch.inference_mode():
        for batch in images.split(batch_size):
            batch = batch.to(device).contiguous(memory_format=torch.channels_last)
            logits.append(network(preprocess(batch) if preprocess else batch, **arguments).cpu())
    return torch.cat(logits)


def correct_in(logits: Tensor, labels: Tensor, among: int) -> int:
    """How many true classes are among the ``among`` highest logits (or all, if there are fewer classes)."""
    top = logits.topk(min(among, logits.shape[1]), dim=1).indices
    return (top == labels[:, None]).any(1).sum().item()


def evaluate(
    models: dict[str, TrainedModel],
    data: Images,
    conditions: list[Condition],
    *,
    repeats: int = 1,
    source: TrainedModel | None = None,
    preprocess: str = "none",
    published: Path | None = None,
    batch_size: int = 256,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[dict]:
    """One row of results per model, condition, noise seed, choice of paths and metric.

    Networks with two paths are also measured with one path silenced at a time, on clean images or else on the first
    condition: what each path contributes. See :class:`EvaluateConfig` for the arguments.
    """
    rows = []
    filtered = parse_preprocess(preprocess).eval().to(device)
    ablated = next((condition for condition in conditions if condition.kind == "clean"), conditions[0])
    seeds = {condition: _seeds(condition, seed, repeats) for condition in conditions}
    with progress(None, "evaluating", "run", total=len(models) * sum(map(len, seeds.values()))) as bar:
        for condition, noise_seed in ((c, s) for c in conditions for s in seeds[c]):
            found = perturb(
                data,
                condition,
                noise_seed,
                source=source.network if source else None,
                published=published,
                device=device,
            )
            about = {
                "condition": condition.name,
                "snr_dB": "" if condition.snr is None else condition.snr,
                "mean_sigma_intensity": _mean_sigma(data.images, condition),
                "source_digest": source.digest if source and condition.kind == "fgsm" else "",
                "preprocess": preprocess,
                "images": len(found.labels),
            }
            for name, model in models.items():
                alone = condition == ablated and noise_seed == seed and getattr(model.network, "has_two_paths", False)
                for paths in ("both", "spiking", "auxiliary") if alone else ("both",):
                    logits = predict(
                        model.network,
                        found.images,
                        device,
                        batch_size=batch_size,
                        preprocess=filtered,
                        paths=paths,
                    )
                    told = {"model": name, **_describe(model), "paths": paths, **about}
                    rows += [
                        {**told, "metric": metric, **_share(correct_in(logits, found.labels, among), len(logits))}
                        | {"noise_seed": noise_seed, "training_seed": model.seed, "model_digest": model.digest}
                        for metric, among in METRICS.items()
                    ]
                bar.update()
    order = list(models)
    return sorted(rows, key=lambda row: (order.index(row["model"]), row["paths"] != "both"))


def _seeds(condition: Condition, seed: int, repeats: int) -> list[int]:
    """Of the draws: one where nothing is drawn."""
    once = condition.kind in ("clean", "fgsm", "cifar10-c")
    return [seed] if once else list(range(seed, seed + repeats))


def _mean_sigma(images: Tensor, condition: Condition) -> float | str:
    """Mean standard deviation of the noise, in units of intensity; "" where the condition states no SNR."""
    return "" if condition.snr is None else round(awgn_sigma(images.float() / 255, condition.snr).mean().item(), 5)


def _describe(model: TrainedModel) -> dict:
    architecture = model.spec.architecture
    return {
        "variant": architecture.variant,
        "backbone": architecture.backbone,
        "train_noise": model.recipe.get("train_noise", "clean"),
    }


def _share(correct: int, count: int) -> dict:
    share = correct / count
    return {
        "correct": correct,
        "value_percent": round(100 * share, 3),
        "standard_error_percent": round(100 * (share * (1 - share) / count) ** 0.5, 3),
    }


def summarise(rows: list[dict]) -> list[dict]:
    """Rows with noise seeds taken together: mean of ``value_percent``; ``deviation_percent`` is the standard deviation
    over seeds, and where there is one seed, the standard error of the images drawn."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault((row["model"], row["condition"], row["paths"], row["metric"]), []).append(row)
    found = []
    for group in groups.values():
        values = [row["value_percent"] for row in group]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else group[0]["standard_error_percent"]
        found.append(group[0] | {"value_percent": float(np.mean(values)), "deviation_percent": spread})
    return found


def load_test_images(
    models: dict[str, TrainedModel], data: str | None, root: Path | None, limit: int | None, seed: int
) -> Images:
    """Test images of the first model's data (or what is given instead), checked against every model."""
    source = next(iter(models.values())).source.override(data=data, root=root, limit_test=limit)
    found = load_images(source, "test", seed)
    check_same_data(models, found)
    return found


def load_held_out(models: dict[str, TrainedModel], root: Path | None) -> Images:
    """The training images that the models' training kept for its validation curve, the same for all of them."""
    (first, *_), model = models, next(iter(models.values()))
    for name, other in models.items():
        # Where CIFAR-10 lies makes no other images of it.
        mine, theirs = ((replace(m.source, root=None), m.seed, m.recipe["holdout"]) for m in (model, other))
        check(
            mine == theirs,
            f"model {name} was trained with images, seed or `holdout` {theirs}, {first} with {mine}: they held out "
            "different images; evaluate them one by one",
        )
    data = load_images(model.source.override(root=root), "train", model.seed)
    rows = torch.from_numpy(from_tree(Recipe, model.recipe).held_out(data.labels, model.seed))
    found = data._replace(images=data.images[rows], labels=data.labels[rows])
    check_same_data(models, found)
    return found


def check_same_data(models: dict[str, TrainedModel], data: Images) -> None:
    """Raise :class:`snn.runtime.errors.UserError` for a model of other images or classes."""
    for name, model in models.items():
        check(
            model.spec.input_shape == data.shape and model.spec.classes == data.classes,
            f"model {name} was trained on {len(model.spec.classes)} classes and images of shape "
            f"{model.spec.input_shape}, {data.source.data} has {len(data.classes)} classes and shape {data.shape}; "
            "evaluate together only models of one data set",
        )
