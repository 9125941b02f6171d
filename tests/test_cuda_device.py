"""The operators on a real GPU: streams, devices, graphs, compilation, huge batches, bit equality.

What the kernels compute is decided elsewhere, by the operator tests on a CPU that emulates them;
here is what only hardware, driver and torch's CUDA library can show. Two GPUs are needed where a
test says so.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from layouts import LAYOUTS
from op_calls import GEOMETRY_CASES, Case
from torch import Tensor

from erd_cuda.benchmarks.problems import make_problem

pytestmark = pytest.mark.cuda

needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")

each_case = pytest.mark.parametrize("case", GEOMETRY_CASES, ids=str)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def on_gpu(tensors: dict[str, Tensor], device: str = "cuda") -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in tensors.items()}


def inputs_of(case: Case, count: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return case.tensors(make_problem((count,), model=case.model), dtype)


def derivatives(case: Case, tensors: dict[str, Tensor]) -> list[Tensor]:
    """Result, gradients, and gradients of second order."""
    inputs = {name: value.detach().requires_grad_() for name, value in tensors.items()}
    leaves = list(inputs.values())
    output = case(inputs)
    first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
    # Each gradient counts the same, whatever its unit.
    total = torch.stack([(g / g.detach().norm()).sum() for g in first]).sum()
    second = torch.autograd.grad(total, leaves, allow_unused=True)
    return [output, *first, *(torch.zeros(1) if g is None else g for g in second)]


def relative(got: Tensor, expected: Tensor) -> float:
    got, expected = (value.detach().double().cpu() for value in (got, expected))
    return float((got - expected).norm() / expected.norm().clamp(min=1e-30))


# ---- numbers -------------------------------------------------------------------------------------


@each_case
@pytest.mark.parametrize("count", [1, 63, 64, 65, 1000])
def test_float64_is_the_cpus(case: Case, count: int) -> None:
    """Both run the same formulas: only fused multiply-adds and the order of loads differ."""
    tensors = inputs_of(case, count, torch.float64)
    if "confidence" in tensors:
        tensors["confidence"].clamp_(min=0.25)
    expected = derivatives(case, tensors)
    for got, want in zip(derivatives(case, on_gpu(tensors)), expected, strict=True):
        assert relative(got, want) < 1e-11


@each_case
def test_float32_is_as_precise_as_the_cpu(case: Case) -> None:
    tensors = inputs_of(case, 2000)
    exact = case({name: value.double() for name, value in tensors.items()})
    on_cpu = relative(case(tensors), exact)
    assert relative(case(on_gpu(tensors)), exact) <= 2 * on_cpu


@each_dtype
@each_case
def test_strides_and_alignment_change_no_bit(case: Case, dtype: torch.dtype) -> None:
    tensors = inputs_of(case, 300, dtype)
    expected = case(on_gpu(tensors))
    for layout in LAYOUTS.values():
        for name in case.inputs:
            # Moving keeps no gaps: the GPU's own copy is laid out anew.
            moved = on_gpu(tensors)
            wide = torch.full(
                (moved[name].numel() * 8 + 8,), float("nan"), dtype=dtype, device="cuda"
            )
            pattern = layout(torch.empty_like(tensors[name]))
            view = wide.as_strided(pattern.shape, pattern.stride(), pattern.storage_offset())
            moved[name] = view.copy_(moved[name])
            assert torch.equal(case(moved), expected), (layout.__name__, name)


@each_dtype
@each_case
def test_every_run_and_every_batch_size_gives_the_same_bits(case: Case, dtype: torch.dtype) -> None:
    tensors = on_gpu(inputs_of(case, 5000, dtype))
    expected = case(tensors)
    assert torch.equal(case(tensors), expected)
    for start, size in ((0, 1), (17, 64), (100, 65), (4000, 1000)):
        part = {
            name: value if name == "std" else value[start : start + size]
            for name, value in tensors.items()
        }
        assert torch.equal(case(part), expected[start : start + size])


@each_case
def test_one_bad_sample_touches_no_other(case: Case) -> None:
    tensors = on_gpu(inputs_of(case, 130))
    expected = case(tensors)
    tensors["pose"][70] = float("nan")
    others = torch.arange(130, device="cuda") != 70
    assert torch.equal(case(tensors)[others], expected[others])


@each_case
def test_empty_batch(case: Case) -> None:
    tensors = on_gpu(inputs_of(case, 0))
    for value in derivatives(case, tensors)[:1]:
        assert value.is_cuda and value.shape[0] == 0


# ---- streams, devices, graphs --------------------------------------------------------------------


@each_case
def test_kernels_run_on_the_current_stream(case: Case) -> None:
    """The side stream is kept busy before its input is written: a kernel on any other stream would
    read the zeros that are still there.
    """
    tensors = on_gpu(inputs_of(case, 4096))
    expected = case(tensors)
    late = {name: torch.zeros_like(value) for name, value in tensors.items()}
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for name, value in tensors.items():
            late[name].copy_(value)
        got = case(late)
    stream.synchronize()
    assert torch.equal(got, expected)


@each_case
def test_a_call_does_not_wait_for_the_gpu(case: Case) -> None:
    inputs = {name: value.requires_grad_() for name, value in on_gpu(inputs_of(case, 64)).items()}
    torch.autograd.grad(case(inputs).sum(), list(inputs.values()))  # loads the kernels
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(500_000_000)
        done = torch.cuda.Event()
        done.record()
        output = case(inputs)
        torch.autograd.grad(output.sum(), list(inputs.values()))
        still_asleep = not done.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert still_asleep, "the call came back after the work that lay before it"


@needs_two_gpus
@each_case
def test_the_tensors_device_counts_not_the_current_one(case: Case) -> None:
    tensors = inputs_of(case, 100)
    expected = case(on_gpu(tensors, "cuda:0"))
    assert torch.cuda.current_device() == 0
    got = case(on_gpu(tensors, "cuda:1"))
    assert got.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    assert torch.equal(got.cpu(), expected.cpu())


@needs_two_gpus
def test_inputs_on_two_gpus_are_refused() -> None:
    tensors = on_gpu(inputs_of(Case("residual", "pinhole"), 4), "cuda:0")
    tensors["root"] = tensors["root"].to("cuda:1")
    with pytest.raises(ValueError, match=r"root.*cuda:1.*cuda:0"):
        Case("residual", "pinhole")(tensors)


@each_case
def test_graph_of_forward_and_backward(case: Case) -> None:
    """Captured once, replayed with new numbers in the same memory."""
    tensors = on_gpu(inputs_of(case, 200))
    static = {name: value.clone().requires_grad_() for name, value in tensors.items()}

    def step() -> tuple[Tensor, ...]:
        output = case(static)
        return (output, *torch.autograd.grad(output.square().sum(), list(static.values())))

    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        step()
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()

    moved = tensors | {"pose": tensors["pose"] * 0.9}
    with torch.no_grad():
        static["pose"].copy_(moved["pose"])
    graph.replay()
    replayed = [value.detach().clone() for value in captured]
    for got, want in zip(replayed, step(), strict=True):
        assert torch.equal(got, want)


# A few cases: each is compiled anew, which takes seconds.
@pytest.mark.timeout(150)
@pytest.mark.parametrize(
    "case",
    [Case("residual", "pinhole"), Case("project", "opencv"), Case("solve_root", "h36m")],
    ids=str,
)
def test_compiled_with_cuda_graphs(case: Case) -> None:
    torch._dynamo.reset()
    tensors = on_gpu(inputs_of(case, 100))
    names = list(tensors)

    def function(*values: Tensor) -> Tensor:
        return case(dict(zip(names, values, strict=True))) * 2.0

    compiled = torch.compile(function, fullgraph=True, mode="reduce-overhead")
    expected = function(*tensors.values())
    for _ in range(3):
        torch.compiler.cudagraph_mark_step_begin()
        got = compiled(*tensors.values()).clone()
        assert torch.allclose(got, expected, rtol=1e-6)


# ---- sizes ---------------------------------------------------------------------------------------


def needs_memory(gigabytes: float) -> None:
    free, _ = torch.cuda.mem_get_info()
    if free < gigabytes * 2**30:
        pytest.skip(f"needs {gigabytes:.0f} GB of free GPU memory, there are {free / 2**30:.0f}")


def check_both_ends(function: Callable[..., Tensor], shared: list[Tensor], pose: Tensor) -> None:
    """The first and the last samples of a huge batch are what they are on their own."""
    output = function(pose, *shared)
    for part in (slice(0, 1000), slice(-1000, None)):
        assert torch.equal(output[part], function(pose[part].clone(), *shared))


def test_more_elements_than_32_bits_count() -> None:
    """The pose's elements, 51 a sample, pass 2^31: a tensor of 8.6 GB."""
    count = 2**31 // 51 + 100_000
    needs_memory(count * (51 + 34 + 8) * 4 / 2**30)
    pose = torch.empty(count, 17, 3, device="cuda")
    pose.normal_(std=300.0)
    root = torch.tensor([0.0, 0.0, 4000.0], device="cuda")
    camera = torch.tensor([1145.0, 1143.0, 512.0, 515.0], device="cuda")
    case = Case("project", "pinhole")
    check_both_ends(
        lambda pose, root, intrinsics: case({"pose": pose, "root": root, "intrinsics": intrinsics}),
        [root, camera],
        pose,
    )


def test_more_samples_than_32_bits_count() -> None:
    """One joint each: the number of samples itself passes 2^31."""
    count = 2**31 + 100_000
    needs_memory(count * (3 + 2 + 1) * 4 / 2**30)
    pose = torch.empty(count, 1, 3, device="cuda")
    pose.normal_(std=300.0)
    root = torch.tensor([0.0, 0.0, 4000.0], device="cuda")
    camera = torch.tensor([1145.0, 1143.0, 512.0, 515.0], device="cuda")
    case = Case("project", "pinhole")
    check_both_ends(
        lambda pose, root, intrinsics: case({"pose": pose, "root": root, "intrinsics": intrinsics}),
        [root, camera],
        pose,
    )
