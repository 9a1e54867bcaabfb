"""Trained networks as files that need nothing of this project: ONNX, or a program of ``torch.export``.

The whole network is in the file: preprocessing, retina, steps, auxiliary and main CNN, normalisation. Frozen layers are
folded (:mod:`bridge.export.folded`), so that every drive takes the same step as here. The encoder gives its mean, as in
evaluation with one draw. Each file is run beside PyTorch before it is written.
"""

import copy
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from bridge.export.folded import FoldedFrontEnd, PlainSteps
from bridge.export.images import check_images
from bridge.export.onnx import onnx_model, run_in_onnxruntime
from bridge.export.packages import check_packages
from bridge.frontend import SpikingFrontEnd
from bridge.sau import SpecialActivationUnit
from hybrid.architecture import ModelSpec
from hybrid.conditions import Condition, Noise
from hybrid.network import Network
from hybrid.storage import TrainedModel, load_model
from snn.runtime.errors import UserError, check, check_choice
from snn.runtime.outputs import write_bytes
from snn.runtime.random import stream

Converted = TypeVar("Converted")
Format = Literal["onnx", "torch"]
SUFFIX: dict[str, str] = {"onnx": ".onnx", "torch": ".pt2"}
"""Ending of a file's name, by format."""
CHECKED_IMAGES = 32
"""Images on which a file is run: half without and half with noise."""
NOISE = "awgn:15"
"""Noise on the second half."""
TOLERANCE = 1e-4
"""Largest difference of a logit that is accepted, where no logit is above 10; otherwise 1e-5 of the largest."""
MOVED_SHARE = 0.125
"""Share of the images whose logits may differ by more, where steps follow sums that are not exact."""
MOST_BYTES = 2**31 - 2**24
"""Of weights in an ONNX file: its format, protobuf, ends at 2 GiB."""
METADATA = "safe-dnn.json"
"""Name of the description inside a .pt2 file."""


class Agreement(NamedTuple):
    """Logits of a file beside those of the network here."""

    images: int
    largest_logit: float
    largest_difference: float
    different_classes: int
    """Images whose class differs."""
    moved_images: int
    """Images whose logits differ by more than is accepted."""


class GlobalMaximum(nn.Module):
    """The maximum of each channel over all places: (B, C, H, W) to (B, C, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax((2, 3), keepdim=True)


def plain_network(network: Network) -> Network:
    """A copy on the CPU, in evaluation mode, in operators that every runtime has; it gives the same logits."""
    plain = copy.deepcopy(network).cpu().eval()
    front = getattr(plain, "frontend", None)
    if isinstance(front, SpikingFrontEnd):
        plain.frontend = FoldedFrontEnd(front)
    for name, module in list(plain.named_modules()):
        if isinstance(module, SpecialActivationUnit):
            plain.set_submodule(name, PlainSteps.of(module))
        elif isinstance(module, nn.AdaptiveMaxPool2d) and module.output_size in (1, (1, 1)):
            # PyTorch 2.11 has no ONNX operator for it.
            plain.set_submodule(name, GlobalMaximum())
    return plain.eval()


def has_inexact_steps(network: nn.Module) -> bool:
    """Whether step functions follow trained layers, whose sums depend on the order in which a library adds.

    Those of frozen layers are exact. A drive of the others that lies within rounding of an edge may take another step.
    """
    frozen = {id(part) for part in network.modules() if isinstance(part, SpikingFrontEnd) for part in part.modules()}
    return any(isinstance(part, SpecialActivationUnit) and id(part) not in frozen for part in network.modules())


def description(model: TrainedModel, command: str) -> dict[str, str]:
    """What a file says of itself, by key."""
    spec, network = model.spec, model.network
    channels, height, width = spec.input_shape
    return {
        "class_names": json.dumps(spec.classes),
        "input": f"images: float32 (B, {channels}, {height}, {width}), intensities in [0, 1], any B; preprocessing and "
        "normalisation are inside the network",
        "input_shape": json.dumps(spec.input_shape),
        "input_range": json.dumps([0, 1]),
        "output": f"logits: float32 (B, {len(spec.classes)}), in the order of class_names; softmax gives probabilities",
        "normalisation": json.dumps(
            {"mean": network.normalise.mean.flatten().tolist(), "std": network.normalise.std.flatten().tolist()}
        ),
        "preprocess": str(spec.architecture.preprocess),
        "variant": spec.architecture.variant,
        "backbone": spec.architecture.backbone,
        "precision": "float32",
        "training_seed": str(model.seed),
        "source_digest": model.digest,
        "command": command,
    }


def doc_string(described: dict[str, str]) -> str:
    """The description in sentences."""
    return (
        f"{described['variant']} {described['backbone']}, a network of safe-dnn. Input: {described['input']}. Output: "
        f"{described['output']}."
    )


def onnx_network(model: TrainedModel, command: str = "hybrid.export") -> bytes:
    """The network as an ONNX file: "images" (B, C, H, W) in [0, 1] to "logits" (B, classes), any B."""
    from onnx import helper

    size = sum(values.nbytes for values in model.network.state_dict().values())
    check(
        size <= MOST_BYTES,
        f"`format` onnx: {size / 2**30:.3g} GiB of weights, and such a file has at most {MOST_BYTES / 2**30:.3g} GiB; "
        "choose `format` torch",
    )
    network, spec = plain_network(model.network), model.spec
    exported = _converted(lambda: onnx_model(network, spec.input_shape, "logits"), "onnx", spec)
    described = description(model, command)
    exported.producer_name, exported.doc_string = "safe-dnn", doc_string(described)
    helper.set_model_props(exported, described)
    for value, text in ((exported.graph.input[0], "input"), (exported.graph.output[0], "output")):
        value.doc_string = described[text]
    return exported.SerializeToString()


def torch_network(model: TrainedModel, command: str = "hybrid.export") -> bytes:
    """The network as a .pt2 file, which ``torch.export.load`` reads: images (B, C, H, W) in [0, 1] to logits, any B."""
    network, spec = plain_network(model.network), model.spec
    batch = ({0: torch.export.Dim("batch", min=1)},)

    def convert() -> torch.export.ExportedProgram:
        return torch.export.export(network, (torch.zeros(2, *spec.input_shape),), dynamic_shapes=batch)

    program = _converted(convert, "torch", spec)
    for graph in (part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)):
        for node in graph.nodes:
            # Where the source code lies on this machine.
            node.meta.pop("stack_trace", None)
    described = description(model, command)
    buffer = io.BytesIO()
    text = json.dumps({"description": doc_string(described), **described}, indent=2)
    torch.export.save(program, buffer, extra_files={METADATA: text})
    return buffer.getvalue()


def _converted(convert: Callable[[], Converted], format: str, spec: ModelSpec) -> Converted:
    """What ``convert`` returns; :class:`UserError` for whatever it cannot convert."""
    try:
        return convert()
    except MemoryError:
        raise
    except Exception as error:
        # Exporters raise errors of many kinds, the cause of which they name in the last of them.
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = str(cause).strip().splitlines()[:1] or [type(cause).__name__]
        other = "torch" if format == "onnx" else "onnx"
        raise UserError(
            f"`format` {format}: backbone {spec.architecture.backbone} cannot be exported ({reason[0][:300]}); choose "
            f"`format` {other}, or use other operators in it"
        ) from error


def run_in_torch(content: bytes | str | Path, images: Tensor) -> Tensor:
    """Logits (B, classes) of a .pt2 file, or of its bytes, for images (B, C, H, W) in [0, 1], on the CPU."""
    program = torch.export.load(io.BytesIO(content) if isinstance(content, bytes) else content)
    with torch.no_grad():
        return program.module()(images)


def clean_and_noisy(shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """:data:`CHECKED_IMAGES` images (N, C, H, W) in [0, 1]; the second half are the first, with :data:`NOISE`."""
    clean = check_images(CHECKED_IMAGES // 2, shape, generator) / 255
    noise = Condition.parse(NOISE)
    assert isinstance(noise, Noise)
    return torch.cat([clean, noise.apply(clean, generator)])


def compare(expected: Tensor, logits: Tensor) -> Agreement:
    """How logits (N, classes) agree with those that are expected."""
    difference = (logits - expected).abs()
    largest = expected.abs().max().item()
    # So that NaN is not accepted.
    accepted = difference.amax(1) <= max(TOLERANCE, TOLERANCE / 10 * largest)
    different = int((logits.argmax(1) != expected.argmax(1)).sum())
    return Agreement(len(expected), largest, difference.max().item(), different, int((~accepted).sum()))


def check_agreement(agreement: Agreement, inexact: bool) -> None:
    """Raise :class:`UserError` for logits that differ on more images than they may.

    ``inexact``: :func:`has_inexact_steps` of the network; then an eighth of the images may have other logits. Otherwise
    logits agree on all images, and the class can only differ between logits that are equal but for their last digits.
    """
    most = int(MOVED_SHARE * agreement.images) if inexact else 0
    check(
        max(agreement.moved_images, agreement.different_classes if inexact else 0) <= most
        and math.isfinite(agreement.largest_difference),
        f"logits of the file differ by up to {agreement.largest_difference:g} from PyTorch's on "
        f"{agreement.moved_images} of {agreement.images} images ({TOLERANCE:g} is expected); nothing was written: use "
        "another version of onnxruntime or torch, and report it",
    )


def export(
    model: TrainedModel | str | Path,
    path: str | Path,
    format: Format = "onnx",
    *,
    seed: int = 0,
    command: str = "hybrid.export",
) -> Agreement:
    """Write a trained network to ``path`` for other programs; return how the file's logits agree with PyTorch's.

    Args:
        model: a trained model, a file that holds one, or "pretrained:NAME".
        path: file to write.
        format: "onnx" (for onnxruntime and others) or "torch" (for ``torch.export.load``).
        seed: of the images on which both run (:func:`clean_and_noisy`).
        command: what the file names as its origin.

    Raises:
        UserError: a file that cannot be read or written, a network that cannot be exported, or logits that differ
            (:func:`check_agreement`). Nothing is written then.
    """
    check_choice("format", format, SUFFIX)
    check_packages(format)
    model = load_model(model) if isinstance(model, str | Path) else model
    content, agreement = checked_content(model, format, seed, command)
    write_bytes(Path(path), content)
    return agreement


def checked_content(model: TrainedModel, format: Format, seed: int, command: str) -> tuple[bytes, Agreement]:
    """What :func:`export` writes, and how its logits agree with PyTorch's."""
    content = (onnx_network if format == "onnx" else torch_network)(model, command)
    images = clean_and_noisy(model.spec.input_shape, stream("export", seed))
    network = copy.deepcopy(model.network).cpu().eval()
    with torch.inference_mode():
        expected = network(images)
    logits = (run_in_onnxruntime if format == "onnx" else run_in_torch)(content, images)
    agreement = compare(expected, logits)
    check_agreement(agreement, has_inexact_steps(network))
    return content, agreement
