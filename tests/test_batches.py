"""Mini-batches from where the images are: read by workers or not, mapped or in memory, to the same bits."""

import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import DEVICES
from lightning.fabric.utilities import move_data_to_device
from torch import nn

import hybrid
from hybrid.batches import Batches, Supply
from hybrid.checkpoint import PREVIOUS
from hybrid.conditions import Condition, Context
from hybrid.evaluation import predict
from hybrid.storage import load_model
from hybrid.train import main
from snn.data import Images, as_images, load_images
from snn.data_source import DataSource
from snn.growing import Growing
from snn.network import LayerHistory
from snn.patches import random_patches
from snn.subset import Subset

SMALL = ["--data", "digits", "--limit-train", "120", "--width", "0.1", "--batch-size", "16", "--epochs", "3",
         "--variant", "baseline", "--backbone", "mobilenet_v2", "--threads", "1", "--no-figures"]  # fmt: skip


@pytest.fixture(scope="module")
def images() -> Images:
    """300 images in memory."""
    return load_images(DataSource(limit_train=300), "train", seed=0)


@pytest.fixture
def on_disk(images, tmp_path) -> Images:
    """The same, mapped from a file."""
    file = tmp_path / "images"
    file.write_bytes(images.images.numpy().tobytes())
    mapped = np.memmap(file, np.uint8, "r", shape=tuple(images.images.shape))
    return images._replace(images=as_images(mapped))


def test_an_array_is_used_where_it_lies(on_disk, images):
    array = np.zeros((5, 1, 8, 8), np.uint8)
    shared = as_images(array)
    array[3] = 7
    assert shared[3].eq(7).all()
    assert torch.equal(on_disk.images, images.images)
    # In another order it cannot be.
    turned = np.arange(5 * 64, dtype=np.uint8).reshape(5, 8, 8, 1).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(as_images(turned), turned)
    backwards = np.arange(5 * 64, dtype=np.uint8).reshape(5, 1, 8, 8)[:, :, ::-1]
    np.testing.assert_array_equal(as_images(backwards), backwards)


def test_a_subset_reads_its_rows(images):
    rows = torch.tensor([7, 3, 250, 3, 19])
    subset = Subset(images, rows)
    expected, labels = images.images.numpy()[rows], images.labels.numpy()[rows]
    assert len(subset) == 5
    np.testing.assert_array_equal(subset.images, expected)
    np.testing.assert_array_equal(subset.labels, labels)
    np.testing.assert_array_equal(subset[torch.tensor([4, 0])].images, expected[[4, 0]])
    np.testing.assert_array_equal(subset[1:3].labels, labels[1:3])
    for part, start in zip(subset.split(2), (0, 2, 4), strict=True):
        np.testing.assert_array_equal(part.images, expected[start : start + 2])
        assert part.classes == images.classes
    moved = subset.copy_to("cpu")
    np.testing.assert_array_equal(moved[torch.tensor([2, 1])].images, expected[[2, 1]])
    whole = Subset(images)
    assert len(whole) == 300
    assert torch.equal(torch.cat([part.images for part in whole.portions()]), images.images)


def test_patches_of_rows_are_those_of_their_images(images):
    rows = torch.tensor([5, 1, 200, 44])
    one = random_patches(images.images, 3, 50, torch.Generator().manual_seed(0), rows)
    other = random_patches(images.images[rows], 3, 50, torch.Generator().manual_seed(0))
    assert torch.equal(one, other)
    assert len(one.unique()) > 5


@pytest.mark.parametrize("done", [0, 5, 21])
@pytest.mark.parametrize(("rank", "size"), [(0, 1), (0, 3), (2, 3)])
def test_workers_read_what_is_read_without_them(on_disk, images, done, rank, size):
    rows = torch.arange(299, 10, -1)
    read = {}
    for workers in (0, 2):
        supply = Supply({"train": Subset(on_disk, rows)}, workers)
        supply.prepare(torch.device("cpu"))
        order = Batches(len(rows), 16, 4, lambda: done, slice(rank, None, size))
        assert len(supply.loader("train", order)) == 18
        read[workers] = list(supply.loader("train", order))
    first = done % 18
    assert len(read[0]) == 18 - first
    for ours, theirs in zip(read[0], read[2], strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
        assert torch.equal(ours.images, images.images[rows[ours.rows]])
        assert torch.equal(ours.labels, images.labels[rows[ours.rows]])
    # All processes together have each image once, in an order of this pass alone.
    if done == 0 and size == 1:
        seen = torch.cat([batch.rows for batch in read[0]])
        assert len(seen.unique()) == len(seen) == 18 * 16
        later = Supply({"train": Subset(on_disk, rows)}).loader("train", Batches(len(rows), 16, 4, lambda: 18))
        assert not torch.equal(next(iter(later)).rows, read[0][0].rows)


def test_the_global_generator_is_left_alone(images):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    for workers in (0, 1):
        supply = Supply({"train": Subset(images)}, workers)
        list(supply.loader("train", torch.arange(300).split(50)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("plain") / "model.h5"
    assert main([*SMALL, "--out", str(out)]) == 0
    return load_model(out).digest


@pytest.mark.slow
def test_training_with_workers_gives_the_same_bits_however_often_it_is_killed(undisturbed, tmp_path):
    folder = tmp_path / "killed"
    folder.mkdir()
    arguments = [*SMALL, "--checkpoint-interval", "0", "--out", str(folder / "model.h5"), "--workers", "2"]
    command = [sys.executable, "-m", "hybrid.train", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 90
    while not (folder / "model_training" / PREVIOUS).exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not (folder / "model.h5").exists()
    # It stopped within a pass; any number of workers goes on from there.
    for workers in ("0", "2"):
        shutil.copytree(folder, tmp_path / workers)
        out = tmp_path / workers / "model.h5"
        assert main([*SMALL, "--resume", "--workers", workers, "--out", str(out)]) == 0
        assert load_model(out).digest == undisturbed


def test_a_mapped_set_trains_the_same_network(images, on_disk):
    recipe = hybrid.Recipe(epochs=1, batch_size=32, first_layer="whitening", flips="alternating", average=0.5)
    states = []
    for data in (images, on_disk):
        model = hybrid.train(data, hybrid.Architecture("fast_cnn", "baseline", width=0.1), recipe)
        states.append(model.network.state_dict())
    assert all(torch.equal(values, states[1][name]) for name, values in states[0].items())


@pytest.mark.gpu
def test_a_gpu_is_given_the_same_mini_batches_whoever_reads_them(images, on_disk):
    rows, device = torch.arange(299, 10, -1), torch.device("cuda")
    for data, workers in ((images, None), (on_disk, 2), (on_disk, 0)):
        supply = Supply({"train": Subset(data, rows)}, workers)
        supply.prepare(device)
        for batch in supply.loader("train", Batches(len(rows), 16, 4, lambda: 5)):
            # Where they are not there already, as Lightning moves them.
            assert batch.images.device.type == ("cuda" if workers is None else "cpu")
            assert batch.images.is_pinned() == (workers is not None)
            moved = move_data_to_device(batch, device)
            assert torch.equal(moved.images.cpu(), images.images[rows[batch.rows.cpu()]])
            assert torch.equal(moved.labels.cpu(), images.labels[rows[batch.rows.cpu()]])


@pytest.mark.gpu
def test_training_on_a_gpu_learns_alike_from_images_that_workers_read(images, on_disk):
    recipe, curves = hybrid.Recipe(epochs=2, batch_size=32), []
    for data, workers in ((images, None), (on_disk, 2)):
        hardware = hybrid.Hardware("cuda", workers=workers)
        model = hybrid.train(data, hybrid.Architecture("fast_cnn", "baseline", width=0.25), recipe, hardware=hardware)
        curves.append(model.history["train_loss"])
    # cuDNN's sums may differ in their last bits from run to run.
    np.testing.assert_allclose(*curves, rtol=0.02)


@pytest.mark.parametrize("device", DEVICES)
def test_images_that_fit_are_copied_to_a_gpu_and_stay_on_a_cpu(images, device):
    supply = Supply({"train": Subset(images, torch.arange(20, 60)), "val": Subset(images, torch.arange(20))})
    supply.prepare(torch.device(device))
    assert supply.workers == 0
    (batch,) = supply.loader("train", [torch.tensor([4, 0, 17])])
    assert batch.images.device.type == batch.labels.device.type == device
    assert torch.equal(batch.images.cpu(), images.images[[24, 20, 37]])
    assert (supply.parts["val"].data.images.data_ptr() == images.images.data_ptr()) == (device == "cpu")


class Sums(nn.Module):
    """Images to logits in which every value, and the place of an image among its batch, has a part."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.flatten(1))


@pytest.mark.parametrize("batch_size", [1000, 256, 100, 7])
def test_evaluation_in_parts_counts_what_all_at_once_gives(images, batch_size):
    torch.manual_seed(1)
    network = Sums()
    for text in ("clean", "awgn:5", "salt-pepper:0.3", "fgsm:20"):
        (top1, top5) = hybrid.evaluate(network, images, text, attack_model=network, batch_size=batch_size, seed=2)
        perturbed = Condition.parse(text).perturb(Context(images, 2, network))
        assert perturbed.images.shape == (300, 1, 8, 8)
        assert torch.equal(perturbed.labels, images.labels)
        with torch.no_grad():
            order = network(perturbed.images).argsort(1, descending=True)
        right = order == images.labels[:, None]
        assert (top1["correct"], top5["correct"]) == (int(right[:, 0].sum()), int(right[:, :5].any(1).sum()))
        assert 0 < top1["correct"] < top5["correct"] < 300
        assert top1["images"] == 300


def test_some_images_are_measured_as_a_set_of_their_own(images):
    torch.manual_seed(1)
    network, rows = Sums(), torch.arange(299, 3, -1)
    alone = images._replace(images=images.images[rows], labels=images.labels[rows])
    one, other = (hybrid.evaluate(network, data, ["clean", "awgn:5"]) for data in (Subset(images, rows), alone))
    assert one == other
    confusions = [hybrid.Confusion(), hybrid.Confusion()]
    for data, confusion in zip((Subset(images, rows), alone), confusions, strict=True):
        hybrid.evaluate(network, data, "awgn:5", confusion=confusion)
    assert confusions[0].rows() == confusions[1].rows()
    assert confusions[0].matrix("Sums", "awgn:5").sum() == len(rows)


def test_logits_of_uint8_images_are_those_of_their_intensities(images):
    network = Sums()
    assert torch.equal(predict(network, images.images, "cpu"), predict(network, images.images.float() / 255, "cpu"))


def test_a_growing_tensor_never_changes_and_shares_its_memory():
    start = Growing.of(torch.arange(6.0).reshape(3, 2))
    longer, addresses = start, set()
    for number in range(1000):
        longer = longer.extend(torch.full((1, 2), float(number)))
        addresses.add(longer.values.data_ptr())
    # Its memory doubles: 1,003 rows have moved a few times.
    assert len(addresses) < 10
    np.testing.assert_array_equal(start.values, [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(longer.values[3:, 1], range(1000))
    # Two that grow from one do not share what they add.
    one, other = longer.extend(torch.ones(1, 2)), longer.extend(-torch.ones(2, 2))
    assert (one.count, other.count, longer.count) == (1004, 1005, 1003)
    np.testing.assert_array_equal(one.values[-1], [1, 1])
    np.testing.assert_array_equal(other.values[-2:], -np.ones((2, 2)))
    np.testing.assert_array_equal(one.values[:-1], longer.values)


def test_a_history_is_that_of_its_updates():
    random = np.random.default_rng(0)
    shown, wins, change = random.integers(1, 17, 50), random.integers(0, 99, (50, 3)), random.random(50)
    history = LayerHistory.empty(3)
    for number in range(50):
        history = history.with_update(int(shown[number]), torch.from_numpy(wins[number]), float(change[number]))
    np.testing.assert_array_equal(history.images, np.cumsum(shown))
    np.testing.assert_array_equal(history.wins, wins)
    np.testing.assert_array_equal(history.mean_change, change)
    assert (history.images.dtype, history.wins.dtype, history.mean_change.dtype) == (
        torch.int64, torch.int64, torch.float64,
    )  # fmt: skip
