"""The embedding, its silhouette score and its pictures."""

import csv
import json

import numpy as np
import pytest
import torch
from torch import nn

import hybrid.embedding
from hybrid.backbones import last_linear
from hybrid.conditions import Condition, Noise
from hybrid.embedding import Panel, draw_embedding, embed_models, embeddings, lay_out, main
from hybrid.evaluation import predict
from hybrid.storage import load_model
from snn.data import Images
from snn.runtime.errors import UserError


def naive_silhouette(points: np.ndarray, labels: np.ndarray) -> float:
    """Rousseeuw's definition, image by image: (b - a) / max(a, b)."""
    scores = []
    for i, point in enumerate(points):
        distance = np.array([np.sqrt(((point - other) ** 2).sum()) for other in points])
        own = [distance[j] for j in range(len(points)) if labels[j] == labels[i] and j != i]
        if not own:
            scores.append(0.0)
            continue
        a = np.mean(own)
        b = min(np.mean(distance[labels == other]) for other in set(labels.tolist()) - {labels[i]})
        scores.append((b - a) / max(a, b))
    return float(np.mean(scores))


@pytest.mark.parametrize("name", ["safe", "baseline"])
def test_the_last_layer_makes_the_logits_of_the_embedding(models, digits, name):
    network = models[name].network
    batches = list(Noise.parse("awgn:15").batches(digits.images, 3))
    embedding, logits = embeddings(network, batches, "cpu")
    assert embedding.shape == (60, last_linear(network.main).in_features)
    assert embedding.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(last_linear(network.main)(embedding), logits)
    torch.testing.assert_close(logits, predict(network, torch.cat(batches), "cpu"), rtol=1e-4, atol=1e-5)


def test_panels_hold_the_score_of_the_embedding_and_the_accuracy(models, digits):
    conditions = [Noise.parse(text) for text in ("clean", "awgn:12")]
    panels = embed_models(models, digits, conditions, 5, "cpu")
    assert [(p.model, p.condition) for p in panels] == [(m, str(c)) for m in models for c in conditions]
    for panel in panels:
        batches = list(Noise.parse(panel.condition).batches(digits.images, 5))
        embedding, _ = embeddings(models[panel.model].network, batches, "cpu")
        assert panel.silhouette == pytest.approx(naive_silhouette(embedding.double().numpy(), panel.labels), abs=1e-9)
        assert panel.silhouette != pytest.approx(naive_silhouette(panel.points, panel.labels), abs=1e-3)
        right = predict(models[panel.model].network, torch.cat(batches), "cpu").argmax(1) == digits.labels
        assert panel.accuracy == pytest.approx(100 * right.sum().item() / 60)
        assert panel.points.shape == (60, 2)
        assert np.isfinite(panel.points).all()
        assert np.array_equal(panel.labels, digits.labels.numpy())
    again = embed_models(models, digits, conditions, 5, "cpu")
    for first, second in zip(panels, again, strict=True):
        assert first.points.tobytes() == second.points.tobytes()
        assert first.silhouette == second.silhouette
    other = embed_models(models, digits, conditions, 6, "cpu")
    assert not np.array_equal(panels[1].points, other[1].points)
    assert panels[0].silhouette == other[0].silhouette


def test_points_keep_well_separated_groups_apart():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    embedding = torch.randn(40, 16, generator=generator) + 30 * labels[:, None]
    assert naive_silhouette(lay_out(embedding, 0), labels.numpy()) > 0.5


@pytest.mark.parametrize("shape", [(3, 8), (12, 1), (3, 1)])
def test_few_images_and_few_dimensions_are_laid_out(shape):
    points = lay_out(torch.rand(shape, generator=torch.Generator().manual_seed(0)), 0)
    assert points.shape == (shape[0], 2)
    assert np.isfinite(points).all()
    assert np.ptp(points) > 0


def test_a_dead_embedding_is_one_point():
    assert np.array_equal(lay_out(torch.ones(10, 4), 0), np.zeros((10, 2)))


def part(data: Images, chosen: torch.Tensor) -> Images:
    return data._replace(images=data.images[chosen], labels=data.labels[chosen])


@pytest.mark.parametrize(
    ("choose", "words"),
    [
        (lambda labels: labels == 3, ["all 6 test images are of class '3'", "2 classes", "add images"]),
        (lambda labels: torch.tensor([0, 1]), ["2 test images", "3 or more", "raise `limit_test`"]),
        (lambda labels: torch.stack([(labels == c).nonzero()[0, 0] for c in range(4)]), ["4 classes", "`limit_test`"]),
    ],
)
def test_too_few_images_or_classes_are_refused(models, digits, choose, words):
    with pytest.raises(UserError) as error:
        embed_models(models, part(digits, choose(digits.labels)), [Noise.parse("clean")], 0, "cpu")
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in ["digits", *words])


def test_what_is_no_noise_is_refused(models, digits):
    with pytest.raises(UserError, match="`conditions` fgsm:8: embeddings are drawn for noise only"):
        embed_models(models, digits, [Condition.parse("fgsm:8")], 0, "cpu")


def test_models_of_other_data_are_refused(models, digits):
    other = digits._replace(classes=tuple("abcdefghij"))
    with pytest.raises(UserError, match=r"model safe was trained on .*only models of one data set"):
        embed_models(models, other, [Noise.parse("clean")], 0, "cpu")


def test_the_command_writes_a_figure_and_a_table(pipeline, tmp_path, capsys):
    out, figures = tmp_path / "fig6.png", tmp_path / "fig6.json"
    arguments = [str(pipeline.safe), str(pipeline.baseline), "--noise", "clean", "awgn:20.0", "awgn:20"]
    arguments += ["--limit-test", "40", "--names", "SAFE [ours]", "conventional", "--out", str(out), "--seed", "4"]
    assert main([*arguments, "--json", str(figures)]) == 0
    printed = capsys.readouterr().out
    assert "SAFE [ours]" in printed
    assert "top-1 (%)" in printed
    assert out.read_bytes().startswith(b"\x89PNG")
    table = tmp_path / "fig6.csv"
    with open(table) as file:
        rows = list(csv.DictReader(file))
    names = ("SAFE [ours]", "conventional")
    assert [(row["model"], row["condition"]) for row in rows] == [(m, c) for m in names for c in ("clean", "awgn:20")]
    assert list(rows[0]) == [
        "model",
        "condition",
        "images",
        "silhouette",
        "accuracy_percent",
        "noise_seed",
        "training_seed",
        "model_digest",
    ]
    assert {(row["images"], row["noise_seed"], row["training_seed"]) for row in rows} == {("40", "4", "0")}
    assert [row["model_digest"] for row in rows[::2]] == [
        load_model(path).digest for path in (pipeline.safe, pipeline.baseline)
    ]
    written = json.loads(figures.read_text())["panels"]
    assert [{key: str(value) for key, value in row.items()} for row in written] == rows
    first, picture = table.read_bytes(), out.read_bytes()
    assert main(arguments) == 0
    assert (table.read_bytes(), out.read_bytes()) == (first, picture)


def test_without_figures_only_the_table_is_written(pipeline, tmp_path):
    arguments = [str(pipeline.safe), "--noise", "clean", "--limit-test", "30", "--no-figures"]
    assert main([*arguments, "--out", str(tmp_path / "x.png")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]
    # One model alone, named after its file.
    assert (tmp_path / "x.csv").read_text().splitlines()[1].startswith("safe,clean,30,")


def test_wrong_flags_end_in_one_line(pipeline, image_folder, tmp_path, capsys):
    def refused(*arguments: object, words: list[str]) -> None:
        out = [] if "--out" in arguments else ["--out", tmp_path / "x.png"]
        assert main([str(a) for a in (*arguments, *out)]) == 2
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1, error
        for word in words:
            assert word in error

    safe, both = pipeline.safe, (pipeline.safe, pipeline.baseline)
    refused(safe, "--noise", "fgsm:8", words=["--noise fgsm:8", "choose from clean, awgn, salt-pepper"])
    refused(safe, "--noise", "corruption:fog,3", words=["corruption:fog,3", "choose from clean, awgn"])
    refused(safe, "--noise", "awgn:x", words=["--noise awgn:x", "not a number"])
    refused(*both, "--names", "one", words=["--names one", "1 for 2 models", "one for each"])
    refused(*both, "--names", "a", "a", words=["--names a a", "different names"])
    refused(safe, "--out", tmp_path / "x.pdf", words=["x.pdf", ".png"])
    refused(safe, "--out", tmp_path / "no" / "x.png", words=["does not exist"])
    refused(safe, "--limit-test", "2", words=["2 test images", "3 or more", "--limit-test"])
    refused(safe, "--limit-test", "0", words=["--limit-test 0"])
    refused(safe, "--data", f"folder:{image_folder}", words=["model safe", "3 classes", "one data set"])
    refused(tmp_path / "no.h5", words=["no.h5", "does not exist"])
    assert not list(tmp_path.glob("x.*"))


@pytest.mark.parametrize("count", [2, 20, 45])
def test_the_legend_names_every_class_once(tmp_path, monkeypatch, count):
    drawn = []
    monkeypatch.setattr(hybrid.embedding, "save_figure", lambda figure, path: drawn.append(figure))
    labels = np.arange(60) % count
    points = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    panels = [Panel("a model_$1$", c, points, labels, 0.1, 50.0) for c in ("clean", "awgn:20", "awgn:15")]
    classes = tuple(f"_class {n}" for n in range(count))
    draw_embedding(panels, classes, tmp_path / "x.png")
    (figure,) = drawn
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(classes)
    colours = {tuple(handle.get_color()) for handle in legend.legend_handles}
    assert len(colours) == count
    box = legend.get_window_extent()
    assert box.y0 >= 0
    assert box.y1 <= figure.bbox.height
    assert box.x1 <= figure.bbox.width
    assert all(not box.overlaps(axes.get_tightbbox()) for axes in figure.axes)
    assert "not in the picture" in figure.get_supxlabel().replace("\n", " ")


def test_embeddings_leave_the_network_as_it_is(models, digits):
    network = models["safe"].network
    hooks = [len(module._forward_pre_hooks) for module in network.modules()]
    embeddings(network, [digits.images[:4].float() / 255], "cpu")
    assert hooks == [len(module._forward_pre_hooks) for module in network.modules()]
    assert isinstance(last_linear(network.main), nn.Linear)
