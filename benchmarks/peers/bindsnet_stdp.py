"""BindsNET: ``Network`` of ``Input``, ``Conv2dConnection`` with ``PostPre`` and ``LIFNodes``.

Track ``full`` is one ``Network.run``. It cannot be told the postsynaptic spikes of each image (``clamp`` holds the
same neurons in the whole batch), so track ``rule`` makes the two calls of a ``run`` step that concern the rule
itself: both layers (here two ``Input``) take their spikes, and the connection updates. Batches are summed. No
inhibition between maps: the library's recurrent inhibition would be a dense connection of all neurons.
"""

import warnings
from collections.abc import Callable

import torch
from protocol import TAU_MEMBRANE, TAU_TRACE, Adapter, Workload, main
from torch import Tensor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from bindsnet.learning import PostPre
    from bindsnet.network import Network
    from bindsnet.network.nodes import Input, LIFNodes
    from bindsnet.network.topology import Conv2dConnection


class BindsNET(Adapter):
    package = "bindsnet"

    def __init__(self, workload: Workload, weight: Tensor, w_max: float, track: str) -> None:
        super().__init__(workload, weight, w_max, track)
        self.network = make_network(workload, weight, w_max, simulated=track == "full")
        self.connection = self.network.connections["pre", "post"]

    def reset(self) -> None:
        # An Input layer keeps the caller's tensor as its spikes, which a reset would clear.
        for layer in self.network.layers.values():
            layer.s = torch.zeros_like(layer.s)
        self.network.reset_state_variables()
        self.connection.w.copy_(self.start)

    def rule(self) -> None:
        for pre, post in zip(self.workload.pre, self.workload.post, strict=True):
            self.connection.source.forward(pre)
            self.connection.target.forward(post)
            self.connection.update(learning=True)

    def full(self, watch: Callable[[Tensor], None] | None) -> None:
        pre, dt, network = self.workload.pre, self.workload.dt, self.network
        if watch is None:
            network.run({"pre": pre}, time=len(pre) * dt)
            return
        for spikes in pre:
            network.run({"pre": spikes[None]}, time=dt)
            watch(network.layers["post"].s)

    def weight_now(self) -> Tensor:
        return self.connection.w

    @classmethod
    def count(cls, workload: Workload, weight: Tensor) -> float:
        network = make_network(workload, weight, weight.amax().item(), simulated=True)
        network.train(False)
        total = 0
        for spikes in workload.pre:
            network.run({"pre": spikes[None]}, time=workload.dt)
            total += network.layers["post"].s.sum().item()
        return total


def make_network(workload: Workload, weight: Tensor, w_max: float, simulated: bool) -> Network:
    network = Network(dt=workload.dt, batch_size=workload.pre.shape[1])
    traces = {"traces": True, "tc_trace": TAU_TRACE}
    network.add_layer(Input(shape=tuple(workload.pre.shape[2:]), **traces), name="pre")
    shape = tuple(workload.post.shape[2:])
    if simulated:
        target = LIFNodes(shape=shape, thresh=1.0, rest=0.0, reset=0.0, refrac=0, tc_decay=TAU_MEMBRANE, **traces)
    else:
        target = Input(shape=shape, **traces)
    network.add_layer(target, name="post")
    rate = workload.learning_rate * w_max
    connection = Conv2dConnection(
        network.layers["pre"],
        target,
        kernel_size=weight.shape[-1],
        padding=workload.padding,
        update_rule=PostPre,
        nu=(rate, rate),
        reduction=torch.sum,
        wmin=0.0,
        wmax=w_max,
        w=weight.clone(),
    )
    network.add_connection(connection, source="pre", target="post")
    return network


if __name__ == "__main__":
    main(BindsNET)
