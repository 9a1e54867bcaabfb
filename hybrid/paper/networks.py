"""Networks of the tables, of the ablations and of the search, made of the commands' own configurations.

The networks behind a retina are those of trials on held-out training images. The search lists one factor at a time
around them, for the figure of the frontier (python -m hybrid.reproduce frontier).
"""

from dataclasses import dataclass, replace
from pathlib import Path

from bridge.convert import ConvertConfig
from hybrid.architecture import Architecture
from hybrid.conditions import Noise
from hybrid.evaluate import EvaluateConfig
from hybrid.preprocess import UNCHANGED, Preprocess
from hybrid.swap import Scale as SwapScale
from hybrid.swap import SwapConfig
from hybrid.train import TrainConfig
from snn.learn import LearnConfig
from snn.learning import PRESETS, Conductances, Learning

NOWHERE = Path()
"""Stands for the files of a configuration until a run has its folder."""
LEARN, TRAIN = LearnConfig(NOWHERE), TrainConfig(NOWHERE)
CONVERT, SWAP = ConvertConfig(NOWHERE, NOWHERE), SwapConfig(NOWHERE, NOWHERE)
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
    """What is exchanged in the trained network; None: nothing."""

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
        """A copy with another variation."""
        return self.has(variations=replace(self.architecture.variations, **changes))  # type: ignore[arg-type]

    def sees(self, auxiliary_input: Preprocess) -> "Network":
        """A copy whose auxiliary CNN, once trained, sees images after another preprocessing."""
        return replace(self, swap=replace(SWAP, auxiliary_input=auxiliary_input))

    def but(self, what: str, factor: str) -> "Network":
        """A copy under the name "NAME, WHAT", to be changed in one ``factor``."""
        return replace(self, name=f"{self.name}, {what}", factor=factor)


AVERAGE = Preprocess("average:2")
MEDIAN = Preprocess("median:3")
"""The usual filter against impulses."""
COUNTS = Preprocess("spikes:10,30,300,inf")
"""Spike counts of random phase, in training only, of presentations between 300 ms and endless ones."""

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


def _contrast(maps: int = 64, epsilon: float = 0.02, **changes: object) -> Learning:
    """Settings of one layer behind a retina."""
    usual = PRESETS["retina"]
    return replace(usual, maps=(maps,), retina=replace(usual.retina, epsilon=epsilon), **changes)  # type: ignore[arg-type]


DETAIL = _contrast(epsilon=0.005)
"""Behind a retina of less low-pass, which passes more detail and more noise."""
RETINA = Network("retina safe", "front end", _contrast()).has(auxiliary_maps=0)
"""The frozen layer alone, on contrast: no auxiliary CNN, and nothing random in training."""
COUNTED = RETINA.but("spike counts", "spike counts").has(preprocess=COUNTS)
"""RETINA trained on spike counts of random phase."""
BASELINE_COUNTED = BASELINE.but("spike counts", "spike counts").has(preprocess=COUNTS)
"""What spike counts do alone."""
MEDIAN_COUNTED = BASELINE_COUNTED.but("median filter", "conventional").has(preprocess=Preprocess(f"{MEDIAN}+{COUNTS}"))
"""What a filter and spike counts do together, without a spiking layer."""
RETINA_MU = RETINA.but("mu", "training").has(variant="mu")
"""RETINA with a trained layer in place of the learned one, behind the same retina."""
MU_COUNTED = RETINA_MU.but("spike counts", "spike counts").has(preprocess=COUNTS)
LOCAL_MEAN = Preprocess("average:3")


def _assisted(network: Network) -> Network:
    """A copy with an auxiliary CNN on the local mean of the image."""
    return network.but("auxiliary CNN", "auxiliary CNN").has(auxiliary_maps=16).varies(auxiliary_input=LOCAL_MEAN)


ASSISTED = _assisted(COUNTED)
"""COUNTED with an auxiliary CNN that sees means of 3 x 3 pixels: what the retina removes, without impulses."""
DEEP = replace(ASSISTED, name="deep safe, spike counts", factor="depth").has(dropped_blocks=0, auxiliary_maps=32)
"""ASSISTED as deep as its baseline, with more auxiliary maps."""
DETAILED = DEEP.but("less low-pass", "retina").of(DETAIL)
DETAILED_DROPPED = DETAILED.but("auxiliary drop", "auxiliary CNN").varies(auxiliary_drop=0.2)
"""DETAILED without its auxiliary features in a part of the training, so that it learns to do without them."""
DETAILED_MEDIAN = DETAILED.but("medians", "auxiliary CNN").varies(auxiliary_input=MEDIAN)
"""DETAILED with an auxiliary CNN on which impulses have little effect."""
ROBUST = replace(DETAILED, name="robust safe, spike counts", factor="auxiliary CNN").sees(Preprocess("trimmed:3,1"))
"""DETAILED as it was trained, on means, but measured with means of the seven middle values of nine."""
RANDOM = RETINA.but("random conductances", "conductances").converts("random")
"""RETINA without what its layer learned."""

ABLATIONS = (
    BASELINE,
    BASELINE_COUNTED,
    MEDIAN_COUNTED,
    SAFE,
    MU,
    RETINA,
    RETINA.but("shuffled conductances", "conductances").converts("shuffled"),
    RANDOM,
    RETINA.but("Gabor kernels", "conductances").converts("gabor"),
    RETINA.but("k-means kernels", "conductances").converts("kmeans"),
    RETINA.but("plain stochastic STDP", "rule").learns(rule="stochastic"),
    RETINA.but("deterministic STDP", "rule").learns(rule="deterministic"),
    RETINA.but("no steps", "steps").converts(steps=256),
    RETINA.but("more low-pass", "retina").of(_contrast(epsilon=0.1)),
    _assisted(RETINA),
    RETINA_MU,
    COUNTED,
    COUNTED.but("random conductances", "conductances").converts("random"),
    ASSISTED,
    ASSISTED.but("random conductances", "conductances").converts("random"),
    ASSISTED.but("mu", "training").has(variant="mu"),
    COUNTED.but("auxiliary CNN on the image", "auxiliary CNN").has(auxiliary_maps=16),
    MU_COUNTED,
    DEEP,
    DEEP.but("random conductances", "conductances").converts("random"),
    DEEP.but("a block less", "depth").has(dropped_blocks=1),
    DETAILED,
    DETAILED_DROPPED,
    DETAILED_MEDIAN,
    ROBUST,
    DEEP.but("16 auxiliary maps", "auxiliary CNN").has(auxiliary_maps=16),
    DEEP.but("no auxiliary CNN", "auxiliary CNN").has(auxiliary_maps=0).varies(auxiliary_input=UNCHANGED),
)
CONTRIBUTIONS = (
    ("learned conductances, not random ones", "retina safe", "retina safe, random conductances"),
    ("learned conductances, not shuffled ones", "retina safe", "retina safe, shuffled conductances"),
    ("learned conductances, not Gabor kernels", "retina safe", "retina safe, Gabor kernels"),
    ("learned conductances, not k-means kernels", "retina safe", "retina safe, k-means kernels"),
    ("retina and random conductances, not the baseline", "retina safe, random conductances", "baseline"),
    (
        "learned conductances, not random ones, with spike counts",
        "retina safe, spike counts",
        "retina safe, spike counts, random conductances",
    ),
    (
        "learned conductances, not random ones, with spike counts and auxiliary CNN",
        "retina safe, spike counts, auxiliary CNN",
        "retina safe, spike counts, auxiliary CNN, random conductances",
    ),
    ("FD, not plain stochastic STDP", "retina safe", "retina safe, plain stochastic STDP"),
    ("FD, not deterministic STDP", "retina safe", "retina safe, deterministic STDP"),
    ("steps, not a ReLU that saturates", "retina safe", "retina safe, no steps"),
    ("more low-pass in the retina", "retina safe, more low-pass", "retina safe"),
    ("auxiliary CNN on the local mean, not none", "retina safe, auxiliary CNN", "retina safe"),
    (
        "auxiliary CNN on the local mean, not none, with spike counts",
        "retina safe, spike counts, auxiliary CNN",
        "retina safe, spike counts",
    ),
    (
        "auxiliary CNN on the local mean, not on the image, with spike counts",
        "retina safe, spike counts, auxiliary CNN",
        "retina safe, spike counts, auxiliary CNN on the image",
    ),
    ("a frozen layer, not a trained one (mu)", "retina safe", "retina safe, mu"),
    ("frozen layer behind a retina, not the baseline", "retina safe", "baseline"),
    ("spike counts alone, of the baseline", "baseline, spike counts", "baseline"),
    ("spike counts, of the frozen layer", "retina safe, spike counts", "retina safe"),
    ("frozen layer, not spike counts alone", "retina safe, spike counts", "baseline, spike counts"),
    (
        "a frozen layer, not a trained one, with spike counts",
        "retina safe, spike counts",
        "retina safe, mu, spike counts",
    ),
    (
        "a frozen layer, not a trained one, with spike counts and auxiliary CNN",
        "retina safe, spike counts, auxiliary CNN",
        "retina safe, spike counts, auxiliary CNN, mu",
    ),
    (
        "frozen layer and auxiliary CNN, not spike counts alone",
        "retina safe, spike counts, auxiliary CNN",
        "baseline, spike counts",
    ),
    ("frozen layer and spike counts, not the baseline", "retina safe, spike counts", "baseline"),
    ("all three, not the baseline", "retina safe, spike counts, auxiliary CNN", "baseline"),
    ("all of deep safe, not the baseline", "deep safe, spike counts", "baseline"),
    (
        "all of deep safe, not spike counts and a median filter",
        "deep safe, spike counts",
        "baseline, spike counts, median filter",
    ),
    ("all of deep safe, not spike counts alone", "deep safe, spike counts", "baseline, spike counts"),
    (
        "learned conductances, not random ones, in deep safe",
        "deep safe, spike counts",
        "deep safe, spike counts, random conductances",
    ),
    ("a block more, in deep safe", "deep safe, spike counts", "deep safe, spike counts, a block less"),
    ("less low-pass in the retina, in deep safe", "deep safe, spike counts, less low-pass", "deep safe, spike counts"),
    (
        "32 auxiliary maps, not 16, in deep safe",
        "deep safe, spike counts",
        "deep safe, spike counts, 16 auxiliary maps",
    ),
    ("auxiliary CNN, in deep safe", "deep safe, spike counts", "deep safe, spike counts, no auxiliary CNN"),
    (
        "auxiliary drop, in deep safe with less low-pass",
        "deep safe, spike counts, less low-pass, auxiliary drop",
        "deep safe, spike counts, less low-pass",
    ),
    (
        "medians, not means, for the auxiliary CNN, in deep safe with less low-pass",
        "deep safe, spike counts, less low-pass, medians",
        "deep safe, spike counts, less low-pass",
    ),
    (
        "all of deep safe with less low-pass and medians, not the baseline",
        "deep safe, spike counts, less low-pass, medians",
        "baseline",
    ),
    (
        "trimmed means in evaluation, in deep safe with less low-pass",
        "robust safe, spike counts",
        "deep safe, spike counts, less low-pass",
    ),
    (
        "all of robust safe, not the baseline",
        "robust safe, spike counts",
        "baseline",
    ),
    (
        "all of robust safe, not spike counts alone",
        "robust safe, spike counts",
        "baseline, spike counts",
    ),
    ("paper's spiking layers, not trainable ones (mu)", "safe", "mu"),
    ("paper's SAFE, not the baseline", "safe", "baseline"),
    ("step functions in a trained mu (lambda)", "lambda, range", "mu"),
)
"""What the ablations show: a name, the network with the part, and the network without it."""

SEARCH = (
    *ABLATIONS,
    noise_trained("awgn:30"),
    AVERAGE_TRAINED,
    BASELINE.but("quantised input", "steps").has(preprocess=Preprocess("quantise")),
    RETINA.but("32 maps", "front end").of(_contrast(32)),
    RETINA.but("less low-pass", "retina").of(DETAIL),
    RETINA.but("neurons' variability", "spike counts").varies(variability=True),
    RETINA.but("counts of 300 ms", "spike counts").has(preprocess=Preprocess("spikes")),
    RETINA.but("auxiliary behind the retina", "auxiliary CNN").has(auxiliary_maps=16).varies(auxiliary_source="retina"),
    COUNTED.but("32 maps", "front end").of(_contrast(32)),
    COUNTED.but("more low-pass", "retina").of(_contrast(epsilon=0.1)),
    COUNTED.but("counts from 150 ms", "spike counts").has(preprocess=Preprocess("spikes:10,30,150,inf")),
)
