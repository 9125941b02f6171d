"""Runs cases: each contender is made and checked once, then all of a group take turns.

    pytest --pyargs erd_cuda.benchmarks.suites                  measure
    pytest --pyargs erd_cuda.benchmarks.suites --erd-plan tiny  everything runs, nothing is measured

A machine's speed drifts over minutes. pytest-benchmark times one test after the other, so a case is
not one test but as many as there are turns, and the turns of a group's contenders alternate; the
report puts them together again.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from erd_cuda.benchmarks.cases import PLANS, Case, Ready, WrongResultError
from erd_cuda.benchmarks.machine import machine_facts

#: Between two contenders: threads of the last one's that still spin go to sleep.
_PAUSE = 0.02
#: Seconds after which the first part of a call no longer matters to the whole.
_LONG = 0.1


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("erd_cuda")
    group.addoption("--erd-plan", choices=sorted(PLANS), default="full", help="how much to measure")
    group.addoption("--erd-device", choices=("cpu", "cuda"), default="cpu", help="where to measure")
    group.addoption("--erd-threads", type=int, help="CPU threads of all contenders")
    group.addoption("--erd-progress", action="store_true", help="name each group on stderr")


def pytest_configure(config: pytest.Config) -> None:
    threads = config.getoption("erd_threads")
    if threads is not None:
        torch.set_num_threads(threads)
    # One piece of code is compiled for every batch size and network.
    torch._dynamo.config.recompile_limit = 200
    config.stash[_NOT_TIMED] = {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    plan = PLANS[metafunc.config.getoption("erd_plan")]
    cases = metafunc.module.cases(plan, metafunc.config.getoption("erd_device"))
    turns = [(case, turn) for case in cases for turn in range(plan.turns_of(case))]
    names = [f"{case}-turn{turn}" for case, turn in turns]
    metafunc.parametrize(("case", "turn"), turns, ids=names)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A group after the other; in a group, a turn of all contenders after the other."""
    groups: dict[object, int] = {}
    places: dict[Case, int] = {}

    def place(item: Any) -> tuple[int, int, int]:
        case, turn = item.callspec.params["case"], item.callspec.params["turn"]
        group = groups.setdefault((item.module.__name__, case.group), len(groups))
        number = places.setdefault(case, len(places))
        # Neighbours in time change sides.
        return group, turn, number if turn % 2 == 0 else -number

    timed = [item for item in items if "take_turn" in getattr(item, "fixturenames", ())]
    others = [item for item in items if item not in timed]
    items[:] = others + sorted(timed, key=place)


@dataclass
class _Contender:
    """What is known of a case after its first turn."""

    ready: Ready
    iterations: int = 1
    rounds: int = 1
    warm_up: bool = True


class Contenders:
    """Those of one group, made at their first turn and kept until the next group begins."""

    def __init__(self, progress: bool) -> None:
        self._progress = progress
        self._begin = time.monotonic()
        self._group: object = None
        self._made: dict[Case, _Contender | Exception] = {}

    def get(self, case: Case, make: Callable[[], _Contender]) -> _Contender:
        """The contender; the exception that making it raised is raised again at every turn."""
        if case.group != self._group:
            self._made.clear()
            torch._dynamo.reset()
            gc.collect()
            self._group = case.group
            if self._progress:
                name = " ".join(map(str, filter(None, case.group)))
                passed = time.monotonic() - self._begin
                print(f"{passed:4.0f} s  {name}", file=sys.stderr, flush=True)
        if case not in self._made:
            try:
                self._made[case] = make()
            except Exception as error:
                self._made[case] = error
        found = self._made[case]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture(scope="session")
def contenders(request: pytest.FixtureRequest) -> Iterator[Contenders]:
    """The cache of the session."""
    yield Contenders(request.config.getoption("erd_progress"))


@pytest.fixture
def take_turn(
    request: pytest.FixtureRequest, benchmark: Any, contenders: Contenders
) -> Callable[[Case, int], None]:
    """take_turn(case, turn) times a contender; those that are not here are skipped."""
    plan = PLANS[request.config.getoption("erd_plan")]
    not_timed = request.config.stash[_NOT_TIMED]

    def make(case: Case) -> _Contender:
        ready = case.prepare()
        seconds = _seconds(ready.run)
        iterations = max(1, round(plan.round_seconds / seconds))
        rounds = max(1, round(plan.seconds / (seconds * iterations)))
        return _Contender(ready, iterations, rounds, warm_up=seconds < _LONG)

    def run(case: Case, turn: int) -> None:
        # Adam and autograd must not see inference tensors.
        with torch.inference_mode(case.suite != "training step"):
            try:
                contender = contenders.get(case, lambda: make(case))
            except (ImportError, ValueError) as error:
                not_timed[case] = {"missing": _sentence(error)}
                pytest.skip(_sentence(error))
            except WrongResultError as error:
                not_timed[case] = {"failed": _sentence(error)}
                raise
            except Exception as error:
                # torch.compile compiles C++, which is not everywhere.
                if "InvalidCxxCompiler" in str(error):
                    not_timed[case] = {"missing": "torch.compile finds no C++ compiler"}
                    pytest.skip("torch.compile finds no C++ compiler")
                not_timed[case] = {"failed": f"{type(error).__name__}: {_sentence(error)}"[:300]}
                raise
            benchmark.group = " ".join(str(part) for part in case.group if part)
            benchmark.extra_info |= case.facts()
            benchmark.extra_info |= {"turn": turn, "calls": contender.ready.calls}
            benchmark.extra_info |= {"error": contender.ready.error}
            time.sleep(_PAUSE)
            if contender.warm_up:
                contender.ready.run()
            benchmark.pedantic(
                contender.ready.run, rounds=contender.rounds, iterations=contender.iterations
            )

    return run


def _seconds(run: Callable[[], object]) -> float:
    """The least of a few runs, or of one that is long; checking has made the first ones."""
    times: list[float] = []
    while not times or (len(times) < 5 and sum(times) < 0.05):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return max(min(times), 1e-9)


def _sentence(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


_NOT_TIMED = pytest.StashKey[dict[Case, dict[str, str]]]()


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: Any) -> None:
    machine_info["erd_cuda"] = machine_facts(config.getoption("erd_device"))


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: Any) -> None:
    output_json["erd_cuda"] = {
        "plan": config.getoption("erd_plan"),
        "device": config.getoption("erd_device"),
        "not_timed": [case.facts() | reason for case, reason in config.stash[_NOT_TIMED].items()],
    }
