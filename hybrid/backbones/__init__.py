"""Main CNNs by name; :func:`register_backbone` adds one, also from a user's own file (``--plugin``)."""

from hybrid.backbones.base import (
    BACKBONES,
    PAPER_BACKBONES,
    Adapter,
    check_backbone,
    full_backbone,
    initialise_convolutions,
    last_linear,
    main_cnn,
    register_backbone,
)

__all__ = [
    "BACKBONES",
    "PAPER_BACKBONES",
    "Adapter",
    "check_backbone",
    "full_backbone",
    "initialise_convolutions",
    "last_linear",
    "main_cnn",
    "register_backbone",
]
