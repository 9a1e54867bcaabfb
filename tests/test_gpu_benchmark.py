"""The benchmark for GPUs: counts of work against loops, kept results; and that its code runs on a CPU."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.engine_costs import (
    H100,
    Bound,
    Ceilings,
    Work,
    bound,
    count_work,
    encode_work,
    hold_work,
    pairs_work,
    simulate_work,
    synapses,
    update_kernels,
)
from benchmarks.engine_plan import plan_pass
from benchmarks.gpu import WORK as WORK_OF_PARTS
from benchmarks.gpu import main as measure_gpu
from benchmarks.gpu_report import (
    PASS,
    PLACES,
    WORK,
    draw_roofline,
    measured_ceilings,
    planned_kernels,
    planned_pass,
    print_part,
    roofline,
)
from benchmarks.gpu_setting import Setting
from benchmarks.jobs import Job
from benchmarks.norse_loop import NorseLoop, compiled
from benchmarks.operations import OperationCounter
from benchmarks.safe_dnn_stdp import make_layer
from snn.engines.gpu.tiles import digits
from snn.geometry import ConvGeometry
from snn.learning import PRESETS
from snn.parameters import LayerParameters
from snn.runtime.outputs import save_figure

ROOT = Path(__file__).resolve().parents[1]
GEOMETRIES = [
    ConvGeometry.of(LayerParameters(4, 3, stride=2, padding=1), (3, 7, 6)),
    ConvGeometry.of(LayerParameters(20, 5, stride=1, padding=2), (2, 4, 9)),
    ConvGeometry.of(LayerParameters(3, 3, stride=3, padding=0), (5, 8, 7)),
]


def existing_synapses(geometry: ConvGeometry):
    """(place, synapse) of one channel that do not fall on padding, by loops."""
    for y, x, ky, kx, c in np.ndindex(
        geometry.height_out, geometry.width_out, geometry.kernel_size, geometry.kernel_size, geometry.channels_in
    ):
        row, column = y * geometry.stride + ky - geometry.padding, x * geometry.stride + kx - geometry.padding
        if 0 <= row < geometry.height and 0 <= column < geometry.width:
            yield y * geometry.width_out + x, (ky, kx, c)


def words(steps: int, images: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Spikes of a sheet (C, H, W) as the engine keeps them."""
    channels, height, width = shape
    return np.zeros((images, math.ceil(steps / 32), height, width, channels), np.int32)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_synapses_are_those_that_loops_find(geometry):
    found = list(existing_synapses(geometry))
    assert synapses(geometry) == len(found)
    # Every channel spikes once at each place of each of two images: a pairing with each existing synapse.
    spikes = geometry.places_out * geometry.channels_out
    work = pairs_work(geometry, 20, 2, spikes)
    pairings = 2 * geometry.channels_out * len(found)
    twice = pairs_work(geometry, 20, 2, spikes, tables=2)
    assert twice.int32 == 2 * work.int32
    # One word of spikes: the one in which the presynaptic spike is sought.
    assert work.int32 == pairings * (34 + 14)


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize(("steps", "images"), [(20, 3), (70, 1)])
def test_products_and_bytes_are_those_of_arrays(geometry, steps, images):
    columns, fan_in = (
        next(n for n in (16, 32, 64) if n >= geometry.channels_out),
        geometry.channels_in * geometry.kernel_size**2,
    )
    chunk = 64 if columns > 32 and fan_in > 32 else 32
    rows, planes = chunk * math.ceil(fan_in / chunk), digits(fan_in)
    bits = torch.zeros(steps * images * geometry.places_out, rows)
    with FlopCounterMode(display=False) as counter:
        for _ in range(planes):
            bits @ torch.zeros(rows, columns)
    work = simulate_work(geometry, steps, images, inhibition=True)
    assert work.int8 == counter.get_total_flops()
    shape_in = (geometry.channels_in, geometry.height, geometry.width)
    pulses, spikes = words(steps, images, shape_in), words(steps, images, geometry.shape_out)
    around = ((0, 0), (0, 0), (geometry.padding,) * 2, (geometry.padding,) * 2, (0, 0))
    assert work.bytes == np.pad(pulses, around).nbytes + spikes.nbytes + planes * rows * columns
    # A neuron's step has a float operation more with inhibition.
    free = simulate_work(geometry, steps, images, inhibition=False)
    assert work.float32 - free.float32 == len(bits) * columns
    assert hold_work(shape_in, steps, images, pulse=6).bytes == 2 * pulses.nbytes
    inputs = images * math.prod(shape_in)
    assert encode_work(shape_in, steps, images).bytes == inputs + pulses.nbytes
    assert count_work(shape_in, steps, images).bytes == 2 * inputs + pulses.nbytes


@pytest.mark.parametrize("fan_in", [9, 27, 288, 513, 515, 4000, 140_000])
def test_digits_hold_the_largest_weight(fan_in):
    largest, needed = 2**24 // fan_in, 0
    while largest:
        digit = (largest + 128) % 256 - 128
        largest, needed = (largest - digit) // 256, needed + 1
    assert digits(fan_in) == needed


def test_the_busiest_resource_bounds():
    most = Ceilings(int8=100.0, int32=10.0, float32=20.0, bytes=5.0)
    assert bound(Work(int8=300.0, int32=20.0, bytes=10.0), most) == Bound("int8", 3.0)
    assert bound(Work(int8=100.0, int32=20.0, bytes=15.0), most) == Bound("memory", 3.0)
    assert bound(Work(int32=30.0, bytes=10.0), most) == Bound("int32 and float32", 3.0)
    # Floats take the slots of integers, too.
    assert bound(Work(int32=30.0, float32=50.0), most) == Bound("int32 and float32", 4.0)
    row = {"case": "c", "layer": 1, "call": "simulate", "way": "engine gpu"}
    row["work"] = {"hold": vars(Work(bytes=10.0)), "simulate": vars(Work(int8=200.0, bytes=5.0))}
    row["kernels"] = {"hold": {"seconds": 8.0}, "simulate_0d1d": {"seconds": 2.5}, "copy": {"seconds": 9.0}}
    points = roofline([row, row | {"way": "engine norse"}], most)
    found = [(point["kernel"], point["least_s"], point["measured_s"], point["share"]) for point in points]
    assert found == [("hold", 2.0, 8.0, 0.25), ("simulate", 2.0, 2.5, 0.8)]


def test_an_update_simulates_the_layers_below_and_then_its_own():
    kernels = update_kernels(PRESETS["cifar10"], (3, 32, 32), 2, 1800.0)
    assert [(kernel.name, kernel.layer) for kernel in kernels] == [
        *(("encode", 0), ("hold", 1), ("simulate", 1), ("hold", 2), ("simulate", 2)),
        *(("count spikes", 1), ("count pairs", 2), ("count spikes", 2)),
    ]


def test_operations_that_compute_are_counted():
    values, counter = torch.arange(6.0), OperationCounter()
    with counter:
        # Four: a product, a sum, a sum of a view, and a number that is waited for; views are none.
        doubled = (values * 2).reshape(2, 3).T + 1
        doubled[0].sum().item()
        with counter.paused():
            doubled.sum()
    doubled.sum()
    assert counter.count == 4


def test_the_compiled_loop_counts_as_the_plain_one():
    generator = torch.Generator().manual_seed(0)
    weights = (torch.rand(5, 3, 3, 3, generator=generator), torch.rand(4, 5, 3, 3, generator=generator))
    layers = [make_layer(weight, gain, 1, 2.5) for weight, gain in zip(weights, (25.0, 40.0), strict=True)]
    spikes = (torch.rand(30, 2, 3, 6, 5, generator=generator) < 0.1).float()
    loop = NorseLoop(layers)
    counts = loop(spikes)
    assert counts.sum() > 20
    assert torch.equal(compiled(loop, "eager")(spikes), counts)


ROUNDS = """
import torch
from benchmarks.ceiling_kernels import run_rounds

values = torch.arange(2048, dtype=torch.int32) * 977 - 10**6
others = values.flip(0) * 31
whole, floats = values.clone(), values.float()
for _ in range(32):
    whole = (whole + others) ^ 0x55
    floats = (floats + others.float()) + 1.5
assert torch.equal(run_rounds(values, others, 32), whole)
assert torch.equal(run_rounds(values.float(), others.float(), 32), floats)
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_elementwise_kernels_compute_what_their_rounds_say():
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", ROUNDS], env=environment, cwd=ROOT, check=True)


TESTS = """
import pytest

@pytest.mark.gpu
def test_right(): pass

@pytest.mark.gpu
def test_wrong(): assert 6 * 7 == 41

def test_of_the_cpu(): raise AssertionError
"""


@pytest.mark.slow
def test_parts_are_kept_and_those_that_failed_are_measured_again(tmp_path, capsys):
    tests, out = tmp_path / "test_two.py", tmp_path / "gpu.json"
    tests.write_text(TESTS)
    command = ["--tiny", "--tests", str(tests), "--out", str(out)]
    assert measure_gpu([*command, "--parts", "ceilings", "tests"]) == 0
    first = json.loads(out.read_text())
    assert [row["resource"] for row in first["parts"]["ceilings"]["rows"]][:2] == ["bytes", "int8"]
    assert all(row["per_second"] > 0 for row in first["parts"]["ceilings"]["rows"])
    found = {row["test"].split("::")[1]: row["outcome"] for row in first["parts"]["tests"]["rows"]}
    assert found == {"test_right": "passed", "test_wrong": "failed"}
    assert "assert (6 * 7) == 41" in first["parts"]["tests"]["rows"][1]["traceback"]
    assert "1 passed, 1 failed" in capsys.readouterr().out
    tests.write_text(TESTS.replace("41", "42"))
    assert measure_gpu([*command, "--parts", "tests", "ceilings"]) == 0
    again = json.loads(out.read_text())
    assert {row["outcome"] for row in again["parts"]["tests"]["rows"]} == {"passed"}
    assert again["parts"]["ceilings"] == first["parts"]["ceilings"]
    assert measure_gpu([*command, "--data", "cifar10", "--parts", "tests"]) == 2
    assert "--out" in capsys.readouterr().err
    assert json.loads(out.read_text()) == again


@pytest.mark.slow
def test_the_code_runs_on_a_cpu(tmp_path):
    found: dict[str, list[dict]] = {name: [] for name in WORK_OF_PARTS}
    for name, work in WORK_OF_PARTS.items():
        work(Job(found[name].append, 600.0), Setting("cpu", tiny=True, data=None))
        assert [row["traceback"] for row in found[name] if "traceback" in row] == []
        print_part(name, {"rows": found[name], "seconds": 1.0, "problem": ""})
    assert {row["agrees"] for row in found["engine"] if "agrees" in row} == {True}
    assert {row["note"] for row in found["engine"] if "note" in row} == {"needs CUDA"}
    *layers, expected, whole = found["pass"]
    updates = sum(row["start_s"] + row["finish_s"] + 3125 * row["update_s"] for row in layers)
    assert expected["seconds"] == pytest.approx(updates)
    assert whole["pass"] == "in full, 48 images"
    most = measured_ceilings(found["ceilings"])
    points = roofline(found["engine"], most)
    assert {point["kernel"] for point in points} == {"encode", "hold", "simulate", "count pairs", "count spikes"}
    save_figure(draw_roofline(points, found["ceilings"]), tmp_path / "roofline.png")
    assert (tmp_path / "roofline.png").stat().st_size > 20_000


def test_what_the_page_says_is_what_is_computed():
    plans = plan_pass("cifar10", H100)
    page = (ROOT / "benchmarks" / "README.md").read_text()
    for columns, rows in ((PLACES | WORK, planned_kernels(plans, H100)), (PASS, planned_pass(plans))):
        lines = page.split(f"| {' | '.join(columns)} |")[1].splitlines()[2:]
        shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: len(rows)]]
        computed = [[column(row) for column in columns.values()] for row in rows]
        # PyTorch's operations are others in each of its versions.
        exact = list(columns).index("operations") if "operations" in columns else len(columns)
        assert [cells[:exact] for cells in shown] == [cells[:exact] for cells in computed]
        assert lines[len(rows)] == ""


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--plan", "--out", "gpu.json"], "--out would be ignored"),
        (["--tiny", "--parts"], "--parts"),
        (["--tiny", "--data", "photos"], "--data photos"),
        (["--tiny", "--seconds", "0"], "--seconds 0"),
    ],
)
def test_flags_that_mean_nothing_are_refused(capsys, flags, named):
    assert measure_gpu(flags) == 2
    assert named in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures on this GPU")
def test_without_a_gpu_the_command_says_what_can_be_done(capsys):
    assert measure_gpu([]) == 2
    assert "--plan" in capsys.readouterr().err
