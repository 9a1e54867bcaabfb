"""A report on runs as one page of HTML, which needs nothing else: no network, no scripts, no further files."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, NamedTuple

import tyro

from hybrid.conditions import Noise, condition_flag
from hybrid.evaluation import common_source, distinct, load_test_images
from hybrid.reporting.files import Runs, read_runs
from hybrid.reporting.images import embedding, hardest_noise, walk
from hybrid.reporting.page import Section, render
from hybrid.reporting.sections import classes, kernels, lineage, mismatches, noise, remake, responses, training
from hybrid.storage import TrainedModel
from snn.data import Images, few, image_folders
from snn.data_source import IMAGES, SIDE, note_root
from snn.image_cache import Caching
from snn.runtime.cli import RunOptions, check_left_out, run_command
from snn.runtime.device import choose_device
from snn.runtime.errors import UserError, check
from snn.runtime.outputs import Outputs, write_bytes
from snn.runtime.progress import warn
from snn.runtime.ranges import Range, check_fields

MISSING = {
    "kernels": ("Kernels and conductances", "no learned layers (snn.h5 of snn.learn)"),
    "responses": ("Responses and activation units", "no front end (frontend.h5 of bridge.convert)"),
    "training": ("Training", "no trained network with its curve (hybrid.train)"),
    "noise": ("Accuracy under noise", "no results (hybrid.evaluate)"),
    "classes": ("Classes", "no confusion matrices (hybrid.evaluate --confusion)"),
    "embedding": ("Embedding", "no trained network with its test images, and no table of hybrid.embedding"),
    "walk": ("What noise does on the way through", "no trained network with its test images"),
}
"""Title of each part that can be missing, and what it needs."""


@dataclass(frozen=True)
class ReportConfig:
    """Write one page of HTML on what commands wrote: files, kernels, responses, training, results, embeddings."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders that hold runs, or files of these, or pretrained:NAME."""
    out: Path
    """HTML file to write, for example runs/demo/report.html."""
    noise: Annotated[tuple[Noise, ...], condition_flag(Noise, many=True)] = ()
    """Noise on the test images of the last parts; none given: that of the results with the lowest accuracy."""
    examples: Annotated[int, Range(1, 20)] = 3
    """Test images that are followed through the networks."""
    limit_test: Annotated[int, IMAGES] = 500
    """Take at most this many test images for embeddings and differences, balanced over classes."""
    data: str | None = None
    """Test images, if not those of the training run: digits, cifar10 or folder:PATH."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not that of the training run."""
    image_size: Annotated[int | None, SIDE] = None
    """Resize images to this height and width, in pixels; None: as in the training run."""
    caching: Annotated[Caching, tyro.conf.arg(name="")] = field(default_factory=Caching)
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=RunOptions)

    def __post_init__(self) -> None:
        check_fields(self)
        check(len(self.runs) >= 1, "no run given; name at least one folder with what the commands wrote")
        check(self.out.suffix.lower() in (".html", ".htm"), f"`out` {self.out}: expected a name that ends in .html")


class Group(NamedTuple):
    """Trained networks that see the same test images."""

    models: Mapping[str, TrainedModel]
    data: Images


def groups_of(runs: Runs) -> list[dict[str, TrainedModel]]:
    """Networks by name, those together that have the same classes and images of the same data."""
    found: dict[tuple, dict[str, TrainedModel]] = {}
    for file in runs.models:
        model = file.content
        key = (model.data_source.data, model.spec.input_shape, model.spec.classes)
        found.setdefault(key, {})[file.name.removesuffix(".h5")] = model
    return list(found.values())


def load_groups(runs: Runs, config: ReportConfig) -> tuple[list[Group], list[tuple[str, str]]]:
    """Networks with their test images, and what could not be loaded, with the reason.

    Images that are named by a flag must be there.
    """
    groups, left_out = [], []
    given = config.data is not None or config.root is not None
    planned = groups_of(runs)
    for models in planned:
        try:
            data = load_test_images(
                models,
                config.data,
                config.root,
                config.limit_test,
                config.options.seed,
                config.image_size,
                cache=config.caching.cache,
            )
        except (UserError, OSError) as error:
            if given and len(planned) == 1:
                raise
            reason = " ".join(str(error).split()).replace("`", "")
            left_out.append((f"Test images of {', '.join(models)}", reason))
        else:
            groups.append(Group(models, data))
    return groups, left_out


def run(config: ReportConfig) -> None:
    """The command: find, load, draw, write."""
    runs = read_runs(config.runs)
    if not runs.models:
        of_images = ("noise", "data", "root", "image_size", "limit_test", "examples", "caching")
        check_left_out(config, of_images, "no trained network")
    inputs = list(runs.paths)
    for models in groups_of(runs):
        try:
            source = common_source(models, config.data, config.root)
        except UserError:
            # Their images are not here.
            continue
        note_root(source, config.root)
        inputs += image_folders(source)
    outputs = Outputs(config.out, options=config.options, inputs=inputs)
    for problem in mismatches(runs):
        warn(problem)
    device, seed = choose_device(config.options.device), config.options.seed
    groups, left_out = load_groups(runs, config)
    # Without noise they are shown in any case.
    chosen = [each for each in distinct(config.noise) if isinstance(each, Noise) and each.kind != "clean"]
    noises = chosen or [hardest_noise(runs.results)]
    walked, differences = walk(groups, noises, config.examples, seed, device)
    try:
        embedded = embedding(runs, groups, noises, seed, device)
    except UserError as error:
        # Too few images or classes.
        embedded = None
        left_out.append((MISSING["embedding"][0], str(error).replace("`", "")))
    parts: dict[str, Section | None] = {
        "kernels": kernels(runs),
        "responses": responses(runs),
        "training": training(runs),
        "noise": noise(runs),
        "classes": classes(runs),
        "embedding": embedded,
        "walk": walked,
    }
    named = {title for title, _ in left_out}
    left_out = [
        *((title, needs) for name, (title, needs) in MISSING.items() if not parts[name] and title not in named),
        *left_out,
        *_by_reason(runs.left_out),
    ]
    sections = [lineage(runs), *filter(None, parts.values()), remake(runs, _command(config))]
    page = render(_title(config.runs), sections, left_out).encode()
    write_bytes(config.out, page)
    figures = sum(block.kind == "figure" for section in sections for block in section.blocks)
    size = f"{len(sections)} parts, {figures} figures, {len(page) / 2**20:.1f} MiB"
    print(f"{size}; left out, as the page says at its end: {len(left_out)}")
    outputs.finish(
        {
            "files": [{"name": file.name, "digest": file.stamp.digest} for file in runs.stamped],
            "parts": [section.title for section in sections],
            "left_out": [{"name": name, "reason": reason} for name, reason in left_out],
            "differences": differences,
            "seed": seed,
        }
    )


def _by_reason(files: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Names of files and reasons, those of one reason together."""
    names: dict[str, list[str]] = {}
    for name, reason in files:
        names.setdefault(reason, []).append(name)
    return [(few(found), reason) for reason, found in names.items()]


def _title(runs: Sequence[Path]) -> str:
    return f"Report on {', '.join(path.name or str(path) for path in runs[:4])}" + (" and others" if runs[4:] else "")


def _command(config: ReportConfig) -> str:
    """The command, without where the page is written: the same page has the same bytes anywhere."""
    words = ["python", "-m", "hybrid.report", *map(str, config.runs)]
    words += ["--noise", *map(str, config.noise)] if config.noise else []
    usual = ReportConfig(config.runs, config.out)
    for name in ("examples", "limit_test", "data", "root", "image_size"):
        value = getattr(config, name)
        if value != getattr(usual, name):
            words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--seed", str(config.options.seed)] if config.options.seed else []
    words += [word for plugin in config.options.plugin for word in ("--plugin", plugin)]
    return shlex.join([*words, "--out", "report.html"])


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m hybrid.report``."""
    return run_command(ReportConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
