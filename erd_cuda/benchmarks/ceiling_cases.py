"""What a machine gives to programs that do nothing else: multiply-adds, copies, matrix products.

They have a group of their own, which says what the machine can do, and take turns in the groups of
those who are held against them: a machine that others use is another one minutes later.
"""

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
    """The group of their own."""
    on_cpu = device == "cpu"
    found = [_multiply_adds(FMA_ONE, 1, plan, SUITE, 1, "")] if on_cpu else []
    found += arithmetic(plan, device, SUITE, 1) + copying(plan, device, SUITE, 1)
    # A GPU has its products of float32 above.
    return found + ([_products("fp32", plan, device, SUITE, 1, "")] if on_cpu else [])


def arithmetic(plan: Plan, device: str, suite: str, batch: int, block: str = "") -> list[Case]:
    """Peaks that take turns with those who multiply and add.

    A GPU's products, and those of 16 bits, are not made of single multiply-adds: they are held
    against torch's products of large matrices.
    """
    if device == "cpu":
        found = [_multiply_adds(FMA, torch.get_num_threads(), plan, suite, batch, block)]
        precisions = ["bf16"] if has_bf16() else []
    else:
        found, precisions = [], ["fp32", "fp16", "bf16"]
    return found + [_products(p, plan, device, suite, batch, block) for p in precisions]


def copying(plan: Plan, device: str, suite: str, batch: int) -> list[Case]:
    """The copy that takes turns with those who read and write."""

    def prepare() -> Ready:
        source = torch.rand(plan.copied // 4, device=device) + 1.0
        return rotating(torch.empty_like(source).copy_, [[source]], True, 0.0)

    return [Case(suite, COPY, prepare, batch, bytes=2.0 * plan.copied)]


def _multiply_adds(name: str, threads: int, plan: Plan, suite: str, batch: int, block: str) -> Case:
    steps = _STEPS if plan.seconds > 0 else 10
    flop = operators.multiply_adds(1, threads) * steps
    make = partial(Ready, partial(operators.multiply_adds, steps, threads), 1, 0.0)
    return Case(suite, name, make, batch, block=block, flop=flop)


def _products(precision: str, plan: Plan, device: str, suite: str, batch: int, block: str) -> Case:
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    # What keeps all of a GPU busy would keep a CPU busy for seconds.
    size = plan.matrix * (4 if device == "cuda" else 1)

    def prepare() -> Ready:
        pair = [torch.randn(size, size, device=device).to(dtype) for _ in range(2)]
        return rotating(torch.matmul, [pair], True, 0.0)

    return Case(suite, MATRIX, prepare, batch, precision, block, flop=2.0 * size**3)
