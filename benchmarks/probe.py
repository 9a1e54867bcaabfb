"""A linear probe: what a linear classifier reads from a layer's responses, averaged over a grid of cells."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, one_hot

from bridge.conversion import convert
from hybrid.conditions import Noise
from snn.data import load_images
from snn.data_source import DataSource
from snn.engines.base import choose_engine
from snn.image_cache import NONE
from snn.network import SpikingNetwork
from snn.runtime.errors import check
from snn.runtime.progress import progress
from snn.runtime.random import draw_seeds, stream
from snn.spikes import spike_counts

GRID = 4
"""Cells along each side of a layer's output."""
PIXEL_GRID = 8
"""Cells along each side of an image, where pixels themselves are probed."""
FITTED = 256
"""Images to which converted layers are fitted."""
BATCH = 50
"""Images that go through a network together."""
ROWS = 2000
"""Images whose features are held in a changed form."""
PENALTIES = (30, 100, 300, 1000, 3000, 10_000, 30_000)
"""Of the ridge classifier."""

CONDITIONS = tuple(Noise.parse(text) for text in ("clean", "awgn:20", "awgn:15"))
"""Under which the test images are."""

Responder = Callable[[Tensor], Sequence[Tensor]]
"""From uint8 images (B, C, H, W) to the responses of all layers, (B, maps, h, w) each."""


class Sizes(NamedTuple):
    """Numbers of images."""

    learn: int = 3000
    fit: int = 8000
    test: int = 4000

    def check(self) -> None:
        """Raise :class:`UserError` for a size too small."""
        for name, size in self._asdict().items():
            check(size >= 10, f"`{name}_images` {size}: expected 10 or more")


class Split(NamedTuple):
    """Images (uint8) and labels of the probe, and those to learn on."""

    learn: Tensor
    fit: Tensor
    fit_labels: Tensor
    test: Tensor
    test_labels: Tensor


def split_images(source: DataSource, sizes: Sizes, whole: bool = False, *, cache: str = NONE) -> Split:
    """Three parts of the training images, the same for every call.

    With ``whole`` the classifier gets all training images, and all test images test it. ``cache`` is that of
    :func:`snn.data.load_images`.
    """
    data = load_images(source, "train", 0, cache=cache)
    there = len(data.images)
    order = torch.randperm(there, generator=stream("split"))
    if whole:
        wanted, names = sizes.learn, "`learn_images`"
    else:
        wanted, names = sum(sizes), "`learn_images`, `fit_images` and `test_images` together"
    check(wanted <= there, f"{names} are {wanted}: {source.data} has {there} training images; give fewer")
    if whole:
        test = load_images(source, "test", 0, cache=cache)
        return Split(data.images[order[: sizes.learn]], data.images, data.labels, test.images, test.labels)
    fit, tested, learned = order[:wanted].split([sizes.fit, sizes.test, sizes.learn])
    return Split(data.images[learned], data.images[fit], data.labels[fit], data.images[tested], data.labels[tested])


def with_noise(images: Tensor, condition: Noise) -> Tensor:
    """uint8 images under a condition, rounded to 8 bits again."""
    return (torch.cat(list(condition.batches(images, 0))) * 255).round().to(torch.uint8)


def simulated(network: SpikingNetwork, purpose: str) -> Responder:
    """Spike counts as the layers pass them on (inhibition off); ``purpose`` names the draws of phases."""
    engine, generator = choose_engine("events"), stream("probe", purpose)

    def respond(images: Tensor) -> list[Tensor]:
        spikes = network.encode(engine, images, draw_seeds(len(images), generator))
        return [spike_counts(layer).float() for layer in network.simulate(engine, spikes)]

    return respond


def converted(network: SpikingNetwork, images: Tensor) -> Responder:
    """Outputs of the converted layers, in spikes in a presentation; fitted to the responses to the first ``images``."""
    frontend = convert(network, images[:FITTED]).frontend

    def respond(images: Tensor) -> list[Tensor]:
        with torch.no_grad():
            return frontend.spikes(images / 255)

    return respond


def pixels(images: Tensor) -> list[Tensor]:
    """The images themselves: a :data:`Responder`."""
    return [images.float()]


def pooled(respond: Responder, images: Tensor, grid: int = GRID) -> list[Tensor]:
    """Mean responses in each cell: float32 (N, maps * grid^2) for each layer."""
    found: list[Tensor] = []
    for first in progress(range(0, len(images), BATCH), "responses", "batch"):
        part = slice(first, first + BATCH)
        for number, response in enumerate(respond(images[part])):
            values = adaptive_avg_pool2d(response, grid).flatten(1)
            if not first:
                # Filled in place: of 50,000 images and 4,096 features there is no room for a second copy.
                found.append(torch.empty(len(images), values.shape[1]))
            found[number][part] = values
    return found


@dataclass(frozen=True)
class LinearClassifier:
    """Ridge regression of labels written as -1 and 1, on standardised features."""

    mean: Tensor
    scale: Tensor
    """Mean and standard deviation of each feature, (P,)."""
    weight: Tensor
    """(P, classes)."""
    bias: Tensor
    """(classes,)."""
    penalty: float

    def accuracy(self, features: Sequence[Tensor], labels: Tensor) -> float:
        """Share of right answers, in %; arguments as for :func:`fit_classifier`."""
        answers = [
            (rows @ self.weight + self.bias).argmax(1) for rows in _standardised(features, self.mean, self.scale)
        ]
        return 100 * (torch.cat(answers) == labels).double().mean().item()


def fit_classifier(
    features: Sequence[Tensor], labels: Tensor, penalties: Sequence[float] = PENALTIES
) -> LinearClassifier:
    """The ridge classifier whose penalty has the smallest squared error when each image in turn is left out.

    As scikit-learn's ``RidgeClassifierCV`` behind its ``StandardScaler``, but in two passes over parts of the images:
    memory grows with the square of the features, and not with features times images.

    Args:
        features: float32 (N, P_i) each, taken side by side.
        labels: int64 (N,), from 0.
        penalties: to choose from.
    """
    count, width = len(labels), sum(part.shape[1] for part in features)
    moments = [torch.var_mean(part, 0, correction=0) for part in features]
    variance, mean = (torch.cat(values) for values in zip(*moments, strict=True))
    scale = torch.where(variance > 0, variance.sqrt(), 1.0)
    targets = 2 * one_hot(labels).float() - 1
    bias = targets.mean(0)
    targets = targets - bias
    gram = torch.zeros(width, width, dtype=torch.float64)
    products = torch.zeros(width, len(bias), dtype=torch.float64)
    for rows, wanted in zip(_standardised(features, mean, scale), targets.split(ROWS), strict=True):
        gram += rows.T @ rows
        products += rows.T @ wanted
    # In the basis of its eigenvectors every penalty is a division, and so is leaving one image out.
    values, vectors = torch.linalg.eigh(gram)
    projected, shrinkage = vectors.T @ products, 1 / (values.clamp(min=0)[:, None] + torch.tensor(penalties))
    weights = [(projected * factor[:, None]).float() for factor in shrinkage.T]
    basis, errors = vectors.float(), torch.zeros(len(penalties), dtype=torch.float64)
    for rows, wanted in zip(_standardised(features, mean, scale), targets.split(ROWS), strict=True):
        rows = rows @ basis
        leverage = rows.square() @ shrinkage.float() + 1 / count
        for number, weight in enumerate(weights):
            left_out = (wanted - rows @ weight) / (1 - leverage[:, number, None])
            errors[number] += left_out.square().sum().double()
    best = int(errors.argmin())
    return LinearClassifier(mean, scale, basis @ weights[best], bias, penalties[best])


def _standardised(features: Sequence[Tensor], mean: Tensor, scale: Tensor) -> Iterator[Tensor]:
    """Rows of all features side by side, standardised, :data:`ROWS` at a time."""
    for parts in zip(*(part.split(ROWS) for part in features), strict=True):
        yield (torch.cat(parts, 1) - mean) / scale
