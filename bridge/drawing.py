"""Modules that draw at random in training what they take the mean of in evaluation, and their draws in evaluation.

In training they draw from torch's global generator, as dropout does. In evaluation they draw inside :func:`drawing`
alone, from a generator for each image. An image's draws then do not depend on the other images of its batch, on the
device, or on the global generator, which they leave as it is.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Drawing(nn.Module):
    """A module that may draw at random; a subclass says whether it does (:attr:`is_random`) and asks for the draws."""

    generators: Sequence[torch.Generator] | None = None
    """On the CPU, one for each image of the batch; None: torch's global generator, in training alone."""

    @property
    def is_random(self) -> bool:
        """Whether it draws in training."""
        raise NotImplementedError

    @property
    def draws_now(self) -> bool:
        """Whether it draws in its present mode."""
        return self.is_random and (self.training or self.generators is not None)

    def uniform(self, like: Tensor) -> Tensor:
        """Numbers uniform in [0, 1), of the shape and type of ``like`` (B, ...)."""
        if self.generators is None:
            return torch.rand_like(like)
        return _of_each(self.generators, lambda own: torch.rand(like.shape[1:], generator=own), like)

    def integers(self, like: Tensor, high: int) -> Tensor:
        """Whole numbers from 0 to below ``high``, all equally likely, of the shape and type of ``like`` (B, ...)."""
        if self.generators is None:
            return torch.randint_like(like, high)
        return _of_each(self.generators, lambda own: torch.randint(high, like.shape[1:], generator=own), like)


def _of_each(generators: Sequence[torch.Generator], draw: Callable[[torch.Generator], Tensor], like: Tensor) -> Tensor:
    assert len(generators) == len(like)
    return torch.stack([draw(own) for own in generators]).to(like)


def random_modules(*networks: nn.Module) -> list[Drawing]:
    """The parts of ``networks`` that draw in training, and can in evaluation."""
    modules = (module for network in networks for module in network.modules())
    return [module for module in modules if isinstance(module, Drawing) and module.is_random]


@contextmanager
def drawing(modules: Sequence[Drawing], generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Inside, ``modules`` draw for the images of a batch, each from its generator on the CPU.

    They share the generators: each goes on where the one before it stopped.
    """
    for module in modules:
        module.generators = generators
    try:
        yield
    finally:
        for module in modules:
            module.generators = None
