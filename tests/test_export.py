import copy
import sys
from dataclasses import replace

import nir
import numpy as np
import onnx
import pytest
import torch
from norse.torch import LIFBoxCell, LIFBoxParameters
from norse.torch.functional.lif_box import LIFBoxFeedForwardState

from bridge.conversion import convert
from bridge.export.__main__ import main
from bridge.export.nir import run_in_norse, spiking_graph, write_nir
from bridge.export.onnx import FoldedFrontEnd, reach, run_in_onnxruntime, write_onnx
from bridge.storage import load_frontend, load_spiking_layers
from snn.data import load_images
from snn.data_source import DataSource
from snn.encoding import encode
from snn.engines.base import choose_engine, feed_forward
from snn.learner import learn
from snn.learning import Learning
from snn.parameters import Encoding
from snn.runtime.random import draw_seeds
from snn.storage import load_network


@pytest.fixture(scope="module")
def images():
    clean = load_images(DataSource(), "test", seed=0).images[:200] / 255
    noisy = (clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    return torch.cat((clean, noisy))


def trained(frontend):
    """A front end as it may be after training: affine parts changed, some of them negative, one zero."""
    changed = copy.deepcopy(frontend)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for layer in changed.layers:
            layer.norm.weight *= 1 + 0.3 * torch.randn(len(layer.norm.weight), generator=generator)
            layer.norm.weight[0] *= -1
            layer.norm.weight[1] = 0
            layer.norm.bias += torch.randn(len(layer.norm.bias), generator=generator)
    return changed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["converted", "quantised", "trained"])
def test_onnx_gives_the_same_features(pipeline, images, tmp_path, kind):
    frontend, _, _ = load_frontend(pipeline.frontend)
    if kind == "quantised":
        network, _, _ = load_network(pipeline.snn)
        part = (images[:60] * 255).round().to(torch.uint8)
        frontend = convert(network, part, quantise_input=True).frontend
    elif kind == "trained":
        frontend = trained(frontend)
    write_onnx(frontend, tmp_path / "model.onnx")
    onnx.checker.check_model(onnx.load(tmp_path / "model.onnx"), full_check=True)
    with torch.no_grad():
        expected = frontend(images)
    assert len(expected.unique()) >= 4
    for batch in (400, 1):
        features = run_in_onnxruntime(tmp_path / "model.onnx", images[:batch])
        assert (features - expected[:batch]).abs().max() <= 1e-5


def test_folded_normalisation_steps_at_the_very_same_numbers(pipeline):
    frontend = trained(load_frontend(pipeline.frontend)[0])
    for layer in frontend.layers:
        sign = torch.where(layer.norm.weight < 0, -1.0, 1.0).detach()
        edges = layer.activation.edges.expand(len(sign), -1)
        lowest = reach(layer.norm, edges, sign)
        assert lowest[1].isinf().all()
        below = torch.nextafter(lowest, torch.tensor(-torch.inf))
        with torch.no_grad():
            for drive, reached in ((lowest, True), (below, False)):
                normalised = layer.norm((drive * sign[:, None])[None, ..., None])[0, ..., 0]
                finite = drive.isfinite()
                assert ((normalised >= edges)[finite] == reached).all()


def test_folded_front_end_of_channels_own_steps(pipeline, images):
    frontend, _, _ = load_frontend(pipeline.frontend)
    for layer in frontend.layers:
        own = layer.activation.edges.repeat(len(layer.weight), 1)
        own += torch.linspace(-0.5, 0.5, len(own))[:, None]
        own[0, -1] = torch.inf
        layer.activation = type(layer.activation)(own, layer.activation.heights.repeat(len(own), 1))
    with torch.no_grad():
        assert torch.equal(FoldedFrontEnd(frontend)(images), frontend(images))


@pytest.fixture(scope="module")
def nir_file(pipeline, tmp_path_factory):
    network, _, _ = load_network(pipeline.snn)
    path = tmp_path_factory.mktemp("nir") / "network.nir"
    write_nir([learned.layer for learned in network.layers], network.input_shape, path)
    return path


def in_float64(layer):
    return replace(layer, **{name: getattr(layer, name).double() for name in ("conductance", "gain", "v_threshold")})


def test_nir_runs_in_norse_with_the_same_spikes(pipeline, images, nir_file):
    network, _, _ = load_network(pipeline.snn)
    pictures = (images[150:170] * 255).round().to(torch.uint8)
    spikes = encode(pictures, network.learning.encoding, draw_seeds(len(pictures), torch.Generator().manual_seed(2)))
    layers = [learned.layer for learned in network.layers]
    output = run_in_norse(nir_file, spikes)
    assert output.sum() > 10_000
    assert torch.equal(output, feed_forward(choose_engine(), map(in_float64, layers), spikes))
    # The simulator's own precision moves a spike now and then.
    counts = [value.sum(0) for value in (output, feed_forward(choose_engine(), layers, spikes))]
    assert (counts[0] != counts[1]).double().mean() < 1e-3


def test_first_layer_of_the_file_by_hand(pipeline, images, nir_file):
    # No reader but nir's own: a loop over time with norse's cell, pulses held by hand.
    network, _, _ = load_network(pipeline.snn)
    graph = nir.read(nir_file)
    conv, lif, dt = graph.nodes["conv1"], graph.nodes["lif1"], float(graph.metadata["dt"])
    assert (dt, float(lif.tau.flat[0])) == (0.0025, pytest.approx(0.2527, abs=1e-4))
    assert float(lif.v_threshold.flat[0]) == pytest.approx((-61.2 + 74.7) / 1000)
    assert np.all(lif.v_reset == 0)
    assert np.all(lif.r == 1)
    layer = network.layers[0].layer
    volts = layer.gain.double() * 0.314 / 0.0989 / 1000
    np.testing.assert_allclose(conv.weight, layer.conductance.double() * volts[:, None, None, None], rtol=1e-12)
    delays = sorted(float(node.delay.flat[0]) for node in graph.nodes.values() if isinstance(node, nir.Delay))
    assert delays == pytest.approx(sorted([0.0025, 0.005, 0.0075, 0.01, 0.0125] * 2))
    pictures = (images[:3] * 255).round().to(torch.uint8)
    spikes = encode(pictures, network.learning.encoding, draw_seeds(3, torch.Generator().manual_seed(2)))
    cell = LIFBoxCell(
        LIFBoxParameters(
            tau_mem_inv=torch.tensor(1 / lif.tau.flat[0]),
            v_leak=torch.from_numpy(lif.v_leak),
            v_th=torch.from_numpy(lif.v_threshold),
            v_reset=torch.tensor(0.0).double(),
        ),
        dt=dt,
    )
    state = LIFBoxFeedForwardState(v=torch.full((3, *lif.v_leak.shape), float(lif.metadata["v_start"])).double())
    expected = choose_engine().simulate(in_float64(layer), spikes, inhibition=False)
    for step in range(len(spikes)):
        held = spikes[max(0, step - 5) : step + 1].any(0).double()
        current = torch.nn.functional.conv2d(held, torch.from_numpy(conv.weight), padding=1)
        with torch.no_grad():
            fired, state = cell(current, state)
        assert torch.equal(fired.bool(), expected[step])


@pytest.mark.parametrize("encoding", [Encoding(f_max=120), Encoding(kind="poisson", f_max=100)])
def test_spikes_within_a_pulse_restart_it(pipeline, images, tmp_path, encoding):
    # Layers that fire fast as well: pulses merge in all of them.
    network, _, _ = load_network(pipeline.snn)
    layers = [learned.layer.with_values(gain=learned.layer.gain * 6) for learned in network.layers]
    write_nir(layers, network.input_shape, tmp_path / "fast.nir")
    spikes = encode((images[:2] * 255).to(torch.uint8), encoding, draw_seeds(2, torch.Generator().manual_seed(2)))
    expected = feed_forward(choose_engine(), map(in_float64, layers), spikes)
    for counts in (spikes.sum(0), choose_engine().simulate(layers[0], spikes, inhibition=False).sum(0)):
        assert counts.max() > 20
    assert torch.equal(run_in_norse(tmp_path / "fast.nir", spikes), expected)


def test_strides_and_shapes_are_in_the_graph():
    data = load_images(DataSource(limit_train=8, image_size=16), "train", seed=0)
    network = learn(
        data.images, Learning(maps=(3, 4), strides=(2, 1), kernel_sizes=(5, 3), min_updates=1, batch_size=8)
    )
    graph = spiking_graph([learned.layer for learned in network.layers], network.input_shape)
    assert graph.nodes["lif1"].tau.shape == (3, 8, 8)
    assert graph.nodes["output"].output_type["output"].tolist() == [4, 8, 8]


def test_export_command_writes_what_it_says(pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(pipeline.frontend), "--format", "onnx"]) == 0
    assert "largest difference of a feature 0.0e+00" in capsys.readouterr().out
    assert main([str(pipeline.frontend), "--format", "nir", "--out", "spiking.nir", "--json", "figures.json"]) == 0
    assert "wrote spiking.nir" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"frontend.onnx", "spiking.nir", "figures.json"}
    # The file of the front end holds the spiking layers that it came from.
    network, _, _ = load_network(pipeline.snn)
    for layer, learned in zip(load_spiking_layers(pipeline.frontend), network.layers, strict=True):
        assert torch.equal(layer.conductance, learned.layer.conductance)
        assert (layer.geometry, layer.lif, layer.dt) == (learned.layer.geometry, learned.layer.lif, learned.layer.dt)
    assert main([str(pipeline.frontend), "--format", "onnx", "--out", "x.nir"]) == 2
    assert "ends in .onnx" in capsys.readouterr().err
    assert main([str(pipeline.snn), "--format", "nir"]) == 2
    assert "expected 'frontend/2'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["onnx", "nir"])
def test_a_file_that_answers_otherwise_is_not_left_behind(pipeline, tmp_path, capsys, monkeypatch, name):
    out = tmp_path / f"model.{name}"
    out.write_text("of old")
    runner = {"onnx": "onnx.run_in_onnxruntime", "nir": "nir.run_in_norse"}[name]
    real = {"onnx": run_in_onnxruntime, "nir": run_in_norse}[name]

    def wrong(path, inputs):
        result = real(path, inputs)
        result[0, 0, 0, 0] = ~result[0, 0, 0, 0] if result.dtype == torch.bool else result[0, 0, 0, 0] + 1e-4
        return result

    monkeypatch.setattr(f"bridge.export.{runner}", wrong)
    assert main([str(pipeline.frontend), "--format", name, "--out", str(out)]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    assert out.read_text() == "of old"


def test_missing_packages_are_named(pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for module in ("onnxruntime", "nirtorch"):
        monkeypatch.setitem(sys.modules, module, None)
    for name, package in (("onnx", "onnxruntime"), ("nir", "nirtorch")):
        assert main([str(pipeline.frontend), "--format", name]) == 2
        assert f"needs the package {package}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
