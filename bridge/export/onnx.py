"""The front end as an ONNX model with the same outputs (:mod:`bridge.export.folded`)."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from bridge.export.folded import FoldedFrontEnd
from bridge.export.images import check_images
from bridge.frontend import SpikingFrontEnd
from snn.runtime.errors import check
from snn.runtime.outputs import write_bytes

if TYPE_CHECKING:
    from onnx import ModelProto

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


def onnx_model(module: nn.Module, shape: tuple[int, int, int], output: str) -> "ModelProto":
    """A module in evaluation mode on the CPU as an ONNX model: "images" float32 (B, C, H, W) to ``output``, any B.

    ``shape`` (C, H, W) is that of the images.
    """
    program = torch.onnx.export(
        module,
        (torch.zeros(2, *shape),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=[output],
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    for record in (*model.graph.node, *model.graph.value_info, *model.graph.input, *model.graph.output):
        # Where the source code lies on this machine.
        del record.metadata_props[:]
    return model


def onnx_bytes(frontend: SpikingFrontEnd) -> bytes:
    """The front end as an ONNX file: "images" (B, C, H, W) in [0, 1] to "features" (B, C_out, H', W'), any B."""
    model = FoldedFrontEnd(copy.deepcopy(frontend).cpu().eval()).eval()
    return onnx_model(model, frontend.spec.input_shape, "features").SerializeToString()


def run_in_onnxruntime(model: bytes | str | Path, images: Tensor) -> Tensor:
    """What onnxruntime computes on the CPU, in its default settings, for images (B, C, H, W) in [0, 1].

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
