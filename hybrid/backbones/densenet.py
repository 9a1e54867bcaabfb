"""DenseNet (Huang et al. 2017)."""

import re
from collections import OrderedDict

from torch import nn
from torchvision.models import DenseNet, DenseNet121_Weights

from hybrid.backbones.base import Adapter, initialise_convolutions, register_backbone, renumbered


@register_backbone("densenet121")
class DenseNet121(Adapter[DenseNet]):
    """torchvision's network, with a growth rate that can differ."""

    stem, head, strides, smallest, drops_only_stem = "features.conv0", "classifier", (4, 1), 8, True
    imagenet = DenseNet121_Weights.IMAGENET1K_V1.url

    def build(self, classes: int, width: float) -> DenseNet:
        # densenet121() fixes the growth rate; these are its other numbers.
        growth = round(32 * width)
        return DenseNet(growth, (6, 12, 24, 16), num_init_features=2 * growth, num_classes=classes)

    def use_small_strides(self, network: DenseNet) -> None:
        stem = network.features.conv0
        network.features.conv0 = nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=False)
        initialise_convolutions(network.features.conv0, "fan_in")
        network.features.pool0 = nn.Identity()

    def drop_stem(self, network: DenseNet, channels: int, stride: int) -> None:
        # A dense layer reads the outputs of all layers before it: the whole first stage is rebuilt, without the
        # layers that are dropped.
        stages = network.features
        growth = stages.denseblock1.denselayer1.conv2.out_channels
        layers = len(stages.denseblock1) - self.dropped_blocks
        block, transition = type(stages.denseblock1), type(stages.transition1)
        bottleneck = stages.denseblock1.denselayer1.conv1.out_channels // growth
        rebuilt: list[tuple[str, nn.Module]] = [
            ("denseblock1", block(layers, channels, bn_size=bottleneck, growth_rate=growth, drop_rate=0.0)),
            ("transition1", transition(channels + layers * growth, stages.transition1.conv.out_channels)),
        ]
        for _, module in rebuilt:
            initialise_convolutions(module, "fan_in")
        if stride > 1:
            # Dense blocks have no stride; this is the stock stem's pooling.
            rebuilt.insert(0, ("pool0", nn.MaxPool2d(stride + 1, stride, padding=stride // 2)))
        names = [name for name, _ in stages.named_children()]
        kept = [(name, stages.get_submodule(name)) for name in names[names.index("denseblock2") :]]
        network.features = nn.Sequential(OrderedDict(rebuilt + kept))

    def kept(self, name: str) -> str | None:
        if name.startswith(("features.conv0.", "features.norm0.")):
            return None
        if self.dropped_blocks and name.startswith("features.denseblock1.denselayer1."):
            return None
        return renumbered(name, "features.denseblock1.denselayer", self.dropped_blocks)

    def current(self, name: str) -> str:
        # torchvision's file is older than its modules.
        return re.sub(r"(\.denselayer\d+\.(?:norm|conv))\.(\d\.)", r"\1\2", name)
