"""The front end as an ONNX model, with the same outputs.

Two things would make a runtime's results differ by whole steps: sums in another order, and the rounding of batch
normalisation. Sums are exact already (:mod:`bridge.frontend`). Normalisation is folded into the steps: it is monotone,
so a normalised drive reaches an edge exactly when the drive itself reaches a certain number, which is found by search.
"""

import copy
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d

from bridge.frontend import ConvertedLayer, FrozenStatisticsBatchNorm, SpikingFrontEnd
from snn.runtime.outputs import write_atomically

OPSET = 18


class FoldedLayer(nn.Module):
    """A converted layer without normalisation, in operators that every runtime has."""

    def __init__(self, layer: ConvertedLayer) -> None:
        super().__init__()
        # The drive that a falling normalisation sees is turned round, so that all steps go up.
        sign = torch.where(layer.norm.weight.detach() < 0, -1.0, 1.0)
        self.stride, self.padding = layer.stride, layer.padding
        self.register_buffer("weight", layer.weight)
        maps = len(sign)
        heights = layer.activation.heights.expand(maps, -1)
        self.register_buffer("sign", sign.reshape(-1, 1, 1))
        self.register_buffer("edges", reach(layer.norm, layer.activation.edges.expand(maps, -1), sign))
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
    """The smallest float32 numbers x whose ``norm(sign x)`` is not below ``edges``; both (C, n), ``sign`` (C,).

    Infinity where none is; minus infinity where all are.
    """
    # Bits of floats, ordered as the floats are: 64-bit numbers can be halved without overflow.
    top = _to_order(torch.tensor(torch.finfo(torch.float32).max))
    low, high = torch.full(edges.shape, -top - 1), torch.full(edges.shape, top + 1)
    with torch.no_grad():
        for _ in range(33):
            middle = (low + high) // 2
            drive = _from_order(middle) * sign[:, None]
            sheet = drive[None, ..., None].contiguous(memory_format=torch.channels_last)
            reached = norm(sheet)[0, ..., 0] >= edges
            high = torch.where(reached, middle, high)
            low = torch.where(reached, low, middle)
    found = _from_order(high.clamp(-top, top))
    found = torch.where(high > top, torch.inf, found)
    return torch.where(high <= -top, -torch.inf, found)


def _to_order(x: Tensor) -> int:
    return x.view(torch.int32).item()


def _from_order(order: Tensor) -> Tensor:
    size = order.abs().to(torch.int32).view(torch.float32)
    return torch.where(order < 0, -size, size)


def write_onnx(frontend: SpikingFrontEnd, path: Path) -> None:
    """Write the front end: input "images" (B, C, H, W) in [0, 1], output "features" (B, maps, H', W'), any B."""
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
    write_atomically(path, lambda temporary: program.save(temporary))


def run_in_onnxruntime(path: Path, images: Tensor) -> Tensor:
    """Features of images (B, C, H, W) in [0, 1] by onnxruntime, on the CPU, as it comes."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
