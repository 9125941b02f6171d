"""CuPy arrays without a GPU: the emulated kernels behind a fake CuPy, and what is asked of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import cuda_bench
import fake_cupy
import numpy as np
import pytest
from array_calls import as_weights
from op_calls import small_weights

import erd_cuda.array as ea


@cuda_bench.needs_emulation
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("device", [75, 80])
def test_arrays_on_the_emulated_gpu(device: int) -> None:
    pytest_quiet = ["-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, *pytest_quiet, "tests/test_array_cupy.py"],
        cwd=cuda_bench.array_stage(),
        env=cuda_bench.environment(device, seed=0),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "skipped" not in done.stdout


# ---- what CuPy and the kernels are asked for -----------------------------------------------------


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setitem(sys.modules, "cupy", fake_cupy.as_cupy())
    fake_cupy.allocated_on.clear()
    yield fake_cupy


class Recorder:
    """Stands in for the compiled functions and keeps the arguments of every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def geometry(self, *arguments: Any) -> None:
        self.calls.append(arguments)

    refine = geometry


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    for name in ("geometry", "refine"):
        monkeypatch.setattr(ea.native.native, name, getattr(recorder, name))
    return recorder


def arrays_on(cupy: Any, device: int, dtype: Any = np.float32) -> tuple[Any, ...]:
    """keypoints, pose, root, camera."""
    with cupy.cuda.Device(device):
        shapes = ((4, 5, 2), (4, 5, 3), (4, 3), (4,))
        return tuple(cupy.array(np.ones(shape, dtype)) for shape in shapes)


def test_the_current_stream_of_the_arrays_device(cupy: Any, recorder: Recorder) -> None:
    keypoints, pose, root, camera = arrays_on(cupy, 3)
    with cupy.cuda.Device(3), cupy.cuda.Stream(1234), cupy.cuda.Device(0), cupy.cuda.Stream(9):
        got = ea.residual(keypoints, pose, root, camera)
    ea.project(pose, root, camera)
    assert [call[-1] for call in recorder.calls] == [(3, 1234), (3, 0)]
    assert got.device.id == 3 and set(fake_cupy.allocated_on) == {3}


def test_nothing_is_copied_or_waited_for(cupy: Any, recorder: Recorder) -> None:
    keypoints, pose, root, camera = arrays_on(cupy, 0)
    weights = as_weights(small_weights(5)).to(np.float32, "cuda")
    ea.refine(keypoints, pose, root, camera, weights)
    allocated = len(fake_cupy.allocated_on)
    with cupy.cuda.Stream() as stream:
        ea.refine(keypoints, pose, root, camera, weights)
    assert stream.synchronized == 0
    assert len(fake_cupy.allocated_on) == allocated + 1  # the result
    inputs = recorder.calls[-1][9]
    assert [row[0] for row in inputs[:3]] == [a.data.ptr for a in (keypoints, pose, root)]


def test_precisions(cupy: Any, recorder: Recorder) -> None:
    """Numbers of csrc/core/calls.h; weights are arranged once, for the precisions asked for."""
    arguments = arrays_on(cupy, 0)
    weights = ea.load_weights(ea.bundled_models()[0], device="cuda")
    with cupy.cuda.Device(0):
        arguments = tuple(
            cupy.array(np.ones(s, "f4")) for s in ((2, 17, 2), (2, 17, 3), (3,), (4,))
        )
    for precision in ("auto", "fp32", "fp16", "bf16", "auto"):
        ea.refine(*arguments, weights, precision=precision)
    assert [call[5] for call in recorder.calls] == [1, 0, 2, 3, 1]
    fragments = [call[11] for call in recorder.calls]
    assert fragments[1] is None and fragments[0] == fragments[4]
    assert len({f[0] for f in fragments if f is not None}) == 3


def test_sizes_without_a_tensor_core_kernel(cupy: Any, recorder: Recorder) -> None:
    """Such weights have no other form: the kernels are asked for plain float32."""
    weights = as_weights(small_weights(5)).to(np.float32, "cuda")
    for precision in ("auto", "fp16"):
        ea.refine(*arrays_on(cupy, 0), weights, precision=precision)
        assert recorder.calls[-1][5] == 0 and recorder.calls[-1][11] is None


def test_weights_are_there_for_every_stream(cupy: Any) -> None:
    """They outlive the stream that copied them, so their copies are waited for."""
    with cupy.cuda.Stream() as stream:
        weights = ea.load_weights(ea.bundled_models()[0], device="cuda")
        assert stream.synchronized == 7 - 2  # arrays, less the relu block's
        weights.for_tensor_cores("split")
        assert stream.synchronized == 5 + 2


def test_other_objects_of_a_gpu_are_taken_over(cupy: Any, recorder: Recorder) -> None:
    class Foreign:
        def __init__(self, array: Any) -> None:
            self.__cuda_array_interface__ = array.__cuda_array_interface__

    _, pose, root, camera = arrays_on(cupy, 0)
    ea.project(Foreign(pose), root, camera)
    assert recorder.calls[0][5][1][0] == pose.data.ptr


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    sentence = r"device is on a GPU, which takes CuPy: run `pip install 'erd-cuda\[cupy\]'`"
    with pytest.raises(ImportError, match=sentence):
        ea.load_weights(ea.bundled_models()[0], device="cuda")


def test_a_build_without_cuda_says_so(cupy: Any) -> None:
    if ea.native.native.has_cuda:
        pytest.skip("this build has CUDA kernels")
    _, pose, root, camera = arrays_on(cupy, 0)
    with pytest.raises(
        RuntimeError, match="built without CUDA kernels, expected arrays on the CPU"
    ):
        ea.project(pose, root, camera)


@pytest.mark.parametrize(
    ("precision", "dtype", "pattern"),
    [
        ("fp8", np.float32, "precision is 'fp8', expected one of 'auto', 'fp32', 'fp16', 'bf16'"),
        ("fp16", np.float32, "precision is 'fp16', which needs .* CUDA device; pose is on cpu"),
        ("bf16", np.float64, "precision is 'bf16', expected 'auto' for a float64 pose"),
        ("fp32", np.float64, "precision is 'fp32', expected 'auto' for a float64 pose"),
    ],
)
def test_precisions_that_do_not_exist(precision: str, dtype: Any, pattern: str) -> None:
    arguments = [np.ones(shape, dtype) for shape in ((4, 5, 2), (4, 5, 3), (4, 3), (4,))]
    weights = as_weights(small_weights(5)).to(dtype)
    with pytest.raises(ValueError, match=pattern):
        ea.refine(*arguments, weights, precision=precision)
