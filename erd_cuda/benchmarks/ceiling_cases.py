"""What a machine gives to programs that do nothing else: multiply-adds, copies, matrix products."""

from __future__ import annotations

from functools import partial

import torch

from erd_cuda._library import operators
from erd_cuda.benchmarks.cases import Case, Plan, Ready, rotating
from erd_cuda.benchmarks.machine import has_bf16

SUITE = "ceilings"
FMA_ONE, FMA, COPY = "multiply-adds, one thread", "multiply-adds", "copy"
MATRIX = "matrix product"
#: Of the loops of multiply-adds: some milliseconds.
_STEPS = 1_000_000


def cases(plan: Plan, device: str) -> list[Case]:
    """One group."""
    found = []
    if device == "cpu":
        steps = _STEPS if plan.seconds > 0 else 10
        for name, threads in ((FMA_ONE, 1), (FMA, torch.get_num_threads())):
            flop = operators.multiply_adds(1, threads) * steps
            make = partial(Ready, partial(operators.multiply_adds, steps, threads), 1, 0.0)
            found.append(Case(SUITE, name, make, 1, flop=flop))
    found.append(Case(SUITE, COPY, partial(_copy, plan, device), 1, bytes=2.0 * plan.copied))
    precisions = {"fp32": torch.float32}
    if device == "cuda":
        precisions["fp16"] = torch.float16
    if device == "cuda" or has_bf16():
        precisions["bf16"] = torch.bfloat16
    # What keeps all of a GPU busy would keep a CPU busy for seconds.
    size = plan.matrix * (4 if device == "cuda" else 1)
    for precision, dtype in precisions.items():
        make = partial(_matrix_product, size, dtype, device)
        found.append(Case(SUITE, MATRIX, make, 1, precision, flop=2.0 * size**3))
    return found


def _copy(plan: Plan, device: str) -> Ready:
    source = torch.rand(plan.copied // 4, device=device) + 1.0
    return rotating(torch.empty_like(source).copy_, [[source]], True, 0.0)


def _matrix_product(size: int, dtype: torch.dtype, device: str) -> Ready:
    pair = [torch.randn(size, size, device=device).to(dtype) for _ in range(2)]
    return rotating(torch.matmul, [pair], True, 0.0)
