"""Image sizes from which a choice differs. The size of an image is its height in pixels."""

from typing import Literal

STOCK_STRIDES = 96
"""From here on backbones keep torchvision's strides, and layers learn with preset imagenet; smaller images get the
strides that the field uses for CIFAR, and preset cifar10."""

IMAGENET_RECIPE = 64
"""From here on networks train with recipe imagenet, smaller images with recipe cifar10."""


def has_small_strides(size: int) -> bool:
    """Whether images of this size get the strides for CIFAR."""
    return size < STOCK_STRIDES


def learning_preset(size: int) -> Literal["cifar10", "imagenet"]:
    """Preset of snn.learn for images of this size."""
    return "cifar10" if has_small_strides(size) else "imagenet"


def recipe_name(size: int) -> Literal["cifar10", "imagenet"]:
    """Recipe of hybrid.train for images of this size."""
    return "cifar10" if size < IMAGENET_RECIPE else "imagenet"
