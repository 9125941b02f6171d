"""The short way into the operators gives what the long way gives, or leaves the call to it."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import erd_cuda
from erd_cuda._tensor_plan import refuse
from erd_cuda.benchmarks.problems import make_network, make_problem, pack
from erd_cuda.modules.packed import PackedRegressors
from erd_cuda.ops import direct

# By import_module: the package's attributes of these names are functions.
REFINE = importlib.import_module("erd_cuda.ops.refine")
GEOMETRY = importlib.import_module("erd_cuda.ops.geometry")

JOINTS = 5
NAMES = ("keypoints", "pose", "root", "intrinsics")
DTYPES = [torch.float32, torch.float64]


def weights_of(
    block: str, features: str, dtype: torch.dtype, width: int = 41, joints: int = JOINTS
) -> PackedRegressors:
    return pack(make_network(joints, 3, width, block, features), dtype)


def inputs_of(count: int, dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    problem = make_problem((count,), JOINTS, seed=seed)
    return [problem.tensor(name, dtype) for name in NAMES]


def without_short_way(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Any]) -> Any:
    """The call's result, kernels for many poses alone."""
    with monkeypatch.context() as context:
        context.setattr(REFINE, "refine_tensors", refuse)
        context.setattr(REFINE, "can_go", lambda *_: False)
        context.setattr(GEOMETRY, "can_go", lambda *_: False)
        context.setattr(PackedRegressors, "for_cpu", lambda *_: None)
        return call()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", ["linear", "relu"])
@pytest.mark.parametrize(
    ("features", "joints", "model"),
    [
        ("residual", 5, "pinhole"),
        ("residual", 34, "h36m"),  # a single pose fills several vectors with its joints
        ("concat", 5, "pinhole"),
        ("residual+pose", 5, "opencv"),
        ("residual+pose", 1, "pinhole"),
    ],
)
@pytest.mark.parametrize("root_mode", ["given", "solve_each_stage"])
def test_few_poses_are_refined_as_among_many(
    block: str,
    features: str,
    joints: int,
    model: str,
    root_mode: str,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = weights_of(block, features, dtype, joints=joints)
    problem = make_problem((40,), joints, model)
    # A pose without a root among them: it stays as it is.
    problem.keypoints[2] = np.nan

    def refine(first: int, count: int) -> Tensor:
        def rows(name: str) -> Tensor:
            return problem.tensor(name, dtype)[first : first + count]

        camera: Any = rows("intrinsics")
        if problem.distortion is not None:
            camera = erd_cuda.Camera(camera, rows("distortion"), model)
        where: Any = rows("root") if root_mode == "given" else root_mode
        inputs = rows("keypoints"), rows("pose"), where, camera, weights
        return erd_cuda.refine(*inputs, rows("confidence"), return_stages=True)

    expected = without_short_way(monkeypatch, lambda: refine(0, 40))
    if joints > 1 or root_mode == "given":  # one joint tells no root: its pose stays
        assert (expected[-1, 0] - problem.tensor("pose", dtype)[0]).abs().max() > 1
    for count in range(1, 9):
        for first in (0, 2, 3):
            want = expected[:, first : first + count]
            torch.testing.assert_close(refine(first, count), want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("block", ["linear", "relu"])
@pytest.mark.parametrize("closed", [False, True])
def test_one_pose_and_wide_layers(
    block: str, closed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole tiles and a rest of every vector's width; and units that are all zero."""
    weights = weights_of(block, "residual", torch.float32, 200)
    if closed:
        weights.b_in.fill_(-1e9)
    many = inputs_of(10, torch.float32)

    def refine(tensors: list[Tensor]) -> Tensor:
        return erd_cuda.refine(*tensors, weights, return_stages=True)  # type: ignore[arg-type]

    expected = without_short_way(monkeypatch, lambda: refine(many))
    for pose in (0, 9):
        one = [t[pose : pose + 1] for t in many]
        assert torch.equal(refine(one), expected[:, pose : pose + 1])


def test_the_short_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_of("linear", "residual", torch.float32)
    keypoints, pose, root, camera = inputs_of(3, torch.float32)
    taken: list[Any] = []
    monkeypatch.setattr(REFINE, "refine_tensors", refuse)
    for module in (REFINE, GEOMETRY):
        monkeypatch.setattr(module, "go", lambda *call: taken.append(call[0]) or direct.go(*call))
        monkeypatch.setattr(module, "as_rows", None)
    # One camera and one root for all, too.
    for where, lens in ((root, camera), (root[0], camera[0]), ("solve", camera[0])):
        erd_cuda.refine(keypoints, pose, where, lens, weights)
    erd_cuda.project(pose, root, camera[0])
    erd_cuda.residual(keypoints, pose, root, camera, std=torch.ones(JOINTS, 2))
    erd_cuda.solve_root(keypoints, pose, camera)
    assert [str(operator).split(".")[-1] for operator in taken] == [
        *["refine_planned"] * 3, "project", "residual", "solve_root"
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_geometry_gives_the_same_either_way(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    keypoints, pose, root, camera = inputs_of(19, dtype)
    std = torch.linspace(60, 140, 2 * JOINTS, dtype=dtype).view(JOINTS, 2)
    confidence = torch.rand(19, JOINTS, dtype=dtype)

    def everything() -> list[Tensor]:
        return [
            erd_cuda.project(pose, root, camera),
            erd_cuda.project(pose, root[0], camera[0]),
            erd_cuda.residual(keypoints, pose, root, camera, std, confidence),
            *erd_cuda.solve_root(keypoints, pose, camera, confidence[0], return_status=True),
        ]

    for got, want in zip(everything(), without_short_way(monkeypatch, everything), strict=True):
        assert got.shape == want.shape and torch.equal(got, want)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda k, p, r, c: (k.transpose(1, 2), p, r, c),
        lambda k, p, r, c: (k, p.transpose(1, 2), r, c),
        lambda k, p, r, c: (k.flatten(1), p, r, c),
        lambda k, p, r, c: (k, p, r[:, :2], c),
        lambda k, p, r, c: (k[:1].expand(2, -1, -1), p, r, c),
        lambda k, p, r, c: (k, p, r.double(), c),
        lambda k, p, r, c: (k, p, r, c[:, :3]),
        lambda k, p, r, c: (k, p[:, :-1], r, c),
        lambda k, p, r, c: (k, p, r.unsqueeze(-1), c),
    ],
)
def test_what_does_not_fit_is_refused_with_the_long_ways_words(wrong: Callable[..., Any]) -> None:
    weights = weights_of("linear", "residual", torch.float32)
    with pytest.raises((TypeError, ValueError), match=r"keypoints|pose|root|camera|weights"):
        erd_cuda.refine(*wrong(*inputs_of(3, torch.float32)), weights)


def test_other_broadcasts_take_the_long_way() -> None:
    weights = weights_of("linear", "residual", torch.float32)
    keypoints, pose, root, camera = inputs_of(6, torch.float32)
    expected = erd_cuda.refine(keypoints, pose, root, camera, weights)
    by_two = [t.unflatten(0, (3, 2)) for t in (keypoints, pose, root, camera)]
    assert torch.equal(erd_cuda.refine(*by_two, weights).flatten(0, 1), expected)
    first = erd_cuda.refine(keypoints[0], pose[0], root[0], camera[0], weights)
    assert torch.equal(first, expected[0])


@pytest.mark.parametrize("name", ["w_in", "b_in", "w_out", "b_out", "mean2d"])
def test_a_plan_follows_its_weights(name: str) -> None:
    weights = weights_of("linear", "init2d", torch.float32)
    inputs = inputs_of(2, torch.float32)
    before = erd_cuda.refine(*inputs, weights)
    twin = copy.deepcopy(weights)
    changed = getattr(weights, name)
    # In place, then by other memory.
    for change in (lambda: changed.mul_(1.5), lambda: changed.set_(changed * 1.5)):
        change()
        fresh = weights_of("linear", "init2d", torch.float32)
        getattr(fresh, name).copy_(changed)
        after = erd_cuda.refine(*inputs, weights)
        assert not torch.equal(after, before)
        assert torch.equal(after, erd_cuda.refine(*inputs, fresh))
    # The copy's plan points into the copy.
    assert torch.equal(erd_cuda.refine(*inputs, twin), before)


def all_tensors(weights: PackedRegressors) -> list[Tensor]:
    return [t for t in vars(weights).values() if isinstance(t, Tensor)]


def give_other_memory(weights: PackedRegressors) -> None:
    """In a way that torch does not count; what the old memory held is gone."""
    for tensor in all_tensors(weights):
        old = tensor.detach()
        tensor.data = tensor * 1.5
        old.fill_(torch.nan)


@pytest.mark.parametrize("block", ["linear", "relu"])
@pytest.mark.parametrize("features", ["residual", "residual+pose", "init2d"])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_memory_that_was_let_go_of_is_not_read(block: str, features: str, count: int) -> None:
    weights = weights_of(block, features, torch.float32)
    inputs = inputs_of(count, torch.float32)
    before = erd_cuda.refine(*inputs, weights)
    give_other_memory(weights)
    after = erd_cuda.refine(*inputs, weights)
    fresh = erd_cuda.refine(*inputs, copy.deepcopy(weights))
    assert not torch.equal(fresh, before)
    if count == 1 and features != "init2d":
        # The only calls that may go on with the old weights, of which the plan keeps a copy.
        assert torch.equal(after, before) or torch.equal(after, fresh)
    else:
        assert torch.equal(after, fresh)


@pytest.mark.parametrize("count", [1, 8])
def test_weights_may_move_to_shared_memory(count: int) -> None:
    weights = weights_of("linear", "concat", torch.float32)
    inputs = inputs_of(count, torch.float32)
    before = erd_cuda.refine(*inputs, weights)
    for tensor in all_tensors(weights):
        at = tensor.data_ptr()
        tensor.share_memory_()
        assert tensor.data_ptr() != at
    assert torch.equal(erd_cuda.refine(*inputs, weights), before)
    weights.w_out.mul_(2)
    assert not torch.equal(erd_cuda.refine(*inputs, weights), before)


def test_a_plan_of_something_else() -> None:
    keypoints, pose, root, camera = inputs_of(2, torch.float32)
    arguments = (keypoints, pose, root, camera, None, None)
    operator = torch.ops.erd_cuda.refine_planned
    with pytest.raises(RuntimeError, match="plan must come from plan_refine"):
        operator(*arguments, torch.zeros(3, dtype=torch.uint8), 0, 0, False)
    plan = weights_of("linear", "residual", torch.float64).plan()
    assert plan is not None
    with pytest.raises(RuntimeError, match="another dtype or another number of joints"):
        operator(*arguments, plan, 0, 0, False)
