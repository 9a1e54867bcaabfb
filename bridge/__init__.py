"""From learned spiking layers to a frozen convolutional front end that answers in one step.

    conversion = bridge.convert("snn.h5", images)  # uint8 training images (N, C, H, W)
    bridge.save_frontend("frontend.h5", conversion)
    frontend = bridge.load("frontend.h5")  # or "pretrained:cifar10-fd"
    features = frontend(images / 255)  # (N, C_out, H', W'), in [0, 1]

``SpikingFrontEnd`` and its ``SpecialActivationUnit`` are PyTorch modules. ``FrontEndSpec``, with a ``LayerSpec`` for
each layer, is the shape of a front end. ``measure_fidelity`` compares it with the spiking simulation.
"""

from typing import TYPE_CHECKING

from snn.runtime.public import publish

if TYPE_CHECKING:
    from bridge.conversion import Conversion, convert  # noqa: F401
    from bridge.fidelity import Fidelity, measure_fidelity  # noqa: F401
    from bridge.frontend import FrontEndSpec, LayerSpec, SpikingFrontEnd  # noqa: F401
    from bridge.sau import SpecialActivationUnit  # noqa: F401
    from bridge.storage import load, load_frontend, save_frontend  # noqa: F401

_PUBLIC = {
    "bridge.conversion": ("Conversion", "convert"),
    "bridge.fidelity": ("Fidelity", "measure_fidelity"),
    "bridge.frontend": ("FrontEndSpec", "LayerSpec", "SpikingFrontEnd"),
    "bridge.sau": ("SpecialActivationUnit",),
    "bridge.storage": ("load", "load_frontend", "save_frontend"),
}
__all__ = publish(__name__, {name: module for module, names in _PUBLIC.items() for name in names})
