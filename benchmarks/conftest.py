"""What the benchmarks share: problems that rotate, so that no run finds its inputs in a cache.

    pytest benchmarks                        measure (--benchmark-save, --benchmark-compare ...)
    pytest benchmarks --benchmark-disable    every benchmark once, to see that none has rotted

Peers are checked against each other before anything is timed.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

# Problems and plain-torch peers are those of the tests.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

BATCHES = (1, 200, 4096, 65_536)
INPUT_NAMES = ("keypoints", "pose", "root", "intrinsics")


@pytest.fixture(params=BATCHES, ids=lambda batch: f"batch{batch}")
def batch(request: pytest.FixtureRequest) -> int:
    """Poses a call; at most a few when nothing is measured."""
    if request.config.getoption("benchmark_disable"):
        return min(int(request.param), 300)
    return int(request.param)


@pytest.fixture
def problems(batch: int, request: pytest.FixtureRequest) -> list[list[Tensor]]:
    """Different inputs for consecutive calls: enough that together they leave the caches."""
    from problems import make_problem

    count = max(2, min(32, 100_000 // batch))
    if request.config.getoption("benchmark_disable"):
        count = 2
    drawn = [make_problem((batch,), seed=seed) for seed in range(count)]
    return [[problem.tensor(name, torch.float32) for name in INPUT_NAMES] for problem in drawn]


@pytest.fixture
def measure(benchmark: Any, batch: int) -> Callable[..., None]:
    """measure(function, inputs): times function(*inputs[i]) over rotating i."""

    def run(function: Callable[..., object], inputs: Sequence[Sequence[Tensor]]) -> None:
        for values in itertools.chain.from_iterable(inputs):
            assert values.any(), "a benchmark of zeros measures a special case"
        benchmark.group = f"{benchmark.group or ''} batch {batch}".strip()
        benchmark.extra_info |= {"poses": batch, "threads": torch.get_num_threads()}
        rotation = itertools.cycle(inputs)
        function(*next(rotation))
        benchmark(lambda: function(*next(rotation)))

    return run
