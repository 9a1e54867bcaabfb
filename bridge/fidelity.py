"""Fidelity of the conversion: converted against simulated spike counts, on images that nothing was fitted to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bridge.frontend import SpikingFrontEnd
from snn.runtime.progress import progress

MODES = {False: "without_quantise_input", True: "with_quantise_input"}
"""Names, in files and reports, of the two modes: whether the first layer's input is rounded to whole spikes."""
LEVEL_SHARE = 0.05
"""A spike count is a level in use if this share of the neurons has it."""


@dataclass(frozen=True)
class Fidelity:
    """Fidelity of one layer that receives the output of the converted layers before it."""

    off_share: float
    """Share of the neurons whose spike count is off by one or more."""
    correlation: float
    """Correlation of the SAU's output with the simulated rate."""
    mean_error: float
    """Mean absolute error, in Hz."""
    mean_rate: float
    """Mean simulated rate, in Hz."""
    levels: int
    """Number of spike counts that :data:`LEVEL_SHARE` of the neurons have each."""
    confusion: Tensor
    """Neurons by simulated (rows) and converted count (columns), int64 (L, L)."""

    def summary(self) -> dict[str, float]:
        """All values but the confusion matrix, with units in the names."""
        return {
            "off_share": self.off_share,
            "correlation": self.correlation,
            "mean_error_Hz": self.mean_error,
            "mean_rate_Hz": self.mean_rate,
            "levels": self.levels,
        }


def measure_fidelity(
    frontend: SpikingFrontEnd, images: Tensor, counts: Sequence[Tensor], batch_size: int = 64
) -> list[Fidelity]:
    """Compare the front end with a simulation, layer by layer.

    Images are uint8 (N, C, H, W), on any device. ``counts`` are the simulated spikes of each layer on these images,
    int16 (N, C_out, H, W), on the CPU. ``batch_size`` images are converted together.
    """
    tops = [
        max(int(count.max()), int(layer.activation.heights.max()))
        for count, layer in zip(counts, frontend.layers, strict=True)
    ]
    confusions = [torch.zeros((top + 1) ** 2, dtype=torch.int64) for top in tops]
    device = next(frontend.buffers()).device
    for start in progress(range(0, len(images), batch_size), "measuring fidelity", "batch"):
        part = slice(start, start + batch_size)
        with torch.no_grad():
            converted = frontend.spikes(images[part].to(device) / 255)
        for confusion, top, count, spikes in zip(confusions, tops, counts, converted, strict=True):
            index = count[part].long() * (top + 1) + spikes.cpu().round().long()
            confusion += torch.bincount(index.flatten(), minlength=len(confusion))
    seconds = frontend.spec.encoding.presentation / 1000
    return [
        _summarise(confusion.reshape(top + 1, -1), seconds) for confusion, top in zip(confusions, tops, strict=True)
    ]


def _summarise(confusion: Tensor, seconds: float) -> Fidelity:
    """Fidelity from the frequency of each pair of counts; ``seconds`` is the presentation time."""
    share = confusion.double() / confusion.sum()
    level = torch.arange(len(confusion), dtype=torch.float64)
    simulated, converted = level[:, None], level
    error = (simulated - converted).abs()
    mean_simulated, mean_converted = ((share * values).sum() for values in (simulated, converted))
    covariance = (share * (simulated - mean_simulated) * (converted - mean_converted)).sum()
    variances = (share * (simulated - mean_simulated) ** 2).sum() * (share * (converted - mean_converted) ** 2).sum()
    return Fidelity(
        off_share=(share * (error >= 1)).sum().item(),
        correlation=(covariance / variances.sqrt()).item() if variances > 0 else 0.0,
        mean_error=(share * error).sum().item() / seconds,
        mean_rate=mean_simulated.item() / seconds,
        levels=int((share.sum(1) >= LEVEL_SHARE).sum()),
        confusion=confusion,
    )
