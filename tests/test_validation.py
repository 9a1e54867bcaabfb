"""The three commands that compare with Brian2 and SciPy: they agree, and they notice when the learner is wrong."""

import functools
import io
import json
import math
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pytest
import torch
from scipy import stats

import snn.engines.events
import snn.engines.norse
import snn.layer
import snn.plasticity
import snn.retina
import validation.reference.neuron
from snn.engines.norse import NorseEngine, SheetState
from snn.layer import SpikingConv2d
from snn.parameters import Encoding, LayerParameters, LIFParameters, RetinaParameters, STDPParameters
from snn.retina import Retina
from snn.rules.deterministic import Deterministic
from snn.rules.fd import FrequencyDependent
from snn.spikes import Raster, SpikeEvents
from validation.comparisons.learning import SWITCH, WITH_CHANCE, WITHOUT_CHANCE, learners
from validation.comparisons.response import flat_regions
from validation.comparisons.window import (
    Levels,
    Realised,
    RuleResult,
    WindowConfig,
    brian2_draws,
    compare_rule,
    expected,
)
from validation.freq_response import main as freq_response
from validation.network import QUICK, NetworkConfig
from validation.network import main as network
from validation.random_networks import switch_rule
from validation.reference.base import reference_of
from validation.reference.equations import euler_interval, magnitudes
from validation.reference.network import ReferenceNetwork, connections, most_waiting
from validation.report import Report
from validation.significance import binomial_band, binomial_p, same_distribution_p, same_rate_p, same_spread_p, total_p
from validation.stdp_window import main as stdp_window

pytestmark = pytest.mark.needs_validation

# Less than --quick alone takes; every comparison is still made.
COMMANDS = {
    "freq_response": ["--durations", "300", "500"],
    "stdp_window": ["--draws", "1000"],
    "network": ["--networks", "6", "--batches", "1"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_the_command_agrees(name, tmp_path):
    command = [sys.executable, "-m", f"validation.{name}", "--quick", "--json", "figures.json", *COMMANDS[name]]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert lines[-2].startswith(f"validation.{name}: agree")
    assert lines[-1] == f"wrote {name}.h5, {name}.png, figures.json"
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["verdict"] == "agree"
    assert all(row["agrees"] and row["measured"] and row["allowed"] for row in figures["comparisons"])
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with h5py.File(tmp_path / f"{name}.h5") as file:
        assert file.attrs["schema"] == f"{name}/1"
        assert file.attrs["command"].startswith(f"python -m validation.{name} --quick")
        if name == "freq_response":
            assert np.array_equal(file["norse"], file["brian2"])
            assert len(figures["flat_regions"]) == len(file["flat_regions"]) >= 4 * 18


def swapped_time(probability):
    """A rule that is given t_pre - t_post."""
    return lambda rule, lag, fn: probability(rule, -lag, fn)


def without_phi(probability):
    return lambda rule, lag, fn: probability(type(rule)(replace(rule.p, phi_p=0.0, phi_d=0.0)), lag, fn)


def swapped_magnitudes(conductance, p, magnitude=snn.plasticity.magnitude):
    return magnitude(conductance, replace(p, alpha_p=p.alpha_d, alpha_d=p.alpha_p))


def reset_too_high(p, v_threshold, norse_parameters=snn.layer.norse_parameters):
    return norse_parameters(replace(p, v_reset=p.v_reset + 1.0), v_threshold)


def one_step_late(layer, pre, simulate=snn.engines.events.simulate_events, **options):
    late = (Raster(neuron, np.concatenate([[0], start[:-1]])) for neuron, start in pre.rasters)
    return simulate(layer, SpikeEvents(tuple(late), pre.shape), **options)


def fires_at_threshold(layer, pre, simulate=snn.engines.events.simulate_events, **options):
    below = torch.nextafter(layer.v_threshold, torch.full_like(layer.v_threshold, -torch.inf))
    return simulate(layer.with_values(v_threshold=below), pre, **options)


def norse_fires_at_threshold(depolarisation, v, p, dt, integrate=snn.engines.norse.integrate):
    _, v = integrate(depolarisation, v, p, dt)
    return v >= p.v_th, v


def leaking_inhibition(depolarisation, state, p, *rest, step=snn.engines.norse.inhibited_step):
    """Channels at the place to the right of a spike are reset, too."""
    fired, after = step(depolarisation, state, p, *rest)
    beside = torch.zeros_like(fired[:, :1])
    beside[..., 1:] = fired.any(1, keepdim=True)[..., :-1]
    v = torch.where(beside & ~fired, p.v_reset, after.v)
    return fired, SheetState(v, after.blocked)


def weights_one_column_off(*arguments, count_pairs=snn.engines.events.count_pairs):
    """Synapses learn what their neighbours to the left should."""
    return np.roll(count_pairs(*arguments), 1, -1)


def rates_of_other_pixels(engine, layer, pre, post, rates, *rest, count_events=snn.plasticity.count_events):
    return count_events(engine, layer, pre, post, rates._replace(level=rates.level.flip(-1)), *rest)


def other_weight(change):
    """The weight of a layer with feed-forward inhibition, changed."""

    def weight(layer, given=SpikingConv2d.weight):
        inhibited = layer.geometry.feed_forward_inhibition
        return change(layer.conductance) if inhibited else given.fget(layer)

    return [("snn.layer.SpikingConv2d.weight", property(weight))]


def without_inhibition(layer, pre, convolve=snn.engines.norse.convolve):
    geometry = replace(layer.geometry, feed_forward_inhibition=False)
    return convolve(replace(layer, geometry=geometry), pre)


def other_filters(change, response=Retina.response):
    """Retinas answer as if their filters were changed."""
    return [
        (
            "snn.retina.Retina.response",
            lambda retina, steps: response(Retina(change(retina.filters), retina.offset), steps),
        )
    ]


def swapped_channels(retina, images, *levels, forward=Retina.forward):
    return forward(retina, images, *levels).roll(images.shape[1], 1)


def black_border(values, sizes, mode, pad=snn.retina.pad):
    return pad(values, sizes)


def another_epsilon(patches, epsilon, noise, whitening=snn.retina.whitening):
    return whitening(patches, 1.01 * epsilon, noise)


def without_noise(patches, epsilon, noise, whitening=snn.retina.whitening):
    return whitening(patches, epsilon)


PROBABILITIES = [(rule, name) for rule in (FrequencyDependent, Deterministic) for name in ("ltp", "ltd")]
FAULTS = {
    "rates of other pixels": [("snn.learner.count_events", rates_of_other_pixels)],
    "sign of dt swapped": [
        (f"{rule.__module__}.{rule.__name__}.{name}", swapped_time(getattr(rule, name))) for rule, name in PROBABILITIES
    ],
    "alpha_p and alpha_d swapped": [("snn.plasticity.magnitude", swapped_magnitudes)],
    "phi ignored": [
        ("snn.rules.fd.FrequencyDependent.ltp", without_phi(FrequencyDependent.ltp)),
        ("snn.rules.fd.FrequencyDependent.ltd", without_phi(FrequencyDependent.ltd)),
    ],
    "reset off by 1 mV": [("snn.layer.norse_parameters", reset_too_high)],
    # The event-driven engine's loops are compiled: the leak is put into norse's in its place.
    "inhibition leaks to the neighbouring place": [
        ("snn.engines.events.EventEngine.simulate", NorseEngine.simulate),
        ("snn.engines.norse.inhibited_step", leaking_inhibition),
    ],
    "spike used one step late": [("snn.engines.events.simulate_events", one_step_late)],
    "fires at v = v_threshold": [("snn.engines.events.simulate_events", fires_at_threshold)],
    "norse fires at v = v_threshold": [("snn.engines.norse.integrate", norse_fires_at_threshold)],
    "synapses one column off": [("snn.engines.events.count_pairs", weights_one_column_off)],
    "sign of feed-forward inhibition": other_weight(lambda g: g + g.mean((1, 2, 3), keepdim=True)),
    "feed-forward inhibition is the mean over channels": other_weight(lambda g: g - g.mean(0, keepdim=True)),
    "feed-forward inhibition is the mean of all channels together": other_weight(lambda g: g - g.mean()),
    "no feed-forward inhibition in one engine": [("snn.engines.norse.convolve", without_inhibition)],
    "ON and OFF swapped": [("snn.retina.Retina.forward", swapped_channels)],
    "retina's filter flipped": other_filters(lambda filters: filters.flip((2, 3))),
    "retina's filter transposed": other_filters(lambda filters: filters.mT),
    "retina's colours transposed": other_filters(lambda filters: filters.transpose(0, 1)),
    "border of images black": [("snn.retina.pad", black_border)],
    "epsilon of the whitening 1 % larger": [("snn.retina.whitening", another_epsilon)],
    "noise ignored by the whitening": [("snn.retina.whitening", without_noise)],
}
RETINA = [network, "--networks", "0", "--deterministic", "0", "--stochastic", "0"]
SPIKES = [network, "--retinas", "0", "--networks", "2", "--deterministic", "0", "--stochastic", "0"]
LEARNING = [network, "--retinas", "0", "--networks", "0", "--deterministic", "4", "--batches", "1", "--stochastic", "0"]
WINDOW = [stdp_window, "--draws", "1000"]
RESPONSE = [freq_response, "--drives", "32", "--durations", "300"]


class Key(pickle.Pickler):
    """Writes equal values as equal bytes."""

    def reducer_override(self, value):
        return (bytes, (value.numpy().tobytes(),)) if isinstance(value, torch.Tensor) else NotImplemented


def key(*values):
    written = io.BytesIO()
    pickler = Key(written)
    # No references from one value to another that happens to be the same object.
    pickler.fast = True
    pickler.dump(values)
    return written.getvalue()


class KeptReference:
    """A :class:`ReferenceNetwork` without chance whose answers are kept: they are the same for all faults of snn."""

    answers: ClassVar[dict[bytes, tuple]] = {}

    def __init__(self, *arguments, **options):
        self.key, self.calls = key(arguments, options), []
        self.make = functools.cache(lambda: ReferenceNetwork(*arguments, **options))

    def call(self, name, *arguments):
        self.calls.append((name, arguments))
        self.key += key(name, arguments)
        if self.key not in self.answers:
            reference = self.make()
            for earlier, values in self.calls:
                answer = getattr(reference, earlier)(*values)
            self.calls.clear()
            counts = reference.contested_steps, reference.ties, reference.touches
            self.answers[self.key] = answer, counts, getattr(reference, "conductance", None)
        answer, counts, self.conductance = self.answers[self.key]
        self.contested_steps, self.ties, self.touches = counts
        return answer

    present = functools.partialmethod(call, "present")
    learn = functools.partialmethod(call, "learn")


def kept(function, answers):
    """``function`` with its answers kept, by its arguments apart from the file to write."""

    def answer(*arguments):
        values = [replace(value, out=Path()) if hasattr(value, "out") else value for value in arguments]
        name = function.__name__, key(*values)
        if name not in answers:
            answers[name] = function(*arguments)
        return answers[name]

    return answer


@pytest.fixture(scope="module")
def answers():
    return {}


@pytest.fixture
def brian2_once(monkeypatch, answers):
    """What Brian2 does is computed for the first fault, and compared with what snn does under each."""
    for name in ("spikes", "learning"):
        monkeypatch.setattr(f"validation.comparisons.{name}.ReferenceNetwork", KeptReference)
    for module, name in (("response", "train_response_spikes"), ("neuron", "lif_spikes")):
        target = f"validation.comparisons.{module}.{name}"
        monkeypatch.setattr(target, kept(getattr(validation.reference.neuron, name), answers))
    monkeypatch.setattr("validation.stdp_window.brian2_draws", kept(brian2_draws, answers))


def run_part(command: list, folder: Path) -> int:
    main, *options = command
    return main(["--quick", "--no-figures", "--out", str(folder / "out.h5"), *options])


def command_name(value):
    return value if isinstance(value, str) else "-".join([value[0].__module__, *value[1:]])


@pytest.mark.slow
@pytest.mark.parametrize("command", [SPIKES, LEARNING, RETINA, RESPONSE], ids=command_name)
@pytest.mark.usefixtures("brian2_once")
def test_the_parts_agree_when_nothing_is_wrong(command, tmp_path):
    assert run_part(command, tmp_path) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "command"),
    [
        ("sign of dt swapped", WINDOW),
        ("sign of dt swapped", LEARNING),
        ("alpha_p and alpha_d swapped", WINDOW),
        ("alpha_p and alpha_d swapped", LEARNING),
        ("phi ignored", WINDOW),
        ("phi ignored", LEARNING),
        ("reset off by 1 mV", RESPONSE),
        ("reset off by 1 mV", SPIKES),
        ("inhibition leaks to the neighbouring place", SPIKES),
        ("spike used one step late", RESPONSE),
        ("spike used one step late", SPIKES),
        ("norse fires at v = v_threshold", RESPONSE),
        ("norse fires at v = v_threshold", SPIKES),
        ("fires at v = v_threshold", SPIKES),
        ("synapses one column off", LEARNING),
        ("rates of other pixels", LEARNING),
        ("sign of feed-forward inhibition", SPIKES),
        ("sign of feed-forward inhibition", LEARNING),
        ("feed-forward inhibition is the mean over channels", SPIKES),
        ("feed-forward inhibition is the mean of all channels together", SPIKES),
        ("no feed-forward inhibition in one engine", SPIKES),
        ("ON and OFF swapped", RETINA),
        ("retina's filter flipped", RETINA),
        ("retina's filter transposed", RETINA),
        ("retina's colours transposed", RETINA),
        ("border of images black", RETINA),
        ("epsilon of the whitening 1 % larger", RETINA),
        ("noise ignored by the whitening", RETINA),
    ],
    ids=command_name,
)
@pytest.mark.usefixtures("brian2_once")
def test_the_command_notices(fault, command, tmp_path, monkeypatch, capsys):
    for name, wrong in FAULTS[fault]:
        monkeypatch.setattr(name, wrong)
    assert run_part(command, tmp_path) == 1
    shown = capsys.readouterr().out
    assert "DIFFERS" in shown
    assert "DISAGREE" in shown
    with h5py.File(tmp_path / "out.h5") as file:
        assert not file.attrs["agrees"]


@pytest.mark.parametrize(
    ("of", "figures", "agrees"),
    [(1, (), True), (3, (0.0, 2.5), True), (0, (), False), (3, (math.nan,), False), (3, (0.5, math.inf), False)],
)
def test_nothing_and_what_is_not_finite_never_agree(of, figures, agrees, capsys):
    report = Report("command")
    report.add("spikes", "0 differ", "0", True, of=of, figures=figures)
    assert report.agrees == report.rows[0]["agrees"] == agrees
    assert ("DIFFERS" in capsys.readouterr().out) == (not agrees)


def test_p_values_of_what_is_no_number_are_no_numbers():
    changes = np.random.default_rng(0).normal(size=(50, 4))
    broken = changes.copy()
    broken[3, 1] = np.nan
    assert math.isnan(same_distribution_p(changes, broken))
    assert math.isnan(same_distribution_p(np.full_like(changes, np.inf), changes))
    # Certain events that did not happen.
    assert total_p(np.array([10, 9]), 10, np.ones(2)) == 0
    assert total_p(np.array([10, 0]), 10, np.array([1.0, 0.0])) == 1


def test_a_rule_whose_changes_are_no_numbers_disagrees():
    config = WindowConfig(quick=True, draws=1000, rules=("deterministic",))
    p = config.learners()[0]
    truth = expected(config, p)
    certain = Realised(truth.ltp * config.draws, truth.ltd * config.draws, truth.change)
    for change, agrees in ((truth.change, True), (truth.change * np.nan, False)):
        report = Report("command")
        result = RuleResult(certain._replace(change=change), certain, truth)
        compare_rule(config, p, Levels.of(config), result, report)
        assert report.agrees == agrees


@pytest.mark.parametrize(
    ("command", "wrong", "words"),
    [
        (stdp_window, ["--rules", "hebb"], "rule 'hebb': unknown; choose from"),
        (freq_response, ["--thresholds", "-70"], "threshold -70.0 mV is not above rest, -68.45 mV"),
        (freq_response, ["--durations", "301"], "give multiples of dt = 2.5 ms"),
        (stdp_window, ["--draws", "10"], "--draws 10: expected 1000 to"),
        (freq_response, ["--dt", "0"], "--dt 0.0: expected above 0"),
        (freq_response, ["--rate-step", "5"], "--rate-step 5.0 Hz: give 1.11 Hz or less"),
        (freq_response, ["--lif.membrane-time-scale", "5"], "less than the membrane time constant, 2.02 ms"),
        (stdp_window, ["--longest-lag", "1000"], "raise --encoding.presentation, or lower --longest-lag"),
        (stdp_window, ["--stdp.ltp-window", "120"], "or --stdp.ltp-window"),
        (stdp_window, ["--stdp.ltp-window", "inf"], "--stdp.ltp-window inf: expected above 0"),
        (stdp_window, ["--encoding.dt", "0.1"], "lower --draws, or raise --encoding.dt"),
        (network, ["--repeats", "1"], "--repeats 1: expected 20 to"),
        (network, ["--networks", "-1"], "--networks -1"),
        (network, ["--deterministic", "3"], "--deterministic 3: give 0, or at least 4"),
        (RETINA[0], [*RETINA[1:], "--retinas", "0"], "give one of them"),
        (network, ["--out", "no/such/folder/x.h5"], "create it first"),
    ],
)
def test_wrong_input_ends_with_one_line(command, wrong, words, capsys):
    assert command(["--quick", *wrong]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert words in error


@pytest.mark.slow
def test_without_brian2_one_line_says_what_to_install(tmp_path):
    code = (
        "import sys; sys.modules['brian2'] = None\n"
        "from validation.network import main\n"
        f"sys.exit(main(['--quick', '--out', {str(tmp_path / 'x.h5')!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "pip install -e '.[validation]'" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", QUICK)
def test_quick_limits_are_those_that_the_help_names(name, tmp_path, capsys):
    largest = NetworkConfig(quick=True, **{field: 1000 for field in QUICK})
    assert getattr(largest, name) == QUICK[name]
    with pytest.raises(SystemExit):
        network(["--help"])
    assert f"--{name} {QUICK[name]}" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_rules_of_the_paper_take_turns():
    assert learners(WITHOUT_CHANCE, 0) == learners(WITH_CHANCE, 0) == []
    expected = [(rule, pairing) for rule in ("deterministic", SWITCH) for pairing in ("post", "two-sided")]
    assert learners(WITHOUT_CHANCE, 6) == [*expected, *expected[:2]]
    expected = [(rule, pairing) for rule in ("fd", "stochastic") for pairing in ("post", "two-sided")]
    assert learners(WITH_CHANCE, 1) == expected[:1]
    assert learners(WITH_CHANCE, 4) == expected


RULE = """
from snn.registries import register_rule
from snn.rules.base import Rule

PEAK, TAU, LATE = 0.4, 30.0, 0.3


@register_rule("nearest")
class Nearest(Rule):
    def ltp(self, lag, fn):
        return (PEAK * (-lag / TAU).exp()).where(~self.beyond_window(lag), 0.0)

    def ltd(self, lag, fn):
        return (LATE + 0 * fn).where(self.can_depress(lag), 0.0)


@register_rule("always")
class Always(Rule):
    def ltp(self, lag, fn):
        return (~self.beyond_window(lag)).to(fn.dtype)

    def ltd(self, lag, fn):
        return self.can_depress(lag).to(fn.dtype)


@register_rule("alone")
class Alone(Nearest):
    pass
"""
REFERENCE = """
import numpy as np

from validation.reference.base import RuleReference, register_reference


@register_reference("nearest")
class NearestReference(RuleReference):
    P_p = "in_window*peak*exp(-lag/(30*ms))"
    P_d_post = "(1 - in_window)*0.3"
    P_d_two_sided = "0.3"

    def constants(self):
        return {"peak": 0.4}

    def probabilities(self, lag, fn):
        return self.in_window(lag) * 0.4 * np.exp(-np.maximum(lag, 0) / 30), self.can_depress(lag) * 0.3


@register_reference("always")
class AlwaysReference(RuleReference):
    P_p, P_d_post, P_d_two_sided = "in_window", "1 - in_window", "1"

    def probabilities(self, lag, fn):
        return 1.0 * self.in_window(lag), 1.0 * self.can_depress(lag)
"""


def compare_plugins(folder, reference, *rules):
    """Run the command with a rule and a reference from files of their own, on the rules of these names."""
    (folder / "my_rule.py").write_text(RULE)
    (folder / "my_reference.py").write_text(reference)
    command = [sys.executable, "-m", "validation.stdp_window", "--quick", "--draws", "1000", "--json", "figures.json"]
    command += ["--plugin", "my_rule.py", "--plugin", "my_reference.py", "--rules", *rules]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert result.returncode in (0, 1), result.stderr
    rows = json.loads((folder / "figures.json").read_text())["comparisons"]
    return result, {row["comparison"]: row for row in rows}


def test_a_rule_of_a_plugin_agrees_with_its_reference(tmp_path):
    result, rows = compare_plugins(tmp_path, REFERENCE, "nearest")
    assert result.returncode == 0, result.stdout + result.stderr
    assert {name.split(":")[0] for name in rows} == {"nearest, post", "nearest, two-sided"}
    assert len(rows) == 10
    assert (tmp_path / "stdp_window.png").read_bytes().startswith(b"\x89PNG")
    with h5py.File(tmp_path / "stdp_window.h5") as file:
        # At dt = 0 potentiation has its peak.
        zero = file["lags"][:].tolist().index(0)
        assert file["nearest/post/equation/p_ltp"][0, 0, zero] == 0.4
        assert file["nearest/post/learner/p_ltp"][0, 0, zero] == pytest.approx(0.4, abs=0.1)


def test_a_wrong_or_missing_reference_of_a_rule_disagrees(tmp_path):
    wrong = REFERENCE.replace("30*ms", "60*ms").replace("/ 30", "/ 60")
    result, rows = compare_plugins(tmp_path, wrong, "nearest", "alone")
    assert result.returncode == 1
    assert not rows["nearest, post: P(LTP), P(LTD) of learner and Eq. 5"]["agrees"]
    assert rows["nearest, post: P(LTP), P(LTD) of Brian2 and Eq. 5"]["agrees"]
    assert not rows["nearest, post: the same of learner and Brian2"]["agrees"]
    assert not rows["rule alone"]["agrees"]
    assert "rule alone has no reference: register one" in result.stdout


def test_rules_of_plugins_learn_in_networks_with_their_like(tmp_path):
    (tmp_path / "my_rule.py").write_text(RULE)
    (tmp_path / "my_reference.py").write_text(REFERENCE)
    code = (
        "import json, my_rule, my_reference\n"
        "from validation.comparisons.learning import WITH_CHANCE, WITHOUT_CHANCE, learners\n"
        "print(json.dumps([learners(WITHOUT_CHANCE, 4)[4:], learners(WITH_CHANCE, 1)[1:], learners(WITH_CHANCE, 0)]))"
    )
    command = [sys.executable, "-c", code]
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{root}"}
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    pairings = ("post", "two-sided")
    assert json.loads(result.stdout) == [
        [["always", pairing] for pairing in pairings],
        [["nearest", pairing] for pairing in pairings],
        [],
    ]


def test_flat_regions_of_a_staircase():
    rates = np.arange(1.0, 13.0)
    response = np.array([0, 0, 5, 5, 5, 10, 5, 15, 15, 20, 20, 20.0])
    found = flat_regions(rates, response, merge_rate=11.0, width=1.0)
    # Not: silence, runs of one rate, and the one that reaches the merging rate.
    assert found == [(3.0, 5.0, 5.0), (8.0, 9.0, 15.0)]
    assert flat_regions(rates, response, merge_rate=9.0, width=1.0) == [(3.0, 5.0, 5.0)]
    assert flat_regions(rates, response, merge_rate=11.0, width=2.0) == [(3.0, 5.0, 5.0)]
    assert flat_regions(rates, np.full(12, 5.0), merge_rate=20.0, width=1.0) == []


def test_euler_interval_counts_steps():
    p = LIFParameters()
    for current, threshold, dt in ((12.0, -60.2, 2.5), (40.0, -67.0, 1.0), (2.61, -60.2, 2.5)):
        v, steps = p.v_reset, 0
        while v <= threshold:
            v += dt * p.membrane_time_scale * (p.a + p.b * v + p.c * current)
            steps += 1
        assert euler_interval(np.array(current), np.array(threshold), p, dt) == steps
    assert euler_interval(np.array(2.59), np.array(-60.2), p, 2.5) == np.inf


def test_equations_at_hand_made_values():
    p = STDPParameters(ltd_delay=100.0, beta_p=2.0, beta_d=3.0, g_min=0.5, g_max=2.5)
    up, down = magnitudes(np.array([1.0]), p)
    assert up[0] == pytest.approx(0.005 * np.exp(-0.5))
    assert down[0] == pytest.approx(0.01 * np.exp(-2.25))
    ltp, ltd = reference_of(p).probabilities(np.array([0.0, 15.0, 17.5, 60.0, np.inf]), np.array(0.5))
    assert ltp == pytest.approx([0.7, 0.7 * np.exp(-15 / 13), 0, 0, 0])
    assert ltd == pytest.approx([0, 0, 0.6 * np.exp(-82.5 / 52), 0.6 * np.exp(-40 / 52), 0.6])
    plain = reference_of(replace(p, pairing="two-sided", rule="stochastic"))
    ltp, ltd = plain.probabilities(np.array([-40.0, -np.inf, 5.0]), np.array(0.0))
    assert ltp == pytest.approx([0, 0, 0.7 * np.exp(-0.5)])
    assert ltd == pytest.approx([0.6 * np.exp(-1), 0, 0])


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (2, 2, 0), (4, 3, 2)])
def test_connections_are_those_of_a_convolution(kernel, stride, padding):
    shape, p = (2, 6, 5), LayerParameters(3, kernel, stride, padding)
    weights = torch.rand(3, 2, kernel, kernel, dtype=torch.float64)
    image = torch.rand(1, *shape, dtype=torch.float64)
    pre, post, weight, out = connections(shape, p)
    found = np.bincount(post, weights.flatten().numpy()[weight] * image.flatten().numpy()[pre], np.prod(out))
    expected = torch.nn.functional.conv2d(image, weights, stride=stride, padding=padding)[0]
    assert out == expected.shape
    assert found == pytest.approx(expected.flatten().numpy())


def test_most_waiting_spikes():
    pre, post = np.zeros((2, 8, 1, 1, 1, 2), dtype=bool)
    pre[[0, 3, 6], 0, 0, 0, 0] = True
    post[[1, 2, 3, 4, 5, 7], 0, 0, 0, 0] = True
    post[:, 0, 0, 0, 1] = True  # never met by a presynaptic spike
    # Those of steps 3, 4 and 5 wait for step 6: one at the step of a presynaptic spike waits for the next.
    assert most_waiting(pre, post, LayerParameters(1, 1, 1, 0)) == 3


def test_binomial_tests_know_their_distribution():
    counts, draws = np.array([0, 3, 7, 10]), 10
    expected = [stats.binomtest(int(count), draws, 0.5).pvalue for count in counts]
    assert binomial_p(counts, draws, np.full(4, 0.5)) == pytest.approx(expected)
    assert binomial_p(np.array([0, 1, 10, 9]), draws, np.array([0.0, 0.0, 1.0, 1.0])).tolist() == [1, 0, 1, 0]
    fisher = stats.fisher_exact([[2, 8], [9, 1]]).pvalue
    assert same_rate_p(np.array([2]), np.array([9]), draws)[0] == pytest.approx(fisher)
    low, high = binomial_band(1000, np.array([0.3]), 1e-3)
    inside = stats.binom.cdf(1000 * high, 1000, 0.3) - stats.binom.cdf(1000 * low - 1, 1000, 0.3)
    assert 0.999 <= inside[0] < 0.9993


def test_a_switched_rule_leaves_nothing_to_chance():
    dt, p = 2.5, STDPParameters(ltd_delay=60.0)
    lags = np.arange(0, 120) * dt
    for pairing, sign in (("post", 1), ("two-sided", 1), ("two-sided", -1)):
        rule = reference_of(switch_rule(replace(p, pairing=pairing), dt))
        off, on = (np.stack(rule.probabilities(sign * lags[1:], np.array(fn))) for fn in (0.0, 1.0))
        assert set(np.unique(np.stack([off, on]))) <= {0.0, 1.0}
        assert on.sum(1).tolist() == {("post", 1): [6, 113], ("two-sided", 1): [6, 0]}.get((pairing, sign), [0, 119])
        # T_d lies between two steps, 61.25 ms.
        assert off.sum(1).tolist() == ([0, 95] if pairing == "post" else [0, 0])


def test_the_total_sees_what_no_single_point_shows():
    random, draws = np.random.default_rng(0), 10_000
    probability = np.linspace(0.1, 0.8, 400)
    fair, weaker = random.binomial(draws, probability), random.binomial(draws, 0.99 * probability)
    assert total_p(fair, draws, probability) > 1e-3
    assert binomial_p(weaker, draws, probability).min() > 1e-6
    assert total_p(weaker, draws, probability) < 1e-12


def test_distributions_that_agree_and_that_do_not():
    random = np.random.default_rng(0)
    scale = np.array([0.1, 1.0, 20.0])
    first, second, shifted = (random.normal(size=(500, 3)) * scale for _ in range(3))
    assert same_distribution_p(first, second) > 1e-3
    assert same_distribution_p(first, shifted + 0.3 * scale) < 1e-6
    assert same_distribution_p(first, 1.5 * second) < 1e-6
    constant = np.ones((500, 1))
    alike = same_distribution_p(first, second)
    assert same_distribution_p(np.hstack([first, constant]), np.hstack([second, constant])) == alike
    assert same_distribution_p(np.hstack([first, constant]), np.hstack([second, 1.1 * constant])) < 1e-6
    assert same_distribution_p(constant, constant) == 1


def test_the_sum_tells_draws_that_are_not_independent():
    random = np.random.default_rng(0)
    first, second = random.normal(size=(2, 500, 30))
    shared = np.repeat(random.normal(size=(500, 1)), 30, axis=1)
    mean = np.linspace(-2, 2, 30)
    assert same_spread_p(first + mean, second + mean) > 1e-3
    assert same_spread_p(first + mean, shared * np.sign(mean) + mean) < 1e-6


def test_documentation_lists_every_constant_with_its_default():
    page = (Path(__file__).parent.parent / "docs" / "validation.md").read_text()
    rows = [
        [cell.strip(" `") for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| `")
    ]
    listed = {row[0]: row[1] for row in rows}
    for kind in (LIFParameters, STDPParameters, LayerParameters, Encoding, RetinaParameters):
        for name, field in kind.__dataclass_fields__.items():
            if name != "maps":
                shown = f"retina.{name}" if kind is RetinaParameters else name
                assert listed[shown] == str(field.default), shown
    assert all(row[-1] for row in rows)
