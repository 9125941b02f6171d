"""The fused op is faster than torch eager running the paper's layers, at every batch size."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch

import erd_cuda
from erd_cuda.benchmarks.problems import make_network, make_problem, pack
from erd_cuda.benchmarks.torch_layers import PaperLayers


def interleaved_medians(functions: list[Callable[[], object]], repeats: int) -> list[float]:
    """Seconds; turn about, so that a busy machine is equally unkind to both."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, mine in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            mine.append(time.perf_counter() - start)
    return [statistics.median(mine) for mine in times]


@pytest.mark.parametrize(("batch", "repeats"), [(1, 200), (200, 60), (4096, 5), (65_536, 2)])
def test_faster_than_torch_eager(batch: int, repeats: int) -> None:
    network = make_network()
    weights, layers = pack(network, torch.float32), PaperLayers(network)
    problem = make_problem((batch,))
    inputs = [
        problem.tensor(name, torch.float32) for name in ("keypoints", "pose", "root", "intrinsics")
    ]
    with torch.inference_mode():
        few = [values[:256] for values in inputs]
        torch.testing.assert_close(erd_cuda.refine(*few, weights), layers(*few), rtol=0, atol=0.05)
        fused_time, eager_time = interleaved_medians(
            [lambda: erd_cuda.refine(*inputs, weights), lambda: layers(*inputs)], repeats
        )
    # The collapse alone saves 7x of the arithmetic: 1 leaves room for any machine.
    assert eager_time / fused_time > 1.0
