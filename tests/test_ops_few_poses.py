"""Few poses on the CPU leave torch where nothing would miss them, and only there."""

from __future__ import annotations

import contextlib
import copy
import gc
import importlib
import pickle
import resource
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile

import erd_cuda
from erd_cuda._tensor_plan import _watchers, refuse
from erd_cuda.benchmarks.problems import make_network, make_problem, pack
from erd_cuda.modules.packed import PackedRegressors

# By import_module: the package's attribute of this name is a function.
REFINE = importlib.import_module("erd_cuda.ops.refine")

JOINTS = 5
NAMES = ("keypoints", "pose", "root", "intrinsics")

pytestmark = pytest.mark.skipif(
    REFINE.refine_tensors is refuse, reason="this torch has no table of functions for C code"
)


@pytest.fixture
def weights() -> PackedRegressors:
    """Such that the next call may leave torch."""
    made = pack(make_network(JOINTS, 3, 41), torch.float32)
    assert made.plan() is not None
    return made


def inputs_of(count: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    problem = make_problem((count,), JOINTS, seed=3)
    return [problem.tensor(name, dtype) for name in NAMES]


def negated(t: Tensor) -> Tensor:
    """The same numbers, the sign of those in memory put off."""
    view = torch.complex(torch.zeros_like(t), -t).conj().imag
    assert view.is_neg() and torch.equal(view, t)
    return view


class Outcomes(list[bool]):
    """For every attempt to leave torch, whether it gave the result."""


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> Outcomes:
    outcomes = Outcomes()
    native = REFINE.refine_tensors

    def refine_tensors(*arguments: Any) -> Any:
        result = native(*arguments)
        outcomes.append(result is not None)
        return result

    monkeypatch.setattr(REFINE, "refine_tensors", refine_tensors)
    return outcomes


def by_operator(monkeypatch: pytest.MonkeyPatch, call: Callable[[], Tensor]) -> Tensor:
    with monkeypatch.context() as context:
        context.setattr(REFINE, "refine_tensors", refuse)
        return call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [1, 5, 8])
@pytest.mark.parametrize("stages", [False, True])
def test_the_result_is_the_operators(
    count: int, stages: bool, dtype: torch.dtype, left: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = pack(make_network(JOINTS, 3, 41, "relu"), dtype)
    weights.plan()
    keypoints, pose, root, camera = inputs_of(count, dtype)
    confidence = torch.rand(count, JOINTS, dtype=dtype)
    confidence[0, 1] = 0
    distorted = erd_cuda.Camera(
        camera, torch.tensor([-0.2, 0.24, -1e-3, -9e-4, -2e-3], dtype=dtype), "h36m"
    )
    # In memory of others: columns of a larger tensor, every second sample, joints backwards.
    wide = torch.randn(count, JOINTS, 6, dtype=dtype)
    wide[..., 1:3] = keypoints
    strided = wide[..., 1:3]
    turned = pose.flip(1).flip(1).transpose(1, 2).contiguous().transpose(1, 2)
    for arguments, joint_weights in (
        ((keypoints, pose, root, camera), None),
        ((strided, turned, root[0], camera[0]), confidence),
        ((keypoints, pose, "solve_each_stage", distorted), confidence[0]),
    ):

        def call() -> Tensor:
            return erd_cuda.refine(*arguments, weights, joint_weights, return_stages=stages)  # type: ignore[arg-type]  # noqa: B023

        del left[:]
        got = call()
        assert left == [True]
        want = by_operator(monkeypatch, call)
        assert got.dtype == dtype and got.is_contiguous() and not got.requires_grad
        assert got.shape == want.shape and torch.equal(got, want)


@pytest.mark.parametrize(
    "change",
    [
        lambda k, p, r, c: (*inputs_of(9), {}),
        lambda k, p, r, c: (k, p.requires_grad_(), r, c, {}),
        lambda k, p, r, c: (k, p, torch.nn.Parameter(r), c, {}),
        lambda k, p, r, c: (negated(k), p, r, c, {}),
        lambda k, p, r, c: (k[0], p[0], r[0], c[0], {}),
        lambda k, p, r, c: (k[:1], p, r, c, {}),
        lambda k, p, r, c: (k[None], p, r, c, {}),
    ],
    ids=["many", "gradient", "parameter", "negated", "no batch", "broadcast", "two batches"],
)
def test_what_this_way_does_not_serve(
    change: Callable[..., Any],
    weights: PackedRegressors,
    left: Outcomes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    *inputs, options = change(*inputs_of(2))
    got = erd_cuda.refine(*inputs, weights, **options)
    assert left == [False]
    want = by_operator(monkeypatch, lambda: erd_cuda.refine(*inputs, weights, **options))
    assert torch.equal(got, want) and got.requires_grad == want.requires_grad
    if any(t.requires_grad for t in inputs):
        with torch.no_grad():
            erd_cuda.refine(*inputs, weights)
        # But a subclass has ideas of its own, with gradients or without.
        assert left[-1] == all(type(t) is Tensor for t in inputs)


@pytest.mark.parametrize("name", ["keypoints", "pose", "root", "camera", "confidence"])
@pytest.mark.parametrize(
    "wrong",
    [
        lambda t: t.double(),
        lambda t: t.to(torch.int32),
        lambda t: t.to("meta"),
        lambda t: t[..., :-1],
        lambda t: torch.cat([t, t]),
        lambda t: t.tolist(),
    ],
    ids=["float64", "int32", "meta", "narrow", "long", "list"],
)
def test_wrong_arguments_are_named(
    name: str, wrong: Callable[[Tensor], Any], weights: PackedRegressors, left: Outcomes
) -> None:
    keypoints, pose, root, camera = inputs_of(3)
    arguments: dict[str, Any] = {"keypoints": keypoints, "pose": pose, "root": root}
    arguments |= {"camera": camera, "confidence": torch.ones(3, JOINTS), "weights": weights}
    arguments[name] = wrong(arguments[name])
    with pytest.raises((TypeError, ValueError), match=name):
        erd_cuda.refine(**arguments)
    assert left == [False]


def test_changed_weights_are_noticed(weights: PackedRegressors, left: Outcomes) -> None:
    inputs = inputs_of(2)
    before = erd_cuda.refine(*inputs, weights)
    weights.w_out.mul_(2)
    after = erd_cuda.refine(*inputs, weights)
    assert not torch.equal(after, before)
    weights.b_in.set_(weights.b_in * 1.5)
    assert not torch.equal(erd_cuda.refine(*inputs, weights), after)
    assert left == [True, False, False]
    erd_cuda.refine(*inputs, weights)
    assert left[-1]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda w: pickle.loads(pickle.dumps(w))])
def test_copies_have_plans_of_their_own(
    duplicate: Callable[[Any], Any], weights: PackedRegressors, left: Outcomes
) -> None:
    inputs = inputs_of(2)
    expected = erd_cuda.refine(*inputs, weights)
    twin = duplicate(weights)
    assert not twin.tensor_plans
    weights.w_out.zero_()
    assert torch.equal(erd_cuda.refine(*inputs, twin), expected)
    assert torch.equal(erd_cuda.refine(*inputs, twin), expected)
    assert left == [True, False, True]


def test_a_plan_outlives_its_owner() -> None:
    weights = pack(make_network(JOINTS, 3, 41), torch.float32)
    weights.plan()
    inputs = inputs_of(2)
    expected = erd_cuda.refine(*inputs, weights)
    plans = SimpleNamespace(tensor_plans=dict(weights.tensor_plans))
    owner = weakref.ref(weights)
    del weights
    gc.collect()
    assert owner() is None
    [torch.full((3, 41, 16), torch.nan) for _ in range(100)]
    again = REFINE.refine_tensors(*inputs, plans, None, False, "auto")
    assert torch.equal(again, expected)


def test_results_belong_to_torch(weights: PackedRegressors) -> None:
    inputs = inputs_of(8)
    result = erd_cuda.refine(*inputs, weights)
    kept = result[3:5]
    expected = kept.clone()
    result.requires_grad_()
    (result * 2).sum().backward()
    assert result.grad is not None and result.data_ptr() % 64 == 0
    del result
    [torch.full((8, JOINTS, 3), torch.nan) for _ in range(100)]
    assert torch.equal(kept, expected)

    # What is let go of is freed: a hundred thousand results would be 50 MB.
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(100_000):
        erd_cuda.refine(*inputs, weights)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 20_000, f"{grown} KiB more"


def test_memory_that_is_gone(weights: PackedRegressors, left: Outcomes) -> None:
    inputs = inputs_of(2)
    inputs[0].untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="keypoints has no memory"):
        erd_cuda.refine(*inputs, weights)
    assert left == [False]


def test_much_work_goes_to_all_threads(left: Outcomes) -> None:
    wide = pack(make_network(JOINTS, 4, 512, "relu"), torch.float32)
    wide.plan()
    erd_cuda.refine(*inputs_of(1), wide)
    assert left == [False]


def test_a_compiled_function_keeps_the_operator(weights: PackedRegressors, left: Outcomes) -> None:
    inputs = inputs_of(2)

    def refine(*tensors: Tensor) -> Tensor:
        return erd_cuda.refine(*tensors, weights)

    compiled = torch.compile(refine, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*inputs), refine(*inputs))
    assert left == [True]


def test_return_stages_that_is_no_truth_value(weights: PackedRegressors) -> None:
    stages: Any = torch.ones(2)
    with pytest.raises(RuntimeError, match="Boolean value of Tensor"):
        erd_cuda.refine(*inputs_of(2), weights, return_stages=stages)


def test_a_camera_that_lost_its_distortion(weights: PackedRegressors, left: Outcomes) -> None:
    keypoints, pose, root, intrinsics = inputs_of(2)
    camera = erd_cuda.Camera(intrinsics, torch.zeros(5), "opencv")
    object.__setattr__(camera, "distortion", None)
    with contextlib.suppress(Exception):  # another way says what it thinks of it
        erd_cuda.refine(keypoints, pose, root, camera, weights)
    assert left == [False]


@pytest.mark.parametrize("flag", range(len(_watchers()[1])))
def test_every_flag_of_torch_is_looked_at(
    flag: int, weights: PackedRegressors, left: Outcomes, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, name, _ = _watchers()[1][flag]
    inputs = inputs_of(2)
    with monkeypatch.context() as context:
        context.setitem(names, name, object())
        assert REFINE.refine_tensors(*inputs, weights, None, False, "auto") is None
    assert left == [False]


def test_modes_are_asked_nothing(weights: PackedRegressors) -> None:
    asked = []

    class Listening(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            asked.append(function)
            return function(*args, **(kwargs or {}))

    inputs = inputs_of(2)
    with Listening():
        assert REFINE.refine_tensors(*inputs, weights, None, False, "auto") is None
    assert asked == []


def test_what_watches_torch_sees_the_operator(weights: PackedRegressors, left: Outcomes) -> None:
    inputs = inputs_of(2)
    expected = erd_cuda.refine(*inputs, weights)
    del left[:]

    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        assert torch.equal(erd_cuda.refine(*inputs, weights), expected)
    assert any(event.name.startswith("erd_cuda::refine") for event in profiled.events())

    class Silent(TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            return function(*args, **(kwargs or {}))

    with Silent():
        assert torch.equal(erd_cuda.refine(*inputs, weights), expected)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert type(erd_cuda.refine(*inputs, weights)) is not Tensor

    def one(k: Tensor, p: Tensor, r: Tensor, c: Tensor) -> Tensor:
        return erd_cuda.refine(k, p, r, c, weights)

    assert torch.equal(torch.vmap(one)(*inputs), expected)
    tries = len(left)
    # Even if none of the tensors takes part in the transform.
    torch.vmap(lambda x: erd_cuda.refine(*inputs, weights).sum() + x)(torch.arange(2.0))
    assert len(left) > tries
    traced = torch.jit.trace(one, tuple(inputs), check_trace=False)
    others = [t.flip(0) for t in inputs]
    assert torch.equal(traced(*others), expected.flip(0))
    # Forward-mode derivatives do not exist; saying so is the Function's part.
    with forward_ad.dual_level(), pytest.raises(RuntimeError):
        dual = forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0]))
        erd_cuda.refine(dual, *inputs[1:], weights)
    assert left and not any(left)
