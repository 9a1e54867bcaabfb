"""What can be set about encoder, neuron, layer and learning rule: frozen records that check themselves."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import tyro

from snn.registries import ENCODERS, RULES
from snn.runtime.errors import check, check_choice
from snn.runtime.ranges import Range, check_fields
from snn.timegrid import whole_steps

if TYPE_CHECKING:
    from torch import Tensor


RetinaKind = Literal["none", "whiten", "dog"]
Pairing = Literal["post", "two-sided"]

MILLISECONDS = Range(0, 1e6, unit="ms")
DURATION = Range(0, 1e6, above=True, unit="ms")
RATE = Range(0, 1e6, unit="Hz")
POTENTIAL = Range(-1e6, 1e6, unit="mV")
CONSTANT = Range(0, 1e6)
POSITIVE = Range(0, 1e6, above=True)
SHARE = Range(0, 1)
UNSATURATED = Range(0, 100)
FREQUENCY_DEPENDENCE = Range(0, 1e30)
CHANNELS = Range(1, 2**15 - 1, reason="channels are numbered with 16 bits")
KERNEL = Range(1, 1023, unit="pixels")
LONGEST_MEMORY = 1e5
"""Of a neuron: the longest membrane time constant, in ms."""
MOST_GRID_STEPS = 2**20
"""Of a presentation; learning takes fewer (:data:`snn.rules.base.MOST_STEPS`)."""


@dataclass(frozen=True)
class Encoding:
    """How intensities become spikes, and the time grid of a presentation."""

    f_min: Annotated[float, RATE] = 10.0
    """Rate of intensity 0, in Hz (paper 4.2; ParallelSpikeSim 2019)."""
    f_max: Annotated[float, RATE] = 30.0
    """Rate of intensity 1, in Hz (paper 4.2; ParallelSpikeSim 2019)."""
    presentation: Annotated[float, DURATION] = 300.0
    """Duration T of one image, in ms (ParallelSpikeSim 2019)."""
    dt: Annotated[float, DURATION] = 2.5
    """Time step, in ms (ours: against 0.25 ms it changes the spike count of 0.8 % of the neurons by one, and of 5.5 %
    at a lowered threshold)."""
    kind: Annotated[str, ENCODERS.flag("kind")] = "regular"
    """Encoder: regular trains with exact spike counts (paper 4.3: floor(F T)), Poisson trains, or one of a plugin."""
    quiet: Annotated[float, MILLISECONDS] = 0.0
    """Time at the end of the presentation in which no input spike comes, in ms (paper: none; learning takes 30, twice
    the pulse width, as a pulse that the end cuts off would count in part, by chance: docs/bridge.md)."""

    def __post_init__(self) -> None:
        check_fields(self)
        ENCODERS.check(self.kind)
        check(
            self.f_min < self.f_max,
            f"encoding rates from `f_min` {self.f_min} to `f_max` {self.f_max} Hz: expected f_min < f_max",
        )
        check(
            whole_steps(self.presentation, self.dt) >= 1,
            f"`presentation` {self.presentation} ms with `dt` {self.dt} ms: expected whole steps, at least one",
        )
        check(
            self.n_steps <= MOST_GRID_STEPS,
            f"`presentation` {self.presentation} ms with `dt` {self.dt} ms: {self.n_steps} steps, at most "
            f"{MOST_GRID_STEPS} can be simulated; raise `dt`",
        )
        check(
            0 <= whole_steps(self.quiet, self.dt) < self.n_steps,
            f"`quiet` {self.quiet} ms: expected a multiple of `dt` = {self.dt} ms, 0 or more and less than the "
            f"presentation of {self.presentation} ms",
        )
        check(
            self.f_max * self.dt * self.n_steps <= 1000 * self.active_steps,
            f"`f_max` {self.f_max} Hz with `dt` {self.dt} ms and {self.quiet} ms of quiet: more than one spike a step; "
            "lower one of them",
        )

    @property
    def n_steps(self) -> int:
        """Steps in a presentation."""
        return whole_steps(self.presentation, self.dt)

    @property
    def active_steps(self) -> int:
        """Steps at the start of a presentation in which input spikes come."""
        return self.n_steps - whole_steps(self.quiet, self.dt)

    def rate(self, intensity: "Tensor") -> "Tensor":
        """F in Hz of intensities in [0, 1], any shape."""
        return self.f_min + intensity * (self.f_max - self.f_min)


@dataclass(frozen=True)
class RetinaParameters:
    """How intensities become contrast before they become spikes (:mod:`snn.retina`)."""

    kind: Annotated[RetinaKind, tyro.conf.arg(name="retina", prefix_name=False)] = "none"
    """Contrast channels before the encoder: none (the paper: intensities), whiten (ON and OFF of a whitening filter
    that is learned from training images), dog (ON and OFF of a difference of Gaussians)."""
    kernel_size: Annotated[int, Range(3, 255, unit="pixels")] = 7
    """Side of the filter, in pixels, odd."""
    epsilon: Annotated[float, POSITIVE] = 0.03
    """Of whiten: added to the variance of image patches along each principal axis, in squared intensity. The larger,
    the less fine detail, and the less noise, passes."""
    noise: Annotated[float, CONSTANT] = 0.0
    """Of whiten: variance of the noise of a pixel for which the filter is made, in squared intensity; every principal
    axis is weakened as the Wiener filter does, by its variance over variance plus noise. 0: made for clean images."""
    patches: Annotated[int, Range(1000, 10**8, reason="fewer do not measure a covariance")] = 100_000
    """Of whiten: random patches of the training images from which their covariance is measured."""
    centre: Annotated[float, Range(0, 100, above=True, unit="pixels")] = 0.8
    """Of dog: standard deviation of the centre, in pixels."""
    surround: Annotated[float, Range(0, 100, above=True, unit="pixels")] = 1.6
    """Of dog: standard deviation of the surround, in pixels."""
    quantile: Annotated[float, Range(0, 1, above=True)] = 0.99
    """Contrast that becomes 1, the encoder's highest rate: this quantile of the contrasts of training images."""

    def __post_init__(self) -> None:
        check_choice("retina", self.kind, get_args(RetinaKind))
        check_fields(self)
        check(self.kernel_size % 2 == 1, f"retina of `kernel_size` {self.kernel_size}: must be odd, 3 or more")
        check(
            self.centre < self.surround,
            f"retina `centre` {self.centre}, `surround` {self.surround}: expected 0 < centre < surround",
        )


@dataclass(frozen=True)
class LIFParameters:
    """Constants of Eq. 1."""

    a: Annotated[float, Range(-1e6, 1e6)] = -6.77
    """Constant term of Eq. 1, in mV per unit time (ParallelSpikeSim 2019)."""
    b: Annotated[float, Range(-1e6, 0, below=True, reason="a leak is negative")] = -0.0989
    """Leak of Eq. 1, per unit time (ParallelSpikeSim 2019)."""
    c: Annotated[float, POSITIVE] = 0.314
    """Gain of the current in Eq. 1, in mV per unit time and current (ParallelSpikeSim 2019)."""
    membrane_time_scale: Annotated[float, POSITIVE] = 0.04
    """Units of Eq. 1's time per ms (ParallelSpikeSim 2019): the membrane time constant is 253 ms."""
    v_threshold: Annotated[float, POTENTIAL] = -60.2
    """Spiking threshold, in mV (ParallelSpikeSim 2019)."""
    v_reset: Annotated[float, POTENTIAL] = -74.7
    """Potential after a spike, in mV (ParallelSpikeSim 2019)."""
    v_init: Annotated[float, POTENTIAL] = -70.0
    """Potential at the start of a presentation, in mV (ParallelSpikeSim 2019)."""

    def __post_init__(self) -> None:
        check_fields(self)
        check(
            self.tau_mem <= LONGEST_MEMORY,
            f"LIF `membrane_time_scale` {self.membrane_time_scale} and `b` {self.b}: a membrane time constant of "
            f"{self.tau_mem:g} ms, expected at most {LONGEST_MEMORY:g}",
        )
        check(
            self.v_reset < self.v_leak < self.v_threshold,
            f"LIF potentials: expected `v_reset` {self.v_reset} < rest, -`a`/`b` = {self.v_leak:.2f}, < `v_threshold` "
            f"{self.v_threshold} mV, or the neuron fires without input",
        )
        check(
            self.v_init < self.v_threshold,
            f"`v_init` {self.v_init} mV: expected less than the threshold of {self.v_threshold} mV, or the neuron "
            "fires without input",
        )

    @property
    def v_leak(self) -> float:
        """Resting potential -a/b, in mV."""
        return -self.a / self.b

    @property
    def tau_mem(self) -> float:
        """Membrane time constant, in ms."""
        return -1.0 / (self.b * self.membrane_time_scale)

    @property
    def millivolts_per_current(self) -> float:
        """Steady depolarisation per unit of current, c/(-b), in mV."""
        return -self.c / self.b

    def interspike_interval(self, current: float, v_threshold: float | None = None) -> float:
        """Closed-form interval between spikes, in ms, at a constant current; ``inf`` below the rheobase."""
        threshold = self.v_threshold if v_threshold is None else v_threshold
        v_inf = self.v_leak + self.millivolts_per_current * current
        if v_inf <= threshold:
            return math.inf
        return self.tau_mem * math.log((v_inf - self.v_reset) / (v_inf - threshold))


@dataclass(frozen=True)
class LayerParameters:
    """Geometry and synapses of a spiking convolution."""

    maps: Annotated[int, CHANNELS]
    """Feature maps C_out."""
    kernel_size: Annotated[int, KERNEL] = 3
    """Side of the square kernel, in pixels (paper 4.2)."""
    stride: Annotated[int, KERNEL] = 1
    """Step of the kernel, in pixels."""
    padding: Annotated[int, Range(0, 1022, unit="pixels")] = 1
    """Silent border, in pixels."""
    pulse_width: Annotated[float, DURATION] = 15.0
    """Time w that a presynaptic spike keeps its synapse open, in ms (ParallelSpikeSim 2019: 10 to 25)."""
    inhibition_time: Annotated[float, MILLISECONDS] = 10.0
    """Time for which channels that lost a place ignore their input, in ms (ours)."""
    feed_forward_inhibition: bool = False
    """An inhibitory cell that all inputs drive alike takes each channel's mean conductance off all its synapses."""

    def __post_init__(self) -> None:
        check_fields(self)
        check(self.padding < self.kernel_size, f"layer padding {self.padding}: expected 0 to kernel_size - 1")

    def steps(self, dt: float) -> tuple[int, int]:
        """(pulse, inhibition) in steps of ``dt`` ms."""
        pulse, inhibition = whole_steps(self.pulse_width, dt), whole_steps(self.inhibition_time, dt)
        check(pulse >= 1, f"`pulse_width` {self.pulse_width} ms: expected a positive multiple of `dt` = {dt} ms")
        check(inhibition >= 0, f"`inhibition_time` {self.inhibition_time} ms: expected a multiple of `dt` = {dt} ms")
        return pulse, inhibition


@dataclass(frozen=True)
class STDPParameters:
    """Constants of Eq. 2 and 5 and of the mini-batch update."""

    rule: Annotated[str, RULES.flag("rule")] = "fd"
    """Learning rule: fd (Eq. 5), stochastic (Eq. 5 with phi = 0), deterministic (probability 1), or one of a plugin."""
    pairing: Pairing = "post"
    """Presynaptic spikes that a postsynaptic spike is paired with: post, the last one before it, for LTP or LTD;
    two-sided, that one for LTP and the next one after it for LTD (Eq. 5 as printed)."""
    alpha_p: Annotated[float, POSITIVE] = 0.005
    """LTP magnitude, conductance units (ParallelSpikeSim 2020)."""
    alpha_d: Annotated[float, POSITIVE] = 0.01
    """LTD magnitude, conductance units (ParallelSpikeSim 2020)."""
    beta_p: Annotated[float, UNSATURATED] = 0.4
    """LTP saturation, Eq. 2 (ours; the simulator's 3 squeezes all conductances together, below 0.3 they are almost
    all driven to the limits: see docs/learning.md)."""
    beta_d: Annotated[float, UNSATURATED] = 0.4
    """LTD saturation, Eq. 2 (ours, as beta_p)."""
    gamma_p: Annotated[float, SHARE] = 0.7
    """Peak probability of LTP (ParallelSpikeSim 2020)."""
    gamma_d: Annotated[float, SHARE] = 0.6
    """Peak probability of LTD (ParallelSpikeSim 2020)."""
    phi_p: Annotated[float, FREQUENCY_DEPENDENCE] = 0.6
    """Frequency dependence of the LTP window (ParallelSpikeSim 2020)."""
    phi_d: Annotated[float, FREQUENCY_DEPENDENCE] = 0.6
    """Frequency dependence of the LTD window (ParallelSpikeSim 2020)."""
    tau_p: Annotated[float, DURATION] = 10.0
    """Time constant of P_p, in ms (ours: the simulator's 100 makes P_p flat over the window)."""
    tau_d: Annotated[float, DURATION] = 40.0
    """Time constant of P_d, in ms (ours: the simulator's 5 makes P_d = 1 wherever LTD happens)."""
    ltp_window: Annotated[float, DURATION] = 15.0
    """Longest dt that gives LTP, in ms (ParallelSpikeSim 2020)."""
    ltd_delay: Annotated[float | None, MILLISECONDS] = None
    """T_d of pairing ``post``, in ms; None: one period of the encoder's f_min (ours: P_d reaches gamma_d for a synapse
    whose input spikes no faster than a black pixel's)."""
    g_min: Annotated[float, CONSTANT] = 0.0
    """Smallest conductance (paper: free; ours)."""
    g_max: Annotated[float, POSITIVE] = 1.0
    """Largest conductance (paper: free; ours, the scale is set by the gain)."""
    n_cap: Annotated[int, Range(1, 10**6)] = 20
    """Events of one synapse that a mini-batch may count for: dG = mean change per event x min(events, n_cap) (ours: a
    batch's thousands of events would carry G across its whole range)."""

    def __post_init__(self) -> None:
        check_fields(self)
        RULES.check(self.rule)
        span = self.g_max - self.g_min
        check(span > 0, f"STDP `g_min` {self.g_min}, `g_max` {self.g_max}: expected g_min < g_max")
        for name in ("alpha_p", "alpha_d"):
            value = getattr(self, name)
            check(
                value <= span,
                f"STDP `{name}` {value}: one event would carry a conductance across its whole range, `g_min` "
                f"{self.g_min} to `g_max` {self.g_max}; lower it",
            )

    def with_ltd_delay(self, f_min: float) -> "STDPParameters":
        """A copy with T_d set to one period of ``f_min`` (Hz), unless it was given or the pairing has none."""
        if self.ltd_delay is not None or self.pairing == "two-sided":
            return self
        check(f_min > 0, f"`f_min` = {f_min} Hz has no period to take for `ltd_delay`; give one in ms")
        return replace(self, ltd_delay=1000 / f_min)
