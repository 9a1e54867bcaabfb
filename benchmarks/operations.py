"""How many operations of PyTorch an update starts beside the engine's kernels, counted without a GPU.

Each takes the processor several microseconds, whether it launches a kernel of a GPU or computes a few numbers itself.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.presets import before_learning, first_layer
from benchmarks.watched_engine import WatchedEngine
from snn.engines.base import choose_engine
from snn.learner import LayerLearner
from snn.learning import Learning
from snn.runtime.processes import Processes

FREE = ("aten::detach", "aten::empty", "aten::empty_like", "aten::lift_fresh", "aten::_unsafe_view")
"""Operations that compute nothing; those that PyTorch calls views compute nothing either."""
SIDE = 8
"""Of the images on which operations are counted, in pixels: the count is the same for all sizes."""


class Operations(NamedTuple):
    """Of PyTorch, without the engine's."""

    update: int
    """Of an update, whatever number of layers lie below."""
    layer: int
    """By which a layer that has changed is made ready to be simulated: its weights on their grid, its neurons."""


class OperationCounter(TorchDispatchMode):
    """Counts the operations of PyTorch inside of a ``with`` statement."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self._counting = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside is not counted."""
        before, self._counting = self._counting, False
        try:
            yield
        finally:
            self._counting = before

    def uncounted(self, _: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call an engine (:class:`benchmarks.watched_engine.WatchedEngine`) without counting what it does."""
        with self.paused():
            return call(*arguments, **options)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        computes = not function.is_view and function.name().split(".")[0] not in FREE
        self.count += self._counting and computes
        return function(*args, **(kwargs or {}))


def count_operations(p: Learning) -> Operations:
    """Of a layer that learns with these settings."""
    p = replace(first_layer(p), min_updates=1, calibration_images=8)
    images = torch.randint(256, (p.batch_size, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    images, counter = images.to(torch.uint8), OperationCounter()
    engine = WatchedEngine(choose_engine("norse"), counter.uncounted)
    # A small retina is as many operations.
    retina = replace(p.retina, kernel_size=3, patches=1000)
    network = before_learning(images, replace(p, retina=retina), 0)
    learner = LayerLearner(images, 0, network, torch.device("cpu"), engine, Processes())
    state = learner.start()
    # The first update of a pass also draws the order of the images.
    state = learner.step(state)
    with counter:
        learner.step(state)
    update = counter.count
    with counter:
        state.layer.exact_weight()
        state.layer.neurons()
    return Operations(update, counter.count - update)
