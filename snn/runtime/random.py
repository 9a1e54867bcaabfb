"""Counter-based random numbers, keyed by image, purpose and event.

Every image of a presentation has its own seed. A draw is a hash of that seed, of the draw's purpose and of its place
(step, neuron, synapse). It does not depend on the batch, thread, process, device or engine in which it is made. The
hash is two rounds of a 32-bit multiply-and-shift mixer (constants: C. Wellons, "lowbias32"), keyed with both halves of
the seed.

PyTorch has no unsigned 32-bit arithmetic on all devices. Here numbers are int64, masked; :mod:`snn.engines.kernels`
holds the same functions in compiled form.
"""

import hashlib

import numpy as np
import torch
from torch import Tensor

MASK = 0xFFFFFFFF
FIRST_FACTOR, SECOND_FACTOR = 0x7FEB352D, 0x846CA68B
EVENT_STRIDE, DRAW_STRIDE = 0x9E3779B9, 0x85EBCA6B
"""Odd numbers far from each other: neighbouring counters give keys that share nothing."""
ENCODE, TIES, BEFORE, AFTER = 1, 2, 3, 4
"""Purposes: phases and Poisson spikes; equal channels; pairing with the spike before, and with the one after."""
ONE = 2**30
"""A probability of 1, in the whole numbers in which draws and probabilities are compared."""


def stream(*purpose: int | str) -> torch.Generator:
    """A generator on the CPU, seeded by its purpose, for example ``stream(seed, "order", layer, epoch)``."""
    digest = hashlib.blake2b("/".join(map(str, purpose)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest) >> 1)


def draw_seeds(images: int, generator: torch.Generator) -> Tensor:
    """Seeds of images, int64 (B,), on the device of ``generator``."""
    return torch.randint(2**62, (images,), generator=generator, device=generator.device)


def image_key(seeds: Tensor, purpose: int) -> tuple[Tensor, Tensor]:
    """Both halves of the key of each image, int64 of the shape of ``seeds``."""
    first = _mix((seeds + purpose * EVENT_STRIDE) & MASK)
    return first, _mix((seeds >> 32) & MASK ^ first)


def numpy_keys(seeds: Tensor, purpose: int) -> list[tuple[np.uint32, np.uint32]]:
    """Key of each image (:func:`image_key`), as compiled code takes it."""
    first, second = (half.numpy().astype(np.uint32) for half in image_key(seeds, purpose))
    return list(zip(first, second, strict=True))


def event_key(key: tuple[Tensor, Tensor], counter: Tensor | int) -> tuple[Tensor, Tensor]:
    """The key of one event of an image; all arguments broadcast."""
    first = _mix((key[0] + counter * EVENT_STRIDE) & MASK)
    return first, _mix(first ^ key[1])


def draw_bits(key: tuple[Tensor, Tensor], index: Tensor | int) -> Tensor:
    """32 random bits for each ``index`` of an event, int64 0 to 2^32 - 1; all arguments broadcast."""
    x = (key[0] + index * DRAW_STRIDE) & MASK
    x = ((x ^ x >> 16) * FIRST_FACTOR) & MASK
    x = ((x ^ x >> 15 ^ key[1]) * SECOND_FACTOR) & MASK
    return x ^ x >> 16


def happens(bits: Tensor, chance: Tensor) -> Tensor:
    """Whether an event of probability ``chance`` (from :func:`as_chance`) happens; bool."""
    return bits >> 2 < chance


def as_chance(probability: Tensor) -> Tensor:
    """Probabilities as whole numbers, int32: 0 never happens, 1 always does."""
    return (probability.double() * ONE).round().to(torch.int32)


def _mix(x: Tensor) -> Tensor:
    x = ((x ^ x >> 16) * FIRST_FACTOR) & MASK
    x = ((x ^ x >> 15) * SECOND_FACTOR) & MASK
    return x ^ x >> 16
