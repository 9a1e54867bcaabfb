"""From learned spiking layers to a frozen convolutional front end that answers in one step.

    import bridge

    conversion = bridge.convert("snn.h5", images)  # uint8 training images (N, C, H, W)
    bridge.save(conversion, "frontend.h5")
    frontend = bridge.load("frontend.h5")  # or "pretrained:cifar10-fd"
    features = frontend(images / 255)  # (N, C_out, H', W'), in [0, 1]

``SpikingFrontEnd`` and its ``SpecialActivationUnit`` are PyTorch modules. ``FrontEndSpec``, with a ``LayerSpec`` for
each layer, is the shape of a front end. ``measure_fidelity`` compares it with the spiking simulation.

Public names are imported when they are first used. ``python -m bridge.convert`` and ``python -m bridge.export`` are
the commands.
"""

from snn.runtime.public import publish

__all__ = publish(__name__)
