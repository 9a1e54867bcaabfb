"""Spiking convolution layers that learn features without labels, by stochastic STDP on norse LIF neurons.

    import snn

    images = snn.load_images("digits", "train", limit=300)
    network = snn.learn(images, snn.Learning(maps=(8,), min_updates=20))
    snn.save(network, "snn.h5")
    kernels = snn.load("snn.h5").layers[0].layer.conductance  # (8, 1, 3, 3)

Public names are imported when they are first used. ``python -m snn.learn`` is the command.
"""

from snn.runtime.loading import end_quietly

# Before all that takes long: every command imports this package first.
end_quietly()

from snn.runtime.public import publish  # noqa: E402

__all__ = publish(__name__)
