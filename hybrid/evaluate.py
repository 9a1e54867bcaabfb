"""Accuracy of saved models on clean and noisy test images: a table, a CSV file in long format, a figure."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from hybrid.conditions import perturb
from hybrid.figures import draw_noise
from hybrid.model import Paths, TrainedModel, load_model
from hybrid.noise import Condition, awgn_sigma, parse_condition
from hybrid.preprocess import parse_preprocess
from hybrid.recipe import Recipe
from snn.command import (
    RunOptions,
    beside,
    check_outputs,
    choose_device,
    progress,
    run_command,
    write_csv,
    write_json,
)
from snn.data import Images, load_images
from snn.errors import check
from snn.h5file import from_tree

METRICS = {"top1": 1, "top5": 5}
"""Accuracies by name: the true class is among so many of the highest logits."""


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure saved models under noise; write results.csv, a figure and a table."""

    models: tyro.conf.Positional[tuple[Path, ...]]
    """Files written by hybrid.train or hybrid.swap."""
    out: Path
    """CSV file to write, for example runs/demo/results.csv."""
    noise: tuple[str, ...] = ("clean", "awgn:40", "awgn:30", "awgn:25", "awgn:20", "awgn:15", "awgn:12")
    """Conditions: clean, awgn:DB, salt-pepper:SHARE, poisson:PEAK, wald:MEAN,SCALE, fgsm:EPS (8-bit units; needs
    --source), corruption:NAME,SEVERITY (computed), cifar10-c:NAME,SEVERITY (needs --cifar10-c)."""
    repeats: int = 1
    """Noise seeds, from --seed on; what is not drawn (clean, fgsm, cifar10-c) is measured once."""
    source: Path | None = None
    """Model whose gradient fgsm takes; the models' own are never used."""
    preprocess: str = "none"
    """What is done to images before the models, in evaluation alone: average:N, quantise (see hybrid.train)."""
    cifar10_c: Path | None = None
    """Folder with the published files of CIFAR-10-C."""
    split: Literal["test", "held-out"] = "test"
    """Images to measure on: test, or held-out: the training images that training kept for its validation curve, on
    which choices may rest. --data and --limit-test are of test images."""
    data: str | None = None
    """Test images, if not those of the training run: digits, cifar10 or folder:PATH."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the training run."""
    limit_test: int | None = None
    """Take at most this many test images, balanced over classes; None: as given in training, or all."""
    batch_size: int = 256
    """Images per forward pass; results do not depend on it."""
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check(len(self.models) >= 1, "no model given; name at least one file written by hybrid.train")
        check(len(self.noise) >= 1, "--noise: give at least one condition, for example clean")
        check(self.batch_size >= 1, f"--batch-size {self.batch_size}: must be 1 or more")
        check(self.repeats >= 1, f"--repeats {self.repeats}: must be 1 or more")
        check(
            self.split == "test" or (self.data is None and self.limit_test is None),
            "--split held-out takes images of the training run: leave out --data and --limit-test",
        )
        parse_preprocess(self.preprocess)


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


def print_tables(rows: list[dict], repeats: int, console: Console) -> None:
    """Conditions x models, in percent, for each metric; then what each path contributes."""
    summary = summarise(rows)
    models = list(dict.fromkeys(row["model"] for row in summary))
    spread = f"deviation over {repeats} noise seeds; standard error where nothing is drawn"
    spread = spread if repeats > 1 else "standard error"
    for metric in METRICS:
        found = {
            (row["condition"], row["model"]): row
            for row in summary
            if row["paths"] == "both" and row["metric"] == metric
        }
        table = Table(title=f"{metric} accuracy (% ± {spread}) on {rows[0]['images']} images")
        for heading in ("condition", "mean sigma", *models):
            table.add_column(heading, justify="left" if heading == "condition" else "right", overflow="fold")
        for condition in dict.fromkeys(condition for condition, _ in found):
            sigma = found[condition, models[0]]["mean_sigma_intensity"]
            cells = (_percent(found[condition, model]) for model in models)
            table.add_row(condition, f"{sigma:.3f}" if sigma != "" else "", *cells)
        console.print(table)
    top1 = [row for row in summary if row["metric"] == "top1"]
    alone = {(row["model"], row["paths"]): row for row in top1 if row["paths"] != "both"}
    if not alone:
        return
    condition = next(iter(alone.values()))["condition"]
    both = {row["model"]: row for row in top1 if row["paths"] == "both" and row["condition"] == condition}
    table = Table(title=f"Both paths, and each alone with the other set to zero (top1, %, {condition})")
    for heading in ("model", "both", "spiking alone", "auxiliary alone"):
        table.add_column(heading, justify="left" if heading == "model" else "right", overflow="fold")
    for model in dict.fromkeys(model for model, _ in alone):
        table.add_row(model, *map(_percent, (both[model], alone[model, "spiking"], alone[model, "auxiliary"])))
    console.print(table)


def _percent(row: dict) -> str:
    return f"{row['value_percent']:.1f} ± {row['deviation_percent']:.1f}"


def run(config: EvaluateConfig) -> None:
    """The command: load, evaluate, write, report."""
    figure = beside(config.out, ".png") if config.options.figures else None
    inputs = [*config.models, *([config.source] if config.source else [])]
    check_outputs(config.out, config.options.json, figure, inputs=inputs)
    device = choose_device(config.options.device)
    # Given twice, a condition is measured once.
    conditions = list({condition.key: condition for condition in map(parse_condition, config.noise)}.values())
    attacks = [condition.name for condition in conditions if condition.kind == "fgsm"]
    check(
        config.source is not None or not attacks,
        f"--noise {', '.join(attacks)} needs --source FILE, the model whose gradient it takes",
    )
    paths = list(dict.fromkeys(config.models))
    unique = len({path.stem for path in paths}) == len(paths)
    models = {path.stem if unique else str(path): load_model(path) for path in paths}
    source = load_model(config.source) if config.source else None
    measured = models | ({f"--source {config.source}": source} if source else {})
    if config.split == "held-out":
        data = load_held_out(models, config.root)
        check_same_data(measured, data)
    else:
        data = load_test_images(measured, config.data, config.root, config.limit_test, config.options.seed)
    rows = evaluate(
        models,
        data,
        conditions,
        repeats=config.repeats,
        source=source,
        preprocess=config.preprocess,
        published=config.cifar10_c,
        batch_size=config.batch_size,
        seed=config.options.seed,
        device=device,
    )
    write_csv(config.out, rows)
    print_tables(rows, config.repeats, Console())
    write_json(config.options.json, {"results": rows, "seed": config.options.seed})
    if figure:
        draw_noise([row for row in summarise(rows) if row["paths"] == "both" and row["metric"] == "top1"], figure)
    print(f"wrote {config.out}" + (f" and {figure}" if figure else ""))


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
            f"model {name} was trained with images, seed or --holdout {theirs}, {first} with {mine}: they held out "
            "different images; evaluate them one by one",
        )
    data = load_images(model.source.override(root=root), "train", model.seed)
    rows = torch.from_numpy(from_tree(Recipe, model.recipe).held_out(data.labels, model.seed))
    found = data._replace(images=data.images[rows], labels=data.labels[rows])
    check_same_data(models, found)
    return found


def check_same_data(models: dict[str, TrainedModel], data: Images) -> None:
    """Raise :class:`snn.errors.UserError` for a model of other images or classes."""
    for name, model in models.items():
        check(
            model.spec.input_shape == data.shape and model.spec.classes == data.classes,
            f"model {name} was trained on {len(model.spec.classes)} classes and images of shape "
            f"{model.spec.input_shape}, {data.source.data} has {len(data.classes)} classes and shape {data.shape}; "
            "evaluate together only models of one data set",
        )


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.evaluate``."""
    return run_command(EvaluateConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
