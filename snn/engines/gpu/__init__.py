"""The GPU engine: what layers and rule do on CUDA, to the same bits as on a CPU.

Given the spikes of the layer below, places are independent of each other. One program (:mod:`snn.engines.gpu.kernels`)
takes a few places of an image with all their channels through the whole presentation: potentials, drives and
inhibition stay in registers. Drives are exact whole numbers, summed by the matrix units. Spikes are bits, so nothing of
size (T, B, C, H, W) exists.

Without a GPU, ``TRITON_INTERPRET=1`` runs the same kernels slowly on a CPU, which is how they are tested.
"""

import os
import shutil
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from snn.encoding import check_images
from snn.engines.base import EventCounts
from snn.engines.gpu.packed import PackedSpikes
from snn.engines.gpu.tiles import MOST_CHANNELS
from snn.engines.norse import NorseEngine
from snn.geometry import ConvGeometry
from snn.layer import SpikingConv2d
from snn.parameters import Encoding
from snn.registries import ENCODERS, register_engine
from snn.spikes import Spikes, as_dense


@register_engine("gpu")
class GpuEngine(NorseEngine):
    """Simulates bits on CUDA, as the dense engine those layers that its kernels cannot hold (:func:`fits`)."""

    def __init__(self) -> None:
        self._synapses = WeakIdKeyDictionary()
        """Weights of layers that live, as the kernels take them: those of layers below are used at every update."""

    def preference(self, device_type: str) -> int:
        if find_spec("triton") is None or (device_type == "cpu" and "TRITON_INTERPRET" not in os.environ):
            return 0
        # Imported here: Triton takes a while, and comes with PyTorch's builds for CUDA alone.
        import triton

        if triton.knobs.runtime.interpret:
            return {"cuda": 3, "cpu": 1}.get(device_type, 0)
        return 3 if device_type == "cuda" and can_compile() else 0

    def encode(self, images: Tensor, p: Encoding, seeds: Tensor) -> Spikes:
        check_images(images)
        return ENCODERS[p.kind]().packed(images, p, seeds)

    def simulate(self, layer: SpikingConv2d, pre: Spikes, *, inhibition: bool, seeds: Tensor | None = None) -> Spikes:
        if not fits(layer):
            return super().simulate(layer, pre, inhibition=inhibition, seeds=seeds)
        packed = as_packed(pre)
        assert seeds is not None or not inhibition, "inhibition draws between channels of equal potential"
        if seeds is None:
            seeds = torch.zeros(packed.batch_size, dtype=torch.int64, device=packed.words.device)
        spikes = _launch().simulate(layer, self._prepared(layer), packed, inhibition=inhibition, seeds=seeds)
        return spikes.to_dense() if isinstance(pre, Tensor) else spikes

    def count_events(
        self, pre: Spikes, post: Spikes, level: Tensor, tables: list[Tensor], geometry: ConvGeometry, seeds: Tensor
    ) -> EventCounts:
        return EventCounts(*_launch().count_pairs(as_packed(pre), as_packed(post), level, tables, geometry, seeds))

    def sample_drive(self, layer: SpikingConv2d, pre: Spikes, places: Tensor) -> Tensor:
        if not fits(layer):
            return super().sample_drive(layer, pre, places)
        packed = as_packed(pre)
        return _launch().sample_drive(layer, self._prepared(layer), packed, places.to(packed.words.device))

    def count_driven(self, layer: SpikingConv2d, drive: Tensor) -> int:
        if not fits(layer):
            return super().count_driven(layer, drive)
        return _launch().count_driven(layer, drive)

    def _prepared(self, layer: SpikingConv2d) -> Any:
        if layer not in self._synapses:
            self._synapses[layer] = _launch().Synapses.of(layer)
        return self._synapses[layer]


def can_compile() -> bool:
    """Whether kernels can be made for the CUDA device: NVIDIA's, of compute capability 8.0, and a C compiler is there.

    Triton builds a small program to launch each kernel.
    """
    if torch.version.cuda is None or torch.cuda.get_device_capability() < (8, 0):
        return False
    return any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))


def fits(layer: SpikingConv2d) -> bool:
    """Whether the kernels can simulate a layer: in float32, of at most :data:`MOST_CHANNELS` maps."""
    return layer.conductance.dtype == torch.float32 and len(layer.conductance) <= MOST_CHANNELS


def _launch() -> ModuleType:
    """Imported when needed, as Triton is."""
    from snn.engines.gpu import launch

    return launch


def as_packed(spikes: Spikes) -> PackedSpikes:
    """Spikes in any form, as bits."""
    return spikes if isinstance(spikes, PackedSpikes) else PackedSpikes.from_dense(as_dense(spikes))
