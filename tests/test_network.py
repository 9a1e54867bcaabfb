import copy
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torchvision.models import mobilenet_v2

from bridge.conversion import convert
from bridge.storage import load_frontend, spec_tree
from hybrid.architecture import Architecture, ModelSpec, baseline, build_model, safe_dnn
from hybrid.augment import augment, resolve_augmentation
from hybrid.backbones import full_backbone, main_cnn
from hybrid.conditions.attack import fgsm
from hybrid.network import HybridNetwork, Join, Normalise
from hybrid.optimiser import one_cycle
from hybrid.preprocess import Preprocess
from hybrid.recipe import Recipe
from hybrid.storage import SCHEMA, TrainedModel, load_model, save, save_model
from hybrid.swap import main as swap_command
from hybrid.swap import swap, with_auxiliary_input
from hybrid.train import main as train_command
from hybrid.training import train
from hybrid.variations import Variations
from snn.data import load_images
from snn.data_source import DataSource
from snn.learner import learn
from snn.learning import Learning
from snn.runtime.errors import UserError


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def safe_network(pipeline, seed=0):
    frontend, _, _ = load_frontend(pipeline.frontend)
    spec = ModelSpec(Architecture(width=0.25), (1, 8, 8), tuple("0123456789"), frontend.spec)
    torch.manual_seed(seed)
    return build_model(spec, frontend)


def test_stock_backbone_is_torchvisions():
    torch.manual_seed(0)
    ours = full_backbone("mobilenet_v2", 3, 10, image_size=224).eval()
    theirs = mobilenet_v2(num_classes=10).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.rand(2, 3, 224, 224)
    assert torch.equal(ours(images), theirs(images))
    assert count(full_backbone("mobilenet_v2", 3, 1000, image_size=224)) == 3_504_872


def test_main_cnn_drops_the_stem_and_the_following_block():
    full, main = (build("mobilenet_v2", 64, 10, 32) for build in (full_backbone, main_cnn))
    assert len(main.features) == len(full.features) - 2
    shapes = [tuple(p.shape) for p in main.features[1:].parameters()]
    assert shapes == [tuple(p.shape) for p in full.features[3:].parameters()]
    assert main(torch.rand(2, 64, 32, 32)).shape == (2, 10)
    # The rebuilt block costs about as much as the dropped and the old one did.
    assert abs(count(main) - count(full_backbone("mobilenet_v2", 3, 10, 32))) < 5_000


def test_small_images_keep_their_resolution_longer():
    sizes = {}
    for image_size in (32, 224):
        network = full_backbone("mobilenet_v2", 3, 10, image_size).eval()
        x, sizes[image_size] = torch.rand(1, 3, image_size, image_size), []
        for block in network.features:
            x = block(x)
            sizes[image_size].append(image_size // x.shape[-1])
    assert [sizes[32][i] for i in (0, 2, 4, 7, 14, 18)] == [1, 1, 2, 4, 8, 8]
    assert [sizes[224][i] for i in (0, 2, 4, 7, 14, 18)] == [2, 4, 8, 16, 32, 32]


def test_one_step_changes_everything_but_frozen_values(pipeline):
    network = safe_network(pipeline).train()
    before = copy.deepcopy(network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=1e-3)
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    cross_entropy(network(images), torch.arange(16) % 10).backward()
    optimizer.step()
    after = network.state_dict()
    frozen = [k for k in before if k.startswith("frontend.") and not k.endswith(("norm.weight", "norm.bias"))]
    assert {k.rsplit(".", 1)[1] for k in frozen} >= {"weight", "edges", "heights", "running_mean", "running_var"}
    for key in before:
        changed = not torch.equal(before[key], after[key])
        assert changed == (key not in frozen and not key.startswith("normalise.")), key


def test_an_epoch_without_learning_rate_leaves_every_feature_as_it_was(pipeline):
    data = load_images(DataSource(limit_train=60), "train", seed=0)
    frontend, _, _ = load_frontend(pipeline.frontend)
    with torch.no_grad():
        before = [spikes.clone() for spikes in frontend.spikes(data.images / 255)]
    recipe = Recipe(epochs=1, batch_size=16, learning_rate=0.0)
    trained = train(data, Architecture(width=0.25), recipe, frontend=frontend, seed=5)
    with torch.no_grad():
        after = trained.network.frontend.spikes(data.images / 255)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        # Training itself sees the same features: nothing in the front end depends on the batch or the mode.
        training = trained.network.frontend.train()
        parts = [training.spikes(part / 255) for part in data.images.split(7)]
        assert all(torch.equal(torch.cat(layers), a) for layers, a in zip(zip(*parts, strict=True), after, strict=True))
    # Of the whole network, a second such epoch moves only statistics of the trainable parts' own normalisation.
    longer = train(data, Architecture(width=0.25), replace(recipe, epochs=2), frontend=frontend, seed=5)
    states = [model.network.state_dict() for model in (trained, longer)]
    moved = {name for name, value in states[0].items() if not torch.equal(value, states[1][name])}
    assert moved
    assert {name.rsplit(".", 1)[1] for name in moved} == {"running_mean", "running_var", "num_batches_tracked"}
    assert not any(name.startswith("frontend.") for name in moved)


def test_silencing_a_path_is_the_same_as_zeroing_its_features(pipeline):
    network = safe_network(pipeline).eval()
    images = torch.rand(4, 1, 8, 8)
    with torch.no_grad():
        spiking, auxiliary = network.frontend(images), network.auxiliary(network.normalise(images))
        assert spiking.shape[-2:] == auxiliary.shape[-2:]
        for paths, keep in (("both", (1, 1)), ("spiking", (1, 0)), ("auxiliary", (0, 1))):
            expected = network.main(torch.cat((spiking * keep[0], auxiliary * keep[1]), 1))
            assert torch.equal(network(images, paths), expected)


def test_saved_models_answer_as_before_saving(pipeline, tmp_path):
    data = load_images(DataSource(limit_train=60), "train", seed=0)
    frontend, _, _ = load_frontend(pipeline.frontend)
    for variant in ("safe", "baseline"):
        architecture = Architecture(variant=variant, width=0.25)
        given = frontend if variant == "safe" else None
        model = train(data, architecture, Recipe(epochs=1, batch_size=16), frontend=given, seed=5)
        digest = save_model(tmp_path / "model.h5", model, "a command", "")
        loaded = load_model(tmp_path / "model.h5")
        assert (loaded.spec, loaded.data_source) == (model.spec, data.data_source)
        assert (loaded.seed, loaded.digest) == (5, digest)
        assert loaded.recipe == model.recipe
        with torch.no_grad():
            assert torch.equal(loaded.network(data.images / 255), model.network(data.images / 255))


def test_a_strided_front_end_takes_the_place_of_the_stems_stride():
    data = load_images(DataSource(limit_train=24, image_size=96), "train", seed=0)
    network = learn(data.images, Learning(maps=(3, 4), strides=(2, 1), min_updates=1, batch_size=24))
    frontend = convert(network, data.images[:8]).frontend
    assert frontend(data.images[:2] / 255).shape == (2, 4, 48, 48)
    spec = ModelSpec(Architecture(width=0.25), data.shape, data.classes, frontend.spec)
    safe = build_model(spec, frontend).eval()
    baseline = full_backbone("mobilenet_v2", 1, 10, 96, width=0.25).eval()
    with torch.no_grad():
        features = torch.cat((safe.frontend(data.images[:2] / 255), safe.auxiliary(data.images[:2] / 255)), 1)
        ours, theirs = safe.main.features(features), baseline.features(data.images[:2] / 255)
    assert ours.shape == theirs.shape


def test_files_hold_models_ready_for_use(pipeline):
    for path in (pipeline.safe, pipeline.baseline):
        model = load_model(path)
        assert len(model.history["train_loss"]) == len(model.history["val_accuracy"]) == 2
        assert model.spec.classes == tuple("0123456789")
        assert not model.network.training
    # The saved front end is the converted one, except for the affine part of its normalisation.
    trained, (converted, _, _) = load_model(pipeline.safe).network.frontend, load_frontend(pipeline.frontend)
    for ours, theirs in zip(trained.layers, converted.layers, strict=True):
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.activation.edges, theirs.activation.edges)
        assert torch.equal(ours.norm.running_var, theirs.norm.running_var)
        assert not torch.equal(ours.norm.bias, theirs.norm.bias)


def test_unknown_backbones_variants_and_widths_are_refused():
    with pytest.raises(UserError, match="mobilenet_v2"):
        full_backbone("alexnet", 3, 10, 32)
    with pytest.raises(UserError, match="`width`"):
        main_cnn("mobilenet_v2", 3, 10, 32, width=0.0)
    with pytest.raises(UserError, match="`variant`"):
        Architecture(variant="nu")
    with pytest.raises(UserError, match="needs `frontend`"):
        ModelSpec(Architecture(), (3, 32, 32), ("a", "b"), None)


def test_augmentation_shifts_by_up_to_an_eighth_and_mirrors():
    image = torch.zeros(400, 1, 16, 16, dtype=torch.uint8)
    image[:, 0, 8, 5] = 200
    moved = augment(image, "shift", torch.Generator().manual_seed(0))
    places = {tuple(p) for p in moved.nonzero()[:, 2:].tolist()}
    assert places == {(y, x) for y in range(6, 11) for x in range(3, 8)}
    flipped = augment(image, "shift-flip", torch.Generator().manual_seed(0))
    columns = flipped.nonzero()[:, 3]
    assert len(columns) == 400
    assert 150 < (columns > 7).sum() < 250
    assert set(columns.tolist()) == set(range(3, 8)) | set(range(8, 13))
    assert torch.equal(augment(image, "none", torch.Generator()), image)
    assert resolve_augmentation("auto", "digits") == "shift"
    assert resolve_augmentation("auto", "folder:x") == "shift-flip"


def test_learning_rate_rises_for_a_fifth_then_falls_to_zero():
    rates = [one_cycle(step, 100) for step in range(101)]
    assert rates.index(max(rates)) == 20
    assert rates[20] == 1
    assert rates[60] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0)
    assert 0 < rates[0] < 0.06
    assert all(0 <= one_cycle(step, steps) <= 1 for steps in range(1, 8) for step in range(steps + 1))


def test_the_auxiliary_cnn_has_other_forms(pipeline):
    frontend, _, _ = load_frontend(pipeline.frontend)

    def network(**changes):
        spec = ModelSpec(
            Architecture(width=0.25, variations=Variations(**changes)), (1, 8, 8), tuple("0123456789"), frontend.spec
        )
        torch.manual_seed(0)
        return build_model(spec, copy.deepcopy(frontend)).eval()

    images = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wide = network(auxiliary_kernel=5)
    assert [m.kernel_size for m in wide.auxiliary if isinstance(m, nn.Conv2d)] == [(5, 5), (5, 5)]
    assert wide(images).shape == (6, 10)
    # Steps: nine heights, within half a step of ReLU6.
    stepped = network(auxiliary_activation="steps").auxiliary[-1]
    x = torch.linspace(-2, 9, 1001)
    assert stepped(x).unique().tolist() == [0.75 * n for n in range(9)]
    assert (stepped(x) - nn.functional.relu6(x)).abs().max() <= 0.375 + 1e-6
    # Only the auxiliary CNN sees its own preprocessing.
    plain, averaged = network(), network(auxiliary_input=Preprocess("average:3"))
    with torch.no_grad():
        assert torch.equal(averaged(images, "spiking"), plain(images, "spiking"))
        expected = plain.auxiliary(plain.normalise(averaged.auxiliary_input(images)))
        features = torch.cat((plain.frontend(images), expected), 1)
        assert torch.equal(averaged(images), plain.main(features))
    for wrong in ({"auxiliary_kernel": 4}, {"auxiliary_activation": "sigmoid"}, {"auxiliary_drop": 1.0}):
        with pytest.raises(UserError, match="`auxiliary_"):
            network(**wrong)


def test_auxiliary_features_are_dropped_by_images_in_training_alone(pipeline):
    frontend, _, _ = load_frontend(pipeline.frontend)
    spec = ModelSpec(
        Architecture(width=0.25, variations=Variations(auxiliary_drop=0.5)),
        (1, 8, 8),
        tuple("0123456789"),
        frontend.spec,
    )
    network, seen = build_model(spec, frontend), []
    network.main.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, -8:]))
    images = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    with torch.no_grad():
        network.eval()(images)
        network.train()(images)
    dropped = [(features == 0).all(dim=(1, 2, 3)) for features in seen]
    assert not dropped[0].any()
    assert 150 < dropped[1].sum() < 250


def saved(network, folder):
    """A file of an untrained network."""
    history = {"train_loss": np.zeros(1)}
    model = TrainedModel(network.spec, network, DataSource(), 0, history, {})
    save(model, folder / "network.h5")
    return folder / "network.h5"


def test_a_description_is_stored_flat_with_every_option(pipeline, tmp_path):
    network = safe_dnn(pipeline.frontend, width=0.25, variations=Variations(auxiliary_kernel=5, auxiliary_drop=0.25))
    with h5py.File(saved(network, tmp_path)) as file:
        stored = dict(file["config/architecture"].attrs)
    assert stored == {
        "backbone": "mobilenet_v2", "variant": "safe", "width": 0.25, "auxiliary_maps": 8, "preprocess": "none",
        "auxiliary_kernel": 5, "auxiliary_activation": "relu6", "auxiliary_input": "none", "auxiliary_drop": 0.25,
        "auxiliary_source": "image", "variability": False, "feature_norm": False,
    }  # fmt: skip
    assert load_model(tmp_path / "network.h5").spec == network.spec


def test_files_and_identities_know_of_a_kept_block_where_there_is_one(pipeline, tmp_path):
    networks = [safe_dnn(pipeline.frontend, width=0.25, dropped_blocks=blocks) for blocks in (1, 0)]
    usual, deeper = (network.spec.identity for network in networks)
    # As it was before there was such a setting.
    assert usual == repr(networks[0].spec).replace(", dropped_blocks=1", "")
    assert deeper == repr(networks[1].spec) == usual.replace(", variations=", ", dropped_blocks=0, variations=")
    with h5py.File(saved(networks[1], tmp_path)) as file:
        assert file["config/architecture"].attrs["dropped_blocks"] == 0
    read, images = load_model(tmp_path / "network.h5"), torch.rand(2, 1, 8, 8)
    assert read.spec == networks[1].spec
    assert torch.equal(read.network(images), networks[1].eval()(images))
    # A block more, and in the first block that is kept other channels.
    assert len(networks[1].main.features) == len(networks[0].main.features) + 1


def test_a_baseline_drops_no_block():
    with pytest.raises(UserError, match="`dropped_blocks` 0: `variant` baseline is the whole backbone"):
        baseline((1, 8, 8), dropped_blocks=0)


def test_one_call_gives_a_network_for_images(pipeline):
    torch.manual_seed(0)
    network = safe_dnn(str(pipeline.frontend), backbone="resnet18", classes=("a", "b", "c"), auxiliary_maps=4)
    torch.manual_seed(0)
    frontend, _, _ = load_frontend(pipeline.frontend)
    spec = ModelSpec(Architecture("resnet18", auxiliary_maps=4), (1, 8, 8), ("a", "b", "c"), frontend.spec)
    expected = build_model(spec, frontend)
    assert network.spec == spec
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(network.eval()(images), expected.eval()(images))
    # The front end that is given stays as it is.
    other = safe_dnn(frontend, width=0.25)
    assert other.frontend is not frontend
    assert baseline((3, 40, 40), "resnet18", 7).eval()(torch.rand(2, 3, 40, 40)).shape == (2, 7)
    with pytest.raises(UserError, match=r"nothing\.h5 does not exist"):
        safe_dnn("nothing.h5")


def test_networks_are_made_of_modules_that_anyone_can_write():
    join, main = Join(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    modules = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1), join, main
    network = HybridNetwork(*modules, normalise=Normalise(3), preprocess=nn.Identity())
    images = torch.rand(2, 3, 6, 6)
    logits = network(images)
    assert logits.shape == (2, 6)
    assert torch.equal(network(images, "spiking")[:, 4:], torch.zeros(2, 2))
    assert torch.equal(network(images, "auxiliary")[:, 4:], logits[:, 4:])
    assert not network(images, "auxiliary")[:, :4].any()


def test_features_of_the_front_end_are_normalised_where_they_join(pipeline, tmp_path):
    frontend, _, _ = load_frontend(pipeline.frontend)
    spec = ModelSpec(
        Architecture(width=0.25, variations=Variations(feature_norm=True)),
        (1, 8, 8),
        tuple("0123456789"),
        frontend.spec,
    )
    network = build_model(spec, frontend)
    joined = []
    network.main.register_forward_pre_hook(lambda _, inputs: joined.append(inputs[0]))
    images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    network.train()(images)
    features = frontend(images)
    mean, variance = features.mean((0, 2, 3), keepdim=True), features.var((0, 2, 3), correction=0, keepdim=True)
    maps = features.shape[1]
    torch.testing.assert_close(joined[0][:, :maps], (features - mean) / (variance + 1e-5).sqrt(), rtol=1e-4, atol=1e-4)
    # Files keep the name that the normalisation had before it was a part of the join.
    with h5py.File(saved(network, tmp_path)) as file:
        assert {"feature_norm.weight", "feature_norm.running_mean"} <= set(file["state"])
        assert file["config/architecture"].attrs["feature_norm"]
        assert not any(name.startswith("join") for name in file["state"])
    states = [network.state_dict(), load_model(tmp_path / "network.h5").network.state_dict()]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    # A path that is silenced is silent behind the normalisation too.
    network.eval()(images, "auxiliary")
    assert not joined[1][:, :maps].any()
    with pytest.raises(UserError, match="`feature_norm`"):
        Architecture(variant="baseline", variations=Variations(feature_norm=True))


def test_a_network_behind_a_retina_is_trained_stored_and_attacked(contrast, tmp_path):
    path = tmp_path / "safe.h5"
    flags = ["--data", "digits", "--limit-train", "200", "--backbone", "fast_cnn", "--width", "0.25"]
    flags += ["--epochs", "4", "--batch-size", "16", "--learning-rate", "0.01"]
    assert train_command([*flags, "--frontend", str(contrast.frontend), "--out", str(path)]) == 0
    model, frontend = load_model(path), load_frontend(contrast.frontend).frontend
    images = load_images(DataSource(limit_test=40), "test", seed=0)
    x = images.images / 255
    assert torch.equal(model.network.frontend.retina.filters, frontend.retina.filters)
    with torch.no_grad():
        for stored, converted in zip(model.network.frontend.spikes(x), frontend.spikes(x), strict=True):
            # Training moves the affine part of the normalisation, and so a few neurons.
            assert (stored != converted).float().mean() < 0.2
    save_model(tmp_path / "again.h5", model, "a command", model.parent_digest)
    assert torch.equal(load_model(tmp_path / "again.h5")(x), model(x))
    # The attack goes through the retina: without an auxiliary path there is no other way.
    logits = model.network(x.requires_grad_(), "spiking")
    (gradient,) = torch.autograd.grad(cross_entropy(logits, images.labels), x)
    assert (gradient != 0).float().mean() > 0.5
    moved = fgsm(model.network, x.detach(), images.labels, 8)
    with torch.no_grad():
        losses = [cross_entropy(model.network(values), images.labels) for values in (x, moved)]
    # At chance, log 10 = 2.3, an attack would move nothing.
    assert losses[0] < 2
    assert losses[1] > losses[0] + 0.1


def test_files_of_before_there_were_retinas_are_read(pipeline, tmp_path, monkeypatch):
    model = load_model(pipeline.safe)

    def without_retina(spec):
        return {name: value for name, value in spec_tree(spec).items() if name != "retina_size"}

    with monkeypatch.context() as patched:
        patched.setattr("hybrid.storage.SCHEMA", SCHEMA._replace(name="hybrid/4"))
        patched.setattr("hybrid.storage.spec_tree", without_retina)
        save_model(tmp_path / "old.h5", model, "a command", "")
    old = load_model(tmp_path / "old.h5")
    assert old.spec == model.spec
    images = torch.rand(8, 1, 8, 8)
    assert torch.equal(old(images), model(images))


def naive_contrast(images, retina):
    """ON and OFF contrast of intensities in [0, 1], in float64; what it is rounded to is 1/1020."""
    steps = np.round(images.numpy().astype(float) * 1020)
    filters, reach = retina.filters.double().numpy(), retina.kernel_size // 2
    padded = np.pad(steps, ((0, 0), (0, 0), (reach, reach), (reach, reach)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, filters.shape[2:], axis=(2, 3))
    response = np.einsum("bcyxij,dcij->bdyx", windows, filters) + retina.offset.double().numpy()[:, None, None]
    return np.round(np.concatenate([response, -response], 1).clip(0, 1020)) / 1020


@pytest.fixture(scope="module")
def mu_behind_retina(contrast):
    """A trained mu, the front end whose retina it has, and its images."""
    data, frontend = (
        load_images(DataSource(limit_train=120), "train", seed=0),
        load_frontend(contrast.frontend).frontend,
    )
    architecture = Architecture("fast_cnn", "mu", width=0.25)
    before = copy.deepcopy(frontend.state_dict())
    model = train(data, architecture, Recipe(epochs=1, batch_size=16), frontend=frontend)
    assert all(torch.equal(value, before[name]) for name, value in frontend.state_dict().items())
    return model, frontend, data.images


def test_a_mu_reads_the_contrast_of_the_front_ends_retina_which_is_not_trained(mu_behind_retina, tmp_path):
    model, frontend, images = mu_behind_retina
    network, seen = model.network, []
    assert torch.equal(network.frontend.retina.filters, frontend.retina.filters)
    assert torch.equal(network.frontend.retina.offset, frontend.retina.offset)
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    assert any(name.startswith("frontend.layers.0.conv") for name in trained)
    assert not any("retina" in name for name in trained)
    x = images[:20] / 255
    handle = network.frontend.layers[0].conv.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits = model(x)
    handle.remove()
    expected = naive_contrast(x, frontend.retina)
    assert (expected > 0).mean() > 0.1
    np.testing.assert_allclose(seen[0].numpy(), expected, atol=1e-6)
    # The layers, and what is behind them, are told apart by what they read: only the auxiliary CNN sees the images.
    features = network.frontend.layers(torch.from_numpy(expected).float())
    joined = torch.cat((features, network.auxiliary(network.normalise(x))), 1)
    torch.testing.assert_close(network.main(joined), logits)
    save(model, tmp_path / "mu.h5")
    again = load_model(tmp_path / "mu.h5")
    assert again.spec == model.spec
    assert torch.equal(again.network.frontend.retina.filters, frontend.retina.filters)
    assert torch.equal(again(x), logits)


def test_a_lambda_of_a_mu_behind_a_retina_follows_its_activations(mu_behind_retina, contrast, tmp_path):
    model, _, images = mu_behind_retina
    save(model, tmp_path / "mu.h5")
    files = [str(tmp_path / "mu.h5"), "--frontend", str(contrast.frontend), "--out", str(tmp_path / "lambda.h5")]
    assert swap_command([*files, "--images", "120"]) == 0
    made = load_model(tmp_path / "lambda.h5")
    assert made.spec.architecture.variant == "lambda"
    layer, retina = model.network.frontend.layers[0], model.network.frontend.retina
    with torch.no_grad():
        seen = torch.from_numpy(naive_contrast(images / 255, retina)).float()
        drive = layer.norm(layer.conv(seen)).relu()
        top = drive.flatten().quantile(0.999)
        stepped = made.network.frontend(images / 255)
    activation = made.network.frontend.layers[0].activation
    torch.testing.assert_close(activation.heights.max(), top, rtol=1e-4, atol=0)
    torch.testing.assert_close(activation.edges[activation.edges.isfinite()].max(), top, rtol=1e-4, atol=0)
    assert torch.equal(made.network.frontend.retina.filters, retina.filters)
    assert torch.corrcoef(torch.stack((drive.flatten(), stepped.flatten())))[0, 1] > 0.8
    assert torch.equal(load_model(tmp_path / "lambda.h5")(images / 255), made(images / 255))


def test_the_auxiliary_cnn_of_a_trained_network_is_given_another_input(pipeline, tmp_path, capsys):
    torch.manual_seed(0)
    network = safe_dnn(pipeline.frontend, width=0.25, variations=Variations(auxiliary_input=Preprocess("average:3")))
    trained, made = saved(network, tmp_path), tmp_path / "trimmed.h5"
    digest = load_model(trained).digest
    assert swap_command([str(trained), "--auxiliary-input", "trimmed:3,3", "--out", str(made)]) == 0
    model = load_model(made)
    variations = replace(network.spec.architecture.variations, auxiliary_input=Preprocess("trimmed:3,3"))
    assert model.spec == replace(network.spec, architecture=replace(network.spec.architecture, variations=variations))
    assert model.recipe["trained_auxiliary_input"] == "average:3"
    assert model.parent_digest == digest == load_model(trained).digest
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    trimmed = Preprocess("trimmed:3,3").build()(images)
    network.eval()
    with torch.no_grad():
        spiking, auxiliary = network.frontend(images), network.auxiliary(network.normalise(trimmed))
        assert torch.equal(model(images), network.main(torch.cat((spiking, auxiliary), 1)))
        assert not torch.equal(model(images), network(images))
    # Back again, and to a network without one.
    assert swap_command([str(made), "--auxiliary-input", "average:3", "--out", str(tmp_path / "back.h5")]) == 0
    back = load_model(tmp_path / "back.h5")
    assert torch.equal(back(images), network(images))
    assert back.recipe["trained_auxiliary_input"] == "average:3"
    capsys.readouterr()
    out = str(tmp_path / "no.h5")
    alone = saved(safe_dnn(pipeline.frontend, width=0.25, auxiliary_maps=0), tmp_path)
    for file in (pipeline.baseline, alone):
        assert swap_command([str(file), "--auxiliary-input", "median:3", "--out", out]) == 2
        assert "has no auxiliary CNN" in capsys.readouterr().err
    both = ["--auxiliary-input", "none", "--frontend", str(pipeline.frontend)]
    for flags, said in (([], "give --frontend FILE or --auxiliary-input"), (both, "one exchange at a time")):
        assert swap_command([str(trained), *flags, "--out", out]) == 2
        assert said in capsys.readouterr().err


def test_another_auxiliary_input_is_that_of_a_retina_and_of_a_lambda(contrast, mu_behind_retina):
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    trimmed = Preprocess("trimmed:3,1")
    variations = Variations(auxiliary_source="retina", auxiliary_input=Preprocess("average:2"))
    network = safe_dnn(contrast.frontend, "fast_cnn", width=0.25, variations=variations).eval()
    before = network.state_dict()
    made = with_auxiliary_input(TrainedModel(network.spec, network, DataSource(), 0, {}, {}), trimmed)
    with torch.no_grad():
        seen = torch.from_numpy(naive_contrast(trimmed.build()(images), network.frontend.retina)).float()
        torch.testing.assert_close(made.network.auxiliary_features(images), network.auxiliary(seen))
    # The model that was given is as it was.
    assert network.spec.architecture.variations == variations
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    model, _, pixels = mu_behind_retina
    frontend, _, _ = load_frontend(contrast.frontend)
    stepped = swap(with_auxiliary_input(model, trimmed), frontend, pixels, "range")
    assert stepped.spec.architecture.variations.auxiliary_input == trimmed
    assert (stepped.recipe["swapped"], stepped.recipe["trained_auxiliary_input"]) == ("range", "none")
    usual = swap(model, frontend, pixels, "range")
    with torch.no_grad():
        expected = usual.network.auxiliary(usual.network.normalise(trimmed.build()(images)))
        assert torch.equal(stepped.network.auxiliary_features(images), expected)


def test_the_auxiliary_cnn_reads_the_contrast_of_the_retina(contrast, pipeline, tmp_path):
    variations = Variations(auxiliary_source="retina", auxiliary_input=Preprocess("average:2"))
    torch.manual_seed(0)
    images, seen = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)), []
    for variant in ("safe", "mu"):
        network = safe_dnn(contrast.frontend, "fast_cnn", width=0.25, variant=variant, variations=variations).eval()
        assert network.auxiliary[0].in_channels == 2
        network.auxiliary.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        with torch.no_grad():
            logits = network(images)
            averaged = Preprocess("average:2").build()(images)
            np.testing.assert_allclose(seen[-1].numpy(), naive_contrast(averaged, network.frontend.retina), atol=1e-6)
            # Images are not normalised on any path.
            network.normalise.mean.fill_(5.0)
            assert torch.equal(network(images), logits)
        again = load_model(saved(network, tmp_path))
        assert again.spec == network.spec
        assert again.network.auxiliary_behind_retina
        assert torch.equal(again(images), logits)
    with pytest.raises(UserError, match="`auxiliary_source` retina needs a `frontend` that has a retina"):
        safe_dnn(pipeline.frontend, "fast_cnn", variations=variations)
    with pytest.raises(UserError, match="`auxiliary_source` retina"):
        baseline((1, 8, 8), "fast_cnn", variations=variations)
    with pytest.raises(UserError, match="`auxiliary_source` lgn: unknown"):
        Variations(auxiliary_source="lgn")


def test_save_refuses_what_is_no_trained_model(tmp_path):
    with pytest.raises(UserError, match=r"`model` is of type str: give what hybrid.train or hybrid.load returned"):
        save("model.h5", tmp_path / "x.h5")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
