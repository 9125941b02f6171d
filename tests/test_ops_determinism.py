"""A sample's result depends on the sample alone: not on its neighbours, threads or the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from op_calls import ALL_CASES, Case, small_weights
from torch import Tensor

from erd_cuda.benchmarks.problems import make_network, make_problem, pack

SIZES = (1, 7, 8, 9, 1000)


def results(case: Case, tensors: dict[str, Tensor], weights: object) -> list[Tensor]:
    """Result and gradients of the inputs that have a batch of their own.

    refine's backward pass goes through torch's matrix products, which sum in an order that depends
    on the batch: there only the result counts.
    """
    if case.op == "refine":
        return [case(tensors, weights)]  # type: ignore[arg-type]
    inputs = {name: value.clone().requires_grad_() for name, value in tensors.items()}
    output = case(inputs, weights)  # type: ignore[arg-type]
    per_sample = [value for name, value in inputs.items() if name != "std"]
    # The square makes every sample's upstream gradient its own.
    return [output.detach(), *torch.autograd.grad(output.square().sum(), per_sample)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_batch_size_and_threads_change_no_bit(
    case: Case, dtype: torch.dtype, set_threads: Callable[[int], None]
) -> None:
    tensors = case.tensors(make_problem((1000,), joints=17, model=case.model), dtype)
    weights = pack(make_network(17, 2, 48, "relu"), dtype)
    set_threads(1)
    everything = results(case, tensors, weights)
    set_threads(2)
    for got, want in zip(results(case, tensors, weights), everything, strict=True):
        assert torch.equal(got, want)
    for threads in (1, 2):
        set_threads(threads)
        for size in SIZES[:-1]:
            for start in (0, 3, 1000 - size):
                part = {
                    name: value if name == "std" else value[start : start + size]
                    for name, value in tensors.items()
                }
                for got, want in zip(results(case, part, weights), everything, strict=True):
                    assert torch.equal(got, want[start : start + size])


@pytest.mark.parametrize("root", ["given", "solve"])
@pytest.mark.parametrize("block", ["linear", "relu"])
@pytest.mark.parametrize("features", ["residual", "concat", "residual+pose"])
def test_full_size_refine_is_batch_invariant(
    features: str, block: str, root: str, set_threads: Callable[[int], None]
) -> None:
    """The network as it is used, 256 wide: other tile sizes than the small one above."""
    case = Case("refine", "pinhole", root)
    tensors = case.tensors(make_problem((1000,)), torch.float32)
    weights = pack(make_network(17, 4, 256, block, features), torch.float32)
    set_threads(1)
    everything = case(tensors, weights)
    set_threads(2)
    assert torch.equal(case(tensors, weights), everything)
    for size in SIZES[:-1]:
        for start in (0, 5, 1000 - size):
            part = {name: value[start : start + size] for name, value in tensors.items()}
            assert torch.equal(case(part, weights), everything[start : start + size])


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_the_same_call_twice(case: Case) -> None:
    """Shared inputs (one camera, one std) sum their gradient over the batch, in the same order
    each time.
    """
    tensors = case.tensors(make_problem((257,), model=case.model, camera_batch=()), torch.float32)
    weights = small_weights(17, torch.float32)

    def run() -> list[Tensor]:
        inputs = [value.clone().requires_grad_() for value in tensors.values()]
        output = case(dict(zip(tensors, inputs, strict=True)), weights)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), inputs)]

    first = run()
    for got, want in zip(run(), first, strict=True):
        assert torch.equal(got, want)
