"""Spiking convolutions as Brian2 neurons with explicit synapses: shared conductances, inhibition, learning.

Every connection of the convolution is a synapse of its own that knows its shared conductance by number. Neurons at one
place inhibit each other through lateral synapses: each counts the neurons there that crossed threshold (``rivals``),
and those of them that are further above theirs (``stronger``).

Feed-forward inhibition has cells of its own, one at each place. Such an interneuron has one synapse, of conductance 1,
from every neuron of the receptive field, and inhibits the neurons of all channels there, each with the mean conductance
of its kernel. A layer whose inputs and kernels are all there then sees only differences between its inputs.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from snn.engines.norse import tickets
from snn.layer import SpikingConv2d
from snn.parameters import LayerParameters
from snn.runtime.errors import check
from snn.runtime.random import TIES, image_key
from validation.random_networks import RandomNetwork
from validation.reference.equations import normalised_rate
from validation.reference.neuron import LIF_EQUATION, LONG_AGO, PULSE, lif_namespace, load_brian2, spike_array
from validation.reference.plasticity import Plasticity, forget, mini_batch_update, plastic_synapses

NEURON = (
    LIF_EQUATION
    + """
I = gain*(drive - inhibition)*int(t > ignore_until + dt/2) : 1
drive : 1
inhibition : 1
gain : 1 (constant)
v_threshold : volt (constant)
ignore_until : second
margin = v - v_threshold : volt
crossed = int(v > v_threshold) : 1
rivals : 1
stronger : 1
ticket : 1
"""
)
CONDUCTION = f"""
G : 1
arrival : second
drive_post = G*{PULSE} : 1 (summed)
"""
INTERNEURON = "excitation : 1"
EXCITATION = f"""
arrival : second
excitation_post = {PULSE} : 1 (summed)
"""
FEED_FORWARD = """
G : 1
inhibition_post = G*excitation_pre : 1 (summed)
"""
INHIBITION = """
rivals_post = crossed_pre : 1 (summed)
stronger_post = crossed_pre*int(margin_pre > margin_post or (margin_pre == margin_post and ticket_pre > ticket_post)) : 1 (summed)
"""  # noqa: E501

# Within a step, spikes pass through all layers: input, then for each layer arrival to reset, learning last.
LAYER_SLOTS = ("arrivals", "currents", "inhibition", "potentials", "tickets", "rivals", "spikes", "resets")


def connections(
    shape: tuple[int, int, int], p: LayerParameters
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[int, int, int]]:
    """All synapses of a convolution over one image (C_in, H, W); those that would fall on padding do not exist.

    Returns:
        Presynaptic neuron, postsynaptic neuron and shared conductance of each synapse, all numbered in C order, and the
        layer's shape (C_out, H_out, W_out).
    """
    channels, height, width = shape
    out_height, out_width = ((n + 2 * p.padding - p.kernel_size) // p.stride + 1 for n in (height, width))
    kernel = (p.kernel_size, p.kernel_size)
    grid = np.indices((p.maps, out_height, out_width, channels, *kernel)).reshape(6, -1)
    c_out, y, x, c_in, ky, kx = grid
    row, column = y * p.stride + ky - p.padding, x * p.stride + kx - p.padding
    real = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    pre = (c_in * height + row) * width + column
    post = (c_out * out_height + y) * out_width + x
    weight = ((c_out * channels + c_in) * p.kernel_size + ky) * p.kernel_size + kx
    return pre[real], post[real], weight[real], (p.maps, out_height, out_width)


def most_waiting(pre_spikes: np.ndarray, post_spikes: np.ndarray, p: LayerParameters) -> int:
    """Most postsynaptic spikes that wait at one synapse when the next presynaptic one arrives, at least 1.

    Spikes are bool (T, B, C, H, W).
    """
    i, j, _, _ = connections(pre_spikes.shape[2:], p)
    steps, batch = pre_spikes.shape[:2]
    arrivals = pre_spikes.reshape(steps, batch, -1)[..., i]
    departures = post_spikes.reshape(steps, batch, -1)[..., j]
    waiting = np.zeros(arrivals.shape[1:], dtype=int)
    most = 1
    for arrival, departure in zip(arrivals, departures, strict=True):
        most = max(most, int((waiting * arrival).max()))
        waiting = waiting * ~arrival + departure
    return most


class ReferenceNetwork:
    """A stack of layers in Brian2; the last one may inhibit and learn, the others are as after learning.

    Args:
        network: values, geometry and neurons are read from its layers.
        plasticity: how the last layer learns; None: it does not. With pairing ``two-sided`` it needs the slots that
            :func:`most_waiting` gives.
    """

    def __init__(self, network: RandomNetwork, plasticity: Plasticity | None = None) -> None:
        layers, shape, batch = network.layers, network.shape, network.batch
        self._b2 = b2 = load_brian2()
        self.batch, self.plasticity = batch, plasticity
        self._dt, self._geometry = layers[0].dt, layers[-1].geometry
        self.contested_steps = self.ties = self.touches = 0
        """Steps in which several neurons crossed at one place; places and steps with a tie; times v = v_threshold."""
        self._step = {"dt": self._dt * b2.ms}
        self._input = b2.SpikeGeneratorGroup(batch * int(np.prod(shape)), [], [] * b2.ms, when="input", **self._step)
        self._network = b2.Network(self._input)
        # Eq. 5 needs the rates of the whole presentation beforehand; a hidden layer's come from a run of their own.
        ahead = plasticity is not None and plasticity.uses_rate and len(layers) > 1
        self._ahead = ReferenceNetwork(replace(network, kind="free", layers=layers[:-1])) if ahead else None
        self._schedule = ["input"]
        self._groups: list[tuple[Any, float]] = []
        self._conductions: list[Any] = []
        self._monitors: list[Any] = []
        self._shapes: list[tuple[int, int, int]] = []
        source = self._input
        for number, layer in enumerate(layers):
            last = number == len(layers) - 1
            slot = {name: f"{name}_{number}" for name in LAYER_SLOTS}
            self._schedule += slot.values()
            pre, post, weight, layer_shape = connections(shape, layer.geometry)
            group = self._add_neurons(layer, layer_shape, slot)
            image = np.arange(batch)[:, None]
            i = (pre + image * int(np.prod(shape))).ravel()
            j = (post + image * int(np.prod(layer_shape))).ravel()
            conductance = layer.conductance.cpu().double().numpy()
            conduction = self._add_conduction(CONDUCTION, source, group, i, j, layer.geometry.pulse_width, slot)
            inhibitory = None
            if layer.geometry.feed_forward_inhibition:
                inhibitory = self._add_interneurons(layer.geometry, source, group, shape, layer_shape, slot)
            self._last = conduction, inhibitory
            self._conduct(conductance, weight)
            inhibition = last and network.inhibition
            if inhibition:
                self._add_inhibition(group, layer_shape, slot)
            self._add_observer(group, layer_shape, slot, inhibition)
            if last and plasticity is not None:
                self._add_plasticity(plasticity, source, group, i, j, slot)
                repeats = np.arange(plasticity.repeats)[:, None]
                shared = np.tile(weight, batch) + repeats * conductance.size
                self._plastic.weight = np.repeat(shared.ravel(), plasticity.slots)
                self.conductance = np.repeat(conductance[None], plasticity.repeats, axis=0)
            source, shape = group, layer_shape
        self._network.schedule = [*self._schedule, "learning", "start", "groups", "thresholds", "synapses", "end"]

    def _add_neurons(self, layer: SpikingConv2d, shape: tuple[int, int, int], slot: dict[str, str]) -> Any:
        b2 = self._b2
        namespace = lif_namespace(layer.lif) | {"inhibition_time": layer.geometry.inhibition_time * b2.ms}
        fires = "v > v_threshold and stronger < 0.5"
        group = b2.NeuronGroup(
            self.batch * int(np.prod(shape)),
            NEURON,
            threshold=fires,
            reset="v = v_reset",
            events={"loses": f"rivals > 0.5 and not ({fires})"},
            method="euler",
            namespace=namespace,
            **self._step,
        )
        group.run_on_event("loses", "v = v_reset; ignore_until = t + inhibition_time", when=slot["resets"])
        group.state_updater.when = slot["potentials"]
        group.thresholder["spike"].when = group.thresholder["loses"].when = slot["spikes"]
        group.resetter["spike"].when = slot["resets"]
        for name, unit in (("gain", 1), ("v_threshold", b2.mV)):
            values = getattr(layer, name).cpu().double().numpy()
            setattr(group, name, np.tile(np.repeat(values, shape[1] * shape[2]), self.batch) * unit)
        monitor = b2.SpikeMonitor(group, when="end")
        self._network.add(group, monitor)
        self._groups.append((group, layer.lif.v_init))
        self._monitors.append(monitor)
        self._shapes.append(shape)
        return group

    def _add_conduction(
        self,
        model: str,
        source: Any,
        group: Any,
        i: np.ndarray,
        j: np.ndarray,
        pulse_width: float,
        slot: dict[str, str],
    ) -> Any:
        conduction = self._b2.Synapses(
            source,
            group,
            model,
            on_pre="arrival = t",
            namespace={"pulse_width": pulse_width * self._b2.ms},
            **self._step,
        )
        conduction.connect(i=i, j=j)
        conduction.pre.when = slot["arrivals"]
        for updater in conduction.summed_updaters.values():
            updater.when = slot["currents"]
        self._network.add(conduction)
        self._conductions.append(conduction)
        return conduction

    def _add_interneurons(
        self,
        p: LayerParameters,
        source: Any,
        group: Any,
        shape: tuple[int, int, int],
        layer_shape: tuple[int, int, int],
        slot: dict[str, str],
    ) -> Any:
        """One at each place, driven by all that drives the neurons there; synapses from it to them, ``G`` not set."""
        channels, height, width = layer_shape
        places = height * width
        interneurons = self._b2.NeuronGroup(self.batch * places, INTERNEURON, **self._step)
        self._network.add(interneurons)
        # A convolution with one channel.
        pre, place, _, _ = connections(shape, replace(p, maps=1))
        image = np.arange(self.batch)[:, None]
        i, j = (pre + image * int(np.prod(shape))).ravel(), (place + image * places).ravel()
        self._add_conduction(EXCITATION, source, interneurons, i, j, p.pulse_width, slot)
        inhibitory = self._b2.Synapses(interneurons, group, FEED_FORWARD, **self._step)
        image, channel, place = np.indices((self.batch, channels, places)).reshape(3, -1)
        inhibitory.connect(i=image * places + place, j=(image * channels + channel) * places + place)
        inhibitory.summed_updaters["inhibition_post"].when = slot["inhibition"]
        self._network.add(inhibitory)
        return inhibitory

    def _add_inhibition(self, group: Any, shape: tuple[int, int, int], slot: dict[str, str]) -> None:
        channels, height, width = shape
        image, one, other, place = np.indices((self.batch, channels, channels, height * width)).reshape(4, -1)
        lateral = self._b2.Synapses(group, group, INHIBITION, **self._step)
        base = image * channels
        lateral.connect(i=(base + one) * height * width + place, j=(base + other) * height * width + place)
        for updater in lateral.summed_updaters.values():
            updater.when = slot["rivals"]
        self._network.add(lateral)

    def _add_observer(self, group: Any, shape: tuple[int, int, int], slot: dict[str, str], inhibition: bool) -> None:
        """Count contests, ties and touches; draw the tickets that decide between equal channels as the learner does."""
        size, b2 = (self.batch, *shape), self._b2

        def observe() -> None:
            v, threshold = group.v_[:].reshape(size), group.v_threshold_[:].reshape(size)
            self.touches += int((v == threshold).sum())
            crossed = v > threshold
            if not inhibition or not crossed.any():
                return
            self.contested_steps += bool((crossed.sum(1) > 1).any())
            margin = np.where(crossed, v - threshold, -np.inf)
            tied = (crossed & (margin == margin.max(1, keepdims=True))).sum(1) > 1
            count = int(tied.sum())
            self.ties += count
            if count:
                assert self._seeds is not None, "channels of equal potential need the seeds of the images"
                b, y, x = (torch.from_numpy(index) for index in np.nonzero(tied))
                step = round(float((self._network.t - self._start) / b2.ms) / self._dt)
                drawn = tickets(image_key(self._seeds, TIES), step, b, y, x, size)
                sheet = np.zeros((size[0], *shape[1:], shape[0]))
                sheet[tied] = drawn.numpy()
                group.ticket_ = sheet.transpose(0, 3, 1, 2).ravel()

        self._network.add(b2.NetworkOperation(observe, when=slot["tickets"], **self._step))

    def _add_plasticity(
        self, plasticity: Plasticity, source: Any, group: Any, i: np.ndarray, j: np.ndarray, slot: dict[str, str]
    ) -> None:
        i, j = np.tile(i, plasticity.repeats), np.tile(j, plasticity.repeats)
        self._plastic = plastic_synapses(source, group, i, j, plasticity, self._dt)
        self._plastic.pre.when = slot["arrivals"]
        self._plastic.post.when = "learning"
        self._network.add(self._plastic)

    def present(self, pre_spikes: np.ndarray, seeds: torch.Tensor | None = None) -> list[np.ndarray]:
        """Present a batch, from v_init; the rule draws, conductances stay.

        Args:
            pre_spikes: bool (T, B, C, H, W).
            seeds: of the images, as given to the learner, for draws between channels with equal potential.

        Returns:
            Spikes of every layer, bool (T, B, C_out, H_out, W_out).
        """
        b2, steps = self._b2, len(pre_spikes)
        self._seeds, self._start = None if seeds is None else seeds.cpu(), self._network.t
        pre = pre_spikes.reshape(steps, -1)
        start = float(self._network.t / b2.ms)
        time, neuron = np.nonzero(pre)
        self._input.set_spikes(neuron, (start + time * self._dt) * b2.ms)
        for group, v_init in self._groups:
            group.v = v_init * b2.mV
            group.ignore_until = LONG_AGO * b2.second
            group.ticket = 0
        for conduction in self._conductions:
            conduction.arrival = LONG_AGO * b2.second
        if self.plasticity:
            forget(self._plastic)
            self._plastic.G = self.conductance.ravel()[np.asarray(self._plastic.weight)]
            if self.plasticity.uses_rate:
                source = self._ahead.present(pre_spikes)[-1].reshape(steps, -1) if self._ahead else pre
                fn = normalised_rate(source.sum(0) * (1000 / (steps * self._dt)), self.plasticity.rate_limits)
                self._plastic.fn = fn[np.asarray(self._plastic.i)]
        self._network.run(steps * self._dt * b2.ms, namespace={})
        spikes = [
            spike_array(monitor, steps, self._dt, start).reshape(steps, -1, *shape)
            for monitor, shape in zip(self._monitors, self._shapes, strict=True)
        ]
        if self.plasticity and self.plasticity.rule.pairing == "two-sided":
            waiting, slots = most_waiting([pre_spikes, *spikes][-2], spikes[-1], self._geometry), self.plasticity.slots
            check(
                waiting <= slots,
                f"{waiting} postsynaptic spikes wait at a Brian2 synapse: expected at most {slots}; give another "
                "`seed`",
            )
        return spikes

    def learned(self) -> np.ndarray:
        """Conductances (repeats, C_out, C_in, kH, kW) that the mini-batch rule makes of what was presented last."""
        assert self.plasticity
        weight, shape = np.asarray(self._plastic.weight), self.conductance.shape
        trials, change = (
            np.bincount(weight, np.asarray(values), self.conductance.size).reshape(shape)
            for values in (self._plastic.trials, self._plastic.change)
        )
        return mini_batch_update(self.conductance, trials, change, self.plasticity.rule)

    def learn(self) -> np.ndarray:
        """Go on with :meth:`learned` conductances, and return them; one repeat only."""
        assert self.plasticity
        self.conductance = self.learned()
        weight = np.asarray(self._plastic.weight)[:: self.plasticity.slots]
        self._conduct(self.conductance[0], weight[: len(weight) // self.batch])
        return self.conductance

    def _conduct(self, conductance: np.ndarray, weight: np.ndarray) -> None:
        """Give the synapses of the last layer so far, and the inhibitory ones, their shared conductances.

        ``weight`` numbers the conductance of each synapse of one image.
        """
        conduction, inhibitory = self._last
        conduction.G = np.tile(conductance.ravel()[weight], self.batch)
        if inhibitory is not None:
            mean = conductance.reshape(len(conductance), -1).mean(1)
            places = len(inhibitory) // (self.batch * len(mean))
            inhibitory.G = np.tile(np.repeat(mean, places), self.batch)
