"""ResNets (He et al. 2016). Another one needs a class with ``build`` alone (docs/hybrid.md)."""

from torch import nn
from torchvision.models import ResNet, ResNet18_Weights, ResNet101_Weights, resnet18, resnet101

from hybrid.backbones.base import Adapter, initialise_convolutions, register_backbone, renumbered

PLANES = 64
"""Channels of the first stage, before expansion."""


class ResNetAdapter(Adapter[ResNet]):
    """What all ResNets of torchvision share."""

    stem, head, strides, drops_only_stem = "conv1", "fc", (4, 1), True

    def use_small_strides(self, network: ResNet) -> None:
        network.conv1 = nn.Conv2d(network.conv1.in_channels, network.conv1.out_channels, 3, padding=1, bias=False)
        initialise_convolutions(network.conv1, "fan_out")
        network.maxpool = nn.Identity()

    def drop_stem(self, network: ResNet, channels: int, stride: int) -> None:
        for name in ("conv1", "bn1", "relu", "maxpool"):
            setattr(network, name, nn.Identity())
        # torchvision's own method makes the block, with the projection that the new input needs.
        block, network.inplanes = type(network.layer1[1]), channels
        (rebuilt,) = network._make_layer(block, PLANES, 1, stride)
        initialise_convolutions(rebuilt, "fan_out")
        network.layer1 = nn.Sequential(rebuilt, *network.layer1[1 + self.dropped_blocks :])

    def kept(self, name: str) -> str | None:
        return None if name.startswith(("conv1.", "bn1.")) else renumbered(name, "layer1.", self.dropped_blocks)


@register_backbone("resnet101")
class ResNet101(ResNetAdapter):
    """Bottleneck blocks, whose inner width can differ."""

    imagenet = ResNet101_Weights.IMAGENET1K_V2.url

    def build(self, classes: int, width: float) -> ResNet:
        return resnet101(weights=None, num_classes=classes, width_per_group=round(64 * width))


@register_backbone("resnet18")
class ResNet18(ResNetAdapter):
    """Basic blocks, which torchvision builds in one width only."""

    has_width, imagenet = False, ResNet18_Weights.IMAGENET1K_V1.url

    def build(self, classes: int, width: float) -> ResNet:
        return resnet18(weights=None, num_classes=classes)
