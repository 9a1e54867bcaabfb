"""This project in the STDP benchmark: ``python -m benchmarks.safe_dnn_stdp workload.npz --track rule``."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.peers.protocol import Adapter, Workload, main
from snn.calibration import calibrate_gain, normalised_rates, sample_drive
from snn.engines.base import choose_engine
from snn.layer import SpikingConv2d
from snn.learner import learn_batch
from snn.learning import Learning
from snn.parameters import LayerParameters, LIFParameters, STDPParameters
from snn.plasticity import count_events, update
from snn.runtime.random import draw_seeds
from snn.spikes import SpikeEvents

ENGINE = choose_engine("events")


def make_layer(weight: Tensor, gain: float, padding: int, dt: float) -> SpikingConv2d:
    """The layer, with the project's default neuron."""
    maps, _, kernel_size, _ = weight.shape
    lif = LIFParameters()
    return SpikingConv2d(
        conductance=weight,
        gain=torch.full((maps,), gain),
        v_threshold=torch.full((maps,), lif.v_threshold),
        geometry=LayerParameters(maps, kernel_size, padding=padding),
        lif=lif,
        dt=dt,
    )


def starting_gain(weight: Tensor, padding: int, dt: float, pre: Tensor, seed: int) -> float:
    """The gain with which the project starts to learn on ``pre``."""
    layer = make_layer(weight, 1.0, padding, dt)
    drive = sample_drive(ENGINE, layer, pre, torch.Generator().manual_seed(seed))
    return calibrate_gain(ENGINE, layer, drive, Learning().start_count).gain[0].item()


def layer_spikes(weight: Tensor, gain: float, padding: int, dt: float, pre: Tensor, seed: int) -> Tensor:
    """What the layer fires on ``pre`` while it learns: at most one map at a place and step."""
    layer = make_layer(weight, gain, padding, dt)
    return ENGINE.simulate(layer, pre, inhibition=True, seeds=image_seeds(pre, seed))


def image_seeds(pre: Tensor, seed: int = 0) -> Tensor:
    """Of the images of ``pre``, for the draws of inhibition and rule."""
    return draw_seeds(pre.shape[1], torch.Generator().manual_seed(seed))


class SafeDNN(Adapter):
    package = "safe-dnn"
    calibrated = False

    def __init__(self, workload: Workload, weight: Tensor, w_max: float, track: str) -> None:
        super().__init__(workload, weight, w_max, track)
        self.layer = make_layer(weight, workload.gain, workload.padding, workload.dt)
        self.parameters = STDPParameters().with_ltd_delay(workload.rate_limits[0])
        self.seeds = image_seeds(workload.pre)

    def reset(self) -> None:
        self.weight = self.start

    def rule(self) -> None:
        load = self.workload
        pre, post = SpikeEvents.from_dense(load.pre), SpikeEvents.from_dense(load.post)
        rates = normalised_rates(pre, len(pre) * load.dt, load.rate_limits)
        counts = count_events(ENGINE, self.layer, pre, post, rates, self.parameters, self.seeds)
        self.weight = update(self.start, counts, self.parameters)

    def full(self, watch: Callable[[Tensor], None] | None) -> None:
        load = self.workload
        pre = SpikeEvents.from_dense(load.pre)
        post, self.weight = learn_batch(ENGINE, self.layer, pre, load.rate_limits, self.parameters, self.seeds)
        if watch:
            for spikes in post.to_dense():
                watch(spikes)

    def weight_now(self) -> Tensor:
        return self.weight


if __name__ == "__main__":
    main(SafeDNN)
