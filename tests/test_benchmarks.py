"""Every contender of every suite runs and is right, takes its turns, and ends up on the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import erd_cuda
from erd_cuda._library import operators
from erd_cuda.benchmarks import geometry_cases, peers, refine_cases, training_cases
from erd_cuda.benchmarks.cases import OURS, PLANS, Case, Ready, WrongResultError, checked
from erd_cuda.benchmarks.inputs import draw_inputs, increment_error
from erd_cuda.benchmarks.problems import make_network, pack
from erd_cuda.benchmarks.results import CEILING_NAMES

ROOT = Path(__file__).resolve().parents[1]
TINY = PLANS["tiny"]


@pytest.mark.timeout(240)
def test_command_measures_every_suite(tmp_path: Path) -> None:
    """From another directory than the source tree's, as an installed package does."""
    for name in ("matplotlib", "pytest_benchmark"):
        pytest.importorskip(name)
    command = [sys.executable, "-m", "erd_cuda", "bench", "--tiny", "--device", "cpu"]
    finished = subprocess.run(
        [*command, "--json", "found.json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=230,
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert not [row for row in found["rows"] if "failed" in row]
    timed = [row for row in found["rows"] if "us" in row]
    suites = {"ceilings", "refine", "project", "residual", "solve_root", "training step"}
    assert {row["suite"] for row in timed} == suites | {"ERD.forward", "one call"}
    assert all(len(row["turns_us"]) == TINY.turns and row["us"] > 0 for row in timed)
    assert found["machine"]["threads"] == 1
    page = (tmp_path / "erd-bench.html").read_text()
    for row in timed:
        assert row["contender"].replace("'", "&#x27;") in page
    # All that is left out is left out for a reason that is not ours.
    for row in found["rows"]:
        if "missing" in row and row["precision"] == "fp32":
            left_to_a_full_run = row["contender"] == refine_cases.AHEAD
            assert left_to_a_full_run or "No module named" in row["missing"], row


def named(cases: list[Case], suite: str, **wanted: object) -> set[str]:
    found = {
        case.contender
        for case in cases
        if case.suite == suite and all(getattr(case, k) == v for k, v in wanted.items())
    }
    return found - CEILING_NAMES


def test_peers_run_with_and_without_the_collapse() -> None:
    peers_of_all = {"torch eager", "torch.compile", "torch.compile, frozen", "ONNX Runtime"}
    peers_of_all |= {"OpenVINO", "AOTInductor"}
    cases = refine_cases.cases(replace(PLANS["full"], refine={"linear": (1,), "relu": (1,)}), "cpu")
    linear = {"block": "linear", "precision": "fp32"}
    assert named(cases, "refine", collapsed=True, **linear) == peers_of_all | {OURS}
    assert named(cases, "refine", collapsed=False, **linear) == peers_of_all | {refine_cases.PAPER}
    relu = named(cases, "refine", block="relu", precision="fp32")
    assert relu == peers_of_all | {OURS, refine_cases.PAPER}


def test_the_quick_plan_has_all_that_there_are_targets_for() -> None:
    quick = PLANS["quick"]
    assert quick.refine == {"linear": (1, 200, 4096, 65_536), "relu": (1, 4096, 65_536)}
    assert 65_536 in quick.geometry
    small, large = (Case("refine", OURS, lambda: Ready(int, 1, 0.0), n) for n in (4096, 65_536))
    assert quick.turns_of(small) > quick.turns_of(large) > 2
    cases = geometry_cases.cases(quick, "cpu")
    assert named(cases, "solve_root") >= {OURS, "torch.compile", "torch.linalg.lstsq"}
    assert named(cases, "solve_root") >= {"torch.linalg.svd"}


# ---- turns ---------------------------------------------------------------------------------------


def test_contenders_take_turns() -> None:
    conftest = pytest.importorskip("erd_cuda.benchmarks.suites.conftest")
    cases = [
        Case("refine", name, lambda: Ready(int, 1, 0.0), batch)
        for batch in (1, 4096)
        for name in "AB"
    ]
    items = [
        SimpleNamespace(
            fixturenames=["take_turn"],
            module=refine_cases,
            callspec=SimpleNamespace(params={"case": case, "turn": turn}),
        )
        for case in cases
        for turn in range(3)
    ]
    conftest.pytest_collection_modifyitems(items)
    order = [(i.callspec.params["case"].batch, i.callspec.params["case"].contender) for i in items]
    assert order == [(batch, name) for batch in (1, 4096) for name in "ABBAAB"]


def test_a_contender_is_made_once_and_forgotten_with_its_group() -> None:
    conftest = pytest.importorskip("erd_cuda.benchmarks.suites.conftest")
    made: list[str] = []
    first, second = (Case("refine", OURS, lambda: Ready(int, 1, 0.0), batch) for batch in (1, 2))

    def make(name: str) -> Callable[[], Any]:
        return lambda: made.append(name) or conftest._Contender(Ready(int, 1, 0.0))

    contenders = conftest.Contenders(progress=False)
    for _ in range(3):
        contenders.get(first, make("first"))
    contenders.get(second, make("second"))
    contenders.get(first, make("first again"))
    assert made == ["first", "second", "first again"]

    def fail() -> Any:
        made.append("failed")
        raise ImportError("not here")

    for _ in range(2):
        with pytest.raises(ImportError, match="not here"):
            contenders.get(second, fail)
    assert made[3:] == ["failed"]


# ---- who is timed is right -----------------------------------------------------------------------


def test_who_is_wrong_is_not_timed() -> None:
    inputs, network = draw_inputs(20, 2, "cpu"), make_network()
    weights = pack(network, torch.float32)

    def right(k: Tensor, p: Tensor, r: Tensor, c: Tensor) -> Tensor:
        return erd_cuda.refine(k, p, r, c, weights)

    stale = right(*inputs[0])

    def error(result: Tensor, values: Any) -> float:
        return increment_error(result, values, network)[0]

    assert 0 < checked(right, inputs, error, 1e-4).error < 1e-4
    for wrong in (lambda *i: right(*i) + 1.0, lambda *i: stale, lambda *i: right(*i) * torch.nan):
        with pytest.raises(WrongResultError, match=r"error \S+, at most 0.0001 is right"):
            checked(wrong, inputs, error, 1e-4)


def test_zeros_are_not_timed() -> None:
    inputs = [[torch.zeros(3)], [torch.ones(3)]]
    with pytest.raises(AssertionError, match="a benchmark of zeros"):
        checked(torch.neg, inputs, lambda result, values: 0.0, 1.0)


def test_inputs_rotate() -> None:
    inputs = [[torch.full((1,), float(i))] for i in (1, 2, 3)]
    seen: list[float] = []
    ready = checked(lambda t: seen.append(float(t)) or t, inputs, lambda *_: 0.0, 1.0)
    seen.clear()
    for _ in range(5):
        ready.run()
    assert seen == [1.0, 2.0, 3.0, 1.0, 2.0]


@pytest.mark.parametrize("op", sorted(geometry_cases.FLOATS))
def test_wrong_geometry_is_seen(op: str) -> None:
    (inputs,) = draw_inputs(30, 1, "cpu")
    result = geometry_cases.functions(op, "cpu")[0](*inputs)
    assert geometry_cases.error(op, result, inputs) < 1e-5
    result[-1] *= 1.1
    assert geometry_cases.error(op, result, inputs) > geometry_cases.TOLERANCE


def test_wrong_steps_are_seen() -> None:
    """Of the loop that is timed, in which one operator does the whole step."""
    data = training_cases.draw_data(1, "cpu")
    module = training_cases.our_module("cpu")
    before = training_cases.flat(module)
    assert training_cases.step_error(module, partial(training_cases.loop, module), data) < 1e-4
    assert module.dropout.p == 0.25 and torch.equal(training_cases.flat(module), before)

    def other_adam(data: Any, eps: float) -> Callable[[], object]:
        return training_cases.loop(module, data, 1.05 * eps)

    def other_loss(data: Any, eps: float) -> Callable[[], object]:
        return training_cases.stepper(module, lambda x: 1.01 * module(x), False, data, eps)

    for wrong in (other_adam, other_loss):
        assert training_cases.step_error(module, wrong, data) > training_cases.TOLERANCE


@pytest.mark.parametrize(("block", "collapsed"), [("linear", True), ("linear", False), ("relu", 0)])
def test_arrays_compute_the_refiner(block: str, collapsed: bool) -> None:
    """CuPy's peer, by NumPy."""
    network = make_network(block=block)
    weights = pack(network if collapsed else replace(network, block="relu"), torch.float32)
    (inputs,) = draw_inputs(9, 1, "cpu")
    refined = peers.ArrayLayers(weights, np, activation=block == "relu")(*inputs)
    assert increment_error(refined, inputs, network)[0] < 1e-5


# ---- the multiply-add ceiling --------------------------------------------------------------------


def test_multiply_adds_are_counted_and_done() -> None:
    lanes = {"portable": 4, "avx2": 8, "avx512": 16, "avx512_bf16": 16}
    lane = lanes.get(erd_cuda.build_info()["cpu_capability"], 4)
    once = operators.multiply_adds(1, 1)
    assert once % (2 * lane) == 0
    assert operators.multiply_adds(1000, 3) == 3000 * once

    def seconds(steps: int) -> float:
        begin = time.perf_counter()
        operators.multiply_adds(steps, 1)
        return time.perf_counter() - begin

    # Nothing was computed in advance: a hundred times the steps take longer by far.
    assert min(seconds(1_000_000) for _ in range(3)) > 10 * min(seconds(10_000) for _ in range(3))
    with pytest.raises(RuntimeError, match="steps and tasks must be positive"):
        operators.multiply_adds(0, 1)
