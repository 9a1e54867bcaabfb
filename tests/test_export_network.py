import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

import hybrid
from bridge.export.folded import PlainSteps
from bridge.sau import SpecialActivationUnit
from bridge.storage import load_frontend
from hybrid import exporting
from hybrid.architecture import Architecture, ModelSpec, build_model
from hybrid.export import main
from hybrid.exporting import METADATA, export, onnx_network, plain_network
from hybrid.int8 import calibration_images
from hybrid.preprocess import Preprocess
from hybrid.storage import TrainedModel
from hybrid.variations import Variations
from snn.data import load_images
from snn.data_source import DataSource
from snn.runtime.errors import UserError

pytestmark = pytest.mark.needs_export

FOREIGN = """
import sys, json
class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("snn", "bridge", "hybrid"):
            raise ImportError(name)
sys.meta_path.insert(0, Refused())
import numpy as np
file, images, out = sys.argv[1:]
x = np.load(images)
"""
RUN = {
    "onnx": "import onnxruntime\ns = onnxruntime.InferenceSession(file)\ny = s.run(['logits'], {'images': x})[0]\n",
    "torch": "import torch\ny = torch.export.load(file).module()(torch.from_numpy(x)).detach().numpy()\n",
}


@pytest.fixture(scope="module")
def images():
    clean = load_images(DataSource(), "test", seed=0).images[:60] / 255
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    return torch.cat((clean, (clean + 0.1 * noise).clamp(0, 1)))


def network_of(file, images, backbone="fast_cnn", **options):
    """An untrained network of small width, with statistics of real images and a changed affine part."""
    variations = Variations(**options.pop("variations", {}))
    architecture = Architecture(backbone=backbone, width=0.25, variations=variations, **options)
    frontend = None if architecture.variant == "baseline" else load_frontend(file).frontend
    spec = ModelSpec(architecture, (1, 8, 8), tuple("abcdefghij"), frontend and frontend.spec)
    torch.manual_seed(1)
    network = build_model(spec, frontend)
    if architecture.variant == "lambda":
        for layer, converted in zip(network.frontend.layers, frontend.layers, strict=True):
            steps = converted.activation.edges.shape[-1]
            layer.activation = SpecialActivationUnit(torch.linspace(-1, 2, steps), torch.arange(steps + 1.0))
    with torch.no_grad():
        for name, values in network.named_parameters():
            if "frontend" in name and "norm" in name:
                values *= 1 + 0.1 * torch.randn(values.shape)
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                # So that one pass sets the statistics.
                module.momentum = 1.0
        network.train()(images)
    return TrainedModel(spec, network.eval(), DataSource(), 0, {}, {})


VARIANTS = {
    "safe": ("pipeline", {"auxiliary_maps": 4}),
    "no auxiliary": ("pipeline", {"auxiliary_maps": 0}),
    "average": ("pipeline", {"variations": {"auxiliary_input": Preprocess("average:2"), "feature_norm": True}}),
    "spikes": ("pipeline", {"preprocess": Preprocess("spikes"), "variations": {"variability": True}}),
    "median": ("contrast", {"variations": {"auxiliary_input": Preprocess("median:3")}}),
    "trimmed": ("contrast", {"variations": {"auxiliary_input": Preprocess("trimmed:3,1")}}),
    "quantise": ("contrast", {"preprocess": Preprocess("average:3+quantise")}),
    "behind retina": ("contrast", {"variations": {"auxiliary_source": "retina", "auxiliary_activation": "steps"}}),
    "mu": ("contrast", {"variant": "mu"}),
    "baseline": ("pipeline", {"variant": "baseline", "preprocess": Preprocess("average:2")}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_all_variants_give_the_same_logits(name, request, images, tmp_path):
    source, options = VARIANTS[name]
    model = network_of(request.getfixturevalue(source).frontend, images, **options)
    agreement = export(model, tmp_path / "model.onnx")
    assert agreement.largest_difference <= 1e-4
    loaded = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(loaded, full_check=True)
    assert {entry.domain for entry in loaded.opset_import} == {""}
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    expected = model(images)
    assert expected.std(0).max() > 1e-3
    for batch in (1, 3, 17, 120):
        (logits,) = session.run(["logits"], {"images": images[:batch].numpy()})
        np.testing.assert_allclose(logits, expected[:batch], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["safe", "behind retina"])
def test_a_program_of_torch_gives_the_same_bits(name, request, images, tmp_path):
    source, options = VARIANTS[name]
    model = network_of(request.getfixturevalue(source).frontend, images, **options)
    export(model, tmp_path / "model.pt2", "torch")
    extra = {METADATA: ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=extra).module()
    assert json.loads(extra[METADATA])["class_names"] == json.dumps(list("abcdefghij"))
    for batch in (1, 3, 17):
        assert torch.allclose(program(images[:batch]), model(images[:batch]), rtol=0, atol=1e-6)


def test_steps_as_comparisons_are_the_same_function():
    own = torch.tensor([[-1.0, 0.5, torch.inf], [0.0, 1.0, 2.0]])
    heights = torch.tensor([[0.0, 1.0, 2.5, 2.5], [1.0, 2.0, 3.0, 7.0]]) / 3
    x = torch.cat([own.clamp(max=9).T.reshape(1, 3, 2).permute(0, 2, 1), torch.randn(1, 2, 99)], 2)[..., None]
    for edges, table in ((own, heights), (own[1], heights[1])):
        activation = SpecialActivationUnit(edges, table)
        assert torch.equal(PlainSteps.of(activation)(x), activation(x))


def test_plain_network_leaves_the_network_as_it_is(models, images):
    network = models["safe"].network
    before = {name: type(module) for name, module in network.named_modules()}
    plain = plain_network(network)
    assert not any(isinstance(module, SpecialActivationUnit) for module in plain.modules())
    assert {name: type(module) for name, module in network.named_modules()} == before
    with torch.no_grad():
        assert torch.equal(plain(images), network(images))


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_written_file_needs_nothing_of_this_project(pipeline, models, images, tmp_path, capsys, format):
    file = tmp_path / f"safe{exporting.SUFFIX[format]}"
    json_file = tmp_path / "figures.json"
    assert main([str(pipeline.safe), "--format", format, "--out", str(file), "--json", str(json_file)]) == 0
    captured = capsys.readouterr()
    assert "32 images, half of them noisy" in captured.out
    assert "no classes differ" in captured.out
    assert json.loads(json_file.read_text())["different_classes"] == 0
    np.save(tmp_path / "images.npy", images[:17].numpy())
    code = FOREIGN + RUN[format] + "np.save(out, y)"
    arguments = [str(file), str(tmp_path / "images.npy"), str(tmp_path / "logits.npy")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=tmp_path, env={"PATH": ""})
    logits = np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(logits, models["safe"](images[:17]), rtol=0, atol=1e-4)
    # The same command makes the same bytes, and says nothing of folders with source code.
    content = file.read_bytes()
    assert b"exporting.py" not in content
    if format == "onnx":
        assert main([str(pipeline.safe), "--format", format, "--out", str(file), "--json", str(json_file)]) == 0
        assert file.read_bytes() == content
        described = {entry.key: entry.value for entry in onnx.load(file).metadata_props}
        assert json.loads(described["class_names"]) == list(models["safe"].spec.classes)
        assert json.loads(described["input_shape"]) == [1, 8, 8]
        assert described["source_digest"] == models["safe"].digest
        assert "[0, 1]" in onnx.load(file).doc_string


@pytest.mark.slow
def test_int8_keeps_the_front_end_exact(pipeline, models, images, tmp_path):
    out = tmp_path / "int8.onnx"
    assert main([str(pipeline.safe), "--int8", "--calibration", "100", "--out", str(out)]) == 0
    contents = {"float32": onnx_network(models["safe"]), "int8": out.read_bytes()}
    features = {}
    for name, content in contents.items():
        model = onnx.load_from_string(content)
        last = [node.output[0] for node in model.graph.node if node.op_type == "Where"][-1]
        model.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
        session = onnxruntime.InferenceSession(model.SerializeToString())
        features[name] = session.run([last], {"images": images.numpy()})[0]
    assert len(np.unique(features["float32"])) >= 4
    assert np.array_equal(features["float32"], features["int8"])
    quantised = onnx.load(out)
    assert {entry.key: entry.value for entry in quantised.metadata_props}["precision"].startswith("int8")
    whole = sum(np.prod(each.dims) for each in quantised.graph.initializer if each.data_type == onnx.TensorProto.INT8)
    assert whole > 0.9 * sum(p.numel() for p in models["safe"].network.parameters() if p.ndim > 1)


def test_calibration_images_are_clean_and_noisy_in_both_halves():
    images = torch.full((40, 1, 8, 8), 102, dtype=torch.uint8)
    made = calibration_images(images, 0)
    noisy = made.std((1, 2, 3)) > 0
    assert noisy[::2].sum() == noisy[1::2].sum() == 10
    assert torch.equal(made[~noisy], images[~noisy] / 255)
    assert torch.equal(made, calibration_images(images, 0))


def broken(model):
    """A model whose exported steps are others than its own."""
    content = onnx.load_from_string(onnx_network(model))
    for each in content.graph.initializer:
        if "steps.edges" in each.name or "frontend" in each.name:
            values = onnx.numpy_helper.to_array(each)
            each.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(1.5), each.name))
    return content.SerializeToString()


@pytest.mark.slow
def test_a_file_that_answers_otherwise_is_not_written(models, tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_bytes(b"an earlier result")
    wrong = broken(models["safe"])
    monkeypatch.setattr(exporting, "onnx_network", lambda *_: wrong)
    with pytest.raises(UserError, match="nothing was written"):
        export(models["safe"], tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_bytes() == b"an earlier result"


@pytest.mark.slow
def test_int8_that_answers_otherwise_is_not_written(pipeline, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hybrid.int8.SAME_CLASS", 1.01)
    assert main([str(pipeline.safe), "--int8", "--calibration", "20", "--out", str(tmp_path / "x.onnx")]) == 2
    assert "nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_logits_of_trained_steps_may_move_on_few_images(pipeline, images):
    exact, inexact = (network_of(pipeline.frontend, images, variant=name).network for name in ("safe", "lambda"))
    assert not exporting.has_inexact_steps(exact)
    assert exporting.has_inexact_steps(inexact)
    expected = torch.eye(8) * 3
    moved = expected.clone()
    moved[0, 1] = 0.01
    agreement = exporting.compare(expected, moved)
    assert agreement == (8, 3, pytest.approx(0.01), 0, 1)
    exporting.check_agreement(agreement, inexact=True)
    for wrong, allowed in ((agreement, False), (agreement._replace(moved_images=3), True)):
        with pytest.raises(UserError, match="of 8 images"):
            exporting.check_agreement(wrong, allowed)
    moved[:] = torch.nan
    assert exporting.compare(expected, moved).moved_images == 8


def test_too_large_networks_and_strange_operators_are_refused(models, monkeypatch):
    monkeypatch.setattr(exporting, "MOST_BYTES", 1000)
    with pytest.raises(UserError, match="choose `format` torch"):
        onnx_network(models["baseline"])

    class Strange(torch.nn.Module):
        def forward(self, x):
            return x * 2 if x.sum() > 0 else x

    model = replace(models["baseline"], network=plain_network(models["baseline"].network))
    model.network.preprocess = Strange()
    with pytest.raises(UserError, match="cannot be exported"):
        exporting.torch_network(model)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--format torch --int8", "--int8 is made by onnxruntime: use it with --format onnx"),
        ("--calibration 5", "--calibration would be ignored: they belong to --int8"),
        ("--data digits", "--data would be ignored"),
        ("--format torch --out x.onnx", "expected a name that ends in .pt2"),
        ("--int8 --data digits --calibration 0", "--calibration 0: expected 1"),
    ],
)
def test_flags_that_mean_nothing_are_refused(pipeline, capsys, flags, words):
    assert main([str(pipeline.safe), *flags.split()]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.strip().splitlines()) == 1


def test_foreign_and_damaged_files_are_refused(pipeline, tmp_path, capsys):
    whole = pipeline.safe.read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 255
    for name, content in (("cut", whole[:-100]), ("damaged", bytes(damaged)), ("empty", b"")):
        file = tmp_path / f"{name}.h5"
        file.write_bytes(content)
        assert main([str(file), "--out", str(tmp_path / "x.onnx")]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    for file in (pipeline.frontend, tmp_path / "none.h5", pipeline.safe.parent):
        assert main([str(file), "--out", str(tmp_path / "x.onnx")]) == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert main([str(pipeline.safe), "--int8", "--data", "folder:/nowhere", "--out", str(tmp_path / "x.onnx")]) == 2
    assert not (tmp_path / "x.onnx").exists()


def test_the_library_publishes_it(models):
    assert hybrid.export is export
    with pytest.raises(UserError, match="`format` torchscript: unknown; choose from onnx, torch"):
        hybrid.export(models["safe"], "x.onnx", "torchscript")
