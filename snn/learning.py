"""What a network of spiking layers is learned with: every setting that decides the result, apart from data and seed."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from snn.parameters import (
    CHANNELS,
    DURATION,
    KERNEL,
    MILLISECONDS,
    SHARE,
    Encoding,
    LayerParameters,
    LIFParameters,
    RetinaParameters,
    STDPParameters,
)
from snn.rules.base import MOST_STEPS
from snn.runtime.errors import check
from snn.runtime.ranges import Range, check_fields

FeedForward = Literal["none", "learning", "frozen", "both"]

MILLIVOLTS = Range(0, 1e3, unit="mV")
MOST_UPDATES = 10**8
"""Of a layer: more would take years."""


@dataclass(frozen=True)
class Homeostasis:
    """Keeps channels from dying, monopolising or saturating (ours). With all parts off, the rule is the paper's."""

    synaptic_scaling: bool = True
    """Scale each map's drive so that the sum of its conductances acts as at the start of learning."""
    threshold_step: Annotated[float, MILLIVOLTS] = 0.2
    """While a layer learns, a map's threshold moves by this times (its share of the spikes / fair share - 1) at each
    update, in mV (ours, by trial on digits and CIFAR-10); 0 keeps all thresholds equal."""
    threshold_range: Annotated[float, MILLIVOLTS] = 4.0
    """Largest departure of a map's threshold from the neuron's, in mV (ours); it always stays above rest."""

    mean_conductance: Annotated[float, Range(0, 1, below=True)] = 0.3
    """While a layer learns, the LTD magnitude of each map is raised or lowered until its mean conductance, as a share
    of the range g_min to g_max, is this (ours: hidden layers fire in volleys, in which almost every synapse would be
    potentiated up to g_max); 0 leaves the LTD magnitude as it is."""
    ltd_step: Annotated[float, Range(0, 10)] = 0.3
    """Change of the logarithm of the LTD magnitude at each update, per departure from mean_conductance (ours)."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True)
class Inhibition:
    """Inhibition by interneurons that the layer's own inputs drive (ours; cross-depth inhibition is the paper's)."""

    feed_forward: FeedForward = "none"
    """Where each channel's drive is ``sum_j G_j s_j - mean(G) sum_j s_j``, so that it follows contrast and not the
    number of its inputs that spike: while a layer learns, once it has learned, or both (paper: none)."""

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def while_learning(self) -> bool:
        """Feed-forward inhibition in a layer that learns."""
        return self.feed_forward in ("learning", "both")

    @property
    def when_learned(self) -> bool:
        """Feed-forward inhibition in a layer that has learned."""
        return self.feed_forward in ("frozen", "both")


@dataclass(frozen=True)
class Learning:
    """What is learned, and how."""

    maps: Annotated[tuple[int, ...], CHANNELS] = (32, 40, 56)
    """Feature maps of each layer (ParallelSpikeSim's CIFAR-10 configuration)."""
    kernel_sizes: Annotated[tuple[int, ...], KERNEL] = (3,)
    """Side of the kernels of each layer, in pixels, odd; one number: of all (ParallelSpikeSim's CIFAR-10
    configuration)."""
    strides: Annotated[tuple[int, ...], KERNEL] = (1,)
    """Stride of each layer, in pixels; one number: of all. 2 1 1 stands in for the dropped stem's stride in images of
    96 pixels and more."""
    pulse_width: Annotated[float, DURATION] = 15.0
    """Time for which a presynaptic spike keeps its synapse open, in ms (ParallelSpikeSim 2019: 10 to 25)."""
    inhibition_time: Annotated[float, MILLISECONDS] = 10.0
    """Time for which maps that lost at a place ignore their input, in ms (ours)."""
    initial_low: Annotated[float, SHARE] = 0.2
    """Lowest conductance at the start, as a share of the range g_min to g_max (ours: so close to the highest that
    images, not the start, decide which synapses grow, and around the mean that homeostasis keeps)."""
    initial_high: Annotated[float, SHARE] = 0.4
    """Highest conductance at the start, as a share of the range (ours)."""
    epochs: Annotated[int, Range(1, 10**6)] = 1
    """Passes over the training images for each layer (paper: the layers learn all images of the training set)."""
    min_updates: Annotated[int, Range(1, 10**7)] = 200
    """Further passes are made over small data sets until a layer has had this many updates (ours)."""
    stop_when_converged: bool = False
    """End the learning of a layer early, when its conductances, averaged over 100 updates, differ from their average
    over the 100 updates before by less than convergence_tolerance on average."""
    convergence_tolerance: Annotated[float, Range(0, 1, above=True)] = 0.01
    """As a share of the range g_min to g_max (ours: a tenth of the spread of conductances within a kernel)."""
    batch_size: Annotated[int, Range(1, 2**16)] = 16
    """Images per update; 1 is the paper's online setting (ours: the images of a batch are simulated together)."""
    start_count: Annotated[float, Range(0, 2**14, above=True, unit="spikes")] = 1.5
    """Spikes per neuron and presentation, without inhibition, to which a layer's gain is set when its learning starts
    (ours: fewer spikes are more selective; 1.5 learned better features than 3 or 6)."""
    output_rate: Annotated[float, Range(0, 1e6, above=True, unit="Hz")] = 12.0
    """Mean rate, in Hz, that a learned layer passes on, set through its gain (ours: between 3 and 4 spikes a
    presentation; with more, single spikes follow less well from the mean current, which is all the bridge keeps)."""
    threshold_lowering: Annotated[float, MILLIVOLTS] = 1.0
    """How far a learned layer's threshold is lowered, in mV (paper 4.2: lowered; ours: little, as features passed on
    at thresholds close to rest separate classes less well)."""
    calibration_images: Annotated[int, Range(1, 10**6)] = 32
    """Training images on which gains, thresholds and rate limits are measured (ours)."""
    encoding: Encoding = field(default_factory=lambda: Encoding(quiet=30.0))
    lif: LIFParameters = field(default_factory=LIFParameters)
    stdp: STDPParameters = field(default_factory=STDPParameters)
    homeostasis: Homeostasis = field(default_factory=Homeostasis)
    retina: RetinaParameters = field(default_factory=RetinaParameters)
    inhibition: Inhibition = field(default_factory=Inhibition)

    def __post_init__(self) -> None:
        check_fields(self)
        check(bool(self.maps), "`maps`: give at least one layer, for example `maps` 32 40 56")
        for name in ("kernel_sizes", "strides"):
            values, layers = getattr(self, name), len(self.maps)
            check(
                len(values) in (1, layers),
                f"`{name}` = {values}: expected one number for all {layers} layers, or one for each",
            )
        check(
            all(size % 2 == 1 for size in self.kernel_sizes),
            f"`kernel_sizes` {self.kernel_sizes}: must be odd, to keep the image size",
        )
        check(
            self.initial_low < self.initial_high,
            f"initial conductances from `initial_low` {self.initial_low} to `initial_high` {self.initial_high}: "
            "expected low < high",
        )
        self._check_times()
        # An encoder without a lowest rate has no period to take for T_d.
        self.stdp.with_ltd_delay(self.encoding.f_min)

    def _check_times(self) -> None:
        """Raise :class:`UserError` for what does not fit into a presentation or a step."""
        p = self.encoding
        check(
            p.n_steps < MOST_STEPS,
            f"`presentation` {p.presentation} ms with `dt` {p.dt} ms: {p.n_steps} steps, expected fewer than "
            f"{MOST_STEPS}, as lags are held in 16-bit numbers; raise `dt`",
        )
        for name in ("pulse_width", "inhibition_time"):
            value = getattr(self, name)
            check(
                value <= p.presentation, f"`{name}` {value} ms is longer than the `presentation`, {p.presentation} ms"
            )
        check(
            p.dt < self.lif.tau_mem,
            f"`dt` {p.dt} ms: expected less than the membrane time constant, {self.lif.tau_mem:g} ms; lower "
            "`membrane_time_scale`, or `dt`",
        )
        counts = {"start_count": self.start_count, "output_rate": self.output_rate * p.presentation / 1000}
        for name, spikes in counts.items():
            check(
                spikes <= p.n_steps,
                f"`{name}` {getattr(self, name)}: {spikes:g} spikes do not fit into the {p.n_steps} steps of a "
                "presentation; lower it",
            )
        check(
            self.threshold_lowering < self.lif.v_threshold - self.lif.v_leak,
            f"`threshold_lowering` {self.threshold_lowering} mV would bring the threshold, {self.lif.v_threshold} mV, "
            f"down to rest, {self.lif.v_leak:.2f} mV; lower it",
        )

    @property
    def rule(self) -> STDPParameters:
        """``stdp`` with its T_d."""
        return self.stdp.with_ltd_delay(self.encoding.f_min)

    def geometry(self, number: int) -> LayerParameters:
        """Of layer ``number``, counted from 0."""
        kernel_size, stride = (values[number % len(values)] for values in (self.kernel_sizes, self.strides))
        return LayerParameters(
            self.maps[number],
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            pulse_width=self.pulse_width,
            inhibition_time=self.inhibition_time,
            feed_forward_inhibition=self.inhibition.while_learning,
        )

    def synapses(self, channels: int) -> tuple[int, ...]:
        """Conductances of each layer, on images with so many channels."""
        before = (channels * (1 if self.retina.kind == "none" else 2), *self.maps)
        geometries = map(self.geometry, range(len(self.maps)))
        return tuple(g.maps * c_in * g.kernel_size**2 for g, c_in in zip(geometries, before, strict=False))

    def updates(self, images: int) -> int:
        """Mini-batch updates of each layer that learns on so many images."""
        per_pass = -(-images // self.batch_size)
        updates = per_pass * max(self.epochs, -(-self.min_updates // per_pass))
        check(updates <= MOST_UPDATES, f"`epochs` {self.epochs}: {updates} updates would not end; lower it")
        return updates


Conductances = Literal["learned", "shuffled", "random", "balanced", "gabor", "kmeans"]
"""What is converted: what a network learned, or a control (:func:`snn.controls.control`)."""
PresetName = Literal["cifar10", "imagenet", "retina", "retina-imagenet", "retina-digits"]


CONTRAST = Learning(
    maps=(32,),
    kernel_sizes=(5,),
    output_rate=1.5,
    threshold_lowering=0.0,
    encoding=Encoding(f_min=1.0, f_max=40.0, quiet=30.0),
    stdp=STDPParameters(beta_p=2.0, beta_d=2.0),
    retina=RetinaParameters("whiten", epsilon=0.01, quantile=0.97),
    inhibition=Inhibition("frozen"),
)
"""One layer on contrast channels."""

PRESETS: dict[PresetName, Learning] = {
    # The paper's: 3x3 kernels, 32, 40 and 56 maps, images of 32 pixels (ParallelSpikeSim's CIFAR-10 configuration).
    "cifar10": Learning(),
    # At 224 pixels those maps would cost 1.63 GMAC, these cost 0.051. Their total stride of 4 is that of the dropped
    # stems of ResNet and DenseNet, and of MobileNetV2 behind its first kept block. What is dropped pays back: SAFE
    # costs 0.03 GMAC more than MobileNetV2, and 0.30 and 0.33 less than ResNet-101 and DenseNet-121 (paper's Table 1:
    # 0.03 to 0.04 more). Ours; python -m hybrid.complexity counts.
    "imagenet": Learning(maps=(20, 28, 36), strides=(2, 2, 1)),
    # Contrast and feed-forward inhibition, by trial on CIFAR-10 (docs/learning.md): one layer, 5 MMAC at 32 pixels.
    "retina": CONTRAST,
    # At 224 pixels: 0.052 GMAC, of which the retina takes 0.022.
    "retina-imagenet": replace(CONTRAST, kernel_sizes=(7,), strides=(4,)),
    # Digits of 8 pixels: a small retina that clips strong contrast, so that a wrong pixel counts for little.
    "retina-digits": replace(
        CONTRAST,
        maps=(64,),
        output_rate=4.0,
        stdp=STDPParameters(beta_p=1.0, beta_d=1.0),
        retina=RetinaParameters("whiten", kernel_size=3, epsilon=0.03, quantile=0.8),
    ),
}
