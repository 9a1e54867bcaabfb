"""The spiking layers in the Neuromorphic Intermediate Representation (NIR), and back into norse.

The graph is input -> [pulse -> Conv2d -> LIF] per layer -> output. A pulse lasts several time steps. The graph adds up
a spike and its delayed copies (Delay nodes) and makes every sum above a half 1 (Threshold node), so that a new spike
restarts a pulse, as in the simulator. Feed-forward inhibition is part of the weights, some of which are negative then.

The input is the encoder's spikes: of the image's channels or, behind a retina, of twice as many, ON and then OFF. NIR
has no node for either (a retina repeats the border of an image and rounds), so the graph's metadata hold what is needed
to go from an image to spikes. :func:`stored_encoder` reads them:

- ``encoder``: kind; rates f_min and f_max of 0 and 1, in Hz; presentation and the quiet time at its end, in s.
- ``retina``, if there is one: signed contrast is the correlation of intensities, 0 to ``steps``, with ``filters``
  (colour, colour, k, k), plus ``offset`` (colour,), the image going on outside as it ends. ON is its positive part, OFF
  its negative part, each times ``levels`` / ``steps``, rounded (halves to even), at most ``levels``.

Units are NIR's: seconds and volts. Potentials are relative to the reset potential, which therefore is 0, as in most
simulators. The weights include the drive's factor of each channel, so r is 1. NIR has no place for the time step and
for the potential at the start of a presentation; the metadata of the graph and of each LIF node hold them.
"""

import io
from pathlib import Path
from typing import TYPE_CHECKING

import nir
import nirtorch
import numpy as np
import torch
from torch import Tensor, nn

from bridge.export.images import check_images
from bridge.frontend import SpikingFrontEnd
from snn.encoding import encode
from snn.engines.base import choose_engine, feed_forward
from snn.layer import SpikingConv2d
from snn.parameters import Encoding
from snn.retina import INTENSITY_STEPS, LEVELS, Retina, encoder_input
from snn.runtime.errors import check
from snn.runtime.outputs import write_bytes
from snn.runtime.random import draw_seeds

if TYPE_CHECKING:
    from norse.torch import LIFBoxCell
    from norse.torch.functional.lif_box import LIFBoxFeedForwardState

CHECKED_IMAGES = 2
"""Images on which :func:`export_nir` runs the file."""


def spiking_graph(
    layers: list[SpikingConv2d], shape: tuple[int, int, int], encoding: Encoding, retina: Retina | None = None
) -> nir.NIRGraph:
    """The graph of learned layers, without cross-depth inhibition, for images of ``shape`` (C, H, W)."""
    metadata = {
        "dt": layers[0].dt / 1000,
        "dt_unit": "s",
        "potential_unit": "V",
        "encoder": {
            "kind": encoding.kind,
            "f_min": encoding.f_min,
            "f_max": encoding.f_max,
            "rate_unit": "Hz",
            "presentation": encoding.presentation / 1000,
            "quiet": encoding.quiet / 1000,
            "time_unit": "s",
        },
    }
    if retina:
        filters, offset = retina.filters.numpy(), retina.offset.numpy()
        metadata["retina"] = {"filters": filters, "offset": offset, "steps": INTENSITY_STEPS, "levels": LEVELS}
        shape = (2 * shape[0], *shape[1:])
    nodes: dict[str, nir.NIRNode] = {"input": nir.Input(np.array(shape))}
    edges, before = [], "input"
    for number, layer in enumerate(layers, 1):
        pulse, _ = layer.geometry.steps(layer.dt)
        nodes[f"pulse{number}"] = nir.Threshold(np.full(shape, 0.5))
        edges.append((before, f"pulse{number}"))
        for step in range(1, pulse):
            delay = f"delay{number}_{step}"
            nodes[delay] = nir.Delay(np.full(shape, step * layer.dt / 1000))
            edges += [(before, delay), (delay, f"pulse{number}")]
        nodes[f"conv{number}"] = _convolution(layer, shape[1:])
        edges.append((f"pulse{number}", f"conv{number}"))
        shape = layer.convolution(shape).shape_out
        nodes[f"lif{number}"] = _neurons(layer, shape)
        edges.append((f"conv{number}", f"lif{number}"))
        before = f"lif{number}"
    nodes["output"] = nir.Output(np.array(shape))
    edges.append((before, "output"))
    return nir.NIRGraph(nodes, edges, metadata=metadata)


def _convolution(layer: SpikingConv2d, size: tuple[int, int]) -> nir.Conv2d:
    volts = (layer.gain.double() * layer.lif.millivolts_per_current / 1000).reshape(-1, 1, 1, 1)
    return nir.Conv2d(
        input_shape=size,
        # In float64 from the start: the mean that inhibition takes off is no number of float32.
        weight=(layer.to(torch.float64).weight * volts).numpy(),
        stride=layer.geometry.stride,
        padding=layer.geometry.padding,
        dilation=1,
        groups=1,
        bias=np.zeros(layer.geometry.maps),
    )


def _neurons(layer: SpikingConv2d, shape: tuple[int, int, int]) -> nir.LIF:
    p = layer.lif

    def everywhere(value: float | np.ndarray) -> np.ndarray:
        return np.broadcast_to(np.asarray(value, np.float64).reshape(-1, 1, 1), shape).copy()

    return nir.LIF(
        tau=everywhere(p.tau_mem / 1000),
        r=everywhere(1.0),
        v_leak=everywhere((p.v_leak - p.v_reset) / 1000),
        v_threshold=everywhere((layer.v_threshold.double().numpy() - p.v_reset) / 1000),
        v_reset=everywhere(0.0),
        metadata={"v_start": (p.v_init - p.v_reset) / 1000, "zero_mV": p.v_reset},
    )


def nir_bytes(
    layers: list[SpikingConv2d], shape: tuple[int, int, int], encoding: Encoding, retina: Retina | None = None
) -> bytes:
    """:func:`spiking_graph` as a NIR file, made in memory: the HDF5 library does not survive a full disk."""
    file = io.BytesIO()
    nir.write(file, spiking_graph(layers, shape, encoding, retina))
    return file.getvalue()


def _read(file: bytes | str | Path) -> nir.NIRGraph:
    return nir.read(io.BytesIO(file) if isinstance(file, bytes) else file)


def stored_encoder(file: bytes | str | Path) -> tuple[Encoding, Retina | None]:
    """What turns images into the input spikes of a file of :func:`nir_bytes`, or of its bytes."""
    metadata = _read(file).metadata
    stored = metadata["encoder"]
    # Whole steps again, in spite of the division by 1000.
    times = {name: round(float(stored[name]) * 1000, 9) for name in ("presentation", "quiet")}
    rates = {name: float(stored[name]) for name in ("f_min", "f_max")}
    encoding = Encoding(**rates, **times, dt=round(float(metadata["dt"]) * 1000, 9), kind=stored["kind"])
    if "retina" not in metadata:
        return encoding, None
    filters, offset = (torch.from_numpy(metadata["retina"][name]) for name in ("filters", "offset"))
    return encoding, Retina(filters, offset)


class Delay(nn.Module):
    """Passes on its input after a number of steps, and zeros until then."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, x: Tensor, state: tuple[Tensor, ...] | None = None) -> tuple[Tensor, tuple[Tensor, ...]]:
        waiting = (*(state or (torch.zeros_like(x),) * self.steps), x)
        return waiting[0], waiting[1:]


class Threshold(nn.Module):
    """1 where the input exceeds a threshold, else 0."""

    def __init__(self, threshold: Tensor) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return (x > self.threshold).to(x.dtype)


def run_in_norse(file: bytes | str | Path, spikes: Tensor) -> Tensor:
    """Spikes of the last layer, bool (T, B, C_out, H_out, W_out), when norse runs a file of :func:`nir_bytes`.

    ``file`` may also be its bytes. ``spikes`` are the encoder's, bool (T, B, C, H, W). Norse runs in float64, time step
    by time step.
    """
    graph = _read(file)
    dt = float(graph.metadata["dt"])
    modules = {
        nir.Delay: lambda node: Delay(round(float(node.delay.flat[0]) / dt)),
        nir.Threshold: lambda node: Threshold(torch.from_numpy(node.threshold)),
        nir.LIF: lambda node: _norse_cell(node, dt),
    }
    network = nirtorch.nir_to_torch(graph, modules, dtype=torch.float64)
    state = {name: None for name, _ in network.named_children()}
    for name, node in graph.nodes.items():
        if isinstance(node, nir.LIF):
            state[name] = _start(node, spikes.shape[1])
    out = []
    with torch.no_grad():
        for step in spikes:
            fired, state = network(step.double(), state)
            out.append(fired.bool())
    return torch.stack(out)


def _norse_cell(node: nir.LIF, dt: float) -> "LIFBoxCell":
    from norse.torch import LIFBoxCell, LIFBoxParameters

    p = LIFBoxParameters(
        tau_mem_inv=1 / torch.from_numpy(node.tau),
        v_leak=torch.from_numpy(node.v_leak),
        v_th=torch.from_numpy(node.v_threshold),
        v_reset=torch.from_numpy(node.v_reset),
        method="heaviside",
    )
    return LIFBoxCell(p, dt=dt)


def _start(node: nir.LIF, batch: int) -> "LIFBoxFeedForwardState":
    from norse.torch.functional.lif_box import LIFBoxFeedForwardState

    return LIFBoxFeedForwardState(v=torch.full((batch, *node.v_leak.shape), float(node.metadata["v_start"])).double())


def export_nir(
    layers: list[SpikingConv2d], frontend: SpikingFrontEnd, path: str | Path, generator: torch.Generator
) -> int:
    """Write learned layers to ``path``; return the number of spikes of the last layer, which norse must reproduce.

    ``frontend`` is what they were converted to. Norse and the simulator run in float64 on :data:`CHECKED_IMAGES` images
    (:func:`bridge.export.images.check_images`). For norse, they are encoded as the file says. Raises
    :class:`snn.runtime.errors.UserError` if any spike differs; nothing is written then.
    """
    spec, retina = frontend.spec, frontend.retina
    content = nir_bytes(layers, spec.input_shape, spec.encoding, retina)
    images = check_images(CHECKED_IMAGES, spec.input_shape, generator)
    seeds = draw_seeds(len(images), generator)
    spikes = encode(encoder_input(images, retina), spec.encoding, seeds)
    simulated = feed_forward(choose_engine(), (layer.to(torch.float64) for layer in layers), spikes)
    assert isinstance(simulated, Tensor)
    encoding, retina = stored_encoder(content)
    reproduced = run_in_norse(content, encode(encoder_input(images, retina), encoding, seeds))
    total, different = int(simulated.sum()), int((simulated != reproduced).sum())
    check(
        different == 0,
        f"{different} of {total} spikes of the last layer differ between norse and the simulator; nothing was written: "
        "use another version of norse or nirtorch, and report it",
    )
    write_bytes(Path(path), content)
    return total
