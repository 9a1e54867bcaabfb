"""What users add from a file of their own, without touching the project: rules, encoders and engines."""

import subprocess
import sys

import h5py
import numpy as np
import pytest

from snn.registries import ENCODERS, ENGINES, RULES
from snn.runtime.errors import UserError
from snn.runtime.registry import Registry, load_plugin
from snn.storage import load_network

PLUGIN = '''
import torch

import snn
from snn.encoders.base import Encoder
from snn.engines.events import EventEngine
from snn.rules.base import Rule


@snn.register_rule("half")
class Half(Rule):
    """LTP or LTD in one case of two, whatever the times."""

    def ltp(self, lag, fn):
        return torch.where((lag >= 0) & ~self.beyond_window(lag), 0.5, 0.0)

    def ltd(self, lag, fn):
        return torch.where(self.can_depress(lag), 0.5, 0.0)

    @property
    def peaks(self):
        return 0.5, 0.5


@snn.register_encoder("latency")
class Latency(Encoder):
    """One spike for each pixel that is not black, the earlier the brighter it is."""

    def dense(self, images, p, seeds):
        step = ((255 - images.long()) * (p.active_steps - 1)) // 255
        spikes = torch.zeros((p.n_steps, *images.shape), dtype=torch.bool, device=images.device)
        return spikes.scatter_(0, step[None], True) & (images > 0)


@snn.register_engine("counted")
class Counted(EventEngine):
    """Says how often it simulated."""

    calls = 0

    def simulate(self, *arguments, **options):
        Counted.calls += 1
        print("simulated", Counted.calls)
        return super().simulate(*arguments, **options)
'''
SMALL = ["--data", "digits", "--limit-train", "40", "--maps", "4", "--min-updates", "4", "--no-figures"]


def learn(folder, *flags):
    command = [sys.executable, "-m", "snn.learn", *SMALL, *flags, "--out", "snn.h5"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture
def plugin(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    return tmp_path


def test_a_rule_an_encoder_and_an_engine_of_ones_own_learn_through_the_command(plugin):
    flags = ["--stdp.rule", "half", "--encoding.kind", "latency", "--engine", "counted"]
    result = learn(plugin, "--plugin", "mine.py", *flags)
    assert result.returncode == 0, result.stderr
    assert "simulated 4" in result.stdout
    with h5py.File(plugin / "snn.h5") as file:
        assert file["learning/stdp"].attrs["rule"] == "half"
        assert file["learning/encoding"].attrs["kind"] == "latency"
        learned = file["layers/conv1/conductance"][()]
        # The rule knows one probability alone: every event is at its peak, of LTP or of LTD.
        shares = [file["layers/conv1"].attrs[f"saturated_{kind}"] for kind in ("ltp", "ltd")]
        assert min(shares) > 0.05
        assert sum(shares) == 1
        assert np.abs(learned - file["layers/conv1/initial_conductance"][()]).mean() > 1e-3


def test_help_lists_what_plugins_add_and_errors_name_it(plugin):
    command = [sys.executable, "-m", "snn.learn", "--plugin", "mine.py", "--help"]
    shown = subprocess.run(command, cwd=plugin, capture_output=True, text=True, check=True).stdout
    words = "".join(shown.split())
    assert "{fd,stochastic,deterministic,half}" in words or "deterministic,fd,stochastic,half" in words
    assert "poisson,regular,latency" in words
    for name, flag in (("half", "--stdp.rule"), ("latency", "--encoding.kind"), ("counted", "--engine")):
        result = learn(plugin, flag, name)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        assert name in result.stderr


def test_a_file_made_with_a_plugin_names_what_is_missing_without_it(plugin):
    assert learn(plugin, "--plugin", "mine.py", "--stdp.rule", "half").returncode == 0
    with pytest.raises(UserError, match=r"snn.h5 was made with a plugin that is missing here: rule 'half': unknown"):
        load_network(plugin / "snn.h5")


def test_plugins_that_cannot_be_loaded_are_refused_by_name(tmp_path):
    (tmp_path / "broken.py").write_text("import math\n\nmath.sqrt(-1)\n")
    (tmp_path / "wrong.py").write_text("def half(:\n")
    for name, words in (
        ("nowhere.py", "no such file"),
        ("broken.py", "line 3: ValueError"),
        ("wrong.py", "SyntaxError"),
    ):
        result = learn(tmp_path, "--plugin", name)
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
        assert f"--plugin {name}" in result.stderr
        assert words in result.stderr
    with pytest.raises(UserError, match="give a Python file, or a module"):
        load_plugin("no_such_module_anywhere")


def test_a_name_is_registered_once_and_unknown_ones_list_those_there_are():
    registry: Registry[object] = Registry("rule", "snn.rules")
    registry.register("own")(object())
    with pytest.raises(UserError, match="rule 'own' is registered already"):
        registry.register("own")(object())
    with pytest.raises(UserError, match="rule 'other': unknown; choose from own"):
        registry["other"]
    assert set(RULES) >= {"fd", "stochastic", "deterministic"}
    assert set(ENCODERS) >= {"regular", "poisson"}
    assert set(ENGINES) >= {"events", "norse"}
