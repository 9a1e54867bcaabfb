"""Spiking convolution layers that learn features without labels, by stochastic STDP on norse LIF neurons.

    import snn

    images = snn.load_images("digits", "train", limit=300)
    network = snn.learn(images, snn.Learning(maps=(8,), min_updates=20))
    snn.save(network, "snn.h5")
    kernels = snn.load("snn.h5").layers[0].layer.conductance  # (8, 1, 3, 3)

Public names are imported when they are first used. ``python -m snn.learn`` is the command.
"""

from typing import TYPE_CHECKING

from snn.runtime.public import publish

if TYPE_CHECKING:
    from snn.controls import control as control
    from snn.data import Images as Images
    from snn.data import load_images as load_images
    from snn.data_source import DataSource as DataSource
    from snn.encoding import encode as encode
    from snn.engines.base import choose_engine as choose_engine
    from snn.layer import SpikingConv2d as SpikingConv2d
    from snn.learner import learn as learn
    from snn.learning import PRESETS as PRESETS
    from snn.learning import Homeostasis as Homeostasis
    from snn.learning import Learning as Learning
    from snn.network import SpikingNetwork as SpikingNetwork
    from snn.parameters import Encoding as Encoding
    from snn.parameters import LayerParameters as LayerParameters
    from snn.parameters import LIFParameters as LIFParameters
    from snn.parameters import STDPParameters as STDPParameters
    from snn.registries import register_encoder as register_encoder
    from snn.registries import register_engine as register_engine
    from snn.registries import register_rule as register_rule
    from snn.runtime.errors import UserError as UserError
    from snn.storage import load as load
    from snn.storage import save as save

__all__ = publish(
    __name__,
    {
        "control": "snn.controls",
        "Images": "snn.data",
        "load_images": "snn.data",
        "DataSource": "snn.data_source",
        "encode": "snn.encoding",
        "choose_engine": "snn.engines.base",
        "SpikingConv2d": "snn.layer",
        "learn": "snn.learner",
        "PRESETS": "snn.learning",
        "Homeostasis": "snn.learning",
        "Learning": "snn.learning",
        "SpikingNetwork": "snn.network",
        "Encoding": "snn.parameters",
        "LayerParameters": "snn.parameters",
        "LIFParameters": "snn.parameters",
        "STDPParameters": "snn.parameters",
        "register_encoder": "snn.registries",
        "register_engine": "snn.registries",
        "register_rule": "snn.registries",
        "UserError": "snn.runtime.errors",
        "load": "snn.storage",
        "save": "snn.storage",
    },
)
