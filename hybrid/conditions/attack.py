"""The fast gradient sign method (Goodfellow et al. 2015), as a transfer attack: ``X + eps sign(grad_X J)``.

The perturbation is computed on one network and shown to others, whose gradients are never taken (paper, 5.3).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hybrid.conditions import CHUNK, Condition, Context, Perturbed, register_condition
from snn.runtime.errors import UserError


def fgsm(network: nn.Module, images: Tensor, labels: Tensor, eps: float) -> Tensor:
    """Images moved by one step of ``eps`` 8-bit units that raises the loss of ``network``.

    The network, in evaluation mode, maps images, float32 (B, C, H, W) in [0, 1], to logits; labels are true classes
    (B,). Each value moves by ``eps / 255`` up or down (not at all where its gradient is 0), and is then clipped to
    [0, 1].
    """
    images = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        # A sum: the gradient of an image does not depend on the others.
        loss = cross_entropy(network(images), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images, allow_unused=True)
    if gradient is None:
        raise UserError("the logits of `attack_model` do not depend on the images; give another network")
    return (images.detach() + eps / 255 * gradient.sign()).clamp(0, 1)


@register_condition("fgsm")
class FastGradientSign(Condition):
    """One step along the sign of the gradient of an attack model."""

    form, meaning, ranges = "EPS", "a step of 0 to 255 (8-bit units)", ((0, 255),)
    needs_attack_model, draws = True, False

    def parts(self, context: Context) -> Iterator[Perturbed]:
        if context.attack_model is None:
            raise UserError(f"`noise` {self} needs `attack_model` FILE, the model whose gradient it takes")
        device = context.device
        network = context.attack_model.to(device).eval()
        for chunk in context.data.split(CHUNK):
            batch = (chunk.images.float() / 255).to(device)
            moved = fgsm(network, batch, chunk.labels.to(device), self.levels[0])
            yield Perturbed(moved.cpu(), chunk.labels)
