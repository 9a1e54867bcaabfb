"""Networks of the tables, of the ablations and of the search, each described by the flags that make it.

The search changes one factor at a time, then joins what helped. All that was tried is listed, and shown in the figure
of the frontier; choices rest on held-out training images alone (python -m hybrid.reproduce frontier).
"""

from dataclasses import dataclass, replace

from snn.controls import Conductances


@dataclass(frozen=True)
class Network:
    """A network, whatever its backbone and seed."""

    name: str
    """Of its row."""
    factor: str = ""
    """What the search tries it for."""
    variant: str = "safe"
    rule: str = "fd"
    """Of STDP."""
    conductances: Conductances = "learned"
    learning: tuple[str, ...] = ()
    """Further flags of snn.learn."""
    conversion: tuple[str, ...] = ()
    """Further flags of bridge.convert."""
    training: tuple[str, ...] = ()
    """Further flags of hybrid.train."""


BASELINE = Network("baseline", "conventional", "baseline")
AVERAGE_TRAINED = replace(BASELINE, name="average-filter-trained", training=("--preprocess", "average:2"))
SAFE = Network("safe", "paper")
MU = Network("mu", "paper", "mu")


def noise_trained(noise: str) -> Network:
    """The conventional network that sees this noise while it is trained."""
    return replace(BASELINE, name=f"noise-trained, {noise}", training=("--train-noise", noise))


# The search

ONE_LAYER = Network(
    "one layer",
    "front end",
    learning=("--maps", "32", "--kernel-sizes", "5", "--stdp.beta-p", "1", "--stdp.beta-d", "1"),
)
"""Oriented edges and colours: 32 kernels of 5 x 5 pixels."""

_ALONE = ("--auxiliary-maps", "0")
_SPIKES = ("--preprocess", "spikes")
"""Of random phase, while the network is trained."""
_SPIKES_600 = ("--preprocess", "spikes:10,30,600")
"""Counted over twice the time: half the deviation."""
_VARIABILITY = ("--variability",)
_PLAIN = replace(ONE_LAYER, name="one layer alone", training=_ALONE)


def _layers(**changes: object) -> tuple[str, ...]:
    """Flags of the one layer with other values: ``maps="64"``."""
    values = dict(zip(ONE_LAYER.learning[::2], ONE_LAYER.learning[1::2], strict=True))
    values |= {f"--{name.replace('__', '.').replace('_', '-')}": str(value) for name, value in changes.items()}
    return tuple(word for pair in values.items() for word in pair)


def _without_auxiliary(name: str, factor: str, training: tuple[str, ...] = (), **changes: object) -> Network:
    return replace(_PLAIN, name=f"one layer alone, {name}", factor=factor, training=(*_ALONE, *training), **changes)


def _auxiliary(name: str, *flags: str) -> Network:
    return replace(ONE_LAYER, name=f"one layer, auxiliary {name}", factor="auxiliary CNN", training=flags)


def _joined(name: str, **changes: object) -> Network:
    return replace(ONE_LAYER, name=f"one layer, all of random phase, 600 ms, {name}", factor="joined", **changes)


def _conventional(name: str, *flags: str) -> Network:
    return replace(BASELINE, name=f"baseline, {name}", training=flags)


SEARCH = (
    BASELINE,
    _conventional("spikes of random phase", *_SPIKES),
    ONE_LAYER,
    _PLAIN,
    replace(ONE_LAYER, name="one layer, all of random phase", factor="variability", training=_SPIKES),
    replace(ONE_LAYER, name="one layer, all of random phase, 600 ms", factor="variability", training=_SPIKES_600),
    _auxiliary("of 3x3 average", "--auxiliary-input", "average:3"),
    SAFE,
    _auxiliary("with steps", "--auxiliary-activation", "steps"),
    _conventional("spikes of random phase, 600 ms", *_SPIKES_600),
    _joined("auxiliary of 16 maps", training=(*_SPIKES_600, "--auxiliary-maps", "16")),
    _joined("64 maps", training=_SPIKES_600, learning=_layers(maps=64)),
    _without_auxiliary("64 maps", "front end", learning=_layers(maps=64)),
    _without_auxiliary("kernels without mean", "conductances", conductances="balanced"),
    _auxiliary("of random phase", "--auxiliary-input", "spikes"),
    _without_auxiliary("shuffled", "conductances", conductances="shuffled"),
    _without_auxiliary("random", "conductances", conductances="random"),
    _without_auxiliary("no steps", "steps", conversion=("--steps", "256")),
    replace(SAFE, name="safe alone", training=_ALONE),
    _without_auxiliary("variability", "variability", training=_VARIABILITY),
    _conventional("3x3 average", "--preprocess", "average:3"),
    _conventional("input quantised", "--preprocess", "quantise"),
    noise_trained("awgn:20"),
    _without_auxiliary("stride 2", "front end", learning=_layers(strides=2)),
    _without_auxiliary("beta 0.4", "front end", learning=_layers(stdp__beta_p=0.4, stdp__beta_d=0.4)),
    _auxiliary("dropped in half", "--auxiliary-drop", "0.5"),
    _auxiliary("5x5", "--auxiliary-kernel", "5"),
    _auxiliary("2 maps", "--auxiliary-maps", "2"),
    _without_auxiliary("16 steps", "steps", conversion=("--steps", "16")),
)

# What came of it

TUNED = replace(ONE_LAYER, name="tuned safe", factor="joined", training=_SPIKES_600)
"""Goes beyond the paper: one layer of larger kernels, trained with spike counts of random phase."""

# The ablations


def _tuned(name: str, **changes: object) -> Network:
    return replace(TUNED, name=f"tuned safe, {name}", **changes)


ABLATIONS = (
    BASELINE,
    _conventional("input quantised", "--preprocess", "quantise"),
    _conventional("random phase", *_SPIKES_600),
    SAFE,
    MU,
    TUNED,
    _tuned("shuffled conductances", conductances="shuffled"),
    _tuned("random conductances", conductances="random"),
    _tuned("plain stochastic STDP", rule="stochastic"),
    _tuned("deterministic STDP", rule="deterministic"),
    _tuned("no steps", conversion=("--steps", "256")),
    _tuned("no auxiliary CNN", training=(*_SPIKES_600, *_ALONE)),
    _tuned("no random phase", training=()),
)
