"""Spiking features inside a modern deep network: building, training and evaluation.

``safe_dnn`` and ``baseline`` build networks, ``train`` trains them, ``load`` and ``save`` read and write ``hybrid.h5``,
and ``evaluate`` measures trained networks under noise::

    model = hybrid.train(images, hybrid.Architecture(width=0.25), hybrid.Recipe(epochs=2), frontend="frontend.h5")
    logits = model(images.images[:4] / 255)
"""

# ruff: noqa: F401 - imports for type checkers, of the names published below
from typing import TYPE_CHECKING

from snn.runtime.public import publish

if TYPE_CHECKING:
    from hybrid.architecture import Architecture, baseline, safe_dnn
    from hybrid.backbones import Adapter, register_backbone
    from hybrid.evaluation import evaluate
    from hybrid.recipe import Recipe
    from hybrid.storage import TrainedModel, load, save
    from hybrid.training import Checkpointing, Hardware, train

__all__ = publish(
    __name__,
    {
        "Adapter": "hybrid.backbones",
        "Architecture": "hybrid.architecture",
        "Checkpointing": "hybrid.training",
        "Hardware": "hybrid.training",
        "Recipe": "hybrid.recipe",
        "TrainedModel": "hybrid.storage",
        "baseline": "hybrid.architecture",
        "evaluate": "hybrid.evaluation",
        "load": "hybrid.storage",
        "register_backbone": "hybrid.backbones",
        "safe_dnn": "hybrid.architecture",
        "save": "hybrid.storage",
        "train": "hybrid.training",
    },
)
