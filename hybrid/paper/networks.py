"""Networks of the tables, of the ablations and of the search, made of the commands' own configurations.

The search changes one factor at a time, then joins what helped. All that was tried is listed, and shown in the figure
of the frontier; choices rest on held-out training images alone (python -m hybrid.reproduce frontier).
"""

from dataclasses import dataclass, replace
from pathlib import Path

from bridge.convert import ConvertConfig
from hybrid.architecture import Architecture
from hybrid.conditions import Noise
from hybrid.evaluate import EvaluateConfig
from hybrid.preprocess import Preprocess
from hybrid.swap import Scale as SwapScale
from hybrid.swap import SwapConfig
from hybrid.train import TrainConfig
from snn.learn import LearnConfig
from snn.learning import Conductances, Learning

NOWHERE = Path()
"""Stands for the files of a configuration until a run has its folder."""
LEARN, TRAIN = LearnConfig(NOWHERE), TrainConfig(NOWHERE)
CONVERT, SWAP = ConvertConfig(NOWHERE, NOWHERE), SwapConfig(NOWHERE, NOWHERE, NOWHERE)
EVALUATE = EvaluateConfig((NOWHERE,), NOWHERE)


@dataclass(frozen=True)
class Network:
    """One network; data, backbone, recipe and seed are chosen by :class:`hybrid.paper.experiments.Experiments`."""

    name: str
    """Name of its row in a table."""
    factor: str = ""
    """The factor that the search examines with it."""
    learning: Learning = LEARN.learning
    conversion: ConvertConfig = CONVERT
    architecture: Architecture = TRAIN.architecture
    train_noise: Noise = TRAIN.recipe.train_noise
    swap: SwapConfig | None = None
    """How the trained network becomes a lambda; None: it does not."""

    def of(self, learning: Learning) -> "Network":
        """A copy with other spiking layers."""
        return replace(self, learning=learning)

    def learns(self, **changes: object) -> "Network":
        """A copy with other settings of the learning rule."""
        stdp = replace(self.learning.stdp, **changes)  # type: ignore[arg-type]
        return self.of(replace(self.learning, stdp=stdp))

    def converts(self, conductances: Conductances = "learned", steps: int | None = None) -> "Network":
        """A copy with other conductances or steps."""
        return replace(self, conversion=replace(self.conversion, conductances=conductances, steps=steps))

    def has(self, **changes: object) -> "Network":
        """A copy with another architecture."""
        return replace(self, architecture=replace(self.architecture, **changes))  # type: ignore[arg-type]

    def varies(self, **changes: object) -> "Network":
        """A copy with a variation that the search tried and rejected."""
        return self.has(variations=replace(self.architecture.variations, **changes))  # type: ignore[arg-type]

    def but(self, what: str, factor: str) -> "Network":
        """A copy under the name "NAME, WHAT", to be changed in one ``factor``."""
        return replace(self, name=f"{self.name}, {what}", factor=factor)


SPIKES, SPIKES_600 = Preprocess("spikes"), Preprocess("spikes:10,30,600")
"""Spike counts of random phase, in training only. Counts over 600 ms deviate half as much as those over 300 ms."""

AVERAGE = Preprocess("average:2")

BASELINE = Network("baseline", "conventional").has(variant="baseline")
AVERAGE_TRAINED = replace(BASELINE, name="average-filter-trained").has(preprocess=AVERAGE)
SAFE = Network("safe", "paper")
MU = Network("mu", "paper").has(variant="mu")
DETERMINISTIC = SAFE.but("deterministic STDP", "rule").learns(rule="deterministic")


def noise_trained(noise: str) -> Network:
    """The conventional network that sees this noise while it is trained."""
    return replace(BASELINE, name=f"noise-trained, {noise}", train_noise=Noise.parse(noise))


def lambda_network(scale: SwapScale) -> Network:
    """A trained mu with the step functions of the front end."""
    return replace(MU, name=f"lambda, {scale}", swap=replace(SWAP, scale=scale))


def _kernels(*maps: int, size: int = 5, **changes: object) -> Learning:
    """Settings of layers with so many maps each, and kernels of ``size`` pixels a side."""
    stdp = replace(LEARN.learning.stdp, beta_p=1.0, beta_d=1.0)
    sizes = (size,) * len(maps)
    return replace(LEARN.learning, maps=maps, kernel_sizes=sizes, stdp=stdp, **changes)  # type: ignore[arg-type]


ONE_LAYER = Network("one layer", "front end", _kernels(32))
"""Oriented edges and colours: 32 kernels of 5 x 5 pixels."""
TUNED = replace(ONE_LAYER, name="tuned safe", factor="variability").has(preprocess=SPIKES_600)
"""What the search chose, beyond the paper: one layer of larger kernels, trained with spike counts of random phase."""


ABLATIONS = (
    BASELINE,
    BASELINE.but("input quantised", "steps").has(preprocess=Preprocess("quantise")),
    BASELINE.but("random phase", "variability").has(preprocess=SPIKES_600),
    SAFE,
    MU,
    TUNED,
    TUNED.but("shuffled conductances", "conductances").converts("shuffled"),
    TUNED.but("random conductances", "conductances").converts("random"),
    TUNED.but("plain stochastic STDP", "rule").learns(rule="stochastic"),
    TUNED.but("deterministic STDP", "rule").learns(rule="deterministic"),
    TUNED.but("no steps", "steps").converts(steps=256),
    TUNED.but("no auxiliary CNN", "auxiliary CNN").has(auxiliary_maps=0),
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
    BASELINE.but("random phase, 300 ms", "variability").has(preprocess=SPIKES),
    noise_trained("awgn:30"),
    AVERAGE_TRAINED,
    ONE_LAYER.but("no auxiliary CNN", "auxiliary CNN").has(auxiliary_maps=0),
    ONE_LAYER.but("auxiliary of 3x3 average", "auxiliary CNN").varies(auxiliary_input=Preprocess("average:3")),
    ONE_LAYER.but("auxiliary with steps", "auxiliary CNN").varies(auxiliary_activation="steps"),
    ONE_LAYER.but("random phase, 300 ms", "variability").has(preprocess=SPIKES),
    TUNED.but("auxiliary of 16 maps", "auxiliary CNN").has(auxiliary_maps=16),
    TUNED.but("64 maps", "front end").of(_kernels(64)),
    TUNED.but("3x3 kernels", "front end").of(_kernels(32, size=3)),
    TUNED.but("7x7 kernels", "front end").of(_kernels(32, size=7)),
    TUNED.but("two layers", "front end").of(_kernels(32, 40)),
    TUNED.but("stride 2", "front end").of(_kernels(32, strides=(2,))),
    TUNED.but("rates up to 60 Hz", "encoding").of(_kernels(32, encoding=replace(LEARN.learning.encoding, f_max=60.0))),
    TUNED.but("4 steps", "steps").converts(steps=4),
    TUNED.but("balanced kernels", "conductances").converts("balanced"),
    TUNED.but("auxiliary dropped in 1 of 4", "auxiliary CNN").varies(auxiliary_drop=0.25),
    TUNED.but("auxiliary of 5x5 kernels", "auxiliary CNN").varies(auxiliary_kernel=5),
    TUNED.but("auxiliary of 2x2 average", "auxiliary CNN").varies(auxiliary_input=AVERAGE),
    ONE_LAYER.but("features normalised", "normalisation").varies(feature_norm=True),
    TUNED.but("features normalised", "normalisation").varies(feature_norm=True),
    ONE_LAYER.but("neurons' variability", "variability").varies(variability=True),
    SAFE.but("random phase", "variability").has(preprocess=SPIKES_600),
    MU.but("random phase", "variability").has(preprocess=SPIKES_600),
)
