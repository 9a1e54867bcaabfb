"""SpikingJelly: ``LIFNode`` and ``functional.stdp_conv2d_step``, the call behind its ``STDPLearner``.

The function is called as the learner calls it (update after every time step), but on as many images at a time as is
fastest: it holds a product for every image, synapse and place, which for a whole batch leaves the cache. The changes
of the groups are added before the weights move, so the result is that of the learner. No inhibition between maps:
the library has none for convolutions.
"""

from collections.abc import Callable

import torch
from protocol import TAU_MEMBRANE, TAU_TRACE, GroupedAdapter, Workload, main
from spikingjelly.activation_based import functional, neuron
from torch import Tensor
from torch.nn.functional import conv2d, pad


class SpikingJelly(GroupedAdapter):
    package = "spikingjelly"

    def __init__(self, workload: Workload, weight: Tensor, w_max: float, track: str) -> None:
        super().__init__(workload, weight, w_max, track)
        self.lif = make_neuron(workload)
        self.choose_group()

    def reset(self) -> None:
        functional.reset_net(self.lif)
        self.weight = self.start.clone()
        self.traces = []
        around = (self.workload.padding,) * 4
        for pre, post in self.split(self.workload.pre[0], self.workload.post[0]):
            zeros = torch.zeros_like(pre, dtype=torch.float32), torch.zeros_like(post, dtype=torch.float32)
            self.traces.append((pad(zeros[0], around), zeros[1]))

    def stdp(self, pre: Tensor, post: Tensor) -> None:
        """One time step; the rule's default factors make a change proportional to the weight."""
        tau = TAU_TRACE / self.workload.dt
        padded = pad(pre, (self.workload.padding,) * 4)
        change = torch.zeros_like(self.weight)
        for index, (pre_part, post_part) in enumerate(self.split(padded, post)):
            delta, self.traces[index] = functional.stdp_conv2d_step(
                pre_part, post_part, self.traces[index], self.weight, stride=(1, 1), tau_pre=tau, tau_post=tau
            )
            change += delta
        self.weight.add_(change, alpha=self.workload.learning_rate).clamp_(0, self.w_max)

    def full(self, watch: Callable[[Tensor], None] | None) -> None:
        for spikes in self.workload.pre:
            pre = spikes.float()
            post = self.lif(conv2d(pre, self.weight, padding=self.workload.padding))
            self.stdp(pre, post)
            if watch:
                watch(post)

    @classmethod
    def count(cls, workload: Workload, weight: Tensor) -> float:
        lif = make_neuron(workload)
        return sum(lif(conv2d(pre.float(), weight, padding=workload.padding)).sum().item() for pre in workload.pre)


def make_neuron(workload: Workload) -> neuron.LIFNode:
    return neuron.LIFNode(tau=TAU_MEMBRANE / workload.dt, v_threshold=1.0, v_reset=0.0, step_mode="s").eval()


if __name__ == "__main__":
    main(SpikingJelly)
