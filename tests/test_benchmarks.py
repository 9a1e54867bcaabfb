"""Benchmarks that say what is learned: probe, kept results, counted events; and that presets are timed as they are."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import RidgeClassifierCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks import features
from benchmarks.features import main as probe_features
from benchmarks.frequency_dependence import Events, chances, synaptic_events
from benchmarks.frequency_dependence import main as draw_frequency_dependence
from benchmarks.frontend import main as time_frontend
from benchmarks.frontend import simulators
from benchmarks.presets import first_layers, learning_table
from benchmarks.probe import Sizes, fit_classifier, split_images, with_noise
from benchmarks.recipe import CHANGES, gains
from benchmarks.recipe import main as measure_recipe
from benchmarks.stdp import main as time_stdp
from benchmarks.training_step import main as profile_step
from benchmarks.training_step import step_gflop
from hybrid.architecture import baseline
from hybrid.complexity import count_macs
from hybrid.conditions import Noise
from snn.data import load_images
from snn.data_source import DataSource
from snn.engines.base import choose_engine
from snn.geometry import ConvGeometry
from snn.learner import learn
from snn.learning import PRESETS, Learning
from snn.parameters import LayerParameters, RetinaParameters
from snn.registries import RULES
from snn.runtime.outputs import write_csv

SMALL = ["--learn-images", "60", "--fit-images", "200", "--test-images", "100", "--seeds", "0", "--min-updates", "5"]
SMALL += ["--maps", "4", "--kernel-sizes", "3", "--retina.kernel-size", "5", "--retina.patches", "2000"]


@pytest.mark.parametrize(("images", "widths"), [(300, (7, 11)), (40, (30, 25, 3))])
def test_the_linear_classifier_is_scikit_learns(images, widths):
    random = np.random.default_rng(images)
    labels = random.integers(4, size=images)
    parts = [random.normal(labels[:, None] * random.normal(size=w), 2.0, (images, w)) + 5 for w in widths]
    parts[0][:, 3] = 7.0  # a feature that never changes
    penalties = (0.1, 3.0, 40.0, 900.0)
    found = fit_classifier([torch.tensor(p).float() for p in parts], torch.tensor(labels), penalties)
    oracle = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=penalties)).fit(np.hstack(parts), labels)
    assert found.penalty == oracle[-1].alpha_
    others = [random.normal(5, 3, (500, w)) for w in widths]
    answers = oracle.predict(np.hstack(others))
    tensors = [torch.tensor(p).float() for p in others]
    # An image whose two best classes are equal up to rounding may go either way.
    assert found.accuracy(tensors, torch.tensor(answers)) >= 99.5
    assert found.accuracy(tensors, torch.tensor(3 - answers)) < 50


def test_images_to_learn_on_fit_and_test_are_different_ones():
    data = load_images("digits", "train")
    split = split_images(DataSource(), Sizes(100, 300, 200))
    position = {image.numpy().tobytes(): label for image, label in zip(data.images, data.labels.tolist(), strict=True)}
    used = [image.numpy().tobytes() for part in (split.learn, split.fit, split.test) for image in part]
    assert len(used) == 600
    # Digits has a few equal images.
    assert len(set(used)) >= len({image.numpy().tobytes() for image in data.images}) - (len(data.images) - 600)
    assert [position[image] for image in used[100:400]] == split.fit_labels.tolist()
    whole = split_images(DataSource(), Sizes(100, 300, 200), whole=True)
    assert torch.equal(whole.fit, data.images)
    assert torch.equal(whole.test, load_images("digits", "test").images)


def read(path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_results_are_kept_and_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path, capsys, monkeypatch):
    out = tmp_path / "features.csv"
    command = [*SMALL, "--rules", "fd", "stochastic", "--conductances", "learned", "random", "--out", str(out)]
    assert probe_features(command) == 0
    printed, before = capsys.readouterr().out, out.read_bytes()
    rows = read(out)
    # Three conditions: pixels; both responses of two learned networks, and of one random one.
    assert len(rows) == 3 * (1 + 2 * 2 + 2)
    assert {row["rule"] for row in rows if row["conductances"] == "random"} == {""}
    for row in rows:
        if (row["conductances"], row["condition"], row["response"]) == ("learned", "clean", "converted"):
            name = f"learned {row['rule']}"
            assert f"| converted | {name} | {float(row['accuracy_percent']):.1f} |" in printed

    # As if it had been interrupted: the results of the second rule, which come last, are lost.
    kept = [row for row in rows if row["rule"] != "stochastic"]
    with open(out, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
    assert probe_features(command) == 0
    assert out.read_bytes() == before
    monkeypatch.setattr(features, "learn", lambda *_, **__: pytest.fail("learned again"))
    assert probe_features(command) == 0
    assert out.read_bytes() == before
    # Other settings are other results.
    with pytest.raises(pytest.fail.Exception, match="learned again"):
        probe_features([*command, "--output-rate", "3"])


@pytest.mark.slow
def test_no_result_is_lost_or_taken_for_another(tmp_path):
    out, at_once = tmp_path / "features.csv", tmp_path / "at_once.csv"
    small = [*SMALL, "--conductances", "learned", "--responses", "simulated"]
    noisy = ["--conditions", "clean", "awgn:10"]
    assert probe_features([*small, "--conditions", "clean", "--out", str(out)]) == 0
    first = read(out)
    assert [row["condition"] for row in first] == ["clean"] * 2
    assert probe_features([*small, *noisy, "--out", str(out)]) == 0
    # What was there stays, what is new comes behind it and is what a command makes that had nothing to begin with.
    assert read(out)[:2] == first
    assert probe_features([*small, *noisy, "--out", str(at_once)]) == 0
    assert sorted(map(repr, read(out))) == sorted(map(repr, read(at_once)))
    assert probe_features([*small, "--conditions", "awgn:15", "--out", str(out)]) == 0
    assert len(read(out)) == 6
    # Images of another size, and others, as many of them.
    for number, flags in enumerate((["--image-size", "10"], ["--limit-train", "500"]), 4):
        assert probe_features([*small, *flags, "--conditions", "clean", "--out", str(out)]) == 0
        rows = read(out)
        assert len(rows) == 2 * number
        assert rows[:2] == first
        pixels, learned = rows[-2:]
        assert pixels["run"] == first[0]["run"]
        assert (pixels["data"], learned["data"]) == (
            f"digits, training images, {' '.join(flags)[2:].replace('-', '_')}",
        ) * 2


@pytest.mark.parametrize(
    ("command", "flags", "named"),
    [
        (probe_features, ["--stdp.rule", "stochastic", "--rules", "fd"], "--stdp.rule stochastic"),
        (probe_features, ["--snn", "x.h5", "--rules", "stochastic"], "--rules would be ignored"),
        (
            probe_features,
            ["--snn", "x.h5", "--preset", "cifar10", "--seeds", "3"],
            "--preset, --seeds would be ignored",
        ),
        (probe_features, ["--snn", "x.h5", "--output-rate", "3"], "--snn x.h5"),
        (probe_features, ["--all", "--fit-images", "100"], "--fit-images would be ignored"),
        (probe_features, ["--limit-test", "100"], "--limit-test 100"),
        (time_frontend, ["--presets", "--snn", "x.h5"], "--snn would be ignored"),
        (time_stdp, ["--data", "folder:images", "--limit-train", "3"], "--data, --limit-train would be ignored"),
        (time_stdp, ["--presets", "--tracks", "rule"], "--tracks would be ignored"),
    ],
)
def test_flags_without_effect_are_refused(capsys, command, flags, named):
    assert command(flags) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert named in line


def test_pixels_are_probed_as_scikit_learn_does(tmp_path):
    out = tmp_path / "features.csv"
    assert probe_features([*SMALL, "--conductances", "learned", "--responses", "converted", "--out", str(out)]) == 0
    split = split_images(DataSource(), Sizes(60, 200, 100))
    # Digits have 8 x 8 pixels, so each is a cell.
    oracle = make_pipeline(StandardScaler(), RidgeClassifierCV(alphas=(30, 100, 300, 1000, 3000, 10_000, 30_000)))
    oracle.fit(split.fit.flatten(1).numpy(), split.fit_labels)
    for row in read(out)[:3]:
        test = with_noise(split.test, Noise.parse(row["condition"])).flatten(1).numpy()
        expected = 100 * oracle.score(test, split.test_labels)
        assert (row["layers"], row["features"]) == ("1", "64")
        assert float(row["accuracy_percent"]) == pytest.approx(expected, abs=1.0)


def test_differences_pair_seeds_and_count_their_deviations():
    ours, theirs = {"clean": {"0": 50.0, "1": 54.0, "2": 55.0}}, {"clean": {"0": 40.0, "2": 43.0, "1": 45.0}}
    # 10, 9 and 12: mean 10.33, standard deviation 1.53.
    assert list(features.differences(ours, theirs, ["clean", "awgn:20"])) == ["+10.3 ± 1.5, 7 sd", ""]
    assert features.spread({"0": 50.0}) == "50.0"


def test_a_file_of_something_else_is_left_alone(tmp_path, capsys):
    out = tmp_path / "other.csv"
    out.write_text("a,b\n1,2\n")
    assert probe_features([*SMALL, "--out", str(out)]) == 2
    assert "--out" in capsys.readouterr().err
    assert out.read_text() == "a,b\n1,2\n"
    assert probe_features(["--maps", "4", "4", "--conductances", "gabor"]) == 2
    assert "gabor" in capsys.readouterr().err


def test_cost_is_that_of_retina_and_convolutions():
    p = Learning(maps=(6, 8), kernel_sizes=(5, 3), strides=(2, 1), retina=RetinaParameters("whiten", kernel_size=7))
    retina, first, second = 16 * 16 * 3 * 3 * 49, 8 * 8 * 6 * 6 * 25, 8 * 8 * 8 * 6 * 9
    assert features.costs(p, (3, 16, 16)) == [(retina + first) / 1e6, (retina + first + second) / 1e6]


def naive_events(pre, post, level, levels, p: LayerParameters):
    """By loops: the last presynaptic spike of each synapse that exists, at each postsynaptic spike."""
    steps, c_in, height, width = pre.shape
    events = np.zeros((post.shape[1], c_in, p.kernel_size, p.kernel_size, steps + 1, levels), int)
    for t, m, y, x in zip(*np.nonzero(post), strict=True):
        for c, ky, kx in np.ndindex(c_in, p.kernel_size, p.kernel_size):
            row, column = y * p.stride + ky - p.padding, x * p.stride + kx - p.padding
            if 0 <= row < height and 0 <= column < width:
                before = [s for s in range(t + 1) if pre[s, c, row, column]]
                lag = t - before[-1] if before else steps
                events[m, c, ky, kx, lag, level[c, row, column]] += 1
    return events


def test_synaptic_events_are_those_of_a_naive_loop_and_of_the_engine():
    random = np.random.default_rng(3)
    p = LayerParameters(4, 3, stride=2, padding=1)
    pre, post = random.random((12, 3, 6, 5)) < 0.1, random.random((12, 4, 3, 3)) < 0.2
    level = pre.sum(0)
    levels = level.max() + 1
    geometry = ConvGeometry.of(p, (3, 6, 5))
    events = synaptic_events(pre, post, level, levels, geometry)
    np.testing.assert_array_equal(events, naive_events(pre, post, level, levels, p))
    # Chances of one for a single lag and level: LTP or LTD wherever it occurs.
    table = torch.zeros((13, int(levels)), dtype=torch.int32)
    table[2, 1], table[12, 0] = 2**30, -(2**30)
    dense = [torch.from_numpy(spikes)[:, None] for spikes in (pre, post)]
    seeds = torch.tensor([5])
    counts = choose_engine("norse").count_events(*dense, torch.from_numpy(level)[None], [table], geometry, seeds)
    np.testing.assert_array_equal(counts.ltp, events[..., 2, 1])
    np.testing.assert_array_equal(counts.ltd, events[..., 12, 0])


def test_outcomes_and_balance_follow_from_counts_and_probabilities():
    counts = np.zeros((1, 2, 1, 1, 3, 2), int)
    counts[0, 0, 0, 0, 0] = 3, 1
    counts[0, 1, 0, 0, 2] = 4, 2
    ltp = {"fd": np.array([[0.5, 0.9], [0, 0], [0, 0]]), "stochastic": np.array([[0.5, 0.5], [0, 0], [0, 0]])}
    ltd = {"fd": np.array([[0, 0], [0, 0], [0.5, 0.2]]), "stochastic": np.array([[0, 0], [0, 0], [0.5, 0.6]])}
    events = Events(counts, np.array([0, 1, np.inf]), np.array([0.0, 1.0]), ltp, ltd)
    assert events.outcomes() == pytest.approx(
        {
            "LTP under both": 2.0 / 10,
            "LTP under fd only": 0.4 / 10,
            "LTP under stochastic only": 0,
            "LTD under both": 2.4 / 10,
            "LTD under fd only": 0,
            "LTD under stochastic only": 0.8 / 10,
            "nothing under either": 4.4 / 10,
        }
    )
    # Expected LTP and LTD of the two synapses by fd: 2.4, 0 and 0, 2.4; half an event is added to each.
    half = np.log(2.9 / 0.5)
    np.testing.assert_allclose(events.balance("fd"), [[half, -half]])


def test_chances_are_those_of_the_rule():
    p = PRESETS["retina"]
    ltp, ltd = chances(p, "fd", 13)
    rates = torch.arange(13) / 0.3
    fn = ((rates - 1) / 39).clamp(0, 1)
    rule = RULES["fd"](p.rule)
    np.testing.assert_allclose(ltp[4], rule.ltp(torch.full((13,), 10.0), fn), atol=1e-8)
    np.testing.assert_allclose(ltd[-1], rule.ltd(torch.full((13,), torch.inf), fn), atol=1e-8)


@pytest.mark.slow
def test_the_figure_of_frequency_dependence_is_drawn(tmp_path, capsys):
    out = tmp_path / "fd.png"
    sizes = ["--learn-images", "60", "--fit-images", "200", "--test-images", "100", "--min-updates", "20"]
    assert draw_frequency_dependence([*sizes, "--maps", "4", "--retina.kernel-size", "5", "--out", str(out)]) == 0
    assert out.stat().st_size > 20_000
    printed = capsys.readouterr().out
    assert "| fd | 0.000 | 1.000 |" in printed
    shares = [float(line.split("|")[2].strip(" %")) for line in printed.splitlines() if "under" in line and "%" in line]
    assert sum(shares) == pytest.approx(100, abs=0.05)
    assert draw_frequency_dependence(["--out", str(out), "--stdp.pairing", "two-sided"]) == 2


def test_presets_are_timed_with_one_change_at_a_time():
    paper, between, retina = first_layers().values()
    assert replace(PRESETS["cifar10"], maps=(32,)) == paper
    assert (between.kernel_sizes, between.maps) == (retina.kernel_sizes, retina.maps)
    assert replace(between, kernel_sizes=paper.kernel_sizes, maps=paper.maps, strides=paper.strides) == paper
    assert retina.retina.kind != "none"
    rows = [
        {
            "layer": name,
            "input_channels": inputs,
            "maps": 32,
            "kernel_size": 5,
            "images_per_s": 1000 / ms,
            "ms_per_image": ms,
            "post_spikes_per_image": 7.0,
        }
        for name, inputs, times in (("a", 3, (2.0, 4.0, 3.0)), ("b", 6, (4.5, 4.4, 9.0)))
        for ms in times
    ]
    assert "| b | 6 | 32 | 5 x 5 | 222 (111 to 227) | 4.50 | 1.50 | 2 | 7 |" in learning_table(rows)


def test_norses_loop_counts_as_the_simulator_does_with_retina_and_inhibition(digits):
    p = replace(PRESETS["retina"], maps=(5,), min_updates=3, retina=RetinaParameters("whiten", 5, patches=2000))
    network = learn(digits.images, p)
    ours, theirs = (simulate() for simulate in simulators(network, digits.images[:10]).values())
    assert ours.float().mean() > 0.1
    assert (ours == theirs).double().mean() > 0.999


@pytest.mark.parametrize(("backbone", "channels"), [("fast_cnn", 24), ("mobilenet_v2", 32)])
def test_a_step_is_three_forward_passes_but_for_the_gradient_of_images(backbone, channels):
    network = baseline((3, 32, 32), backbone=backbone, width=1.0)
    first = 32 * 32 * 3 * channels * 9
    assert step_gflop(network) == pytest.approx(2 * (3 * count_macs(network, (3, 32, 32)) - first) / 1e9)


def test_the_time_of_a_step_is_divided_among_kinds_of_work(tmp_path):
    out, figures = tmp_path / "step.csv", tmp_path / "step.json"
    size = ["--width", "0.25", "--batch-size", "16", "--steps", "2", "--out", str(out), "--json", str(figures)]
    assert profile_step([*size, "--variant", "safe", "--frontend", "pretrained:cifar10-retina"]) == 0
    shares = {row["kind"]: float(row["share"]) for row in read(out)}
    assert sum(shares.values()) == pytest.approx(1, abs=0.05)
    assert {"retina", "front end", "images and augmentation", "optimiser", "loss and accuracy"} <= set(shares)
    assert shares["convolution, backward"] > shares["images and augmentation"] > 0
    written = json.loads(figures.read_text())
    assert written["share_of_peak"] * written["peak_after_gflop_per_s"] <= written["gflop_per_s"] * (1 + 1e-9)
    assert profile_step([*size, "--steps", "0"]) == 2


def test_gains_are_differences_from_the_recipe_seed_by_seed():
    def rows(change, cost, clean, noisy):
        return [
            {"change": change, "condition": condition, "seed": str(seed), "accuracy_percent": str(value),
             "processor_ms_per_image": str(cost)}
            for condition, values in (("clean", clean), ("awgn:15", noisy)) for seed, value in values.items()
        ]  # fmt: skip

    made = [
        *rows("SGD, not Muon", 1.5, {0: 60.0, 2: 64.0}, {0: 40.0, 2: 45.0}),
        *rows("recipe fast", 2.0, {0: 66.0, 1: 90.0, 2: 66.0}, {0: 41.0, 1: 70.0, 2: 42.0}),
        *rows("cutout of 8 pixels", 2.25, {1: 91.5}, {1: 70.0}),
        *rows("whole images in all passes", 1.0, {7: 50.0}, {7: 30.0}),
    ]
    # -6 and -2, -1 and +3: seeds 0 and 2 alone; a seed that the recipe lacks gives no gain.
    assert gains(made) == [
        ("recipe fast", "3", "74.0", "", "51.0", "", "2.00"),
        ("SGD, not Muon", "2", "62.0", "-4.0 ± 2.8", "42.5", "+1.0 ± 2.8", "1.50"),
        ("cutout of 8 pixels", "1", "91.5", "+1.5", "70.0", "+0.0", "2.25"),
        ("whole images in all passes", "1", "50.0", "", "30.0", "", "1.00"),
    ]


@pytest.mark.slow
def test_parts_of_the_recipe_are_measured_and_an_interrupted_run_goes_on(tmp_path, capsys):
    out = tmp_path / "recipe.csv"
    small = ["--image-size", "16", "--limit-train", "100", "--epochs", "1", "--batch-size", "32", "--seeds", "0"]
    small += ["--width", "0.1", "--out", str(out)]
    assert measure_recipe(small) == 0
    assert "Accuracy (%) on held-out training images, 1 passes, fast_cnn x 0.1" in capsys.readouterr().out
    rows = read(out)
    assert {(row["change"], row["condition"]) for row in rows} == {
        (c, n) for c in CHANGES for n in ("clean", "awgn:15")
    }
    assert len(rows) == 2 * len(CHANGES)
    # A fifth of the images is held out.
    assert {row["images"] for row in rows} == {"20"}
    assert all(0 <= float(row["accuracy_percent"]) <= 100 for row in rows)
    losses = {row["change"]: row["train_loss_nat"] for row in rows}
    # In one pass with few steps, flips by turns and averages have no time; the others train otherwise.
    assert len(set(losses.values())) > 6
    write_csv(out, rows[:-4])
    # Those that are there stay, and of the others only what is asked for is measured.
    assert measure_recipe([*small, "--changes", rows[-4]["change"]]) == 0
    assert sorted(map(repr, read(out)[:-2])) == sorted(map(repr, rows[:-4]))
    assert {row["change"] for row in read(out)[-2:]} == {rows[-4]["change"]}
    write_csv(out, rows[:-4])
    assert measure_recipe(small) == 0
    again = read(out)
    assert again[:-4] == rows[:-4]
    timing = ("seconds", "processor_ms_per_image")
    plain = [[{k: v for k, v in row.items() if k not in timing} for row in each] for each in (rows, again)]
    assert sorted(map(repr, plain[0])) == sorted(map(repr, plain[1]))
    for other in (["--epochs", "2"], ["--width", "0.2"], ["--limit-train", "90"]):
        assert measure_recipe([*small, *other]) == 2
        assert "holds results of other images or settings" in capsys.readouterr().err
    assert read(out) == again
