"""Damaged images: each is read as an image of some content, or refused in one line; there is no digest to find more."""

import io
import resource
import time

import numpy as np
import pytest
from faults.files import damaged
from PIL import Image

from snn.image_files import read_image
from snn.runtime.errors import UserError

SIZES = [(40, 32), (5, 4), (300, 7)]
"""Widths and heights."""
TURNED = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
"""Orientation 6."""
KINDS = {
    "0.jpg": [
        {"quality": 90},
        {"progressive": True, "exif": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06"},
    ],
    "0.png": [{}, {"optimize": True}],
    "0.bmp": [{}],
    "0.gif": [{}],
    "0.ppm": [{}],
    "0.tif": [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_deflate"}, {"compression": "jpeg"}],
    "0.webp": [{}, {"lossless": True}],
}
"""Options of writers, by the name of the file."""
MODES = ("RGB", "L", "P", "CMYK", "RGBA", "LA", "1", "I;16")
LONGEST = 20.0
"""Seconds that one image takes at most."""
MOST = 2 * 2**20
"""Memory that all of them together may add, in KiB."""


def whole_images() -> list[tuple[str, bytes]]:
    """Name and content of images of all kinds, modes and sizes that their formats can hold."""
    random, images = np.random.default_rng(0), []
    for name, writers in KINDS.items():
        for options in writers:
            for mode in MODES:
                for width, height in SIZES:
                    if mode == "I;16":
                        image = Image.fromarray(random.integers(0, 2**16, (height, width)).astype(np.uint16))
                    else:
                        image = Image.fromarray(random.integers(0, 256, (height, width, 3), np.uint8)).convert(mode)
                    content = io.BytesIO()
                    try:
                        image.save(content, Image.registered_extensions()[name[1:]], **options)
                    except (OSError, ValueError, KeyError):
                        # A format has not all modes.
                        continue
                    images.append((name, content.getvalue()))
    return images


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.long)])
def test_damaged_images_are_read_or_refused_by_name(count, tmp_path):
    random, images, refused = np.random.default_rng(3), whole_images(), 0
    assert len(images) > 100
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(count):
        name, content = images[number % len(images)]
        path = tmp_path / name
        path.write_bytes(damaged(content, random))
        message, start = "", time.monotonic()
        try:
            image = read_image(path, (None, 16)[number % 2])
            assert image.dtype == np.uint8
            assert image.ndim == len(image) == 3
        except UserError as error:
            message = str(error)
        assert not message or (str(path) in message and "\n" not in message)
        refused += bool(message)
        assert time.monotonic() - start < LONGEST
    assert count / 10 < refused < count
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MOST


def test_whole_images_are_read(tmp_path):
    for name, content in whole_images():
        (tmp_path / name).write_bytes(content)
        assert read_image(tmp_path / name, None).shape[0] == 3
