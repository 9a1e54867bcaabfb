"""Networks in ONNX files in 8-bit whole numbers, made and run by onnxruntime.

Convolutions and matrices of the trainable part are static int8 (QDQ format): weights are int8 with a scale for each
output channel, activations uint8 in ranges that calibration images show. Half of these images are noisy, as ranges of
clean images alone would clip under noise. The front end, whose steps turn the smallest change of a drive into a whole
spike, stays float32 with every bit (benchmarks/README.md has the figures).
"""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bridge.export.onnx import run_in_onnxruntime
from hybrid.conditions import Condition, Noise
from hybrid.exporting import NOISE, Agreement, compare
from snn.runtime.errors import check
from snn.runtime.random import stream

QUANTISED = ("Conv", "Gemm", "MatMul")
"""Operators that become int8."""
FRONT_END = "frontend."
"""Start of the names of the front end's weights."""
BATCH = 32
"""Calibration images in one run."""
SAME_CLASS = 0.8
"""Smallest share of images that must keep their class."""


def calibration_images(images: Tensor, seed: int) -> Tensor:
    """float32 images (N, C, H, W) in [0, 1] of uint8 ones; of each four, the last two are noisy."""
    clean = images.float() / 255
    noise = Condition.parse(NOISE)
    assert isinstance(noise, Noise)
    generator = stream("int8", seed)
    # Of each four, two are noisy, so that both halves of the images (even and odd rows) hold clean and noisy ones.
    rows = torch.arange(len(clean)) % 4 >= 2
    clean[rows] = noise.apply(clean[rows], generator)
    return clean


def quantise(content: bytes, images: Tensor) -> bytes:
    """The bytes of an ONNX file of :func:`hybrid.exporting.onnx_network`, in int8.

    ``images`` (N, C, H, W) in [0, 1] calibrate the ranges of activations.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        batches: Iterator[Tensor] = iter(images.split(BATCH))

        def get_next(self) -> dict | None:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    model = onnx.load_from_string(content)
    frozen = [node.name for node in model.graph.node if any(name.startswith(FRONT_END) for name in node.input)]
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(content)
        # It warns that the graph should be simplified first, which the exporter has done.
        disabled = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            quantize_static(
                source,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                nodes_to_exclude=frozen,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(disabled)
        quantised = onnx.load(target)
    kept = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(quantised, kept | {"precision": "int8 (weights and activations), front end float32"})
    quantised.producer_name, quantised.doc_string = model.producer_name, model.doc_string
    return quantised.SerializeToString()


def check_quantised(content: bytes, quantised: bytes, images: Tensor) -> Agreement:
    """How the logits of an int8 file agree with those of the float32 file on images (N, C, H, W) in [0, 1].

    Raises :class:`snn.runtime.errors.UserError` if fewer than :data:`SAME_CLASS` of the images keep their class.
    """
    expected, logits = (run_in_onnxruntime(model, images) for model in (content, quantised))
    agreement = compare(expected, logits)
    same = 1 - agreement.different_classes / agreement.images
    check(
        same >= SAME_CLASS and bool(logits.isfinite().all()),
        f"`int8`: only {same:.0%} of {agreement.images} training images keep their class ({SAME_CLASS:.0%} is "
        "expected); nothing was written: give more images of its training with `calibration`, or keep float32",
    )
    return agreement
