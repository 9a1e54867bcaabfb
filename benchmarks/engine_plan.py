"""What learning on a GPU should take, computed: kernels, operations of PyTorch, a whole pass; and the front end."""

from typing import NamedTuple

from benchmarks.engine_costs import Ceilings, Kernel, bound, update_kernels
from benchmarks.operations import count_operations
from bridge.frontend import SpikingFrontEnd
from hybrid.complexity import count_macs, planned_frontend
from snn.learning import PRESETS
from snn.storage import load_network

NETWORKS = {"cifar10": "pretrained:cifar10-fd", "retina": "pretrained:cifar10-retina"}
"""Presets, and the network that each learned from CIFAR-10: it tells how many spikes a layer fires."""
IMAGES = 50_000
"""Of a pass."""
OPERATION = 5e-6
"""Seconds that a processor takes to start a kernel or an operation of PyTorch (assumed; ``benchmarks.gpu`` measures
launches)."""


class LayerPlan(NamedTuple):
    """A layer that learns on :data:`IMAGES` images."""

    layer: int
    """From 1."""
    spikes: float
    """Postsynaptic spikes of an image, as the network that ships fired while it learned."""
    updates: int
    kernels: list[Kernel]
    """Of an update."""
    kernel_s: float
    """Least seconds of all of them."""
    operations: int
    """That an update starts: the engine's kernels, and PyTorch's."""

    @property
    def overlapped(self) -> float:
        """Seconds of all updates if the processor starts what comes while the kernels run: the least."""
        return self.updates * max(self.kernel_s, self.operations * OPERATION)

    @property
    def in_turn(self) -> float:
        """Seconds of all updates if the GPU waits while the processor works, and the other way round."""
        return self.updates * (self.kernel_s + self.operations * OPERATION)


def plan_pass(preset: str, most: Ceilings) -> list[LayerPlan]:
    """All layers of a preset, on images of the shape of the network that ships."""
    network = load_network(NETWORKS[preset])[0]
    p = PRESETS[preset]
    counted = count_operations(p)
    plans = []
    for number, learned in enumerate(network.layers, 1):
        history = learned.history
        spikes = history.wins.sum().item() / history.images[-1].item()
        kernels = update_kernels(p, network.input_shape, number, spikes)
        # PyTorch's operations that count spikes are among those of the update. Layers below have not changed.
        own = sum(kernel.name != "count spikes" for kernel in kernels)
        operations = own + counted.update + counted.layer
        seconds = sum(bound(kernel.work, most).seconds for kernel in kernels)
        plans.append(LayerPlan(number, spikes, p.updates(IMAGES), kernels, seconds, operations))
    return plans


def frontend_speed(preset: str, most: Ceilings) -> float:
    """Most images a second of the converted front end, in float32: its multiply-accumulates alone."""
    shape = load_network(NETWORKS[preset])[0].input_shape
    macs = count_macs(SpikingFrontEnd.empty(planned_frontend(PRESETS[preset], shape)), shape)
    # Here they may be fused: one each for a slot.
    return most.float32 / macs
