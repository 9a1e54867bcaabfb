"""Parts of ``python -m benchmarks.gpu`` that learn: engines beside norse's loop, and a pass of preset cifar10."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from benchmarks.engine_costs import (
    Work,
    count_work,
    encode_work,
    hold_work,
    pairs_work,
    pulse_steps,
    shape_in,
    simulate_work,
)
from benchmarks.gpu_setting import Setting
from benchmarks.jobs import Job, Row
from benchmarks.norse_loop import NorseLoop, captured, compiled, spikingjelly_loop
from benchmarks.presets import before_learning
from benchmarks.safe_dnn_stdp import image_seeds, make_layer
from benchmarks.stdp import make_workload
from benchmarks.timing import Clock, kernel_times, once, repeated
from benchmarks.watched_engine import WatchedEngine
from snn.calibration import normalised_rates
from snn.engines.base import Engine, EventCounts, choose_engine
from snn.homeostasis import balance, balance_ltd
from snn.layer import SpikingConv2d
from snn.learner import LayerLearner, learn, learn_batch
from snn.learning import PRESETS, Learning
from snn.network import LearnedLayer, SpikingNetwork, UnfinishedLayer
from snn.parameters import STDPParameters
from snn.plasticity import update
from snn.registries import RULES
from snn.runtime.processes import Processes
from snn.runtime.random import draw_seeds
from snn.spikes import Spikes, spike_counts
from snn.storage import load_network

NETWORK = "pretrained:cifar10-fd"
"""The network that preset cifar10 learned from CIFAR-10."""
IMAGES = 50_000
"""Of a whole pass."""
PEER = "SpikingJelly, CuPy"
"""Measured where both packages are."""
BATCHES = (16, 128)
"""Images that are simulated at once: those of an update, and enough to fill a GPU."""
KERNELS = 12
"""Kernels of a call that are recorded, those that take longest."""
LONG = 0.5
"""Seconds of a call from which on its kernels are not recorded: they are too many."""
WARM_UP, UPDATES, WATCHED, PROFILED = 20, 60, 20, 5
"""Updates of each layer: before the first timed one, timed as they are, by their parts, and by their kernels."""
HEADROOM = 1.3
"""A whole pass is learned if so many times its expected time is left."""


def timed(call: Callable[[], object], setting: Setting, images: int) -> Row:
    """Seconds and images/s of a call; on a GPU also its kernels."""
    row: Row = dict(repeated(call, setting.device, 0.02 if setting.tiny else 0.3))
    row["images_per_s"] = images / row["seconds"]
    return row | (kernels_of(call) if setting.on_gpu and row["seconds"] < LONG else {})


def kernels_of(call: Callable[[], object], calls: int = 1) -> Row:
    """What a call launches on a GPU."""
    found = kernel_times(call, calls)
    return {
        "launches": sum(kernel["launches"] for kernel in found.values()),
        "busy_s": sum(kernel["seconds"] for kernel in found.values()),
        "kernels": dict(list(found.items())[:KERNELS]),
    }


@torch.no_grad()
def measure_engine(job: Job, setting: Setting) -> None:
    """Part ``engine``: calls of the engines on the layers of preset cifar10, then whole simulations and updates."""
    for batch in (2,) if setting.tiny else BATCHES:
        results: dict[str, list[Tensor]] = {}
        for name in setting.engines:
            case = {"case": f"cifar10, batch {batch}", "way": f"engine {name}"}
            with job.caught(case):
                measure_calls(job, setting, choose_engine(name, setting.device), batch, case, results)
    measure_networks(job, setting, 2 if setting.tiny else BATCHES[-1])
    for name, batch in (("B", 1),) if setting.tiny else (("B", 64), ("C", 64)):
        with job.caught({"case": f"workload {name}, batch {batch}"}):
            measure_workload(job, setting, name, batch)


def measure_calls(
    job: Job, setting: Setting, engine: Engine, batch: int, case: Row, results: dict[str, list[Tensor]]
) -> None:
    """Each call of an engine on each learned layer, with the work that the GPU engine's kernels have there.

    ``results``: what each call gave with the engine before, to be compared with, by the call's name.
    """
    network = load_network(NETWORK)[0].to(setting.device)
    p, steps = network.learning, network.learning.encoding.n_steps
    images = setting.images(batch).to(setting.device)
    seeds = draw_seeds(batch, torch.Generator().manual_seed(1)).to(setting.device)

    def measure(layer: int, call: Callable[[], Any], what: str, work: dict[str, Work]) -> Any:
        """Call, record, and return what is returned."""
        row = case | {"layer": layer, "call": what, "work": {name: asdict(one) for name, one in work.items()}}
        clock = Clock(setting.device)
        made = clock.run(what, call)
        # The first call also compiles kernels.
        row["first_call_s"] = clock.seconds[what]
        values = list(made) if isinstance(made, tuple) else [spike_counts(made)]
        values = [value.cpu() for value in values]
        before = results.setdefault(f"{what}, layer {layer}", values)
        row["agrees"] = all(torch.equal(a, b) for a, b in zip(before, values, strict=True))
        job.attempt(row, lambda: timed(call, setting, batch))
        return made

    pre = measure(
        0,
        partial(network.encode, engine, images, seeds),
        "encode",
        {"encode": encode_work(tuple(images.shape[1:]), steps, batch)},
    )
    for number, learned in enumerate(network.layers, 1):
        layer = learned.layer
        geometry = layer.convolution((layer.conductance.shape[1], *images.shape[2:]))
        held = hold_work(shape_in(geometry), steps, batch, pulse_steps(layer.geometry, layer.dt))
        post = measure(
            number,
            partial(engine.simulate, layer, pre, inhibition=True, seeds=seeds),
            "simulate",
            {"hold": held, "simulate": simulate_work(geometry, steps, batch, inhibition=True)},
        )
        rates = normalised_rates(pre, len(pre) * layer.dt, learned.rate_limits)
        tables = RULES[p.rule.rule](p.rule).chances(len(pre), layer.dt, rates.fn)
        spikes = spike_counts(post).sum().item() / batch
        measure(
            number,
            partial(engine.count_events, pre, post, rates.level, tables, geometry, seeds),
            "count events",
            {"count pairs": pairs_work(geometry, steps, batch, spikes, len(tables))},
        )
        work = {"count spikes": count_work(geometry.shape_out, steps, batch)}
        job.attempt(
            case | {"layer": number, "call": "count spikes", "spikes": spikes}
            | {"work": {name: asdict(one) for name, one in work.items()}},
            partial(timed, partial(spike_counts, post), setting, batch),
        )  # fmt: skip
        pre = measure(
            number,
            partial(engine.simulate, layer, pre, inhibition=False),
            "layers below",
            {"hold": held, "simulate": simulate_work(geometry, steps, batch, inhibition=False)},
        )


def measure_networks(job: Job, setting: Setting, batch: int) -> None:
    """All three layers, without inhibition, from encoded images to spike counts: engines and loops."""
    network = load_network(NETWORK)[0].to(setting.device)
    images, case = setting.images(batch).to(setting.device), {"case": f"cifar10, three layers, batch {batch}"}
    seeds = draw_seeds(batch, torch.Generator().manual_seed(1)).to(setting.device)

    def simulate(engine: Engine, encoded: Spikes) -> Tensor:
        return spike_counts(network.simulate(engine, encoded)[-1])

    for name in setting.engines:
        with job.caught(case | {"way": f"engine {name}"}):
            engine = choose_engine(name, setting.device)
            call = partial(simulate, engine, network.encode(engine, images, seeds))
            row = case | {"way": f"engine {name}", "call": "simulate"}
            job.attempt(row, partial(timed, call, setting, batch))
    spikes = network.encode(choose_engine("norse"), images, seeds)
    assert isinstance(spikes, Tensor)
    measure_loops(job, setting, [learned.layer for learned in network.layers], spikes, case)


def measure_loops(job: Job, setting: Setting, layers: list[SpikingConv2d], spikes: Tensor, case: Row) -> None:
    """The loop of a user of norse, and SpikingJelly, on dense spikes (T, B, C, H, W)."""
    given = spikes.float()

    def measure(make: Callable[[], Callable[[Tensor], Tensor]]) -> Row:
        return timed(partial(make(), given), setting, spikes.shape[1])

    loop = NorseLoop(layers)
    anywhere = {
        "norse's loop": lambda: loop,
        "norse's loop compiled": partial(compiled, loop, "inductor" if setting.on_gpu else "eager"),
    }
    on_cuda = {
        "norse's loop as a CUDA graph": partial(captured, loop, given),
        PEER: partial(spikingjelly_loop, layers),
    }
    for name, make in (anywhere | on_cuda).items():
        row = case | {"way": name, "call": "simulate"}
        if name in on_cuda and not setting.on_gpu:
            job.record(row | {"note": "needs CUDA"})
        elif name == PEER and not all(map(find_spec, ("spikingjelly", "cupy"))):
            job.record(row | {"note": "not installed"})
        else:
            job.attempt(row, partial(measure, make))


def measure_workload(job: Job, setting: Setting, name: str, batch: int) -> None:
    """A workload of ``benchmarks.stdp``, given as dense spikes: simulation, and a whole update."""
    load, case = make_workload(name, batch, 0), {"case": f"workload {name}, batch {batch}"}
    layer = make_layer(load.weight, load.gain, load.padding, load.dt).to(setting.device)
    pre, seeds = load.pre.to(setting.device), image_seeds(load.pre).to(setting.device)
    p = STDPParameters().with_ltd_delay(load.rate_limits[0])
    for each in setting.engines:
        row = case | {"way": f"engine {each}"}
        with job.caught(row):
            engine = choose_engine(each, setting.device)
            calls = {
                "simulate": partial(engine.simulate, layer, pre, inhibition=False),
                "update": partial(learn_batch, engine, layer, pre, load.rate_limits, p, seeds),
            }
            for what, call in calls.items():
                job.attempt(row | {"call": what}, partial(timed, call, setting, batch))
    measure_loops(job, setting, [layer], pre, case)


@torch.no_grad()
def measure_pass(job: Job, setting: Setting) -> None:
    """Part ``pass``: updates of each layer of preset cifar10, the pass that they make, and that pass if time allows."""
    images = setting.images(48 if setting.tiny else IMAGES)
    p, engine = learning(setting), choose_engine(setting.engines[0], setting.device)
    network = before_learning(images, p, 0).to(setting.device)
    seconds = 0.0
    for number in range(len(p.maps)):
        row, learned = measure_layer(setting, images, network, engine, number)
        job.record(row)
        seconds += row["start_s"] + row["finish_s"] + p.updates(IMAGES) * row["update_s"]
        network = replace(network, layers=(*network.layers, learned))
    job.record(
        {
            "pass": f"expected from {UPDATES if not setting.tiny else 2} updates of each layer",
            "seconds": seconds,
            "images_per_s": IMAGES / seconds,
        }
    )
    if seconds * HEADROOM > job.left and not setting.tiny:
        job.record({"pass": "in full", "note": f"left out: {job.left:.0f} s left"})
        return

    def whole() -> Row:
        taken = once(lambda: learn(images, p, device=setting.device, engine=engine), setting.device)
        return {"seconds": taken, "images_per_s": len(images) / taken}

    job.attempt({"pass": f"in full, {len(images)} images"}, whole)


def learning(setting: Setting) -> Learning:
    """Preset cifar10; small layers in a tiny setting."""
    preset = PRESETS["cifar10"]
    return replace(preset, maps=(4, 5, 6), min_updates=1, calibration_images=8) if setting.tiny else preset


def measure_layer(
    setting: Setting, images: Tensor, network: SpikingNetwork, engine: Engine, number: int
) -> tuple[Row, LearnedLayer]:
    """Updates of layer ``number``, from 0, above those of ``network``: as they are, by parts and by kernels."""
    device, clock = setting.device, Clock(setting.device)
    warm_up, updates, watched = (1, 2, 1) if setting.tiny else (WARM_UP, UPDATES, WATCHED)
    learner = LayerLearner(images, number, network, device, engine, Processes())
    by_parts = LayerLearner(images, number, network, device, WatchedEngine(engine, clock.run), Processes())
    states: list[UnfinishedLayer] = []

    def start() -> None:
        states.append(learner.start())

    def present(each: LayerLearner, count: int) -> None:
        for _ in range(count):
            states[-1] = each.step(states[-1])

    row: Row = {"layer": number + 1, "start_s": once(start, device)}
    present(learner, warm_up)
    row["update_s"] = once(partial(present, learner, updates), device) / updates
    whole = once(partial(present, by_parts, watched), device) / watched
    row["parts_s"] = {part: seconds / watched for part, seconds in clock.seconds.items()}
    row["parts_s"]["update"] = repeated(partial(apply_rule, states[-1], network.learning), device, 0.02)["seconds"]
    row["parts_s"]["rest"] = whole - sum(row["parts_s"].values())
    if setting.on_gpu:
        row |= kernels_of(partial(present, learner, 1), PROFILED)
    learned: list[LearnedLayer] = []
    row["finish_s"] = once(lambda: learned.append(learner.finish(states[-1])), device)
    row["spikes_per_image"] = states[-1].history.wins[-updates:].sum().item() / (updates * network.learning.batch_size)
    return row, learned[0]


def apply_rule(state: UnfinishedLayer, p: Learning) -> None:
    """What an update computes once its events are counted: new conductances, and homeostasis."""
    layer = state.layer
    counts = EventCounts(*torch.ones((3, *layer.conductance.shape), dtype=torch.float64, device=layer.gain.device))
    conductance = update(layer.conductance, counts, p.rule, state.ltd_factor)
    wins = torch.ones(len(layer.gain), dtype=torch.int64, device=layer.gain.device)
    balance(layer.with_values(conductance=conductance), state.start, wins, p.homeostasis)
    balance_ltd(state.ltd_factor, conductance, p.homeostasis)
