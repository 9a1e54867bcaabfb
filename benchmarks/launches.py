"""How many operations of PyTorch an update launches beside the engine's kernels, counted without a GPU.

On a GPU each such operation is at least one launch of a kernel. A processor takes several microseconds for a launch,
however little the kernel does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from benchmarks.presets import before_learning, first_layer
from benchmarks.watched_engine import WatchedEngine
from snn.engines.base import choose_engine
from snn.learner import LayerLearner
from snn.learning import Learning
from snn.runtime.processes import Processes

FREE = ("aten::detach", "aten::empty", "aten::empty_like", "aten::lift_fresh", "aten::_unsafe_view")
"""Operations that launch nothing; those that PyTorch calls views launch nothing either."""
WAITS = "aten::_local_scalar_dense"
"""The operation by which a number comes from the device: it waits for all that was launched."""
SIDE = 8
"""Of the images on which operations are counted, in pixels: the count is the same for all sizes."""


class Launches(NamedTuple):
    """Of an update, without the engine's kernels."""

    update: int
    """Operations of the update, whatever number of layers lie below."""
    waits: int
    """How many of them wait for the device."""
    of_layer: int
    """Operations that make a layer ready to be simulated: its weights on their grid, its neurons."""


class DeviceOperations(TorchDispatchMode):
    """Counts operations on tensors that lie on the device: those that are placed there, and what is computed of them.

    A dispatch mode: it counts what runs inside of a ``with`` statement.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count, self.waits = 0, 0
        self._counting = True
        self._there = WeakIdKeyDictionary()

    def place(self, *tensors: object) -> None:
        """Put tensors on the device; other objects are left alone."""
        for tensor in tensors:
            if isinstance(tensor, Tensor):
                self._there[tensor] = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs inside is not counted."""
        self._counting = False
        try:
            yield
        finally:
            self._counting = True

    def uncounted(self, _: str, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call an engine, whose result lies on the device (:class:`WatchedEngine`)."""
        with self.paused():
            made = call(*arguments, **options)
        self.place(*tree_leaves(tuple(made) if isinstance(made, tuple) else made))
        return made

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        given = (one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor))
        if any(one in self._there for one in given):
            name = function.name().split(".")[0]
            if self._counting and not function.is_view and name not in FREE:
                self.count += 1
                self.waits += name == WAITS
            self.place(*tree_leaves(made))
        return made


def count_launches(p: Learning) -> Launches:
    """Of an update of a layer that learns with these settings."""
    p = replace(first_layer(p), min_updates=1, calibration_images=8)
    images = torch.randint(256, (p.batch_size, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    operations = DeviceOperations()
    engine = WatchedEngine(choose_engine("norse"), operations.uncounted)
    # A small retina is as many operations.
    retina = replace(p.retina, kernel_size=3, patches=1000)
    network = before_learning(images, replace(p, retina=retina), 0)
    learner = LayerLearner(images, 0, network, torch.device("cpu"), engine, Processes())
    state = learner.start()
    values = state.layer.conductance, state.layer.gain, state.layer.v_threshold
    operations.place(images, *values, state.ltd_factor, state.window)
    with operations:
        learner.step(state)
    update, waits = operations.count, operations.waits
    with operations:
        state.layer.exact_weight()
        state.layer.neurons()
    return Launches(update, waits, operations.count - update)
