import torch

from snn.calibration import mean_count, sample_drive
from snn.controls import control
from snn.data import load_images
from snn.engines.base import choose_engine
from snn.runtime.random import draw_seeds, stream
from snn.storage import load_network


def test_kernels_without_mean_fire_as_often(pipeline):
    network, source, _ = load_network(pipeline.snn)
    images = load_images(source, "train", 0).images
    balanced = control(network, images, "balanced")
    learned, balanced_layer = network.layers[0].layer, balanced.layers[0].layer
    torch.testing.assert_close(balanced_layer.conductance.sum((1, 2, 3)), torch.zeros(6), atol=1e-5, rtol=0)
    means = learned.conductance.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(balanced_layer.conductance + means, learned.conductance)
    seeds = draw_seeds(32, stream("control presentation", 0))
    engine = choose_engine()
    pre = engine.encode(images[:32], network.learning.encoding, seeds)
    drive = sample_drive(engine, balanced_layer, pre, stream("control places", 0, 0))
    wanted = network.learning.output_rate * network.learning.encoding.presentation / 1000
    assert abs(mean_count(engine, balanced_layer, drive) - wanted) < 0.05 * wanted
