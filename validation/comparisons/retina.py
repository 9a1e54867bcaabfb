"""Contrast of random images by random retinas: the project's filters, and the same in NumPy and SciPy."""

from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import correlate

from snn.parameters import RetinaParameters
from snn.retina import INTENSITY_STEPS, LEVELS, Retina, learn_retina, sample_patches
from snn.runtime.progress import progress
from validation.reference.retina import channels, learned, patch_variance
from validation.report import Report

KINDS = ("whiten", "dog", "drawn")
"""whiten, dog: as learned from random images; drawn: random filters without any symmetry."""
TOLERANCE = 2e-4
"""Largest departure of a filter from the reference's, as a share of the sum of its magnitudes: filters are rounded to a
grid of 1/8000 of that sum or less, on which all sums are exact. The centre makes up for what the others lose."""
PATCHES = 4000


class RetinaTrial(NamedTuple):
    """One retina whose contrasts were compared."""

    kind: str
    shape: tuple[int, int, int]
    """Of an image, (C, H, W)."""
    kernel_size: int
    differing: int
    """Contrasts that differ between the two sides, over all images, levels, batches and memory orders."""
    contrasts: int
    """Contrasts that were compared."""
    active: tuple[float, float, float]
    """Shares of pixels with ON contrast, with OFF contrast, and clipped."""
    filters: float
    """Largest departure of filter and offset from the reference's, as :data:`TOLERANCE`; 0 if drawn."""
    scale: float
    """Departure of the contrast that becomes 1, relative."""
    variance: float
    """Largest departure of a variance of image patches, over the largest variance."""
    even: float
    """Largest contrast of even surfaces, in steps, of kind dog."""


def draw_images(random: np.random.Generator, count: int, shape: tuple[int, int, int]) -> torch.Tensor:
    """Random images, uint8 (N, C, H, W), whose pixels and colours depend on each other, in all directions unlike."""
    noise, colours = random.normal(size=(count, *shape)), shape[0]
    kernel = random.normal(size=(1, 1, 3, 3))
    kernel[..., 1, 1] += 2
    mixed = np.einsum("oc,nchw->nohw", random.normal(size=(colours, colours)), correlate(noise, kernel, mode="nearest"))
    contrast, brightness = random.uniform(30, 90), random.uniform(90, 170, (colours, 1, 1))
    images = brightness + contrast * mixed / mixed.std()
    return torch.from_numpy(np.clip(np.rint(images), 0, 255).astype(np.uint8))


def draw_retina(random: np.random.Generator, colours: int, kernel_size: int) -> Retina:
    """A retina whose filters and offsets are random multiples of 1/64."""
    filters = random.integers(-64, 65, (colours, colours, kernel_size, kernel_size)) / 64
    offset = random.integers(-20_000, 20_001, colours) / 64
    return Retina(torch.from_numpy(filters).float(), torch.from_numpy(offset).float())


def compare_retina(kind: str, colours: int, random: np.random.Generator, device: torch.device) -> RetinaTrial:
    """Contrast of training images and others by one retina of ``kind``."""
    size = int(random.choice([3, 5, 7]))
    shape = (colours, int(random.integers(size, 15)), int(random.integers(size, 15)))
    images, seed = draw_images(random, 40, shape), int(random.integers(2**31))
    filters = scale = variance = even = 0.0
    if kind == "drawn":
        retina = draw_retina(random, colours, size)
    else:
        p = RetinaParameters(
            kind=kind,  # type: ignore[arg-type]
            kernel_size=size,
            epsilon=random.uniform(0.005, 0.1),
            noise=random.choice([0.0, random.uniform(0.001, 0.01)]),
            patches=PATCHES,
            centre=random.uniform(0.5, 1.0),
            surround=random.uniform(1.2, 2.5),
            quantile=random.uniform(0.9, 1.0),
        )
        made = learn_retina(images, p, seed)
        assert made
        assert made.history
        retina, patches = made, sample_patches(images, p, seed).numpy()
        weights, offset, contrast = learned(images.numpy(), patches, p)
        apart = retina.filters.numpy() - weights
        sums, apart[:, :, size // 2, size // 2] = apart.sum((2, 3)), 0
        departures = apart, sums, (retina.offset.numpy() - offset) / INTENSITY_STEPS
        filters = float(max(np.abs(values).max() for values in departures) / np.abs(weights).sum((1, 2, 3)).max())
        scale = abs(made.history.scale / contrast - 1)
        if kind == "whiten":
            expected = patch_variance(patches)
            variance = float(np.abs(made.history.variance.numpy() - expected).max() / expected.max())
        else:
            surfaces = torch.linspace(0, 1, 52).reshape(-1, 1, 1, 1).expand(-1, *shape)
            even = retina.copy_to(device)(surfaces.to(device)).max().item()
    differing, contrasts, active = _compare_contrast(retina, images, random, device)
    return RetinaTrial(kind, shape, size, differing, contrasts, active, filters, scale, variance, even)


def _compare_contrast(
    retina: Retina, images: torch.Tensor, random: np.random.Generator, device: torch.device
) -> tuple[int, int, tuple[float, float, float]]:
    """Contrasts that differ, how many there are, and :attr:`RetinaTrial.active`; uint8 images, and any intensities."""
    filters, offset = retina.filters.numpy(), retina.offset.numpy()
    on_device, anything = retina.copy_to(device), torch.from_numpy(random.random(images.shape, np.float32))
    coarse = channels(images.numpy().astype(np.float32) / np.float32(LEVELS), filters, offset, LEVELS)
    fine = channels(anything.numpy(), filters, offset)
    pairs = [(on_device.encode(images.to(device)), coarse)]
    for format_ in (torch.contiguous_format, torch.channels_last):
        pairs.append((on_device(anything.to(device).contiguous(memory_format=format_)), fine))
    pairs.append((torch.cat([on_device(image[None].to(device)) for image in anything]), fine))
    differing = sum(int((ours.cpu().numpy() != theirs).sum()) for ours, theirs in pairs)
    colours = images.shape[1]
    clipped = (coarse == LEVELS).mean() + (fine == INTENSITY_STEPS).mean()
    active = (coarse[:, :colours] > 0).mean(), (coarse[:, colours:] > 0).mean(), clipped / 2
    return differing, sum(theirs.size for _, theirs in pairs), tuple(map(float, active))  # type: ignore[return-value]


def compare_retinas(
    retinas: int, report: Report, random: np.random.Generator, device: torch.device
) -> list[RetinaTrial]:
    """Contrasts of ``retinas`` retinas, pixel by pixel, and the filters of those that are learned."""
    numbers = progress(range(retinas), "contrast", "retina")
    trials = [compare_retina(KINDS[n % len(KINDS)], (1, 3)[n % 2], random, device) for n in numbers]
    report.add(
        f"retinas ({retinas}): ON and OFF contrast at all pixels, grey and colour images",
        f"{sum(trial.differing for trial in trials)} of {sum(trial.contrasts for trial in trials)} differ",
        "0",
        not any(trial.differing for trial in trials),
        of=sum(trial.contrasts for trial in trials),
    )
    active = np.array([trial.active for trial in trials]).mean(0)
    report.add(
        "the same, without which nothing would be tested: contrasts that are ON, OFF and clipped",
        "{:.0%}, {:.0%} and {:.1%}".format(*active),
        "some of each",
        bool((active > 0).all()),
        of=len(trials),
        figures=active,
    )
    for what, values, most in (
        ("filters and offsets that were learned, over the sum of a filter", [t.filters for t in trials], TOLERANCE),
        ("contrast that becomes 1, relative", [t.scale for t in trials], 1e-6),
        ("variances of image patches, over the largest", [t.variance for t in trials], 1e-10),
    ):
        largest = max(values)
        report.add(
            f"{what}: largest difference",
            f"{largest:.1e}",
            f"at most {most:g}",
            largest <= most,
            of=len(values),
            figures=values,
        )
    even = [trial.even for trial in trials]
    report.add(
        "largest contrast of even surfaces, differences of Gaussians",
        f"{max(even):g}",
        "0",
        max(even) == 0,
        of=len(even),
        figures=even,
    )
    return trials
