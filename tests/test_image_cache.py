"""The cache of decoded images: same bits as without it, made anew after any change, and never in the way."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from snn.data import Images, load_images
from snn.data_source import DataSource
from snn.decoded import known_digest
from snn.image_cache import user_folder
from snn.runtime.errors import UserError
from snn.runtime.locks import turn
from snn.storage import images_digest

SIDE = 1000
"""Of six BMP files with so many pixels a side, three are already too many bytes to be decoded every time."""


def bitmap(path: Path, seed: int, side: int = SIDE) -> None:
    """A file of random pixels, which is not compressed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path) -> Path:
    """Six photographs in train/a and train/b, more of them than are decoded every time, and two small ones in test."""
    for number in range(6):
        bitmap(tmp_path / "photos" / "train" / "ab"[number % 2] / f"{number}.bmp", number, SIDE + 200)
    for name in "ab":
        bitmap(tmp_path / "photos" / "test" / name / "0.bmp", 9, 40)
    return tmp_path / "photos"


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def load(folder: Path, cache: Path | str = "none", size: int | None = 8, **options) -> Images:
    return load_images(DataSource(f"folder:{folder}", image_size=size), "train", cache=cache, **options)


def same(one: Images, other: Images) -> bool:
    images = torch.equal(one.images, other.images) and one.images.dtype == other.images.dtype == torch.uint8
    return images and torch.equal(one.labels, other.labels) and one[2:] == other[2:]


def spoil(folder: Path) -> None:
    """Replace all images by what cannot be read, of the same sizes and times: whoever opens one is found out."""
    for file in folder.rglob("*.*"):
        status = file.stat()
        file.write_bytes(b"x" * status.st_size)
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def files(cache: Path) -> list[Path]:
    """All that lies in the folder of the cache, hidden files too."""
    return sorted(cache.iterdir()) if cache.is_dir() else []


def file(cache: Path) -> Path:
    """The only file that lies there."""
    (only,) = files(cache)
    return only


@pytest.mark.parametrize("size", [None, 8])
def test_cached_images_have_the_bits_of_decoded_ones_and_are_not_decoded_again(photos, cache, size):
    plain = load(photos, size=size)
    assert same(load(photos, cache, size), plain)
    assert plain.images.shape == (6, 3, *(2 * (size or SIDE + 200,)))
    spoil(photos)
    again = load(photos, cache, size)
    assert same(again, plain)
    assert known_digest(plain.images) is None
    assert known_digest(again.images) == images_digest(plain.images) == images_digest(again.images)
    with pytest.raises(UserError, match="not a readable image"):
        load(photos, size=size)
    # Mini-batches are taken from them as from any others.
    rows = torch.tensor([4, 0, 4])
    assert torch.equal(again.images[rows], plain.images[rows])
    assert again.shape == plain.shape


def test_many_small_images_are_kept_and_few_are_not(tmp_path, image_folder, cache):
    load(image_folder, cache)
    assert files(cache) == []
    shade = tmp_path / "0.png"
    Image.new("RGB", (4, 4), (7, 8, 9)).save(shade)
    for name in ("many/train/a", "many/train/b", "many/test/a"):
        (tmp_path / name).mkdir(parents=True)
        for number in range(500):
            shutil.copy2(shade, tmp_path / name / f"{number}.png")
    assert load(tmp_path / "many", cache, None).images.flatten(2).unique(dim=2).flatten(1).unique(dim=0).tolist() == [
        [7, 8, 9]
    ]
    assert len(files(cache)) == 1
    # Few, and small as files, but large once they are decoded.
    for number in range(2):
        path = tmp_path / "flat" / "ab"[number] / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("L", (3400, 3400), number).save(path)
    flat = load_images(f"folder:{tmp_path / 'flat'}", "test", cache=cache)
    assert flat.images.shape == (2, 3, 3400, 3400)
    assert len(files(cache)) == 2
    assert known_digest(flat.images)


def touch(photos: Path) -> None:
    status = (photos / "train" / "a" / "0.bmp").stat()
    bitmap(photos / "train" / "a" / "0.bmp", 77, SIDE + 200)
    os.utime(photos / "train" / "a" / "0.bmp", ns=(status.st_atime_ns, status.st_mtime_ns + 1000))


def resize(photos: Path) -> None:
    status = (photos / "train" / "a" / "0.bmp").stat()
    bitmap(photos / "train" / "a" / "0.bmp", 77, SIDE + 201)
    os.utime(photos / "train" / "a" / "0.bmp", ns=(status.st_atime_ns, status.st_mtime_ns))


CHANGES = {
    "touched": touch,
    "of another size": resize,
    "renamed": lambda photos: (photos / "train" / "a" / "0.bmp").rename(photos / "train" / "a" / "3.bmp"),
    "moved to another class": lambda photos: (photos / "train/a/0.bmp").rename(photos / "train/b/0.bmp"),
    "removed": lambda photos: (photos / "train" / "a" / "0.bmp").unlink(),
    "added": lambda photos: bitmap(photos / "train" / "a" / "1.bmp", 8, SIDE),
    "exchanged": lambda photos: [
        (photos / "train/a" / old).rename(photos / "train/a" / new)
        for old, new in (("0.bmp", "x"), ("2.bmp", "0.bmp"), ("x", "2.bmp"))
    ],
    "linked elsewhere": lambda photos: [
        (photos / "train/a/0.bmp").unlink(),
        (photos / "train/a/0.bmp").symlink_to(photos / "test/a/0.bmp"),
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_after_any_change_of_a_file_the_cache_is_made_anew(photos, cache, change):
    before = load(photos, cache)
    first, held = file(cache).stat().st_ino, before.images.clone()
    CHANGES[change](photos)
    after = load(photos, cache)
    assert same(after, load(photos))
    assert not same(after, before)
    # In place of the older one, which is not written to: who has mapped it keeps what it held.
    assert file(cache).stat().st_ino != first
    assert torch.equal(before.images, held)
    spoil(photos)
    assert same(load(photos, cache), after)


def test_files_of_one_size_and_time_are_told_apart_by_their_names(photos, cache):
    for path in (photos / "train").rglob("*.bmp"):
        os.utime(path, ns=(10**18, 10**18))
    before = load(photos, cache)
    (photos / "train" / "a" / "0.bmp").rename(photos / "train" / "a" / "3.bmp")
    after = load(photos, cache)
    assert same(after, load(photos))
    assert not same(after, before)


def test_several_sizes_and_splits_are_kept_beside_each_other(photos, cache):
    sizes = {size: load(photos, cache, size).images.clone() for size in (8, 16, None)}
    assert len(files(cache)) == 3
    spoil(photos / "train")
    for size, images in sizes.items():
        assert torch.equal(load(photos, cache, size).images, images)
    assert len(load_images(DataSource(f"folder:{photos}"), "test", cache=cache).images) == 2
    assert len(files(cache)) == 3


def test_a_folder_that_moves_or_is_named_otherwise_keeps_its_meaning(photos, cache, monkeypatch):
    before = load(photos, cache)
    monkeypatch.chdir(photos.parent)
    spoil(photos)
    assert torch.equal(load(Path("photos"), cache).images, before.images)
    (photos.parent / "link").symlink_to(photos)
    assert torch.equal(load(photos.parent / "link", cache).images, before.images)
    photos.rename("elsewhere")
    with pytest.raises(UserError, match="not a readable image"):
        load(Path("elsewhere"), cache)


def test_images_without_labels_have_a_cache_of_each_part(tmp_path, cache):
    for number in range(12):
        bitmap(tmp_path / "photos" / f"{number:02d}.bmp", number)
    source = DataSource(f"folder:{tmp_path / 'photos'}", image_size=8)
    plain = {split: load_images(source, split, labels=False) for split in ("train", "test")}
    for _ in range(2):
        for split in ("train", "test"):
            assert same(load_images(source, split, labels=False, cache=cache), plain[split])
        spoil(tmp_path / "photos" / "train")
    # The single test image is not worth one.
    assert len(files(cache)) == 1


def test_a_limit_takes_from_the_cache_of_all_and_else_decodes_no_more_than_it_needs(photos, cache):
    plain = {seed: load(photos, limit=2, seed=seed) for seed in range(4)}
    assert len({tuple(images.images[:, 0, 0, 0].tolist()) for images in plain.values()}) > 1
    contents = {path: path.read_bytes() for path in (photos / "train").rglob("*.bmp")}
    for path, content in contents.items():
        path.write_bytes(b"x")
        refused = [refuses(photos, where, limit=2, seed=0) for where in ("none", cache)]
        assert refused[0] == refused[1]
        path.write_bytes(content)
    assert files(cache) == []
    load(photos, cache)
    spoil(photos)
    for seed, images in plain.items():
        assert same(load(photos, cache, limit=2, seed=seed), images)
    assert len(files(cache)) == 1


@pytest.mark.parametrize("first", ["all", "part"])
def test_a_part_is_taken_from_the_cache_of_all_or_has_its_own(photos, cache, first):
    plain = {seed: load(photos, limit=5, seed=seed) for seed in range(6)}
    other = next(seed for seed in plain if not torch.equal(plain[seed].images, plain[0].images))
    if first == "all":
        load(photos, cache)
        spoil(photos)
    part = load(photos, cache, limit=5, seed=0)
    assert same(part, plain[0])
    # What is soon read from the cache of all lies in memory.
    assert known_digest(part.images) == (None if first == "all" else images_digest(plain[0].images))
    assert same(load(photos, cache, limit=5, seed=other), plain[other])
    # The last one only.
    assert len(files(cache)) == 1
    spoil(photos)
    assert same(load(photos, cache, limit=5, seed=other), plain[other])
    if first == "part":
        with pytest.raises(UserError, match="not a readable image"):
            load(photos, cache, limit=5, seed=0)


@pytest.fixture
def kept(photos, cache) -> Path:
    """The file of a cache without which the images can no longer be had: damaged, it must not be taken."""
    load(photos, cache)
    spoil(photos)
    return file(cache)


def refuses(photos: Path, cache: Path | str, **options) -> bool:
    """Whether images are decoded, which is why they cannot be loaded."""
    try:
        load(photos, cache, **options)
    except UserError as error:
        return "not a readable image" in str(error)
    return False


def test_a_file_of_another_length_is_not_taken(photos, cache, kept):
    whole = kept.read_bytes()
    for length in (0, 1, 16, 100, 143, 144, 175, 176, 4095, 4096, len(whole) // 2, len(whole) - 1):
        kept.write_bytes(whole[:length])
        assert refuses(photos, cache), length
    for added in (b"x", b"\0" * 8, whole):
        kept.write_bytes(whole + added)
        assert refuses(photos, cache), added[:9]
    kept.write_bytes(whole)
    assert not refuses(photos, cache)


def test_a_file_with_a_damaged_header_is_not_taken(photos, cache, kept):
    whole = kept.read_bytes()
    used = [place for place in range(4096) if whole[place]]
    assert len(used) > 80
    for place in used:
        for value in (whole[place] ^ 1, whole[place] ^ 128, 255 - whole[place]):
            kept.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            assert refuses(photos, cache), (place, value)
    for start in range(0, 128, 8):
        kept.write_bytes(whole[:start] + b"\xff" * 8 + whole[start + 8 :])
        assert refuses(photos, cache), start
    kept.write_bytes(whole)
    assert not refuses(photos, cache)


@pytest.mark.parametrize("content", [b"", b"not a cache", b"[" * 5000, bytes(5000), os.urandom(100_000)])
def test_a_foreign_file_is_replaced(photos, cache, content):
    plain = load(photos, cache).images.clone()
    file(cache).write_bytes(content)
    assert torch.equal(load(photos, cache).images, plain)
    spoil(photos)
    assert torch.equal(load(photos, cache).images, plain)


def test_what_is_no_regular_file_is_no_cache(photos, cache, capsys):
    plain = load(photos, cache).images.clone()
    path = file(cache)
    for make in (os.mkfifo, lambda path: path.symlink_to("nowhere"), lambda path: path.symlink_to(path.name)):
        path.unlink()
        make(path)
        assert torch.equal(load(photos, cache).images, plain)
        assert path.is_file()
    assert not capsys.readouterr().err
    path.unlink()
    path.mkdir()
    assert torch.equal(load(photos, cache).images, plain)
    assert f"decoded images are not kept in {cache} (Is a directory)" in capsys.readouterr().err
    assert files(cache) == [path]


def test_what_dead_processes_have_left_is_removed(photos, cache):
    cache.mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    (cache / f".{'01' * 10}.lock").write_text("process 1 on nowhere")
    (cache / f".{'01' * 10}.{platform.node()}.{ended.pid}.images").write_bytes(b"half")
    (cache / f".{'01' * 10}.{platform.node()}.{os.getpid()}.images").write_bytes(b"another thread's")
    with turn(cache / f".{'45' * 10}.lock", print):
        load(photos, cache)
        left = {path.name for path in files(cache) if path.name.startswith(".")}
        assert left == {f".{'45' * 10}.lock", f".{'01' * 10}.{platform.node()}.{os.getpid()}.images"}


def test_the_cache_of_another_set_is_not_taken(photos, cache, tmp_path):
    first = load(photos, cache)
    shutil.copytree(photos, tmp_path / "other")
    bitmap(tmp_path / "other" / "train" / "a" / "0.bmp", 50, SIDE + 200)
    other = load(tmp_path / "other", cache)
    one, two = files(cache)
    content = one.read_bytes(), two.read_bytes()
    for path, swapped in zip((one, two), reversed(content), strict=True):
        path.unlink()
        path.write_bytes(swapped)
    assert same(load(photos, cache), first)
    assert same(load(tmp_path / "other", cache), other)


def test_what_is_said_of_a_folder_is_said_every_time(photos, cache, capsys):
    frames = [Image.new("RGB", (9, 9), (value, 0, 0)) for value in (40, 80)]
    frames[0].save(photos / "train" / "a" / "1.gif", save_all=True, append_images=frames[1:])
    frames[0].save(photos / "train" / "b" / "9.gif", save_all=True, append_images=frames[1:])
    (photos / "train" / "a" / "notes.txt").write_text("no image")
    shutil.rmtree(photos / "test" / "b")
    said = []
    for where in ("none", cache, cache):
        load(photos, where)
        said.append(capsys.readouterr().err)
    assert len(said[0].splitlines()) == 3
    assert "images of several frames, of which the first is read: 2" in said[0]
    assert said[0] == said[1] == said[2]
    # Of a part of them only those in it.
    for seed in range(12):
        for where in ("none", cache):
            load(photos, where, limit=2, seed=seed)
            said.append(capsys.readouterr().err)
        assert said[-1] == said[-2]
    assert len(set(said)) > 2


def test_errors_come_every_time_and_leave_nothing(photos, cache):
    bitmap(photos / "train" / "b" / "9.bmp", 1, 30)
    for _ in range(2):
        with pytest.raises(UserError, match=r"9\.bmp is 30x30 pixels, .* is 1200x1200"):
            load(photos, cache, None)
        assert files(cache) == []
    (photos / "train" / "b" / "9.bmp").write_bytes(b"not an image")
    for _ in range(2):
        with pytest.raises(UserError, match=r"9\.bmp is not a readable image"):
            load(photos, cache)
        assert files(cache) == []
    Image.new("L", (3, 3)).save(photos / "train" / "a" / "0.bmp")
    with pytest.raises(UserError, match="at least 4 pixels"):
        load(photos, cache, None)
    assert files(cache) == []


def test_mapped_images_may_be_larger_than_the_memory(photos, cache, monkeypatch):
    plain = load(photos)
    monkeypatch.setattr("snn.runtime.memory.memory", lambda: plain.images.nbytes - 1)
    for _ in range(2):
        assert same(load(photos, cache), plain)
    with pytest.raises(UserError, match=r"6 images of 8x8 pixels would take .* or give a `cache`"):
        load(photos)


def test_a_cache_is_not_written_among_the_images(photos, monkeypatch):
    with pytest.raises(UserError, match=r"`cache` .*photos/train/cache: it lies in .*photos, whose images are read"):
        load(photos, photos / "train" / "cache")
    # Where all of a home is read, the cache may lie in it: nothing is kept then.
    monkeypatch.setenv("XDG_CACHE_HOME", str(photos / "test" / "a"))
    load(photos, "auto")
    assert sorted(path.name for path in (photos / "test" / "a").iterdir()) == ["0.bmp"]


def test_the_users_cache_folder_is_where_its_system_has_it(monkeypatch, photos, tmp_path):
    platformdirs = pytest.importorskip("platformdirs")
    for system, kind in (("linux", "unix.Unix"), ("darwin", "macos.MacOS")):
        module, name = kind.split(".")
        place = getattr(__import__(f"platformdirs.{module}", fromlist=[name]), name)
        monkeypatch.setattr(sys, "platform", system)
        for value in (str(tmp_path / "x"), "", "relative/x"):
            monkeypatch.setenv("XDG_CACHE_HOME", value)
            monkeypatch.setenv("HOME", str(tmp_path / "home"))
            assert user_folder() == Path(place("safe-dnn", appauthor=False).user_cache_dir), (system, value)
    assert platformdirs
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "users"))
    load(photos, "auto")
    assert len(files(tmp_path / "users" / "safe-dnn")) == 1
    # It may hold what others may not see.
    assert (tmp_path / "users" / "safe-dnn").stat().st_mode & 0o77 == 0


LOAD = """
import resource, sys
from snn.data import load_images
from snn.data_source import DataSource
from snn.storage import images_digest
folder, cache, limit = sys.argv[1:]
if limit != "0":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
source = DataSource(f"folder:{folder}", image_size=8)
print(*(images_digest(load_images(source, split, cache=cache).images) for split in ("train", "test")))
"""


def start(folder: Path, cache: Path, limit: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-c", LOAD, str(folder), str(cache), str(limit)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def digests(folder: Path) -> str:
    source = DataSource(f"folder:{folder}", image_size=8)
    return " ".join(images_digest(load_images(source, split).images) for split in ("train", "test")) + "\n"


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_said_once_and_the_images_are_there(photos, tmp_path):
    shutil.rmtree(photos / "test")
    shutil.copytree(photos / "train", photos / "test")
    (tmp_path / "file").write_text("no folder")
    process = start(photos, tmp_path / "file" / "x")
    out, error = process.communicate()
    (line,) = error.splitlines()
    assert (process.returncode, out) == (0, digests(photos))
    assert line.startswith(f"warning: decoded images are not kept in {tmp_path}/file/x (Not a directory): give another")
    assert (tmp_path / "file").read_text() == "no folder"


@pytest.mark.slow
def test_a_disk_that_is_full_is_said_once_and_leaves_nothing(photos, cache):
    shutil.rmtree(photos / "test")
    shutil.copytree(photos / "train", photos / "test")
    process = start(photos, cache, 5000)
    out, error = process.communicate()
    (line,) = error.splitlines()
    assert (process.returncode, out) == (0, digests(photos))
    assert line.startswith(f"warning: decoded images are not kept in {cache} (File too large)")
    assert files(cache) == []


LITTLE_MEMORY = """
import re, resource, sys
from pathlib import Path
from snn.data import load_images
used = int(re.search(r"VmData:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 96 * 2**20,) * 2)
for cache in ("none", sys.argv[2], sys.argv[2]):
    try:
        images = load_images(f"folder:{sys.argv[1]}", "train", cache=cache).images
        print(len(images), images.nbytes, images[7].min().item(), images[7].max().item())
    except MemoryError:
        print("MemoryError")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_images_that_do_not_fit_into_the_memory_are_decoded_into_the_cache(tmp_path, cache):
    for number in range(24):
        for split in ("train", "test"):
            path = tmp_path / "photos" / split / "ab"[number // 12] / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (1600, 1600), number).save(path)
    command = [sys.executable, "-c", LITTLE_MEMORY, str(tmp_path / "photos"), str(cache)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines == ["MemoryError", *2 * [f"24 {24 * 3 * 1600**2} 7 7"]]


def many(folder: Path) -> Path:
    """3,000 images of 80 pixels a side: a second or two to decode."""
    bitmap(folder / "train" / "a" / "0000.jpg", 1, 80)
    bitmap(folder / "train" / "b" / "0000.jpg", 2, 80)
    for name in "ab":
        bitmap(folder / "test" / name / "0000.jpg", 3, 80)
        for number in range(1, 1500):
            shutil.copy2(folder / "train" / name / "0000.jpg", folder / "train" / name / f"{number:04d}.jpg")
    return folder


@pytest.mark.slow
def test_a_killed_writer_leaves_a_cache_to_the_one_that_waits(tmp_path, cache):
    folder = many(tmp_path / "many")
    first = start(folder, cache)
    while not any(path.suffix == ".images" for path in files(cache)):
        assert first.poll() is None
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    second = start(folder, cache)
    assert second.stderr
    line = second.stderr.readline()
    assert line.startswith(f"warning: waiting for process {first.pid} on ")
    time.sleep(0.5)
    assert second.poll() is None
    first.kill()
    first.communicate()
    out, error = second.communicate()
    assert (second.returncode, out, error) == (0, digests(folder), "")
    # Nothing of the first is left.
    assert file(cache).suffix == ".images"
    assert not file(cache).name.startswith(".")


@pytest.mark.slow
def test_processes_that_start_at_once_have_the_same_images_and_one_file(tmp_path, cache):
    folder = many(tmp_path / "many")
    processes = [start(folder, cache) for _ in range(2)]
    assert {process.communicate()[0] for process in processes} == {digests(folder)}
    assert [process.returncode for process in processes] == [0, 0]
    assert not file(cache).name.startswith(".")


def test_images_that_compress_well_are_kept_too(tmp_path):
    folder = tmp_path / "photos"
    for number in range(12):
        path = folder / ("train" if number % 3 else "test") / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (3000, 1800), number).save(path)
    source = DataSource(f"folder:{folder}", image_size=8)
    assert sum(path.stat().st_size for path in folder.rglob("*.png")) < 2**20
    first = load_images(source, "train", cache=tmp_path / "cache")
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".images"]
    again = load_images(source, "train", cache=tmp_path / "cache")
    assert known_digest(again.images)
    assert torch.equal(first.images, again.images)


def test_files_of_other_programs_in_the_folder_are_left_alone(tmp_path):
    others = [".other-program.lock", f".foo.{platform.node()}.999999.txt", "notes.txt"]
    own = [f".{'0' * 20}.lock", f".{'a' * 20}.{platform.node()}.999999.images"]
    cache = tmp_path / "cache"
    cache.mkdir()
    for name in (*others, *own):
        (cache / name).touch()
    folder = tmp_path / "photos" / "train" / "a"
    folder.mkdir(parents=True)
    for number in range(1200):
        Image.new("L", (4, 4), number % 256).save(folder / f"{number:04d}.bmp")
    load_images(f"folder:{tmp_path / 'photos'}", "train", labels=False, cache=cache)
    left = {path.name for path in cache.iterdir()}
    assert left >= set(others)
    assert not left & set(own)
    assert any(name.endswith(".images") for name in left)
