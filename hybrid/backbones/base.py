"""Classifiers from torchvision, whole, or with the stem and the block after it removed (paper, Fig. 2), or only it.

An :class:`Adapter` says how a classifier is taken apart. There are two sets of strides: torchvision's own, and those
that the field uses for CIFAR, which reduce the resolution later. The size of the images decides
(:mod:`hybrid.image_size`).
"""

import copy
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, Literal, Self, TypeVar

from torch import nn

from hybrid.image_size import has_small_strides
from snn.runtime.errors import check
from snn.runtime.registry import Registry

Network = TypeVar("Network", bound=nn.Module)

EMBEDDING = 128
"""Units between the two fully connected layers of the head for small images (ours; the paper states no number)."""

PAPER_BACKBONES = ("mobilenet_v2", "resnet101", "densenet121")
"""Backbones of the paper's tables, in their order."""


class Adapter(ABC, Generic[Network]):
    """How a classifier is built and taken apart. ``stem`` and ``head`` are paths of submodules, as "features.0.0"."""

    stem: str
    """Path of the first convolution, which reads the image."""
    head: str
    """Path of the last linear layer."""
    strides: tuple[int, int]
    """Height of the image over that of the features behind the second block after the stem, with stock and with small
    strides."""
    drops_only_stem: bool = False
    """Whether :meth:`drop_stem` can keep the block after the stem (:attr:`dropped_blocks` 0)."""
    dropped_blocks: int = 1
    """Blocks that :meth:`drop_stem` removes after the stem: 1, or 0 in an adapter that :meth:`dropping` returned."""
    smallest: int = 1
    """Smallest height of an image, in pixels, that the small strides can work with."""
    embedding: int = EMBEDDING
    """Units between two fully connected layers at the end, for small images, unless the user chooses."""
    has_width: bool = True
    """Whether ``width`` may differ from 1."""
    imagenet: str = ""
    """Where the file of weights that were trained on ImageNet comes from, such as
    ``torchvision.models.ResNet18_Weights.IMAGENET1K_V1.url``; its name ends with the first digits of its SHA-256. "":
    there are none."""

    @abstractmethod
    def build(self, classes: int, width: float) -> Network:
        """Return the stock classifier with its channels multiplied by ``width``."""

    @abstractmethod
    def use_small_strides(self, network: Network) -> None:
        """Give the stock network the strides for small images, in place."""

    @abstractmethod
    def drop_stem(self, network: Network, channels: int, stride: int) -> None:
        """Remove the stem and the block after it, in place; rebuild the next block for so many input channels.

        ``stride`` is that of the rebuilt block. With :attr:`dropped_blocks` 0 only the stem is removed, the block after
        it is rebuilt, and ``stride`` is that of both blocks together.
        """

    def dropping(self, blocks: int) -> Self:
        """A copy of this adapter that drops so many blocks after the stem: 1, or 0.

        Raises :class:`UserError` for 0 where it cannot (:attr:`drops_only_stem`).
        """
        check(
            blocks == 1 or self.drops_only_stem,
            f"`dropped_blocks` {blocks}: the adapter of this backbone always drops one; leave it out, or teach the "
            "adapter (`drops_only_stem`)",
        )
        other = copy.copy(self)
        other.dropped_blocks = blocks
        return other

    def kept(self, name: str) -> str | None:
        """Name that a tensor of the stock network's state has once :meth:`drop_stem` was called; None: it is dropped.

        Pretrained weights find their place by it; without it, a network that was taken apart starts from none of a
        whole one. Of a rebuilt block only what keeps its shape is taken.
        """
        return name

    def current(self, name: str) -> str:
        """Name of a tensor in a file of weights as the stock network calls it now; older files may have another."""
        return name


def renumbered(name: str, prefix: str, dropped: int) -> str | None:
    """``name`` with the number behind ``prefix`` lowered by ``dropped``, for :meth:`Adapter.kept`.

    None if nothing is left of the number; a name that does not start so stays as it is.
    """
    match = re.fullmatch(rf"{re.escape(prefix)}(\d{{1,4}})(\..*)?", name, re.ASCII | re.DOTALL)
    if not match:
        return name
    number = int(match[1]) - dropped
    return f"{prefix}{number}{match[2] or ''}" if number >= 0 else None


BACKBONES: Registry[Adapter[Any]] = Registry("backbone", "hybrid.backbones")


def register_backbone(name: str) -> Callable[[type[Adapter[Any]]], type[Adapter[Any]]]:
    """Class decorator that registers an :class:`Adapter` under ``name``, which ``--backbone`` then takes."""

    def register(adapter: type[Adapter[Any]]) -> type[Adapter[Any]]:
        BACKBONES.register(name)(adapter())
        return adapter

    return register


def check_backbone(name: str, width: float) -> None:
    """Raise :class:`snn.runtime.errors.UserError` for an unknown name or an impossible width."""
    adapter = BACKBONES[name]
    check(0 < width <= 10, f"`width` {width}: expected above 0 and up to 10; 1 is the published width")
    check(adapter.has_width or width == 1, f"`width` {width}: {name} has only one width; leave it out")


def full_backbone(
    name: str, in_channels: int, classes: int, image_size: int, width: float = 1.0, embedding: int | None = None
) -> nn.Module:
    """The whole classifier: normalised images (B, in_channels, image_size, W) to logits (B, classes).

    Args:
        name: of :data:`BACKBONES`.
        in_channels, classes: channels of the images, number of classes.
        image_size: height of the images in pixels.
        width: multiplier of the backbone's channels.
        embedding: units between two fully connected layers; 0: the stock head with one layer; None: the backbone's
            own number (:attr:`Adapter.embedding`) for small images, 0 for others.

    Raises:
        UserError: unknown name or width, or an image too small.
    """
    adapter, network = _classifier(name, classes, image_size, width, embedding)
    stem = network.get_submodule(adapter.stem)
    assert isinstance(stem, nn.Conv2d)
    if stem.in_channels != in_channels:
        sizes = (stem.kernel_size, stem.stride, stem.padding)
        replacement = nn.Conv2d(in_channels, stem.out_channels, *sizes, bias=False)  # type: ignore[arg-type]
        initialise_convolutions(replacement, "fan_out")
        network.set_submodule(adapter.stem, replacement)
    return network


def main_cnn(
    name: str,
    in_channels: int,
    classes: int,
    image_size: int,
    width: float = 1.0,
    embedding: int | None = None,
    front_stride: int = 1,
    dropped_blocks: int = 1,
) -> nn.Module:
    """The classifier without stem and following block: features (B, in_channels, H, W) to logits (B, classes).

    With ``dropped_blocks`` 0 only the stem is missing. Other arguments are those of :func:`full_backbone`. The first
    kept blocks take what ``front_stride``, the stride of what makes the features, leaves of the removed strides, so
    that from the stock network's third block on all work at their usual resolution.
    """
    adapter, network = _classifier(name, classes, image_size, width, embedding)
    adapter = adapter.dropping(dropped_blocks)
    stride = adapter.strides[has_small_strides(image_size)]
    adapter.drop_stem(network, in_channels, max(1, stride // front_stride))
    return network


def _classifier(
    name: str, classes: int, image_size: int, width: float, embedding: int | None
) -> tuple[Adapter[Any], nn.Module]:
    check_backbone(name, width)
    adapter, small = BACKBONES[name], has_small_strides(image_size)
    check(
        image_size >= adapter.smallest,
        f"images of {image_size} pixels: {name} needs {adapter.smallest} or more; enlarge them with `image_size`",
    )
    network = adapter.build(classes, width)
    if small:
        adapter.use_small_strides(network)
    units = (adapter.embedding if small else 0) if embedding is None else embedding
    if units:
        features = last_linear(network.get_submodule(adapter.head)).in_features
        head = nn.Sequential(nn.Linear(features, units), nn.ReLU(), nn.Linear(units, classes))
        network.set_submodule(adapter.head, head)
    return adapter, network


def last_linear(network: nn.Module) -> nn.Linear:
    """The layer whose input is the embedding."""
    return [module for module in network.modules() if isinstance(module, nn.Linear)][-1]


def initialise_convolutions(module: nn.Module, mode: Literal["fan_in", "fan_out"]) -> None:
    """Draw the weights of all convolutions in ``module`` as torchvision does (He et al. 2015)."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode=mode, nonlinearity="relu")
