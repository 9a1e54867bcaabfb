"""Which network: everything that determines its shape."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from bridge.frontend import FrontEndSpec
from hybrid.backbones.torchvision import check_backbone
from hybrid.preprocess import UNCHANGED, Preprocess, preprocess_flag
from snn.runtime.errors import check

Variant = Literal["safe", "baseline", "mu", "lambda"]


Paths = Literal["both", "spiking", "auxiliary"]


AuxiliaryActivation = Literal["relu6", "steps"]


@dataclass(frozen=True)
class Architecture:
    """Which network."""

    backbone: str = "mobilenet_v2"
    """Main CNN from torchvision: mobilenet_v2, resnet101, densenet121 (paper), resnet18, or mobilenet_v2_shallow, which
    has one block in each stage."""
    variant: str = "safe"
    """safe: spiking front end and auxiliary CNN before the main CNN; baseline: the backbone as it is; mu: safe with
    trainable layers in the shape of the front end; lambda (made by hybrid.swap): mu with step functions."""
    width: float = 1.0
    """Multiplier of the backbone's channels."""
    auxiliary_maps: int = 8
    """Feature maps of the auxiliary CNN (all but baseline; ours, the paper says smaller than the spiking module); 0:
    none."""
    auxiliary_kernel: int = 3
    """Side of its two layers' kernels, in pixels, odd."""
    auxiliary_activation: AuxiliaryActivation = "relu6"
    """relu6, or steps: 8 equal steps from 0 to 6, as small deviations vanish in."""
    auxiliary_input: Annotated[Preprocess, preprocess_flag("auxiliary_input")] = UNCHANGED
    """What is done to the images of the auxiliary CNN alone, as for --preprocess, which is for both paths."""
    auxiliary_drop: float = 0.0
    """Share of training images whose auxiliary features are 0, so that the main CNN learns to do without them."""
    variability: bool = False
    """While training, add to each layer's spike counts deviations drawn from the simulated neurons' (safe)."""
    feature_norm: bool = False
    """Normalise the front end's features over batches where they join the auxiliary CNN's, as those are (all but
    baseline; the paper normalises before activations alone)."""
    embedding: int | None = None
    """Units between two fully connected layers at the end; 0: torchvision's head with one layer; None: 128 for images
    below 96 pixels, else 0."""
    preprocess: Annotated[Preprocess, preprocess_flag()] = UNCHANGED
    """What is done to images first, in training and in evaluation. average:N takes the mean of N x N pixels. quantise
    rounds to the levels that the encoder can represent, and spikes does so at random while training; both take
    F_MIN,F_MAX,T (Hz, Hz, ms). Join several by +."""

    def __post_init__(self) -> None:
        check_backbone(self.backbone, self.width)
        check(
            self.variant in get_args(Variant),
            f"`variant` {self.variant}: unknown; choose from {', '.join(get_args(Variant))}",
        )
        check(self.auxiliary_maps >= 0, f"`auxiliary_maps` {self.auxiliary_maps}: must be 0 or more")
        check(
            self.auxiliary_kernel >= 1 and self.auxiliary_kernel % 2 == 1,
            f"`auxiliary_kernel` {self.auxiliary_kernel}: expected an odd number",
        )
        check(
            self.auxiliary_activation in get_args(AuxiliaryActivation),
            f"`auxiliary_activation` {self.auxiliary_activation}: unknown; choose relu6 or steps",
        )
        check(0 <= self.auxiliary_drop < 1, f"`auxiliary_drop` {self.auxiliary_drop}: expected 0 to below 1")
        check(
            self.variant == "safe" or not self.variability,
            f"`variability` is of spiking neurons: it goes with `variant` safe, not {self.variant}",
        )
        check(
            self.variant != "baseline" or not self.feature_norm,
            "`feature_norm` is of a front end's features, which `variant` baseline does not have",
        )
        check(self.embedding is None or self.embedding >= 0, f"`embedding` {self.embedding}: must be 0 or more")
        for name in ("preprocess", "auxiliary_input"):
            value = getattr(self, name)
            check(isinstance(value, Preprocess), f"`{name}` {value!r}: expected an object, such as Preprocess('none')")


@dataclass(frozen=True)
class ModelSpec:
    """Everything that determines a network's shape."""

    architecture: Architecture
    input_shape: tuple[int, int, int]
    """(C, H, W)."""
    classes: tuple[str, ...]
    frontend: FrontEndSpec | None
    """Of the spiking front end (safe), or of the one whose shape or steps are taken (mu, lambda)."""

    def __post_init__(self) -> None:
        variant = self.architecture.variant
        if variant == "baseline":
            check(self.frontend is None, "`variant` baseline has no place for `frontend`; leave one of them out")
            return
        check(
            self.frontend is not None,
            f"`variant` {variant} needs `frontend` FILE, made by python -m bridge.convert; the conventional network is "
            "`variant` baseline",
        )
        check(
            self.input_shape == self.frontend.input_shape,
            f"`frontend` is for images of shape {self.frontend.input_shape}, these have {self.input_shape} (channels, "
            "height, width); convert one learned on this data, or set `image_size`",
        )
