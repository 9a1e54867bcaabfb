import json
import shutil
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch

import bridge
from bridge.conversion import convert, convert_weights
from bridge.fidelity import measure_fidelity
from bridge.frontend import (
    FrontEndSpec,
    FrozenStatisticsBatchNorm,
    LayerSpec,
    SpikingFrontEnd,
    fine_steps,
    first_input,
    input_spikes,
    spikes_per_step,
    whole_spikes,
)
from bridge.responses import simulate_counts
from bridge.storage import load_frontend, load_spiking_layers, spec_from_tree, spec_tree
from snn.data import load_images
from snn.encoding import encode
from snn.engines.norse import convolve, hold
from snn.layer import SpikingConv2d
from snn.parameters import Encoding, LayerParameters, LIFParameters
from snn.retina import Retina
from snn.runtime.errors import UserError
from snn.runtime.h5 import Schema, read_file, write_file
from snn.storage import load_network, save


def test_normalisation_starts_as_identity_keeps_its_statistics_and_trains_its_affine_part():
    drive = torch.randn(64, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 4 + 7
    norm = FrozenStatisticsBatchNorm(3)
    variance, mean = torch.var_mean(drive, dim=(0, 2, 3), correction=0)
    norm.pass_through(mean, variance)
    before = [norm.running_mean.clone(), norm.running_var.clone()]
    norm.train()
    torch.testing.assert_close(norm(drive + 1), drive + 1)
    assert torch.equal(norm.running_mean, before[0])
    assert torch.equal(norm.running_var, before[1])
    assert [p.requires_grad for p in norm.parameters()] == [True, True]


def test_converted_weights_give_the_mean_current_of_the_simulation():
    # Regular pulses that never merge and end within the presentation: mean current = i_syn w sum G f exactly.
    generator = torch.Generator().manual_seed(0)
    layer = SpikingConv2d(
        conductance=torch.rand(4, 2, 3, 3, generator=generator),
        gain=torch.tensor([3.0, 5.0, 7.0, 9.0]),
        v_threshold=torch.full((4,), -60.2),
        geometry=LayerParameters(4),
        lif=LIFParameters(),
        dt=2.5,
    )
    spikes = torch.zeros(120, 1, 2, 6, 6, dtype=torch.bool)
    counts = torch.randint(0, 7, (1, 2, 6, 6), generator=generator)
    for step in range(6):
        spikes[step * 18] = counts > step
    assert hold(spikes, 6).sum() == 6 * spikes.sum()
    mean = sum(drive.clone() for drive in convolve(layer, spikes)) / 120 * layer.gain.reshape(1, 4, 1, 1)
    for unit in (1.0, 0.125):
        converted = convert_weights(layer, presentation=300.0, top=6.0 / unit, unit=unit)
        torch.testing.assert_close(converted.drive(counts / unit), mean, rtol=1e-4, atol=1e-3)


def test_drives_do_not_depend_on_batch_order_or_library():
    generator = torch.Generator().manual_seed(0)
    layer = SpikingConv2d(
        conductance=torch.rand(24, 20, 3, 3, generator=generator),
        gain=torch.rand(24, generator=generator) + 3,
        v_threshold=torch.full((24,), -60.2),
        geometry=LayerParameters(24),
        lif=LIFParameters(),
        dt=2.5,
    )
    # Of whole spikes, and of steps of intensity.
    for top, unit in ((9, 1.0), (1530, 6 / 1020)):
        converted = convert_weights(layer, 300.0, top, unit)
        spikes = torch.randint(0, top + 1, (6, 20, 12, 12), generator=generator).float()
        drive = converted.drive(spikes)
        # Exact, so the same as in float64.
        exact = torch.nn.functional.conv2d(spikes.double(), converted.weight.double(), padding=1)
        assert torch.equal(drive.double(), exact)
        assert torch.equal(converted.drive(spikes[2:3]), drive[2:3])
        assert torch.equal(converted.drive(spikes.to(memory_format=torch.channels_last)), drive)


def test_fine_steps_are_four_to_an_8_bit_level_and_pass_gradients():
    images = torch.arange(256).reshape(1, 1, 16, 16) / 255
    for p in (Encoding(), Encoding(f_min=1, f_max=22, presentation=400)):
        steps = fine_steps(images, p)
        assert torch.equal(steps, steps.round())
        assert torch.equal(steps - steps[0, 0, 0, 0], 4 * torch.arange(256.0).reshape(1, 1, 16, 16))
        torch.testing.assert_close(steps * spikes_per_step(p), input_spikes(images, p), rtol=0, atol=0.01)
    x = torch.rand(3, 1, 4, 4, requires_grad=True)
    fine_steps(x, Encoding()).sum().backward()
    assert (x.grad == 1020).all()


def test_input_spikes_with_quantisation_are_those_of_the_encoder():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    for p in (Encoding(), Encoding(quiet=30.0), Encoding(f_min=1, f_max=22, presentation=400)):
        simulated = encode(images, p, torch.tensor([7])).sum(0)
        assert torch.equal(whole_spikes(images / 255, p), simulated.float())
    spikes = input_spikes(images / 255, Encoding()).flatten()[[0, 51, 255]]
    assert spikes.tolist() == pytest.approx([3, 4.2, 9])


def test_frontend_file_keeps_every_value_and_the_response(pipeline):
    frontend, data, digest = load_frontend(pipeline.frontend)
    network, _, snn_digest = load_network(pipeline.snn)
    assert data.data == "digits"
    images = load_images(data, "test", seed=0).images[:32]
    features = frontend(images / 255)
    assert features.shape == (32, 8, 8, 8)
    assert 0 <= features.min() < features.max() <= 1
    for layer, learned in zip(frontend.layers, network.layers, strict=True):
        unit = 6 / 1020 if layer is frontend.layers[0] else 1
        expected = learned.layer.conductance * learned.layer.gain.reshape(-1, 1, 1, 1) * (unit * 15 / 300)
        torch.testing.assert_close(layer.weight, expected, rtol=0, atol=1e-3 * expected.max().item())
    with h5py.File(pipeline.frontend) as file:
        assert file.attrs["source_digest"] == snn_digest
        assert file.attrs["digest"] == digest
        for name, learned in zip(("conv1", "conv2"), network.layers, strict=True):
            group = file["layers"][name]
            response = group["response"]
            assert len(response["drive"]) == len(response["count"]) == len(response["channel"]) > 1000
            assert response["channel"][()].max() == learned.layer.geometry.maps - 1
            assert np.all(np.diff(response["single_count"][()]) >= 0)
            assert response["single_count"][()].max() >= 4
            for mode in ("without", "with"):
                assert 0.9 < group[f"fidelity/{mode}_quantise_input"].attrs["correlation"] <= 1
            assert 0 < group["fit"].attrs["residual"] < 0.2
            assert group["fit"].attrs["residual"] <= 1.5 * min(group["candidates"].attrs.values())
            assert np.array_equal(group["spiking/conductance"][()], learned.layer.conductance)
            edges = group["state/activation.edges"]
            assert group["state/activation.heights"].shape[-1] == edges.shape[-1] + 1


def test_stored_response_is_what_the_sau_was_fitted_to(pipeline):
    # The stored step function has the stored residual on the stored sample.
    frontend, _, _ = load_frontend(pipeline.frontend)
    with h5py.File(pipeline.frontend) as file:
        for number, layer in enumerate(frontend.layers, 1):
            group = file[f"layers/conv{number}"]
            drive, count = (torch.from_numpy(group["response"][name][()]) for name in ("drive", "count"))
            assert layer.activation.edges.ndim == 1
            error = (layer.activation(drive) - count).abs().mean().item()
            assert error == pytest.approx(group["fit"].attrs["residual"], abs=0.02)


def converted_and_simulated(file, images, quantised):
    """A network, its front end, so many fresh images, and the spikes that these lead to in the simulation."""
    network, data, _ = load_network(file)
    fitted, fresh = (load_images(data, split, seed=0).images[:images] for split in ("train", "test"))
    frontend = convert(network, fitted, quantise_input=quantised).frontend
    return network, frontend, fresh, simulate_counts(network, fresh, torch.Generator().manual_seed(5))


@pytest.mark.parametrize("quantised", [False, True])
def test_converted_layers_answer_as_the_simulation_does(pipeline, quantised):
    network, frontend, fresh, counts = converted_and_simulated(pipeline.snn, 100, quantised)
    assert torch.equal(counts[0].float(), whole_spikes(fresh / 255, network.learning.encoding))
    with torch.no_grad():
        outputs = frontend.spikes(fresh / 255)
    for fidelity, spikes, count in zip(
        measure_fidelity(frontend, fresh, counts[1:], batch_size=33), outputs, counts[1:], strict=True
    ):
        # The figures are those of the plain definitions.
        error = (spikes - count).abs()
        pair = torch.stack((spikes.flatten(), count.flatten())).double()
        assert fidelity.off_share == pytest.approx((error >= 1).double().mean().item())
        assert fidelity.mean_error == pytest.approx(error.double().mean().item() / 0.3)
        assert fidelity.mean_rate == pytest.approx(count.double().mean().item() / 0.3)
        assert fidelity.correlation == pytest.approx(torch.corrcoef(pair)[0, 1].item())
        assert fidelity.confusion.sum() == count.numel()
        assert fidelity.levels == sum((count == n).double().mean() >= 0.05 for n in range(20))
        assert fidelity.correlation > (0.95 if quantised else 0.93)
        assert fidelity.off_share < (0.10 if quantised else 0.15)


def test_keeping_the_floor_makes_the_conversion_more_faithful(pipeline):
    network, data, _ = load_network(pipeline.snn)
    fitted, fresh = (load_images(data, split, seed=0).images[:80] for split in ("train", "test"))
    counts = simulate_counts(network, fresh, torch.Generator().manual_seed(5))[1:]
    off = [
        measure_fidelity(convert(network, fitted, quantise_input=quantised).frontend, fresh, counts)[0].off_share
        for quantised in (False, True)
    ]
    assert off[1] < 0.7 * off[0]


def test_simulated_responses_are_the_networks_own(pipeline):
    network, data, _ = load_network(pipeline.snn)
    images = load_images(data, "test", seed=0).images[:5]
    batched = simulate_counts(network, images, torch.Generator().manual_seed(1), batch_size=2)
    whole = simulate_counts(network, images, torch.Generator().manual_seed(1), batch_size=5)
    assert [tuple(count.shape) for count in batched] == [(5, 1, 8, 8), (5, 6, 8, 8), (5, 8, 8, 8)]
    # Draws of images do not depend on how many are simulated together; seeds are drawn in turn.
    assert all(torch.equal(a, b) for a, b in zip(batched, whole, strict=True))


def test_works_in_lower_precision_and_other_memory_order(pipeline):
    frontend, data, _ = load_frontend(pipeline.frontend)
    images = load_images(data, "test", seed=0).images[:16] / 255
    with torch.no_grad():
        expected = frontend(images)
        assert torch.equal(frontend(images.to(memory_format=torch.channels_last)), expected)
        compiled = torch.compile(frontend, backend="aot_eager", fullgraph=True)
        assert torch.equal(compiled(images), expected)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = frontend(images)
        low = frontend.to(torch.bfloat16)(images.to(torch.bfloat16))
    assert low.dtype == torch.bfloat16
    # Rounded drives cross edges, but few and by one step.
    top = frontend.layers[-1].activation.heights.max()
    for other in (mixed, low):
        difference = ((other.float() - expected) * top).round().abs()
        assert (difference > 0).float().mean() < 0.05
        assert difference.max() <= 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_machine_code_gives_the_same_features(pipeline):
    frontend, data, _ = load_frontend(pipeline.frontend)
    images = load_images(data, "test", seed=0).images[:64] / 255
    with torch.no_grad():
        different = torch.compile(frontend)(images) != frontend(images)
    # A compiler may round the normalisation otherwise, which matters only on an edge.
    assert different.float().mean() < 1e-4


@pytest.mark.parametrize("quantised", [False, True])
def test_gradients_reach_the_images(pipeline, quantised):
    network, data, _ = load_network(pipeline.snn)
    images = load_images(data, "train", seed=0).images[:20]
    frontend = convert(network, images, quantise_input=quantised).frontend
    x = (images / 255).requires_grad_()
    frontend(x).sum().backward()
    assert (x.grad != 0).float().mean() > 0.5


def test_rates_are_spikes_over_the_presentation(pipeline):
    frontend, _, _ = load_frontend(pipeline.frontend)
    x = torch.rand(2, 1, 8, 8)
    for rates, spikes in zip(frontend.rates(x), frontend.spikes(x), strict=True):
        torch.testing.assert_close(rates, spikes / 0.3)


def test_public_names_are_found_lazily_and_win_over_modules_of_the_same_name():
    code = """
import json, sys
import bridge
light = "torch" not in sys.modules
import bridge.convert
from bridge.convert import main
import bridge.conversion
names = {name: getattr(bridge, name).__module__ for name in bridge.__all__}
print(json.dumps([light, bridge.convert is bridge.conversion.convert, main.__module__, names]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    light, is_function, module, names = json.loads(result.stdout)
    assert light
    assert is_function
    assert module == "bridge.convert"
    assert {"convert", "load", "SpikingFrontEnd", "FrontEndSpec", "LayerSpec", "Conversion"} <= names.keys()
    assert all(home.startswith("bridge.") for home in names.values())


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_file_is_converted_as_the_command_converts_it(pipeline, tmp_path, kind):
    # The command's front end was fitted on 40 images.
    stored = load_frontend(pipeline.frontend)
    images = load_images(replace(stored.data_source, limit_train=40), "train", seed=0).images
    conversion = bridge.convert(kind(pipeline.snn), images)
    expected = stored.frontend.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in conversion.frontend.state_dict().items())
    assert conversion.frontend.spec == stored.frontend.spec
    bridge.save(conversion, kind(tmp_path / "frontend.h5"))
    again = bridge.load_frontend(kind(tmp_path / "frontend.h5"))
    assert again.data_source == stored.data_source
    with h5py.File(pipeline.frontend) as command, h5py.File(tmp_path / "frontend.h5") as library:
        assert library.attrs["source_digest"] == command.attrs["source_digest"]
        for name in ("response/drive", "spiking/conductance", "state/activation.edges"):
            assert np.array_equal(library[f"layers/conv2/{name}"][()], command[f"layers/conv2/{name}"][()])
    x = images[:8] / 255
    assert torch.equal(bridge.load(tmp_path / "frontend.h5")(x), stored.frontend(x))


def test_conversion_refuses_unfinished_networks_and_other_images(pipeline, tmp_path):
    network, data, _ = load_network(pipeline.snn)
    images = load_images(data, "train", seed=0).images[:20]
    part = tmp_path / "part.h5"
    save(replace(network, layers=network.layers[:1]), part, data, command="interrupted")
    with pytest.raises(UserError, match=r"part\.h5 holds 1 of the 2 layers.*interrupted.*`layers` 1 or less"):
        convert(part, images)
    assert convert(part, images, layers=1).frontend.spec.channels == (6,)
    assert convert(network, images, layers=1).frontend.spec.channels == (6,)
    for layers in (0, 3):
        with pytest.raises(UserError, match=f"`layers` {layers}: "):
            convert(network, images, layers=layers)
    with pytest.raises(UserError, match=r"shape \(20, 1, 7, 8\); expected .*\(1, 8, 8\)"):
        convert(network, images[:, :, 1:])
    many = torch.zeros(1, 1, 8, 8, dtype=torch.uint8).expand(10**9, -1, -1, -1)
    with pytest.raises(UserError, match=r"responses of 2 layers to 1000000000 images would take .*; give fewer"):
        convert(network, many)
    with pytest.raises(UserError, match="`steps` 0: give 1 or more"):
        convert(network, images, steps=0)
    with pytest.raises(UserError, match=r"nothing\.h5 does not exist"):
        convert(tmp_path / "nothing.h5", images)


def test_a_spec_is_stored_as_a_column_for_each_property(tmp_path):
    def stored_and_read(tree):
        schema = Schema("spec/1", "the remedy")
        write_file(tmp_path / "spec.h5", schema, tree, seed=0, command="")
        return read_file(tmp_path / "spec.h5", schema, lambda read: spec_from_tree(read, (3, 32, 32)))

    layers = (LayerSpec(6, 5, 2, 1, 4), LayerSpec(7, 3, 3, 0, 9, per_channel=True))
    spec = FrontEndSpec((3, 32, 32), layers, Encoding(f_min=1.0), quantise_input=True)
    assert spec.stride == 6
    assert spec.channels == (6, 7)
    assert [layer.edges_shape for layer in layers] == [(4,), (7, 9)]
    tree = spec_tree(spec)
    columns = {name: list(tree[name]) for name in tree.keys() - {"encoding", "quantise_input", "retina_size"}}
    assert columns == {
        "maps": [6, 7],
        "kernel_sizes": [5, 3],
        "strides": [2, 3],
        "paddings": [1, 0],
        "steps": [4, 9],
        "per_channel": [False, True],
    }
    assert stored_and_read(tree) == spec
    seeing = replace(spec, retina_size=7)
    assert stored_and_read(spec_tree(seeing)) == seeing
    # Files of before there were retinas.
    assert stored_and_read({name: value for name, value in tree.items() if name != "retina_size"}) == spec
    # 32 pixels: (32 + 2 - 5) // 2 + 1 = 15, then (15 - 3) // 3 + 1 = 5.
    frontend = SpikingFrontEnd.empty(spec)
    assert [tuple(spikes.shape) for spikes in frontend.spikes(torch.rand(2, 3, 32, 32))] == [
        (2, 6, 15, 15),
        (2, 7, 5, 5),
    ]
    assert frontend.layers[1].activation.heights.shape == (7, 10)
    for name in ("channels", "kernel_size", "stride", "steps"):
        with pytest.raises(UserError, match=f"`{name}` 0"):
            replace(layers[0], **{name: 0})


@pytest.mark.parametrize("quantised", [False, True])
def test_drives_behind_a_retina_are_mean_currents_of_its_spikes(contrast, quantised):
    network, frontend, fresh, counts = converted_and_simulated(contrast.snn, 60, quantised)
    p, learned = network.learning.encoding, network.layers[0].layer
    # The definition: F T of each contrast, rounded down, and kernels less their means.
    spikes = (network.retina.encode(fresh).double() / 255 * (p.f_max - p.f_min) + p.f_min) * 0.3
    assert torch.equal(counts[0].double(), (spikes + 1e-9).floor())
    kernels = learned.conductance.double()
    kernels = (kernels - kernels.mean((1, 2, 3), keepdim=True)) * learned.gain.double().reshape(-1, 1, 1, 1) * 15 / 300
    expected = torch.nn.functional.conv2d(counts[0].double() if quantised else spikes, kernels, padding=1)
    with torch.no_grad():
        drive = frontend.layers[0].drive(frontend.encode(fresh / 255)).double()
        outputs = frontend.spikes(fresh / 255)
    # Finer steps of contrast than the encoder's 255, rounded, and rounded weights.
    assert (drive - expected).abs().max() < (0.002 if quantised else 0.03) * expected.abs().max()
    assert expected.min() < 0 < expected.max()
    (fidelity,) = measure_fidelity(frontend, fresh, counts[1:])
    assert fidelity.off_share == pytest.approx(((outputs[0] - counts[1]).abs() >= 1).double().mean().item())
    assert fidelity.off_share < 0.1
    assert fidelity.correlation > 0.9


def test_colours_behind_a_retina_reach_their_own_channels():
    # A retina that treats no two colours alike, on images without any symmetry.
    generator = torch.Generator().manual_seed(0)
    retina = Retina(torch.randint(-8, 9, (3, 3, 3, 3), generator=generator) / 8, torch.tensor([40.0, -60.0, 90.0]))
    images = torch.randint(256, (5, 3, 9, 9), dtype=torch.uint8, generator=generator)
    p = Encoding(f_min=1, f_max=40, quiet=30.0)
    simulated = encode(retina.encode(images), p, torch.arange(5)).sum(0).float()
    assert torch.equal(first_input(images / 255, p, True, retina), simulated)
    # Without the floor: contrast in steps a quarter as large as the encoder's levels, above the lowest rate.
    steps, lowest = first_input(images / 255, p, False, retina), round(1020 / 39)
    assert (steps.min(), steps.max()) == (lowest, 1020 + lowest)
    assert ((steps - lowest) / 4 - retina.encode(images).float()).abs().max() <= 0.5


def test_retina_and_inhibition_are_stored(contrast, tmp_path):
    network, data, _ = load_network(contrast.snn)
    fresh = load_images(data, "test", seed=0).images[:40]
    for quantised in (False, True):
        conversion = convert(network, fresh, quantise_input=quantised)
        bridge.save(conversion, tmp_path / "frontend.h5")
        stored = bridge.load(tmp_path / "frontend.h5")
        assert stored.spec == conversion.frontend.spec
        assert (stored.spec.retina_size, stored.spec.channels_in) == (5, 2)
        for x in (fresh / 255, torch.rand(8, 1, 8, 8)):
            assert torch.equal(stored.encode(x), conversion.frontend.encode(x))
            assert torch.equal(stored(x), conversion.frontend(x))
        (layer,) = load_spiking_layers(tmp_path / "frontend.h5")
        assert layer.geometry.feed_forward_inhibition
        assert torch.equal(layer.weight, network.layers[0].layer.weight)
    with h5py.File(tmp_path / "frontend.h5") as file:
        assert np.array_equal(file["retina/filters"][()], network.retina.filters)
        assert file["retina"].attrs["offset_unit"] == "contrast, in steps of 1/1020"


@pytest.mark.parametrize("quantised", [False, True])
def test_gradients_pass_a_retina(contrast, quantised):
    network, data, _ = load_network(contrast.snn)
    images = load_images(data, "train", seed=0).images[:20]
    frontend = convert(network, images, quantise_input=quantised).frontend
    x = (images / 255).requires_grad_()
    (gradient,) = torch.autograd.grad(frontend(x).sum(), x)
    assert gradient.isfinite().all()
    assert (gradient != 0).float().mean() > 0.5
