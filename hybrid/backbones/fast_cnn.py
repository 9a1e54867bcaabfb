"""A plain convolutional network of the kind that learns CIFAR-10 in the fewest operations.

Its shape is that of the networks of speed records: D. Page's ResNet-9 (DAWNBench, 2018) and K. Jordan's airbench
(2024). All its convolutions are dense, so that a CPU computes them near its peak; MobileNetV2's depthwise ones are
bound by memory. Widths and their order are airbench94's. As in the larger airbench96 a stage ends with a
residual connection, here over its last convolution alone. Batch normalisation and GELU follow each convolution.
"""

from torch import Tensor, nn

from hybrid.backbones.base import Adapter, initialise_convolutions, register_backbone, renumbered

STEM = 24
WIDTHS = (64, 256, 256)
"""Channels of the stem and of each stage."""
BLOCKS = 3
"""Convolutions in each stage. Behind the first a 2 x 2 maximum halves the resolution; from the third on, each one's
output is added to its input."""


class Residual(nn.Sequential):
    """Layers whose input is added to their output."""

    def forward(self, features: Tensor) -> Tensor:
        return features + super().forward(features)


class FastCNN(nn.Module):
    """Stem, three stages of three convolutions, the maximum over all places and one linear layer.

    Normalised images (B, 3, H, W) to logits (B, classes).
    """

    def __init__(self, classes: int, width: float) -> None:
        super().__init__()
        stem, *channels = (8 * max(1, round(width * base / 8)) for base in (STEM, *WIDTHS))
        # As in torchvision's ResNet: 7 x 7 pixels at a stride, for large images.
        self.stem = block(3, stem, kernel_size=7, stride=4)
        stages, c_in = [], stem
        for c_out in channels:
            second, *others = (block(c_out, c_out) for _ in range(BLOCKS - 1))
            stages.append(nn.Sequential(block(c_in, c_out, pool=2), second, *(Residual(*each) for each in others)))
            c_in = c_out
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveMaxPool2d(1)
        self.classifier = nn.Linear(c_in, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.pool(self.stages(self.stem(images))).flatten(1))


@register_backbone("fast_cnn")
class FastAdapter(Adapter[FastCNN]):
    """:class:`FastCNN`, whose blocks are single convolutions."""

    stem, head, strides, smallest, drops_only_stem = "stem.0", "classifier", (8, 2), 8, True
    # A second fully connected layer costs accuracy here.
    embedding = 0

    def build(self, classes: int, width: float) -> FastCNN:
        return FastCNN(classes, width)

    def use_small_strides(self, network: FastCNN) -> None:
        network.stem = block(3, _channels(network.stem))

    def drop_stem(self, network: FastCNN, channels: int, stride: int) -> None:
        # The first block halves the resolution: where it is dropped, the next one does it in its place.
        first, *others = network.stages
        following, *kept = list(first.children())[self.dropped_blocks :]
        rebuilt = block(channels, _channels(following), pool=stride)
        network.stem, network.stages = nn.Sequential(), nn.Sequential(nn.Sequential(rebuilt, *kept), *others)

    def kept(self, name: str) -> str | None:
        # In the block that is rebuilt there may be a maximum or none, which moves the names of what follows in it.
        anew = ("stem.", f"stages.0.{self.dropped_blocks}.")
        return None if name.startswith(anew) else renumbered(name, "stages.0.", self.dropped_blocks)


def _channels(block: nn.Module) -> int:
    """Channels that leave a block."""
    return next(module.out_channels for module in block.modules() if isinstance(module, nn.Conv2d))


def block(c_in: int, c_out: int, kernel_size: int = 3, stride: int = 1, pool: int = 1) -> nn.Sequential:
    """Convolution, maximum over ``pool`` x ``pool`` places, batch normalisation, GELU."""
    convolution = nn.Conv2d(c_in, c_out, kernel_size, stride, padding=kernel_size // 2, bias=False)
    initialise_convolutions(convolution, "fan_out")
    pooling = [nn.MaxPool2d(pool)] if pool > 1 else []
    return nn.Sequential(convolution, *pooling, nn.BatchNorm2d(c_out), nn.GELU())
