"""Models and the training operator on a real GPU: streams, devices, moves, compilation, any width.

The refiner's own kernels are in test_cuda_refine.py, training loops in test_training_device.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from erd_models import inputs_of, make_erd
from regressor_batches import Batch, make_batch
from torch import Tensor

import erd_cuda
from erd_cuda import ERD
from erd_cuda.benchmarks.problems import make_network, make_problem, pack

pytestmark = pytest.mark.cuda

DEVICE = "cuda"
each_block = pytest.mark.parametrize("relu_block", [False, True], ids=["linear", "relu"])


# ---- the regressor's operator --------------------------------------------------------------------


def regressor_batch(relu_block: bool, device: str = DEVICE) -> Batch:
    return make_batch(200, 34, 64, 51, 0.5, relu_block).to(torch.float32).to(device)


def increment_and_gradients(batch: Batch) -> list[Tensor]:
    increment = batch()[0]
    gradients = torch.autograd.grad(increment.square().sum(), batch.tensors)
    return [increment.detach(), *gradients]


@each_block
def test_the_regressor_runs_on_the_current_stream(relu_block: bool) -> None:
    """Its features arrive late, on the stream that forward and backward are called on."""
    batch = regressor_batch(relu_block)
    expected = increment_and_gradients(batch)
    features = batch.tensors[0].detach().clone()
    with torch.no_grad():
        batch.tensors[0].zero_()
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        with torch.no_grad():
            batch.tensors[0].copy_(features)
        got = increment_and_gradients(batch)
    stream.synchronize()
    for value, wanted in zip(got, expected, strict=True):
        assert torch.equal(value, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@each_block
def test_the_regressor_runs_on_its_tensors_device(relu_block: bool) -> None:
    expected = increment_and_gradients(regressor_batch(relu_block, "cuda:0"))
    assert torch.cuda.current_device() == 0
    got = increment_and_gradients(regressor_batch(relu_block, "cuda:1"))
    assert torch.cuda.current_device() == 0
    for value, wanted in zip(got, expected, strict=True):
        assert value.device == torch.device("cuda:1")
        assert torch.equal(value.cpu(), wanted.cpu())


# ---- a whole model -------------------------------------------------------------------------------


def model() -> ERD:
    return make_erd(make_network(17, 3, 64), dtype=torch.float32)


def inputs(count: int, device: str = DEVICE, seed: int = 0) -> dict[str, Any]:
    """Keypoints, camera, root and pose in float32."""
    drawn = inputs_of(make_problem((count,), seed=seed), dtype=torch.float32)
    return {name: value.to(device) for name, value in drawn.items() if value is not None}


@torch.no_grad()
def test_packed_weights_follow_the_model_between_devices() -> None:
    erd, here, there = model(), inputs(50, "cpu"), inputs(50)
    expected = erd(**here)
    assert (expected - here["pose"]).norm(dim=-1).mean() > 1  # mm: the stages do something
    for _ in range(2):
        got = erd.cuda()(**there)
        assert got.is_cuda
        torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=0.05)
        assert torch.equal(erd.cpu()(**here), expected)


@torch.no_grad()
def test_packed_weights_on_a_gpu_see_a_change() -> None:
    erd, values = model().cuda(), inputs(50)
    before = erd(**values)
    erd.regressors[0].output.weight.mul_(1.5)
    after = erd(**values)
    assert (after - before).norm(dim=-1).mean() > 0.1  # mm
    anew = model()
    anew.load_state_dict(erd.state_dict())
    torch.testing.assert_close(after, anew.cuda()(**values), rtol=0, atol=0)


@pytest.mark.timeout(150)
def test_model_compiled_with_cuda_graphs() -> None:
    torch._dynamo.reset()
    erd = model().cuda()
    compiled = torch.compile(erd, fullgraph=True, mode="reduce-overhead")
    for seed in range(4):  # the first two warm up and record, the others are replays
        values = inputs(33, seed=seed)
        with torch.no_grad():
            torch.compiler.cudagraph_mark_step_begin()
            got = compiled(**values).clone()
            torch.testing.assert_close(got, erd(**values), rtol=0, atol=0.05)


@pytest.mark.parametrize("block", ["linear", "relu"])
def test_widths_beyond_the_tensor_cores_run_in_float32(block: str) -> None:
    """Whatever is asked for, the same bits as "fp32"."""
    problem = make_problem((100,))
    weights = pack(make_network(17, 2, 528, block), torch.float32, DEVICE)
    values = [problem.tensor(name, torch.float32, DEVICE) for name in ("keypoints", "pose", "root")]
    camera = problem.camera(torch.float32, DEVICE)
    expected = erd_cuda.refine(*values, camera, weights, precision="fp32")
    assert (expected - values[1]).norm(dim=-1).mean() > 1  # mm
    for precision in ("auto", "fp16", "bf16"):
        got = erd_cuda.refine(*values, camera, weights, precision=precision)
        assert torch.equal(got, expected)
