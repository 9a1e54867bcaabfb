"""Spiking features inside a modern deep network: building, training and evaluation.

    import hybrid

    model = hybrid.train(images, hybrid.Architecture(width=0.25), hybrid.Recipe(epochs=2), frontend="frontend.h5")
    logits = model(images.images[:4] / 255)  # (4, classes)
    hybrid.save(model, "safe.h5")
    answers = hybrid.classify("pretrained:safe-cifar10", ["cat.jpg", "photos/"], ["clean", "awgn:15"])
    network = hybrid.safe_dnn("frontend.h5", backbone="resnet18", classes=10)  # an untrained torch.nn.Module

Public names are imported when they are first used. ``python -m hybrid.train`` and ``python -m hybrid.evaluate`` are the
commands.
"""

from snn.runtime.public import publish

__all__ = publish(__name__)
