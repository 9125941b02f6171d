"""torch.func, compile, export, autocast, meta and fake tensors: works, or clearly refuses."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from op_calls import ALL_CASES, REFINE_CASES, Case, positional, small_weights
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

import erd_cuda
from erd_cuda.benchmarks.problems import FEATURES, make_network, make_problem, pack

BATCH = 6
JOINTS = 5


def inputs_of(case: Case, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    tensors = case.tensors(make_problem((BATCH,), JOINTS, case.model), dtype)
    if "std" in tensors:  # one axis everywhere, so that every input can be mapped over
        tensors["std"] = tensors["std"].expand(BATCH, JOINTS, 2).clone()
    return tensors


def shape_of(case: Case, batch: int) -> tuple[int, ...]:
    return {
        "project": (batch, JOINTS, 2),
        "residual": (batch, JOINTS, 2),
        "solve_root": (batch, 3),
        "solve_residual": (batch, 2 * JOINTS + 3),
        "refine": (batch, JOINTS, 3),
    }[case.op]


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_vmap_over_every_input(case: Case) -> None:
    inputs = inputs_of(case)
    function = positional(case, tuple(inputs), small_weights(JOINTS))
    expected = function(*inputs.values())
    assert torch.equal(torch.vmap(function)(*inputs.values()), expected)


@pytest.mark.parametrize("case", REFINE_CASES, ids=str)
@pytest.mark.parametrize("features", FEATURES)
def test_vmap_with_every_feature(features: str, case: Case) -> None:
    """And of the gradient of each sample."""
    inputs = inputs_of(case)
    weights = pack(make_network(JOINTS, 2, 9, "relu", features))
    function = positional(case, tuple(inputs), weights)
    expected = function(*inputs.values())
    assert torch.equal(torch.vmap(function)(*inputs.values()), expected)

    def loss(pose: Tensor, *others: Tensor) -> Tensor:
        named = dict(zip(inputs, others, strict=True)) | {"pose": pose}
        return case(named, weights).square().sum()

    got = torch.vmap(torch.func.grad(loss))(inputs["pose"], *inputs.values())
    leaf = inputs["pose"].clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf, *inputs.values()), leaf)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=0)


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_vmap_over_some_inputs_and_other_axes(case: Case) -> None:
    inputs = inputs_of(case)
    function = positional(case, tuple(inputs), small_weights(JOINTS))
    for mapped in case.inputs:
        arguments = [v if name == mapped else v[0] for name, v in inputs.items()]
        in_dims = [0 if name == mapped else None for name in inputs]
        expected = torch.stack(
            [
                function(*(v[i] if name == mapped else v[0] for name, v in inputs.items()))
                for i in range(BATCH)
            ]
        )
        assert torch.equal(torch.vmap(function, tuple(in_dims))(*arguments), expected), mapped
        arguments = [
            inputs[name].movedim(0, -1) if name == mapped else inputs[name][0] for name in inputs
        ]
        in_dims = [-1 if name == mapped else None for name in inputs]
        moved = torch.vmap(function, tuple(in_dims), out_dims=1)(*arguments)
        assert torch.equal(moved.movedim(1, 0), expected), mapped


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_nested_vmap_is_broadcasting(case: Case) -> None:
    """Every pose with every camera."""
    inputs = inputs_of(case)
    weights = small_weights(JOINTS)

    def one(pose: Tensor, intrinsics: Tensor) -> Tensor:
        fixed = {name: value[0] for name, value in inputs.items()}
        return case(fixed | {"pose": pose, "intrinsics": intrinsics}, weights)

    over_cameras = torch.vmap(one, (None, 0))
    got = torch.vmap(over_cameras, (0, None))(inputs["pose"], inputs["intrinsics"])
    expected = torch.stack(
        [torch.stack([one(p, c) for c in inputs["intrinsics"]]) for p in inputs["pose"]]
    )
    assert torch.equal(got, expected)


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_vmap_of_grad_is_the_gradient_of_each_sample(case: Case) -> None:
    inputs = inputs_of(case)
    function = positional(case, tuple(inputs), small_weights(JOINTS))
    everything = tuple(range(len(inputs)))

    def loss(*sample: Tensor) -> Tensor:
        return function(*sample).square().sum()

    per_sample = torch.vmap(torch.func.grad(loss, everything))(*inputs.values())
    leaves = [value.clone().requires_grad_() for value in inputs.values()]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    for name, got, want in zip(inputs, per_sample, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=0, msg=name)


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_func_grad_and_its_gradient(case: Case) -> None:
    inputs = inputs_of(case)
    weights = small_weights(JOINTS)

    def loss(pose: Tensor) -> Tensor:
        return case(inputs | {"pose": pose}, weights).square().sum()

    def slope(pose: Tensor) -> Tensor:
        return torch.func.grad(loss)(pose).square().sum()

    leaf = inputs["pose"].clone().requires_grad_()
    (first,) = torch.autograd.grad(loss(leaf), leaf, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(inputs["pose"]), first.detach())
    torch.testing.assert_close(torch.func.grad(slope)(inputs["pose"]), second)


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_jacrev(case: Case) -> None:
    """Backward under vmap: all rows of the Jacobian in one call."""
    inputs = inputs_of(case)
    weights = small_weights(JOINTS)

    def one(pose: Tensor) -> Tensor:
        return case({name: v[0] for name, v in inputs.items()} | {"pose": pose}, weights)

    pose = inputs["pose"][0]
    jacobian = torch.func.jacrev(one)(pose)
    torch.testing.assert_close(jacobian, torch.autograd.functional.jacobian(one, pose))
    assert (jacobian != 0).any()


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_forward_mode_refuses(case: Case) -> None:
    """Zero tangents would be a silent wrong answer."""
    inputs = inputs_of(case)
    weights = small_weights(JOINTS)

    def one(pose: Tensor) -> Tensor:
        return case(inputs | {"pose": pose}, weights)

    pose = inputs["pose"]
    with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)jvp|forward"):
        torch.func.jvp(one, (pose,), (torch.ones_like(pose),))
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)jvp|forward"),
    ):
        one(torch.autograd.forward_ad.make_dual(pose, torch.ones_like(pose)))


def everything(
    keypoints: Tensor, pose: Tensor, root: Tensor, intrinsics: Tensor, weights: Any
) -> Tensor:
    """All four ops with ordinary torch around them, as a model would use them."""
    solved, status = erd_cuda.solve_root(keypoints, pose, intrinsics, return_status=True)
    where = torch.where((status == 0).unsqueeze(-1), solved, root)
    refined = erd_cuda.refine(keypoints, pose * 1.0, where, intrinsics, weights)
    left = erd_cuda.residual(keypoints, refined, where, intrinsics)
    return refined.sum(-1) + left.sum(-1) + erd_cuda.project(pose, root, intrinsics).sum(-1)


def arguments(batch: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    problem = make_problem((batch,), JOINTS, seed=batch)
    return [problem.tensor(n, dtype) for n in ("keypoints", "pose", "root", "intrinsics")]


#: None equal to another axis (2, 3, 4, 5): torch.compile gives axes of one length one symbol, and
#: a batch of three poses would be taken for the three coordinates.
BATCH_SIZES = (7, 9, 33, 130)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_fullgraph_with_any_batch_size(backend: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    weights = small_weights(JOINTS, torch.float32)
    compiled = torch.compile(
        lambda *inputs: everything(*inputs, weights),
        backend=counter,
        fullgraph=True,
        dynamic=True,
    )
    for batch in BATCH_SIZES:
        inputs = arguments(batch)
        expected = everything(*inputs, weights)
        torch.testing.assert_close(compiled(*inputs), expected, rtol=1e-5, atol=1e-3)
    assert counter.frame_count == 1


def test_compile_with_gradients() -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    weights = small_weights(JOINTS)

    def loss(*inputs: Tensor) -> Tensor:
        return everything(*inputs, weights).square().mean()

    compiled = torch.compile(loss, backend=counter, fullgraph=True, dynamic=True)
    for batch in BATCH_SIZES[:3]:
        gradients = []
        for function in (compiled, loss):
            leaves = [value.requires_grad_() for value in arguments(batch, torch.float64)]
            gradients.append(torch.autograd.grad(function(*leaves), leaves))
        for got, want in zip(*gradients, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-10, atol=0)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    "case",
    [case for case in ALL_CASES if case.model == "opencv" or case.root_mode != "given"],
    ids=str,
)
def test_compile_with_lens_and_solved_root(case: Case) -> None:
    """What the pinhole function above leaves out."""
    torch._dynamo.reset()
    inputs = inputs_of(case)
    weights = small_weights(JOINTS)
    compiled = torch.compile(
        positional(case, tuple(inputs), weights), backend="aot_eager", fullgraph=True, dynamic=True
    )
    assert torch.equal(compiled(*inputs.values()), case(inputs, weights))


class OpModule(nn.Module):
    """An op in a module, as torch.export wants it."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.weights = small_weights(JOINTS)

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        return self.case(inputs, self.weights)


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_export_save_load_run_with_another_batch(case: Case) -> None:
    inputs = inputs_of(case)
    batch = torch.export.Dim("batch", min=2, max=100_000)
    program = torch.export.export(
        OpModule(case), (inputs,), dynamic_shapes=({name: {0: batch} for name in inputs},)
    )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for size in (2, 5, 33):
        other = case.tensors(make_problem((size,), JOINTS, case.model, seed=size))
        if "std" in other:
            other["std"] = other["std"].expand(size, JOINTS, 2).clone()
        assert torch.equal(loaded(other), case(other, small_weights(JOINTS)))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_autocast_computes_in_float32(case: Case, half: torch.dtype) -> None:
    """16 bits would be 4 px of rounding at the edge of an image: inputs are raised, the result is
    float32.
    """
    inputs = inputs_of(case, torch.float32)
    weights = small_weights(JOINTS, torch.float32)
    lowered = {name: value.to(half) for name, value in inputs.items()}
    raised = {name: value.float() for name, value in lowered.items()}
    with torch.autocast("cpu", dtype=half):
        got = case(lowered, weights)
        mixed = case(raised | {"pose": lowered["pose"]}, weights)
        plain = case(inputs, weights)
    assert got.dtype == torch.float32
    assert torch.equal(got, case(raised, weights))
    assert torch.equal(mixed, got)
    assert torch.equal(plain, case(inputs, weights))


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_gradients_under_autocast_have_the_inputs_dtype(case: Case) -> None:
    inputs = inputs_of(case, torch.float32)
    pose = inputs["pose"].bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = case(inputs | {"pose": pose}, small_weights(JOINTS, torch.float32))
    output.sum().backward()
    assert pose.grad is not None and pose.grad.dtype == torch.bfloat16
    assert (pose.grad != 0).any()


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_meta_and_fake_tensors_have_shape_and_dtype(case: Case) -> None:
    inputs = inputs_of(case, torch.float32)
    weights = small_weights(JOINTS, torch.float32)
    meta = case({name: value.to("meta") for name, value in inputs.items()}, weights.to("meta"))
    assert meta.is_meta and meta.dtype == torch.float32
    assert tuple(meta.shape) == shape_of(case, BATCH)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake_inputs = {name: mode.from_tensor(value) for name, value in inputs.items()}
        fake = case(fake_inputs, weights)
        assert tuple(fake.shape) == shape_of(case, BATCH)
        assert fake.dtype == torch.float32 and fake.device.type == "cpu"


def test_vmap_of_status() -> None:
    problem = make_problem((BATCH,), JOINTS)
    keypoints, pose, camera = (problem.tensor(n) for n in ("keypoints", "pose", "intrinsics"))
    keypoints[2] = 500.0

    def one(k: Tensor, p: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        return erd_cuda.solve_root(k, p, c, return_status=True)

    root, status = torch.vmap(one)(keypoints, pose, camera)
    expected, expected_status = erd_cuda.solve_root(keypoints, pose, camera, return_status=True)
    assert torch.equal(root, expected) and torch.equal(status, expected_status)
    assert status[2] == erd_cuda.RootStatus.ONE_IMAGE_POINT
