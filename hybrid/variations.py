"""Options that searches tried (docs/results.md); kept so that their numbers can be made again."""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from bridge.sau import SpecialActivationUnit
from hybrid.network import Join, Paths, auxiliary_cnn
from hybrid.preprocess import UNCHANGED, Preprocess, check_preprocess, preprocess_flag
from snn.runtime.errors import check
from snn.runtime.ranges import Range, check_fields

AuxiliaryActivation = Literal["relu6", "steps"]
AuxiliarySource = Literal["image", "retina"]


@dataclass(frozen=True)
class Variations:
    """Options that searches tried. With their defaults a network is the paper's."""

    auxiliary_kernel: Annotated[int, Range(1, 255, unit="pixels")] = 3
    """Side of the kernels of the auxiliary CNN's two layers, in pixels, odd."""
    auxiliary_activation: AuxiliaryActivation = "relu6"
    """Activation of the auxiliary CNN: relu6, or 8 equal steps from 0 to 6, in which small deviations vanish."""
    auxiliary_input: Annotated[Preprocess, preprocess_flag("auxiliary_input")] = UNCHANGED
    """Preprocessing of the images that the auxiliary CNN receives, in the form of --preprocess."""
    auxiliary_source: AuxiliarySource = "image"
    """What the auxiliary CNN receives: the image, or the contrast that the front end's retina makes of it."""
    auxiliary_drop: Annotated[float, Range(0, 1, below=True)] = 0.0
    """Share of training images whose auxiliary features are 0, so that the main CNN learns to do without them."""
    variability: bool = False
    """While training, add to each layer's spike counts deviations drawn from the simulated neurons' (variant safe)."""
    feature_norm: bool = False
    """Normalise the front end's features over each batch where they join those of the auxiliary CNN, which are
    normalised likewise (all variants but baseline; the paper normalises before activations alone)."""

    def __post_init__(self) -> None:
        check_preprocess(self.auxiliary_input, "auxiliary_input")
        check_fields(self)
        check(self.auxiliary_kernel % 2 == 1, f"`auxiliary_kernel` {self.auxiliary_kernel}: expected an odd number")

    def check_variant(self, variant: str) -> None:
        """Raise :class:`UserError` for an option that ``variant`` has no use for."""
        check(
            variant == "safe" or not self.variability,
            f"`variability` is a property of spiking neurons: use it with `variant` safe, not {variant}",
        )
        check(
            variant != "baseline" or self.auxiliary_source == "image",
            "`auxiliary_source` retina: `variant` baseline has no retina and no auxiliary CNN; leave it out",
        )
        check(
            variant != "baseline" or not self.feature_norm,
            "`feature_norm` normalises the features of a front end, which `variant` baseline does not have",
        )

    def auxiliary_cnn(self, in_channels: int, channels: int, stride: int) -> nn.Sequential:
        """:func:`hybrid.network.auxiliary_cnn` with these kernels and this activation."""
        activation = nn.ReLU6 if self.auxiliary_activation == "relu6" else even_steps
        return auxiliary_cnn(in_channels, channels, stride, self.auxiliary_kernel, activation)

    def join(self, channels: int) -> Join:
        """Joins features of which ``channels`` are the front end's."""
        return VariedJoin(nn.BatchNorm2d(channels) if self.feature_norm else nn.Identity(), self.auxiliary_drop)


class VariedJoin(Join):
    """Join that passes the front end's features through ``norm``.

    In training it sets the auxiliary features of a share ``drop`` of the images to 0.
    """

    def __init__(self, norm: nn.Module, drop: float) -> None:
        super().__init__()
        self.norm, self.drop = norm, drop

    def forward(self, features: Tensor, auxiliary: Tensor | None, paths: Paths = "both") -> Tensor:
        features = self.norm(features)
        if auxiliary is not None and self.training and self.drop and paths == "both":
            # The others are not scaled: in evaluation features are as large as here.
            auxiliary = auxiliary * (torch.rand(len(auxiliary), 1, 1, 1, device=auxiliary.device) >= self.drop)
        return super().forward(features, auxiliary, paths)


def even_steps() -> SpecialActivationUnit:
    """Eight equal steps (ours) from 0 to 6, never more than half a step from ReLU6."""
    heights = 0.75 * torch.arange(9)
    return SpecialActivationUnit(heights[1:] - 0.75 / 2, heights)
