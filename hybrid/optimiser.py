"""Optimisers of supervised training, with their schedule."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

STEPS = 3
"""Steps of the iteration that makes a matrix orthogonal (K. Jordan's airbench takes 3; Muon's usual number is 5)."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of its polynomial of degree 5 (K. Jordan 2024): steep at 0, so that few steps are enough."""
MOMENTUM = 0.9
"""Of SGD; orthogonal steps have less (K. Jordan's airbench)."""
ORTHOGONAL_MOMENTUM = 0.6
TINY = 1e-7
"""Keeps a kernel of zeros from a division by its norm."""
IMAGE_CHANNELS = 6
"""A convolution of so many input channels, or fewer, reads images or their contrast (ON and OFF of three colours)."""


class Muon(torch.optim.Optimizer):
    """Momentum whose step is made orthogonal, for kernels of convolutions (K. Jordan 2024); SGD for the rest.

    Groups of parameters with ``orthogonal`` hold kernels (C_out, C_in, kH, kW), which count as matrices of C_out rows.
    Each keeps the norm sqrt(C_out): behind it, batch normalisation makes its length meaningless, and the rate alone
    says how far a step turns it. Others get SGD with Nesterov momentum. (PyTorch's own Muon takes matrices only.)
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.1, "momentum": MOMENTUM, "weight_decay": 0.0, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                gradient = weight.grad.add(weight, alpha=group["weight_decay"])
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(gradient)
                mean = state["momentum"].mul_(group["momentum"]).add_(gradient)
                change = gradient.add_(mean, alpha=group["momentum"])
                if group["orthogonal"]:
                    change = orthogonal(change.flatten(1)).view(weight.shape)
                    weight.mul_(len(weight) ** 0.5 / weight.norm().clamp(min=TINY))
                weight.add_(change, alpha=-group["lr"])
        return loss


def orthogonal(matrix: Tensor) -> Tensor:
    """The matrix (N, M) with its singular values near 1: Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16() if matrix.is_cuda else matrix
    wide = x.T if len(x) > x.shape[1] else x
    wide = wide / (wide.norm() + TINY)
    for _ in range(STEPS):
        gram = wide @ wide.T
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return (wide.T if len(x) > x.shape[1] else wide).to(matrix.dtype)


def one_cycle(step: int, steps: int, warmup: float = 0.2) -> float:
    """Learning rate over its peak at a step: a linear rise over the share ``warmup``, then half a cosine down to 0."""
    rise = steps * warmup
    if step < rise:
        return (step + 1) / (rise + 1)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / (steps - rise))))


def hidden_kernels(network: nn.Module) -> list[nn.Parameter]:
    """Weights of all trainable convolutions but those that read images, in the order of the network."""
    convolutions = (module for module in network.modules() if isinstance(module, nn.Conv2d))
    hidden = (c for c in convolutions if c.groups == 1 and c.in_channels > IMAGE_CHANNELS)
    return [kernel for c in hidden for kernel in c.parameters() if kernel.requires_grad and kernel.ndim == 4]
