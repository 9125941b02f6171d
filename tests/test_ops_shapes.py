"""Any batch shape, any strides, any alignment, empty or not: values decide, memory does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from layouts import LAYOUTS
from op_calls import ALL_CASES, Case, small_network, small_weights
from precision import assert_exact
from torch import Tensor

from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.problems import Problem, make_problem


def bitwise_equal(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


def oracle_call(case: Case, problem: Problem) -> np.ndarray:
    """The case's answer in float64."""
    if case.op == "project":
        return oracle.project(problem.pose, problem.root, *problem.lens)
    if case.op == "residual":
        return oracle.residual(
            problem.keypoints,
            problem.pose,
            problem.root,
            *problem.lens,
            std=problem.std,
            confidence=problem.confidence,
        )
    if case.op == "solve_root":
        return oracle.solve_root(
            problem.keypoints, problem.pose, *problem.lens, confidence=problem.confidence
        )[0]
    if case.op == "solve_residual":
        root = oracle.solve_root(
            problem.keypoints, problem.pose, *problem.lens, confidence=problem.confidence
        )[0]
        residual = oracle.residual(
            problem.keypoints,
            problem.pose,
            root,
            *problem.lens,
            std=problem.std,
            confidence=problem.confidence,
        )
        flat = residual.reshape(*root.shape[:-1], 2 * residual.shape[-2])
        return np.concatenate([flat, root], axis=-1)
    return oracle.refine(
        problem.keypoints,
        problem.pose,
        problem.root if case.root_mode == "given" else case.root_mode,
        small_network(problem.pose.shape[-2]),
        *problem.lens,
        confidence=problem.confidence,
    )[-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_layout_of_any_one_input_changes_nothing(
    case: Case, layout: str, dtype: torch.dtype
) -> None:
    tensors = case.tensors(make_problem((3, 5), joints=6, model=case.model), dtype)
    weights = small_weights(6, dtype)
    expected = case(tensors, weights)
    for name in case.inputs:
        rearranged = tensors | {name: LAYOUTS[layout](tensors[name])}
        assert bitwise_equal(case(rearranged, weights), expected), name


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_layout_of_all_inputs_changes_no_gradient(case: Case) -> None:
    tensors = case.tensors(make_problem((3, 5), joints=6, model=case.model))
    weights = small_weights(6)

    def gradients(layout: str) -> tuple[Tensor, ...]:
        inputs = {k: LAYOUTS[layout](v).detach().requires_grad_() for k, v in tensors.items()}
        output = case(inputs, weights)
        upstream = LAYOUTS[layout](torch.linspace(-1, 1, output.numel()).view_as(output).double())
        return torch.autograd.grad(output, list(inputs.values()), upstream)

    expected = gradients("contiguous")
    for layout in LAYOUTS:
        for name, got, want in zip(case.inputs, gradients(layout), expected, strict=True):
            assert bitwise_equal(got.contiguous(), want.contiguous()), (layout, name)


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_expanded_inputs(case: Case) -> None:
    """A stride of zero is one value for all samples, not one sample."""
    tensors = case.tensors(make_problem((4,), joints=6, model=case.model))
    weights = small_weights(6)
    for name in case.inputs:
        if name == "std":
            continue
        expanded = tensors[name][:1].expand_as(tensors[name])
        expected = case(tensors | {name: expanded.clone()}, weights)
        assert bitwise_equal(case(tensors | {name: expanded}, weights), expected), name
        # And with the batch axis left out altogether.
        got = case(tensors | {name: tensors[name][0]}, weights)
        assert bitwise_equal(got, expected), name


@st.composite
def broadcasting(draw: st.DrawFn) -> dict[str, Any]:
    """A batch of up to three axes (of length 0 to 3), each input with its own share of it and its
    own layout.
    """
    case = draw(st.sampled_from(ALL_CASES))
    batch = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
    selections: dict[str, tuple[Any, ...]] = {}
    layouts: dict[str, str] = {}
    for name in case.inputs:
        layouts[name] = draw(st.sampled_from(sorted(LAYOUTS)))
        if name == "std":
            continue
        dropped = draw(st.integers(0, len(batch))) if all(batch) else 0
        kept = draw(st.lists(st.booleans(), min_size=len(batch) - dropped, max_size=len(batch)))
        axes = [
            slice(None) if keep or not size else slice(0, 1)
            for keep, size in zip(kept, batch[dropped:], strict=False)
        ]
        selections[name] = (0,) * dropped + tuple(axes)
    return {
        "case": case,
        "batch": batch,
        "joints": draw(st.integers(2, 5)),
        "selections": selections,
        "layouts": layouts,
        "seed": draw(st.integers(0, 99)),
    }


@given(broadcasting())
def test_broadcasting_and_strides_against_the_oracle(drawn: dict[str, Any]) -> None:
    case: Case = drawn["case"]
    problem = make_problem(drawn["batch"], drawn["joints"], case.model, drawn["seed"])
    values = {
        name: getattr(problem, name)[drawn["selections"].get(name, ())] for name in case.inputs
    }
    reduced = Problem(**(vars(problem) | values))
    tensors = {
        name: LAYOUTS[drawn["layouts"][name]](torch.from_numpy(np.ascontiguousarray(value)))
        for name, value in values.items()
    }
    got = case(tensors, small_weights(drawn["joints"]))
    # Two joints and a random confidence can leave the depth nearly undetermined: the oracle's SVD
    # and the closed form then agree to the condition number's share of the digits.
    assert_exact(got, oracle_call(case, reduced), 1e-8)
