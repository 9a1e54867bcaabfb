"""The loop over time steps that a user of norse writes, and ways to make it faster on a GPU.

The same layers by SpikingJelly's neuron with its CuPy backend are here, too, where both packages are.
"""

from collections.abc import Callable

import torch
from norse.torch.functional.lif_box import LIFBoxFeedForwardState
from norse.torch.module.lif_box import LIFBoxCell
from torch import Tensor, nn

from snn.layer import SpikingConv2d
from snn.neuron import norse_parameters

State = tuple[Tensor, LIFBoxFeedForwardState]
"""Of a layer between two steps: steps for which each input's pulse still lasts, int8, and the neurons."""
WARM_UP = 3
"""Calls before one is captured."""


class NorseLoop(nn.Module):
    """Spiking layers as a user of norse writes them: a convolution and norse's cell for each layer and time step.

    Without inhibition. It computes where the layers lie.
    """

    def __init__(self, layers: list[SpikingConv2d]) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList()
        self.cells = nn.ModuleList()
        for layer in layers:
            p = layer.geometry
            _, scale = layer.neurons()
            weight = layer.weight * scale.reshape(-1, 1, 1, 1)
            convolution = nn.Conv2d(weight.shape[1], p.maps, p.kernel_size, p.stride, p.padding, bias=False)
            convolution.weight = nn.Parameter(weight, requires_grad=False)
            self.convolutions.append(convolution)
            cell = norse_parameters(layer.lif, layer.v_threshold.reshape(1, -1, 1, 1))
            # norse resets, as in its own examples.
            self.cells.append(LIFBoxCell(cell._replace(reset_method=reset), dt=layer.dt))
        self.v_init = layers[0].lif.v_init
        self.pulse, _ = layers[0].geometry.steps(layers[0].dt)

    def start(self, z: Tensor) -> list[State]:
        """States before the first step; ``z`` are input spikes of a step (B, C, H, W)."""
        states: list[State] = []
        for convolution in self.convolutions:
            held, z = torch.zeros_like(z, dtype=torch.int8), convolution(z)
            states.append((held, LIFBoxFeedForwardState(v=torch.full_like(z, self.v_init))))
        return states

    def step(self, z: Tensor, states: list[State]) -> tuple[Tensor, list[State]]:
        """Spikes of the last layer (B, C, H, W), and all states, a step later."""
        after: list[State] = []
        for convolution, cell, (held, neurons) in zip(self.convolutions, self.cells, states, strict=True):
            held = (held - 1).clamp(min=0).masked_fill(z.bool(), self.pulse)
            z, neurons = cell(convolution((held > 0).float()), neurons)
            after.append((held, neurons))
        return z, after

    def forward(self, spikes: Tensor) -> Tensor:
        """Spike counts of the last layer for spikes (T, B, C, H, W), float32."""
        return count_steps(self, self.step, spikes)


def reset(z: Tensor, v: Tensor, reset: Tensor, threshold: Tensor) -> Tensor:
    """v_reset where a neuron spiked."""
    return torch.where(z > 0, reset, v)


def count_steps(
    loop: NorseLoop, step: Callable[[Tensor, list[State]], tuple[Tensor, list[State]]], spikes: Tensor
) -> Tensor:
    """Spike counts (B, C, H, W) of the last layer of ``loop``, whose steps are made by ``step``."""
    states = loop.start(spikes[0])
    counts: Tensor | None = None
    for z in spikes:
        fired, states = step(z, states)
        counts = fired if counts is None else counts + fired
    assert counts is not None, "a presentation has a step"
    return counts


def compiled(loop: NorseLoop, backend: str = "inductor") -> Callable[[Tensor], Tensor]:
    """The loop with a step that ``torch.compile`` compiles; the loop itself would be unrolled, which takes minutes."""
    step = torch.compile(loop.step, backend=backend)
    return lambda spikes: count_steps(loop, step, spikes)


def captured(loop: NorseLoop, example: Tensor) -> Callable[[Tensor], Tensor]:
    """The whole loop as one CUDA graph, for spikes of the shape of ``example``; the next call replaces its result."""
    given = example.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            loop(given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        counts = loop(given)

    def replay(spikes: Tensor) -> Tensor:
        given.copy_(spikes)
        graph.replay()
        return counts

    return replay


def spikingjelly_loop(layers: list[SpikingConv2d]) -> Callable[[Tensor], Tensor]:
    """The same sizes by SpikingJelly: all steps' convolutions at once, its LIF neuron in a CuPy kernel, no pulses."""
    # Imported here: neither it nor CuPy is among this project's dependencies.
    from spikingjelly.activation_based import functional, neuron

    cells = [
        neuron.LIFNode(tau=layer.lif.tau_mem / layer.dt, v_threshold=1.0, v_reset=0.0, step_mode="m", backend="cupy")
        for layer in layers
    ]
    cells = [cell.to(layer.gain.device).eval() for cell, layer in zip(cells, layers, strict=True)]

    def run(spikes: Tensor) -> Tensor:
        for cell, layer in zip(cells, layers, strict=True):
            functional.reset_net(cell)
            p = layer.geometry
            drive = nn.functional.conv2d(spikes.flatten(0, 1), layer.weight, stride=p.stride, padding=p.padding)
            spikes = cell(drive.unflatten(0, spikes.shape[:2]))
        return spikes.sum(0)

    return run
