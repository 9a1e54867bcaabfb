"""The fast gradient sign method (Goodfellow et al. 2015), as a transfer attack: ``X + eps sign(grad_X J)``.

The perturbation is crafted on one network and shown to others, whose gradients are never asked for (paper, 5.3).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


def fgsm(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Images moved by one step that raises the loss of ``network``.

    Args:
        network: source of the gradient, in evaluation mode: images in [0, 1] to logits.
        images: float32 (B, C, H, W) in [0, 1].
        labels: true classes (B,).
        eps: size of the step in 8-bit units.

    Returns:
        Like ``images``: each value moved by ``eps / 255`` up or down (not at all where its gradient is 0), then clipped
        to [0, 1].
    """
    images = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        # A sum: the gradient of an image does not depend on the others.
        loss = cross_entropy(network(images), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images)
    return (images.detach() + eps / 255 * gradient.sign()).clamp(0, 1)
