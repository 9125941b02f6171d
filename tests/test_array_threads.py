"""Threads of the functions on NumPy arrays: their number changes no bit, and nobody waits for ever.

What threads do to a process is tried in processes of their own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from array_calls import array_call, as_arrays, as_weights, same_bits
from op_calls import ALL_CASES, Case, small_weights

import erd_cuda.array as ea
from erd_cuda.benchmarks.problems import make_problem

ROOT = Path(ea.__file__).parents[2]


@pytest.fixture(autouse=True)
def _default_threads() -> Iterator[None]:
    yield
    ea.set_num_threads(None)


def run_program(program: str, **options: str) -> str:
    """What a program prints in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **options}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_number_of_threads_changes_no_bit(case: Case) -> None:
    arrays = as_arrays(case.tensors(make_problem((2003,), 6, case.model), torch.float32))
    weights = as_weights(small_weights(6, torch.float32))
    results = []
    for threads in (1, 2, 3, 16):
        ea.set_num_threads(threads)
        assert ea.get_num_threads() == threads
        results += [array_call(case, arrays, weights) for _ in range(3)]
    assert all(same_bits(result, results[0]) for result in results)


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True])
def test_bad_numbers_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"num_threads is .*, expected an integer of at least 1"):
        ea.set_num_threads(value)  # type: ignore[arg-type]
    assert ea.get_num_threads() >= 1


def test_default_is_what_the_process_may_use() -> None:
    if not hasattr(os, "sched_setaffinity"):
        pytest.skip("this system has no affinity")
    program = """
import os, erd_cuda.array as ea
every = len(os.sched_getaffinity(0))
before = ea.get_num_threads()
os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
print(before == every, ea.get_num_threads())
"""
    assert run_program(program) == "True 1"


PROBLEM = """
import os, threading, numpy as np, erd_cuda.array as ea
rng = np.random.default_rng(0)
pose = rng.normal(scale=300.0, size=(20000, 17, 3))
root, camera = np.array([0.0, 0.0, 4000.0]), np.array([1000.0, 1000.0, 500.0, 500.0])
ea.set_num_threads(4)
expected = ea.project(pose, root, camera)
"""


def test_threads_are_really_started() -> None:
    if not Path("/proc/self/task").is_dir():
        pytest.skip("needs /proc")
    program = PROBLEM + "print(threading.active_count(), len(os.listdir('/proc/self/task')) >= 4)"
    assert run_program(program, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1") == "1 True"


def test_a_forked_child_has_threads_of_its_own() -> None:
    """It inherits none, only locks that may be held for ever."""
    if not Path("/proc/self/task").is_dir():
        pytest.skip("needs /proc")
    program = (
        PROBLEM
        + """
child = os.fork()
if child == 0:
    before = len(os.listdir("/proc/self/task"))
    right = np.array_equal(ea.project(pose, root, camera), expected)
    os._exit(0 if right and before == 1 and len(os.listdir("/proc/self/task")) == 4 else 7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(np.array_equal(ea.project(pose, root, camera), expected))
"""
    )
    assert run_program(program).split() == ["0", "True"]


def test_calls_from_several_python_threads() -> None:
    case = Case("refine", "pinhole")
    weights = as_weights(small_weights(6))
    ea.set_num_threads(3)
    batches = [
        as_arrays(case.tensors(make_problem((501,), 6, case.model, seed))) for seed in range(6)
    ]
    expected = [array_call(case, arrays, weights) for arrays in batches]
    wrong: list[int] = []

    def work(index: int) -> None:
        for _ in range(20):
            if not same_bits(array_call(case, batches[index], weights), expected[index]):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_other_python_threads_run_meanwhile() -> None:
    """The lock of the interpreter is not held while a kernel runs."""
    weights = ea.load_weights(ea.bundled_models()[0])
    pose = np.zeros((40_000, 17, 3), np.float32)
    keypoints = np.full((40_000, 17, 2), 500.0, np.float32)
    root, camera = np.float32([0, 0, 4000]), np.float32([1000, 1000, 500, 500])
    ea.set_num_threads(1)
    times: list[float] = []
    worker = threading.Thread(target=ea.refine, args=(keypoints, pose, root, camera, weights))
    start = time.perf_counter()
    worker.start()
    while worker.is_alive():
        times.append(time.perf_counter())
        time.sleep(0)
    end = time.perf_counter()
    longest = max(np.diff([start, *times, end]))
    assert longest < 0.5 * (end - start), (longest, end - start)


def test_capability_is_chosen_by_the_environment() -> None:
    program = "import erd_cuda.array as ea, numpy as np\n" + (
        "try: ea.project(np.ones((2, 3)), np.ones(3), np.ones(4))\n"
        "except RuntimeError as error: print(error)"
    )
    said = run_program(program, ERD_CPU_CAPABILITY="mmx")
    assert "ERD_CPU_CAPABILITY is 'mmx'" in said and "portable" in said
    assert run_program(program, ERD_CPU_CAPABILITY="portable") == ""
