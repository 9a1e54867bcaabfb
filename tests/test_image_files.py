"""Folders of images: which files are read, in what order, what each becomes, and what is said of the rest."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from snn.data import image_shape, load_images
from snn.data_source import DataSource
from snn.runtime.errors import UserError

RAMP = np.arange(96, dtype=np.uint8).reshape(8, 12)
COLOURS = np.stack([RAMP, 2 * RAMP, 255 - RAMP], axis=2)
"""8 x 12 pixels, all different and nowhere symmetric."""


def shade(value: int) -> Image.Image:
    return Image.new("RGB", (6, 5), (value, value, value))


def make(folder: Path, names: dict[str, int]) -> Path:
    """A file of one shade at each path ``train/CLASS/...``, and a test image of every class."""
    for name, value in names.items():
        path = folder / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shade(value).save(path, "PNG")
        test = folder / "test" / Path(name).parts[0]
        test.mkdir(parents=True, exist_ok=True)
        shade(value).save(test / "0.png")
    return folder


def read(folder: Path, split: str = "train", size: int | None = None) -> tuple[list[int], list[int]]:
    """Shades and labels as they are loaded."""
    images, labels, _, _ = load_images(DataSource(f"folder:{folder}", image_size=size), split)
    return images[:, 0, 0, 0].tolist(), labels.tolist()


@pytest.fixture
def nested(tmp_path):
    """Folders in folders, whose names are sorted otherwise than their paths are."""
    names = ["b/1.png", "b/0.PNG", "b/z/0.png", "b/a/1.png", "b/a/0.png", "b/a-b/0.png", "b/a/b/c/0.png", "a/x/0.png"]
    folder = make(tmp_path / "data", {name: 10 * number for number, name in enumerate(names)})
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    shade(200).save(tmp_path / "elsewhere" / "deep" / "0.png")
    shade(201).save(tmp_path / "elsewhere" / "1.png")
    (folder / "train" / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "train" / "a" / "9.png").symlink_to(tmp_path / "elsewhere" / "1.png")
    (folder / "train" / "c").symlink_to(tmp_path / "elsewhere")
    return folder


def test_nested_folders_are_read_as_by_torchvision(nested, capsys):
    expected = ImageFolder(nested / "train")
    shades, labels = read(nested)
    assert len(shades) == 13
    assert shades == [np.asarray(image)[0, 0, 0] for image, _ in expected]
    assert labels == expected.targets
    data = load_images(DataSource(f"folder:{nested}"), "train")
    assert list(data.classes) == expected.classes
    assert image_shape(DataSource(f"folder:{nested}"), "train") == data.shape == (3, 5, 6)
    assert "not read" not in capsys.readouterr().err


def test_links_that_lead_back_end_and_are_said(tmp_path, capsys):
    folder = make(tmp_path / "data", {"a/0.png": 1, "a/x/0.png": 2, "b/0.png": 3})
    inner = folder / "train" / "a" / "x"
    (inner / "up").symlink_to("..")
    (inner / "here").symlink_to(".")
    (inner / "itself").symlink_to("itself")
    # Through this one the images of class b would become class a's.
    (inner / "all").symlink_to("../..")
    # Each folder has two links to the next one: 2^30 paths.
    for number in range(30):
        (tmp_path / f"{number}").mkdir()
        for name in "pq":
            (tmp_path / f"{number}" / name).symlink_to(tmp_path / f"{number + 1}")
    (tmp_path / "30").mkdir()
    shade(4).save(tmp_path / "30" / "0.png")
    (folder / "train" / "b" / "many").symlink_to(tmp_path / "0")
    assert read(folder) == ([1, 2, 3, 4], [0, 0, 1, 1])
    # Up, here, all, and one of each pair.
    assert "links to folders that are read already: 33" in capsys.readouterr().err


def test_what_is_skipped_is_counted_and_said(tmp_path, capsys):
    folder = make(tmp_path / "data", {"a/0.png": 1, "a/x/0.png": 2, "b/0.png": 3})
    train = folder / "train"
    for name in ("._0.png", "x/.DS_Store", "../.hidden.png"):
        (train / "a" / name).write_bytes(b"Mac OS X")
    for hidden in (train / ".git", train / "a" / ".thumbs"):
        hidden.mkdir()
        shade(9).save(hidden / "0.png")
    for name in ("notes.txt", "x/0.jpg.part"):
        (train / "a" / name).write_text("no image")
    os.mkfifo(train / "b" / "pipe.png")
    (train / "b" / "gone.png").symlink_to("nowhere.png")
    (train / "b" / "gone-too.jpg").symlink_to("nowhere.jpg")
    shade(9).save(train / "outside.png")
    assert read(folder) == ([1, 2, 3], [0, 0, 1])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: {train}: not read are ")
    assert set(line.split("not read are ")[1].split(", ")) == {
        "names that start with a dot: 5",
        "files that are no images: 3",
        "broken links: 2",
        "files outside the class folders: 1",
    }
    assert read(folder, "test") == ([2, 3], [0, 1])
    assert not capsys.readouterr().err


def test_folders_that_may_not_be_read_are_refused_by_name(tmp_path):
    folder = make(tmp_path / "data", {"a/0.png": 1, "a/x/0.png": 2, "b/0.png": 3})
    inner = folder / "train" / "a" / "x"
    inner.chmod(0)
    try:
        if os.access(inner, os.R_OK):
            pytest.skip("this user may read everything")
        with pytest.raises(UserError, match=f"cannot read the folder {inner}"):
            read(folder)
    finally:
        inner.chmod(0o700)


def test_the_home_folder_can_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make(tmp_path / "data", {"a/0.png": 1, "b/0.png": 2})
    assert read(Path("~/data")) == ([1, 2], [0, 1])


def test_classes_without_test_images_are_named(tmp_path, capsys):
    names = [f"{number:02d}/0.png" for number in range(8)]
    folder = make(tmp_path / "data", {name: 20 * number for number, name in enumerate(names)})
    assert len(read(folder)[0]) == len(read(folder, "test")[0]) == 8
    assert not capsys.readouterr().err
    for number in range(6):
        (folder / "test" / f"{number:02d}" / "0.png").unlink()
    assert read(folder, "test") == ([120, 140], [6, 7])
    words = f"warning: {folder / 'test'} holds no images of class"
    assert f"{words} 00, 01, 02, 03, 04 and 1 more" in capsys.readouterr().err
    for number in range(2):
        (folder / "test" / f"{number:02d}").rmdir()
    # Said before the training, too.
    assert len(read(folder)[0]) == 8
    assert f"{words} 00, 01: " in capsys.readouterr().err
    (folder / "train" / "03" / "0.png").unlink()
    with pytest.raises(UserError, match="holds no images of class 03"):
        read(folder)


@pytest.fixture
def load(tmp_path) -> Callable[..., np.ndarray]:
    """What one image file, which ``write`` makes, is loaded as: (3, H, W)."""

    def load(name: str, write: Callable[[Path], object], size: int | None = None) -> np.ndarray:
        for place in ("train/a", "train/b", "test/a"):
            path = tmp_path / "data" / place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path)
        images = load_images(DataSource(f"folder:{tmp_path / 'data'}", image_size=size), "train").images
        assert torch.equal(images[0], images[1])
        return images[0].numpy()

    return load


ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
"""What the stored rows and columns (height, width, ...) mean, by EXIF orientation (EXIF 2.3, section 4.6.4)."""


@pytest.mark.parametrize("orientation", ORIENTED)
@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
def test_images_are_turned_as_exif_says(load, suffix, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}.get(suffix, {})
    image = load(f"0.{suffix}", lambda path: Image.fromarray(COLOURS).save(path, exif=exif, **options))
    expected = ORIENTED[orientation](COLOURS).transpose(2, 0, 1).astype(int)
    assert image.shape == expected.shape
    assert np.abs(image - expected).max() <= (3 if suffix == "jpg" else 0)


def test_images_of_16_bits_are_turned_too(load):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = load("0.png", lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path, exif=exif))
    assert (image == ORIENTED[6](RAMP)).all()


@pytest.mark.parametrize(("suffix", "options"), [("gif", {}), ("webp", {"lossless": True}), ("tiff", {}), ("png", {})])
def test_the_first_of_several_frames_is_read_and_said(load, suffix, options, capsys):
    frames = [shade(value) for value in (40, 80, 120)]
    image = load(f"0.{suffix}", lambda path: frames[0].save(path, save_all=True, append_images=frames[1:], **options))
    assert (image == 40).all()
    assert "images of several frames, of which the first is read: 2" in capsys.readouterr().err


def png(path: Path, width: int, height: int, depth: int, kind: int, rows: bytes) -> None:
    """A PNG file of these rows, written by hand."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def colours_of_16_bits(path: Path) -> None:
    values = COLOURS.astype(">u2") * 257
    png(path, 12, 8, 16, 2, b"".join(b"\0" + row.tobytes() for row in values.astype(">u2")))


def palette(path: Path) -> None:
    image = Image.fromarray(RAMP, "P")
    image.putpalette([channel for value in range(256) for channel in (value, 2 * value % 256, 255 - value)])
    image.save(path)


def palette_with_a_transparent_entry(path: Path) -> None:
    image = Image.fromarray((RAMP % 2).astype(np.uint8), "P")
    image.putpalette([10, 20, 30, 200, 210, 220])
    image.save(path, transparency=1)


HALF = np.where(np.arange(12) < 6, 255, 102).astype(np.uint8) * np.ones((8, 1), np.uint8)
"""Opacity: all, and two fifths."""


@pytest.mark.parametrize(
    ("name", "write", "expected"),
    [
        ("0.png", lambda path: Image.fromarray(RAMP).save(path), RAMP[..., None]),
        ("0.png", lambda path: Image.fromarray(RAMP > 40).save(path), 255 * (RAMP > 40)[..., None]),
        ("0.png", palette, COLOURS),
        ("0.png", palette_with_a_transparent_entry, (RAMP % 2 == 0)[..., None] * np.array([10, 20, 30])),
        ("0.png", colours_of_16_bits, COLOURS),
        ("0.png", lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path), RAMP[..., None]),
        ("0.tif", lambda path: Image.fromarray(RAMP.astype(">u2") * 257).save(path), RAMP[..., None]),
        (
            "0.png",
            lambda path: Image.fromarray(np.dstack([COLOURS, HALF])).save(path),
            COLOURS * (HALF[..., None] / 255),
        ),
        ("0.png", lambda path: Image.fromarray(np.dstack([RAMP, HALF])).save(path), (RAMP * (HALF / 255))[..., None]),
        (
            "0.tif",
            lambda path: Image.fromarray(np.dstack([COLOURS, HALF]), "CMYK").save(path),
            (255 - COLOURS) * ((255 - HALF[..., None]) / 255),
        ),
        ("0.bmp", lambda path: Image.fromarray(COLOURS).save(path), COLOURS),
        ("0.ppm", lambda path: Image.fromarray(COLOURS).save(path), COLOURS),
        ("0.pgm", lambda path: Image.fromarray(RAMP.astype(np.uint16) * 257).save(path), RAMP[..., None]),
        ("0.png", lambda path: Image.new("RGB", (12, 8), (7, 7, 7)).save(path), np.full((8, 12, 1), 7)),
    ],
    ids=[
        *("grey", "two colours", "palette", "transparent palette", "RGB of 16 bits", "grey of 16 bits"),
        *("big-endian grey of 16 bits", "RGBA", "grey and alpha", "CMYK", "BMP", "PPM", "PGM of 16 bits", "constant"),
    ],
)
def test_every_kind_of_image_becomes_the_right_rgb(load, name, write, expected):
    image = load(name, write).transpose(1, 2, 0)
    assert image.shape == (8, 12, 3)
    # Transparency and CMYK are rounded.
    assert np.abs(image - expected).max() <= (1 if expected.dtype == float else 0)


def truncated(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:1000])


@pytest.mark.parametrize(
    ("name", "write", "reason"),
    [
        ("0.png", truncated, "truncated"),
        ("0.jpg", truncated, "truncated"),
        ("0.png", lambda path: png(path, 60_000, 60_000, 1, 0, b""), "decompression bomb"),
        ("0.png", lambda path: png(path, 10_000, 9_000, 1, 0, b""), "more than 89 million pixels"),
        ("0.png", lambda path: path.write_bytes(b""), "cannot identify"),
        ("0.tif", lambda path: Image.fromarray(RAMP.astype(np.float32)).save(path), "mode F"),
        ("0.tif", lambda path: Image.fromarray(RAMP.astype(np.int32)).save(path), "mode I"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(load, name, write, reason):
    with pytest.raises(UserError, match=rf"train/a/{name} is not a readable image \(.*{reason}"):
        load(name, write)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 2), (3, 8), (8, 3)])
def test_tiny_images_are_refused_by_their_own_size(load, width, height):
    def write(path: Path) -> None:
        Image.new("RGB", (width, height), (9, 9, 9)).save(path)

    with pytest.raises(UserError, match=rf"0\.png is {width}x{height} pixels.*at least 4 pixels.*`image_size`"):
        load("0.png", write)
    assert (load("0.png", write, size=4) == np.full((3, 4, 4), 9)).all()


def test_more_images_than_memory_holds_are_refused(load, monkeypatch):
    monkeypatch.setattr("snn.runtime.memory.memory", lambda: 179)
    with pytest.raises(UserError, match=r"2 images of 6x5 pixels would take .* GiB.*lower `image_size`"):
        load("0.png", lambda path: shade(1).save(path))
