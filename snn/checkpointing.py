"""Unfinished learning: when it is written, and whether a file can be gone on from."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from time import perf_counter

from snn.network import SpikingNetwork
from snn.runtime.errors import UserError, check
from snn.runtime.processes import Processes
from snn.storage import load_network


def load_unfinished(path: Path, fresh: SpikingNetwork, resume: bool) -> SpikingNetwork | None:
    """The network in ``path`` to go on from, or None to start; ``fresh`` is the network before its first update.

    Raises :class:`UserError` for unfinished learning without ``resume``, which must not be replaced, and with it for
    other settings, seed or images than those of ``fresh``, or a damaged file.
    """
    if not path.exists():
        return None
    try:
        stored = load_network(path).network
    except UserError:
        if resume:
            raise
        # Not a network, or an older one: it is replaced, as any output is.
        return None
    if not resume:
        where = f"layer {len(stored.layers) + 1}, update {stored.unfinished.updates if stored.unfinished else 0}"
        check(
            stored.complete,
            f"{path} holds unfinished learning ({where}): go on with `resume`, remove it, or give another `out`",
        )
        return None
    start = replace(stored, layers=(), unfinished=None)
    check(
        start == fresh,
        f"{path} was learned with other settings, images or seed ({_difference(start, fresh)}): go on with those it "
        "was started with, or give another `out`",
    )
    return stored


def _difference(stored: SpikingNetwork, wanted: SpikingNetwork) -> str:
    """The first settings that differ, by name."""
    for one, other in ((stored.learning, wanted.learning), (stored, wanted)):
        for name in (field.name for field in fields(one)):
            if name != "learning" and getattr(one, name) != getattr(other, name):
                return f"{name}: {getattr(one, name)} there, {getattr(other, name)} here"
    return "learning"


def checkpoint_writer(
    write: Callable[[SpikingNetwork], object], interval: float, processes: Processes
) -> Callable[[SpikingNetwork], None]:
    """What :func:`snn.learner.learn` calls after every update: the first process writes every ``interval`` seconds.

    A complete network is left to the caller, who writes it with its digest.
    """
    last, layers = perf_counter(), 0

    def save(network: SpikingNetwork) -> None:
        nonlocal last, layers
        if not processes.first or network.complete:
            return
        if len(network.layers) > layers or perf_counter() - last >= interval:
            write(network.to("cpu"))
            last, layers = perf_counter(), len(network.layers)

    return save
