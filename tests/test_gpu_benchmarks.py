"""The GPU benchmarks time what is right and say what it is: what of that a CPU can show."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import erd_cuda
from erd_cuda.benchmarks import gpu, gpu_refine, gpu_suites, gpu_timing, training_cases
from erd_cuda.benchmarks.bundled_model import errors_in_mm
from erd_cuda.benchmarks.inputs import draw_inputs, increment_error
from erd_cuda.benchmarks.problems import make_network, pack
from erd_cuda.training import loop


def test_both_blocks_come_first_with_all_their_peers() -> None:
    clock = gpu_timing.Clock(1.0)
    names = [name for name, _ in gpu.suites("cuda", clock, clock, gpu.FULL)]
    assert names[0] == "ceilings"  # what fractions are of
    assert names[1:7] == [
        f"refine {block} {batch}"
        for batch in (65_536, 1, 1_048_576)
        for block in ("linear", "relu")
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("block", ["linear", "relu"])
def test_every_peer_with_and_without_the_collapse(block: str) -> None:
    found = {(c.name, c.precision, c.collapsed) for c in gpu_refine.contenders(block, "cpu", {})}
    for collapsed in (True, False) if block == "linear" else (False,):
        for name in ("torch eager", "torch graph", "torch.compile", "triton"):
            assert (name, "fp16", collapsed) in found
        for name in ("torch eager", "torch graph"):
            assert {(name, "fp32", collapsed), (name, "tf32", collapsed)} <= found


def test_tf32_is_allowed_to_the_peers_that_are_named_so_and_to_no_other() -> None:
    seen = []

    def product(*_: Tensor) -> Tensor:
        seen.append(torch.backends.cuda.matmul.allow_tf32)
        return torch.ones(1)

    before = torch.backends.cuda.matmul.allow_tf32
    gpu_refine._with_tf32(product)()
    assert seen == [True]
    assert torch.backends.cuda.matmul.allow_tf32 == before


# ---- who is timed is right -----------------------------------------------------------------------


def refiner() -> Any:
    weights = pack(make_network(), torch.float32)
    return lambda *inputs: erd_cuda.refine(*inputs, weights)


@pytest.mark.parametrize("count", [1, 40, 3000])
def test_errors_at_both_ends_of_a_batch_are_seen(count: int) -> None:
    (inputs,) = draw_inputs(count, 1, "cpu")
    right = refiner()(*inputs)
    assert increment_error(right, inputs, make_network())[0] < 1e-5
    for row in {0, count - 1}:
        wrong = right.clone()
        wrong[row] += 100.0
        assert increment_error(wrong, inputs, make_network())[0] > 1e-2


def test_who_is_wrong_in_the_timed_pass_is_not_timed() -> None:
    inputs = draw_inputs(20, 2, "cpu")
    refine = refiner()
    row: dict[str, Any] = {"precision": "fp32"}
    watch = gpu_refine.checked(refine, inputs, make_network(), row, graph=True)
    assert watch is not None and "failed" not in row and 0 < row["error"] < 1e-5

    def stale(*values: Tensor) -> Tensor:
        """What was right once, whatever the inputs are now: a graph that captured nothing."""
        return kept

    kept = refine(*inputs[0])
    assert gpu_refine.checked(stale, inputs, make_network(), row, graph=True) is None
    assert row["failed"] == "wrong result"


def test_a_training_that_learns_nothing_is_not_timed(monkeypatch: Any) -> None:
    monkeypatch.setattr(training_cases, "train_epoch", lambda *arguments: None)
    clock = gpu_timing.Clock(100.0)
    first, *others = gpu_suites.training_suite("cpu", clock, gpu.TINY)
    assert "torch.compile, graph" in [row["contender"] for row in others]
    assert first["failed"] == "the loss did not go down" and "us" not in first
    assert all("us" in row and row["loss_after"] < row["loss_before"] for row in others)


def test_the_training_loop_is_timed_as_training_runs_it(monkeypatch: Any) -> None:
    made: list[Any] = []

    def make_steps(*arguments: Any) -> Any:
        made.append(loop.make_steps(*arguments))
        return made[-1]

    monkeypatch.setattr(training_cases, "make_steps", make_steps)
    used: list[Any] = []
    monkeypatch.setattr(
        training_cases, "train_epoch", lambda *arguments: used.append(arguments[-1])
    )
    training_cases.loop(training_cases.our_module("cpu"), training_cases.draw_data(1, "cpu"))()
    assert made == used and made[0] is not None


# ---- what is said about it -----------------------------------------------------------------------


def test_accuracy_names_its_poses_and_figures() -> None:
    rows = gpu_suites.accuracy_suite("cpu")
    assert {row["precision"] for row in rows} == {"auto", "fp32"}
    for row in rows:
        assert "synthetic" in row["test_set"] and f"{row['poses']} poses" in row["test_set"]
        assert row["mpjpe_mm"] == pytest.approx(row["mpjpe_float64_mm"], abs=1e-3)
        assert 0 < row["mean_distance_mm"] < row["largest_distance_mm"] < 0.1


def test_the_largest_distance_is_a_joints(monkeypatch: Any) -> None:
    exact = erd_cuda.refine

    def moved(*inputs: Any, **options: Any) -> Tensor:
        pose = exact(*inputs, **options)
        pose[3, 2, 0] += 5.0
        return pose

    errors_in_mm("fp32", "cpu")  # the float64 reference, before anything is moved
    monkeypatch.setattr(erd_cuda, "refine", moved)
    errors = errors_in_mm("fp32", "cpu")
    assert errors["largest_distance_mm"] == pytest.approx(5.0, abs=0.1)
    assert errors["mean_distance_mm"] < 0.1


def test_host_times_leave_room_in_the_queue_of_launches() -> None:
    """A queue holds about a thousand; ours launch one kernel a call."""
    assert gpu.FULL["calls"] <= 500
