"""Embeddings: what is drawn, and its scores, against naive computations."""

import csv

import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score

from hybrid.backbones import last_linear
from hybrid.embedding import embed_models, embeddings, main
from hybrid.model import load_model
from hybrid.noise import parse_condition
from snn.data import DataSource, load_images


def naive_silhouette(values, labels):
    scores = []
    for i, label in enumerate(labels):
        distances = np.sqrt(((values - values[i]) ** 2).sum(1))
        own = (labels == label) & (np.arange(len(labels)) != i)
        near = min(distances[labels == other].mean() for other in set(labels) - {label})
        scores.append((near - distances[own].mean()) / max(near, distances[own].mean()))
    return np.mean(scores)


def test_panels_are_made_of_the_input_of_the_last_layer(pipeline):
    model, data = load_model(pipeline.safe), load_images(DataSource(limit_test=60), "test", seed=0)
    images = data.images / 255
    found, logits = embeddings(model.network, images, "cpu")
    with torch.no_grad():
        torch.testing.assert_close(last_linear(model.network.main)(found), logits)
        torch.testing.assert_close(model.network(images), logits)
    (panel,) = embed_models({"safe": model}, data, [parse_condition("clean")], seed=0)
    assert panel.silhouette == pytest.approx(naive_silhouette(found.double().numpy(), data.labels.numpy()), abs=1e-4)
    assert panel.silhouette == pytest.approx(silhouette_score(found.numpy(), data.labels.numpy()), abs=1e-6)
    assert panel.accuracy == pytest.approx(100 * (logits.argmax(1) == data.labels).float().mean().item())
    (again,) = embed_models({"safe": model}, data, [parse_condition("clean")], seed=0)
    np.testing.assert_array_equal(panel.points, again.points)
    assert panel.points.shape == (60, 2)


def test_the_command_draws_a_row_for_each_model(pipeline, tmp_path, capsys):
    out = tmp_path / "fig.png"
    given = [str(pipeline.safe), str(pipeline.baseline), "--limit-test", "50", "--out", str(out)]
    assert main([*given, "--noise", "clean", "awgn:12", "--names", "SAFE", "conventional"]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    with open(tmp_path / "fig.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["condition"]) for row in rows] == [
        (model, condition) for model in ("SAFE", "conventional") for condition in ("clean", "awgn:12")
    ]
    assert rows[0]["model_digest"] == load_model(pipeline.safe).digest
    assert rows[0]["silhouette"][:5] in capsys.readouterr().out


def test_impossible_panels_are_refused(pipeline, image_folder, tmp_path, capsys):
    out = ["--out", str(tmp_path / "fig.png")]
    for arguments, word in (
        ([str(pipeline.safe), *out, "--noise", "fgsm:8"], "noise only"),
        ([str(pipeline.safe), *out, "--limit-test", "2"], "--limit-test"),
        ([str(pipeline.safe), *out, "--names", "a", "b"], "--names"),
        ([str(pipeline.safe), *out, "--data", f"folder:{image_folder}"], "3 classes"),
        (out, "no model"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        assert word in capsys.readouterr().err
    assert not list(tmp_path.glob("fig*"))
