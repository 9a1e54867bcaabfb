"""Perturbations of test images: what each is, how it is written, and their registry.

A perturbation is written ``name`` or ``name:level``, for example ``awgn:20``, and applies to images in [0, 1] before a
model normalises them. ``Condition.parse("awgn:20")`` reads it. A further one takes one class in a file of your own,
which ``--plugin FILE`` imports (docs/guides/noise.md has an example).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, Self, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from snn.data import Images
from snn.runtime.errors import UserError, check
from snn.runtime.registry import Registry
from snn.runtime.text_flag import TextFlag, read_number
from snn.subset import Subset

Kind = TypeVar("Kind", bound="Condition")

CHUNK = 256
"""Images that share one draw, or one gradient; fixed, so that results do not depend on the batch size."""


class Perturbed(NamedTuple):
    """Images under one condition."""

    images: Tensor
    """float32 (N, C, H, W) in [0, 1]."""
    labels: Tensor
    """int64 (N,)."""

    @classmethod
    def join(cls, parts: Iterable["Perturbed"]) -> "Perturbed":
        """All images of several parts."""
        first, *others = parts
        if not others:
            return first
        return cls(*(torch.cat(values) for values in zip(first, *others, strict=True)))

    def split(self, size: int) -> Iterator["Perturbed"]:
        """The images in their order, ``size`` at a time."""
        yield from map(Perturbed, self.images.split(size), self.labels.split(size))


@dataclass(frozen=True)
class Context:
    """What a perturbation may use."""

    data: Images | Subset
    """Clean images, uint8 (N, C, H, W), and their labels. There may be more than fit into memory: ``data.split(CHUNK)``
    has them in parts."""
    seed: int = 0
    """Seed of the draws."""
    attack_model: nn.Module | None = None
    """Network in evaluation mode, images in [0, 1] to logits, whose gradient an attack takes."""
    cifar10_c: Path | None = None
    """Folder with the published files of CIFAR-10-C."""
    device: torch.device | str = "cpu"
    """Where gradients are computed."""


@dataclass(frozen=True)
class Condition(ABC):
    """One perturbation at one level; a subclass defines a kind of perturbation and is registered under its name."""

    text: str
    """As written, for example ``awgn:20``; also its name in tables and results."""
    levels: tuple[float, ...] = ()
    """The numbers of the text."""

    form: ClassVar[str] = ""
    """How the level is written, for example ``DB``; "" if there is none."""
    meaning: ClassVar[str] = ""
    """What the level is, with its range and unit, for messages."""
    ranges: ClassVar[tuple[tuple[float, float], ...]] = ()
    """Smallest and largest value of each number."""
    needs_attack_model: ClassVar[bool] = False
    """Whether it takes the gradient of ``Context.attack_model``."""
    needs_cifar10_c: ClassVar[bool] = False
    """Whether it reads the files in ``Context.cifar10_c``."""
    draws: ClassVar[bool] = True
    """Whether another seed gives other images."""

    def parts(self, context: Context) -> Iterator[Perturbed]:
        """Images of ``context`` under this condition, in their order and in parts, of :data:`CHUNK` for example.

        A subclass defines this or, if it needs all images at once, :meth:`perturb`. Raises :class:`UserError` where it
        cannot be applied to them.
        """
        if type(self).perturb is Condition.perturb:
            raise NotImplementedError(f"{type(self).__name__} defines neither parts nor perturb")
        yield self.perturb(context)

    def perturb(self, context: Context) -> Perturbed:
        """All parts at once, in memory."""
        return Perturbed.join(self.parts(context))

    @property
    def snr(self) -> float | None:
        """Nominal signal-to-noise ratio in dB; None if the condition states none."""
        return None

    @property
    def kind(self) -> str:
        """The registered name."""
        return self.text.partition(":")[0]

    @property
    def key(self) -> str:
        """The same for all spellings of one condition, as awgn:20 and awgn:20.0; noise is seeded with it."""
        return f"{self.kind}{self.levels}"

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str, argument: str = "noise") -> Self:
        """Read ``name`` or ``name:level``, for example ``awgn:20``.

        Raises :class:`UserError`, which names the ``argument``, for an unknown name, a level out of range, or a
        perturbation that is no ``cls``.
        """
        check(isinstance(text, str), f"`{argument}` {text!r}: expected text, such as awgn:20")
        kind, colon, level = text.partition(":")
        names = usable(cls)
        try:
            check(
                kind in names,
                f"{kind!r} cannot be used here; choose from {', '.join(names)}, or add one with `plugin` FILE",
            )
            condition = CONDITIONS[kind].read(text, level if colon else None)
        except UserError as error:
            raise UserError(f"`{argument}` {text}: {error}") from error
        assert isinstance(condition, cls)
        return condition

    @classmethod
    def read(cls, text: str, level: str | None) -> Self:
        """This kind of condition, from its whole text and the part behind the colon (None: there is no colon)."""
        kind = text.partition(":")[0]
        expected = f"expected {kind}:{cls.form} with {cls.meaning}" if cls.form else f"{kind} takes no level"
        try:
            levels = tuple(map(read_number, level.split(","))) if level is not None else ()
        except ValueError as error:
            raise UserError(f"level {level!r} is not a number; {expected}") from error
        valid = len(levels) == len(cls.ranges) and all(
            low <= value <= high for value, (low, high) in zip(levels, cls.ranges, strict=True)
        )
        check(valid, f"level out of range; {expected}")
        return cls(text, levels)


class Noise(Condition):
    """A perturbation that a generator draws on any images, in evaluation and while a network is trained."""

    @abstractmethod
    def add(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Perturbed images, not yet clipped; see :meth:`apply`."""

    def apply(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Perturbed images, clipped to [0, 1], of floating-point images (B, C, H, W) in [0, 1].

        The generator is on their device.
        """
        perturbed = self.add(images, generator)
        check(
            perturbed.shape == images.shape,
            f"perturbation {self}: makes {tuple(perturbed.shape)} of images {tuple(images.shape)}, not the same shape",
        )
        return perturbed.clamp(0, 1)

    def batches(self, images: Tensor, seed: int) -> Iterator[Tensor]:
        """All of the uint8 images (N, C, H, W), perturbed, float32 in [0, 1], in chunks of :data:`CHUNK`.

        The draws depend on the seed and the condition alone and are made on the CPU, so every model sees the same
        images.
        """
        generator = self._generator(seed)
        for chunk in images.split(CHUNK):
            yield self.apply(chunk.float() / 255, generator)

    def parts(self, context: Context) -> Iterator[Perturbed]:
        generator = self._generator(context.seed)
        for chunk in context.data.split(CHUNK):
            yield Perturbed(self.apply(chunk.images.float() / 255, generator), chunk.labels)

    def _generator(self, seed: int) -> torch.Generator:
        entropy = np.random.SeedSequence([seed, *self.key.encode()]).generate_state(1, np.uint64)[0]
        return torch.Generator().manual_seed(int(entropy) >> 1)


CONDITIONS: Registry[type[Condition]] = Registry("perturbation", "hybrid.conditions")
"""All kinds of perturbations by name."""

register_condition = CONDITIONS.register
"""Class decorator that adds a kind of perturbation: ``@register_condition("awgn")``."""


def usable(kind: type[Condition]) -> list[str]:
    """Names of all perturbations that are of this kind, as Noise."""
    return [name for name in CONDITIONS if issubclass(CONDITIONS[name], kind)]


def condition_flag(kind: type[Kind], argument: str = "noise", many: bool = False) -> TextFlag[Kind]:
    """Annotation of a command's field that holds a condition of this kind, or a tuple of them (``many``).

    ``--help`` and errors list all that are registered.
    """

    def forms() -> str:
        return "|".join(f"{name}:{CONDITIONS[name].form}".removesuffix(":") for name in usable(kind))

    return TextFlag(lambda text: kind.parse(text, argument), forms, many)
