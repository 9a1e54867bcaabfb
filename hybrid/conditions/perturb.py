"""Test images under a condition of :mod:`hybrid.conditions.drawn`: drawn noise, an attack, or a common corruption."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hybrid.conditions.attack import fgsm
from hybrid.conditions.corruptions import corrupt, load_corrupted
from hybrid.conditions.drawn import Condition
from snn.data import Images
from snn.runtime.errors import check

NOISE_CHUNK = 256
"""Images that share one draw, or one gradient; fixed, so that results do not depend on the batch size."""


class Perturbed(NamedTuple):
    """Images under one condition."""

    images: Tensor
    """float32 (N, C, H, W) in [0, 1]."""
    labels: Tensor
    """int64 (N,)."""


def noisy_batches(images: Tensor, condition: Condition, seed: int) -> list[Tensor]:
    """All images under one drawn condition, float32 in [0, 1], in chunks of :data:`NOISE_CHUNK`.

    The draws depend on the seed and the condition alone (and are made on the CPU), so every model sees the same images.
    """
    entropy = np.random.SeedSequence([seed, *condition.key.encode()]).generate_state(1, np.uint64)[0]
    generator = torch.Generator().manual_seed(int(entropy) >> 1)
    return [condition.apply(chunk.float() / 255, generator) for chunk in images.split(NOISE_CHUNK)]


def perturb(
    data: Images,
    condition: Condition,
    seed: int,
    *,
    source: nn.Module | None = None,
    published: Path | None = None,
    device: torch.device | str = "cpu",
) -> Perturbed:
    """Test images under one condition.

    Args:
        data: clean images.
        condition: parsed.
        seed: of the draws.
        source: network whose gradient fgsm takes, in evaluation mode.
        published: folder of CIFAR-10-C, which brings its own images and labels.
        device: where gradients are computed.

    Raises:
        UserError: fgsm without a source, cifar10-c without a folder or for other images.
    """
    if condition.kind == "fgsm":
        check(source is not None, f"`noise` {condition.name} needs `source` FILE, the model whose gradient it takes")
        network, chunks = source.to(device), []
        for images, labels in zip(data.images.split(NOISE_CHUNK), data.labels.split(NOISE_CHUNK), strict=True):
            moved = fgsm(network, (images.float() / 255).to(device), labels.to(device), condition.levels[0])
            chunks.append(moved.cpu())
        return Perturbed(torch.cat(chunks), data.labels)
    if condition.kind == "corruption":
        images = corrupt(data.images, condition.corruption, int(condition.levels[0]), seed)
        return Perturbed(images.float() / 255, data.labels)
    if condition.kind == "cifar10-c":
        check(
            published is not None,
            f"`noise` {condition.name} needs `cifar10_c` FOLDER, the published files; corruption:NAME,SEVERITY is "
            "computed on the fly",
        )
        found = load_corrupted(published, condition.corruption, int(condition.levels[0]), data.source.limit_test, seed)
        check(
            data.shape == found.shape and data.classes == found.classes,
            f"`noise` {condition.name}: the models were trained on images of shape {data.shape} and "
            f"{len(data.classes)} classes; CIFAR-10-C is for models of CIFAR-10",
        )
        return Perturbed(found.images.float() / 255, found.labels)
    return Perturbed(torch.cat(noisy_batches(data.images, condition, seed)), data.labels)
