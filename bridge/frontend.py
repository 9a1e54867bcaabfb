"""``SpikingFrontEnd``: the learned layers as frozen convolutions that answer in one step, and ``frontend.h5``.

A layer's drive is the mean current of its neurons, ``I = i_syn w sum_j G_j f_j`` with presynaptic rates f in Hz and
pulse width w; ``weight = i_syn w G`` (w in s) makes it one convolution. Batch normalisation follows (paper, 4.1): its
statistics are those of the training images and stay frozen, and its affine part starts by undoing them, so that before
any training the layer passes its drive on unchanged to the Special Activation Unit. The affine part can train.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d

from bridge.activation import SpecialActivationUnit
from snn.data import DataSource
from snn.encode import Encoding
from snn.h5file import Tree, from_tree, input_tree, read_file, read_input, write_file

SCHEMA = "frontend/1"
REMEDY = "python -m bridge.convert snn.h5 --out FILE"
SHIPPED_FRONTENDS = Path(__file__).parent / "shipped"
"""Front ends that ship with the package (:func:`snn.pretrained.resolve`)."""


class Response(NamedTuple):
    """Simulated response of a layer to which its SAU was fitted: a sample of neurons."""

    drive: np.ndarray
    """Mean current, float32 (N,)."""
    rate: np.ndarray
    """Rate in Hz, float32 (N,)."""


@dataclass(frozen=True)
class FrontEndSpec:
    """What is needed to build a front end before its values are loaded."""

    input_shape: tuple[int, int, int]
    """(C, H, W) of the images."""
    maps: tuple[int, ...]
    """C_out of each layer."""
    kernel_sizes: tuple[int, ...]
    strides: tuple[int, ...]
    paddings: tuple[int, ...]
    steps: tuple[int, ...]
    """Edges of each layer's SAU."""
    encoding: Encoding
    """Rates of intensities 0 and 1, and the presentation time."""
    quantise_input: bool = False
    """Round input rates down to whole spikes, floor(F T)/T, as the encoder does (the paper drops this)."""

    @property
    def stride(self) -> int:
        """Stride of the whole front end."""
        return int(np.prod(self.strides))


def input_rates(images: Tensor, p: Encoding, quantise: bool) -> Tensor:
    """Rates in Hz of intensities in [0, 1]; f_min is folded in here, so a convolution's zero padding is silence.

    With ``quantise`` they are rounded down to whole spikes a presentation, floor(F T) / T, as the encoder does.
    """
    rates = p.rate(images)
    if quantise:
        seconds = p.presentation / 1000
        # float32 resolves 1e-6 of a spike here; without the margin, whole numbers would lose one.
        rates = torch.floor(rates * seconds + 1e-5) / seconds
    return rates


class FrozenStatisticsBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with fixed statistics, also in training; only the affine part learns.

    Batch statistics would shift drives across the edges of the SAU from batch to batch.
    """

    def forward(self, x: Tensor) -> Tensor:
        return batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)

    def pass_through(self, mean: Tensor, variance: Tensor) -> None:
        """Set statistics (C,) and the affine part that undoes them."""
        with torch.no_grad():
            self.running_mean.copy_(mean)
            self.running_var.copy_(variance)
            self.weight.copy_((variance + self.eps).sqrt())
            self.bias.copy_(mean)


class ConvertedLayer(nn.Module):
    """Frozen convolution, batch normalisation, SAU: rates in Hz to rates in Hz, (B, C, H, W)."""

    def __init__(self, weight: Tensor, stride: int, padding: int, steps: int = 1) -> None:
        super().__init__()
        self.register_buffer("weight", weight.to(torch.float32).clone())
        self.stride, self.padding = stride, padding
        self.norm = FrozenStatisticsBatchNorm(len(weight))
        # Placeholder of the right size, until fitted or loaded.
        self.activation = SpecialActivationUnit(torch.arange(float(steps)), torch.zeros(steps + 1))

    def drive(self, rates: Tensor) -> Tensor:
        """Mean current of each neuron, before normalisation."""
        return conv2d(rates, self.weight, stride=self.stride, padding=self.padding)

    def forward(self, rates: Tensor) -> Tensor:
        return self.activation(self.norm(self.drive(rates)))


class SpikingFrontEnd(nn.Module):
    """The converted spiking layers. Images in [0, 1], (B, C, H, W), to features in [0, 1], (B, maps[-1], H', W')."""

    def __init__(self, spec: FrontEndSpec, layers: list[ConvertedLayer]) -> None:
        super().__init__()
        self.spec = spec
        self.layers = nn.ModuleList(layers)

    @classmethod
    def empty(cls, spec: FrontEndSpec) -> "SpikingFrontEnd":
        """A front end of the right shape, to load values into."""
        inputs = (spec.input_shape[0], *spec.maps[:-1])
        return cls(
            spec,
            [
                ConvertedLayer(torch.zeros(maps, c_in, size, size), stride, padding, n)
                for maps, c_in, size, stride, padding, n in zip(
                    spec.maps, inputs, spec.kernel_sizes, spec.strides, spec.paddings, spec.steps, strict=True
                )
            ],
        )

    def rates(self, images: Tensor) -> list[Tensor]:
        """Output of every layer, in Hz."""
        outputs = [input_rates(images, self.spec.encoding, self.spec.quantise_input)]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        return outputs[1:]

    def forward(self, images: Tensor) -> Tensor:
        return self.rates(images)[-1] / self.layers[-1].activation.heights[-1]


def save_frontend(
    path: Path,
    frontend: SpikingFrontEnd,
    responses: list[Response],
    residuals: list[dict[str, float]],
    source: DataSource,
    *,
    seed: int,
    command: str,
    source_digest: str,
) -> str:
    """Write ``frontend.h5``; return its digest."""
    layers = {}
    for number, (layer, response, residual) in enumerate(zip(frontend.layers, responses, residuals, strict=True), 1):
        layers[f"conv{number}"] = {
            "state": {key: value.cpu().numpy() for key, value in layer.state_dict().items()},
            "weight_unit": "current per Hz",
            "edges_unit": "current",
            "heights_unit": "Hz",
            "response": {**response._asdict(), "drive_unit": "current", "rate_unit": "Hz"},
            "residual": residual,
        }
    spec = asdict(frontend.spec)
    tree = {
        "input": input_tree(source, spec.pop("input_shape")),
        "spec": spec,
        "layers": layers,
    }
    return write_file(path, SCHEMA, tree, seed=seed, command=command, source_digest=source_digest)


def load_frontend(path: Path) -> tuple[SpikingFrontEnd, DataSource, str]:
    """Read ``frontend.h5``: the front end on the CPU, the data it was fitted on, and the file's digest.

    Raises :class:`snn.errors.UserError` for missing, truncated, foreign or altered files.
    """
    return read_file(path, SCHEMA, REMEDY, _frontend_from_tree)


def _frontend_from_tree(tree: Tree) -> tuple[SpikingFrontEnd, DataSource, str]:
    source, shape = read_input(tree["input"])
    frontend = SpikingFrontEnd.empty(spec_from_tree(tree["spec"], shape))
    for number, layer in enumerate(frontend.layers, 1):
        state = tree["layers"][f"conv{number}"]["state"]
        layer.load_state_dict({key: torch.from_numpy(value) for key, value in state.items()})
    return frontend, source, tree["digest"]


def spec_from_tree(tree: Tree, input_shape: tuple[int, int, int]) -> FrontEndSpec:
    """The :class:`FrontEndSpec` stored in a file."""
    return from_tree(FrontEndSpec, tree, encoding=from_tree(Encoding, tree["encoding"]), input_shape=input_shape)
