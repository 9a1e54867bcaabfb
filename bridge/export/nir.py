"""The spiking layers in the Neuromorphic Intermediate Representation (NIR), and back into norse.

The graph is input -> [pulse -> Conv2d -> LIF] per layer -> output. A pulse lasts several time steps: a spike and its
delayed copies (Delay nodes) are added up, and more than a half is 1 (Threshold node), so that a new spike restarts a
pulse, as in the simulator.

Units are NIR's: seconds and volts. Potentials are relative to the reset potential, which therefore is 0, as in most
simulators. The drive's factor of each map is in the weights, so r is 1. Metadata tell the time step and, for each LIF
node, the potential at the start of a presentation (NIR has no place for either).
"""

from pathlib import Path
from typing import TYPE_CHECKING

import nir
import nirtorch
import numpy as np
import torch
from torch import Tensor, nn

from snn.layer import SpikingConv2d
from snn.runtime.outputs import write_atomically

if TYPE_CHECKING:
    from norse.torch import LIFBoxCell
    from norse.torch.functional.lif_box import LIFBoxFeedForwardState


def spiking_graph(layers: list[SpikingConv2d], shape: tuple[int, int, int]) -> nir.NIRGraph:
    """The graph of learned layers, inhibition off, for images of ``shape`` (C, H, W)."""
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
        shape = (layer.geometry.maps, *layer.convolution(shape).shape_out[1:])
        nodes[f"lif{number}"] = _neurons(layer, shape)
        edges.append((f"conv{number}", f"lif{number}"))
        before = f"lif{number}"
    nodes["output"] = nir.Output(np.array(shape))
    edges.append((before, "output"))
    return nir.NIRGraph(nodes, edges, metadata={"dt": layers[0].dt / 1000, "dt_unit": "s", "potential_unit": "V"})


def _convolution(layer: SpikingConv2d, size: tuple[int, int]) -> nir.Conv2d:
    volts = (layer.gain.double() * layer.lif.millivolts_per_current / 1000).reshape(-1, 1, 1, 1)
    return nir.Conv2d(
        input_shape=size,
        weight=(layer.conductance.double() * volts).numpy(),
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


def write_nir(layers: list[SpikingConv2d], shape: tuple[int, int, int], path: Path) -> None:
    """Write :func:`spiking_graph` to ``path``."""
    graph = spiking_graph(layers, shape)
    write_atomically(path, lambda temporary: nir.write(temporary, graph))


class Delay(nn.Module):
    """Passes on its input a number of steps later; zeros before."""

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


def run_in_norse(path: Path, spikes: Tensor) -> Tensor:
    """Run a file of :func:`write_nir` in norse, in float64, time step by time step.

    Args:
        path: of the file.
        spikes: of the encoder, bool (T, B, C, H, W).

    Returns:
        Spikes of the last layer, bool (T, B, C_out, H_out, W_out).
    """
    graph = nir.read(path)
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
