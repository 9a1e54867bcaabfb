"""Every flag of every command, with values that make no sense: each is refused in one line, before any work.

The cases are generated from the commands' configurations. What looks like nonsense and is not stands in
:data:`ALLOWED`, with its reason.
"""

import math
import signal
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
import tyro
from tyro.constructors import PrimitiveConstructorSpec

from bridge.convert import ConvertConfig
from bridge.convert import main as convert
from bridge.export.__main__ import ExportConfig
from bridge.export.__main__ import main as export
from bridge.frontend import FrontEndSpec, LayerSpec
from bridge.storage import load_frontend
from hybrid.architecture import Architecture
from hybrid.classify import ClassifyConfig
from hybrid.classify import main as classify
from hybrid.complexity import ComplexityConfig
from hybrid.complexity import main as complexity
from hybrid.embedding import EmbeddingConfig
from hybrid.embedding import main as embedding
from hybrid.evaluate import EvaluateConfig
from hybrid.evaluate import main as evaluate
from hybrid.evaluation import different, distinct
from hybrid.export import ExportNetworkConfig
from hybrid.export import main as export_network
from hybrid.margins import MarginsConfig
from hybrid.margins import main as margins
from hybrid.paper.workflow import Engine
from hybrid.recipe import RECIPES, Recipe
from hybrid.report import ReportConfig
from hybrid.report import main as report
from hybrid.reproduce import ReproduceConfig
from hybrid.reproduce import main as reproduce
from hybrid.ship import ShipConfig
from hybrid.ship import main as ship
from hybrid.storage import SHIPPED_NETWORKS, load_model
from hybrid.swap import SwapConfig
from hybrid.swap import main as swap
from hybrid.train import TrainConfig, note_without_effect
from hybrid.train import main as train
from hybrid.training import Checkpointing, Hardware
from hybrid.variations import Variations
from snn.data_source import DataSource
from snn.learn import LearnConfig
from snn.learn import main as learn
from snn.learn import note_without_effect as note_unused_learning
from snn.learning import PRESETS, Homeostasis, Inhibition, Learning
from snn.parameters import Encoding, LayerParameters, LIFParameters, RetinaParameters, STDPParameters
from snn.runtime.cli import RunOptions
from snn.runtime.errors import UserError
from snn.runtime.memory import check_memory, memory
from snn.runtime.ranges import declared_fields
from snn.storage import load_network
from validation.comparisons.response import FreqResponseConfig
from validation.comparisons.window import WindowConfig
from validation.freq_response import main as freq_response
from validation.network import NetworkConfig
from validation.network import main as network
from validation.stdp_window import main as stdp_window

LONGEST = 120
"""Seconds after which a call counts as one that never ends."""
MODEL, FRONTEND = "pretrained:safe-cifar10", "pretrained:cifar10-fd"
PHOTO = str(Path(__file__).parents[2] / "docs" / "figures" / "network.png")
COMMANDS = {
    "learn": (LearnConfig, learn, ["--data", "digits"]),
    "convert": (ConvertConfig, convert, [FRONTEND, "--data", "digits"]),
    "export": (ExportConfig, export, [FRONTEND, "--format", "onnx"]),
    "train": (TrainConfig, train, ["--data", "digits", "--frontend", FRONTEND]),
    "evaluate": (EvaluateConfig, evaluate, [MODEL, "--data", "digits"]),
    "swap": (SwapConfig, swap, [MODEL, "--frontend", FRONTEND]),
    "complexity": (ComplexityConfig, complexity, []),
    "classify": (ClassifyConfig, classify, [MODEL, PHOTO]),
    "embedding": (EmbeddingConfig, embedding, [MODEL, "--data", "digits"]),
    "margins": (MarginsConfig, margins, [FRONTEND, "--data", "digits"]),
    "export_network": (ExportNetworkConfig, export_network, [MODEL]),
    "ship": (ShipConfig, ship, [MODEL, "--data", "digits"]),
    "report": (ReportConfig, report, [MODEL, "--data", "digits"]),
    "reproduce": (ReproduceConfig, reproduce, ["table2", "--data", "digits", "--partial"]),
    "freq_response": (FreqResponseConfig, freq_response, []),
    "stdp_window": (WindowConfig, stdp_window, []),
    "network": (NetworkConfig, network, []),
}
"""Configuration, command, and arguments without which nothing works."""
SUFFIX = {
    "export": ".onnx",
    "export_network": ".onnx",
    "embedding": ".png",
    "classify": ".png",
    "report": ".html",
}
"""Of ``--out``, where it must have one."""

NUMBERS = ("nan", "inf", "-inf", "-1", "0", "1e300", "", "x")
NONSENSE: dict[Any, tuple[str, ...]] = {
    float: NUMBERS,
    int: (*NUMBERS, "1.5", str(10**15)),
    "choice": ("", "x", "nan"),
    "text": ("x", "awgn:nan", "awgn:1_0", "average:0", "spikes:1,2", "cifar10-c:fog,nan"),
    bool: ("maybe",),
}
"""What no field of a kind can mean."""

OFF = "0: there is none of it"
POTENTIAL = "a potential, in mV"
ALLOWED = {
    **dict.fromkeys(("--encoding.quiet", "--retina.noise", "--threshold-lowering", "--inhibition-time"), ("0", OFF)),
    **dict.fromkeys(("--homeostasis.threshold-step", "--homeostasis.threshold-range"), ("0", OFF)),
    **dict.fromkeys(("--homeostasis.mean-conductance", "--homeostasis.ltd-step"), ("0", OFF)),
    **dict.fromkeys(("--stdp.beta-p", "--stdp.beta-d", "--stdp.phi-p", "--stdp.phi-d"), ("0", OFF)),
    **dict.fromkeys(("--stdp.gamma-p", "--stdp.gamma-d"), ("0", "potentiation, or depression, never happens")),
    **dict.fromkeys(("--stdp.g-min", "--initial-low"), ("0", "the lowest conductance")),
    "--stdp.ltd-delay": ("0", "depression has its peak at once"),
    **dict.fromkeys(("--lif.v-threshold", "--thresholds"), ("0 -1", POTENTIAL)),
    "--checkpoint-interval": ("0", "after every update"),
    "--seed": ("0", "a seed like any other"),
    **dict.fromkeys(("--warmup", "--weight-decay", "--label-smoothing", "--cutout", "--small-share"), ("0", OFF)),
    **dict.fromkeys(("--average", "--auxiliary-maps", "--embedding", "--variations.auxiliary-drop"), ("0", OFF)),
    "--dropped-blocks": ("0", "the stem alone is dropped"),
    "--snr": ("0 -1", "noise as strong as the image, or stronger"),
    **dict.fromkeys(("--retinas", "--networks", "--deterministic", "--stochastic"), ("0", OFF)),
    **dict.fromkeys(("--longest-lag", "--longest-wait"), ("0", "only the window itself")),
    "--image-interval": ("0", "no pictures"),
    "--workers": ("0", "no process reads ahead"),
}
"""Values, separated by blanks, that make sense for a flag, and why."""


@dataclass(frozen=True)
class Flag:
    """One flag of a command."""

    command: str
    name: str
    kind: Any
    """float, int, bool, "choice" or "text"; None where any text may be meant."""


def flags_of(command: str, config: type, prefix: str = "--") -> Iterator[Flag]:
    """The flags that the fields of a configuration make."""
    for name, hint in get_type_hints(config, include_extras=True).items():
        kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        if tyro.conf.Positional in extras or tyro.conf.Suppress in extras:
            continue
        own = next((extra for extra in extras if getattr(extra, "prefix_name", None) is False), None)
        flat = any(getattr(extra, "name", None) == "" for extra in extras)
        flag = "--" + own.name if own else f"{prefix}{name}".replace("_", "-")
        if any(isinstance(extra, PrimitiveConstructorSpec) for extra in extras):
            yield Flag(command, flag, "text")
        elif is_dataclass(kind):
            yield from flags_of(command, kind, prefix if flat else f"{flag}.")
        else:
            yield Flag(command, flag, plain(kind))


def plain(kind: Any) -> Any:
    """What a flag of this type takes; see :class:`Flag`."""
    if kind in (int, float, bool):
        return kind
    if get_origin(kind) is Literal:
        return "choice"
    return next((found for part in get_args(kind) if (found := plain(part)) is not None), None)


FLAGS = [flag for name, (config, *_) in COMMANDS.items() for flag in flags_of(name, config)]
CASES = [
    (flag, value)
    for flag in FLAGS
    for value in NONSENSE.get(flag.kind, ())
    if value not in ALLOWED.get(flag.name, ("",))[0].split()
]


CONTRADICTIONS = [
    ("learn", "--encoding.presentation 1e12", "--encoding.presentation"),
    ("learn", "--encoding.presentation 300000 --encoding.dt 0.1", "steps"),
    ("learn", "--encoding.dt 1e-7", "--encoding.dt"),
    ("learn", "--encoding.dt 50", "--encoding.quiet 30.0"),
    ("learn", "--encoding.f-max 5", "--encoding.f-max 5.0"),
    ("learn", "--encoding.quiet 300", "--encoding.quiet 300.0"),
    ("learn", "--encoding.f-max 1000", "more than one spike a step"),
    ("learn", "--pulse-width 1000", "--pulse-width 1000.0"),
    ("learn", "--inhibition-time 1000", "--inhibition-time 1000.0"),
    ("learn", "--start-count 1000", "--start-count 1000.0"),
    ("learn", "--output-rate 1000", "--output-rate 1000.0"),
    ("learn", "--threshold-lowering 9", "--threshold-lowering 9.0"),
    ("learn", "--initial-low 0.5", "--initial-low 0.5"),
    ("learn", "--maps 4 4 --strides 1 1 1", "--strides"),
    ("learn", "--kernel-sizes 4", "--kernel-sizes"),
    ("learn", "--lif.v-init 0", "--lif.v-init 0.0"),
    ("learn", "--lif.membrane-time-scale 1000", "--lif.membrane-time-scale"),
    ("learn", "--stdp.alpha-p 2", "--stdp.alpha-p 2.0"),
    ("learn", "--stdp.g-min 2", "--stdp.g-min 2.0"),
    ("learn", "--stdp.pairing two-sided --stdp.ltd-delay 50", "--stdp.ltd-delay would be ignored"),
    ("learn", "--encoding.f-min 0", "--stdp.ltd-delay"),
    ("learn", "--lif.membrane-time-scale 1e-6", "--lif.membrane-time-scale 1e-06"),
    ("learn", "--retina.surround 0.5", "--retina.surround 0.5"),
    ("learn", "--min-updates 10000000000000", "--min-updates 10000000000000"),
    ("learn", "--image-size 100000", "--image-size 100000"),
    ("learn", "--device cpu --devices 1000", "--devices 1000"),
    ("train", "--device cpu --devices 1000", "--devices 1000"),
    ("learn", "--num-nodes 2", "--num-nodes 2: nothing says where the other nodes are"),
    ("learn", "--data folder:", "--data folder:: give folder:PATH"),
    ("learn", "--stdp.tau-p 1e-320", "--stdp.tau-p"),
    ("learn", "--encoding.quiet 1e-320", "--encoding.quiet 1e-320: expected 0, or 1.17549e-38 or more in size"),
    ("train", "--learning-rate 1e-30", "--learning-rate 1e-30: nothing would be learned"),
    ("train", "--width 1e-9", "--width 1e-09"),
    ("train", "--holdout 1e-9", "--holdout 1e-09"),
    ("train", "--embedding 1000000000000", "--embedding 1000000000000"),
    ("train", "--auxiliary-maps 1000000", "--auxiliary-maps 1000000"),
    ("train", "--learning-rate 1000 --weight-decay 10", "--weight-decay 10.0"),
    ("train", "--variant baseline --auxiliary-maps 3", "--auxiliary-maps would be ignored"),
    ("train", "--variant baseline --dropped-blocks 0", "--dropped-blocks 0: --variant baseline is the whole backbone"),
    ("train", "--dropped-blocks 2", "--dropped-blocks 2"),
    ("train", "--variant baseline --variations.auxiliary-kernel 5", "--variations.auxiliary-kernel would be ignored"),
    ("train", "--auxiliary-maps 0 --variations.auxiliary-drop 0.5", "--variations.auxiliary-drop would be ignored"),
    ("train", "--json out_training", "cannot write out_training"),
    ("train", "--watch clean", "--watch clean"),
    ("train", "--watch awgn:15 awgn:15.0", "--watch awgn:15.0: named twice"),
    ("train", "--weights nowhere.pth", "--weights nowhere.pth: there is no such file"),
    ("train", "--backbone fast_cnn --weights imagenet", "--weights imagenet: there are none for fast_cnn"),
    ("learn", "--json out_learning", "cannot write out_learning"),
    ("train", "--out x.hdf5 --json x.hdf5_training", "cannot write x.hdf5_training"),
    ("train", "--train-noise awgn:1_0", "--train-noise awgn:1_0"),
    ("train", "--preprocess quantise:10,30,3_00", "--preprocess quantise:10,30,3_00"),
    ("evaluate", "--noise awgn:1_0", "--noise awgn:1_0"),
    ("evaluate", "--noise corruption:fog,nan", "--noise corruption:fog,nan"),
    ("evaluate", "--noise cifar10-c:fog,1", "--cifar10-c"),
    ("evaluate", f"--noise clean --attack-model {MODEL}", "--attack-model would be ignored"),
    ("evaluate", "--noise clean --cifar10-c .", "--cifar10-c would be ignored"),
    ("evaluate", "--noise fgsm:8", "--attack-model"),
    ("evaluate", "--weights x.pt", "--weights would be ignored"),
    ("evaluate", "--noise fgsm:8 --attack-model x.py:build", "--attack-model x.py: there is no such file"),
    ("evaluate", "--split held-out", "--data"),
    ("classify", "--noise clean --seed 3", "--seed would be ignored"),
    ("classify", "--noise fgsm:8", "--noise fgsm:8: it needs more than photographs"),
    ("classify", "--noise awgn:1_0", "--noise awgn:1_0"),
    ("classify", f"--draws 2 --json {PHOTO}", "cannot write"),
    ("complexity", "--seed 3", "--seed would be ignored"),
    ("swap", "--scale literal --images 10", "--images would be ignored"),
    ("swap", "--auxiliary-input median:3", "one exchange at a time"),
    ("swap", "--frontend None --auxiliary-input median:3 --images 10", "--images would be ignored"),
    ("swap", "--frontend None --auxiliary-input median:3 --seed 1", "--seed would be ignored"),
    ("swap", "--frontend None --auxiliary-input median:3 --root .", "--root would be ignored"),
    ("swap", "--frontend None --auxiliary-input median:9", "--auxiliary-input median:9: unknown"),
    ("reproduce", "--traffic nope --traffic-size 32", "--traffic nope"),
    ("reproduce", "--traffic-size 32", "--traffic-size"),
    ("reproduce", "--backbones nope", "--backbones"),
    ("reproduce", "--out /proc/x", "/proc/x"),
    ("reproduce", "--runs /proc/x", "/proc/x"),
    ("reproduce", "--dry-run --json numbers.json", "--json"),
    ("reproduce", "--dry-run --no-figures", "--figures"),
    ("freq_response", "--dt 1e-9", "--dt"),
    ("freq_response", "--highest-rate 1e6", "--highest-rate"),
    ("freq_response", "--thresholds -70", "not above rest"),
    ("freq_response", "--drives -5", "--drives -5.0"),
    ("stdp_window", "--longest-lag 1e12", "--longest-lag 1000000000000.0"),
    ("stdp_window", "--longest-lag 1000", "--longest-lag"),
    ("network", "--retinas 0 --networks 0 --deterministic 0 --stochastic 0", "give one of them"),
]
"""Command, flags that do not go together or that no machine can do, and words of the message."""


class NeverEnds(Exception):
    """A call that takes longer than :data:`LONGEST` seconds."""


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Call a command; expect status 2 soon, one line on stderr with ``words``, and nothing new on disk."""

    def late(*_: object) -> None:
        raise NeverEnds

    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGALRM, late)

    def call(command: str, *given: str, words: str) -> None:
        _, main, needed = COMMANDS[command]
        named = command == "reproduce" or any(word.split("=")[0] == "--out" for word in given)
        out = [] if named else ["--out", f"out{SUFFIX.get(command, '')}"]
        signal.alarm(LONGEST)
        status = main([*needed, *out, *given])
        signal.alarm(0)
        output = capsys.readouterr()
        lines = output.err.splitlines()
        assert (status, len(lines)) == (2, 1), (status, lines)
        assert words in lines[0]
        assert not output.out
        assert list(tmp_path.iterdir()) == []

    yield call
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_there_are_enough_cases_and_every_exception_is_a_flag():
    assert len(CASES) >= 300
    assert {flag.command for flag, _ in CASES} == set(COMMANDS)
    assert not ALLOWED.keys() - {flag.name for flag in FLAGS}


@pytest.mark.parametrize(("flag", "value"), CASES, ids=lambda part: getattr(part, "name", part))
def test_nonsense_is_refused_in_one_line_that_names_the_flag(flag, value, refused):
    # Of a flag without a value, the value is what is not recognised.
    refused(flag.command, f"{flag.name}={value}", words=value if flag.kind is bool else flag.name)


@pytest.mark.parametrize(("command", "flags", "words"), CONTRADICTIONS)
def test_contradictions_and_impossible_sizes_are_refused_before_any_work(command, flags, words, refused):
    refused(command, *flags.split(), words=words)


@pytest.mark.parametrize("command", COMMANDS)
def test_empty_and_unusable_outputs_are_refused(command, refused):
    if command not in ("export", "export_network", "reproduce"):
        # The folder of the process.
        refused(command, "--out=", words=SUFFIX.get(command, "it is a folder"))
    for name in ("out", "json"):
        file = f"/proc/x{SUFFIX.get(command, '') if name == 'out' else ''}"
        refused(command, f"--{name}", file, words="cannot write /proc/")


@pytest.mark.parametrize("command", COMMANDS)
def test_names_that_are_not_utf8_are_refused(command, refused):
    refused(
        command, f"--out=caf\udce9{SUFFIX.get(command, '')}", words="its bytes are not UTF-8; rename the file or folder"
    )


@pytest.mark.parametrize(
    ("command", "flags", "words"),
    [
        ("train", "--limit-train nan", "--limit-train 'nan': expected None or a whole number;"),
        ("train", "--threads x", "--threads 'x': expected None,auto or a whole number;"),
        ("learn", "--maps 4 x", "expected a whole number;"),
        ("learn", "--encoding.dt x", "--encoding.dt 'x': expected a number;"),
        ("learn", "--stdp.alpha-p inf", "--stdp.alpha-p inf: expected above 0 to"),
        ("train", "--learning-rate inf", "--learning-rate inf: expected 0 to"),
        ("train", "--weight-decay 1e30", "--weight-decay 1e+30: expected 0 to"),
    ],
)
def test_messages_say_what_is_wrong(command, flags, words, refused):
    refused(command, *flags.split(), words=words)


@pytest.mark.parametrize(
    ("main", "given"),
    [
        (convert, [FRONTEND, "--out", "out.h5"]),
        (margins, [FRONTEND, "--out", "out.csv"]),
        (evaluate, [MODEL, "--out", "out.csv"]),
        (embedding, [MODEL, "--out", "out.png"]),
        (evaluate, [MODEL, "--split", "held-out", "--out", "out.csv"]),
        (swap, [MODEL, "--frontend", FRONTEND, "--out", "out.h5"]),
    ],
)
def test_images_that_a_file_was_made_with_and_are_not_here_are_asked_for(main, given, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(given) == 2
    remedy = "where they are" if main is swap or "held-out" in given else "say with --data where they are"
    (line,) = capsys.readouterr().err.splitlines()
    assert "and there is no such folder here: " in line
    assert line.endswith(remedy)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
@pytest.mark.parametrize("command", [flag.command for flag in FLAGS if flag.name == "--device"])
def test_a_device_that_is_not_there_is_refused(command, refused):
    refused(command, "--device", "cuda", words="--device cuda")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--kernel-sizes 99", "--kernel-sizes 99: layer 1 sees 8x8 pixels"),
        ("--strides 100", "--strides 100: layer 1 sees 8x8 pixels"),
        ("--maps 4 4 --strides 4 4", "--strides 4: layer 2 sees 2x2 pixels"),
        ("--preset retina-digits --retina.kernel-size 99", "--retina.kernel-size 99: the images are only 8x8 pixels"),
        ("--preset retina --retina.patches 100000000 --retina.kernel-size 15", "GiB; lower --retina.patches"),
        ("--image-size 4096 --maps 32767 --limit-train 16", "GiB; lower --maps"),
        ("--maps 4096 4096", "4096, 4096 maps and a history of 3 updates would have 3.38 GiB, files have at most 1"),
        ("--min-updates 30000000", "--min-updates 30000000: expected 1 to 10000000"),
        ("--maps 64 --min-updates 10000000", "64 maps and a history of 10000002 updates would have"),
    ],
)
def test_layers_that_do_not_fit_the_image_or_the_memory_are_refused(flags, words, tmp_path, capsys):
    images = ["--limit-train", "40", "--maps", "4", "--min-updates", "3", "--out", str(tmp_path / "x")]
    assert learn([*images, *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_what_the_memory_cannot_hold_is_refused_before_the_work():
    check_memory(memory() / 2, "half of it", "")
    with pytest.raises(UserError, match=r"3 images would take .* GiB.*; take fewer"):
        check_memory(2 * memory(), "3 images", "take fewer")


def test_what_is_given_twice_is_said_and_measured_once(capsys):
    assert [str(kept) for kept in distinct(["awgn:20", "clean", "awgn:20.0", "awgn:2e1"])] == ["awgn:2e1", "clean"]
    assert "awgn:20, awgn:20.0, awgn:2e1: one condition, measured once" in capsys.readouterr().err
    files = [Path("b.h5"), Path("a.h5"), Path("./b.h5"), Path("../" + Path.cwd().name) / "b.h5"]
    assert different(files) == files[:2]
    assert "model b.h5 is given 3 times: measured once" in capsys.readouterr().err


def test_settings_that_decide_nothing_are_said(capsys):
    usual = RECIPES["digits"]
    note_without_effect(replace(usual, muon_rate=0.1), usual)
    assert "0.1 has no effect without" in capsys.readouterr().err
    note_without_effect(replace(usual, muon_rate=0.1, optimiser="muon"), usual)
    note_without_effect(RECIPES["fast"], RECIPES["fast"])
    assert not capsys.readouterr().err
    preset = PRESETS["cifar10"]
    for changes in (
        {"convergence_tolerance": 0.1},
        {"retina": RetinaParameters(epsilon=0.1)},
        {"retina": RetinaParameters("dog", noise=0.1)},
        {"stdp": STDPParameters(rule="deterministic", tau_p=5.0)},
        {"stdp": STDPParameters(rule="stochastic", phi_d=0.1)},
        {"homeostasis": Homeostasis(threshold_step=0.0, threshold_range=1.0)},
    ):
        note_unused_learning(replace(preset, **changes), preset)
        (line,) = capsys.readouterr().err.splitlines()
        assert "has no effect without" in line
    assert DataSource("cifar10").unused == {}
    assert DataSource("digits").unused.keys() == {"root", "download"}
    for name in PRESETS:
        note_unused_learning(PRESETS[name], PRESETS[name])
    assert not capsys.readouterr().err


RECORDS = [
    *(Encoding, RetinaParameters, LIFParameters, STDPParameters, Homeostasis, Inhibition, Learning, DataSource),
    *(Recipe, Architecture, Variations, Hardware, Checkpointing, Engine, RunOptions),
]
WRONG_TYPES: dict[Any, tuple] = {
    float: (math.nan, math.inf, -math.inf, 1e300, "x", "", True, [1.0], b"1"),
    int: (math.nan, 1.5, 10**15, "x", "", True, [1], 2.0),
    bool: (2, "x", None, 1.0),
    "choice": ("x", "", (3,)),
    "text": (3, None, b"x"),
}
"""Values that no field of a record may have, whether a program or a file gives it."""


@pytest.mark.parametrize("record", RECORDS)
def test_records_refuse_values_of_another_type_or_range(record):
    for name, hint in get_type_hints(record, include_extras=True).items():
        kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        text = any(isinstance(extra, PrimitiveConstructorSpec) for extra in extras)
        for value in WRONG_TYPES.get("text" if text else plain(kind), ()):
            if value is None and type(None) in get_args(kind):
                continue
            # The kind of a retina is called retina.
            with pytest.raises(UserError, match=None if name == "kind" else name):
                record(**{name: value})


@pytest.mark.parametrize(
    ("record", "wrong"),
    [
        (LayerSpec, {"kernel_size": 10**9}),
        (LayerSpec, {"channels": 10**9}),
        (LayerSpec, {"stride": 0}),
        (LayerSpec, {"stride": -1}),
        (LayerSpec, {"stride": 1.5}),
        (LayerSpec, {"padding": -1}),
        (LayerSpec, {"padding": 10**6}),
        (LayerParameters, {"maps": 10**9}),
        (LayerParameters, {"kernel_size": 10**9}),
        (LayerParameters, {"stride": 1.5}),
        (LayerParameters, {"pulse_width": 1e300}),
        (FrontEndSpec, {"input_shape": (3, 10**6, 32)}),
        (FrontEndSpec, {"input_shape": (3, "x", 32)}),
        (FrontEndSpec, {"retina_size": -1}),
    ],
)
def test_shapes_of_layers_refuse_what_no_layer_has(record, wrong):
    layer = LayerSpec(8, 3, 1, 1, 4)
    usual = {
        LayerSpec: vars(layer),
        LayerParameters: {"maps": 8},
        FrontEndSpec: {"input_shape": (3, 32, 32), "layers": (layer,), "encoding": Encoding()},
    }[record]
    record(**usual)
    with pytest.raises(UserError, match=next(iter(wrong))):
        record(**usual | wrong)


def test_every_number_of_a_command_has_a_range():
    def records(config: type) -> Iterator[type]:
        yield config
        for kind, _ in declared_fields(config).values():
            if kind in RECORDS:
                yield from records(kind)

    for config, *_ in COMMANDS.values():
        for record in records(config):
            for name, (kind, limits) in declared_fields(record).items():
                assert plain(kind) not in (int, float) or limits, f"{record.__name__}.{name}"


def test_shipped_files_and_presets_keep_within_their_ranges():
    for name in ("cifar10-fd", "cifar10-retina"):
        load_network(f"pretrained:{name}")
        load_frontend(f"pretrained:{name}")
    for file in SHIPPED_NETWORKS.glob("*.h5"):
        load_model(f"pretrained:{file.stem}")
    assert [replace(preset) for preset in PRESETS.values()] == list(PRESETS.values())
    assert [replace(recipe) for recipe in RECIPES.values()] == list(RECIPES.values())


def test_a_network_whose_file_would_be_too_large_is_refused_before_it_is_trained(tmp_path, capsys):
    network = ["--variant", "baseline", "--backbone", "resnet101", "--width", "4"]
    assert train(["--limit-train", "40", *network, "--out", str(tmp_path / "x")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the file of resnet101 would have 1.56 GiB, files have at most 1 GiB; choose a smaller network, or" in line
    assert list(tmp_path.iterdir()) == []


def test_a_patch_as_large_as_the_images_is_refused_before_training(tmp_path, capsys):
    network = ["--variant", "baseline", "--width", "0.1", "--batch-size", "16", "--cutout", "8"]
    assert train(["--limit-train", "40", *network, "--out", str(tmp_path / "x.h5")]) == 2
    assert "--cutout 8: it would cover images of 8x8 pixels; lower it" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_other_images_is_said_to_have_no_effect(pipeline, tmp_path, capsys):
    flags = ["--root", "nope", "--noise", "clean", "--limit-test", "10", "--no-figures"]
    assert evaluate([str(pipeline.baseline), *flags, "--out", str(tmp_path / "r.csv")]) == 0
    assert "warning: --root nope has no effect without --data cifar10" in capsys.readouterr().err
