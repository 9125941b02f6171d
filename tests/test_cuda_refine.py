"""The refiner on a real GPU: every kernel's numbers, streams, graphs, compilation, huge batches.

The emulated kernels have the same tests of their arithmetic in more sizes; here the hardware's
tensor cores, its memory and torch's CUDA machinery have their say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from kernel_checks import LIMITS, check_residual_limit, increment_error
from layouts import LAYOUTS
from op_calls import REFINE_CASES, Case, small_weights
from precision import relative_error
from torch import Tensor

import erd_cuda
from erd_cuda import ERD, PackedRegressors
from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.bundled_model import MODEL, errors_in_mm, reference
from erd_cuda.benchmarks.problems import make_network, make_problem, pack
from erd_cuda.benchmarks.refine_kernels import KERNELS, arrange, refine_kernel, runs_here

pytestmark = pytest.mark.cuda

DEVICE = "cuda"
PRECISIONS = ("auto", "fp32", "fp16", "bf16")
#: Mean distance of joints from float64's on the bundled model, mm.
MILLIMETRES = {"fp32": 2e-3, "auto": 2e-3, "fp16": 0.05, "bf16": 0.4}

each_kernel = pytest.mark.parametrize(("block", "precision", "variant"), KERNELS)
each_precision = pytest.mark.parametrize("precision", PRECISIONS)


def tensors(count: int, seed: int = 0, joints: int = 17) -> list[Tensor]:
    """Keypoints, pose, root and one shared camera."""
    problem = make_problem((count,), joints, seed=seed, camera_batch=())
    names = ("keypoints", "pose", "root", "intrinsics")
    return [problem.tensor(name, torch.float32, DEVICE) for name in names]


def weights_of(block: str = "linear") -> PackedRegressors:
    return pack(make_network(block=block), torch.float32, DEVICE)


def kernel(block: str, precision: str, variant: str) -> Callable[..., Tensor]:
    if not runs_here(variant, DEVICE):
        pytest.skip("this GPU has no such instructions")
    found = refine_kernel(weights_of(block), precision, variant)
    assert found is not None
    return found


# ---- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 7, 16, 33, 300])
@each_kernel
def test_every_kernel_against_float64(block: str, precision: str, variant: str, count: int) -> None:
    kernel(block, precision, variant)
    network = make_network(block=block)
    problem = make_problem((count,))
    error = increment_error(problem, network, precision, variant, device=DEVICE)
    assert error < LIMITS[precision]


@pytest.mark.parametrize(
    ("joints", "width", "model", "root_mode", "features"),
    [
        (1, 16, "pinhole", "given", "residual"),
        (14, 64, "opencv", "solve", "init2d"),
        (19, 48, "h36m", "solve_each_stage", "residual"),
        (32, 512, "opencv", "solve", "proj2d"),
        (40, 256, "pinhole", "solve_each_stage", "concat"),
        (17, 256, "pinhole", "solve", "residual+pose"),
        (40, 128, "opencv", "given", "residual+pose"),
    ],
)
@each_kernel
def test_other_sizes_cameras_and_roots(
    block: str,
    precision: str,
    variant: str,
    joints: int,
    width: int,
    model: str,
    root_mode: str,
    features: str,
) -> None:
    network = make_network(joints, 3, width, block, features)
    if precision != "fp32" and arrange(pack(network, torch.float32), precision, variant) is None:
        pytest.skip("no tensor-core kernel serves these sizes")
    kernel(block, precision, variant)
    error = increment_error(
        make_problem((77,), joints, model),
        network,
        precision,
        variant,
        root_mode,
        with_confidence=True,
        device=DEVICE,
    )
    # A solved root hands the rounding of pixels on, some tens of times as large.
    assert error < LIMITS[precision] * (1 if root_mode == "given" else 10)


@each_kernel
def test_residual_limit(block: str, precision: str, variant: str) -> None:
    kernel(block, precision, variant)
    check_residual_limit(block, precision, variant, DEVICE)


def test_float64_is_exact() -> None:
    network, problem = make_network(), make_problem((50,))
    inputs = (problem.tensor(n, torch.float64, DEVICE) for n in ("keypoints", "pose", "root"))
    camera = problem.camera(torch.float64, DEVICE)
    got = erd_cuda.refine(*inputs, camera, pack(network, torch.float64, DEVICE))
    expected = oracle.refine(
        problem.keypoints, problem.pose, problem.root, network, problem.intrinsics
    )[-1]
    assert relative_error(got.cpu() - problem.tensor("pose"), expected - problem.pose) < 1e-11


@each_precision
def test_error_of_the_bundled_model(precision: str) -> None:
    """What a precision costs, where it counts: in millimetres of a trained model."""
    errors = errors_in_mm(precision, DEVICE)
    assert errors["mean_distance_mm"] < MILLIMETRES[precision], errors
    assert abs(errors["mpjpe_mm"] - errors["mpjpe_float64_mm"]) < MILLIMETRES[precision] / 10, (
        errors
    )


def test_autocast_means_sixteen_bits() -> None:
    weights, inputs = weights_of(), tensors(65)
    for dtype, precision in ((torch.float16, "fp16"), (torch.bfloat16, "bf16")):
        with torch.autocast(DEVICE, dtype):
            got = erd_cuda.refine(*inputs, weights)
        assert torch.equal(got, erd_cuda.refine(*inputs, weights, precision=precision))


# ---- the same bits -------------------------------------------------------------------------------


@each_kernel
def test_a_result_depends_on_its_sample_alone(block: str, precision: str, variant: str) -> None:
    """Not on the run, the batch's size or the place in it, within one kernel."""
    run, inputs = kernel(block, precision, variant), tensors(5000)
    camera = inputs.pop()
    everything = run(*inputs, camera)
    for _ in range(3):
        assert torch.equal(run(*inputs, camera), everything)
    for start, stop in ((0, 1), (3, 4), (17, 60), (1, 2500), (4999, 5000)):
        part = [t[start:stop] for t in inputs]
        assert torch.equal(run(*part, camera), everything[start:stop])


@each_kernel
def test_a_bad_sample_stays_alone(block: str, precision: str, variant: str) -> None:
    run = kernel(block, precision, variant)
    keypoints, pose, _, camera = tensors(40)
    good = run(keypoints, pose, "solve_each_stage", camera)
    pose[13, 4] = float("nan")
    keypoints[29] = keypoints[29, :1]  # all joints in one image point: no root
    got = run(keypoints, pose, "solve_each_stage", camera)
    others = [i for i in range(40) if i not in (13, 29)]
    assert torch.equal(got[others], good[others])
    assert torch.equal(got[29], pose[29])
    assert torch.equal(got[13].nan_to_num(-1.0), pose[13].nan_to_num(-1.0))


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@each_precision
def test_memory_layout_changes_no_bit(precision: str, layout: str) -> None:
    weights, inputs = weights_of(), tensors(37)
    expected = erd_cuda.refine(*inputs, weights, precision=precision)
    on_host = [LAYOUTS[layout](value.cpu()) for value in inputs]
    strided = [
        torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=DEVICE).copy_(v)
        for v in on_host
    ]
    assert torch.equal(erd_cuda.refine(*strided, weights, precision=precision), expected)


@each_precision
@pytest.mark.parametrize("batch", [(0,), (2, 0, 3), (), (2, 3)], ids=str)
def test_any_batch_shape(batch: tuple[int, ...], precision: str) -> None:
    problem = make_problem(batch)
    inputs = [problem.tensor(n, torch.float32, DEVICE) for n in ("keypoints", "pose", "root")]
    camera = problem.camera(torch.float32, DEVICE)
    got = erd_cuda.refine(*inputs, camera, weights_of(), return_stages=True, precision=precision)
    assert tuple(got.shape) == (4, *batch, 17, 3)
    assert got.isfinite().all()


@each_precision
def test_more_than_two_to_the_31_numbers(precision: str) -> None:
    """Indices beyond 32 bits: 42.2 million poses of 51 numbers, input and output."""
    tile = 1000
    repeats = 2**31 // (51 * tile) + 60
    count = repeats * tile
    need = 4 * count * (34 + 51 + 3 + 51) + 2**31
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < need:
        pytest.skip(f"needs {need >> 30} GiB of free GPU memory, there are {free >> 30}")
    weights, (keypoints, pose, root, camera) = weights_of(), tensors(tile)
    variant = "simt" if precision == "fp32" else "throughput"
    name = "split" if precision == "auto" else precision
    expected = kernel("linear", name, variant)(keypoints, pose, root, camera)
    many = [t.repeat(repeats, *[1] * (t.dim() - 1)) for t in (keypoints, pose, root)]
    assert many[1].numel() > 2**31
    got = erd_cuda.refine(*many, camera, weights, precision=precision)
    del many
    assert got.numel() > 2**31
    crossing = 2**31 // 51
    for row in (0, crossing - 1, crossing, crossing + 1, count // 2, count - 1):
        assert torch.equal(got[row], expected[row % tile])
    for start in range(0, count, 1_000_000):
        part = got[start : start + 1_000_000]
        assert torch.equal(
            part.view(-1, tile, 17, 3), expected.expand(len(part) // tile, -1, -1, -1)
        )


# ---- gradients -----------------------------------------------------------------------------------


def gradients(case: Case, inputs: dict[str, Tensor], weights: PackedRegressors) -> list[Tensor]:
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items()}
    output = case(leaves, weights)
    return [output.detach(), *torch.autograd.grad(output.square().sum(), list(leaves.values()))]


@pytest.mark.parametrize("case", REFINE_CASES, ids=str)
def test_gradients_are_the_cpus(case: Case) -> None:
    inputs = case.tensors(make_problem((20,), 6, case.model))
    on_gpu = {name: value.to(DEVICE) for name, value in inputs.items()}
    weights = small_weights(6)
    expected = gradients(case, inputs, weights)
    for got, want in zip(gradients(case, on_gpu, weights.to(DEVICE)), expected, strict=True):
        torch.testing.assert_close(got.cpu(), want, rtol=1e-8, atol=1e-10 * float(want.abs().max()))


@each_precision
def test_gradients_of_every_precision(precision: str) -> None:
    """The backward pass computes in float32, whatever the forward did."""
    weights, (keypoints, pose, root, camera) = weights_of(), tensors(64)

    def gradient(precision: str) -> Tensor:
        leaf = pose.detach().requires_grad_()
        refined = erd_cuda.refine(keypoints, leaf, root, camera, weights, precision=precision)
        (result,) = torch.autograd.grad(refined.sum(), leaf)
        return result

    torch.testing.assert_close(gradient(precision), gradient("fp32"), rtol=1e-4, atol=1e-4)


# ---- torch's machinery ---------------------------------------------------------------------------


@each_precision
def test_current_stream(precision: str) -> None:
    """The inputs arrive late, on the stream that the call is made on."""
    weights, inputs = weights_of(), tensors(300)
    expected = erd_cuda.refine(*inputs, weights, precision=precision)
    late = [torch.full_like(t, float("nan")) for t in inputs]
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for target, source in zip(late, inputs, strict=True):
            target.copy_(source)
        got = erd_cuda.refine(*late, weights, precision=precision)
    stream.synchronize()
    assert torch.equal(got, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@each_precision
def test_another_device_than_the_current_one(precision: str) -> None:
    weights, inputs = weights_of(), tensors(300)
    expected = erd_cuda.refine(*inputs, weights, precision=precision)
    there = [t.to("cuda:1") for t in inputs]
    got = erd_cuda.refine(*there, weights.to("cuda:1"), precision=precision)
    assert got.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
    assert torch.equal(got.to(DEVICE), expected)


def captured(function: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph, result


@pytest.mark.parametrize("count", [1, 200, 5000])
@each_precision
def test_cuda_graph_sees_new_inputs(precision: str, count: int) -> None:
    weights, static = weights_of(), tensors(count)
    graph, result = captured(lambda: erd_cuda.refine(*static, weights, precision=precision))
    for seed in (1, 2):
        fresh = tensors(count, seed)
        for target, source in zip(static, fresh, strict=True):
            target.copy_(source)
        graph.replay()
        assert torch.equal(result, erd_cuda.refine(*fresh, weights, precision=precision))


def model() -> ERD:
    return ERD.from_pretrained(MODEL, DEVICE)


def held_out_poses(first: int, count: int) -> list[Tensor]:
    """Keypoints, pose, root and intrinsics of synthetic poses that no training has seen."""
    known = reference()
    assert known.camera.is_pinhole
    intrinsics = known.camera.intrinsics.expand(len(known.pose), 4)
    values = (known.keypoints, known.pose, known.root, intrinsics)
    return [value[first : first + count].to(DEVICE, copy=True).contiguous() for value in values]


@torch.inference_mode()
def test_whole_model_in_a_cuda_graph() -> None:
    """Lifter and stages."""
    erd, (keypoints, _, root, camera) = model(), held_out_poses(0, 16)
    graph, result = captured(lambda: erd(keypoints, camera, root))
    fresh = held_out_poses(100, 16)
    for target, source in zip((keypoints, root, camera), (fresh[0], *fresh[2:]), strict=True):
        target.copy_(source)
    graph.replay()
    expected = erd(fresh[0], fresh[3], fresh[2])
    assert (expected - fresh[1]).norm(dim=-1).mean() > 1  # mm: the stages do something
    torch.testing.assert_close(result, expected, rtol=0, atol=0.05)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("root_mode", ["given", "solve"])
def test_compiled_model(root_mode: str) -> None:
    torch._dynamo.reset()
    erd = model()
    compiled = torch.compile(erd, fullgraph=True)
    for count in (33, 9):
        keypoints, pose, root, camera = held_out_poses(0, count)
        where = root if root_mode == "given" else root_mode
        with torch.no_grad():
            expected = erd(keypoints, camera, where, pose=pose)
            got = compiled(keypoints, camera, where, pose=pose)
        assert (expected - pose).norm(dim=-1).mean() > 1  # mm
        torch.testing.assert_close(got, expected, rtol=0, atol=0.05)


def test_arrays_share_the_kernels() -> None:
    """CuPy arrays over the same memory as torch's tensors."""
    cupy = pytest.importorskip("cupy")
    import erd_cuda.array as ea

    inputs = held_out_poses(0, 100)
    expected = erd_cuda.refine(*inputs, model().packed())
    got = ea.refine(*map(cupy.from_dlpack, inputs), ea.load_weights(MODEL, device="cuda"))
    assert isinstance(got, cupy.ndarray)
    torch.testing.assert_close(torch.from_dlpack(got), expected, rtol=0, atol=0.05)


# ---- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stays", ["keypoints", "pose", "root", "intrinsics", "weights"])
def test_devices_must_agree(stays: str) -> None:
    names = ("keypoints", "pose", "root", "intrinsics")
    inputs = {
        name: value.cpu() if name == stays else value
        for name, value in zip(names, tensors(3), strict=True)
    }
    weights = weights_of().to("cpu") if stays == "weights" else weights_of()
    with pytest.raises(ValueError, match=r"expected (cuda:0|cpu) like pose"):
        erd_cuda.refine(*inputs.values(), weights)


def test_float64_has_one_precision() -> None:
    inputs = [value.double() for value in tensors(3)]
    with pytest.raises(ValueError, match="expected 'auto' for a float64 pose"):
        erd_cuda.refine(*inputs, weights_of().to(torch.float64), precision="fp16")


def test_a_limited_gradient_can_be_captured() -> None:
    """Nothing of it waits for the host."""
    weights = replace(weights_of(), residual_limit=4.0)
    keypoints, pose, root, intrinsics = tensors(33)
    pose.requires_grad_()

    def gradient() -> Tensor:
        refined = erd_cuda.refine(keypoints, pose, root, intrinsics, weights)
        (found,) = torch.autograd.grad(refined.square().sum(), pose)
        return found

    graph, result = captured(gradient)
    with torch.no_grad():
        pose.copy_(0.9 * pose)
    graph.replay()
    assert torch.equal(result, gradient())
