"""The refiner and its peers on a GPU, for pytest-benchmark; gpu.py has all figures in one file.

Without a GPU the same contenders run once on the CPU, where only torch's own have a meaning.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu_refine import BATCHES, TOLERANCE, contenders, draw_inputs, increment_error, input_sets
from gpu_timing import Stopwatch
from problems import make_network

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Contender, precision and whether a stage is two layers.
LINEAR = [("erd_cuda", p, True) for p in ("fp16", "bf16", "auto", "fp32")] + [
    (name, "fp16", collapsed)
    for name in ("torch eager", "torch graph", "torch.compile", "triton")
    for collapsed in (True, False)
]


@pytest.mark.parametrize(("name", "precision", "collapsed"), LINEAR)
@pytest.mark.parametrize("batch", sorted(BATCHES) if DEVICE == "cuda" else [3])
def test_refine_on_a_gpu(
    batch: int, name: str, precision: str, collapsed: bool, benchmark: Any
) -> None:
    compiler = {} if DEVICE == "cuda" else {"backend": "eager"}
    found = [
        contender
        for contender in contenders("linear", DEVICE, compiler)
        if (contender.name, contender.precision, contender.collapsed)
        == (name, precision, collapsed)
    ]
    if not found:
        pytest.skip(f"{name} has no {precision} on a {DEVICE}")
    sets = input_sets(batch) if DEVICE == "cuda" else 2
    with torch.inference_mode():
        inputs = draw_inputs(batch, sets, DEVICE)
        try:
            function = found[0].prepare(inputs)
        except ImportError as error:
            pytest.skip(str(error))
        error, _ = increment_error(function(*inputs[0]), inputs[0], make_network())
        assert error < TOLERANCE[precision]
        watch = Stopwatch(function, inputs, found[0].graph)
        benchmark.group = f"refine on a {DEVICE} batch {batch}"
        benchmark.extra_info |= {"poses": batch, "calls_a_round": watch.calls}
        benchmark(watch.timed_pass)
