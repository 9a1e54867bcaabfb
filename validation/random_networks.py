"""Random small spiking convolutions, inputs and learning rules, over all that can be configured."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from snn.encoding import encode
from snn.layer import SpikingConv2d
from snn.parameters import Encoding, LayerParameters, LIFParameters, STDPParameters
from snn.runtime.random import draw_seeds
from validation.exact_neuron import EXACT_DT, EXACT_NEURON, POTENTIAL_UNIT

PRESENTATION = 300.0
"""Duration of an image, in ms."""
MOST_DRAWS = 50
"""Most networks that are drawn to find one that serves a comparison."""

Pairing = Literal["post", "two-sided"]
Kind = Literal["free", "inhibited", "tied", "exact", "stacked"]
"""free: no inhibition; inhibited: with it; tied: some channels are twins, so that equal potentials compete; exact:
potentials meet thresholds; stacked: a free layer with lowered thresholds in front of an inhibited one."""


@dataclass(frozen=True)
class RandomNetwork:
    """Layers in float64 and how images reach them."""

    kind: Kind
    layers: tuple[SpikingConv2d, ...]
    shape: tuple[int, int, int]
    """Shape of an image, (C, H, W)."""
    batch: int
    """Images presented together."""
    encoding: Encoding

    @property
    def inhibition(self) -> bool:
        """Cross-depth inhibition in the last layer."""
        return self.kind != "free"

    @property
    def feed_forward_inhibition(self) -> bool:
        """Feed-forward inhibition in the last layer."""
        return self.layers[-1].geometry.feed_forward_inhibition

    def draw_spikes(self, generator: torch.Generator) -> Tensor:
        """Spikes of a batch of random images, bool (T, B, C, H, W)."""
        device = generator.device
        images = torch.randint(256, (self.batch, *self.shape), generator=generator, device=device, dtype=torch.uint8)
        return encode(images, self.encoding, draw_seeds(self.batch, generator))

    def to(self, target: torch.device | torch.dtype) -> "RandomNetwork":
        """A copy whose layers are on another device or of another precision."""
        return replace(self, layers=tuple(layer.to(target) for layer in self.layers))


def draw_network(
    kind: Kind, random: np.random.Generator, batch: int | None = None, *, feed_forward: bool = False
) -> RandomNetwork:
    """A random network of ``kind``.

    ``batch``: images at a time (None: 1 to 3). ``feed_forward``: with feed-forward inhibition in the last layer, and by
    chance in the one before.
    """
    dt = EXACT_DT if kind == "exact" else float(random.choice([1.0, 1.25, 1.5, 2.0, 2.5, 3.0]))
    low = random.uniform(10, 30)
    encoding = Encoding(low, low + random.uniform(10, 40), PRESENTATION, dt, str(random.choice(["regular", "poisson"])))
    shape = (int(random.integers(1, 4)), int(random.integers(4, 9)), int(random.integers(4, 9)))
    rate = (encoding.f_min + encoding.f_max) / 2
    layers = []
    below = shape
    last = 1 if kind == "stacked" else 0
    for number in range(last + 1):
        free = kind == "free" or (kind == "stacked" and number == 0)
        inhibited = feed_forward and (number == last or bool(random.integers(2)))
        # Of one synapse alone, inhibition would leave nothing.
        several = not free or (feed_forward and number < last)
        geometry = _draw_geometry(random, below, dt, fewest_channels=2 if several else 1, feed_forward=inhibited)
        spikes = random.uniform(4, 7) if free else random.uniform(3, 5)
        layer = _draw_layer(kind, random, geometry, below, dt, rate, spikes, lowered=kind == "stacked" and free)
        layers.append(layer)
        below, rate = layer.convolution(below).shape_out, spikes * 1000 / PRESENTATION
    return RandomNetwork(kind, tuple(layers), shape, batch or int(random.integers(1, 4)), encoding)


def _draw_geometry(
    random: np.random.Generator, shape: tuple[int, int, int], dt: float, fewest_channels: int, feed_forward: bool
) -> LayerParameters:
    smallest = 2 if feed_forward and shape[0] == 1 else 1
    kernel = int(random.integers(smallest, min(4, *shape[1:]) + 1))
    return LayerParameters(
        maps=int(random.integers(fewest_channels, 6)),
        kernel_size=kernel,
        stride=int(random.integers(1, min(3, kernel) + 1)),
        padding=int(random.integers(0, kernel)),
        pulse_width=dt * int(random.integers(math.ceil(5 / dt), math.floor(20 / dt) + 1)),
        inhibition_time=dt * int(random.integers(0, math.floor(15 / dt) + 1)),
        feed_forward_inhibition=feed_forward,
    )


def _draw_layer(
    kind: Kind,
    random: np.random.Generator,
    p: LayerParameters,
    shape: tuple[int, int, int],
    dt: float,
    rate: float,
    spikes: float,
    lowered: bool,
) -> SpikingConv2d:
    """Conductances, and gains that should make a neuron fire ``spikes`` times at the presynaptic ``rate`` in Hz."""
    channels, size = p.maps, (p.maps, shape[0], p.kernel_size, p.kernel_size)
    if kind == "exact":
        lif = EXACT_NEURON
        conductance = _with_exact_mean(random.integers(1, 5, size), p, random) / 4
        threshold = random.choice([-24.0, -25.0, -26.0]) * POTENTIAL_UNIT * np.ones(channels)
    else:
        lif = LIFParameters(v_reset=random.uniform(-79, -71), v_init=random.uniform(-74, -66))
        # Channels that are alike cross their thresholds together: inhibition then has something to decide.
        alike = random.uniform(0.0, 0.9)
        conductance = alike * random.uniform(0.1, 0.9, size[1:]) + (1 - alike) * random.uniform(0.1, 0.9, size)
        threshold = random.uniform(-67, -63, channels) if lowered else random.uniform(-60, -58, channels)
    # Without inhibition every neuron fires for itself; with it, the channels of one place take turns.
    together = channels if kind != "free" and not lowered else 1
    interval = PRESENTATION / (spikes * together)
    depolarisation = threshold.mean() - lif.v_leak
    depolarisation += (threshold.mean() - lif.v_reset) / math.expm1(interval / lif.tau_mem)
    open_share = -math.expm1(-rate * p.pulse_width / 1000)
    if p.feed_forward_inhibition:
        # Equal inputs cancel. Independent ones leave a drive of this spread around 0, of which the membrane passes the
        # slow part (found by trial); the exact neuron, whose time constant is 5 ms, passes most.
        deviation = conductance - conductance.mean((1, 2, 3), keepdims=True)
        current = math.sqrt((deviation**2).sum((1, 2, 3)).mean() * open_share * (1 - open_share))
        current *= 0.7 if kind == "exact" else 0.2
    else:
        current = conductance[0].size * conductance.mean() * open_share
    gain = depolarisation / lif.millivolts_per_current / current * np.ones(channels)
    if kind == "exact":
        gain = 2.0 ** np.round(np.log2(gain))
    elif kind == "tied":
        # Sums of multiples of 1/64 are exact in any order, so twins have equal potentials to the last bit.
        conductance = _with_exact_mean(np.round(conductance * 64).astype(int), p, random) / 64
        twins = random.permutation(channels)[: int(random.integers(2, channels + 1))]
        conductance[twins], threshold[twins] = conductance[twins[0]], threshold[twins[0]]
    else:
        gain *= random.uniform(0.97, 1.03, channels)
    return SpikingConv2d(
        conductance=torch.from_numpy(conductance),
        gain=torch.from_numpy(gain),
        v_threshold=torch.from_numpy(threshold),
        geometry=p,
        lif=lif,
        dt=dt,
    )


def _with_exact_mean(steps: np.ndarray, p: LayerParameters, random: np.random.Generator) -> np.ndarray:
    """Conductances in whole steps, with feed-forward inhibition some of them one step lower: their means are whole."""
    kernels = steps.reshape(len(steps), -1).copy()
    for kernel in kernels if p.feed_forward_inhibition else ():
        kernel[random.permutation(kernel.size)[: kernel.sum() % kernel.size]] -= 1
    return kernels.reshape(steps.shape)


def switch_rule(rule: STDPParameters, dt: float) -> STDPParameters:
    """Rule ``fd`` at a limit where each synapse's own presynaptic rate switches it on or off; other constants stay.

    The limit is tau -> 0, phi -> infinity and gamma = 1. For fn = 1, P_p and P_d of Eq. 5 are then 1. For fn = 0, P_p
    is 1 only at dt = 0, and P_d only beyond T_d (never with pairing ``two-sided``). If the limits of the rate leave no
    fn between 0 and 1, nothing is left to chance: exchanged rates of two synapses show.
    """
    delay = (round((rule.ltd_delay or 0.0) / dt) + 0.5) * dt
    rule = replace(rule, rule="fd", ltd_delay=delay, gamma_p=1.0, gamma_d=1.0)
    return replace(rule, phi_p=1e30, phi_d=1e30, tau_p=1e-3, tau_d=1e-3)


def draw_rule(random: np.random.Generator, rule: str, pairing: Pairing, dt: float) -> STDPParameters:
    """A learning rule with random constants, all different."""
    # The deterministic rule depresses wherever it does not potentiate: a longer window keeps the balance.
    window = random.uniform(20, 50) if rule == "deterministic" else random.uniform(15, 25)
    return STDPParameters(
        rule=rule,
        pairing=pairing,
        alpha_p=random.uniform(0.006, 0.010),
        alpha_d=random.uniform(0.004, 0.008),
        beta_p=random.uniform(0.5, 1.2),
        beta_d=random.uniform(0.5, 1.2),
        gamma_p=random.uniform(0.6, 0.9),
        gamma_d=random.uniform(0.4, 0.7),
        phi_p=random.uniform(0.5, 0.9),
        phi_d=random.uniform(0.3, 0.7),
        tau_p=random.uniform(10, 20),
        tau_d=random.uniform(30, 50),
        # A whole number of steps: the end of the window itself is met.
        ltp_window=dt * round(window / dt),
        ltd_delay=random.uniform(50, 90),
        g_min=random.choice([0.0, 0.05]),
        g_max=random.choice([1.0, 1.2]),
        n_cap=int(random.integers(10, 60)),
    )
