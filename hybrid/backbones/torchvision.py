"""Main CNNs from torchvision, and the same with stem and following block dropped (paper, Fig. 2).

An :class:`Adapter` of a few lines tells how a torchvision classifier is taken apart; :data:`BACKBONES` holds them by
name, and another one added to it is used like those that are there (docs/hybrid.md shows how).

Two sets of strides: stock (224x224, as torchvision builds it) and small (32x32: those the field uses for CIFAR, without
early down-sampling). The set follows from the image size.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import nn
from torchvision.models import MobileNetV2, mobilenet_v2, resnet18, resnet101
from torchvision.models.densenet import DenseNet, _DenseBlock, _Transition
from torchvision.models.mobilenetv2 import InvertedResidual

from snn.runtime.errors import check

SMALL_IMAGE = 96
"""Images with a side below this many pixels get the strides for small images."""


EMBEDDING = 128
"""Units between the two fully connected layers of the head for small images (ours; the paper states no number)."""


RESNET_PLANES = 64
"""Of the first stage of every ResNet."""


def uses_small_strides(image_size: int) -> bool:
    """Whether images of this side get the CIFAR strides."""
    return image_size < SMALL_IMAGE


@dataclass(frozen=True)
class Adapter:
    """How a torchvision classifier is taken apart. Paths are names of submodules, as in ``conv1`` or ``features.0``."""

    build: Callable[[int, float], nn.Module]
    """Of (classes, width): the stock network."""
    stem: str
    """Path of the first convolution, which reads the image."""
    head: str
    """Path of the last linear layer."""
    use_small_strides: Callable[[nn.Module], None]
    """Give the stock network, in place, the strides for small images."""
    drop_stem: Callable[[nn.Module, int, int], None]
    """Of (network, depth, stride): in place, drop the stem and the block that follows, and rebuild the next block for
    ``depth`` features and this stride."""
    strides: tuple[int, int]
    """How much smaller than the image the features are behind the first kept block: with stock and small strides."""
    smallest: int = 1
    """Smallest side of an image, in pixels, that the strides for small images leave something of."""
    has_width: bool = True
    """Whether ``width`` may differ from 1."""


# MobileNetV2 (Sandler et al. 2018)


def _build_mobilenet_v2(classes: int, width: float) -> nn.Module:
    return mobilenet_v2(weights=None, num_classes=classes, width_mult=width)


SHALLOW = ((1, 16, 1, 1), (6, 24, 1, 2), (6, 32, 1, 1), (6, 64, 1, 2), (6, 96, 1, 1), (6, 160, 1, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of each stage of :func:`_build_mobilenet_v2_shallow`."""


def _build_mobilenet_v2_shallow(classes: int, width: float) -> nn.Module:
    # For experiments on a CPU: it learns in a tenth of the time. Without dropout, as it is trained for few passes.
    return MobileNetV2(classes, width, inverted_residual_setting=[list(stage) for stage in SHALLOW], dropout=0.0)


def _small_mobilenet_v2_shallow(network: nn.Module) -> None:
    # Only the stem keeps the resolution.
    network.features[0][0].stride = (1, 1)


def _small_mobilenet_v2(network: nn.Module) -> None:
    # The stem and the second stage keep the resolution.
    network.features[0][0].stride = (1, 1)
    _depthwise(network.features[2]).stride = (1, 1)


def _drop_mobilenet_v2(network: nn.Module, depth: int, stride: int) -> None:
    # The rebuilt block keeps its hidden width (unless the features are wider): six times the new depth would double the
    # network's cost.
    first = network.features[2]
    hidden = max(_depthwise(first).out_channels, depth)
    rebuilt = InvertedResidual(depth, first.out_channels, 2, expand_ratio=hidden / depth)
    _depthwise(rebuilt).stride = (stride, stride)
    _initialise(rebuilt, "fan_out")
    network.features = nn.Sequential(rebuilt, *network.features[3:])


def _depthwise(block: InvertedResidual) -> nn.Conv2d:
    return next(m for m in block.modules() if isinstance(m, nn.Conv2d) and m.groups > 1)


# ResNet (He et al. 2016)


def _build_resnet(build: Callable[..., nn.Module], classes: int, width: float) -> nn.Module:
    # Only bottlenecks have a width of their own; BasicBlock refuses another than 64.
    return build(weights=None, num_classes=classes, width_per_group=round(64 * width))


def _small_resnet(network: nn.Module) -> None:
    network.conv1 = nn.Conv2d(network.conv1.in_channels, network.conv1.out_channels, 3, padding=1, bias=False)
    _initialise(network.conv1, "fan_out")
    network.maxpool = nn.Identity()


def _drop_resnet(network: nn.Module, depth: int, stride: int) -> None:
    for name in ("conv1", "bn1", "relu", "maxpool"):
        setattr(network, name, nn.Identity())
    # torchvision's own function makes the block, with the projection that the new depth needs.
    kind, network.inplanes = type(network.layer1[1]), depth
    (rebuilt,) = network._make_layer(kind, RESNET_PLANES, 1, stride)
    _initialise(rebuilt, "fan_out")
    network.layer1 = nn.Sequential(rebuilt, *network.layer1[2:])


# DenseNet (Huang et al. 2017)


def _build_densenet121(classes: int, width: float) -> nn.Module:
    # densenet121() lets its growth rate be; these are its other numbers.
    growth = round(32 * width)
    return DenseNet(growth, (6, 12, 24, 16), num_init_features=2 * growth, num_classes=classes)


def _small_densenet(network: nn.Module) -> None:
    old = network.features.conv0
    network.features.conv0 = nn.Conv2d(old.in_channels, old.out_channels, 3, padding=1, bias=False)
    _initialise(network.features.conv0, "fan_in")
    network.features.pool0 = nn.Identity()


def _drop_densenet(network: nn.Module, depth: int, stride: int) -> None:
    # A dense layer reads the outputs of all layers before it: the whole first stage is rebuilt, one layer shorter.
    old = network.features
    growth, layers = old.denseblock1.denselayer1.conv2.out_channels, len(old.denseblock1) - 1
    wide = old.denseblock1.denselayer1.conv1.out_channels // growth
    stage = [
        ("denseblock1", _DenseBlock(layers, depth, bn_size=wide, growth_rate=growth, drop_rate=0.0)),
        ("transition1", _Transition(depth + layers * growth, old.transition1.conv.out_channels)),
    ]
    for _, module in stage:
        _initialise(module, "fan_in")
    if stride > 1:
        # Dense blocks have no stride; this is the stock stem's pooling.
        stage.insert(0, ("pool0", nn.MaxPool2d(stride + 1, stride, padding=stride // 2)))
    names = [name for name, _ in old.named_children()]
    kept = [(name, old.get_submodule(name)) for name in names[names.index("denseblock2") :]]
    network.features = nn.Sequential(OrderedDict(stage + kept))


def _initialise(module: nn.Module, mode: str) -> None:
    """As torchvision does with this backbone's convolutions."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode=mode, nonlinearity="relu")


_RESNET = {
    "stem": "conv1",
    "head": "fc",
    "use_small_strides": _small_resnet,
    "drop_stem": _drop_resnet,
    "strides": (4, 1),
}


_MOBILENET_V2 = {"stem": "features.0.0", "head": "classifier.1", "drop_stem": _drop_mobilenet_v2}


BACKBONES: dict[str, Adapter] = {
    "mobilenet_v2": Adapter(
        build=_build_mobilenet_v2, use_small_strides=_small_mobilenet_v2, strides=(4, 1), **_MOBILENET_V2
    ),
    # One block in each stage of MobileNetV2.
    "mobilenet_v2_shallow": Adapter(
        build=_build_mobilenet_v2_shallow,
        use_small_strides=_small_mobilenet_v2_shallow,
        strides=(4, 2),
        **_MOBILENET_V2,
    ),
    "resnet101": Adapter(build=partial(_build_resnet, resnet101), **_RESNET),
    "densenet121": Adapter(
        build=_build_densenet121,
        stem="features.conv0",
        head="classifier",
        use_small_strides=_small_densenet,
        drop_stem=_drop_densenet,
        strides=(4, 1),
        smallest=8,
    ),
    "resnet18": Adapter(build=partial(_build_resnet, resnet18), has_width=False, **_RESNET),
}


PAPER_BACKBONES = ("mobilenet_v2", "resnet101", "densenet121")
"""Those of the paper's tables, in their order."""


def check_backbone(name: str, width: float) -> None:
    """Raise :class:`snn.runtime.errors.UserError` for an unknown name or an impossible width."""
    check(name in BACKBONES, f"`backbone` {name}: unknown; choose from {', '.join(sorted(BACKBONES))}")
    check(0 < width <= 10, f"`width` {width}: expected above 0 and up to 10; 1 is the published width")
    check(BACKBONES[name].has_width or width == 1, f"`width` {width}: {name} has but one width; leave it out")


def full_backbone(
    name: str, in_channels: int, classes: int, image_size: int, width: float = 1.0, embedding: int | None = None
) -> nn.Module:
    """The whole classifier: normalised images (B, in_channels, image_size, image_size) to logits (B, classes).

    Args:
        name: of :data:`BACKBONES`.
        in_channels: of the images.
        classes: to tell apart.
        image_size: side in pixels.
        width: multiplier of the backbone's channels.
        embedding: units between two fully connected layers; 0: torchvision's head with one; None: :data:`EMBEDDING`
            for small images, 0 for others.

    Raises:
        UserError: unknown name or width, or an image too small.
    """
    adapter, network = _classifier(name, classes, image_size, width, embedding)
    old = network.get_submodule(adapter.stem)
    if old.in_channels != in_channels:
        new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride, old.padding, bias=False)
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
        network.set_submodule(adapter.stem, new)
    return network


def main_cnn(
    name: str,
    depth: int,
    classes: int,
    image_size: int,
    width: float = 1.0,
    embedding: int | None = None,
    front_stride: int = 1,
) -> nn.Module:
    """The classifier without stem and following block: features (B, depth, H, W) to logits (B, classes).

    Args as :func:`full_backbone`, and:
        depth: of the features.
        front_stride: of what makes the features. The first kept block takes what is left of the strides of all that is
            dropped, so that the blocks behind it work at their usual resolution.
    """
    adapter, network = _classifier(name, classes, image_size, width, embedding)
    stride = adapter.strides[uses_small_strides(image_size)]
    adapter.drop_stem(network, depth, max(1, stride // front_stride))
    return network


def _classifier(
    name: str, classes: int, image_size: int, width: float, embedding: int | None
) -> tuple[Adapter, nn.Module]:
    check_backbone(name, width)
    adapter, small = BACKBONES[name], uses_small_strides(image_size)
    check(
        image_size >= adapter.smallest,
        f"images of {image_size} pixels: {name} needs {adapter.smallest} or more; enlarge them with `image_size`",
    )
    network = adapter.build(classes, width)
    if small:
        adapter.use_small_strides(network)
    units = (EMBEDDING if small else 0) if embedding is None else embedding
    if units:
        features = network.get_submodule(adapter.head).in_features
        head = nn.Sequential(nn.Linear(features, units), nn.ReLU(), nn.Linear(units, classes))
        network.set_submodule(adapter.head, head)
    return adapter, network


def last_linear(network: nn.Module) -> nn.Linear:
    """The layer whose input is the embedding."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]
