"""Photographs of any size and mode: what the network is given of them, and its answers, against Pillow and softmax."""

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

import hybrid
from hybrid.classify import MOST_ROWS, main
from hybrid.conditions import Noise
from hybrid.evaluation import predict
from hybrid.figures import draw_answers
from hybrid.network import Normalise
from snn.data import load_images
from snn.runtime.errors import UserError

ROOT = Path(__file__).parent.parent
SAFE = "pretrained:safe-cifar10"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@pytest.fixture(scope="module")
def safe() -> hybrid.TrainedModel:
    return hybrid.load(SAFE)


def scene(width: int, height: int, seed: int = 3) -> Image.Image:
    """Smooth colours, nowhere symmetric."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    scene(96, 48).save(path)
    return path


def as_input(image: Image.Image) -> Tensor:
    """RGB pixels of an image of the network's size, float32 (1, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image).transpose(2, 0, 1)[None] / np.float32(255))


def expect(answer: hybrid.Answer, given: Tensor, model: hybrid.TrainedModel) -> None:
    """The answer is the softmax of the model's logits, in falling order."""
    assert answer.given is not None
    torch.testing.assert_close(answer.given[None], given, rtol=0, atol=1e-7)
    logits = model(given)[0].tolist()
    exponentials = [math.exp(value - max(logits)) for value in logits]
    shares = sorted(((e / sum(exponentials), -n) for n, e in enumerate(exponentials)), reverse=True)
    expected = shares[: len(answer.classes)]
    assert answer.classes == tuple(model.spec.classes[-n] for _, n in expected)
    assert answer.probabilities == pytest.approx([share for share, _ in expected], rel=1e-4)


@pytest.mark.parametrize(
    ("width", "height"), [(96, 32), (32, 64), (320, 160), (32, 32), (640, 640), (8, 8), (16, 20), (4, 1)]
)
def test_the_shorter_side_is_resized_and_the_middle_is_cut_out(safe, tmp_path, width, height):
    image = scene(width, height)
    image.save(tmp_path / "x.png")
    share = 32 / min(width, height)
    wide, high = round(width * share), round(height * share)
    resized = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (wide - 32) // 2, (high - 32) // 2
    (answer,) = hybrid.classify(safe, tmp_path / "x.png", top=10)
    expect(answer, as_input(resized.crop((left, top, left + 32, top + 32))), safe)
    assert answer.image == str(tmp_path / "x.png")
    assert answer.condition == "clean"
    assert len(answer.classes) == len(set(answer.classes)) == 10
    assert sum(answer.probabilities) == pytest.approx(1)


def test_padding_keeps_all_of_the_photograph_and_squashing_distorts_it(safe, tmp_path):
    image = scene(128, 64)
    image.save(tmp_path / "x.png")
    padded = Image.new("RGB", (32, 32))
    padded.paste(image.resize((32, 16), Image.Resampling.BILINEAR), (0, 8))
    expect(hybrid.classify(safe, tmp_path / "x.png", fit="pad")[0], as_input(padded), safe)
    squashed = image.resize((32, 32), Image.Resampling.BILINEAR)
    expect(hybrid.classify(safe, tmp_path / "x.png", fit="squash")[0], as_input(squashed), safe)


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
@pytest.mark.parametrize("size", [(3000, 1), (1, 3000), (1, 1)])
def test_the_narrowest_photographs_are_classified(safe, tmp_path, size, fit):
    Image.new("RGB", size, (255, 0, 128)).save(tmp_path / "x.png")
    (answer,) = hybrid.classify(safe, tmp_path / "x.png", fit=fit)
    centre = answer.given[:, 15:17, 15:17]
    assert (centre == torch.tensor([1, 0, 128 / 255]).reshape(3, 1, 1)).any(2).any(1).all()


GREY = np.arange(1024, dtype=np.uint16).reshape(32, 32)
SCENE = scene(32, 32)
OPACITY = Image.fromarray((GREY // 4).astype(np.uint8))


def on_black(image: Image.Image, opacity: Image.Image) -> np.ndarray:
    shares = np.asarray(opacity)[..., None] / 255
    return np.rint(np.asarray(image) * shares)


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("grey.png", OPACITY, np.stack([GREY // 4] * 3, 2)),
        ("bits.png", OPACITY.point(lambda v: 255 * (v > 99), "1"), np.stack([255 * (GREY // 4 > 99)] * 3, 2)),
        ("16bit.png", Image.fromarray(GREY * 64), np.stack([np.rint(GREY * 64 / 257)] * 3, 2)),
        ("16bit.tif", Image.fromarray(GREY * 64), np.stack([np.rint(GREY * 64 / 257)] * 3, 2)),
        ("palette.gif", SCENE.quantize(16), np.asarray(SCENE.quantize(16).convert("RGB"))),
        ("cmyk.tif", SCENE.convert("CMYK"), np.asarray(SCENE)),
        ("cmyk.jpg", SCENE.convert("CMYK"), np.asarray(SCENE)),
        ("transparent.png", Image.merge("RGBA", [*SCENE.split(), OPACITY]), on_black(SCENE, OPACITY)),
        ("transparent.webp", Image.merge("RGBA", [*SCENE.split(), OPACITY]), on_black(SCENE, OPACITY)),
        ("grey-alpha.png", Image.merge("LA", [SCENE.split()[0], OPACITY]), on_black(SCENE, OPACITY)[..., :1]),
        ("photo.JPG", SCENE, np.asarray(SCENE)),
        ("photo.webp", SCENE, np.asarray(SCENE)),
    ],
)
def test_every_mode_becomes_rgb(safe, tmp_path, name, image, expected):
    path = tmp_path / name
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {"quality": 100, "subsampling": 0}
    image.save(path, **options if name.lower().endswith(("jpg", "webp")) else {})
    (answer,) = hybrid.classify(safe, path)
    # JPEG is lossy, and black is rounded under a transparent part.
    tolerance = 6 if path.suffix.lower() == ".jpg" else 1 if "alpha" in name or "transparent" in name else 0
    np.testing.assert_allclose(255 * answer.given.permute(1, 2, 0), expected + np.zeros(3), atol=tolerance + 1e-4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_before_the_cut(safe, tmp_path, orientation):
    upright = scene(64, 32)
    # As a camera stores it that is held in this way.
    turns: dict[int, Callable[[Image.Image], Image.Image]] = {
        1: lambda image: image,
        2: ImageOps.mirror,
        3: lambda image: image.rotate(180),
        4: ImageOps.flip,
        5: lambda image: ImageOps.mirror(image.rotate(270, expand=True)),
        6: lambda image: image.rotate(90, expand=True),
        7: lambda image: ImageOps.mirror(image.rotate(90, expand=True)),
        8: lambda image: image.rotate(270, expand=True),
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    turns[orientation](upright).save(tmp_path / "x.png", exif=exif)
    (answer,) = hybrid.classify(safe, tmp_path / "x.png")
    torch.testing.assert_close(answer.given[None], as_input(upright.crop((16, 0, 48, 32))), rtol=0, atol=1e-7)


def test_a_grey_network_takes_grey_and_coloured_photographs(pipeline, tmp_path):
    model = hybrid.load(pipeline.safe)
    digits = load_images("digits", "test", limit=3).images
    for number, digit in enumerate(digits):
        Image.fromarray(digit[0].numpy()).save(tmp_path / f"{number}.png")
    answers = hybrid.classify(model, [tmp_path / f"{number}.png" for number in range(3)])
    for answer, digit in zip(answers, digits, strict=True):
        expect(answer, digit[None] / 255, model)
    Image.new("RGB", (20, 20), (200, 100, 50)).save(tmp_path / "colour.png")
    (answer,) = hybrid.classify(model, tmp_path / "colour.png")
    # The luma of ITU-R 601.
    assert 255 * answer.given.unique().item() == pytest.approx(round(0.299 * 200 + 0.587 * 100 + 0.114 * 50), abs=1e-4)


def test_arrays_are_taken_as_they_are_and_numbered(safe):
    pixels = torch.stack([torch.from_numpy(np.array(scene(32, 32, seed))).permute(2, 0, 1) for seed in (1, 2)])
    answers = hybrid.classify(safe, pixels, top=2)
    assert [answer.image for answer in answers] == ["0", "1"]
    for answer, image in zip(answers, pixels, strict=True):
        expect(answer, image[None] / 255, safe)
    assert [a.classes for a in hybrid.classify(safe, pixels.numpy(), top=2)] == [a.classes for a in answers]
    with pytest.raises(UserError, match=r"shape \(3, 32, 16\), the network takes \(3, 32, 32\)"):
        hybrid.classify(safe, pixels[..., :16])


def test_noise_is_that_of_evaluation_and_depends_on_no_other_image(safe, tmp_path, photo):
    scene(40, 40, 8).save(tmp_path / "other.png")
    other = tmp_path / "other.png"
    answers = hybrid.classify(safe, [photo, other], ["clean", "awgn:10"], seed=5)
    assert [(Path(a.image).name, a.condition) for a in answers] == [
        *(("photo.png", "clean"), ("photo.png", "awgn:10"), ("other.png", "clean"), ("other.png", "awgn:10"))
    ]
    for clean, noisy in (answers[:2], answers[2:]):
        (given,) = Noise.parse("awgn:10").batches((255 * clean.given[None]).round().to(torch.uint8), 5)
        expect(noisy, given, safe)
    again = hybrid.classify(safe, other, "awgn:10", seed=5)[0]
    assert torch.equal(again.given, answers[3].given)
    assert again.probabilities == answers[3].probabilities
    changed = hybrid.classify(safe, other, "awgn:10", seed=6)[0]
    assert not torch.equal(changed.given, again.given)


def test_mirror_images_and_draws_are_averaged(safe, photo):
    (usual,) = hybrid.classify(safe, photo, top=10)
    assert hybrid.classify(safe, photo, top=10, keep=False) == [usual._replace(given=None)]
    (mirrored,) = hybrid.classify(safe, photo, top=10, mirror=True)
    both = torch.cat([usual.given[None], usual.given[None].flip(3)])
    mean = safe(both).softmax(1).mean(0)
    assert dict(zip(mirrored.classes, mirrored.probabilities, strict=True)) == pytest.approx(
        dict(zip(CLASSES, mean.tolist(), strict=True)), abs=1e-5
    )
    (shifted,) = hybrid.classify(safe, photo, top=10, mirror=True, shifts=True)
    expected = predict(safe.network, usual.given[None], "cpu", mirror=True, shifts=True).softmax(1)[0]
    assert dict(zip(shifted.classes, shifted.probabilities, strict=True)) == pytest.approx(
        dict(zip(CLASSES, expected.tolist(), strict=True)), abs=1e-5
    )
    drawn = [hybrid.classify(safe, photo, draws=2, seed=seed)[0].probabilities for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    with pytest.raises(UserError, match="`draws` 2: the encoder of this network draws nothing"):
        hybrid.classify("pretrained:baseline-cifar10", photo, draws=2)


def test_a_folder_stands_for_its_images(safe, tmp_path, photo, capsys, monkeypatch):
    (tmp_path / "b").mkdir()
    for name in ("a.jpg", "b/z.png", "b/a.png"):
        scene(33, 35).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"no image")
    monkeypatch.chdir(tmp_path)
    for folder in (tmp_path, Path(".")):
        answers = hybrid.classify(safe, folder, top=1)
        found = [os.path.relpath(answer.image, folder) for answer in answers]
        assert found == ["a.jpg", "photo.png", "b/a.png", "b/z.png"]
        said = capsys.readouterr().err
        assert "files that are no images: 1" in said
        assert "names that start with a dot: 1" in said


def test_what_cannot_be_read_is_refused_in_one_line(safe, tmp_path, photo):
    whole = photo.read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "none").mkdir()
    for name, words in (
        ("cut.png", "not a readable image"),
        ("empty.jpg", "not a readable image"),
        ("text.jpg", "not a readable image"),
        ("gone.jpg", "there is no such file; give an image, or a folder of images"),
        ("none", "holds no images"),
    ):
        with pytest.raises(UserError, match=words) as error:
            hybrid.classify(safe, [photo, tmp_path / name])
        assert name in str(error.value)
    for values, words in (
        ({"top": 0}, "`top` 0"),
        ({"fit": "zoom"}, "`fit` zoom: unknown; choose from crop, pad, squash"),
        ({"conditions": []}, "`conditions`: give at least one"),
        ({"conditions": "awgn:x"}, "`conditions` awgn:x"),
        ({"conditions": "fgsm:8"}, "`conditions` fgsm:8: it needs more than photographs"),
        ({"seed": -1}, "`seed` -1"),
    ):
        with pytest.raises(UserError, match=words):
            hybrid.classify(safe, photo, **values)
    with pytest.raises(UserError, match="no image given"):
        hybrid.classify(safe, [])
    for wrong in (5, [5], scene(32, 32), [scene(32, 32)]):
        with pytest.raises(UserError, match="give paths of files, or one uint8 array"):
            hybrid.classify(safe, wrong)
    with pytest.raises(UserError, match="model of type Linear"):
        hybrid.classify(torch.nn.Linear(2, 2), photo)
    four = replace(safe, spec=hybrid.baseline((4, 32, 32), "fast_cnn", width=0.25).spec)
    with pytest.raises(UserError, match="images of 4 channels, image files have 1 or 3"):
        hybrid.classify(four, photo)


def test_broken_weights_are_refused(photo):
    model = hybrid.load(SAFE)
    assert isinstance(model.network.normalise, Normalise)
    model.network.normalise.mean.fill_(math.nan)
    with pytest.raises(UserError, match="logits that are not finite"):
        hybrid.classify(model, photo)


def test_the_command_prints_writes_and_draws(tmp_path, photo, capsys):
    out, figures = tmp_path / "picture.png", tmp_path / "figures.json"
    flags = ["--noise", "awgn:15", "salt-pepper:0.1", "--top", "3", "--seed", "4"]
    assert main([SAFE, str(photo), *flags, "--out", str(out), "--json", str(figures)]) == 0
    answers = hybrid.classify(SAFE, photo, ["clean", "awgn:15", "salt-pepper:0.1"], top=3, seed=4)
    printed = " ".join(capsys.readouterr().out.split())
    written = json.loads(figures.read_text())
    assert written["classes"] == list(CLASSES)
    assert written["model"] == "safe-cifar10"
    assert written["seed"] == 4
    for answer, row in zip(answers, written["images"], strict=True):
        assert row["image"] == str(photo)
        assert row["condition"] == answer.condition
        assert [(a["class"], a["probability"]) for a in row["answers"]] == list(
            zip(answer.classes, answer.probabilities, strict=True)
        )
        assert f"{answer.classes[0]} {100 * answer.probabilities[0]:.1f} %" in printed
    with Image.open(out) as image:
        # Three rows of four stages and bars.
        assert image.width > 4 * 250
        assert image.height > 3 * 250


@pytest.mark.parametrize(
    "name", ["[bold]a.png", "猫🐈.png", "$x^$.png", ":cat:.png", "a\x1b[2J\nb.png", "caf\udce9.png"]
)
def test_any_file_name_is_printed_and_drawn(name, tmp_path, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    try:
        scene(40, 30).save(folder / name, "PNG")
    except OSError:
        pytest.skip("the file system has no such names")
    assert main([SAFE, str(folder), "--out", str(tmp_path / "x.png"), "--json", str(tmp_path / "x.json")]) == 0
    output = capsys.readouterr()
    assert not output.err
    shown = re.sub("[\x00-\x1f\x7f\ud800-\udfff]", "?", name)
    printed = "".join(line.split("│")[1].strip() for line in output.out.splitlines() if "│" in line)
    assert shown in printed
    assert json.loads((tmp_path / "x.json").read_text())["images"][0]["image"] == str(folder / name)


def test_names_of_classes_do_not_steer_the_terminal(tmp_path, photo, capsys):
    network = hybrid.baseline((3, 32, 32), "fast_cnn", classes=("a\x1b[2Jb\nc", "\x9b31m"), width=0.25)
    model = hybrid.load("pretrained:baseline-cifar10")
    hybrid.save(replace(model, network=network, spec=network.spec), tmp_path / "x.h5")
    assert main([str(tmp_path / "x.h5"), str(photo), "--out", str(tmp_path / "x.png")]) == 0
    printed = capsys.readouterr().out
    assert "a?[2Jb?c" in printed
    assert not re.search("[\x1b\x9b]", printed)


def test_a_picture_has_as_many_bars_as_can_be_read(tmp_path, photo):
    model = hybrid.load("pretrained:baseline-cifar10")
    names = tuple(f"class {number} of a long name" for number in range(40))
    wide = hybrid.baseline((3, 32, 32), "fast_cnn", classes=names, width=0.25).eval()
    model = replace(model, network=wide, spec=wide.spec)
    (answer,) = hybrid.classify(model, photo, top=40)
    assert set(answer.classes) == set(names)
    draw_answers([answer], wide, "wide", tmp_path / "wide.png")
    with Image.open(tmp_path / "wide.png") as image:
        assert image.width < 1500


def test_more_rows_than_a_picture_has_are_refused_before_the_work(tmp_path, photo, capsys):
    photos = [str(photo)] * (MOST_ROWS // 2 + 1)
    assert main(["nope.h5", *photos, "--noise", "awgn:15", "--out", str(tmp_path / "x.png")]) == 2
    assert f"a picture has at most {MOST_ROWS}; give fewer" in capsys.readouterr().err


def test_the_guide_says_what_happens(tmp_path, capsys, monkeypatch):
    guide = (ROOT / "docs" / "guides" / "classify.md").read_text(encoding="utf-8")
    monkeypatch.chdir(ROOT)
    commands = re.findall(r"^python -m hybrid.classify (.*)$", guide, re.M)
    assert len(commands) == 2
    for command in commands:
        assert main(command.replace("answers.png", str(tmp_path / "answers.png")).split()) == 0
        printed = " ".join(capsys.readouterr().out.split())
        # Another version of the JPEG library may change the last digits.
        clean, noisy = (float(share) for share in re.findall(r"cat (\S+) %", printed))
        assert clean == pytest.approx(87 if "safe" in command else 88, abs=3)
        assert noisy == pytest.approx(86 if "safe" in command else 47, abs=5)
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", guide, re.M | re.S):
        exec(block, names)
    assert capsys.readouterr().out.startswith("docs/figures/chelsea.jpg clean cat 0.")
    assert names["logits"].shape == (1, 10)


@pytest.mark.slow
def test_the_documented_first_command_answers_in_a_fresh_process(tmp_path, photo):
    command = [sys.executable, "-m", "hybrid.classify", SAFE, str(photo)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stderr) == (0, "")
    (answer,) = hybrid.classify(SAFE, photo)
    assert f"{answer.classes[0]} {100 * answer.probabilities[0]:.1f} %" in " ".join(result.stdout.split())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["photo.png"]
