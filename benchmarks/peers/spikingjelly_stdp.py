"""SpikingJelly: ``LIFNode`` and ``functional.stdp_conv2d_step``, the call behind its ``STDPLearner``.

The function is called as the learner calls it (update after every time step), but on as many images at a time as is
fastest: it holds a product for every image, synapse and place, which for a whole batch leaves the cache. The changes
of the groups are added before the weights move, so the result is that of the learner. No inhibition between maps:
the library has none for convolutions.
"""

from collections.abc import Callable

import torch
from protocol import TAU_MEMBRANE, TAU_TRACE, Adapter, Workload, fastest_group, main
from spikingjelly.activation_based import functional, neuron
from torch import Tensor
from torch.nn.functional import conv2d, pad


class SpikingJelly(Adapter):
    package = "spikingjelly"

    def __init__(self, workload: Workload, weight: Tensor, w_max: float, track: str) -> None:
        super().__init__(workload, weight, w_max, track)
        self.lif = make_neuron(workload)
        self.group = workload.pre.shape[1]
        self.reset()
        pre, post = workload.pre[0].float(), workload.post[0].float()

        def step(size: int) -> None:
            self.group = size
            self.reset()
            self.stdp(pre, post)

        self.group = fastest_group(step, self.group)

    def reset(self) -> None:
        functional.reset_net(self.lif)
        self.weight = self.start.clone()
        self.traces = []
        around = (self.workload.padding,) * 4
        for pre, post in self.split(self.workload.pre[0], self.workload.post[0]):
            zeros = torch.zeros_like(pre, dtype=torch.float32), torch.zeros_like(post, dtype=torch.float32)
            self.traces.append((pad(zeros[0], around), zeros[1]))

    def split(self, pre: Tensor, post: Tensor) -> list[tuple[Tensor, Tensor]]:
        return list(zip(pre.split(self.group), post.split(self.group), strict=True))

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

    def rule(self) -> None:
        for pre, post in zip(self.workload.pre, self.workload.post, strict=True):
            self.stdp(pre.float(), post.float())

    def full(self, watch: Callable[[Tensor], None] | None) -> None:
        for spikes in self.workload.pre:
            pre = spikes.float()
            post = self.lif(conv2d(pre, self.weight, padding=self.workload.padding))
            self.stdp(pre, post)
            if watch:
                watch(post)

    def weight_now(self) -> Tensor:
        return self.weight

    @classmethod
    def count(cls, workload: Workload, weight: Tensor) -> float:
        lif = make_neuron(workload)
        return sum(lif(conv2d(pre.float(), weight, padding=workload.padding)).sum().item() for pre in workload.pre)


def make_neuron(workload: Workload) -> neuron.LIFNode:
    return neuron.LIFNode(tau=TAU_MEMBRANE / workload.dt, v_threshold=1.0, v_reset=0.0, step_mode="s").eval()


if __name__ == "__main__":
    main(SpikingJelly)
