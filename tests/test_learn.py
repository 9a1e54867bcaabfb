"""Learning as a procedure: interruption and resumption, several processes, presets, warnings, early end."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import h5py
import pytest
import torch

from snn.learn import main
from snn.learner import learn
from snn.learning import PRESETS, Homeostasis, Inhibition, Learning
from snn.parameters import LayerParameters, RetinaParameters, STDPParameters
from snn.runtime.errors import UserError
from snn.storage import SHIPPED_NETWORKS, images_digest, load_network, save

DATA = ["--data", "digits", "--limit-train", "60", "--maps", "4", "5", "--batch-size", "7", "--no-figures"]
LONG = [*DATA, "--min-updates", "60"]
# The last mini-batch of a pass holds one image: of two processes one has none.
SMALL = [*DATA, "--limit-train", "57", "--min-updates", "9"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "snn.learn", *arguments]


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, **options)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("learn") / "snn.h5"
    assert main([*LONG, "--out", str(out)]) == 0
    return out


def same_values(one: Path, other: Path) -> None:
    """The same network to the last bit, and so the same digest."""
    (first, _, digest), (second, _, other_digest) = load_network(one), load_network(other)
    for ours, theirs in zip(first.layers, second.layers, strict=True):
        assert torch.equal(ours.layer.conductance, theirs.layer.conductance)
        assert torch.equal(ours.history.mean_change, theirs.history.mean_change)
    assert digest == other_digest


@pytest.mark.slow
@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_run_goes_on_to_the_same_bits(stop, uninterrupted, tmp_path, capsys):
    out = tmp_path / "snn.h5"
    arguments = [*LONG, "--out", str(out), "--checkpoint-interval", "0"]
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not out.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(stop)
    _, error = process.communicate(timeout=60)
    assert process.returncode == {signal.SIGKILL: -9}.get(stop, 130), error
    network, _, _ = load_network(out)
    assert not network.complete
    if stop != signal.SIGKILL:
        assert sorted(path.name for path in tmp_path.iterdir()) == ["snn.h5", "snn_learning"]
    # Nothing is lost by forgetting to say that it should go on.
    before = out.read_bytes()
    capsys.readouterr()
    assert main(arguments) == 2
    refusal = capsys.readouterr().err
    assert "--resume" in refusal
    assert len(refusal.splitlines()) == 1
    assert out.read_bytes() == before
    assert main([*arguments, "--resume"]) == 0
    assert "resuming after" in capsys.readouterr().out
    same_values(out, uninterrupted)


def test_resuming_takes_the_same_settings_images_and_seed(uninterrupted, tmp_path, capsys):
    out = tmp_path / "snn.h5"
    assert main([*SMALL, "--out", str(out)]) == 0
    assert main([*SMALL, "--out", str(out), "--resume"]) == 0
    for other, word in (
        (["--seed", "1"], "seed"),
        (["--stdp.phi-p", "0.1"], "stdp"),
        (["--limit-train", "50"], "image"),
    ):
        capsys.readouterr()
        assert main([*SMALL, "--out", str(out), "--resume", *other]) == 2
        assert word in capsys.readouterr().err
    # Where there is nothing to go on from, it starts.
    assert main([*SMALL, "--out", str(tmp_path / "new.h5"), "--resume"]) == 0
    same_values(tmp_path / "new.h5", out)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path):
    assert main([*SMALL, "--out", str(tmp_path / "one.h5"), "--device", "cpu"]) == 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    arguments = [*SMALL, "--device", "cpu", "--out"]
    fabric = run(*arguments, str(tmp_path / "two.h5"), "--devices", "2", env=environment)
    assert fabric.returncode == 0, fabric.stderr
    assert fabric.stdout.count("learned 2 layers") == 1
    same_values(tmp_path / "one.h5", tmp_path / "two.h5")
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "snn.learn",
    ]
    started = subprocess.run(
        [*torchrun, *arguments, str(tmp_path / "run.h5")], capture_output=True, text=True, check=False, env=environment
    )
    assert started.returncode == 0, started.stderr
    same_values(tmp_path / "one.h5", tmp_path / "run.h5")


def test_a_preset_is_where_settings_start_and_flags_go_before_it(tmp_path):
    assert PRESETS["cifar10"].maps == (32, 40, 56)
    large = PRESETS["imagenet"]
    sizes, cost, side = (3, *large.maps), 0, 224
    for number in range(3):
        geometry = large.geometry(number)
        side //= geometry.stride
        cost += side**2 * sizes[number] * geometry.maps * geometry.kernel_size**2
    # The main CNN's stem and first block, which it replaces, pay the rest back (tests/test_complexity.py).
    assert cost < 0.055e9
    out = tmp_path / "snn.h5"
    flags = ["--data", "digits", "--limit-train", "30", "--min-updates", "1", "--maps", "3", "4", "2", "--no-figures"]
    assert main([*flags, "--out", str(out), "--preset", "imagenet"]) == 0
    network, _, _ = load_network(out)
    assert network.learning.maps == (3, 4, 2)
    assert network.learning.strides == (2, 2, 1)
    assert network.layers[0].layer.geometry == LayerParameters(3, 3, stride=2, padding=1)


def test_layers_have_their_own_kernels_and_strides():
    images = torch.randint(256, (12, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    p = Learning(maps=(3, 4), kernel_sizes=(5, 3), strides=(1, 2), min_updates=2, batch_size=6)
    network = learn(images, p)
    assert [tuple(learned.layer.conductance.shape) for learned in network.layers] == [(3, 1, 5, 5), (4, 3, 3, 3)]
    assert network.layers[1].layer.geometry.stride == 2
    with pytest.raises(UserError, match="strides"):
        Learning(maps=(3, 4), strides=(1, 2, 1))
    with pytest.raises(UserError, match="odd"):
        Learning(kernel_sizes=(4,))


def test_where_nothing_is_learned_a_warning_names_the_remedy(tmp_path, capsys):
    base = ["--data", "digits", "--limit-train", "40", "--maps", "3", "--min-updates", "20", "--no-figures"]
    still = ["--stdp.gamma-p", "0", "--stdp.gamma-d", "0", "--out", str(tmp_path / "still.h5")]
    assert main([*base, *still]) == 0
    assert "--stdp.gamma-p" in capsys.readouterr().err
    silent = ["--lif.v-init", "-2000", "--start-count", "0.0001", "--out", str(tmp_path / "silent.h5")]
    main([*base, *silent])
    assert "fires no spike; raise --start-count" in capsys.readouterr().err
    assert main([*base, "--out", str(tmp_path / "alive.h5")]) == 0
    assert "warning" not in capsys.readouterr().err


def test_the_time_of_full_ltd_follows_the_encoder(tmp_path, capsys):
    flags = ["--data", "digits", "--limit-train", "20", "--min-updates", "1", "--maps", "2", "--no-figures"]
    out = ["--out", str(tmp_path / "snn.h5")]
    assert main([*flags, *out, "--encoding.f-min", "5"]) == 0
    network, _, _ = load_network(tmp_path / "snn.h5")
    assert network.learning.rule.ltd_delay == 200
    assert main([*flags, *out, "--encoding.f-min", "0"]) == 2
    assert "--stdp.ltd-delay" in capsys.readouterr().err
    assert main([*flags, *out, "--encoding.f-min", "0", "--stdp.pairing", "two-sided"]) == 0


def test_a_foreign_file_is_replaced_but_not_resumed(tmp_path, capsys):
    flags = ["--data", "digits", "--limit-train", "20", "--min-updates", "1", "--maps", "2", "--no-figures"]
    out = tmp_path / "snn.h5"
    out.write_text("something else")
    assert main([*flags, "--out", str(out), "--resume"]) == 2
    assert out.read_text() == "something else"
    assert main([*flags, "--out", str(out)]) == 0
    assert load_network(out)[0].complete


def test_images_are_known_again_whatever_their_layout():
    images = torch.randint(256, (3, 4, 5, 2), dtype=torch.uint8).permute(0, 3, 1, 2)
    assert images_digest(images) == images_digest(images.contiguous())
    assert images_digest(images) != images_digest(images.reshape(3, 2, 5, 4))


def test_learning_ends_early_when_conductances_no_longer_move():
    images = torch.randint(256, (40, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    settings = {"maps": (3,), "min_updates": 800, "batch_size": 4, "stdp": STDPParameters(beta_p=2, beta_d=2)}
    early = learn(images, Learning(**settings, stop_when_converged=True, convergence_tolerance=0.03))
    history = early.layers[0].history
    assert 200 <= len(history.images) < 800
    assert len(history.images) % 100 == 0
    # What it does until then is the same.
    full = learn(images, Learning(**settings))
    assert torch.equal(full.layers[0].history.mean_change[: len(history.images)], history.mean_change)


def test_the_plain_rule_has_no_homeostasis():
    images = torch.randint(256, (20, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    off = Homeostasis(synaptic_scaling=False, threshold_step=0, mean_conductance=0)
    seen = []
    learn(images, Learning(maps=(3,), min_updates=5, homeostasis=off), save=seen.append)
    for network in seen[:-1]:
        state = network.unfinished
        assert torch.equal(state.layer.gain, state.start.gain)
        assert torch.equal(state.layer.v_threshold, state.start.v_threshold)
        assert (state.ltd_factor == 1).all()
    assert not torch.equal(seen[0].unfinished.layer.conductance, seen[0].unfinished.start.conductance)


def test_feed_forward_inhibition_acts_where_it_is_asked_for():
    images = torch.randint(256, (20, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    networks, states = {}, {}
    for where in ("none", "learning", "frozen", "both"):
        seen = []
        p = Learning(maps=(3, 4), min_updates=5, inhibition=Inhibition(where))
        networks[where] = learn(images, p, save=seen.append)
        states[where] = [network.unfinished for network in seen if network.unfinished]
        learning, frozen = where in ("learning", "both"), where in ("frozen", "both")
        for state in states[where]:
            assert state.layer.geometry.feed_forward_inhibition == learning
        for learned in networks[where].layers:
            assert learned.layer.geometry.feed_forward_inhibition == frozen
            # The rate that it passes on is set with the inhibition that it passes it on with.
            assert learned.mean_rate == pytest.approx(12, abs=0.5)
    first = {where: network.layers[0] for where, network in networks.items()}
    # What the first layer learns does not depend on what comes after learning, but what it passes on does.
    for one, other in (("none", "frozen"), ("learning", "both")):
        assert torch.equal(first[one].layer.conductance, first[other].layer.conductance)
        assert first[one].learning_gain == first[other].learning_gain
        assert not torch.equal(first[one].layer.gain, first[other].layer.gain)
        second = [networks[where].layers[1].layer.conductance for where in (one, other)]
        assert not torch.equal(*second)
    assert not torch.equal(first["none"].layer.conductance, first["both"].layer.conductance)
    assert torch.equal(first["none"].initial_conductance, first["both"].initial_conductance)


def test_a_network_of_an_older_file_has_neither_retina_nor_inhibition(tmp_path, capsys):
    with h5py.File(SHIPPED_NETWORKS / "cifar10-fd.h5") as file:
        assert file.attrs["schema"] == "snn/2"
        assert "retina" not in file
        assert "inhibition" not in file["learning"]
    network, source, digest = load_network("pretrained:cifar10-fd")
    assert network.retina is None
    assert network.learning.retina == RetinaParameters()
    assert network.learning.inhibition == Inhibition()
    assert not any(learned.layer.geometry.feed_forward_inhibition for learned in network.layers)
    # Written anew it is a file of today, with the same layers.
    assert save(network, tmp_path / "new.h5", source) != digest
    again = load_network(tmp_path / "new.h5").network
    assert again == replace(network, layers=again.layers)
    for ours, theirs in zip(again.layers, network.layers, strict=True):
        assert torch.equal(ours.layer.conductance, theirs.layer.conductance)


def test_what_is_printed_is_recorded(tmp_path, capsys):
    figures = tmp_path / "figures.json"
    assert main([*SMALL, "--out", str(tmp_path / "snn.h5"), "--json", str(figures)]) == 0
    layers = json.loads(figures.read_text())["layers"]
    network, _, _ = load_network(tmp_path / "snn.h5")
    for layer, learned in zip(layers.values(), network.layers, strict=True):
        assert 0 < layer["saturated_ltp_share_of_events"] + layer["saturated_ltd_share_of_events"] < 1
        assert layer["largest_share_of_spikes_over_fair_share"] == learned.fair_shares.max().item()
        assert layer["mean_output_rate_Hz"] == pytest.approx(12, abs=0.5)
    assert "probability at its peak" in capsys.readouterr().out
