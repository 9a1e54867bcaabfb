"""Every hyperparameter of supervised training, and named sets of them."""

from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor

from hybrid.augment import Augmentation
from hybrid.conditions import Noise, condition_flag
from hybrid.conditions.drawn import CLEAN
from hybrid.image_size import IMAGENET_RECIPE
from snn.data import Images, few, proportional_subset
from snn.runtime.errors import check
from snn.runtime.processes import first_process
from snn.runtime.progress import warn
from snn.runtime.ranges import Range, check_fields
from snn.runtime.tree import Tree, from_tree, text_without, tree_without

RecipeName = Literal["auto", "digits", "cifar10", "imagenet", "fast"]
Optimiser = Literal["sgd", "muon"]
Border = Literal["black", "reflect"]
Flips = Literal["random", "alternating"]
FirstLayer = Literal["random", "whitening"]
ClassWeights = Literal["none", "balanced"]
Precision = Literal["auto", "float32", "bfloat16"]

LATER: dict[str, object] = {"class_weights": "none", "precision": "auto"}
"""Fields that recipes did not always have, with the value that stands for what was done before: files and identities of
such recipes are as they were."""
PEAK_RATE = Range(0, 1e6)
PART = Range(0, 1, below=True)


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters, the same for all variants (ours; the paper states only SGD)."""

    epochs: Annotated[int, Range(1, 10**5)] = 30
    """Passes over the training images."""
    batch_size: Annotated[int, Range(2, 10**6, reason="batch normalisation needs 2")] = 64
    """Images per optimiser step, over all processes."""
    learning_rate: Annotated[float, PEAK_RATE] = 0.05
    """Peak rate of SGD with Nesterov momentum 0.9; it rises, then falls along a cosine."""
    warmup: Annotated[float, PART] = 0.2
    """Share of the steps over which the rate rises."""
    optimiser: Optimiser = "sgd"
    """sgd, or muon: kernels of convolutions that do not read images step in orthogonal directions."""
    muon_rate: Annotated[float, PEAK_RATE] = 0.24
    """Peak rate of these kernels (airbench)."""
    weight_decay: Annotated[float, Range(0, 1e3)] = 5e-4
    """L2 penalty on convolution and linear weights; normalisation and biases have none."""
    label_smoothing: Annotated[float, PART] = 0.1
    """Share of the target that is spread over all classes."""
    augmentation: Augmentation = "auto"
    """none, shift (at random, by up to an eighth of the side), or shift-flip (half of the images are mirrored, too);
    auto: shift for digits, else shift-flip."""
    border: Border = "black"
    """What a shift uncovers: black, or the reflected image."""
    flips: Flips = "random"
    """Which images shift-flip mirrors: a half drawn anew in each pass, or that half and the other by turns."""
    cutout: Annotated[int, Range(0, 4096, unit="pixels")] = 0
    """Side of a square of grey that covers a random place of each image, in pixels; 0: none."""
    small_share: Annotated[float, PART] = 0.0
    """Share of the passes, from the first, on images of three quarters of their size."""
    average: Annotated[float, PART] = 0.0
    """Weight of the past in a running average of all weights, per step, which evaluation uses; 0: no average."""
    first_layer: FirstLayer = "random"
    """How the trainable convolution that reads images starts: at random, or as filters that whiten their patches."""
    train_noise: Annotated[Noise, condition_flag(Noise, "train_noise")] = CLEAN
    """Noise on every training image (paper: awgn:30, wald:3,0.3, poisson:255, salt-pepper:0.05); clean: none."""
    holdout: Annotated[float, Range(1e-6, 1, below=True)] = 0.1
    """Share of the training images, in proportion to the classes, that is kept for the validation curve."""
    class_weights: ClassWeights = "none"
    """Weight of each image in the loss: none, or balanced, inverse to the frequency of its class, 1 on average."""
    precision: Precision = "auto"
    """In what convolutions and matrix products compute: float32, or bfloat16 (all but the frozen layers; weights stay
    float32); auto: bfloat16 on CUDA, float32 on a CPU. A CPU with instructions for bfloat16 trains 1.8 times as
    fast in it."""

    def __post_init__(self) -> None:
        check(
            isinstance(self.train_noise, Noise),
            f"`train_noise` {self.train_noise!r}: expected noise that can be drawn, such as Noise.parse('awgn:30')",
        )
        check_fields(self)
        check(
            self.learning_rate * self.weight_decay <= 1,
            f"`weight_decay` {self.weight_decay} at `learning_rate` {self.learning_rate}: each step would take more "
            "than the whole weight away; lower one of them",
        )

    def as_tree(self) -> Tree:
        """Fields as ``hybrid.h5`` stores them: the noise as text, and :data:`LATER` ones only where they say more."""
        return tree_without(asdict(self) | {"train_noise": str(self.train_noise)}, LATER)

    def dtype(self, device: torch.device) -> torch.dtype:
        """In what training computes on this device, torch.float32 or torch.bfloat16."""
        low = self.precision == "bfloat16" or (self.precision == "auto" and device.type == "cuda")
        return torch.bfloat16 if low else torch.float32

    @property
    def identity(self) -> str:
        """Text that differs between recipes, and that fields of a later version at their defaults leave as it was."""
        return text_without(self, LATER)

    @classmethod
    def from_tree(cls, tree: Tree) -> "Recipe":
        """What :meth:`as_tree` stored; fields that the file does not have get their defaults."""
        noise = {"train_noise": Noise.parse(tree["train_noise"], "train_noise")} if "train_noise" in tree else {}
        return from_tree(cls, tree, **noise)

    def held_out(self, labels: Tensor, seed: int) -> np.ndarray:
        """Indices of the training images that are kept for the validation curve, given the labels (N,) of all.

        They are drawn in proportion to the classes; of each class at least one image stays in training.
        """
        return proportional_subset(labels.numpy(), max(1, round(self.holdout * len(labels))), seed)


RECIPES: dict[str, Recipe] = {
    # Some hundreds of small images: small batches, so that a pass has many steps.
    "digits": Recipe(),
    # 50,000 images of 32 pixels. Large batches keep a GPU busy, and the rate grows with them (0.1 for 128 images, as
    # usual for CIFAR). Few images are held out.
    "cifar10": Recipe(epochs=100, batch_size=512, learning_rate=0.4, holdout=0.02),
    # 50,000 images of 32 pixels in an hour on one core: for fast_cnn (benchmarks/recipe.py measures its parts).
    "fast": Recipe(
        epochs=18,
        batch_size=1024,
        learning_rate=0.4,
        optimiser="muon",
        muon_rate=0.1,
        label_smoothing=0.2,
        border="reflect",
        flips="alternating",
        small_share=0.5,
        holdout=0.02,
    ),
    # Tens of thousands of images of 64 to 224 pixels.
    "imagenet": Recipe(epochs=90, batch_size=256, learning_rate=0.2, weight_decay=1e-4, holdout=0.02),
}


def class_weights(labels: Tensor) -> Tensor:
    """The weight of each class in a balanced loss, float32 (classes,), of the labels (N,) of the training images.

    It is inverse to the number of the class's images. Over all images its mean is 1, so that the loss keeps its scale.
    """
    counts = torch.bincount(labels)
    return (len(labels) / (counts.count_nonzero() * counts.clamp(min=1))).float()


def warn_of_classes(data: Images, held_out: np.ndarray) -> None:
    """Warn, in the first process, of classes without an image, and without one of those ``held_out`` (indices)."""

    def absent(labels: Tensor) -> list[str]:
        present = set(labels.tolist())
        return [name for number, name in enumerate(data.classes) if number not in present]

    missing = absent(data.labels)
    unmeasured = [name for name in absent(data.labels[held_out]) if name not in missing]
    if missing and first_process():
        warn(f"there is no training image of class {few(missing)}: add some, or take more with `limit_train`")
    if unmeasured and first_process():
        warn(
            f"no image of class {few(unmeasured)} is held out: results on held-out images say nothing about that; "
            "raise `holdout`, or add images"
        )


def choose_recipe(name: RecipeName, data: str, image_size: int) -> tuple[str, str]:
    """Name of the recipe in :data:`RECIPES`, and the reason for it in words.

    ``data`` is :attr:`snn.data_source.DataSource.data`, ``image_size`` the height of the images in pixels.
    """
    if name != "auto":
        return name, "as chosen"
    if data == "digits":
        return data, "by the data set"
    return "cifar10" if image_size < IMAGENET_RECIPE else "imagenet", f"by the images' {image_size} pixels"
