"""norse: ``lif_box_feed_forward_step`` and ``stdp_step_conv2d``.

The rule is its additive one with hard bounds, the cheapest, and the neuron the cheapest of its LIF neurons. The rule
is called on as many images at a time as is fastest; the changes of the groups add up. No inhibition between maps: the
library has none for convolutions.
"""

import warnings
from collections.abc import Callable

import torch
from protocol import TAU_MEMBRANE, TAU_TRACE, GroupedAdapter, Workload, main
from torch import Tensor
from torch.nn.functional import conv2d

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from norse.torch.functional.lif_box import LIFBoxFeedForwardState, LIFBoxParameters, lif_box_feed_forward_step
    from norse.torch.functional.stdp import STDPParameters, STDPState, stdp_step_conv2d

LIF = LIFBoxParameters(
    tau_mem_inv=torch.tensor(1 / TAU_MEMBRANE),
    v_leak=torch.tensor(0.0),
    v_th=torch.tensor(1.0),
    v_reset=torch.tensor(0.0),
    method="heaviside",
)


class Norse(GroupedAdapter):
    package = "norse"

    def __init__(self, workload: Workload, weight: Tensor, w_max: float, track: str) -> None:
        super().__init__(workload, weight, w_max, track)
        rate = workload.learning_rate * w_max
        self.parameters = STDPParameters(
            tau_pre_inv=torch.tensor(1 / TAU_TRACE),
            tau_post_inv=torch.tensor(1 / TAU_TRACE),
            w_min=0.0,
            w_max=w_max,
            eta_plus=rate,
            eta_minus=rate,
            hardbound=True,
            convolutional=True,
            padding=workload.padding,
        )
        self.choose_group()

    def reset(self) -> None:
        self.weight = self.start.clone()
        self.traces = [
            STDPState(torch.zeros_like(pre, dtype=torch.float32), torch.zeros_like(post, dtype=torch.float32))
            for pre, post in self.split(self.workload.pre[0], self.workload.post[0])
        ]

    def stdp(self, pre: Tensor, post: Tensor) -> None:
        for trace, (pre_part, post_part) in zip(self.traces, self.split(pre, post), strict=True):
            # The traces are updated in place of their state.
            self.weight, _ = stdp_step_conv2d(
                pre_part, post_part, self.weight, trace, self.parameters, self.workload.dt
            )

    def full(self, watch: Callable[[Tensor], None] | None) -> None:
        state = LIFBoxFeedForwardState(v=torch.zeros(self.workload.post.shape[1:]))
        for spikes in self.workload.pre:
            pre = spikes.float()
            drive = conv2d(pre, self.weight, padding=self.workload.padding)
            post, state = lif_box_feed_forward_step(drive, state, LIF, self.workload.dt)
            self.stdp(pre, post)
            if watch:
                watch(post)

    @classmethod
    def count(cls, workload: Workload, weight: Tensor) -> float:
        state = LIFBoxFeedForwardState(v=torch.zeros(workload.post.shape[1:]))
        total = 0.0
        for spikes in workload.pre:
            drive = conv2d(spikes.float(), weight, padding=workload.padding)
            post, state = lif_box_feed_forward_step(drive, state, LIF, workload.dt)
            total += post.sum().item()
        return total


if __name__ == "__main__":
    main(Norse)
