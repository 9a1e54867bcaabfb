import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import library, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from bridge.sau import SpecialActivationUnit, apply_steps, round_up
from snn.runtime.errors import UserError

EDGES, HEIGHTS = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.0, 5.0, 7.0, 12.0])
# Of three channels; the second has two steps only.
CHANNEL_EDGES = torch.tensor([[1.0, 2.0, 4.0], [-1.0, 3.0, torch.inf], [0.5, 0.75, 9.0]])
CHANNEL_HEIGHTS = torch.tensor([[0.0, 5.0, 7.0, 12.0], [1.0, 2.0, 3.0, 3.0], [0.0, 2.0, 1.0, 6.0]])


def indicator_sum(x, edges, heights):
    """f(x) = sum_i alpha_i chi_i(x), word by word, in float64."""
    bounds = [-torch.inf, *edges.tolist(), torch.inf]
    exact = x.double()
    return sum(
        alpha * ((exact >= low) & (exact < high)).double()
        for alpha, low, high in zip(heights.tolist(), bounds, bounds[1:], strict=False)
    )


def test_sau_is_a_right_continuous_step_function():
    x = torch.tensor([-9.0, 0.999, 1.0, 1.5, 2.0, 3.999, 4.0, 99.0, torch.inf, -torch.inf])
    assert SpecialActivationUnit(EDGES, HEIGHTS)(x).tolist() == [0, 0, 5, 5, 7, 7, 12, 12, 12, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@settings(deadline=None)
@given(values=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30))
def test_sau_equals_the_sum_of_indicator_functions(dtype, values):
    # 1.001 lies between two numbers of 16 bits: rounding it would move an edge.
    edges = torch.tensor([1.0, 1.001, 4.0])
    unit = SpecialActivationUnit(edges, HEIGHTS).to(dtype)
    x = torch.tensor([*values, 1.0, 1.0078125, 4.0]).to(dtype)
    result = unit(x)
    assert result.dtype == dtype
    assert torch.equal(result.double(), indicator_sum(x, unit.edges, HEIGHTS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last, "sliced"])
@pytest.mark.parametrize("size", [(3, 5), (70, 61)])
def test_every_memory_order_gives_the_same(dtype, layout, size):
    x = (torch.randn(4, 3, *size, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    given_x = x.repeat_interleave(2, dim=3)[..., ::2] if layout == "sliced" else x.to(memory_format=layout)
    shared = SpecialActivationUnit(EDGES, HEIGHTS)(given_x)
    assert torch.equal(shared.double(), indicator_sum(x, EDGES, HEIGHTS))
    channels = SpecialActivationUnit(CHANNEL_EDGES, CHANNEL_HEIGHTS)(given_x)
    for channel in range(3):
        expected = indicator_sum(x[:, channel], CHANNEL_EDGES[channel], CHANNEL_HEIGHTS[channel])
        assert torch.equal(channels[:, channel].double(), expected)
    if layout != "sliced":
        assert shared.stride() == channels.stride() == given_x.stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drives_of_other_channels_are_refused(dtype):
    unit = SpecialActivationUnit(CHANNEL_EDGES, CHANNEL_HEIGHTS)
    for shape in ((2, 4, 1, 1), (3,)):
        with pytest.raises(UserError, match="3 channels"):
            unit(torch.zeros(shape, dtype=dtype))


def test_empty_batches_and_what_is_not_a_number_pass():
    unit = SpecialActivationUnit(EDGES, HEIGHTS)
    assert unit(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    for size in (4, 300):
        empty = torch.empty(0, 3, size, size)
        assert SpecialActivationUnit(CHANNEL_EDGES, CHANNEL_HEIGHTS)(empty).shape == empty.shape
    for dtype in (torch.float32, torch.bfloat16):
        assert unit(torch.tensor([torch.nan, 3.0], dtype=dtype)).isnan().tolist() == [True, False]


@given(st.floats(-1e4, 1e4, width=32))
def test_rounding_up_keeps_every_comparison(value):
    edge = torch.tensor([value])
    low = round_up(edge, torch.bfloat16)
    assert low.float() >= edge
    assert torch.nextafter(low, torch.tensor([-torch.inf], dtype=torch.bfloat16)).float() < edge


def test_sau_gradient_is_the_slope_through_step_midpoints():
    x = torch.tensor([-0.6, -0.4, 1.0, 3.0, 3.9, 4.0, 50.0], requires_grad=True)
    SpecialActivationUnit(EDGES, HEIGHTS)(x).sum().backward()
    slope = (7.0 - 5.0) / (3.0 - 1.5)
    # It acts from half a mean step (0.75) below the first edge up to the last edge.
    assert x.grad.tolist() == pytest.approx([0, 0, slope, slope, slope, 0, 0])


def test_each_channel_has_the_gradient_of_its_own_steps():
    unit = SpecialActivationUnit(CHANNEL_EDGES, CHANNEL_HEIGHTS)
    x = torch.linspace(-4, 10, 57).expand(1, 3, 57).clone().requires_grad_()
    weights = torch.arange(1.0, 58)
    (unit(x) * weights).sum().backward()
    for channel, (edges, heights) in enumerate(zip(CHANNEL_EDGES, CHANNEL_HEIGHTS, strict=True)):
        n = int(edges.isfinite().sum())
        alone = SpecialActivationUnit(edges[:n], heights[: n + 1])
        y = x[0, channel].detach().requires_grad_()
        (alone(y) * weights).sum().backward()
        assert torch.equal(x.grad[0, channel], y.grad)


def test_sau_edges_and_heights_are_constants_of_the_module():
    unit = SpecialActivationUnit(EDGES, HEIGHTS)
    assert not list(unit.parameters())
    assert set(unit.state_dict()) == {"edges", "heights"}
    other = SpecialActivationUnit(EDGES + 1, HEIGHTS)
    assert other.slope == unit.slope
    assert other.low != unit.low
    other.load_state_dict(unit.state_dict())
    x = torch.linspace(0, 5, 30)
    assert torch.equal(other(x), unit(x))
    assert other.low == unit.low
    cast = copy.deepcopy(unit).to(torch.bfloat16)
    assert all(torch.equal(cast.state_dict()[name], unit.state_dict()[name]) for name in ("edges", "heights"))
    assert cast.edges.dtype == torch.float32


@pytest.mark.parametrize(
    ("edges", "heights"),
    [
        (EDGES.flip(0), HEIGHTS),
        (EDGES, HEIGHTS[:3]),
        (torch.tensor([1.0, torch.nan]), HEIGHTS[:3]),
        (torch.tensor([torch.inf]), HEIGHTS[:2]),
        (CHANNEL_EDGES, HEIGHTS),
        (torch.empty(0), HEIGHTS[:1]),
    ],
)
def test_impossible_steps_are_refused(edges, heights):
    with pytest.raises(UserError, match="SAU"):
        SpecialActivationUnit(edges, heights)


@pytest.mark.parametrize("edges", ["shared", "of channels"])
def test_compiled_modules_give_the_same_values_and_gradients(edges):
    steps = (EDGES, HEIGHTS) if edges == "shared" else (CHANNEL_EDGES, CHANNEL_HEIGHTS)
    module = nn.Sequential(nn.Conv2d(2, 3, 3), SpecialActivationUnit(*steps))
    nn.init.normal_(module[0].weight, generator=torch.Generator().manual_seed(2))
    # The whole graph without a break; the backend that compiles to machine code needs a C++ compiler.
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = torch.randn(5, 2, 9, 9, generator=torch.Generator().manual_seed(3))
    results = []
    for function in (module, compiled):
        module.zero_grad()
        y = function(x)
        y.sum().backward()
        results.append((y.detach(), module[0].weight.grad.clone()))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
    assert results[0][1].abs().sum() > 0


def test_the_operator_meets_pytorchs_own_checks():
    unit = SpecialActivationUnit(EDGES, HEIGHTS)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    library.opcheck(apply_steps, (x, *unit.buffers()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_tensor_is_larger_than_the_input(dtype):
    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            sizes.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    x = torch.randn(8, 3, 20, 20).to(dtype)
    for steps in ((EDGES, HEIGHTS), (CHANNEL_EDGES, CHANNEL_HEIGHTS)):
        unit = SpecialActivationUnit(*steps)
        with Watch():
            # What the operator does, which is hidden in a call of the operator.
            apply_steps._init_fn(x, *unit.buffers())
        assert max(sizes) == x.numel()


def _train_in_parallel(rank: int, folder) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), SpecialActivationUnit(EDGES, HEIGHTS), nn.Linear(6, 1))
    parallel = DistributedDataParallel(module)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(5))
    parallel(x[rank * 4 : rank * 4 + 4]).mean().backward()
    torch.save((module[0].weight.grad, module[1].edges), folder / f"{rank}.pt")
    # No process leaves while another may still talk to it.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_gradients_are_shared_between_processes(tmp_path):
    torch.multiprocessing.spawn(_train_in_parallel, (tmp_path,), nprocs=2)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), SpecialActivationUnit(EDGES, HEIGHTS), nn.Linear(6, 1))
    module(torch.randn(8, 4, generator=torch.Generator().manual_seed(5))).mean().backward()
    for rank in range(2):
        gradient, edges = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(gradient, module[0].weight.grad)
        assert torch.equal(edges, EDGES)
