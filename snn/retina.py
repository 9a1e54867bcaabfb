"""The retina: intensities become ON and OFF contrast, as its ganglion cells send them to the brain.

A linear filter answers to contrast: how much brighter, or how differently coloured, a pixel is than its surround. Its
answer is rectified into two channels for each colour, ON (brighter) and OFF (darker), of which at most one is active.
The largest contrasts are clipped.

Two filters can be had. *whiten* decorrelates neighbouring pixels of the training images: of ZCA, the symmetric
whitening ``(covariance + epsilon)^(-1/2)`` of image patches, it takes the rows that belong to the patch's centre. The
larger ``epsilon``, the less it enhances fine detail. With ``noise``, a Wiener filter also takes fine detail away, as a
retina does where noise is strong (Atick and Redlich 1992). *dog* is a difference of Gaussians within each colour, of
fixed size (Rodieck 1965).

Filters and images are whole multiples of a power of two, and so small that every sum is exact in float32. Contrast is
therefore the same to the last bit on every device, in every batch and in every exported file.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from snn.encoding import check_images
from snn.exact import round_for_exact_sums
from snn.parameters import RetinaParameters
from snn.patches import random_patches
from snn.runtime.errors import check
from snn.runtime.random import stream
from snn.runtime.threads import use_threads
from snn.runtime.tree import Stored, Tree

LEVELS = 255
"""Levels of an 8-bit image above 0."""
INTENSITY_STEPS = 4 * LEVELS
"""Steps of intensity, and of contrast, from 0 to 1: 8-bit images lose nothing."""
SCALE_SAMPLE = 4_000_000
"""Contrasts of training images, at most, whose quantile is the scale."""

SUMMED = 2**20
"""Intensities that are summed at once."""


class RetinaHistory(NamedTuple):
    """How a retina came about."""

    scale: float
    """Contrast, in intensity filtered, that becomes 1."""
    clipped: float
    """Share of the contrasts of training images above it."""
    variance: Tensor
    """Variance of image patches along their principal axes, ascending, in squared intensity: float64 (C k k,); empty
    if the filter was not learned."""


class Retina(nn.Module):
    """Filter of C colours and rectification into 2 C channels; made by :func:`learn_retina` or read from a file."""

    filters: Tensor
    """(C, C, k, k): contrast per intensity, of each colour from all colours. A convolution as PyTorch means it."""
    offset: Tensor
    """Contrast of each colour in darkness, in :data:`INTENSITY_STEPS` (C,); the mean colour has contrast 0."""

    def __init__(self, filters: Tensor, offset: Tensor, history: RetinaHistory | None = None) -> None:
        super().__init__()
        self.register_buffer("filters", filters)
        self.register_buffer("offset", offset)
        self.history = history
        """None: not known, as in a front end."""

    @classmethod
    def empty(cls, colours: int, kernel_size: int) -> "Retina":
        """A retina into which values can be loaded."""
        return cls(torch.zeros(colours, colours, kernel_size, kernel_size), torch.zeros(colours))

    @property
    def kernel_size(self) -> int:
        """Side of the filter, in pixels."""
        return self.filters.shape[-1]

    def response(self, steps: Tensor) -> Tensor:
        """Signed contrast (B, C, H, W), in steps, of intensities in whole steps 0 to :data:`INTENSITY_STEPS`."""
        # At the border the image goes on as it ends: a black surround would be an edge.
        padded = pad(steps, (self.kernel_size // 2,) * 4, mode="replicate")
        return conv2d(padded, self.filters, self.offset)

    def forward(self, images: Tensor, levels: int = INTENSITY_STEPS) -> Tensor:
        """Contrast of images (B, C, H, W) in [0, 1]: whole numbers 0 to ``levels``, (B, 2 C, H, W); ON, then OFF.

        ``levels`` is :data:`INTENSITY_STEPS` or :data:`LEVELS`. The gradient ignores the rounding of input and output.
        """
        response = self.response(rounded(images * INTENSITY_STEPS)) / (INTENSITY_STEPS // levels)
        return rounded(torch.cat([response, -response], dim=1).clamp(0, levels))

    def encode(self, images: Tensor) -> Tensor:
        """Contrast of uint8 images (B, C, H, W): uint8 (B, 2 C, H, W), what the encoder turns into spikes."""
        check_images(images)
        with torch.no_grad():
            return self(images / LEVELS, LEVELS).to(torch.uint8)

    def copy_to(self, device: torch.device | str) -> "Retina":
        """A copy on ``device``."""
        return copy.deepcopy(self).to(device)


def encoder_input(images: Tensor, retina: Retina | None) -> Tensor:
    """What the encoder turns into spikes of uint8 images (B, C, H, W): their contrast, without a retina themselves."""
    return retina.encode(images) if retina else images


def rounded(values: Tensor) -> Tensor:
    """``values`` rounded to whole numbers; the gradient passes as if they were not."""
    return values + (torch.round(values) - values).detach()


def learn_retina(images: Tensor, p: RetinaParameters, seed: int) -> Retina | None:
    """The retina of ``p`` for training images, uint8 (N, C, H, W) on the CPU; None for kind "none".

    ``seed`` draws patches and the images whose contrasts set the scale. Raises :class:`UserError` for images smaller
    than the filter, or without any contrast.
    """
    if p.kind == "none":
        return None
    count, colours, height, width = images.shape
    check(
        p.kernel_size <= min(height, width),
        f"retina of `kernel_size` {p.kernel_size}: the images are only {width}x{height} pixels; give a smaller filter, "
        "or `retina` none",
    )
    variance = torch.empty(0, dtype=torch.float64)
    if p.kind == "whiten":
        filters, variance = whitening(sample_patches(images, p, seed), p.epsilon, p.noise)
    else:
        filters = difference_of_gaussians(colours, p)
    sample = max(1, SCALE_SAMPLE // images[0].numel())
    mean = torch.zeros(colours, dtype=torch.float64)
    # A difference of Gaussians ignores it.
    if p.kind == "whiten":
        # In parts, as PyTorch makes int64 of what it sums.
        total = torch.zeros(colours, dtype=torch.int64)
        for part in images.split(max(1, SUMMED // images[0].numel())):
            total += part.sum((0, 2, 3), dtype=torch.int64)
        mean = total.double() / (LEVELS * count * height * width)
    chosen = images[torch.randperm(count, generator=stream(seed, "retina scale"))[:sample]]
    raw = _fitted(filters, mean)
    # Filled in place: these are millions of numbers.
    contrast = torch.empty(chosen.shape, dtype=torch.float64)
    for part, place in zip(chosen.split(256), contrast.split(256), strict=True):
        torch.abs(raw.response(part.double() * (INTENSITY_STEPS // LEVELS)), out=place)
    contrast = contrast.div_(INTENSITY_STEPS).flatten()
    scale = contrast.kthvalue(1 + round(p.quantile * (len(contrast) - 1))).values.item()
    check(scale > 0, "the training images have no contrast; give other images, or `retina` none")
    retina = _fitted((filters / scale).float(), mean)
    retina.history = RetinaHistory(scale, (contrast > scale).double().mean().item(), variance)
    return retina


def _fitted(filters: Tensor, mean: Tensor) -> Retina:
    """Filters (C, C, k, k), and the offset for a mean intensity (C,), rounded so that every sum is exact."""
    magnitude = filters.abs().sum((1, 2, 3)).amax()
    # With the offset no sum is larger, but for rounding: it moves each weight, and the centre, by at most 2^-14 of it.
    largest = INTENSITY_STEPS * magnitude * (1 + filters[0].numel() / 2**13)
    weight, sums = (round_for_exact_sums(values, largest) for values in (filters, filters.sum((2, 3))))
    # The centre takes up what rounding has changed, or an even surface would have contrast.
    centre = weight.shape[-1] // 2
    weight[:, :, centre, centre] += sums - weight.sum((2, 3))
    offset = -INTENSITY_STEPS * (sums.double() @ mean)
    return Retina(weight, round_for_exact_sums(offset.to(filters.dtype), largest))


def sample_patches(images: Tensor, p: RetinaParameters, seed: int) -> Tensor:
    """Random patches of uint8 images (N, C, H, W), as intensities: float64 (``p.patches``, C, k, k)."""
    return random_patches(images, p.kernel_size, p.patches, stream(seed, "retina patches")).double() / LEVELS


def whitening(patches: Tensor, epsilon: float, noise: float = 0.0) -> tuple[Tensor, Tensor]:
    """Zero-phase whitening filters of patches (N, C, k, k), float64, and the variances along their principal axes.

    Filters (C, C, k, k) are the rows of ``(covariance + epsilon)^(-1/2)`` that belong to the centre of a patch. They
    are averaged with their point reflections, as a patch of natural images is as likely as its reflection. With
    ``noise``, the whitening is multiplied by the Wiener filter ``covariance (covariance + noise)^-1``.
    """
    colours, size = patches.shape[1], patches.shape[-1]
    # How a library splits these sums among threads would show in their last bits.
    with use_threads(1):
        variance, axes = torch.linalg.eigh(torch.cov(patches.flatten(1).T))
        variance = variance.clamp(min=0)
        passed = (variance + epsilon).rsqrt()
        if noise:
            passed *= variance / (variance + noise)
        whitener = (axes * passed) @ axes.T
    centre = torch.arange(colours) * size**2 + size**2 // 2
    filters = whitener[centre].reshape(colours, colours, size, size)
    return (filters + filters.flip((2, 3))) / 2, variance


def difference_of_gaussians(colours: int, p: RetinaParameters) -> Tensor:
    """Centre less surround within each colour, float64 (C, C, k, k); each Gaussian sums to 1 over the filter."""
    distance = torch.arange(p.kernel_size, dtype=torch.float64) - p.kernel_size // 2

    def gaussian(sigma: float) -> Tensor:
        line = torch.exp(-(distance**2) / (2 * sigma**2))
        sheet = line[:, None] * line
        return sheet / sheet.sum()

    return torch.eye(colours).double()[..., None, None] * (gaussian(p.centre) - gaussian(p.surround))


def retina_tree(retina: Retina | None) -> Tree:
    """A retina as a group of a file, empty without one."""
    if retina is None:
        return {}
    tree: Tree = {
        "filters": retina.filters.numpy(),
        "filters_unit": "contrast per intensity (C_out, C_in, k, k)",
        "offset": retina.offset.numpy(),
        "offset_unit": f"contrast, in steps of 1/{INTENSITY_STEPS}",
    }
    if history := retina.history:
        tree["history"] = history._asdict() | {"variance": history.variance.numpy(), "unit": "intensity 0 to 1"}
    return tree


def retina_from_tree(tree: Stored, colours: int, kernel_size: int | None = None) -> Retina | None:
    """What :func:`retina_tree` stored, for images of so many ``colours``; None of an empty group."""
    if not tree:
        return None
    filters = tree.array("filters", np.float32, (colours, colours, kernel_size, kernel_size))
    side = filters.shape[-1]
    check(filters.shape[-2] == side and side % 2 == 1, f"{tree.path}filters has kernels of shape {filters.shape[2:]}")
    history = None
    if "history" in tree:
        stored = tree.group("history")
        variance = stored.array("variance", np.float64, (None,), low=0)
        scale, clipped = stored.number("scale", low=0), stored.number("clipped", low=0, high=1)
        history = RetinaHistory(scale, clipped, torch.from_numpy(variance))
    offset = tree.array("offset", np.float32, (colours,))
    return Retina(torch.from_numpy(filters), torch.from_numpy(offset), history)
