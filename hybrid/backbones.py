"""Main CNNs from torchvision, and the same with stem and following block dropped (paper, Fig. 2).

Two sets of strides: ``stock`` (224x224, as torchvision builds it) and ``small`` (32x32: those the field uses for
CIFAR, without early down-sampling). The set follows from the image size.
"""

from collections.abc import Callable

from torch import nn
from torchvision.models import mobilenet_v2
from torchvision.models.mobilenetv2 import InvertedResidual

from snn.errors import check

SMALL_IMAGE = 96
"""Images with a side below this many pixels get the strides for small images."""


def uses_small_strides(image_size: int) -> bool:
    """Whether images of this side get the CIFAR strides."""
    return image_size < SMALL_IMAGE


def _mobilenet_v2(in_channels: int, classes: int, width: float, small: bool, stem: bool) -> nn.Module:
    network = mobilenet_v2(weights=None, num_classes=classes, width_mult=width)
    features = network.features
    if small:
        # CIFAR strides: the stem and the second stage keep the resolution.
        features[0][0].stride = (1, 1)
        _set_stride(features[2], 1)
    if stem:
        old = features[0][0]
        features[0][0] = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
        nn.init.kaiming_normal_(features[0][0].weight, mode="fan_out")
        return network
    # Stem and first inverted residual go; the next block is rebuilt for the features it gets instead. It keeps its
    # hidden width (unless the features are wider): six times the new depth would double the network's cost.
    first = features[2]
    hidden = max(_depthwise(first).out_channels, in_channels)
    rebuilt = InvertedResidual(in_channels, first.out_channels, first.stride, expand_ratio=hidden / in_channels)
    for module in rebuilt.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
    network.features = nn.Sequential(rebuilt, *features[3:])
    return network


def _depthwise(block: InvertedResidual) -> nn.Conv2d:
    return next(m for m in block.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)


def _set_stride(block: InvertedResidual, stride: int) -> None:
    _depthwise(block).stride = (stride, stride)
    # No shortcut: the block's input and output differ in depth, as they did before.
    block.stride = stride


BACKBONES: dict[str, Callable[..., nn.Module]] = {"mobilenet_v2": _mobilenet_v2}


def check_backbone(name: str, width: float) -> None:
    """Raise :class:`snn.errors.UserError` for an unknown name or an impossible width."""
    check(name in BACKBONES, f"--backbone {name}: unknown; choose from {', '.join(sorted(BACKBONES))}")
    check(0 < width <= 10, f"--width {width}: expected above 0 and up to 10; 1 is the published width")


def full_backbone(name: str, in_channels: int, classes: int, image_size: int, width: float = 1.0) -> nn.Module:
    """The whole classifier for normalised images (B, in_channels, image_size, image_size) to logits (B, classes).

    Raises :class:`snn.errors.UserError` for an unknown name or width.
    """
    check_backbone(name, width)
    return BACKBONES[name](in_channels, classes, width, uses_small_strides(image_size), stem=True)


def main_cnn(name: str, in_channels: int, classes: int, image_size: int, width: float = 1.0) -> nn.Module:
    """The classifier without stem and following block, for features (B, in_channels, H, W) to logits (B, classes)."""
    check_backbone(name, width)
    return BACKBONES[name](in_channels, classes, width, uses_small_strides(image_size), stem=False)
