"""Depthwise convolutions that step in bfloat16 on a CPU without their slow gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.overrides import TorchFunctionMode


class QuickDepthwise(TorchFunctionMode):
    """While it is entered, depthwise convolutions with a stride keep every pixel first, and drop most of them then.

    That is the same convolution with the same gradients, bit for bit, for another cost: oneDNN has no fast kernel for
    the gradient with respect to the input of a strided depthwise convolution in bfloat16. It took 7 to 30 times as long
    as the gradient without the stride, and 40 % of a training step of MobileNetV2 on images of 32 pixels. Only
    convolutions on a CPU, in bfloat16, that gradients go through are computed so.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.conv2d:
            return _conv2d(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """:func:`torch.conv2d`, whose arguments have these names."""
    steps = (stride, stride) if isinstance(stride, int) else tuple(stride)
    depthwise = groups > 1 and groups == input.shape[-3] == weight.shape[0]
    if depthwise and steps != (1, 1) and input.device.type == "cpu" and input.requires_grad and _is_low(input):
        # The mean of one pixel copies it, and its gradient leaves the memory's order as it is, unlike a slice's.
        return avg_pool2d(torch.conv2d(input, weight, bias, 1, padding, dilation, groups), 1, steps)
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _is_low(images: Tensor) -> bool:
    """Whether a convolution of these computes in bfloat16."""
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return images.dtype == torch.bfloat16
