"""What TensorBoard shows while layers learn, against the history that the file holds."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from snn.learn import main
from snn.storage import load_network

SMALL = ["--data", "digits", "--limit-train", "100", "--maps", "6", "8", "--min-updates", "47", "--no-figures",
         "--image-interval", "15"]  # fmt: skip
UPDATES = 49
CURVES = {
    "activity/spikes_per_image",
    "activity/rate_Hz",
    "activity/active_channels",
    "activity/largest_share_of_spikes_over_fair_share",
    "learning/mean_change_of_conductance",
    "learning/mean_conductance_share_of_range",
    "homeostasis/threshold_lowest_mV",
    "homeostasis/threshold_highest_mV",
    "homeostasis/ltd_factor_lowest",
    "homeostasis/ltd_factor_highest",
}


def shown(folder: Path) -> dict[str, EventAccumulator]:
    """What TensorBoard reads of each layer."""
    runs = {}
    for run in sorted(folder.iterdir()):
        runs[run.name] = EventAccumulator(str(run), size_guidance={"images": 0, "scalars": 0, "histograms": 0})
        runs[run.name].Reload()
    return runs


def curves(events: EventAccumulator) -> dict[str, list[tuple[int, float]]]:
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def pictures(events: EventAccumulator) -> dict[int, np.ndarray]:
    """Kernels by update, as (height, width, 3) bytes."""
    (tag,) = events.Tags()["images"]
    read = [(event.step, Image.open(io.BytesIO(event.encoded_image_string))) for event in events.Images(tag)]
    assert len({step for step, _ in read}) == len(read)
    return {step: np.asarray(image.convert("RGB")) for step, image in read}


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Folder, and what the command says."""
    out = tmp_path_factory.mktemp("board") / "snn.h5"
    assert main([*SMALL, "--out", str(out)]) == 0
    return out


def test_curves_are_those_of_the_history(learned):
    network = load_network(learned).network
    runs = shown(learned.parent / "snn_learning")
    assert list(runs) == ["conv1", "conv2"]
    for events, layer, maps in zip(runs.values(), network.layers, (6, 8), strict=True):
        history, drawn = layer.history, curves(events)
        assert drawn.keys() == CURVES
        assert len(history.images) == UPDATES
        for index, last in enumerate((20, 40)):
            window = slice(last - 20, last)
            seen = history.images[last - 1].item() - (history.images[last - 21].item() if last > 20 else 0)
            spikes = history.wins[window].sum(0).double()
            expected = {
                "activity/spikes_per_image": spikes.sum() / seen,
                # 8 x 8 places of each channel, for 0.3 s.
                "activity/rate_Hz": spikes.sum() / seen / (64 * maps * 0.3),
                "activity/active_channels": (spikes > 0).sum(),
                "activity/largest_share_of_spikes_over_fair_share": spikes.max() / spikes.mean(),
                "learning/mean_change_of_conductance": history.mean_change[window].mean(),
            }
            for name, value in expected.items():
                step, found = drawn[name][index]
                assert step == last
                assert found == pytest.approx(float(value), rel=1e-5)
        lowest, highest = (drawn[f"homeostasis/threshold_{end}_mV"][1][1] for end in ("lowest", "highest"))
        assert lowest < -60.2 < highest
        assert 0 < drawn["learning/mean_conductance_share_of_range"][1][1] < 1


def test_kernels_are_pictures_at_start_end_and_in_between(learned):
    network = load_network(learned).network
    for events, layer in zip(shown(learned.parent / "snn_learning").values(), network.layers, strict=True):
        drawn = pictures(events)
        assert list(drawn) == [0, 15, 30, 45, UPDATES]
        for step, kernels in ((0, layer.initial_conductance), (UPDATES, layer.layer.conductance)):
            picture, count = drawn[step], len(kernels)
            # Kernels of 3 pixels in a row, with a white pixel around each, all enlarged alike.
            scale = picture.shape[0] // 5
            assert picture.shape == (5 * scale, (4 * count + 1) * scale, 3)
            assert picture.shape[1] >= 480
            pixels = picture[scale // 2 :: scale, scale // 2 :: scale, 0]
            assert (pixels[0] == 255).all()
            for number, kernel in enumerate(kernels.mean(1)):
                tile = pixels[1:4, 4 * number + 1 : 4 * number + 4]
                stretched = (kernel - kernel.min()) / (kernel.max() - kernel.min())
                np.testing.assert_allclose(tile, 255 * stretched, atol=0.6)
        histogram = events.Histograms("learning/conductance")
        assert [event.step for event in histogram] == [0, 15, 30, 45, UPDATES]
        assert histogram[-1].histogram_value.num == layer.layer.conductance.numel()
        assert histogram[-1].histogram_value.max == pytest.approx(layer.layer.conductance.max().item())
        fair = events.Histograms("activity/spikes_over_fair_share")[-1].histogram_value
        assert fair.sum == pytest.approx(fair.num)


def test_behind_a_retina_kernels_show_on_less_off(tmp_path):
    flags = ["--preset", "retina-digits", "--maps", "5", "--retina.patches", "2000", "--min-updates", "5"]
    assert main([*SMALL[:4], *flags, "--no-figures", "--out", str(tmp_path / "x.h5")]) == 0
    (events,) = shown(tmp_path / "x_learning").values()
    assert events.Tags()["images"] == ["kernels_(ON_less_OFF)"]
    picture = pictures(events)[7]
    (layer,) = load_network(tmp_path / "x.h5").network.layers
    side = layer.layer.conductance.shape[-1]
    scale = picture.shape[0] // (side + 2)
    pixels = picture[scale // 2 :: scale, scale // 2 :: scale, 0].astype(float)
    preference = layer.layer.conductance[0, 0] - layer.layer.conductance[0, 1]
    tile = pixels[1 : side + 1, 1 : side + 1]
    np.testing.assert_allclose(tile, 127.5 + 127.5 * preference / preference.abs().max(), atol=0.6)


@pytest.mark.slow
def test_interrupted_learning_shows_each_update_once(learned, tmp_path):
    out = tmp_path / "snn.h5"
    arguments = [*SMALL, "--checkpoint-interval", "0.05", "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-m", "snn.learn", *arguments], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (out.exists() and load_network(out).network.layers):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert not load_network(out).network.complete
    assert main([*arguments, "--resume"]) == 0
    whole, pieces = shown(learned.parent / "snn_learning"), shown(tmp_path / "snn_learning")
    for name, events in whole.items():
        assert curves(pieces[name]) == curves(events)
        expected, found = pictures(events), pictures(pieces[name])
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[step], picture) for step, picture in expected.items())


@pytest.mark.slow
def test_of_several_processes_one_writes(learned, tmp_path):
    arguments = [*SMALL, "--device", "cpu", "--devices", "2", "--out", str(tmp_path / "snn.h5")]
    result = subprocess.run(
        [sys.executable, "-m", "snn.learn", *arguments], capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    for run in ("conv1", "conv2"):
        assert len(list((tmp_path / "snn_learning" / run).iterdir())) == 1
    for name, events in shown(learned.parent / "snn_learning").items():
        assert curves(shown(tmp_path / "snn_learning")[name]) == curves(events)


def test_learning_anew_replaces_what_was_there_and_pictures_can_be_left_out(tmp_path, capsys):
    arguments = [*SMALL[:4], "--min-updates", "20", "--no-figures", "--out", str(tmp_path / "x.h5")]
    assert main([*arguments, "--maps", "3", "4"]) == 0
    assert f"tensorboard --logdir {tmp_path / 'x_learning'}" in capsys.readouterr().out.splitlines()[-1]
    (tmp_path / "x_learning" / "conv1" / "note.txt").write_text("mine")
    assert main([*arguments, "--maps", "3", "--image-interval", "0"]) == 0
    conv1, conv2 = shown(tmp_path / "x_learning").values()
    assert [step for step, _ in curves(conv1)["activity/active_channels"]] == [20]
    assert not conv1.Tags()["images"]
    assert not conv1.Tags()["histograms"]
    assert not conv2.Tags()["scalars"]
    assert (tmp_path / "x_learning" / "conv1" / "note.txt").read_text() == "mine"


def test_curves_of_homeostasis_are_there_where_it_acts(tmp_path):
    off = ["--homeostasis.threshold-step", "0", "--homeostasis.mean-conductance", "0", "--min-updates", "20"]
    assert main([*SMALL[:4], *off, "--maps", "3", "--no-figures", "--out", str(tmp_path / "x.h5")]) == 0
    (events,) = shown(tmp_path / "x_learning").values()
    assert curves(events).keys() == {name for name in CURVES if not name.startswith("homeostasis")}


def test_watching_changes_no_bit(learned):
    import snn
    from snn.data_source import DataSource

    stored = load_network(learned).network
    network = snn.learn(snn.load_images(DataSource(limit_train=100), "train"), stored.learning)
    for one, other in zip(network.layers, stored.layers, strict=True):
        assert torch.equal(one.layer.conductance, other.layer.conductance)
        assert torch.equal(one.history.wins, other.history.wins)


def test_the_folder_is_the_commands_own(tmp_path, capsys):
    (tmp_path / "a_learning").write_text("a file")
    assert main([*SMALL, "--out", str(tmp_path / "a.h5")]) == 2
    assert "a_learning is not a folder" in capsys.readouterr().err
    (tmp_path / "b_learning").mkdir()
    assert main([*SMALL, "--out", str(tmp_path / "b.h5"), "--json", str(tmp_path / "b_learning" / "x.json")]) == 2
    assert "is the folder of this command's logs" in capsys.readouterr().err
    assert {path.name for path in tmp_path.rglob("*")} == {"a_learning", "b_learning"}
