"""Networks to set beside one that has learned: what do its conductances contribute, and what their mean?

A control has other conductances than the learned network, and nothing else: its layers have the same inhibition, the
same synaptic scaling, the same threshold, and pass on the same rate.
"""

from dataclasses import replace

import torch
from torch import Tensor

from snn.calibration import finalise, sample_drive
from snn.engines.base import Engine, choose_engine, feed_forward
from snn.gabor import gabor_bank
from snn.layer import SpikingConv2d
from snn.learning import Conductances, Learning
from snn.network import LearnedLayer, SpikingNetwork
from snn.patches import random_patches
from snn.runtime.errors import check
from snn.runtime.random import draw_seeds, stream
from snn.spikes import spike_counts

PATCHES = 100_000
"""Patches on which k-means learns, at most."""
PATCH_VALUES = 30_000_000
"""Spike counts in all of them together, at most."""
PASSES = 10
"""Passes of k-means over the patches."""
BATCH = 16
"""Images simulated together."""


def control(network: SpikingNetwork, images: Tensor, kind: Conductances, seed: int = 0) -> SpikingNetwork:
    """``network`` with other conductances, gains and thresholds set again so that each layer passes on the same rate.

    Each channel's gain is first set as synaptic scaling does while a layer learns, if the network learned with it; then
    all gains of a layer change by one factor.

    Args:
        network: learned.
        images: uint8 (N, C, H, W), on which rates are measured (the first of them), and on which k-means learns.
        kind: what the conductances are.

            - learned: as they are; nothing changes.
            - shuffled: values permuted within each map.
            - random: drawn uniformly between g_min and g_max.
            - balanced: learned, under feed-forward inhibition also where the network has none (drives follow contrast,
              not light).
            - gabor: a bank of Gabor functions (:mod:`snn.gabor`). With a retina, their positive parts are conductances
              from ON cells, their negative parts from OFF cells. Without, 0 becomes the middle of g_min and g_max.
            - kmeans: centroids of patches of the layer's own input, in spikes; see :func:`kmeans_centroids`.
        seed: of all draws.

    Raises:
        UserError: gabor of more than one layer, or of kernels without room for an orientation; kmeans with more maps
            than there are patches.
    """
    if kind == "learned":
        return network
    check(
        kind != "gabor" or len(network.layers) == 1,
        f"`conductances` gabor: a bank that answers to images fits the first layer alone, and not {len(network.layers)}"
        " layers, of which the others learned from what the first one had learned; give `layers` 1",
    )
    p, engine = network.learning, choose_engine("auto", images.device)
    layers: list[LearnedLayer] = []
    calibration = images[: p.calibration_images]
    seeds = draw_seeds(len(calibration), stream("control presentation", seed)).to(images.device)
    for number, learned in enumerate(network.layers):
        below = [control_layer.layer for control_layer in layers]
        old, generator = learned.layer, stream("control", kind, seed, number)
        geometry, shape = old.geometry, old.conductance.shape
        if kind == "balanced":
            geometry, values = replace(geometry, feed_forward_inhibition=True), old.conductance
        elif kind == "shuffled":
            order = torch.rand((shape[0], old.conductance[0].numel()), generator=generator).argsort(1)
            values = old.conductance.flatten(1).gather(1, order.to(images.device)).reshape(shape)
        else:
            if kind == "gabor":
                values = _gabor_values(old, network, generator)
            elif kind == "kmeans":
                centroids = kmeans_centroids(_input_counts(network, engine, below, images, seed), old, generator)
                values = centroids / centroids.amax((1, 2, 3), keepdim=True)
            else:
                values = torch.rand(shape, generator=generator)
            values = p.stdp.g_min + (p.stdp.g_max - p.stdp.g_min) * values.to(old.conductance)
        layer = replace(old, geometry=geometry, conductance=values)
        if kind not in ("shuffled", "balanced"):
            layer = layer.with_values(gain=_scaled_gain(layer, p))
        pre = feed_forward(engine, below, network.encode(engine, calibration, seeds))
        layer = layer.with_values(v_threshold=torch.full_like(old.v_threshold, p.lif.v_threshold))
        drive = sample_drive(engine, layer, pre, stream("control places", seed, number))
        layer = finalise(engine, layer, drive, p.output_rate * p.encoding.presentation / 1000, p.threshold_lowering)
        layers.append(replace(learned, layer=layer))
    return replace(network, layers=tuple(layers))


def _scaled_gain(layer: SpikingConv2d, p: Learning) -> Tensor:
    """Gains in the proportions that synaptic scaling gives them while a layer learns."""
    if not p.homeostasis.synaptic_scaling:
        return torch.ones_like(layer.gain)
    learning = replace(layer.geometry, feed_forward_inhibition=p.inhibition.while_learning)
    return 1 / replace(layer, geometry=learning).weight.abs().mean((1, 2, 3))


def _gabor_values(layer: SpikingConv2d, network: SpikingNetwork, generator: torch.Generator) -> Tensor:
    """Gabor functions as shares of the range of conductances, float64 (C_out, C_in, k, k)."""
    maps, size = layer.geometry.maps, layer.geometry.kernel_size
    bank = gabor_bank(maps, network.input_shape[0], size, generator)
    if network.retina is None:
        return (bank + 1) / 2
    # In the order of the retina's channels: ON, then OFF.
    return torch.cat([bank, -bank], dim=1).clamp(min=0)


def _input_counts(
    network: SpikingNetwork, engine: Engine, below: list[SpikingConv2d], images: Tensor, seed: int
) -> Tensor:
    """Spikes in a presentation that reach the layer above ``below``: int16 (N, C, H, W) on the CPU."""
    generator, parts = stream("control patches", seed), []
    for batch in images.split(BATCH):
        seeds = draw_seeds(len(batch), generator).to(images.device)
        spikes = feed_forward(engine, below, network.encode(engine, batch, seeds))
        parts.append(spike_counts(spikes).cpu())
    return torch.cat(parts)


def kmeans_centroids(counts: Tensor, layer: SpikingConv2d, generator: torch.Generator) -> Tensor:
    """As many centroids as ``layer`` has maps, float64 (C_out, C_in, k, k), of patches of its input.

    ``counts`` are presynaptic spikes, (N, C_in, H, W). Up to :data:`PATCHES` patches in the size of a kernel are drawn
    at places where a kernel fits; those without a spike are left out. scikit-learn's MiniBatchKMeans, of fixed length,
    finds the centroids. Raises :class:`UserError` if there are fewer patches than maps.
    """
    # Imported here: only this control needs it.
    from sklearn.cluster import MiniBatchKMeans

    maps, size = layer.geometry.maps, layer.geometry.kernel_size
    channels, height, width = counts.shape[1:]
    count = max(maps, min(PATCHES, PATCH_VALUES // (channels * size**2)))
    room = len(counts) > 0 and size <= min(height, width)
    check(room, f"`conductances` kmeans: {width}x{height} places have no room for {size}x{size} kernels")
    patches = random_patches(counts, size, count, generator).flatten(1)
    patches = patches[patches.any(1)].float()
    check(
        len(patches) >= maps,
        f"`conductances` kmeans: only {len(patches)} patches of the layer's input have spikes, for {maps} maps; give "
        "more `images`",
    )
    kmeans = MiniBatchKMeans(
        maps,
        max_iter=PASSES,
        random_state=int(torch.randint(2**31, (1,), generator=generator)),
        n_init=1,
        # Without early stopping, which would depend on how a sum over the patches is rounded.
        max_no_improvement=None,
    )
    centroids = torch.from_numpy(kmeans.fit(patches.numpy()).cluster_centers_)
    return centroids.double().reshape(maps, channels, size, size)
