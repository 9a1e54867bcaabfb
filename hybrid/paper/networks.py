"""Networks of the tables, of the ablations and of the search, made of the commands' own configurations.

The search changes one factor at a time, then joins what helped. All that was tried is listed, and shown in the figure
of the frontier; choices rest on held-out training images alone (python -m hybrid.reproduce frontier).
"""

from dataclasses import dataclass, replace
from pathlib import Path

from bridge.convert import ConvertConfig
from hybrid.architecture import Architecture
from hybrid.evaluate import EvaluateConfig
from hybrid.swap import Scale as SwapScale
from hybrid.swap import SwapConfig
from hybrid.train import TrainConfig
from snn.controls import Conductances
from snn.learn import LearnConfig
from snn.learning import Learning

NOWHERE = Path()
"""Stands for the files of a configuration until a run has its folder."""
LEARN, TRAIN = LearnConfig(NOWHERE), TrainConfig(NOWHERE)
CONVERT, SWAP = ConvertConfig(NOWHERE, NOWHERE), SwapConfig(NOWHERE, NOWHERE, NOWHERE)
EVALUATE = EvaluateConfig((NOWHERE,), NOWHERE)


@dataclass(frozen=True)
class Network:
    """One network; data, backbone, recipe and seed are chosen by :class:`hybrid.paper.experiments.Experiments`."""

    name: str
    """Name of its row."""
    factor: str = ""
    """What the search tries it for."""
    learning: Learning = LEARN.learning
    conversion: ConvertConfig = CONVERT
    architecture: Architecture = TRAIN.architecture
    train_noise: str = TRAIN.recipe.train_noise
    swap: SwapConfig | None = None
    """How a trained mu becomes a lambda; None: it stays what was trained."""

    def learns(self, **changes: object) -> "Network":
        """A copy with other settings of the learning rule."""
        learning = replace(self.learning, stdp=replace(self.learning.stdp, **changes))  # type: ignore[arg-type]
        return replace(self, learning=learning)

    def converts(self, conductances: Conductances = "learned", steps: int | None = None) -> "Network":
        """A copy with other conductances or steps."""
        return replace(self, conversion=replace(self.conversion, conductances=conductances, steps=steps))

    def has(self, **changes: object) -> "Network":
        """A copy with another architecture."""
        return replace(self, architecture=replace(self.architecture, **changes))  # type: ignore[arg-type]

    def varies(self, **changes: object) -> "Network":
        """A copy with a variation that the search tried and rejected."""
        return self.has(**changes)


SPIKES, SPIKES_600 = "spikes", "spikes:10,30,600"
"""Spike counts of random phase while a network is trained; counted over twice the time, they deviate half as much."""

BASELINE = Network("baseline", "conventional").has(variant="baseline")
AVERAGE_TRAINED = replace(BASELINE, name="average-filter-trained").has(preprocess="average:2")
SAFE = Network("safe", "paper")
MU = Network("mu", "paper").has(variant="mu")
DETERMINISTIC = replace(SAFE, name="safe, deterministic STDP").learns(rule="deterministic")


def noise_trained(noise: str) -> Network:
    """The conventional network that sees this noise while it is trained."""
    return replace(BASELINE, name=f"noise-trained, {noise}", train_noise=noise)


def lambda_network(scale: SwapScale) -> Network:
    """A trained mu with the step functions of the front end."""
    return replace(MU, name=f"lambda, {scale}", swap=replace(SWAP, scale=scale))


def _kernels(*maps: int, size: int = 5, **changes: object) -> Learning:
    """Layers of so many maps, with kernels of ``size`` pixels a side."""
    stdp = replace(LEARN.learning.stdp, beta_p=1.0, beta_d=1.0)
    return replace(
        LEARN.learning,
        maps=maps,
        kernel_sizes=(size,) * len(maps),
        stdp=stdp,
        **changes,  # type: ignore[arg-type]
    )


ONE_LAYER = Network("one layer", "front end", _kernels(32))
"""Oriented edges and colours: 32 kernels of 5 x 5 pixels."""
TUNED = replace(ONE_LAYER, name="tuned safe", factor="variability").has(preprocess=SPIKES_600)
"""What the search chose, beyond the paper: one layer of larger kernels, trained with spike counts of random phase."""


def _conventional(name: str, factor: str) -> Network:
    return replace(BASELINE, name=f"baseline, {name}", factor=factor)


def _one_layer(name: str, factor: str) -> Network:
    return replace(ONE_LAYER, name=f"one layer, {name}", factor=factor)


def _tuned(name: str, factor: str, learning: Learning = TUNED.learning) -> Network:
    return replace(TUNED, name=f"tuned safe, {name}", factor=factor, learning=learning)


ABLATIONS = (
    BASELINE,
    _conventional("input quantised", "steps").has(preprocess="quantise"),
    _conventional("random phase", "variability").has(preprocess=SPIKES_600),
    SAFE,
    MU,
    TUNED,
    _tuned("shuffled conductances", "conductances").converts("shuffled"),
    _tuned("random conductances", "conductances").converts("random"),
    _tuned("plain stochastic STDP", "rule").learns(rule="stochastic"),
    _tuned("deterministic STDP", "rule").learns(rule="deterministic"),
    _tuned("no steps", "steps").converts(steps=256),
    _tuned("no auxiliary CNN", "auxiliary CNN").has(auxiliary_maps=0),
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
"""What the ablations show: a name, the network with the part, and the network without it."""

SEARCH = (
    *ABLATIONS,
    _conventional("random phase, 300 ms", "variability").has(preprocess=SPIKES),
    noise_trained("awgn:30"),
    AVERAGE_TRAINED,
    _one_layer("no auxiliary CNN", "auxiliary CNN").has(auxiliary_maps=0),
    _one_layer("auxiliary of 3x3 average", "auxiliary CNN").varies(auxiliary_input="average:3"),
    _one_layer("auxiliary with steps", "auxiliary CNN").varies(auxiliary_activation="steps"),
    _one_layer("random phase, 300 ms", "variability").has(preprocess=SPIKES),
    _tuned("auxiliary of 16 maps", "auxiliary CNN").has(auxiliary_maps=16),
    _tuned("64 maps", "front end", _kernels(64)),
    _tuned("3x3 kernels", "front end", _kernels(32, size=3)),
    _tuned("7x7 kernels", "front end", _kernels(32, size=7)),
    _tuned("two layers", "front end", _kernels(32, 40)),
    _tuned("stride 2", "front end", _kernels(32, strides=(2,))),
    _tuned("rates up to 60 Hz", "encoding", _kernels(32, encoding=replace(LEARN.learning.encoding, f_max=60.0))),
    _tuned("4 steps", "steps").converts(steps=4),
    _tuned("balanced kernels", "conductances").converts("balanced"),
    _tuned("auxiliary dropped in 1 of 4", "auxiliary CNN").varies(auxiliary_drop=0.25),
    _tuned("auxiliary of 5x5 kernels", "auxiliary CNN").varies(auxiliary_kernel=5),
    _tuned("auxiliary of 2x2 average", "auxiliary CNN").varies(auxiliary_input="average:2"),
    _one_layer("features normalised", "normalisation").varies(feature_norm=True),
    _tuned("features normalised", "normalisation").varies(feature_norm=True),
    _one_layer("neurons' variability", "variability").varies(variability=True),
    replace(SAFE, name="safe, random phase", factor="variability").has(preprocess=SPIKES_600),
    replace(MU, name="mu, random phase", factor="variability").has(preprocess=SPIKES_600),
)
