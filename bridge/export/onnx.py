"""The front end as an ONNX model with the same outputs, from the retina on if there is one.

Two things could make a runtime's results differ by whole steps: another order of sums, and the rounding of batch
normalisation. Sums are exact (:mod:`bridge.frontend`, :mod:`snn.retina`). Normalisation is folded into the steps. It is
monotone, so a normalised drive reaches an edge exactly when the drive itself reaches a certain number, which a search
finds.
"""

import copy
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from bridge.export.images import check_images
from bridge.frontend import ConvertedLayer, FrozenStatisticsBatchNorm, SpikingFrontEnd
from snn.runtime.errors import check
from snn.runtime.outputs import write_bytes

OPSET = 18
CHECKED_IMAGES = 16
"""Images on which :func:`export_onnx` runs the file."""
TOLERANCE = 1e-5
"""Largest difference of a feature that :func:`export_onnx` accepts."""


class Agreement(NamedTuple):
    """Features by onnxruntime beside PyTorch's."""

    largest_difference: float
    same_share: float
    """Share of the features that are the same bits."""


class FoldedLayer(nn.Module):
    """A converted layer without normalisation, in operators that every runtime has."""

    weight: Tensor
    sign: Tensor
    edges: Tensor
    lowest: Tensor
    rises: Tensor

    def __init__(self, layer: ConvertedLayer) -> None:
        super().__init__()
        # Under a falling normalisation, the drive changes its sign, so that all steps go up.
        sign = torch.where(layer.norm.weight.detach() < 0, -1.0, 1.0)
        self.stride, self.padding = layer.stride, layer.padding
        self.register_buffer("weight", layer.weight)
        channels = len(sign)
        heights = layer.activation.heights.expand(channels, -1)
        self.register_buffer("sign", sign.reshape(-1, 1, 1))
        self.register_buffer("edges", reach(layer.norm, layer.activation.edges.expand(channels, -1), sign))
        self.register_buffer("lowest", heights[:, :1, None])
        self.register_buffer("rises", heights.diff(dim=1))

    def forward(self, spikes: Tensor) -> Tensor:
        drive = conv2d(spikes, self.weight, stride=self.stride, padding=self.padding) * self.sign
        out = self.lowest
        for edge, rise in zip(self.edges.T[..., None, None], self.rises.T[..., None, None], strict=True):
            out = out + (drive >= edge).to(drive.dtype) * rise
        return out


class FoldedFrontEnd(nn.Module):
    """:class:`bridge.frontend.SpikingFrontEnd` of folded layers."""

    def __init__(self, frontend: SpikingFrontEnd) -> None:
        super().__init__()
        self.encode = frontend.encode
        self.layers = nn.Sequential(*(FoldedLayer(layer) for layer in frontend.layers))
        self.top = frontend.layers[-1].activation.heights.max().item()

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(self.encode(images)) / self.top


def reach(norm: FrozenStatisticsBatchNorm, edges: Tensor, sign: Tensor) -> Tensor:
    """The smallest float32 numbers x, (C, n), for which ``norm(sign x)`` is not below ``edges`` (C, n); sign (C,).

    Infinity where no number reaches the edge, minus infinity where all do.
    """
    # The search runs over the bits of floats, in the order of the floats, as 64-bit integers that cannot overflow.
    top = int(torch.tensor(torch.finfo(torch.float32).max).view(torch.int32).item())
    low, high = torch.full(edges.shape, -top - 1), torch.full(edges.shape, top + 1)
    with torch.no_grad():
        for _ in range(33):
            middle = (low + high) // 2
            drive = _from_order(middle) * sign[:, None]
            sheet = drive[None, ..., None].contiguous(memory_format=torch.channels_last)
            reached = norm(sheet)[0, ..., 0] >= edges
            high = torch.where(reached, middle, high)
            low = torch.where(reached, low, middle)
    lowest = torch.where(high > top, torch.inf, _from_order(high.clamp(-top, top)))
    return torch.where(high <= -top, -torch.inf, lowest)


def _from_order(order: Tensor) -> Tensor:
    size = order.abs().to(torch.int32).view(torch.float32)
    return torch.where(order < 0, -size, size)


def onnx_bytes(frontend: SpikingFrontEnd) -> bytes:
    """The front end as an ONNX file: "images" (B, C, H, W) in [0, 1] to "features" (B, C_out, H', W'), any B."""
    model = FoldedFrontEnd(copy.deepcopy(frontend).cpu().eval()).eval()
    images = torch.zeros(2, *frontend.spec.input_shape)
    program = torch.onnx.export(
        model,
        (images,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
        verbose=False,
    )
    assert program is not None
    return program.model_proto.SerializeToString()


def run_in_onnxruntime(model: bytes | str | Path, images: Tensor) -> Tensor:
    """Features that onnxruntime computes on the CPU, in its default settings, for images (B, C, H, W) in [0, 1].

    ``model`` is an ONNX file, or its bytes.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def export_onnx(frontend: SpikingFrontEnd, path: str | Path, generator: torch.Generator) -> Agreement:
    """Write the front end to ``path``; return how the file's features agree with PyTorch's.

    Both run on :data:`CHECKED_IMAGES` images (:func:`bridge.export.images.check_images`). Raises
    :class:`snn.runtime.errors.UserError` for a difference of more than :data:`TOLERANCE`; nothing is written then.
    """
    content = onnx_bytes(frontend)
    images = check_images(CHECKED_IMAGES, frontend.spec.input_shape, generator) / 255
    with torch.no_grad():
        difference = (run_in_onnxruntime(content, images) - frontend(images)).abs()
    agreement = Agreement(difference.max().item(), (difference == 0).double().mean().item())
    check(
        agreement.largest_difference <= TOLERANCE,
        f"features by onnxruntime differ by up to {agreement.largest_difference:g} from PyTorch's (at most "
        f"{TOLERANCE:g} is expected); nothing was written: use another version of onnxruntime or torch, and report it",
    )
    write_bytes(Path(path), content)
    return agreement
