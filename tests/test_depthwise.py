"""Depthwise convolutions in bfloat16: PyTorch's own bits, computed in another way."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn

from hybrid.backbones import full_backbone
from hybrid.depthwise import QuickDepthwise

REPLACED = "AvgPool2DBackward0"


def stepped(convolution, images, context):
    """Output, its gradient function's name, and all gradients."""
    images = images.clone().requires_grad_()
    convolution.zero_grad()
    with context:
        output = convolution(images)
    output.backward(torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(output.dtype))
    return output, output.grad_fn.name(), [images.grad, *(p.grad.clone() for p in convolution.parameters())]


@pytest.mark.parametrize(
    "settings",
    [
        {"stride": 2, "padding": 1},
        {"stride": (1, 3), "padding": (0, 2), "bias": False},
        {"stride": 2, "padding": 2, "dilation": 2},
        {"stride": 3},
        {"stride": 2, "padding": 1, "padding_mode": "circular"},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(8, 8), (9, 14)], ids=str)
def test_strided_depthwise_convolutions_have_the_bits_of_pytorch(settings, size):
    random = torch.Generator().manual_seed(0)
    convolution = nn.Conv2d(6, 6, 3, groups=6, **settings).bfloat16()
    for parameter in convolution.parameters():
        parameter.data = torch.randn(parameter.shape, generator=random).bfloat16()
    images = torch.randn((4, 6, *size), generator=random).bfloat16().contiguous(memory_format=torch.channels_last)
    usual, plain, gradients = stepped(convolution, images, nullcontext())
    quick, name, others = stepped(convolution, images, QuickDepthwise())
    assert name == REPLACED != plain
    assert torch.equal(quick, usual)
    for gradient, other in zip(gradients, others, strict=True):
        assert torch.equal(gradient, other)


@pytest.mark.parametrize(
    ("convolution", "dtype"),
    [
        (nn.Conv2d(6, 6, 3, 2, groups=6), torch.float32),
        (nn.Conv2d(6, 6, 3, groups=6), torch.bfloat16),
        (nn.Conv2d(6, 6, 3, 2), torch.bfloat16),
        (nn.Conv2d(6, 6, 3, 2, groups=3), torch.bfloat16),
        (nn.Conv2d(6, 12, 3, 2, groups=6), torch.bfloat16),
        (nn.Conv2d(1, 1, 3, 2), torch.bfloat16),
    ],
    ids=["float32", "no stride", "dense", "grouped", "two kernels a channel", "one channel"],
)
def test_other_convolutions_are_left_alone(convolution, dtype):
    images = torch.randn((2, convolution.in_channels, 9, 9), generator=torch.Generator().manual_seed(1)).to(dtype)
    _, name, _ = stepped(convolution.to(dtype), images, QuickDepthwise())
    assert name == "ConvolutionBackward0"


def test_what_needs_no_gradient_is_convolved_as_usual():
    convolution = nn.Conv2d(6, 6, 3, 2, groups=6).bfloat16()
    with QuickDepthwise():
        # Only the kernels' gradient is asked for, which is quick.
        assert convolution(torch.ones(1, 6, 9, 9).bfloat16()).grad_fn.name() == "ConvolutionBackward0"


def replaced(loss):
    """Number of convolutions that were computed in the other way, in the graph of a loss."""
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        function = waiting.pop()
        if function is not None and function not in seen:
            seen.add(function)
            waiting += [following for following, _ in function.next_functions]
    return sum(function.name() == REPLACED for function in seen)


def test_a_training_step_of_mobilenet_has_the_same_gradients():
    images, labels = torch.rand((8, 3, 32, 32), generator=torch.Generator().manual_seed(2)), torch.arange(8)
    network = full_backbone("mobilenet_v2", 3, 10, 32, width=0.25)
    found = []
    # Three of its depthwise convolutions halve the resolution of images of this size.
    for context, expected in ((nullcontext(), 0), (QuickDepthwise(), 3)):
        network.zero_grad()
        # Dropout draws from the global generator.
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16), context:
            loss = nn.functional.cross_entropy(network(images).float(), labels)
        assert replaced(loss) == expected
        loss.backward()
        found.append([p.grad.clone() for p in network.parameters()])
    for gradient, other in zip(*found, strict=True):
        assert torch.equal(gradient, other)
