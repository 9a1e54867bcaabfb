"""A spiking convolution: shared conductances, a sheet of LIF neurons per channel (paper, 4.2).

A presynaptic spike at step k holds its synapse open for a pulse of steps k .. k+w-1 (a new spike restarts it), and
the drive of a neuron is ``I = gain_c sum_j G_cj s_j`` with ``gain`` the synaptic current per unit of conductance. The
layer's spikes act on the next layer in the same step. Padding is silence.

With feed-forward inhibition, an inhibitory cell that all presynaptic neurons drive alike takes the mean conductance off
every synapse: ``I = gain_c (sum_j G_cj s_j - mean_j(G_cj) sum_j s_j)``.

With inhibition on, only one channel fires of those that cross threshold at one place (x, y) in one step: the one
furthest above its threshold (a seeded draw decides between equal ones). Every channel there goes to v_reset, and all
but the winner ignore input for ``inhibition_time``.

A layer holds values; an engine (:mod:`snn.engines`) simulates it.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from snn.exact import exact_grid, round_for_exact_sums
from snn.geometry import ConvGeometry
from snn.neuron import LIFBoxParameters, norse_parameters
from snn.parameters import LayerParameters, LIFParameters


@dataclass(frozen=True)
class SpikingConv2d:
    """A layer with its learned values; all methods are pure."""

    conductance: Tensor
    """(C_out, C_in, kH, kW)."""
    gain: Tensor
    """i_syn of each channel (C_out,): current per unit of conductance."""
    v_threshold: Tensor
    """Threshold of each channel (C_out,), in mV."""
    geometry: LayerParameters
    lif: LIFParameters
    dt: float
    """Time step, in ms."""

    def neurons(self) -> tuple[LIFBoxParameters, Tensor]:
        """Norse's parameters, and mV per unit of drive before the gain; both broadcast against (B, C, H, W)."""
        per_map = (1, -1, 1, 1)
        neuron = norse_parameters(self.lif, self.v_threshold.reshape(per_map))
        return neuron, self.millivolts_per_drive.reshape(per_map)

    @property
    def millivolts_per_drive(self) -> Tensor:
        """mV per unit of each channel's drive before the gain, (C_out,)."""
        return self.gain * self.lif.millivolts_per_current

    @property
    def weight(self) -> Tensor:
        """What an open synapse adds to the drive, before the gain, (C_out, C_in, kH, kW): G, less inhibition."""
        if not self.geometry.feed_forward_inhibition:
            return self.conductance
        total = _on_exact_grid(self.conductance).sum((1, 2, 3), keepdim=True)
        # By a tensor: CUDA multiplies by the inverse of a number, which rounds otherwise.
        return self.conductance - total / torch.full_like(total, self.conductance[0].numel())

    def exact_weight(self) -> Tensor:
        """Weights rounded to a grid (2^-15 for sums of up to 512 in float32) on which every sum of them is exact.

        Then a drive does not depend on the order of its sum, and engines, devices and batches agree to the last bit.
        """
        return _on_exact_grid(self.weight)

    def whole_weight(self) -> tuple[Tensor, Tensor]:
        """:meth:`exact_weight` as whole numbers, int32, and their unit, a number: no sum of them reaches 2^24."""
        weight = self.weight
        grid = exact_grid(_largest_sum(weight), weight.dtype)
        return torch.round(weight / grid).int(), grid

    def convolution(self, shape: tuple[int, int, int]) -> ConvGeometry:
        """Its convolution over presynaptic neurons of ``shape`` (C_in, H, W)."""
        return ConvGeometry.of(self.geometry, shape)

    def to(self, target: torch.device | str | torch.dtype) -> "SpikingConv2d":
        """A copy on another device or of another precision."""
        names = ("conductance", "gain", "v_threshold")
        return replace(self, **{name: getattr(self, name).to(target) for name in names})

    def with_values(self, **values: Any) -> "SpikingConv2d":
        """A copy with the tensors ``conductance``, ``gain`` or ``v_threshold`` replaced."""
        return replace(self, **values)


def _on_exact_grid(kernels: Tensor) -> Tensor:
    """Kernels (C_out, C_in, kH, kW) rounded so that every sum over a kernel is exact."""
    return round_for_exact_sums(kernels, _largest_sum(kernels))


def _largest_sum(kernels: Tensor) -> Tensor:
    """At least as large as any sum over a part of a kernel, a number."""
    return kernels[0].numel() * kernels.abs().amax()
