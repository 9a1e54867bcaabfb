"""Learning of spiking layers, one after another, by mini-batch updates.

Each layer learns on all images while the layers below it are frozen, without inhibition and with lowered thresholds
(paper, 4.2). Conductances are held while a mini-batch is presented. Nothing carries over from one update to the next
but the values in :class:`snn.network.UnfinishedLayer`: order of images, phases and draws of an update are functions of
seed, layer and update, so learning can stop and go on anywhere, and any number of processes can share a mini-batch.

What a device computes are spikes and counts, which are whole numbers. Conductances, gains and thresholds follow from
them on the CPU: these few values are sums and exponentials whose last bits differ between devices.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from snn.calibration import calibrate_gain, finalise, mean_count, normalised_rates, rate_range, sample_drive
from snn.data import Array, Images, as_images
from snn.engines.base import Engine, EventCounts, choose_engine, feed_forward
from snn.geometry import ConvGeometry
from snn.homeostasis import balance, balance_ltd
from snn.layer import SpikingConv2d
from snn.learning import Learning
from snn.monitor import Monitor
from snn.network import LayerHistory, LearnedLayer, SpikingNetwork, UnfinishedLayer
from snn.parameters import STDPParameters
from snn.plasticity import count_events, saturated_share, update
from snn.retina import learn_retina
from snn.runtime.device import as_device
from snn.runtime.errors import check
from snn.runtime.memory import check_memory
from snn.runtime.processes import Processes
from snn.runtime.random import draw_seeds, stream
from snn.runtime.ranges import SEED, check_value
from snn.spikes import Spikes, spike_counts

BYTES_OF_SYNAPSE, BYTES_OF_NEURON = 48, 4
"""Least that learning holds: float32 now and at the start, float64 counts of events and windows; one potential."""
WINDOW = 100
"""Updates over which conductances are averaged to judge convergence."""


def learn(
    images: Array | Images,
    p: Learning | None = None,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    engine: Engine | str = "auto",
    resume: SpikingNetwork | None = None,
    save: Callable[[SpikingNetwork], None] | None = None,
    processes: Processes | None = None,
) -> SpikingNetwork:
    """Learn spiking layers without labels, one after another.

    Args:
        images: uint8 (N, C, H, W), a tensor or NumPy array, or what :func:`snn.data.load_images` returns. All
            processes are given the same. Mini-batches are read from them as they are needed: a mapped file is not
            copied into memory.
        p: settings (None: defaults).
        seed: of all draws.
        device: where to compute.
        engine: simulator, or its name; ``auto`` takes the fastest for the device. All give the same bits.
        resume: unfinished network of the same images, settings and seed, to go on from.
        save: called after every update, and after every layer, with the network so far.
        processes: that share each mini-batch (None: this one alone).

    Returns:
        The network, on the CPU. The same arguments give the same bits, on any device and with any engine.

    Raises:
        UserError: images of another type or shape (:func:`snn.data.as_images`), an unknown engine.

    Example:
        >>> network = snn.learn(snn.load_images("digits", "train"), snn.Learning(maps=(8,)))
    """
    p, processes, device = p or Learning(), processes or Processes(), as_device(device)
    check(isinstance(p, Learning), f"settings are of type {type(p).__name__}; give snn.Learning")
    images = as_images(images)
    engine = choose_engine(engine, device) if isinstance(engine, str) else engine
    channels, height, width = images.shape[1:]
    check_fit(p, (channels, height, width), len(images))
    check_value("seed", seed, int, SEED)
    network = resume or SpikingNetwork((channels, height, width), p, (), seed)
    if not network.retina:
        network = replace(network, retina=processes.share(lambda: learn_retina(images, p.retina, seed)))
    for number in range(len(network.layers), len(p.maps)):
        learner = LayerLearner(images, number, network, device, engine, processes)
        state = network.unfinished or learner.start()
        monitor = Monitor(number, p, len(images), state.history, processes)
        while state.updates < p.updates(len(images)) and not converged(state, p):
            state = learner.step(state)
            monitor.report(state.history)
            if save:
                save(replace(network, unfinished=state))
        network = replace(network, layers=(*network.layers, learner.finish(state)), unfinished=None)
        monitor.close()
        if save:
            save(network)
    return network


def check_fit(p: Learning, shape: tuple[int, int, int], images: int) -> None:
    """Raise :class:`UserError` for layers that do not fit so many images of ``shape`` (C, H, W), or the memory."""
    p.updates(images)
    if p.retina.kind == "whiten":
        values = p.retina.patches * shape[0] * p.retina.kernel_size**2
        check_memory(8 * values, f"{p.retina.patches} patches of images", "lower `patches`")
    all_synapses = p.synapses(shape[0])
    if p.retina.kind != "none":
        shape = (2 * shape[0], *shape[1:])
    for number, synapses in enumerate(all_synapses):
        geometry, layer = p.geometry(number), f"layer {number + 1}"
        check(
            geometry.kernel_size < 2 * max(shape[1:]),
            f"`kernel_sizes` {geometry.kernel_size}: {layer} sees {shape[2]}x{shape[1]} pixels, on which the outer "
            "synapses would never see an image; lower it",
        )
        check(
            geometry.stride <= max(shape[1:]),
            f"`strides` {geometry.stride}: {layer} sees {shape[2]}x{shape[1]} pixels, less than one step; lower it",
        )
        after = ConvGeometry.of(geometry, shape).shape_out
        neurons = min(p.batch_size, images) * (math.prod(shape) + math.prod(after))
        check_memory(
            BYTES_OF_SYNAPSE * synapses + BYTES_OF_NEURON * neurons,
            f"{layer}, {synapses} conductances and {neurons} neurons of a mini-batch,",
            "lower `maps`, `batch_size` or `image_size`",
        )
        shape = after


class LayerLearner:
    """Learns layer ``number`` (from 0) above those of ``network`` by mini-batch updates; see :func:`learn`."""

    def __init__(
        self,
        images: Tensor,
        number: int,
        network: SpikingNetwork,
        device: torch.device,
        engine: Engine,
        processes: Processes,
    ) -> None:
        self.images, self.number, self.p, self.seed = images, number, network.learning, network.seed
        self.placed = network.to(device)
        self.below = [learned.layer for learned in self.placed.layers]
        self.device, self.engine, self.processes = device, engine, processes
        chosen = torch.randperm(len(images), generator=self._stream("calibration images"))
        self.calibration = images[chosen[: self.p.calibration_images]]
        self.orders: dict[int, Tensor] = {}

    def _stream(self, *purpose: str | int) -> torch.Generator:
        # Always on the CPU, so that all devices take the same numbers.
        return stream(self.seed, self.number, *purpose)

    def _seeds(self, images: int, *purpose: str | int) -> Tensor:
        return draw_seeds(images, self._stream(*purpose)).to(self.device)

    def presynaptic(self, images: Tensor, seeds: Tensor) -> Spikes:
        """Spikes that reach the layer."""
        spikes = self.placed.encode(self.engine, images.to(self.device), seeds)
        return feed_forward(self.engine, self.below, spikes)

    def calibration_spikes(self) -> tuple[Spikes, Tensor]:
        """Spikes that reach the layer from the calibration images, and the seeds of these."""
        seeds = self._seeds(len(self.calibration), "calibration")
        return self.presynaptic(self.calibration, seeds), seeds

    def start(self) -> UnfinishedLayer:
        """The layer before its first update: random conductances, gain set."""
        p, encoding, stdp = self.p, self.p.encoding, self.p.stdp
        pre, _ = self.calibration_spikes()
        counts = spike_counts(pre)
        geometry = p.geometry(self.number)
        shape = (geometry.maps, counts.shape[1], geometry.kernel_size, geometry.kernel_size)
        g_range = stdp.g_max - stdp.g_min
        low, span = stdp.g_min + p.initial_low * g_range, (p.initial_high - p.initial_low) * g_range
        layer = SpikingConv2d(
            conductance=low + span * torch.rand(shape, generator=self._stream("conductance")),
            gain=torch.ones(geometry.maps),
            v_threshold=torch.full((geometry.maps,), p.lif.v_threshold),
            geometry=geometry,
            lif=p.lif,
            dt=encoding.dt,
        )
        placed = layer.to(self.device)
        drive = sample_drive(self.engine, placed, pre, self._stream("places"))
        layer = calibrate_gain(self.engine, placed, drive, p.start_count).to("cpu")
        # The encoder's limits are exact; a hidden layer's are measured.
        limits = rate_range(counts, encoding.presentation) if self.below else (encoding.f_min, encoding.f_max)
        factor = torch.ones((geometry.maps, 1, 1, 1), dtype=torch.float64)
        window = torch.zeros((2, *shape), dtype=torch.float64)
        return UnfinishedLayer(layer, layer, factor, limits, LayerHistory.empty(geometry.maps), window)

    def step(self, state: UnfinishedLayer) -> UnfinishedLayer:
        """One mini-batch update."""
        p, stdp, done = self.p, self.p.rule, state.updates
        per_pass = -(-len(self.images) // p.batch_size)
        epoch, index = divmod(done, per_pass)
        if epoch not in self.orders:
            # Drawn once a pass: of a million images it takes longer than an update.
            self.orders = {epoch: torch.randperm(len(self.images), generator=self._stream("order", epoch))}
        chosen = self.orders[epoch][index * p.batch_size : (index + 1) * p.batch_size]
        seeds = self._seeds(len(chosen), "presentation", done)
        share = slice(self.processes.rank, None, self.processes.size)
        layer = state.layer
        if len(chosen[share]):
            pre = self.presynaptic(self.images[chosen[share]], seeds[share])
            counts, post = present(self.engine, layer.to(self.device), pre, state.rate_limits, stdp, seeds[share])
            wins = spike_counts(post).sum((0, 2, 3))
        else:
            shape = (3, *layer.conductance.shape)
            counts = EventCounts(*torch.zeros(shape, dtype=torch.float64, device=self.device))
            wins = torch.zeros(len(layer.gain), dtype=torch.int64, device=self.device)
        counts = EventCounts(*self.processes.add(torch.stack(counts)).cpu())
        wins = self.processes.add(wins).cpu()
        conductance = update(layer.conductance, counts, stdp, state.ltd_factor)
        change = (conductance - layer.conductance).abs().mean().item()
        g = (conductance - stdp.g_min) / (stdp.g_max - stdp.g_min)
        return replace(
            follow_window(state, g),
            layer=balance(layer.with_values(conductance=conductance), state.start, wins, p.homeostasis),
            ltd_factor=balance_ltd(state.ltd_factor, g, p.homeostasis),
            history=state.history.with_update(len(chosen), wins, change),
        )

    def finish(self, state: UnfinishedLayer) -> LearnedLayer:
        """The layer as it drives the next one."""
        p, presentation, engine = self.p, self.p.encoding.presentation, self.engine
        pre, seeds = self.calibration_spikes()
        placed = state.layer.to(self.device)
        post = engine.simulate(placed, pre, inhibition=True, seeds=seeds)
        rates = normalised_rates(pre, presentation, state.rate_limits)
        saturated = saturated_share(engine, placed, pre, post, rates, p.rule)
        geometry = replace(placed.geometry, feed_forward_inhibition=p.inhibition.when_learned)
        learned = replace(placed, geometry=geometry)
        drive = sample_drive(engine, learned, pre, self._stream("places"))
        layer = finalise(engine, learned, drive, p.output_rate * presentation / 1000, p.threshold_lowering)
        return LearnedLayer(
            layer=layer.to("cpu"),
            initial_conductance=state.start.conductance,
            learning_gain=state.start.gain[0].item(),
            rate_limits=state.rate_limits,
            mean_rate=mean_count(engine, layer, drive) * 1000 / presentation,
            saturated=saturated,
            history=state.history,
        )


def follow_window(state: UnfinishedLayer, g: Tensor) -> UnfinishedLayer:
    """The state with its window and drift after one more update; ``g``: conductances as shares of their range."""
    total, last = state.window
    total = total + g.double()
    if (state.updates + 1) % WINDOW:
        return replace(state, window=torch.stack([total, last]))
    mean = total / WINDOW
    drift = (mean - last).abs().mean().item() if state.updates >= WINDOW else math.inf
    return replace(state, window=torch.stack([torch.zeros_like(mean), mean]), drift=drift)


def converged(state: UnfinishedLayer, p: Learning) -> bool:
    """Whether learning may end early: conductances wander around a place that no longer moves."""
    return p.stop_when_converged and state.drift < p.convergence_tolerance


def present(
    engine: Engine,
    layer: SpikingConv2d,
    pre: Spikes,
    rate_limits: tuple[float, float],
    p: STDPParameters,
    seeds: Tensor,
) -> tuple[EventCounts, Spikes]:
    """What the rule draws while a mini-batch is presented with inhibition, and the spikes; see :func:`learn_batch`."""
    post = engine.simulate(layer, pre, inhibition=True, seeds=seeds)
    rates = normalised_rates(pre, len(pre) * layer.dt, rate_limits)
    return count_events(engine, layer, pre, post, rates, p, seeds), post


def learn_batch(
    engine: Engine,
    layer: SpikingConv2d,
    pre: Spikes,
    rate_limits: tuple[float, float],
    p: STDPParameters,
    seeds: Tensor,
    ltd_factor: Tensor | float = 1.0,
) -> tuple[Spikes, Tensor]:
    """One update: a mini-batch is presented, with inhibition, and the rule applied.

    Args:
        layer: as it is before the update.
        pre: bool (T, B, C_in, H, W), or events.
        rate_limits: f_min and f_max of Eq. 5, in Hz.
        seeds: of the images, for draws between channels with equal potential and the trials of Eq. 5.
        ltd_factor: multiplies dG_d (:func:`snn.plasticity.update`).

    Returns:
        Postsynaptic spikes bool (T, B, C_out, H_out, W_out), or events if ``pre`` is; and the new conductances
        (C_out, C_in, kH, kW).
    """
    counts, post = present(engine, layer, pre, rate_limits, p, seeds)
    return post, update(layer.conductance, counts, p, ltd_factor)
