"""The retina in NumPy and SciPy, in float64: contrast of given filters, and the filters of training images."""

import numpy as np
from scipy.linalg import inv, sqrtm
from scipy.ndimage import correlate, gaussian_filter

from snn.parameters import RetinaParameters

STEPS = 1020
"""Steps of intensity, and of contrast, from 0 to 1."""


def signed_contrast(images: np.ndarray, filters: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Correlation of images (N, C, H, W) with filters (C, C, k, k), plus offset (C,); the border goes on outside."""
    answer = np.zeros(images.shape)
    for (number, image), (out, own) in ((n, o) for n in enumerate(images) for o in enumerate(filters)):
        answer[number, out] = offset[out]
        for colour, weights in zip(image, own, strict=True):
            answer[number, out] += correlate(colour.astype(np.float64), weights.astype(np.float64), mode="nearest")
    return answer


def channels(images: np.ndarray, filters: np.ndarray, offset: np.ndarray, levels: int = STEPS) -> np.ndarray:
    """Contrast of intensities (N, C, H, W) in [0, 1]: ON, then OFF (N, 2 C, H, W), whole numbers 0 to ``levels``."""
    contrast = signed_contrast(np.rint(images * np.float32(STEPS)), filters, offset) * (levels / STEPS)
    on, off = np.maximum(contrast, 0), np.maximum(-contrast, 0)
    return np.minimum(np.rint(np.concatenate([on, off], 1)), levels)


def patch_variance(patches: np.ndarray) -> np.ndarray:
    """Variance of patches (N, C, k, k) along their principal axes, ascending, from their singular values."""
    flat = patches.reshape(len(patches), -1)
    return np.linalg.svd(flat - flat.mean(0), compute_uv=False)[::-1] ** 2 / (len(flat) - 1)


def whitening(patches: np.ndarray, epsilon: float, noise: float = 0.0) -> np.ndarray:
    """Rows of ``(covariance + epsilon)^(-1/2)`` that belong to the centre of patches (N, C, k, k); point-symmetric.

    With ``noise``, the matrix is multiplied by ``covariance (covariance + noise)^-1``.
    """
    _, colours, size, _ = patches.shape
    centred = patches.reshape(len(patches), -1) - patches.reshape(len(patches), -1).mean(0)
    covariance = np.einsum("ni,nj->ij", centred, centred, optimize=True) / (len(patches) - 1)
    identity = np.eye(len(covariance))
    whitener = inv(sqrtm(covariance + epsilon * identity))
    if noise:
        whitener = whitener @ covariance @ inv(covariance + noise * identity)
    grid = whitener.real.reshape(colours, size, size, colours, size, size)
    filters = grid[:, size // 2, size // 2]
    return (filters + filters[..., ::-1, ::-1]) / 2


def difference_of_gaussians(colours: int, p: RetinaParameters) -> np.ndarray:
    """What SciPy's Gaussian filters of two widths answer to a single bright pixel, within each colour: (C, C, k, k)."""
    pixel, middle = np.zeros((p.kernel_size, p.kernel_size)), p.kernel_size // 2
    pixel[middle, middle] = 1
    centre, surround = (
        gaussian_filter(pixel, sigma, mode="constant", radius=middle) for sigma in (p.centre, p.surround)
    )
    filters = np.zeros((colours, colours, p.kernel_size, p.kernel_size))
    for colour in range(colours):
        filters[colour, colour] = centre - surround
    return filters


def learned(images: np.ndarray, patches: np.ndarray, p: RetinaParameters) -> tuple[np.ndarray, np.ndarray, float]:
    """Filters (C, C, k, k), offset (C,) in steps, and the contrast that becomes 1, of uint8 images (N, C, H, W).

    ``patches`` of the images, as intensities (N, C, k, k), are what a filter of kind "whiten" learns from.
    """
    intensity = images / 255
    if p.kind == "whiten":
        filters, mean = whitening(patches, p.epsilon, p.noise), intensity.mean((0, 2, 3))
    else:
        filters, mean = difference_of_gaussians(images.shape[1], p), np.zeros(images.shape[1])
    offset = -np.einsum("oikl,i->o", filters, mean)
    contrast = np.abs(signed_contrast(intensity, filters, offset))
    scale = float(np.quantile(contrast, p.quantile, method="nearest"))
    return filters / scale, STEPS * offset / scale, scale
