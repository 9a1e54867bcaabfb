"""Which network: its description, and the modules built from it."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from torch import nn

from bridge.frontend import FrontEndSpec, SpikingFrontEnd
from bridge.storage import load_frontend
from hybrid.backbones import BACKBONES, check_backbone, full_backbone, main_cnn
from hybrid.network import BaselineNetwork, HybridNetwork, Network, Normalise, TrainableFrontEnd
from hybrid.preprocess import UNCHANGED, Preprocess, check_preprocess, preprocess_flag
from hybrid.variations import Variations
from snn.data import few
from snn.data_source import LENGTHS
from snn.runtime.errors import check, check_choice
from snn.runtime.ranges import Range, check_fields
from snn.runtime.tree import text_without

Variant = Literal["safe", "baseline", "mu", "lambda"]

LATER: dict[str, object] = {"dropped_blocks": 1}
"""Fields that architectures did not always have, with the value that stands for what was done before: files and
identities of such networks are as they were."""
UNITS = Range(0, 2**16)
WIDTH = Range(0.01, 10.0, reason="1 is the published width")


@dataclass(frozen=True)
class Architecture:
    """Which network."""

    backbone: Annotated[str, BACKBONES.flag("backbone")] = "mobilenet_v2"
    """Main CNN: mobilenet_v2, resnet101 and densenet121 are the paper's, fast_cnn is the one that trains on a CPU in an
    hour (with --preset fast), mobilenet_v2_shallow has one block in each stage. Further ones come from --plugin."""
    variant: str = "safe"
    """safe: spiking front end and auxiliary CNN before the main CNN; baseline: the backbone as it is; mu: safe with
    trainable layers in the shape of the front end; lambda (made by hybrid.swap): mu with step functions."""
    width: Annotated[float, WIDTH] = 1.0
    """Multiplier of the backbone's channels."""
    auxiliary_maps: Annotated[int, Range(0, 4096)] = 8
    """Feature maps of the auxiliary CNN (all variants but baseline; ours, the paper says fewer than the spiking module
    has); 0: no auxiliary CNN."""
    embedding: Annotated[int | None, UNITS] = None
    """Units between two fully connected layers at the end; 0: the stock head with one layer; None: 128 for images below
    96 pixels (fast_cnn: 0), else 0."""
    preprocess: Annotated[Preprocess, preprocess_flag()] = UNCHANGED
    """What is done to images first, in training and in evaluation. average:N takes the mean of N x N pixels, median:N
    their median, trimmed:N,K their mean without the K lowest and the K highest. quantise rounds to the levels that the
    encoder can represent, and spikes does so at random while training; both take F_MIN,F_MAX,T (Hz, Hz, ms). Join
    several by +."""
    dropped_blocks: Annotated[int, Range(0, 1)] = 1
    """Blocks that are dropped after the backbone's stem (all variants but baseline): 1, as in the paper; or 0, so that
    the main CNN is one block deeper."""
    variations: Variations = field(default_factory=Variations)
    """What the search tried and rejected."""

    def __post_init__(self) -> None:
        check_preprocess(self.preprocess, "preprocess")
        check_fields(self)
        check_backbone(self.backbone, self.width)
        check_choice("variant", self.variant, get_args(Variant))
        BACKBONES[self.backbone].dropping(self.dropped_blocks)
        check(
            self.variant != "baseline" or self.dropped_blocks == 1,
            f"`dropped_blocks` {self.dropped_blocks}: `variant` baseline is the whole backbone; leave it out",
        )
        self.variations.check_variant(self.variant)
        check(
            self.auxiliary_maps > 0 or self.variations.auxiliary_source == "image",
            "`auxiliary_source` retina: `auxiliary_maps` is 0, so there is no auxiliary CNN; leave one of them out",
        )


@dataclass(frozen=True)
class ModelSpec:
    """Everything that determines the modules of a network and their shapes."""

    architecture: Architecture
    input_shape: Annotated[tuple[int, int, int], LENGTHS]
    """(C, H, W) of the images."""
    classes: tuple[str, ...]
    """Names of the classes, in the order of the logits."""
    frontend: FrontEndSpec | None
    """The spiking front end (safe), or the one whose shape or steps are taken (mu, lambda); None for a baseline."""

    @property
    def identity(self) -> str:
        """Text that differs between networks, and that fields of a later version at their defaults leave as it was."""
        return text_without(self, LATER)

    def __post_init__(self) -> None:
        check_fields(self)
        names = self.classes
        check(
            1 <= len(names) == len(set(names)),
            f"`classes` {few(names) or 'none'}: expected names of one class or more, all different",
        )
        variant = self.architecture.variant
        if variant == "baseline":
            check(self.frontend is None, "`variant` baseline has no place for `frontend`; leave one of them out")
            return
        check(
            self.frontend is not None,
            f"`variant` {variant} needs `frontend` FILE, made by python -m bridge.convert; the conventional network is "
            "`variant` baseline",
        )
        has_retina = self.frontend is not None and self.frontend.retina_size > 0
        check(
            self.architecture.variations.auxiliary_source == "image" or has_retina,
            "`auxiliary_source` retina needs a `frontend` that has a retina, such as pretrained:cifar10-retina",
        )
        shape = self.frontend and self.frontend.input_shape
        check(
            self.input_shape == shape,
            f"`frontend` is for images of shape {shape}, these have {self.input_shape} (channels, height, width); "
            "convert one learned on this data, or set `image_size`",
        )
        kernel, side = self.architecture.variations.auxiliary_kernel, min(self.input_shape[1:])
        check(
            self.architecture.auxiliary_maps == 0 or kernel < 2 * side,
            f"`auxiliary_kernel` {kernel}: on images of {side} pixels its outer weights would never see one; lower it",
        )


def build_model(spec: ModelSpec, frontend: SpikingFrontEnd | None = None) -> Network:
    """The network that ``spec`` describes.

    Weights are drawn from torch's global generator. The converted layers (safe) and the retina (safe, mu, lambda) are
    those of ``frontend``; without it they have the right shapes, and their values are still to be loaded.
    """
    a, variations = spec.architecture, spec.architecture.variations
    channels, height, _ = spec.input_shape
    normalise, preprocess = Normalise(channels), a.preprocess.build()
    network: Network
    if spec.frontend is None:
        main = full_backbone(a.backbone, channels, len(spec.classes), height, a.width, a.embedding)
        network = BaselineNetwork(main, normalise, preprocess)
    else:
        front: nn.Module
        if a.variant == "safe":
            front = frontend or SpikingFrontEnd.empty(spec.frontend)
            front.variability = variations.variability
        else:
            retina = frontend.retina if frontend else None
            front = TrainableFrontEnd(spec.frontend, stepped=a.variant == "lambda", retina=retina)
        stride, front_channels = spec.frontend.stride, spec.frontend.channels[-1]
        behind_retina = variations.auxiliary_source == "retina"
        seen = spec.frontend.channels_in if behind_retina else channels
        auxiliary = variations.auxiliary_cnn(seen, a.auxiliary_maps, stride) if a.auxiliary_maps else None
        features = front_channels + a.auxiliary_maps
        main = main_cnn(a.backbone, features, len(spec.classes), height, a.width, a.embedding, stride, a.dropped_blocks)
        network = HybridNetwork(
            front,
            auxiliary,
            variations.join(front_channels),
            main,
            normalise=normalise,
            preprocess=preprocess,
            auxiliary_input=variations.auxiliary_input.build(),
            auxiliary_behind_retina=behind_retina,
        )
    network.spec = spec
    return network


def safe_dnn(
    frontend: SpikingFrontEnd | str | Path,
    backbone: str = "mobilenet_v2",
    classes: int | Sequence[str] = 10,
    **architecture: Any,
) -> Network:
    """A SAFE-DNN: spiking features beside a small auxiliary CNN, in front of a backbone.

    Args:
        frontend: converted spiking layers, which are copied, or a file that holds them (also "pretrained:cifar10-fd").
        backbone: name of the main CNN; ``hybrid.backbones.BACKBONES`` lists them.
        classes: names of the classes, or their number.
        architecture: further fields of :class:`Architecture`, such as ``width=0.25``.

    Returns:
        A module that takes images in [0, 1], (B, C, H, W), and returns logits (B, classes). Its weights are drawn from
        torch's global generator; :func:`hybrid.train` trains it.

    Raises:
        UserError: unknown names, impossible values, or a file that cannot be read.
    """
    converted, _ = open_frontend(frontend)
    description = Architecture(backbone=backbone, **architecture)
    spec = ModelSpec(description, converted.spec.input_shape, class_names(classes), converted.spec)
    return build_model(spec, copy.deepcopy(converted))


def baseline(
    input_shape: tuple[int, int, int],
    backbone: str = "mobilenet_v2",
    classes: int | Sequence[str] = 10,
    **architecture: Any,
) -> Network:
    """The conventional network that a SAFE-DNN is compared with: a backbone behind normalisation.

    Args:
        input_shape: (C, H, W) of the images.
        backbone, classes, architecture: as in :func:`safe_dnn`, which also says what is returned and raised.
    """
    description = Architecture(backbone=backbone, variant="baseline", **architecture)
    return build_model(ModelSpec(description, input_shape, class_names(classes), None))


def class_names(classes: int | Sequence[str]) -> tuple[str, ...]:
    """Names of the classes; "0", "1" and so on where only their number is known."""
    return tuple(map(str, range(classes))) if isinstance(classes, int) else tuple(classes)


def open_frontend(frontend: SpikingFrontEnd | str | Path) -> tuple[SpikingFrontEnd, str]:
    """The front end itself, or that of a file or of "pretrained:NAME", and the digest of the file ("": none)."""
    if isinstance(frontend, SpikingFrontEnd):
        return frontend, ""
    converted, _, digest = load_frontend(frontend)
    return converted, digest
