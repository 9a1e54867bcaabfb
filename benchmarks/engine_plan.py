"""What learning on a GPU should take, computed: work of the kernels, launches, and the time of a whole pass."""

from typing import NamedTuple

from benchmarks.engine_costs import Ceilings, Kernel, bound, update_kernels
from benchmarks.launches import count_launches
from snn.learning import PRESETS
from snn.storage import load_network

NETWORKS = {"cifar10": "pretrained:cifar10-fd", "retina": "pretrained:cifar10-retina"}
"""Presets, and the network that each learned from CIFAR-10: it tells how many spikes a layer fires."""
IMAGES = 50_000
"""Of a pass."""
LAUNCH = 5e-6
"""Seconds that a processor takes for a launch (assumed; ``benchmarks.gpu`` measures it)."""


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
    launches: int
    """Of an update, the engine's and PyTorch's."""

    @property
    def overlapped(self) -> float:
        """Seconds of all updates, launches and kernels at the same time: the least."""
        return self.updates * max(self.kernel_s, self.launches * LAUNCH)

    @property
    def in_turn(self) -> float:
        """Seconds of all updates where every launch waits for the kernel before."""
        return self.updates * (self.kernel_s + self.launches * LAUNCH)


def plan_pass(preset: str, most: Ceilings) -> list[LayerPlan]:
    """All layers of a preset, on images of the shape of the network that ships."""
    network = load_network(NETWORKS[preset])[0]
    p = PRESETS[preset]
    counted = count_launches(p)
    plans = []
    for number, learned in enumerate(network.layers, 1):
        history = learned.history
        spikes = history.wins.sum().item() / history.images[-1].item()
        kernels = update_kernels(p, network.input_shape, number, spikes)
        # Counts of spikes are among the operations of an update that were counted.
        own = sum(kernel.name != "count spikes" for kernel in kernels)
        launches = own + counted.update + number * counted.of_layer
        seconds = sum(bound(kernel.work, most).seconds for kernel in kernels)
        plans.append(LayerPlan(number, spikes, p.updates(IMAGES), kernels, seconds, launches))
    return plans
