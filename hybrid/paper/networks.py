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


# The search starts from one layer

_ALONE = ("--auxiliary-maps", "0")


_SPIKES = ("--preprocess", "spikes")
"""Of random phase, while the network is trained."""


_SPIKES_600 = ("--preprocess", "spikes:10,30,600")
"""Counted over twice the time: half the deviation."""


def _large_kernels(*maps: int, size: int = 5) -> tuple[str, ...]:
    """Flags of snn.learn for layers of so many maps."""
    sizes = ("--kernel-sizes", *(str(size) for _ in maps))
    return ("--maps", *map(str, maps), *sizes, "--stdp.beta-p", "1", "--stdp.beta-d", "1")


ONE_LAYER = Network("one layer", "front end", learning=_large_kernels(32))
"""Oriented edges and colours: 32 kernels of 5 x 5 pixels."""


TUNED = replace(ONE_LAYER, name="tuned safe", factor="variability", training=_SPIKES_600)
"""What came of the search; goes beyond the paper: one layer of larger kernels, trained with spike counts of random
phase."""


def _conventional(name: str, factor: str, *flags: str) -> Network:
    return replace(BASELINE, name=f"baseline, {name}", factor=factor, training=flags)


def _one_layer(name: str, factor: str, *flags: str) -> Network:
    return replace(ONE_LAYER, name=f"one layer, {name}", factor=factor, training=flags)


def _tuned(name: str, factor: str, **changes: object) -> Network:
    return replace(TUNED, name=f"tuned safe, {name}", factor=factor, **changes)


ABLATIONS = (
    BASELINE,
    _conventional("input quantised", "steps", "--preprocess", "quantise"),
    _conventional("random phase", "variability", *_SPIKES_600),
    SAFE,
    MU,
    TUNED,
    _tuned("shuffled conductances", "conductances", conductances="shuffled"),
    _tuned("random conductances", "conductances", conductances="random"),
    _tuned("plain stochastic STDP", "rule", rule="stochastic"),
    _tuned("deterministic STDP", "rule", rule="deterministic"),
    _tuned("no steps", "steps", conversion=("--steps", "256")),
    _tuned("no auxiliary CNN", "auxiliary CNN", training=(*_SPIKES_600, *_ALONE)),
    # As it was when the search began.
    ONE_LAYER,
)


CONTRIBUTIONS = (
    ("learned conductances, not shuffled ones", "tuned safe", "tuned safe, shuffled conductances"),
    ("learned conductances, not random ones", "tuned safe", "tuned safe, random conductances"),
    ("FD, not plain stochastic STDP", "tuned safe", "tuned safe, plain stochastic STDP"),
    ("FD, not deterministic STDP", "tuned safe", "tuned safe, deterministic STDP"),
    ("steps, not a ReLU that saturates", "tuned safe", "tuned safe, no steps"),
    ("auxiliary CNN, not none", "tuned safe", "tuned safe, no auxiliary CNN"),
    ("random phase, not means", "tuned safe", "one layer"),
    ("spiking layer, not random phase alone", "tuned safe", "baseline, random phase"),
    ("input quantised, of the baseline", "baseline, input quantised", "baseline"),
    ("architecture without spikes (mu), not the baseline", "mu", "baseline"),
    ("spiking layers, not trainable ones (mu)", "safe", "mu"),
    ("step functions in a trained mu (lambda)", "lambda, range", "mu"),
)
"""What is told of the ablations: a name, then the networks that have it and that have not."""


SEARCH = (
    *ABLATIONS,
    _conventional("random phase, 300 ms", "variability", *_SPIKES),
    noise_trained("awgn:30"),
    AVERAGE_TRAINED,
    _one_layer("no auxiliary CNN", "auxiliary CNN", *_ALONE),
    _one_layer("auxiliary of 3x3 average", "auxiliary CNN", "--variations.auxiliary-input", "average:3"),
    _one_layer("auxiliary with steps", "auxiliary CNN", "--variations.auxiliary-activation", "steps"),
    _one_layer("random phase, 300 ms", "variability", *_SPIKES),
    _tuned("auxiliary of 16 maps", "auxiliary CNN", training=(*_SPIKES_600, "--auxiliary-maps", "16")),
    _tuned("64 maps", "front end", learning=_large_kernels(64)),
    _tuned("3x3 kernels", "front end", learning=_large_kernels(32, size=3)),
    _tuned("7x7 kernels", "front end", learning=_large_kernels(32, size=7)),
    _tuned("two layers", "front end", learning=_large_kernels(32, 40)),
    _tuned("stride 2", "front end", learning=(*_large_kernels(32), "--strides", "2")),
    _tuned("rates up to 60 Hz", "encoding", learning=(*_large_kernels(32), "--encoding.f-max", "60")),
    _tuned("4 steps", "steps", conversion=("--steps", "4")),
    _tuned("balanced kernels", "conductances", conductances="balanced"),
    _tuned(
        "auxiliary dropped in 1 of 4", "auxiliary CNN", training=(*_SPIKES_600, "--variations.auxiliary-drop", "0.25")
    ),
    _tuned("auxiliary of 5x5 kernels", "auxiliary CNN", training=(*_SPIKES_600, "--variations.auxiliary-kernel", "5")),
    _tuned(
        "auxiliary of 2x2 average",
        "auxiliary CNN",
        training=(*_SPIKES_600, "--variations.auxiliary-input", "average:2"),
    ),
    _one_layer("features normalised", "normalisation", "--variations.feature-norm"),
    _tuned("features normalised", "normalisation", training=(*_SPIKES_600, "--variations.feature-norm")),
    _one_layer("neurons' variability", "variability", "--variations.variability"),
    replace(SAFE, name="safe, random phase", factor="variability", training=_SPIKES_600),
    replace(MU, name="mu, random phase", factor="variability", training=_SPIKES_600),
)
