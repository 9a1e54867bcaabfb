"""Training as a procedure: interruption, several processes, seeds, recipes, what noise-trained networks see."""

import copy
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import hybrid
from bridge.storage import load_frontend
from hybrid.architecture import Architecture, baseline
from hybrid.batches import Batches
from hybrid.checkpoint import PREVIOUS, PROGRESS, read_checkpoint
from hybrid.conditions import Noise
from hybrid.image_size import has_small_strides, learning_preset
from hybrid.lightning_module import Classifier
from hybrid.preprocess import Preprocess
from hybrid.recipe import RECIPES, Recipe
from hybrid.storage import load_model
from hybrid.train import TrainConfig, main, with_preset
from hybrid.training import Checkpointing, Hardware, train
from snn.data import as_labelled, image_shape, load_images
from snn.data_source import DataSource
from snn.runtime.errors import UserError
from snn.subset import Subset

SMALL = ["--data", "digits", "--limit-train", "140", "--width", "0.1", "--epochs", "3", "--batch-size", "16",
         "--variant", "baseline", "--no-figures", "--threads", "1"]  # fmt: skip
ALONE = os.environ | {"OMP_NUM_THREADS": "1"}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "hybrid.train", *arguments]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("train") / "model.h5"
    assert main([*SMALL, "--out", str(out)]) == 0
    return load_model(out)


@pytest.mark.slow
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
    # The signal may come between two renames, when only the one before has a name.
    newest = progress if progress.exists() else progress.with_name(PREVIOUS)
    step = read_checkpoint(newest)["global_step"]
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


@pytest.mark.slow
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


def by_two(folder: Path, name: str, *arguments: str) -> list[str]:
    return command(*SMALL, "--device", "cpu", "--devices", "2", "--out", str(folder / f"{name}.h5"), *arguments)


def result_of(arguments: list[str]) -> str:
    result = subprocess.run(arguments, env=ALONE, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def trained_by_two(tmp_path_factory):
    """What two processes print, and their model."""
    folder = tmp_path_factory.mktemp("two")
    return result_of(by_two(folder, "whole")), load_model(folder / "whole.h5")


@pytest.mark.slow
def test_devices_are_a_flag(trained_by_two):
    printed, model = trained_by_two
    assert printed.count("trained baseline") == 1
    assert len(model.history["val_accuracy"]) == 3
    # Of the 14 held-out images, a whole number is right.
    correct = 14 * model.history["val_accuracy"]
    np.testing.assert_allclose(correct, correct.round(), atol=1e-9)


@pytest.mark.slow
def test_two_processes_go_on_to_the_same_bits(trained_by_two, tmp_path):
    process = subprocess.Popen(
        by_two(tmp_path, "cut", "--checkpoint-interval", "0"),
        env=ALONE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    progress = tmp_path / "cut_training" / PROGRESS
    deadline = time.monotonic() + 180
    while not progress.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    checkpoint = read_checkpoint(progress)
    # Every image of the batches so far was counted once, by one of the processes.
    steps = checkpoint["global_step"] % (126 // 16)
    assert checkpoint["sums"]["train"][2] == 16 * steps
    result_of([*by_two(tmp_path, "cut", "--checkpoint-interval", "0"), "--resume"])
    assert load_model(tmp_path / "cut.h5").digest == trained_by_two[1].digest


@pytest.mark.parametrize("count", [14, 15, 600])
def test_two_processes_count_every_held_out_image_once(count):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8, generator=random)
    labels = torch.randint(10, (count,), generator=random)
    network = baseline((1, 8, 8), width=0.1).eval()
    data = Subset(as_labelled((images, labels)))
    classifier = Classifier(network, Recipe(), "none", 0, training=data, held_out=data)
    counted = []
    for rank in range(2):
        classifier.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        for number, batch in enumerate(classifier.val_dataloader()):
            with torch.no_grad():
                classifier.validation_step(batch, number)
            counted += batch.rows.tolist()
    assert sorted(counted) == list(range(count))
    with torch.no_grad():
        correct = (network(images / 255).argmax(1) == labels).sum().item()
    assert classifier.sums["val"][1:].tolist() == [correct, count]


def test_a_batch_is_divided_evenly_or_not_at_all(tmp_path, capsys):
    assert main([*SMALL, "--batch-size", "17", "--devices", "2", "--out", str(tmp_path / "x.h5")]) == 2
    assert "--batch-size 17 is to be shared by 2 processes" in capsys.readouterr().err


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


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_measuring_threads_does_not_change_the_training(two_threads, capsys):
    data = load_images(DataSource(limit_train=140), "train", seed=0)
    # MobileNetV2 has dropout, which draws from the global generator, and running statistics.
    architecture, recipe = Architecture("mobilenet_v2", "baseline", width=0.1), Recipe(epochs=1, batch_size=16)
    results = []
    for _ in range(2):
        threads = results[0].threads if results else "auto"
        results.append(train(data, architecture, recipe, hardware=Hardware(threads=threads)))
        results[-1].history["random"] = torch.random.get_rng_state().numpy()
        assert torch.get_num_threads() == 2
    measured, given = results
    assert capsys.readouterr().out.count("threads: ") == 1
    assert measured.threads == given.threads in (1, 2)
    for name, values in measured.network.state_dict().items():
        assert torch.equal(values, given.network.state_dict()[name]), name
    for name, values in measured.history.items():
        np.testing.assert_array_equal(values, given.history[name])


def test_a_resumed_training_keeps_its_number_of_threads(tmp_path, capsys):
    data, recipe = load_images(DataSource(limit_train=140), "train", seed=0), Recipe(epochs=2, batch_size=16)
    checkpointing, before = Checkpointing(tmp_path / "progress", resume=True, checkpoint_interval=0), None
    for threads in (2, 1, "auto"):
        # The first leaves a checkpoint of its last step, from which the others go on.
        architecture = Architecture("fast_cnn", "baseline", width=0.1)
        model = train(data, architecture, recipe, hardware=Hardware(threads=threads), checkpointing=checkpointing)
        assert read_checkpoint(tmp_path / "progress" / PROGRESS)["threads"] == model.threads == 2
        printed = "threads: 2, as the training was started with, not 1" in capsys.readouterr().out
        assert printed == (threads == 1)
        before = before or model
        for name, values in model.network.state_dict().items():
            assert torch.equal(values, before.network.state_dict()[name]), name
    hybrid.save(model, tmp_path / "model.h5")
    assert hybrid.load(tmp_path / "model.h5").threads == 2


@pytest.mark.parametrize("threads", ["0", "-1", "many"])
def test_threads_are_auto_or_a_number(threads, tmp_path, capsys):
    assert main([*SMALL, "--threads", threads, "--out", str(tmp_path / "x.h5")]) == 2
    assert "threads" in capsys.readouterr().err


@pytest.fixture(scope="module")
def precisions(pipeline):
    """A training of SAFE for each precision, with the type of what each of its modules gave."""
    data = load_images(DataSource(limit_train=140), "train", seed=0)
    architecture = Architecture("fast_cnn", width=0.25, preprocess=Preprocess.parse("spikes"))
    trained = {}
    for precision in ("auto", "float32", "bfloat16"):
        kinds: dict[str, set[torch.dtype]] = {}

        def note(module, _, output, kinds=kinds):
            if isinstance(output, torch.Tensor):
                kinds.setdefault(type(module).__name__, set()).add(output.dtype)

        with register_module_forward_hook(note):
            recipe = Recipe(epochs=3, batch_size=16, learning_rate=0.005, precision=precision)
            trained[precision] = train(data, architecture, recipe, frontend=pipeline.frontend), kinds
    return trained


def test_all_but_the_frozen_layers_compute_in_the_chosen_precision(precisions):
    for precision in ("auto", "float32"):
        assert set().union(*precisions[precision][1].values()) == {torch.float32}
    kinds = precisions["bfloat16"][1]
    for name in ("ConvertedLayer", "SpecialActivationUnit", "SpikingFrontEnd"):
        assert kinds[name] == {torch.float32}, name
    for name in ("Conv2d", "BatchNorm2d", "GELU", "Linear", "FastCNN"):
        assert kinds[name] == {torch.bfloat16}, name


def test_precision_is_recorded_and_keeps_weights_and_learning(precisions, tmp_path):
    auto, plain, low = (precisions[precision][0] for precision in ("auto", "float32", "bfloat16"))
    for name, values in low.network.state_dict().items():
        assert torch.equal(auto.network.state_dict()[name], plain.network.state_dict()[name]), name
        assert values.dtype == plain.network.state_dict()[name].dtype, name
    for name, weight in plain.network.main.named_parameters():
        assert not torch.equal(low.network.main.get_parameter(name), weight), name
    for curve in ("train_loss", "val_loss"):
        # bfloat16 keeps 8 bits of each product's factors, and sums them in float32.
        np.testing.assert_allclose(low.history[curve], plain.history[curve], rtol=0.1)
    assert "precision" not in auto.recipe
    hybrid.save(low, tmp_path / "low.h5")
    assert hybrid.load(tmp_path / "low.h5").recipe["precision"] == "bfloat16"


def test_a_resumed_training_keeps_its_precision(tmp_path):
    data = load_images(DataSource(limit_train=140), "train", seed=0)
    checkpointing = Checkpointing(tmp_path / "progress", resume=True, checkpoint_interval=0)
    for precision in ("bfloat16", "float32"):
        recipe = Recipe(epochs=1, batch_size=16, precision=precision)
        with pytest.raises(UserError, match="other settings") if precision == "float32" else nullcontext():
            train(data, Architecture("fast_cnn", "baseline", width=0.1), recipe, checkpointing=checkpointing)


@pytest.mark.parametrize(
    ("known", "warns"),
    [({}, 0), ({"avx2": True, "avx512_bf16": True}, 0), ({"avx2": True, "avx512_bf16": False}, 1), ({"bf16": True}, 0)],
)
def test_a_cpu_that_is_slow_in_bfloat16_is_told_of(known, warns, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    data, architecture = load_images(DataSource(limit_train=140), "train", seed=0), Architecture("fast_cnn", "baseline")
    for precision in ("bfloat16", "float32", "auto"):
        recipe = Recipe(epochs=1, batch_size=16, precision=precision)
        train(data, replace(architecture, width=0.1), recipe)
        said = capsys.readouterr().err.count("warning: this CPU has no instructions for bfloat16")
        assert said == (warns if precision == "bfloat16" else 0)


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


@pytest.fixture
def photographs(tmp_path):
    """Makes a folder of two classes with four images of a size each, in train and in test."""

    def make(size: int) -> DataSource:
        random, root = np.random.default_rng(0), tmp_path / f"images{size}"
        for place in ("train/a", "train/b", "test/a", "test/b"):
            (root / place).mkdir(parents=True)
            for number in range(4):
                pixels = random.integers(256, size=(size, size, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / place / f"{number}.png")
        return DataSource(f"folder:{root}")

    return make


def test_models_whose_names_differ_in_their_suffix_share_no_logs(tmp_path):
    for name in ("s.h5", "s.hdf5"):
        out = ["--epochs", "1", "--figures", "--json", str(tmp_path / f"{name}.json"), "--out", str(tmp_path / name)]
        assert main([*SMALL, *out]) == 0
    both = {"s.h5", "s.h5.json", "s_training", "s_training.png"}
    both |= {"s.hdf5", "s.hdf5.json", "s.hdf5_training", "s.hdf5_training.png"}
    assert {path.name for path in tmp_path.iterdir()} == both


def test_recipes_follow_the_images(tmp_path, photographs, capsys):
    def chosen(source, **changes):
        config = TrainConfig(tmp_path / "x.h5", source, architecture=Architecture(variant="baseline"), **changes)
        return with_preset(config).recipe

    assert chosen(DataSource("digits")) is RECIPES["digits"]
    assert chosen(DataSource("digits", image_size=224)) is RECIPES["digits"]
    assert chosen(DataSource("cifar10")) is RECIPES["cifar10"]
    assert chosen(DataSource("cifar10", image_size=64)) is RECIPES["imagenet"]
    assert chosen(DataSource("digits"), preset="imagenet") is RECIPES["imagenet"]
    # Native sizes count, whatever the flag says of them.
    assert chosen(photographs(63)) is RECIPES["cifar10"]
    assert chosen(photographs(64)) is RECIPES["imagenet"]
    large = photographs(224)
    assert chosen(large) is RECIPES["imagenet"]
    assert chosen(replace(large, image_size=32)) is RECIPES["cifar10"]
    flags = ["--variant", "baseline", "--backbone", "mobilenet_v2_shallow", "--width", "0.1", "--epochs", "1",
             "--batch-size", "4", "--no-figures", "--out", str(tmp_path / "x.h5")]  # fmt: skip
    assert main(["--data", large.data, *flags]) == 0
    assert "recipe imagenet, by the images' 224 pixels" in capsys.readouterr().out
    model = load_model(tmp_path / "x.h5")
    assert (model.recipe["weight_decay"], model.recipe["batch_size"], model.recipe["epochs"]) == (1e-4, 4, 1)
    assert model.spec.input_shape == (3, 224, 224)
    assert main([*SMALL, "--preset", "imagenet", "--epochs", "1", "--out", str(tmp_path / "y.h5")]) == 0
    assert "recipe imagenet, as chosen" in capsys.readouterr().out
    recipe = load_model(tmp_path / "y.h5").recipe
    assert (recipe["weight_decay"], recipe["batch_size"], recipe["epochs"]) == (1e-4, 16, 1)


def test_the_shape_of_images_is_read_from_one_of_them(photographs, tmp_path):
    source = photographs(20)
    for path in sorted((tmp_path / "images20" / "train").glob("*/*"))[1:]:
        path.write_text("no image")
    assert image_shape(source, "train") == (3, 20, 20)
    assert image_shape(replace(source, image_size=12), "test") == (3, 12, 12)
    for data in ("digits", "folder:nowhere", "mnist"):
        if data == "digits":
            assert image_shape(DataSource(data), "test") == load_images(DataSource(data), "test", 0).shape
        else:
            with pytest.raises(UserError, match="`data`"):
                image_shape(DataSource(data), "train")


@pytest.mark.parametrize(("size", "small", "preset"), [(95, True, "cifar10"), (96, False, "imagenet")])
def test_strides_and_preset_change_at_one_size(size, small, preset):
    assert (has_small_strides(size), learning_preset(size)) == (small, preset)
    stem = baseline((3, size, size), width=0.1).main.features[0][0]
    assert stem.stride == ((1, 1) if small else (2, 2))


def test_networks_and_pairs_of_tensors_are_trained_as_descriptions_are(pipeline, tmp_path):
    data = load_images(DataSource(limit_train=60), "train", seed=0)
    recipe = hybrid.Recipe(epochs=1, batch_size=16)
    network = hybrid.safe_dnn(str(pipeline.frontend), classes=10, width=0.1)
    before = copy.deepcopy(network.state_dict())
    model = hybrid.train((data.images, data.labels), network, recipe, seed=3)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not torch.equal(model.network.main.features[0].conv[0][0].weight, network.main.features[0].conv[0][0].weight)
    assert model.spec.classes == data.classes
    logits = model(data.images[:4] / 255)
    assert logits.shape == (4, 10)
    assert not logits.requires_grad
    hybrid.save(model, tmp_path / "x.h5")
    torch.testing.assert_close(hybrid.load(tmp_path / "x.h5")(data.images[:4] / 255), logits, rtol=0, atol=0)
    # The front end's file is remembered where it is known.
    _, _, digest = load_frontend(pipeline.frontend)
    described = hybrid.train(data, hybrid.Architecture(width=0.1), recipe, frontend=pipeline.frontend)
    assert described.parent_digest == digest
    wrong = [
        (data, network, {"frontend": pipeline.frontend}, "leave it out"),
        (data, nn.Linear(2, 2), {}, "hybrid.safe_dnn"),
        (data, hybrid.baseline((1, 12, 12)), {}, r"\(1, 12, 12\)"),
        (data, hybrid.baseline((1, 8, 8), classes=("a", "b")), {}, "2 classes"),
        ((data.images / 255, data.labels), hybrid.baseline((1, 8, 8)), {}, "uint8"),
        ((data.images, data.labels[:5]), hybrid.baseline((1, 8, 8)), {}, "labels"),
    ]
    for images, model, options, words in wrong:
        with pytest.raises(UserError, match=words):
            hybrid.train(images, model, recipe, **options)
