"""The functions on CuPy arrays: on a GPU, or on the emulated one of test_array_emulated.py."""

from __future__ import annotations

import os
import sys
from typing import Any

import fake_cupy
import numpy as np
import pytest
import torch
from array_calls import array_call, as_weights
from op_calls import ALL_CASES, Case, small_network, small_weights
from test_ops_degenerate import degenerate_batch
from test_ops_shapes import oracle_call

import erd_cuda.array as ea
from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.problems import FEATURES, Problem, make_network, make_problem, pack

EMULATED = "ERD_EMULATED_DEVICE" in os.environ
pytestmark = [] if EMULATED else [pytest.mark.cuda]

# solve_residual's two results have a test of their own.
CASES = [case for case in ALL_CASES if case.op != "solve_residual"]

#: Largest error of a refinement's increments, relative.
LIMITS = {"auto": 3e-6, "fp32": 3e-6, "fp16": 2e-3, "bf16": 1.6e-2}


@pytest.fixture(scope="module")
def cupy() -> Any:
    if EMULATED:
        sys.modules["cupy"] = fake_cupy.as_cupy()
    return pytest.importorskip("cupy")


def on_gpu(cupy: Any, problem: Problem, names: tuple[str, ...], dtype: Any) -> dict[str, Any]:
    return {name: cupy.array(getattr(problem, name).astype(dtype)) for name in names}


@pytest.mark.parametrize("batch", [(37,), (3, 5), (), (0, 4)], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_float64_is_exact(case: Case, batch: tuple[int, ...], cupy: Any) -> None:
    problem = make_problem(batch, 5, case.model)
    weights = as_weights(small_weights(5)).to(device="cuda")
    got = array_call(case, on_gpu(cupy, problem, case.inputs, np.float64), weights)
    assert isinstance(got, cupy.ndarray) and got.device.id == 0
    want = oracle_call(case, problem)
    assert got.shape == want.shape and got.dtype == np.float64
    if want.size:
        np.testing.assert_allclose(got.get(), want, rtol=0, atol=1e-11 * np.abs(want).max())


@pytest.mark.parametrize("block", ["linear", "relu"])
@pytest.mark.parametrize("precision", sorted(LIMITS))
def test_every_precision_of_refine(precision: str, block: str, cupy: Any) -> None:
    network = make_network(17, 3, 64, block)
    problem = make_problem((41,))
    case = Case("refine", "pinhole")
    arrays = on_gpu(cupy, problem, case.inputs, np.float32)
    weights = as_weights(pack(network)).to(np.float32, "cuda")
    assert (weights.device, weights.dtype) == ("cuda:0", np.float32)
    got = array_call(case, arrays, weights, precision=precision).get()
    rounded = {name: array.get().astype(np.float64) for name, array in arrays.items()}
    want = oracle.refine(
        rounded["keypoints"],
        rounded["pose"],
        rounded["root"],
        network,
        rounded["intrinsics"],
        confidence=rounded["confidence"],
    )[-1]
    error = got - rounded["pose"] - (want - rounded["pose"])
    assert np.linalg.norm(error) < LIMITS[precision] * np.linalg.norm(want - rounded["pose"])


def test_weights_that_tensor_cores_do_not_take(cupy: Any) -> None:
    """ "auto" and "fp16" are then plain float32, to the last bit."""
    network = small_network(6)
    problem = make_problem((9,), 6)
    case = Case("refine", "pinhole")
    arrays = on_gpu(cupy, problem, case.inputs, np.float32)
    weights = as_weights(pack(network)).to(np.float32, "cuda")
    plain = array_call(case, arrays, weights, precision="fp32").get()
    for precision in ("auto", "fp16", "bf16"):
        got = array_call(case, arrays, weights, precision=precision).get()
        assert got.tobytes() == plain.tobytes()


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("block", ["linear", "relu"])
def test_every_stage_of_every_kind_of_network(block: str, features: str, cupy: Any) -> None:
    problem = make_problem((7,))
    network = make_network(17, 2, 32, block, features)
    case = Case("refine", "pinhole", "solve")
    weights = as_weights(pack(network)).to(device="cuda")
    arrays = on_gpu(cupy, problem, case.inputs, np.float64)
    got = array_call(case, arrays, weights, return_stages=True).get()
    want = oracle.refine(
        problem.keypoints,
        problem.pose,
        "solve",
        network,
        *problem.lens,
        confidence=problem.confidence,
    )
    assert got.shape == (2, 7, 17, 3)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-9)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_strides_change_no_bit(case: Case, cupy: Any) -> None:
    problem = make_problem((8, 3), 5, case.model)
    arrays = on_gpu(cupy, problem, case.inputs, np.float32)
    weights = as_weights(small_weights(5)).to(np.float32, "cuda")
    want = array_call(case, arrays, weights).get()
    for name in case.inputs:
        values = getattr(problem, name).astype(np.float32)
        wide = np.full([2 * size for size in values.shape], np.nan, np.float32)
        index = tuple(slice(None, None, 2) for _ in values.shape)
        wide[index] = values
        got = array_call(case, arrays | {name: cupy.array(wide)[index]}, weights).get()
        assert got.tobytes() == want.tobytes(), name


def test_status_of_degenerate_roots(cupy: Any) -> None:
    tensors, expected = degenerate_batch("opencv", torch.float64)
    arrays = {name: cupy.array(tensor.numpy()) for name, tensor in tensors.items()}
    case = Case("solve_root", "opencv")
    root, status = array_call(case, arrays, return_status=True)
    assert status.dtype == np.int32
    assert [ea.RootStatus(int(s)) for s in status.get()] == expected
    assert np.isfinite(root.get()).all()


def test_root_and_residual_in_one_pass(cupy: Any) -> None:
    problem = make_problem((9,), 6, "h36m")
    arrays = on_gpu(cupy, problem, Case("solve_residual", "h36m").inputs, np.float64)
    camera = ea.Camera(arrays["intrinsics"], arrays["distortion"], "h36m")
    residual, root, status = ea.solve_residual(
        arrays["keypoints"],
        arrays["pose"],
        camera,
        arrays["std"],
        arrays["confidence"],
        return_status=True,
    )
    assert (status.get() == 0).all()
    want = oracle_call(Case("solve_residual", "h36m"), problem)
    got = np.concatenate([residual.get().reshape(9, -1), root.get()], axis=1)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * np.abs(want).max())


def test_arrays_of_one_call_are_on_one_device(cupy: Any) -> None:
    case = Case("refine", "pinhole")
    problem = make_problem((4,), 5)
    arrays = on_gpu(cupy, problem, case.inputs, np.float64)
    weights = as_weights(small_weights(5))
    with pytest.raises(ValueError, match=r"weights are on cpu, expected cuda:0 like pose: use"):
        array_call(case, arrays, weights)
    with pytest.raises(ValueError, match="root is on cpu, expected cuda:0 like pose"):
        array_call(case, arrays | {"root": problem.root}, weights)
    with pytest.raises(ValueError, match="keypoints is on cuda:0, expected cpu like pose"):
        array_call(case, arrays | {"pose": problem.pose}, weights)


def test_weights_come_back(cupy: Any) -> None:
    weights = as_weights(small_weights(5))
    back = weights.to(device="cuda").to(device="cpu")
    assert back.device == "cpu" and back.w_in.tobytes() == weights.w_in.tobytes()
