"""The 15 common corruptions, at five severities each (Hendrycks and Dietterich, 2019, arXiv:1903.12261).

There are two kinds, which do not give the same images:

- ``cifar10-c:NAME,SEVERITY``: :func:`load_corrupted` reads the published files of CIFAR-10-C
  (doi:10.5281/zenodo.2535967). Accuracies can be compared with those of other papers.
- ``corruption:NAME,SEVERITY``: :func:`corrupt` computes the corruption of any RGB images by imagecorruptions-imaug
  (Apache-2.0). Its severities are those of ImageNet-C, made for 224 pixels a side and stronger than CIFAR-10-C's: the
  standard deviation of Gaussian noise is 0.08 to 0.38 of full scale, in CIFAR-10-C 0.04 to 0.10. motion_blur and
  elastic_transform are the library's own (Michaelis et al., 2019, arXiv:1907.07484).

A higher severity does not always change an image more: glass_blur and frost sometimes have a smaller mean squared
difference.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from hybrid.conditions import CHUNK, Condition, Context, Perturbed, register_condition
from snn.data import Images, balanced_subset
from snn.data_source import DataSource
from snn.runtime.errors import UserError, check
from snn.runtime.progress import progress

CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
"""Noise, blur, weather, digital: the published order."""
DETERMINISTIC = frozenset(("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"))
"""Corruptions without random draws."""
SEVERITIES = range(1, 6)
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TAKE_A_SEED = {"impulse_noise", "glass_blur"}


def corrupt(images: Tensor, name: str, severity: int, seed: int, first: int = 0) -> Tensor:
    """Images, uint8 RGB (N, 3, H, W), with one corruption at one severity of ImageNet-C, computed on the CPU.

    The draws for image ``i`` (counted from ``first``) depend on ``(seed, i)`` alone: they are the same for any number
    of images and for all corruptions and severities. Results repeat bit by bit with the same versions of the libraries.
    The function uses NumPy's global random state and restores it at the end, so call it from one thread at a time.

    Raises :class:`UserError` for an unknown name, a severity out of 1 to 5, images of another type or of less than 32
    pixels, and if the library is not installed.
    """
    _check_request(name, severity)
    check(
        images.dtype == torch.uint8 and images.ndim == 4 and images.shape[1] == 3 and min(images.shape[2:]) >= 32,
        f"corruption {name}: cannot take {str(images.dtype).removeprefix('torch.')} images of shape "
        f"{tuple(images.shape)}; expected uint8 RGB (N, 3, H, W) of at least 32 pixels a side; "
        "take `data` cifar10 or folder:PATH, small images with `image_size` 32",
    )
    library = _library(name)
    originals = images.permute(0, 2, 3, 1).cpu().numpy()
    results = np.empty_like(originals)
    # The library draws from NumPy's global generator, except for two functions with a seed of their own.
    before = np.random.get_state()  # noqa: NPY002
    try:
        for index, image in enumerate(originals):
            *words, own = np.random.SeedSequence((seed, first + index)).generate_state(5)
            np.random.seed(words)  # noqa: NPY002
            options = {"seed": int(own)} if name in _TAKE_A_SEED else {}
            results[index] = library.corrupt(image, severity=severity, corruption_name=name, **options)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return torch.from_numpy(results).permute(0, 3, 1, 2).contiguous().to(images.device)


def _library(name: str) -> ModuleType:
    try:
        import imagecorruptions

        # The package imagecorruptions has the same module, but fails with NumPy 2.
        version("imagecorruptions-imaug")
    except ModuleNotFoundError as error:
        raise UserError(
            f"corruption {name}: needs the library imagecorruptions-imaug, which is not installed ({error}); "
            "install it: pip install 'safe-dnn[corruptions]'"
        ) from error
    except ImportError as error:
        raise UserError(
            f"corruption {name}: the library imagecorruptions-imaug cannot be loaded ({error}); if a graphics library "
            "is missing, take the OpenCV that needs none: pip install --force-reinstall --no-deps "
            "opencv-python-headless"
        ) from error
    return imagecorruptions


def load_corrupted(folder: str | Path, name: str, severity: int, limit: int | None = None, seed: int = 0) -> Images:
    """One corruption at one severity from the published files of CIFAR-10-C.

    Args:
        folder: holds ``NAME.npy``, uint8 (5 n, 32, 32, 3): the n = 10,000 test images of CIFAR-10 in their order, once
            for each severity from 1 to 5; and ``labels.npy``, integers (5 n,) from 0 to 9.
        name, severity: as for :func:`corrupt`.
        limit: take at most this many images, balanced over classes and drawn with ``seed``, the same for all
            corruptions and severities; None takes all.

    Raises:
        UserError: an unknown name, a severity or limit out of range, or files that are missing, unreadable or of
            another kind.
    """
    _check_request(name, severity)
    check(limit is None or limit >= 1, f"limit {limit}: at least one image is needed; give 1 or more")
    folder = Path(folder)
    check(
        folder.is_dir(),
        f"CIFAR-10-C in {folder}: there is no such folder; give the one that holds {name}.npy and labels.npy, unpacked "
        "from CIFAR-10-C.tar (https://zenodo.org/records/2535967)",
    )
    pixels, labels = _open_array(folder / f"{name}.npy"), _open_array(folder / "labels.npy")
    check(
        pixels.dtype == np.uint8
        and pixels.shape[1:] == (32, 32, 3)
        and len(pixels) > 0
        and len(pixels) % len(SEVERITIES) == 0,
        f"{folder / name}.npy holds {pixels.dtype} of shape {pixels.shape}; expected uint8 (50000, 32, 32, 3), five "
        "severities of the test images; fetch CIFAR-10-C again",
    )
    check(
        np.issubdtype(labels.dtype, np.integer) and labels.shape == pixels.shape[:1],
        f"{folder / 'labels.npy'} holds {labels.dtype} of shape {labels.shape}; expected integers of shape "
        f"{pixels.shape[:1]}, as many as {name}.npy has images; fetch CIFAR-10-C again",
    )
    lowest, highest = labels.min(), labels.max()
    check(
        lowest >= 0 and highest < len(CIFAR10_CLASSES),
        f"{folder / 'labels.npy'} holds labels from {lowest} to {highest}; expected 0 to 9; give the folder of "
        "CIFAR-10-C, not of another data set",
    )
    count = len(pixels) // len(SEVERITIES)
    part = slice((severity - 1) * count, severity * count)
    labels = np.asarray(labels[part], dtype=np.int64)
    chosen = balanced_subset(labels, limit, seed)
    # Only the chosen images of the mapped file are read.
    images = torch.from_numpy(pixels[part][chosen]).permute(0, 3, 1, 2).contiguous()
    data = DataSource(data=f"cifar10-c:{name}:{severity}", root=folder, limit_test=limit)
    return Images(images, torch.from_numpy(labels[chosen]), CIFAR10_CLASSES, data)


def _check_request(name: str, severity: float) -> None:
    check(name in CORRUPTIONS, f"corruption {name!r}: unknown; choose from {', '.join(CORRUPTIONS)}")
    check(
        isinstance(severity, int) and severity in SEVERITIES,
        f"corruption {name}: severity {severity} is out of range; give a whole number from 1 to 5",
    )


def _open_array(path: Path) -> np.ndarray:
    """The array in a .npy file, mapped and not yet read."""
    check(
        path.is_file(),
        f"{path}: there is no such file; expected one of CIFAR-10-C, unpacked from CIFAR-10-C.tar "
        "(https://zenodo.org/records/2535967)",
    )
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header ends in one of many, SyntaxError and OverflowError among them
        raise UserError(f"{path} is not a readable .npy file ({error}); fetch CIFAR-10-C again") from error
    check(isinstance(array, np.ndarray), f"{path} is an archive; expected one array; fetch CIFAR-10-C again")
    return array


@dataclass(frozen=True)
class Corruption(Condition):
    """One corruption at one severity."""

    corruption: str = ""
    """One of :data:`CORRUPTIONS`."""

    form, meaning, ranges = "NAME,SEVERITY", f"a severity of 1 to 5 and one of {', '.join(CORRUPTIONS)}", ((1, 5),)

    @classmethod
    def read(cls, text: str, level: str | None) -> Self:
        name, _, severity = (level or "").partition(",")
        condition = replace(super().read(text, severity), corruption=name)
        _check_request(name, condition.severity if condition.levels[0].is_integer() else condition.levels[0])
        return condition

    @property
    def key(self) -> str:
        return f"{self.kind}{self.corruption}{self.levels}"

    @property
    def severity(self) -> int:
        """1 to 5."""
        return int(self.levels[0])


@register_condition("corruption")
class ComputedCorruption(Corruption):
    """A corruption that is computed on the test images."""

    @property
    def draws(self) -> bool:  # type: ignore[override]
        return self.corruption not in DETERMINISTIC

    def parts(self, context: Context) -> Iterator[Perturbed]:
        first = 0
        with progress(None, str(self), "image", total=len(context.data.labels)) as bar:
            for chunk in context.data.split(CHUNK):
                images = corrupt(chunk.images, self.corruption, self.severity, context.seed, first)
                first += len(images)
                bar.update(len(images))
                yield Perturbed(images.float() / 255, chunk.labels)


@register_condition("cifar10-c")
class PublishedCorruption(Corruption):
    """A corruption from the published files of CIFAR-10-C, which bring their own images and labels."""

    draws = False
    needs_cifar10_c = True

    def parts(self, context: Context) -> Iterator[Perturbed]:
        if context.cifar10_c is None:
            raise UserError(
                f"`noise` {self} needs `cifar10_c` FOLDER, the published files; corruption:NAME,SEVERITY is computed "
                "without them"
            )
        data, limit = context.data, context.data.data_source.limit_test
        published = load_corrupted(context.cifar10_c, self.corruption, self.severity, limit, context.seed)
        check(
            data.shape == published.shape and data.classes == published.classes,
            f"`noise` {self}: the models were trained on images of shape {data.shape} and {len(data.classes)} classes; "
            "CIFAR-10-C is for models of CIFAR-10",
        )
        for chunk in published.split(CHUNK):
            yield Perturbed(chunk.images.float() / 255, chunk.labels)
