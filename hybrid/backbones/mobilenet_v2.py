"""MobileNetV2 (Sandler et al. 2018)."""

from torch import nn
from torchvision.models import MobileNet_V2_Weights, MobileNetV2, mobilenet_v2
from torchvision.models.mobilenetv2 import InvertedResidual

from hybrid.backbones.base import Adapter, initialise_convolutions, register_backbone, renumbered

SHALLOW = ((1, 16, 1, 1), (6, 24, 1, 2), (6, 32, 1, 1), (6, 64, 1, 2), (6, 96, 1, 1), (6, 160, 1, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of each stage of :class:`ShallowMobileNet`."""


@register_backbone("mobilenet_v2")
class MobileNet(Adapter[MobileNetV2]):
    """torchvision's network."""

    stem, head, strides, drops_only_stem = "features.0.0", "classifier.1", (4, 1), True
    imagenet = MobileNet_V2_Weights.IMAGENET1K_V2.url

    def build(self, classes: int, width: float) -> MobileNetV2:
        return mobilenet_v2(weights=None, num_classes=classes, width_mult=width)

    def use_small_strides(self, network: MobileNetV2) -> None:
        # The stem and the second stage keep the resolution.
        network.get_submodule(self.stem).stride = (1, 1)
        depthwise(network.features[2]).stride = (1, 1)

    def drop_stem(self, network: MobileNetV2, channels: int, stride: int) -> None:
        # The rebuilt block keeps its hidden width (unless the features are wider): six times the number of features
        # would double the network's cost.
        first, *others = network.features[1 + self.dropped_blocks :]
        if not self.dropped_blocks:
            # The next block halves the resolution, too; a stride of 1 is left where the features are small already.
            halving = min(2, stride)
            depthwise(others[0]).stride = (halving, halving)
            stride //= halving
        hidden = max(depthwise(first).out_channels, channels)
        rebuilt = InvertedResidual(channels, first.out_channels, 2, expand_ratio=hidden / channels)
        depthwise(rebuilt).stride = (stride, stride)
        initialise_convolutions(rebuilt, "fan_out")
        network.features = nn.Sequential(rebuilt, *others)

    def kept(self, name: str) -> str | None:
        # The first block does not widen its input, as it does once it is rebuilt: its parts have other roles then.
        if not self.dropped_blocks and name.startswith("features.1."):
            return None
        return renumbered(name, "features.", 1 + self.dropped_blocks)


@register_backbone("mobilenet_v2_shallow")
class ShallowMobileNet(MobileNet):
    """One block in each stage, for experiments on a CPU: it learns in a tenth of the time.

    It has no dropout, as it is trained for few passes.
    """

    strides = (4, 2)
    imagenet = ""

    def build(self, classes: int, width: float) -> MobileNetV2:
        return MobileNetV2(classes, width, inverted_residual_setting=[list(stage) for stage in SHALLOW], dropout=0.0)

    def use_small_strides(self, network: MobileNetV2) -> None:
        # Only the stem keeps the resolution.
        network.get_submodule(self.stem).stride = (1, 1)


def depthwise(block: nn.Module) -> nn.Conv2d:
    """The depthwise convolution of an inverted residual block."""
    return next(m for m in block.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)
