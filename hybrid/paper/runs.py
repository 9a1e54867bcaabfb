"""Runs: one command each, described by its typed configuration and by the runs whose files it reads."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import tyro

from bridge.convert import ConvertConfig
from bridge.storage import SCHEMA as conversion_schema
from hybrid.architecture import LATER as ARCHITECTURE_LATER
from hybrid.architecture import Architecture
from hybrid.augment import resolve_augmentation
from hybrid.backbones import BACKBONES
from hybrid.evaluate import EvaluateConfig
from hybrid.paper.networks import CONVERT, EVALUATE, LEARN, SWAP, TRAIN
from hybrid.recipe import LATER as RECIPE_LATER
from hybrid.recipe import Precision, Recipe
from hybrid.storage import SCHEMA as training_schema
from hybrid.swap import SwapConfig
from hybrid.train import TrainConfig
from hybrid.train import with_preset as training_defaults
from hybrid.training import Checkpointing, Hardware
from snn.data_source import DataSource
from snn.image_cache import Caching
from snn.image_files import class_files
from snn.learn import LearnConfig
from snn.learn import with_preset as learning_defaults
from snn.parameters import Encoding
from snn.runtime.cli import RunOptions
from snn.runtime.device import DeviceName
from snn.runtime.registry import PLUGINS
from snn.storage import SCHEMA as learning_schema

Config = LearnConfig | ConvertConfig | TrainConfig | SwapConfig | EvaluateConfig
TEMPLATES: dict[type, Config] = {type(config): config for config in (LEARN, CONVERT, TRAIN, SWAP, EVALUATE)}
"""The defaults of each command."""
SCHEMAS: dict[type, str] = {
    LearnConfig: learning_schema.name,
    ConvertConfig: conversion_schema.name,
    TrainConfig: training_schema.name,
    SwapConfig: training_schema.name,
    EvaluateConfig: "results/1",
}
"""Version of what each command writes."""
NOT_DECIDING: dict[type, tuple[str, ...]] = {
    # A preset is where flags start from; what it sets is in `learning` and `recipe`. All engines, and several
    # processes, learn the same conductances.
    LearnConfig: ("out", "preset", "engine", "resume", "checkpoint_interval", "devices", "num_nodes", "image_interval"),
    ConvertConfig: ("snn", "out", "root"),
    TrainConfig: ("out", "frontend", "preset", "watch"),
    # As the device decides it, unless it is given.
    Recipe: ("precision",),
    Checkpointing: ("folder", "resume", "checkpoint_interval"),
    # The number of threads moves the last bits; each file records it.
    Hardware: ("device", "threads", "workers"),
    SwapConfig: ("model", "frontend", "out", "root"),
    EvaluateConfig: ("models", "out", "attack_model", "cifar10_c", "root", "batch_size", "confusion"),
    DataSource: ("root", "download"),
    Caching: ("cache",),
    RunOptions: ("device", "figures", "json", "plugin"),
}
"""Fields that say where files lie or how a result is computed, but do not decide which result it is."""
LATER: dict[type, Mapping[str, object]] = {
    LearnConfig: {"caching": Caching()},
    ConvertConfig: {"caching": Caching()},
    TrainConfig: {"weights": None, "caching": Caching()},
    Architecture: ARCHITECTURE_LATER,
    Recipe: RECIPE_LATER,
    SwapConfig: {"auxiliary_input": None, "caching": Caching()},
    EvaluateConfig: {"shifts": False, "weights": (), "image_size": None, "caching": Caching()},
}
"""Fields that configurations did not always have, with the value that stands for what was done before: with it a run
keeps the identity that it had."""


@dataclass(frozen=True)
class Place:
    """Where runs are made."""

    folder: Path
    """Folder of all runs."""
    device: DeviceName = "auto"
    """Device of each run."""
    root: Path | None = None
    """Folder that holds CIFAR-10, if not the commands' default."""
    plugin: tuple[str, ...] = ()
    """What runs import first."""
    threads: int | None = None
    """CPU threads of each training; None: its share of the cores."""
    precision: Precision = "auto"
    """Precision of each training (:class:`hybrid.recipe.Recipe`)."""
    caching: Caching = field(default_factory=Caching)
    """Where decoded images are kept."""


@dataclass(frozen=True)
class Run:
    """One command and the file that it writes."""

    label: str
    """Readable start of the file's name."""
    config: Config
    """What the command does, with its preset applied. :meth:`configuration` adds the files."""
    inputs: tuple[tuple[str, "Run"], ...] = ()
    """Runs whose files it reads, each with the field of ``config`` that names the file."""

    @property
    def module(self) -> str:
        """The command, as in ``python -m``."""
        return type(self.config).__module__

    @cached_property
    def identity(self) -> str:
        """Digest of all that decides the result, and part of the file's name.

        It covers every field of the configuration but those of :data:`NOT_DECIDING`, what its "auto" and None stand
        for, the content of plugins, the schema of the file written, and the identities of the inputs. For
        ``folder:PATH`` it also covers names and sizes of the image files, so that runs on a changed folder are made
        anew. A run whose file exists need not be made again, and a run that differs in anything has another file.
        """
        content = (
            SCHEMAS[type(self.config)],
            self.module,
            _deciding(self.config),
            _implied(self.config),
            [(name, run.identity) for name, run in self.inputs],
        )
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Name of its file, without the suffix."""
        return f"{self.label}-{self.identity}"

    def file(self, folder: Path) -> Path:
        """The file that it writes."""
        return folder / f"{self.name}{'.csv' if isinstance(self.config, EvaluateConfig) else '.h5'}"

    def configuration(self, place: Place, out: Path | None = None) -> Config:
        """The command's complete configuration; ``out``: the file to write, if not :meth:`file`."""
        files: dict[str, Any] = {}
        for name, run in self.inputs:
            several = isinstance(getattr(self.config, name), tuple)
            files[name] = (*files.get(name, ()), run.file(place.folder)) if several else run.file(place.folder)
        # A swap draws none.
        figures = isinstance(self.config, SwapConfig)
        options = replace(self.config.options, device=place.device, figures=figures, plugin=place.plugin)
        changes = {"out": out or self.file(place.folder), "options": options, **files}
        if isinstance(self.config, SwapConfig) and self.config.auxiliary_input is not None:
            # It reads no images.
            return replace(self.config, **changes)
        changes["caching"] = place.caching
        if isinstance(self.config, LearnConfig | TrainConfig):
            changes["data_source"] = self.config.data_source.override(root=place.root)
        if isinstance(self.config, LearnConfig):
            changes["resume"] = True
        elif isinstance(self.config, TrainConfig):
            changes["checkpointing"] = replace(self.config.checkpointing, resume=True)
            changes["recipe"] = replace(self.config.recipe, precision=place.precision)
            if place.threads is not None:
                changes["hardware"] = replace(self.config.hardware, threads=place.threads)
        elif place.root is not None:
            changes["root"] = place.root
        return replace(self.config, **changes)

    def command(self, place: Place, out: Path | None = None) -> list[str]:
        """Arguments of ``python`` that make the run."""
        return ["-m", self.module, *arguments(self.configuration(place, out), default(self.config))]


def _deciding(value: Any) -> object:
    """All fields that decide a result, in a form that JSON can hold."""
    if _is_record(value):
        skipped = NOT_DECIDING.get(type(value), ())
        later = LATER.get(type(value), {})
        members = {f.name: getattr(value, f.name) for f in fields(value) if f.name not in skipped}
        content = {name: _deciding(v) for name, v in members.items()}
        content = {name: v for name, v in content.items() if name not in later or v != _deciding(later[name])}
        data = getattr(value, "data", None)
        return content | ({"files": image_files(data)} if isinstance(data, str) else {})
    if isinstance(value, tuple):
        return [_deciding(item) for item in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _implied(config: Config) -> list[object]:
    """Values behind the "auto", None and bare names of a configuration, which another version may choose otherwise."""
    implied: list[object] = [*sorted(PLUGINS.values())]
    if isinstance(config, TrainConfig | EvaluateConfig):
        implied.append(_deciding(Encoding()))
    if isinstance(config, TrainConfig):
        implied.append(BACKBONES[config.architecture.backbone].embedding)
        implied.append(resolve_augmentation(config.recipe.augmentation, config.data_source.data))
    return implied


def _is_record(value: object) -> bool:
    """Whether ``value`` is a dataclass that has no text form of its own."""
    return is_dataclass(value) and not isinstance(value, type) and type(value).__str__ is object.__str__


@cache
def image_files(data: str) -> str:
    """Digest of names and sizes of the images of ``folder:PATH``; "" for data sets that never change."""
    folder = DataSource(data).image_folder
    if folder is None:
        return ""
    images = sorted(file for split in ("train", "test") for file in class_files(folder / split))
    sizes = [(str(file.relative_to(folder)), file.stat().st_size) for file in images]
    return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()


def default(config: Config) -> Config:
    """The command's defaults, once it knows the preset of ``config``: what flags are applied to."""
    if isinstance(config, LearnConfig):
        return replace(learning_defaults(replace(LEARN, preset=config.preset)), preset=LEARN.preset)
    if isinstance(config, TrainConfig):
        return replace(training_defaults(replace(TRAIN, preset=config.preset)), preset=TRAIN.preset)
    return TEMPLATES[type(config)]


def arguments(config: object, default: object, prefix: str = "") -> list[str]:
    """Command-line arguments for all fields that differ from ``default``, positional arguments first.

    Parsed with these defaults, they give ``config`` again.
    """
    positional: list[str] = []
    flags: list[str] = []
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value, usual = getattr(config, name), getattr(default, name)
        extras = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        if _is_record(value):
            flat = any(getattr(extra, "name", None) == "" for extra in extras)
            flags += arguments(value, usual, prefix if flat else f"{prefix}{name}.")
        elif tyro.conf.Positional in extras:
            positional += _words(value)
        elif value != usual and isinstance(value, bool):
            flags.append("--" + prefix + ("" if value else "no-") + name.replace("_", "-"))
        elif value != usual:
            # A field may name its flag itself, without the records around it.
            own = next((e for e in extras if getattr(e, "prefix_name", None) is False), None)
            flag = "--" + (own.name if own else prefix + name).replace("_", "-")
            repeated = tyro.conf.UseAppendAction in extras
            flags += [word for item in value for word in (flag, item)] if repeated else [flag, *_words(value)]
    return positional + flags


def _words(value: object) -> list[str]:
    return [word for item in value for word in _words(item)] if isinstance(value, tuple) else [str(value)]


def in_order(runs: Iterable[Run], needed: Callable[[Run], bool] = lambda run: True) -> list[Run]:
    """These runs and all that they depend on, each once, inputs first.

    Runs that are not ``needed`` are left out, with what only they depend on.
    """

    def chain_of(run: Run) -> Iterator[Run]:
        if needed(run):
            yield from chain.from_iterable(chain_of(source) for _, source in run.inputs)
            yield run

    return list({run.identity: run for wanted in runs for run in chain_of(wanted)}.values())


def missing_runs(runs: Iterable[Run], folder: Path) -> list[Run]:
    """Those of ``runs`` whose file is not there, and what they are still to be made from; each once, inputs first.

    What a run that exists was made from need not be there any more.
    """
    return in_order(runs, lambda run: not run.file(folder).exists())
