"""Training as a procedure: interruption, several processes, seeds, recipes, what noise-trained networks see."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from hybrid.conditions import Noise
from hybrid.lightning_module import Batches
from hybrid.recipe import RECIPES, Recipe, choose_recipe
from hybrid.storage import load_model
from hybrid.train import main
from hybrid.training import PROGRESS
from snn.runtime.errors import UserError

SMALL = ["--data", "digits", "--limit-train", "140", "--width", "0.1", "--epochs", "3", "--batch-size", "16",
         "--variant", "baseline", "--no-figures"]  # fmt: skip
ALONE = os.environ | {"OMP_NUM_THREADS": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hybrid.train", *arguments]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("train") / "model.h5"
    assert main([*SMALL, "--out", str(out)]) == 0
    return load_model(out)


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_training_goes_on_to_the_same_bits(stop, uninterrupted, tmp_path, capsys):
    out, progress = tmp_path / "model.h5", tmp_path / "model_training" / PROGRESS
    arguments = [*SMALL, "--out", str(out), "--checkpoint-interval", "0"]
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while not progress.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(stop)
    _, error = process.communicate(timeout=60)
    assert process.returncode in {signal.SIGKILL: (-9,), signal.SIGTERM: (130, 143, -15)}[stop], error
    assert not out.exists()
    step = torch.load(progress, weights_only=True)["global_step"]
    assert 0 < step < 3 * (126 // 16)
    # Nothing is lost by forgetting to say that it should go on, or by saying it of something else.
    assert main(arguments) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*arguments, "--resume", "--learning-rate", "0.1"]) == 2
    assert "other settings" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert "resuming" in capsys.readouterr().out
    resumed = load_model(out)
    assert resumed.digest == uninterrupted.digest
    assert resumed.history["train_loss"][-1] == uninterrupted.history["train_loss"][-1]
    assert not progress.exists()
    metrics = np.genfromtxt(tmp_path / "model_training" / "metrics.csv", delimiter=",", names=True)
    np.testing.assert_array_equal(metrics["train_loss"], uninterrupted.history["train_loss"])
    assert any(path.name.startswith("events.out.tfevents") for path in progress.parent.iterdir())


def test_a_complete_training_is_left_as_it_is(tmp_path, capsys):
    out = tmp_path / "model.h5"
    arguments = [*SMALL, "--epochs", "1", "--out", str(out), "--resume"]
    assert main(arguments) == 0
    before = out.read_bytes()
    assert main(arguments) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert out.read_bytes() == before
    assert main([*arguments, "--seed", "3"]) == 2
    assert out.read_bytes() == before


def test_a_damaged_checkpoint_is_told_in_one_line(tmp_path, capsys):
    (tmp_path / "model_training").mkdir()
    progress = tmp_path / "model_training" / PROGRESS
    for content in (b"", b"no checkpoint", b"PK\x03\x04"):
        progress.write_bytes(content)
        assert main([*SMALL, "--out", str(tmp_path / "model.h5"), "--resume"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert PROGRESS in lines[0]
        assert "remove it" in lines[0]


def test_another_seed_starts_elsewhere_and_the_same_seed_does_not(uninterrupted, tmp_path):
    digests = []
    for seed in ("0", "1"):
        assert main([*SMALL, "--seed", seed, "--out", str(tmp_path / f"{seed}.h5")]) == 0
        digests.append(load_model(tmp_path / f"{seed}.h5").digest)
    assert digests[0] == uninterrupted.digest != digests[1]


def test_two_processes_share_every_batch_and_hold_the_same_weights(tmp_path):
    script = tmp_path / "train_both.py"
    script.write_text(
        textwrap.dedent("""
        import os, sys, torch
        from hybrid.architecture import Architecture
        from hybrid.recipe import Recipe
        from hybrid.training import Hardware, train
        from snn.data import DataSource, load_images

        data = load_images(DataSource(limit_train=140), "train", seed=0)
        recipe = Recipe(epochs=2, batch_size=16)
        model = train(data, Architecture(variant="baseline", width=0.1), recipe, hardware=Hardware(devices=2))
        weights = {name: value.detach() for name, value in model.network.named_parameters()}
        torch.save((weights, model.history), f"{sys.argv[1]}/{os.environ['RANK']}.pt")
        """)
    )
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    root = Path(__file__).parent.parent
    result = subprocess.run(
        [sys.executable, *launch, str(script), str(tmp_path)], env=ALONE | {"PYTHONPATH": str(root)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    (first, history), (second, other) = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name in history:
        np.testing.assert_array_equal(history[name], other[name])


def test_devices_are_a_flag(tmp_path):
    out = tmp_path / "model.h5"
    result = subprocess.run(
        command(*SMALL, "--device", "cpu", "--devices", "2", "--epochs", "1", "--out", str(out)),
        env=ALONE, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("trained baseline") == 1
    # All 14 held-out images and all whole batches were counted, once.
    assert load_model(out).history["val_accuracy"][0] * 14 == pytest.approx(
        round(load_model(out).history["val_accuracy"][0] * 14)
    )


def test_two_processes_go_on_to_the_same_bits(tmp_path):
    digests = []
    for name, interval in (("whole", "600"), ("cut", "0")):
        arguments = command(*SMALL, "--device", "cpu", "--devices", "2", "--out", str(tmp_path / f"{name}.h5"),
                            "--checkpoint-interval", interval)  # fmt: skip
        if name == "cut":
            process = subprocess.Popen(
                arguments, env=ALONE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
            )
            deadline = time.monotonic() + 90
            while not (tmp_path / "cut_training" / PROGRESS).exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate(timeout=60)
            arguments.append("--resume")
        result = subprocess.run(arguments, env=ALONE, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        digests.append(load_model(tmp_path / f"{name}.h5").digest)
    assert digests[0] == digests[1]


def test_a_batch_is_divided_evenly_or_not_at_all(tmp_path, capsys):
    assert main([*SMALL, "--devices", "3", "--out", str(tmp_path / "x.h5")]) == 2
    assert "--batch-size 16 is to be shared by 3 processes" in capsys.readouterr().err


def test_batches_are_a_permutation_of_all_images_that_goes_on_anywhere():
    step = [0]
    batches = Batches(50, 8, 3, lambda: step[0])
    first = torch.cat(list(batches))
    assert len(batches) == 6
    assert len(first.unique()) == 48
    step[0] = 4
    assert torch.equal(torch.cat(list(batches)), first[32:])
    step[0] = 6
    assert not torch.equal(torch.cat(list(batches)), first)


def test_noise_training_sees_noise_and_is_recorded(tmp_path):
    for noise in ("clean", "salt-pepper:0.2"):
        out = tmp_path / f"{noise[:5]}.h5"
        assert main([*SMALL, "--epochs", "1", "--train-noise", noise, "--out", str(out)]) == 0
    clean, noisy = load_model(tmp_path / "clean.h5"), load_model(tmp_path / "salt-.h5")
    assert noisy.recipe["train_noise"] == "salt-pepper:0.2"
    assert clean.digest != noisy.digest
    assert clean.history["train_loss"][0] != noisy.history["train_loss"][0]


@pytest.mark.parametrize("noise", ["fgsm:8", "corruption:fog,3", "snow:1"])
def test_training_on_what_is_not_drawn_is_refused(noise):
    with pytest.raises(UserError, match="`train_noise`"):
        Recipe(train_noise=Noise.parse(noise, "train_noise"))


def test_recipes_follow_the_data(tmp_path):
    assert choose_recipe("auto", "digits", None) is RECIPES["digits"]
    assert choose_recipe("auto", "cifar10", None) is RECIPES["cifar10"]
    assert choose_recipe("auto", "folder:x", 224) is RECIPES["imagenet"]
    assert choose_recipe("imagenet", "digits", None) is RECIPES["imagenet"]
    out = tmp_path / "x.h5"
    assert main([*SMALL, "--preset", "imagenet", "--epochs", "1", "--out", str(out)]) == 0
    recipe = load_model(out).recipe
    assert (recipe["weight_decay"], recipe["batch_size"], recipe["epochs"]) == (1e-4, 16, 1)
