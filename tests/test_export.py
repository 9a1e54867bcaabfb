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
from scipy.ndimage import correlate, gaussian_filter

from bridge.conversion import convert
from bridge.export.__main__ import main
from bridge.export.folded import FoldedFrontEnd, reach
from bridge.export.images import check_images
from bridge.export.nir import export_nir, nir_bytes, run_in_norse, spiking_graph, stored_encoder
from bridge.export.onnx import export_onnx, onnx_bytes, run_in_onnxruntime
from bridge.storage import load_frontend, load_spiking_layers
from snn.data import load_images
from snn.data_source import DataSource
from snn.encoding import encode
from snn.engines.base import choose_engine, feed_forward
from snn.learner import learn
from snn.learning import PRESETS, Inhibition, Learning
from snn.parameters import Encoding
from snn.retina import Retina
from snn.runtime.errors import UserError
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
    (tmp_path / "model.onnx").write_bytes(onnx_bytes(frontend))
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


def natural_images(count, colours, size, seed):
    """Smooth noise whose colours depend on each other, uint8 (N, C, H, W)."""
    random = np.random.default_rng(seed)
    noise = gaussian_filter(random.normal(size=(count, colours, size, size)), (0, 0, 1.2, 1.2))
    mixed = np.einsum("oc,nchw->nohw", 1 + np.eye(colours), noise)
    return torch.from_numpy(np.clip(np.rint(120 + 50 * mixed / mixed.std()), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def colourful():
    """Two layers behind a retina for three colours, with feed-forward inhibition, and the images that they learned."""
    images = natural_images(24, 3, 14, seed=0)
    preset = PRESETS["retina"]
    learning = replace(
        preset,
        maps=(4, 5),
        kernel_sizes=(5, 3),
        strides=(2, 1),
        min_updates=4,
        output_rate=8.0,
        retina=replace(preset.retina, kernel_size=5, patches=2000),
        inhibition=Inhibition("both"),
    )
    return learn(images, learning), images


@pytest.mark.slow
@pytest.mark.parametrize("quantised", [False, True])
def test_onnx_carries_retina_and_inhibition(colourful, tmp_path, quantised):
    network, images = colourful
    frontend = convert(network, images, quantise_input=quantised).frontend
    assert (frontend.layers[0].weight < 0).any()
    assert export_onnx(frontend, tmp_path / "model.onnx", torch.Generator().manual_seed(1)) == (0, 1)
    smooth = natural_images(50, 3, 14, seed=1) / 255
    noise = torch.randn(smooth.shape, generator=torch.Generator().manual_seed(0))
    # Halves of a step, which are rounded to even: intensities n/1020 and (n + 1/2)/1020.
    halves = torch.arange(50 * 3 * 14 * 14).reshape(smooth.shape) % 2041 / 2040
    for x in (smooth, (smooth + 0.1 * noise).clamp(0, 1), torch.rand_like(smooth), halves):
        with torch.no_grad():
            expected = frontend(x)
        assert len(expected.unique()) >= 3
        assert torch.equal(run_in_onnxruntime(tmp_path / "model.onnx", x), expected)


def on_and_off_swapped(frontend):
    frontend.retina.filters *= -1
    frontend.retina.offset *= -1


def filter_turned(frontend):
    # Learned filters have no phase: a quarter turn is what changes them.
    frontend.retina.filters.copy_(frontend.retina.filters.rot90(1, (2, 3)))


def sign_of_inhibition(frontend):
    for layer, spiking in zip(frontend.layers, frontend.spiking, strict=True):
        scale = (layer.weight / spiking.weight).median()
        means = spiking.conductance.mean((1, 2, 3), keepdim=True)
        layer.weight += 2 * scale * means


@pytest.mark.slow
@pytest.mark.parametrize("fault", [on_and_off_swapped, filter_turned, sign_of_inhibition])
def test_a_fault_in_an_onnx_file_is_noticed(colourful, tmp_path, monkeypatch, fault):
    network, images = colourful
    frontend = convert(network, images).frontend
    frontend.spiking = [learned.layer for learned in network.layers]

    def with_fault(right):
        wrong = copy.deepcopy(right)
        fault(wrong)
        return onnx_bytes(wrong)

    monkeypatch.setattr("bridge.export.onnx.onnx_bytes", with_fault)
    with pytest.raises(UserError, match="nothing was written"):
        export_onnx(frontend, tmp_path / "model.onnx", torch.Generator().manual_seed(1))


def contrast_of(images, filters, offset):
    """ON and OFF contrast of uint8 images by SciPy: uint8 (N, 2 C, H, W)."""
    signed = np.zeros(images.shape)
    for n, out, colour in np.ndindex(len(images), len(filters), len(filters)):
        signed[n, out] += correlate(images[n, colour].astype(float) * 4, filters[out, colour], mode="nearest")
    signed += offset.reshape(-1, 1, 1)
    return np.minimum(np.rint(np.concatenate([signed, -signed], 1).clip(min=0) / 4), 255).astype(np.uint8)


def test_nir_carries_retina_and_inhibition(colourful, tmp_path):
    network, _ = colourful
    path, layers = tmp_path / "network.nir", [learned.layer for learned in network.layers]
    path.write_bytes(nir_bytes(layers, network.input_shape, network.learning.encoding, network.retina))
    graph = nir.read(path)
    assert graph.nodes["input"].input_type["input"].tolist() == [6, 14, 14]
    for number, layer in enumerate(layers, 1):
        kernels = layer.conductance.double().numpy()
        volts = layer.gain.double().numpy().reshape(-1, 1, 1, 1) * 0.314 / 0.0989 / 1000
        expected = (kernels - kernels.mean((1, 2, 3), keepdims=True)) * volts
        np.testing.assert_allclose(graph.nodes[f"conv{number}"].weight, expected, rtol=0, atol=1e-12 * expected.max())
    # From images to spikes with nothing but the file.
    encoding, retina = stored_encoder(path)
    assert encoding == network.learning.encoding
    stored = graph.metadata["retina"]
    assert (int(stored["steps"]), int(stored["levels"])) == (1020, 255)
    pictures = check_images(4, (3, 14, 14), torch.Generator().manual_seed(3))
    expected = contrast_of(pictures.numpy(), stored["filters"].astype(float), stored["offset"].astype(float))
    for one in (retina, network.retina):
        assert np.array_equal(one.encode(pictures), expected)
    seeds = draw_seeds(len(pictures), torch.Generator().manual_seed(2))
    output = run_in_norse(path, encode(retina.encode(pictures), encoding, seeds))
    assert output.sum() > 300
    simulated = feed_forward(
        choose_engine(),
        [layer.to(torch.float64) for layer in layers],
        encode(torch.from_numpy(expected), encoding, seeds),
    )
    assert torch.equal(output, simulated)


@pytest.mark.parametrize("fault", ["ON and OFF swapped", "filter turned", "sign of the inhibition"])
def test_a_fault_in_a_nir_file_is_noticed(colourful, tmp_path, monkeypatch, fault):
    network, images = colourful
    frontend, layers = convert(network, images).frontend, [learned.layer for learned in network.layers]
    assert export_nir(layers, frontend, tmp_path / "right.nir", torch.Generator().manual_seed(1)) > 100

    def with_fault(layers, shape, encoding, retina):
        if fault == "ON and OFF swapped":
            retina = Retina(-retina.filters, -retina.offset)
        elif fault == "filter turned":
            retina = Retina(retina.filters.rot90(1, (2, 3)).contiguous(), retina.offset)
        else:
            means = [layer.conductance.mean((1, 2, 3), keepdim=True) for layer in layers]
            layers = [
                replace(
                    layer,
                    conductance=layer.conductance + mean,
                    geometry=replace(layer.geometry, feed_forward_inhibition=False),
                )
                for layer, mean in zip(layers, means, strict=True)
            ]
        return nir_bytes(layers, shape, encoding, retina)

    monkeypatch.setattr("bridge.export.nir.nir_bytes", with_fault)
    with pytest.raises(UserError, match="spikes of the last layer differ"):
        export_nir(layers, frontend, tmp_path / "wrong.nir", torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 5, 7)])
def test_images_of_the_check_are_noisy_and_smooth(shape):
    images = check_images(5, shape, torch.Generator().manual_seed(0))
    assert images.shape == (5, *shape)
    roughness = images.double().diff(dim=3).abs().mean((1, 2, 3))
    assert (roughness[:3] > 60).all()
    assert (roughness[3:] < 60).all()
    assert torch.equal(images, check_images(5, shape, torch.Generator().manual_seed(0)))


def test_export_command_of_contrast(contrast, tmp_path, capsys):
    for name in ("onnx", "nir"):
        assert main([str(contrast.frontend), "--format", name, "--out", str(tmp_path / f"x.{name}")]) == 0
    out = capsys.readouterr().out
    assert "100.00% of the features are the same bits; largest difference of a feature 0.0e+00" in out
    assert "spikes of the last layer agree" in out
    _, retina = stored_encoder(tmp_path / "x.nir")
    assert torch.equal(retina.filters, load_frontend(contrast.frontend).frontend.retina.filters)


def test_export_command_imports_plugins(pipeline, tmp_path, capsys):
    (tmp_path / "mine.py").write_text("print('imported')\n")
    words = ["--format", "nir", "--out", str(tmp_path / "x.nir"), "--plugin", str(tmp_path / "mine.py")]
    assert main([str(pipeline.frontend), *words]) == 0
    assert "imported" in capsys.readouterr().out


@pytest.fixture(scope="module")
def nir_file(pipeline, tmp_path_factory):
    network, _, _ = load_network(pipeline.snn)
    path = tmp_path_factory.mktemp("nir") / "network.nir"
    layers = [learned.layer for learned in network.layers]
    path.write_bytes(nir_bytes(layers, network.input_shape, network.learning.encoding))
    return path


def test_nir_runs_in_norse_with_the_same_spikes(pipeline, images, nir_file):
    network, _, _ = load_network(pipeline.snn)
    pictures = (images[150:170] * 255).round().to(torch.uint8)
    spikes = encode(pictures, network.learning.encoding, draw_seeds(len(pictures), torch.Generator().manual_seed(2)))
    layers = [learned.layer for learned in network.layers]
    output = run_in_norse(nir_file, spikes)
    assert output.sum() > 10_000
    assert torch.equal(output, feed_forward(choose_engine(), [layer.to(torch.float64) for layer in layers], spikes))
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
    expected = choose_engine().simulate(layer.to(torch.float64), spikes, inhibition=False)
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
    fast = nir_bytes(layers, network.input_shape, encoding)
    assert stored_encoder(fast) == (encoding, None)
    spikes = encode((images[:2] * 255).to(torch.uint8), encoding, draw_seeds(2, torch.Generator().manual_seed(2)))
    expected = feed_forward(choose_engine(), [layer.to(torch.float64) for layer in layers], spikes)
    for counts in (spikes.sum(0), choose_engine().simulate(layers[0], spikes, inhibition=False).sum(0)):
        assert counts.max() > 20
    assert torch.equal(run_in_norse(fast, spikes), expected)


def test_strides_and_shapes_are_in_the_graph():
    data = load_images(DataSource(limit_train=8, image_size=16), "train", seed=0)
    network = learn(
        data.images, Learning(maps=(3, 4), strides=(2, 1), kernel_sizes=(5, 3), min_updates=1, batch_size=8)
    )
    layers = [learned.layer for learned in network.layers]
    graph = spiking_graph(layers, network.input_shape, network.learning.encoding)
    assert graph.nodes["lif1"].tau.shape == (3, 8, 8)
    assert graph.nodes["output"].output_type["output"].tolist() == [4, 8, 8]


def test_export_command_writes_what_it_says(pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([str(pipeline.frontend), "--format", "onnx"]) == 0
    assert (
        "100.00% of the features are the same bits; largest difference of a feature 0.0e+00" in capsys.readouterr().out
    )
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
    assert "expected 'frontend/3'" in capsys.readouterr().err


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
