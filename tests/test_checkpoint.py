"""Checkpoints of training: damage is seen, the one before is taken instead, and nothing in a file is believed."""

import hashlib
import io
import os
import pickle
import shutil
import signal
import threading
import time
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bridge.sau import SpecialActivationUnit
from bridge.storage import load_frontend
from hybrid.architecture import Architecture
from hybrid.checkpoint import PREVIOUS, PROGRESS, read_checkpoint
from hybrid.recipe import Recipe
from hybrid.storage import TrainedModel, load_model
from hybrid.train import main
from hybrid.training import Checkpointing, train
from snn.data import load_images
from snn.data_source import DataSource
from snn.runtime.errors import UserError

FLAGS = ["--data", "digits", "--limit-train", "140", "--width", "0.1", "--epochs", "2", "--batch-size", "16",
         "--variant", "baseline", "--backbone", "fast_cnn", "--no-figures", "--threads", "1"]  # fmt: skip


@dataclass(frozen=True)
class Training:
    """A training that was interrupted before its last step, and what it gives in the end."""

    folder: Path
    model: TrainedModel


def resume(folder: Path) -> TrainedModel:
    data, recipe = (
        load_images(DataSource(limit_train=140), "train", seed=0),
        Recipe(epochs=2, batch_size=16, average=0.9),
    )
    architecture, checkpointing = Architecture("fast_cnn", "baseline", width=0.1), Checkpointing(folder, True, 0)
    return train(data, architecture, recipe, checkpointing=checkpointing)


@pytest.fixture(scope="module")
def training(tmp_path_factory) -> Training:
    folder = tmp_path_factory.mktemp("training") / "progress"
    # Called as a library, it leaves the checkpoints of its last two steps.
    return Training(folder, resume(folder))


@pytest.fixture
def unfinished(training, tmp_path) -> Path:
    """A copy of the interrupted training's folder."""
    return shutil.copytree(training.folder, tmp_path / "progress")


def same_weights(one: TrainedModel, other: TrainedModel) -> bool:
    states = one.network.state_dict(), other.network.state_dict()
    return all(torch.equal(*values) for values in zip(*(state.values() for state in states), strict=True))


def forge(path: Path, archive: bytes) -> None:
    """Write what anybody can write: a first line that is right for any content."""
    path.write_bytes(f"safe-dnn-training/1 {hashlib.sha256(archive).hexdigest()} {len(archive)}\n".encode() + archive)


def archived(content: object) -> bytes:
    archive = io.BytesIO()
    torch.save(content, archive)
    return archive.getvalue()


def refuse(folder: Path, *words: str) -> None:
    with pytest.raises(UserError) as refusal:
        resume(folder)
    assert all(word in str(refusal.value) for word in (PROGRESS, "remove", *words)), refusal.value
    assert "\n" not in str(refusal.value)


def test_every_damage_to_a_checkpoint_is_seen(training, tmp_path):
    whole, damaged, random = (training.folder / PROGRESS).read_bytes(), tmp_path / "x.ckpt", np.random.default_rng(0)
    for number in range(200):
        content = bytearray(whole)
        place = int(random.integers(len(whole)))
        if number % 3 == 0:
            content[place] ^= 1 << int(random.integers(8))
        elif number % 3 == 1:
            content[place : place + 16] = random.bytes(16)
        else:
            del content[place:]
        damaged.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.ckpt is damaged"):
            read_checkpoint(damaged)


def test_the_checkpoint_before_is_taken_for_a_damaged_one(training, unfinished, capsys):
    newest, before = unfinished / PROGRESS, unfinished / PREVIOUS
    assert read_checkpoint(before)["global_step"] == read_checkpoint(newest)["global_step"] - 1
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    assert same_weights(resume(unfinished), training.model)
    (told,) = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert f"{newest} is damaged" in told
    assert PREVIOUS in told
    # The damaged one has not become the one before.
    for path in (newest, before):
        read_checkpoint(path)
    newest.unlink()
    assert same_weights(resume(unfinished), training.model)
    for path in (newest, before):
        path.write_bytes(content)
    refuse(unfinished, "remove both")


def without(key: str):
    return lambda checkpoint: checkpoint.pop(key)


def put(value: Any, *path: Any):
    def change(checkpoint: Any) -> None:
        *way, last = path
        for key in way:
            checkpoint = checkpoint[key]
        checkpoint[last] = value(checkpoint[last]) if callable(value) else value

    return change


def last_weight(change: Any):
    def put_weight(checkpoint: Any) -> None:
        state = checkpoint["state_dict"]
        name = [name for name in state if name.endswith("weight")][-1]
        state[name] = change(state[name])

    return put_weight


FORGED = {
    **{f"no {key}": without(key) for key in (
        "identity", "threads", "global_step", "epoch", "pytorch-lightning_version", "state_dict", "loops", "callbacks",
        "optimizer_states", "lr_schedulers", "history", "sums", "current_model_state",
    )},
    "threads a word": put("many", "threads"),
    "threads beyond any machine": put(10**9, "threads"),
    "no threads at all": put(0, "threads"),
    "steps before the start": put(-5, "global_step"),
    "steps beyond the end": put(10**6, "global_step"),
    "another shape": last_weight(lambda weight: weight[:-1]),
    "another type": last_weight(lambda weight: weight.double()),
    "no numbers": last_weight(lambda weight: torch.full_like(weight, torch.nan)),
    "a weight that is a list": last_weight(lambda weight: weight.tolist()),
    "no weights": put({}, "state_dict"),
    "history of words": put(["good"], "history", "train_loss"),
    "history of another length": put([0.5] * 50, "history", "train_loss"),
    "history of nothing": put({}, "history"),
    "sums of another shape": put(torch.zeros(2), "sums", "train"),
    "shares of another shape": put({"train": torch.zeros(2, 2), "val": torch.zeros(2, 2)}, "shares"),
    "shares of other processes": put({"train": torch.zeros(2, 3), "val": torch.zeros(3, 3)}, "shares"),
    "shares that are words": put({"train": "many", "val": "few"}, "shares"),
    "buffers of another shape": put(torch.zeros(2), "optimizer_states", 0, "state", 0, "momentum_buffer"),
    "buffers without numbers": put(
        lambda values: values * torch.inf, "optimizer_states", 0, "state", 0, "momentum_buffer"
    ),
    "another momentum": put(0.1, "optimizer_states", 0, "param_groups", 0, "momentum"),
    "two optimisers": put(lambda states: states * 2, "optimizer_states"),
    "another learning rate": put([9.0, 9.0], "lr_schedulers", 0, "base_lrs"),
    "loops that are words": put("many", "loops", "fit_loop", "epoch_progress", "total", "ready"),
    "more passes than there were": put(39, "loops", "fit_loop", "epoch_progress", "current", "processed"),
    "steps of no pass": put(-1, "loops", "fit_loop", "epoch_loop.batch_progress", "current", "completed"),
    "a counter below 0": put(-1, "loops", "fit_loop", "epoch_progress", "total", "ready"),
    "no loop": put({}, "loops", "fit_loop"),
    "an average that waits": put({"EMAWeightAveraging": {"latest_update_step": 10**9}}, "callbacks"),
}  # fmt: skip


@pytest.mark.parametrize("case", FORGED)
def test_forged_checkpoints_are_refused(case, unfinished):
    checkpoint = read_checkpoint(unfinished / PROGRESS)
    FORGED[case](checkpoint)
    (unfinished / PREVIOUS).unlink()
    forge(unfinished / PROGRESS, archived(checkpoint))
    refuse(unfinished)


def packed(checkpoint: dict) -> bytes:
    """The same archive with compressed members."""
    source, target = zipfile.ZipFile(io.BytesIO(archived(checkpoint))), io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in source.namelist():
            archive.writestr(name, source.read(name) + b"\0" * 2**26)
    return target.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"no archive", b"PK\x03\x04", archived([1, 2]), archived("words"), packed({})]
)
def test_what_is_no_checkpoint_is_refused(content, unfinished):
    (unfinished / PREVIOUS).unlink()
    for write in (Path.write_bytes, forge):
        write(unfinished / PROGRESS, content)
        refuse(unfinished)


def test_a_checkpoint_without_a_digest_is_refused(unfinished):
    (unfinished / PREVIOUS).unlink()
    torch.save(read_checkpoint(unfinished / PROGRESS), unfinished / PROGRESS)
    refuse(unfinished, "remove it")


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_no_code_of_a_hostile_checkpoint_runs(unfinished, tmp_path):
    marker, checkpoint = tmp_path / "ran", read_checkpoint(unfinished / PROGRESS)
    hostile = Hostile(marker)
    (unfinished / PREVIOUS).unlink()
    for content in (hostile, checkpoint | {"extra": hostile}, checkpoint | {"epoch": hostile}):
        for write in (Path.write_bytes, forge):
            for archive in (archived(content), pickle.dumps(content)):
                write(unfinished / PROGRESS, archive)
                refuse(unfinished)
                assert not marker.exists()
    # It would have run.
    pickle.loads(pickle.dumps(hostile))
    assert marker.exists()


def test_the_command_goes_on_from_what_is_whole_and_leaves_no_checkpoint(tmp_path, capsys):
    out, folder = tmp_path / "model.h5", tmp_path / "model_training"
    whole = tmp_path / "whole.h5"
    assert main([*FLAGS, "--out", str(whole)]) == 0
    arguments = [*FLAGS, "--out", str(out), "--checkpoint-interval", "0"]

    def interrupt() -> None:
        deadline = time.monotonic() + 60
        while not (folder / PREVIOUS).exists() and time.monotonic() < deadline:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    assert main(arguments) == 130
    watcher.join()
    (folder / PROGRESS).write_bytes(b"damaged")
    capsys.readouterr()
    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    told = capsys.readouterr()
    assert "resuming" in told.out
    assert f"{folder / PROGRESS} is damaged" in told.err
    assert load_model(out).digest == load_model(whole).digest
    assert not {PROGRESS, PREVIOUS} & {path.name for path in folder.iterdir()}


def test_a_training_of_steps_that_end_with_infinite_edges_goes_on(tmp_path):
    frontend = load_frontend("pretrained:cifar10-retina").frontend
    # Channels with fewer steps than others have rows that infinity fills.
    steps = frontend.layers[0].activation
    edges = steps.edges.expand(len(frontend.layers[0].weight), -1).clone()
    edges[0, 1:] = torch.inf
    heights = steps.heights.expand(len(edges), -1).clone()
    frontend.layers[0].activation = SpecialActivationUnit(edges, heights)
    layer = replace(frontend.spec.layers[0], per_channel=True)
    frontend.spec = replace(frontend.spec, layers=(layer,))
    images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    architecture = Architecture("fast_cnn", width=0.05, auxiliary_maps=0)

    def run(resume: bool) -> TrainedModel:
        return train(
            (images, torch.arange(40) % 2),
            architecture,
            Recipe(epochs=2, batch_size=16),
            frontend=frontend,
            checkpointing=Checkpointing(tmp_path, resume, 0),
        )

    assert same_weights(run(False), run(True))
