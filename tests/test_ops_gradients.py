"""First and second derivatives of every floating input, and a walk that finds forgotten ones."""

from __future__ import annotations

import inspect

import pytest
import torch
from op_calls import (
    ALL_CASES,
    FLOATING_PARAMETERS,
    GEOMETRY_CASES,
    OTHER_PARAMETERS,
    REFINE_CASES,
    Case,
    positional,
    small_network,
    small_weights,
    unit_problem,
)
from torch import Tensor

import erd_cuda
from erd_cuda.benchmarks import torch_layers
from erd_cuda.benchmarks.problems import FEATURES, make_network, make_problem, pack


@pytest.mark.parametrize("op", sorted(FLOATING_PARAMETERS))
def test_no_parameter_is_forgotten(op: str) -> None:
    """A new parameter of an op fails here until it is either differentiated below or declared a
    switch.
    """
    parameters = set(inspect.signature(getattr(erd_cuda, op)).parameters)
    assert parameters == set(FLOATING_PARAMETERS[op]) | OTHER_PARAMETERS[op]


def leaves(case: Case, batch: tuple[int, ...] = (2,)) -> dict[str, Tensor]:
    tensors = case.tensors(unit_problem(case.model, batch))
    return {name: value.requires_grad_() for name, value in tensors.items()}


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_gradcheck(case: Case) -> None:
    inputs = leaves(case)
    function = positional(case, tuple(inputs), small_weights(3))
    assert torch.autograd.gradcheck(function, tuple(inputs.values()), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_gradcheck_of_each_input_alone(case: Case) -> None:
    """Only one input needs a gradient: the others' must not be what makes it right."""
    tensors = {name: value.detach() for name, value in leaves(case).items()}
    weights = small_weights(3)
    for name in case.inputs:

        def function(value: Tensor, name: str = name) -> Tensor:
            return case(tensors | {name: value}, weights)

        leaf = tensors[name].clone().requires_grad_()
        assert function(leaf).requires_grad, name
        assert torch.autograd.gradcheck(function, (leaf,), atol=1e-6, rtol=1e-5, fast_mode=True)


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_gradgradcheck(case: Case) -> None:
    inputs = leaves(case, (1,) if case.op == "refine" else (2,))
    function = positional(case, tuple(inputs), small_weights(3))
    assert torch.autograd.gradgradcheck(
        function,
        tuple(inputs.values()),
        atol=1e-6,
        rtol=1e-4,
        # The slow mode names the entry; it is affordable for one op at this size.
        fast_mode=case.op != "project",
    )


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_gradgradcheck_of_each_input_alone(case: Case) -> None:
    tensors = {name: value.detach() for name, value in leaves(case, (1,)).items()}
    weights = small_weights(3)
    for name in case.inputs:

        def function(value: Tensor, name: str = name) -> Tensor:
            return case(tensors | {name: value}, weights)

        leaf = tensors[name].clone().requires_grad_()
        assert torch.autograd.gradgradcheck(
            function, (leaf,), atol=1e-6, rtol=1e-4, fast_mode=True
        ), name


def norm_error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).detach().norm() / expected.detach().norm().clamp(min=1e-300))


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_gradients_are_those_of_composed_torch(case: Case) -> None:
    """In millimetres and pixels, with shared (broadcast) inputs, first and second order."""
    problem = make_problem((3, 2), joints=5, model=case.model, camera_batch=(2,))
    tensors = case.tensors(problem)
    if "confidence" in tensors:
        tensors["confidence"] = tensors["confidence"][:, :1].clamp(min=0.25)
    network = small_network(5)
    weights, layers = small_weights(5), torch_layers.PaperLayers(network, torch.float64)
    names = case.inputs
    inputs = [tensors[name].clone().requires_grad_() for name in names]
    by_name = dict(zip(names, inputs, strict=True))
    if case.op == "refine":  # the plain layers take one batch axis: flatten what was broadcast
        by_name = {
            name: value.broadcast_to(3, 2, *tensors[name].shape[value.dim() - trailing(name) :])
            for name, value in by_name.items()
        }
        flat = {name: value.flatten(0, 1) for name, value in by_name.items()}
        expected = case.composed(flat, layers).unflatten(0, (3, 2))
    else:
        expected = case.composed(by_name, layers)
    got = case(dict(zip(names, inputs, strict=True)), weights)
    assert norm_error(got, expected) < 1e-11

    upstream = torch.randn_like(expected)
    first = torch.autograd.grad(got, inputs, upstream, create_graph=True)
    first_expected = torch.autograd.grad(expected, inputs, upstream, create_graph=True)
    for name, a, b in zip(names, first, first_expected, strict=True):
        assert a.shape == b.shape and norm_error(a, b) < 1e-9, name

    # Second order along a direction that weighs every input's gradient to about one.
    directions = [torch.randn_like(b) / b.detach().norm() for b in first_expected]
    second = torch.autograd.grad(first, inputs, directions, allow_unused=True)
    second_expected = torch.autograd.grad(first_expected, inputs, directions, allow_unused=True)
    for name, a, b in zip(names, second, second_expected, strict=True):
        zero = torch.zeros(())
        a, b = (zero if v is None else v for v in (a, b))
        assert norm_error(a, b) < 1e-7 or float((a - b).abs().max()) < 1e-13, name


def trailing(name: str) -> int:
    """Axes after the batch."""
    return 2 if name in ("keypoints", "pose") else 1


@pytest.mark.parametrize("case", GEOMETRY_CASES, ids=str)
def test_third_order_says_that_it_does_not_exist(case: Case) -> None:
    inputs = leaves(case)
    pose = inputs["pose"]
    output = case(inputs)
    (first,) = torch.autograd.grad(output.pow(3).sum(), pose, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(3).sum(), pose, create_graph=True)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)third|second|order|twice"):
        torch.autograd.grad(second.pow(3).sum(), pose)


@pytest.mark.parametrize("root_mode", ["given", "solve", "solve_each_stage"])
@pytest.mark.parametrize("features", FEATURES)
def test_refine_gradients_with_every_feature(features: str, root_mode: str) -> None:
    network = make_network(5, 3, 24, "linear", features, components=4, seed=3)
    weights, layers = pack(network), torch_layers.PaperLayers(network, torch.float64)
    case = Case("refine", "h36m", root_mode)
    tensors = case.tensors(make_problem((4,), joints=5, model="h36m"))
    tensors["confidence"].clamp_(min=0.25)
    inputs = {name: value.requires_grad_() for name, value in tensors.items()}
    got, expected = case(inputs, weights), case.composed(inputs, layers)
    assert norm_error(got, expected) < 1e-11
    upstream = torch.randn_like(expected)
    differentiable = list(inputs.values())
    a = torch.autograd.grad(got, differentiable, upstream, allow_unused=True)
    b = torch.autograd.grad(expected, differentiable, upstream, allow_unused=True)
    for name, ours, theirs in zip(inputs, a, b, strict=True):
        zero = torch.zeros(())
        ours, theirs = (zero if v is None else v for v in (ours, theirs))
        both_zero = bool((ours == 0).all() and (theirs == 0).all())
        assert both_zero or norm_error(ours, theirs) < 1e-9, name


@pytest.mark.parametrize("case", REFINE_CASES, ids=str)
@pytest.mark.parametrize("features", FEATURES)
def test_refine_gradgradcheck_with_every_feature(features: str, case: Case) -> None:
    network = make_network(3, stages=2, width=9, block="relu", features=features)
    inputs = leaves(case, (1,))
    function = positional(case, tuple(inputs), pack(network))
    arguments = tuple(inputs.values())
    limits = {"atol": 1e-6, "rtol": 1e-4, "fast_mode": True}
    assert torch.autograd.gradcheck(function, arguments, **limits)
    assert torch.autograd.gradgradcheck(function, arguments, **limits)


def test_gradient_of_every_stage() -> None:
    """return_stages is differentiable as a whole: a loss over all stages sees all of them."""
    problem = make_problem((3,), joints=5)
    weights = small_weights(5)
    pose = problem.tensor("pose").requires_grad_()
    keypoints, root, camera = (problem.tensor(n) for n in ("keypoints", "root", "intrinsics"))
    stages = erd_cuda.refine(keypoints, pose, root, camera, weights, return_stages=True)
    last = erd_cuda.refine(keypoints, pose, root, camera, weights)
    (through_stages,) = torch.autograd.grad(stages[-1].square().sum(), pose, retain_graph=True)
    (through_last,) = torch.autograd.grad(last.square().sum(), pose)
    assert norm_error(through_stages, through_last) < 1e-13
    (through_first,) = torch.autograd.grad(stages[0].square().sum(), pose)
    assert norm_error(through_first, through_last) > 1e-3


def test_no_graph_is_kept_where_none_is_needed() -> None:
    problem = make_problem((3,), joints=5)
    for case in ALL_CASES:
        if case.model != "pinhole":
            continue
        inputs = case.tensors(problem)
        assert not case(inputs, small_weights(5)).requires_grad
        inputs["pose"].requires_grad_()
        with torch.no_grad():
            assert not case(inputs, small_weights(5)).requires_grad
        assert case(inputs, small_weights(5)).requires_grad
