"""Where the time of a training step goes, and how near it is to what the machine can do.

    python -m benchmarks.training_step --width 0.75
    python -m benchmarks.training_step --width 0.75 --precision bfloat16
    python -m benchmarks.training_step --variant safe --frontend pretrained:cifar10-retina --auxiliary-maps 8
    python -m benchmarks.training_step --compare           # compiled, other memory order, bfloat16

Steps are those of ``hybrid.train``, in Lightning's loop, on random images, on one thread. Operations count all
multiply-accumulates of forward and backward (convolutions and matrix products); the peak is that of matrix products in
the same precision, measured before and after the steps. On one thread the share of it is computed from the processor
time of a step, which other load on the machine changes less than its duration.
"""

import bisect
import copy
import logging
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from time import perf_counter, process_time
from typing import Annotated, Any

import lightning
import numpy as np
import torch
import tyro
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.autograd.profiler import record_function
from torch.autograd.profiler_util import FunctionEvent
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from hybrid.architecture import Architecture, ModelSpec, build_model, class_names, open_frontend
from hybrid.augment import resolve_augmentation
from hybrid.batches import MiniBatch
from hybrid.complexity import count_macs
from hybrid.depthwise import QuickDepthwise
from hybrid.lightning_module import PRECISIONS, Classifier
from hybrid.network import Network
from hybrid.printing import print_table
from hybrid.recipe import RECIPES, Recipe
from snn.data import Images
from snn.runtime.cli import RunOptions, run_command
from snn.runtime.errors import check
from snn.runtime.outputs import Outputs, write_csv
from snn.runtime.threads import use_threads
from snn.subset import Subset

SHAPE = (3, 32, 32)
CLASSES = 10
WARM_UP = 2
"""Steps that are not measured."""
SIZES = (512, 1024, 2048)
"""Sides of the matrices whose product is timed."""
SCOPES = {"network": "other layers", "front end": "front end", "retina": "retina", "training step": "loss and accuracy"}
"""Parts of a step that are marked, and what the rest of each is called."""
KINDS = (
    ("convolution_backward", "convolution, backward"),
    ("ConvolutionBackward", "convolution, backward"),
    ("convolution", "convolution, forward"),
    ("conv2d", "convolution, forward"),
    ("batch_norm", "batch normalisation"),
    ("BatchNorm", "batch normalisation"),
    ("gelu", "activation"),
    ("Gelu", "activation"),
    ("relu", "activation"),
    ("Relu", "activation"),
    ("hardtanh", "activation"),
    ("Hardtanh", "activation"),
    ("max_pool", "pooling"),
    ("MaxPool", "pooling"),
    ("Optimizer.step", "optimiser"),
    ("Optimizer.zero_grad", "optimiser"),
)
"""Kind of work by a part of the operation's name; the first that fits."""
DATA = "images and augmentation"
OTHER = "backward, other layers"
LOOP = "Lightning and Python"


@dataclass(frozen=True)
class StepConfig:
    """Measure and profile steps of supervised training."""

    architecture: Annotated[Architecture, tyro.conf.arg(name="")] = field(
        default_factory=lambda: Architecture("fast_cnn", "baseline")
    )
    frontend: Path | None = None
    """File of converted spiking layers, or pretrained:cifar10-retina; needed for safe and mu."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(
        default_factory=lambda: replace(RECIPES["fast"], small_share=0.0)
    )
    steps: int = 8
    """Measured steps, and as many profiled ones, all on whole images."""
    threads: int = 1
    """CPU threads."""
    compare: bool = False
    """Also measure steps without Lightning: as they are, compiled, in contiguous memory order, in bfloat16, and in this
    with the depthwise convolutions of hybrid.train."""
    out: Path | None = None
    """Also write the kinds of work to this CSV file."""
    options: Annotated[RunOptions, tyro.conf.arg(name="")] = field(default_factory=lambda: RunOptions(device="cpu"))

    def __post_init__(self) -> None:
        small = self.recipe.small_share
        check(small == 0, f"`small_share` {small}: steps on small images would be counted as whole ones; give 0")
        for name in ("steps", "threads"):
            check(getattr(self, name) >= 1, f"`{name}` {getattr(self, name)}: expected 1 or more")
        check(self.options.device == "cpu", f"`device` {self.options.device}: only the CPU is profiled; give cpu")

    @property
    def dtype(self) -> torch.dtype:
        """In what the network's convolutions compute."""
        return self.recipe.dtype(torch.device("cpu"))


def peak_gflops(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """The most operations (1e9) per second that products of square matrices of this type reach."""
    best = 0.0
    for size in SIZES:
        a, b = torch.rand(2, size, size).to(dtype)
        began = perf_counter()
        while perf_counter() - began < seconds / len(SIZES):
            started = perf_counter()
            a @ b
            best = max(best, 2 * size**3 / (perf_counter() - started) / 1e9)
    return best


def gradient_operations(
    gradient: tuple[int, ...], images: tuple[int, ...], kernels: tuple[int, ...], *arguments: Any, **_: Any
) -> int:
    """Float operations of a convolution's gradients, given the shapes: each wanted one costs as much as a forward pass.

    PyTorch's own count takes no notice of groups.
    """
    wanted = arguments[-1]
    return sum(wanted[:2]) * 2 * prod(gradient) * prod(kernels[1:])


def step_gflop(network: Network) -> float:
    """Float operations (1e9) of forward and backward for one image."""
    images, labels = torch.zeros(2, *SHAPE), torch.zeros(2, dtype=torch.int64)
    trained = copy.deepcopy(network).train()
    counted = {torch.ops.aten.convolution_backward: gradient_operations}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        cross_entropy(trained(images), labels).backward()
    return counter.get_total_flops() / 2 / 1e9


class MarkedClassifier(Classifier):
    """Training steps whose parts are marked for the profiler."""

    def training_step(self, batch: MiniBatch, index: int) -> Tensor:
        with record_function("training step"):
            return super().training_step(batch, index)


def mark(module: nn.Module, name: str) -> None:
    """Mark the forward passes of a module for the profiler."""
    open_scopes: list[record_function] = []

    def enter(*_: Any) -> None:
        open_scopes.append(record_function(name).__enter__())

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(lambda *_: open_scopes.pop().__exit__(None, None, None))


class StepTimes(Callback):
    """Seconds of each step after the first ones, and a profile of as many others."""

    def __init__(self, steps: int) -> None:
        self.steps, self.starts = steps, list[tuple[float, float]]()
        self.profiler = profile(activities=[ProfilerActivity.CPU])
        self.profiled_seconds = 0.0

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        done = trainer.global_step - WARM_UP
        if 0 <= done <= self.steps:
            self.starts.append((perf_counter(), process_time()))
        if done == self.steps:
            self.profiler.start()
            self.profiled_seconds = -perf_counter()
        elif done == 2 * self.steps:
            self.profiled_seconds += perf_counter()
            self.profiler.stop()

    @property
    def seconds(self) -> tuple[float, float]:
        """Duration and processor time, medians of the measured steps."""
        duration, processor = np.median(np.diff(self.starts, axis=0), axis=0).tolist()
        return duration, processor


def kind_of_work(event: FunctionEvent, networks: list[tuple[float, float]]) -> str:
    """What an event belongs to; ``networks`` are the (start, end) of the networks' forward passes."""
    above, ancestor = [event], event.cpu_parent
    while ancestor is not None:
        above.append(ancestor)
        ancestor = ancestor.cpu_parent
    names = [one.name for one in above]
    # The front end's own convolutions are its own.
    for scope in ("retina", "front end"):
        if scope in names:
            return scope
    # The nearest decides: Lightning computes the whole step inside that of the optimiser.
    for one in above:
        for part, kind in KINDS:
            if part in one.name:
                return kind
        if one.name.startswith("autograd::engine"):
            return OTHER
        if one.name == "network":
            return SCOPES["network"]
        if one.name == "training step":
            # What comes before the network's forward pass prepares images.
            first = bisect.bisect(networks, (one.time_range.start, 0.0))
            prepares = first == len(networks) or event.time_range.start < networks[first][0]
            return DATA if prepares else SCOPES["training step"]
    return LOOP


def shares(events: list[FunctionEvent], seconds: float) -> dict[str, float]:
    """Share of the profiled time for each kind of work, the largest first."""
    networks = sorted((e.time_range.start, e.time_range.end) for e in events if e.name == "network")
    spent: Counter[str] = Counter()
    for event in events:
        spent[kind_of_work(event, networks)] += event.self_cpu_time_total / 1e6 / seconds
    # What no event accounts for.
    spent[LOOP] += max(0.0, 1 - sum(spent.values()))
    return dict(spent.most_common())


def train_steps(config: StepConfig, network: Network) -> StepTimes:
    """Time and profile steps in Lightning's loop."""
    count = config.recipe.batch_size * (2 * config.steps + WARM_UP + 1)
    generator = torch.Generator().manual_seed(config.options.seed)
    images = torch.randint(256, (count, *SHAPE), dtype=torch.uint8, generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    data = Subset(Images(images, labels, tuple(map(str, range(CLASSES)))))
    module = MarkedClassifier(
        network,
        config.recipe,
        resolve_augmentation(config.recipe.augmentation, "random"),
        config.options.seed,
        training=data,
        held_out=Subset(data.data, torch.arange(2)),
    )
    mark(network, "network")
    frontend = getattr(network, "frontend", None)
    if frontend is not None:
        mark(frontend, "front end")
        if frontend.retina is not None:
            mark(frontend.retina, "retina")
    times = StepTimes(config.steps)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu",
            precision=PRECISIONS[config.dtype],
            max_epochs=1,
            logger=False,
            callbacks=[times],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        )
        trainer.fit(module)
    return times


def compared(config: StepConfig, network: Network) -> dict[str, float]:
    """Images per second of steps without Lightning, computed in several ways that take turns.

    On one thread: per second of processor time.
    """
    generator = torch.Generator().manual_seed(config.options.seed)
    images = torch.rand(config.recipe.batch_size, *SHAPE, generator=generator)
    labels = torch.randint(CLASSES, (len(images),), generator=generator)

    def stepper(
        order: torch.memory_format, compiled: bool, bfloat16: bool, depthwise: bool = False
    ) -> Callable[[], None]:
        made = copy.deepcopy(network).train().to(memory_format=order)
        forward = torch.compile(made) if compiled else made
        optimizer = torch.optim.SGD(made.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        batch = images.contiguous(memory_format=order)

        def step() -> None:
            quick = QuickDepthwise() if depthwise else nullcontext()
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16), quick:
                loss = cross_entropy(forward(batch), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return step

    last, first = torch.channels_last, torch.contiguous_format
    ways: dict[str, tuple[Any, ...]] = {
        "eager, channels_last, float32": (last, False, False),
        "contiguous": (first, False, False),
    }
    ways["bfloat16"], ways["bfloat16, quick depthwise"] = (last, False, True), (last, False, True, True)
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        ways["compiled"], ways["compiled, bfloat16"] = (last, True, False), (last, True, True)
    else:
        print("no C++ compiler (c++, g++, clang++): compiled steps are left out")
    steppers = {name: stepper(*way) for name, way in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    clock = process_time if config.threads == 1 else perf_counter
    for number in range(WARM_UP + config.steps):
        for name, step in steppers.items():
            began = clock()
            step()
            if number >= WARM_UP:
                times[name].append(clock() - began)
    return {name: len(images) / float(np.median(values)) for name, values in times.items()}


def run(config: StepConfig) -> None:
    """The command: measure, print, write."""
    outputs = Outputs(config.out, options=config.options)
    lightning.seed_everything(config.options.seed, verbose=False)
    with use_threads(config.threads):
        frontend = open_frontend(config.frontend)[0] if config.frontend else None
        spec = ModelSpec(config.architecture, SHAPE, class_names(CLASSES), frontend.spec if frontend else None)
        network = build_model(spec, frontend).to(memory_format=torch.channels_last)
        macs, gflop = count_macs(network, SHAPE), step_gflop(network)
        plain = copy.deepcopy(network)
        before = peak_gflops(config.dtype)
        times = train_steps(config, network.train())
        after = peak_gflops(config.dtype)
        batch = config.recipe.batch_size
        duration, processor = times.seconds
        computing = processor if config.threads == 1 else duration
        reached, peak = batch * gflop / computing, max(before, after)
        name = f"{config.architecture.variant} {config.architecture.backbone}, width {config.architecture.width:g}"
        figures: dict[str, Any] = {
            "network": name,
            "threads": config.threads,
            "batch_size": batch,
            "precision": str(config.dtype).removeprefix("torch."),
            "images_per_s": batch / duration,
            "images_per_processor_s": batch / processor,
            "forward_macs": macs,
            "step_gflop_per_image": gflop,
            "gflop_per_s": reached,
            "peak_before_gflop_per_s": before,
            "peak_after_gflop_per_s": after,
            "share_of_peak": reached / peak,
        }
        print(
            f"{name}: {batch / duration:.0f} images/s ({batch / processor:.0f} per second of processor time), "
            f"batches of {batch}, threads: {config.threads}"
        )
        print(f"forward {macs / 1e6:.1f} M multiply-accumulates an image; a whole step {gflop:.3f} GFLOP")
        print(
            f"{reached:.0f} GFLOP/s, {reached / peak:.0%} of the peak of matrix products in {figures['precision']} "
            f"({before:.0f} before, {after:.0f} after)"
        )
        spent = shares(list(times.profiler.events() or []), times.profiled_seconds)
        rows = [
            {
                "network": name,
                "batch_size": batch,
                "kind": kind,
                "share": share,
                "ms_per_step": share * computing * 1000,
            }
            for kind, share in spent.items()
        ]
        lines = [[row["kind"], f"{row['share']:.1%}", f"{row['ms_per_step']:.1f}"] for row in rows]
        print_table("A step by kind of work", ("work", "share", "ms"), lines)
        if config.compare:
            speeds = compared(config, plain)
            usual = next(iter(speeds.values()))
            lines = [[way, f"{value:.0f}", f"{value / usual:.2f}"] for way, value in speeds.items()]
            print_table("Steps without Lightning", ("computed", "images/s", "over the first"), lines)
            figures["compared_images_per_s"] = speeds
    write_csv(config.out, rows)
    outputs.finish({**figures, "rows": rows})


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m benchmarks.training_step``."""
    return run_command(StepConfig, run, argv)


if __name__ == "__main__":
    sys.exit(main())
