"""Table 1: counts against closed forms and the paper's numbers."""

import csv

import pytest
import torch
from torch import nn

from bridge.frontend import SpikingFrontEnd
from hybrid.backbones import PAPER_BACKBONES
from hybrid.complexity import complexity_rows, count_macs, count_parameters, main, preset_frontend
from hybrid.paper.numbers import paper_rows, paper_value


@pytest.fixture(scope="module")
def rows():
    return {(row["network"], row["image_size_pixels"]): row for row in complexity_rows()}


@pytest.mark.slow
@pytest.mark.parametrize("backbone", PAPER_BACKBONES)
def test_table_1_is_met(rows, backbone):
    baseline, safe = rows[f"baseline {backbone}", 224], rows[f"safe {backbone}", 224]
    assert round(baseline["params_M"], 2) == baseline["paper_params_M"]
    assert baseline["macs_G"] == pytest.approx(baseline["paper_macs_G"], rel=0.1)
    assert safe["params_M"] - baseline["params_M"] <= 0.07
    assert safe["macs_G"] - baseline["macs_G"] <= 0.04
    for quantity in ("params_M", "macs_G"):
        assert safe[f"added_{quantity}"] == pytest.approx(safe[quantity] - baseline[quantity], abs=1e-9)
        difference = safe[quantity] - safe[f"paper_{quantity}"]
        assert safe[f"difference_{quantity}"] == pytest.approx(difference, abs=1e-9)


@pytest.mark.parametrize(("size", "expected"), [(32, 0.0333), (224, 1.633)])
def test_the_front_ends_cost_is_the_closed_form(rows, size, expected):
    maps = (3, 32, 40, 56)
    weights = [9 * a * b for a, b in zip(maps, maps[1:], strict=False)]
    row = rows["front end alone, maps 32, 40, 56, stride 1", size]
    assert row["macs_G"] == pytest.approx(size**2 * sum(weights) / 1e9, rel=1e-12)
    assert row["macs_G"] == pytest.approx(expected, rel=1e-2)
    # Frozen weights count, and the affine part of each normalisation.
    assert row["params_M"] == pytest.approx((sum(weights) + 2 * sum(maps[1:])) / 1e6, rel=1e-12)


@pytest.mark.parametrize(("size", "kernel", "stride", "expected"), [(32, 5, 1, 0.00537), (224, 7, 4, 0.0516)])
def test_a_retina_counts(rows, size, kernel, stride, expected):
    # Every colour is filtered from all three, 7 x 7, at every pixel; the layer reads ON and OFF of each.
    filters, weights = 3 * 3 * 7 * 7, 32 * 6 * kernel * kernel
    row = rows[f"front end alone, retina, maps 32, stride {stride}", size]
    macs = size**2 * filters + (size // stride) ** 2 * weights
    assert row["macs_G"] == pytest.approx(macs / 1e9, rel=1e-12)
    assert row["macs_G"] == pytest.approx(expected, rel=1e-2)
    assert row["params_M"] == pytest.approx((filters + weights + 2 * 32) / 1e6, rel=1e-12)


def test_counts_of_simple_layers():
    network = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 16, 7))
    assert count_macs(network, (3, 8, 8)) == 4 * 4 * 5 * 3 * 9 + 5 * 16 * 7
    assert count_parameters(network) == 5 * 27 + 5 + 80 * 7 + 7


def test_presets_describe_front_ends_that_run():
    spec = preset_frontend("imagenet", 224)
    assert (spec.stride, spec.channels) == (4, (20, 28, 36))
    with torch.no_grad():
        assert SpikingFrontEnd.empty(spec)(torch.rand(1, 3, 224, 224)).shape == (1, 36, 56, 56)


def test_the_papers_numbers():
    assert paper_value(2, "safe mobilenet_v2", "awgn:20", "top1") == 87.88
    assert paper_value(1, "safe densenet121", "224x224", "macs_G") == 2.94
    assert paper_value(5, "baseline resnet101", "wald:3,0.3", "top1") == 85.12
    assert paper_value(2, "mu", "clean", "top1") is None
    first = {"model": "baseline mobilenet_v2", "condition": "224x224", "metric": "params_M", "value": 3.5}
    assert paper_rows(1)[0] == first
    assert [len(paper_rows(table)) for table in range(9)] == [0, 12, 84, 60, 12, 72, 24, 18, 0]


@pytest.mark.slow
def test_the_command_writes_table_and_figure(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "t.csv")]) == 0
    with open(tmp_path / "t.csv") as file:
        found = list(csv.DictReader(file))
    assert len(found) == 17
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert "element-wise" in shown
