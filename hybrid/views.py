"""What each stage of a network sees of images, and pictures of it."""

import math

import numpy as np
import torch
from torch import Tensor

from bridge.frontend import SpikingFrontEnd
from hybrid.network import HybridNetwork, Network, TrainableFrontEnd, contrast

IMAGE, CONTRAST, AUXILIARY = "image", "contrast", "auxiliary"
"""Names of stages; between the last two come "conv1", "conv2" and so on."""
GAP = 1
"""Pixels between two maps."""


@torch.no_grad()
def views(network: Network, images: Tensor) -> dict[str, Tensor]:
    """What each stage of a network sees of images (B, C, H, W) in [0, 1], in order, float32 on the CPU.

    The network stays on its device and is set to evaluation mode.

    Returns:
        Arrays (B, C', H', W') by stage:

        - "image": the image after the network's preprocessing, in [0, 1], not yet normalised;
        - "contrast", where there is a retina: ON contrast of each colour, then OFF, in [0, 1];
        - "conv1", "conv2" and so on, for each layer of the front end: of spiking layers the spikes in a presentation
          over the most that a neuron of the layer can have, in [0, 1]; of trainable layers (mu, lambda) what their
          activations give;
        - "auxiliary", where there is an auxiliary CNN: its features.
    """
    device = next(network.parameters()).device
    images = network.eval().preprocess(images.to(device))
    seen = {IMAGE: images}
    if isinstance(network, HybridNetwork):
        seen |= _front_end(network, images)
        if (auxiliary := network.auxiliary_features(images)) is not None:
            seen[AUXILIARY] = auxiliary
    return {stage: maps.float().cpu() for stage, maps in seen.items()}


def _front_end(network: HybridNetwork, images: Tensor) -> dict[str, Tensor]:
    """Contrast of preprocessed images, where there is a retina, and what each layer of the front end makes of it."""
    frontend = network.frontend
    retina = getattr(frontend, "retina", None)
    seen = {} if retina is None else {CONTRAST: contrast(images, retina)}
    outputs: list[Tensor] = []
    if isinstance(frontend, SpikingFrontEnd):
        spikes = frontend.spikes(images)
        outputs += [x / layer.activation.heights.amax() for x, layer in zip(spikes, frontend.layers, strict=True)]
    elif isinstance(frontend, TrainableFrontEnd):
        x = frontend.encode(network.frontend_input(images))
        for layer in frontend.layers:
            x = layer(x)
            outputs.append(x)
    else:
        # A module of the user's own has no layers that are known.
        outputs.append(frontend(network.frontend_input(images)))
    return seen | {f"conv{number}": x for number, x in enumerate(outputs, 1)}


def picture(stage: str, maps: Tensor, largest: float | None = None) -> np.ndarray:
    """One stage's maps of one image (C, H, W) as a picture in [0, 1], float32 (H', W') or in colour (H', W', 3).

    Images are shown in their colours. Contrast is ON less OFF of each colour: 0.5, grey, is no contrast. Other maps are
    tiles (:func:`tile`), on a scale from 0 to ``largest`` (None: their own largest value).
    """
    if stage == CONTRAST:
        on, off = maps.chunk(2)
        maps = 0.5 + (on - off) / 2
    if stage in (IMAGE, CONTRAST) and len(maps) in (1, 3):
        shown = maps.clamp(0, 1).permute(1, 2, 0).numpy()
        return shown[..., 0] if len(maps) == 1 else shown
    return tile(maps, 1.0 if stage in (IMAGE, CONTRAST) else largest)


def tile(maps: Tensor, largest: float | None = None) -> np.ndarray:
    """Maps (C, H, W) side by side as one grey picture (H', W'), float32 in [0, 1], nearly square, white between them.

    0 is black and ``largest`` white (None: the largest value of these maps).
    """
    count, height, width = maps.shape
    top = maps.max().item() if largest is None else largest
    scaled = (maps.detach().float().cpu() / (top if top > 0 else 1)).clamp(0, 1).numpy()
    columns = math.ceil(math.sqrt(count * height / width))
    rows = math.ceil(count / columns)
    canvas = np.ones((rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), np.float32)
    for number, grey in enumerate(scaled):
        top_edge, left = number // columns * (height + GAP), number % columns * (width + GAP)
        canvas[top_edge : top_edge + height, left : left + width] = grey
    return canvas
