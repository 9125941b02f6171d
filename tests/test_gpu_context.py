"""scripts/gpu_check.py's tests take a crash or a hanging kernel: the others are still counted."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import gpu_check
import gpu_process
import gpu_reports

ROOT = Path(__file__).resolve().parents[1]

LOSES_ITS_CONTEXT = """
import pytest, torch

def fail():
    raise RuntimeError("CUDA error: an illegal memory access was encountered\\nmore")

@pytest.mark.cuda
def test_before():
    pass

@pytest.mark.cuda
def test_bad(monkeypatch):
    torch.cuda.is_initialized = lambda: True
    torch.cuda.synchronize = fail

@pytest.mark.cuda
def test_after():
    pass
"""


HANGS = """
import time

def test_hangs():
    time.sleep(600)

def test_after_it():
    pass
"""


def run_with_a_lost_context(tmp_path: Path, *options: str) -> tuple[str, dict[str, Any]]:
    (tmp_path / "test_bad.py").write_text(LOSES_ITS_CONTEXT)
    (tmp_path / "test_good.py").write_text("def test_good():\n    pass\n")
    report = tmp_path / "report.xml"
    environment = {name: value for name, value in os.environ.items() if "PYTEST" not in name}
    finished = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-v", "-p", "gpu_context", "-c", os.devnull),
            *(f"--rootdir={tmp_path}", f"--junitxml={report}", *options, str(tmp_path)),
        ],
        env=environment | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert finished.returncode != 0
    return finished.stdout + finished.stderr, gpu_reports.read_junit(report)


def test_a_lost_context_and_a_hanging_kernel_end_a_worker_each(tmp_path: Path) -> None:
    pytest.importorskip("xdist")
    pytest.importorskip("pytest_timeout")
    (tmp_path / "test_hang.py").write_text(HANGS)
    limit = ("--timeout", "5", "--timeout-method", "thread")
    output, details = run_with_a_lost_context(
        tmp_path, "-n", "2", "--dist", "worksteal", "--max-worker-restart", "24", *limit
    )
    said = "the CUDA context is lost in test_bad.py::test_bad: CUDA error: an illegal memory access"
    assert output.count(said) == 1
    failures = {failure["test"].split("::")[-1] for failure in details["failures"]}
    assert failures == {"test_bad", "test_hangs"}
    # Other workers have gone on with the tests behind them.
    for name in ("test_before", "test_after", "test_good", "test_after_it"):
        assert re.search(rf"PASSED.*::{name}\b", output), name


def test_a_lost_context_without_workers_leaves_a_report(tmp_path: Path) -> None:
    output, details = run_with_a_lost_context(tmp_path, "-p", "no:xdist")
    assert "the CUDA context is lost in test_bad.py::test_bad" in output
    assert details["passed"] >= 1


def test_reads_what_was_done_where_there_is_no_report() -> None:
    serial = "t/test_a.py::test_x[a b] PASSED [ 3%]\nt/test_a.py::test_y FAILED [ 6%]\n"
    details = gpu_reports.read_progress(serial + "t/test_a.py::test_z ")
    assert (details["passed"], details["failed"]) == (1, 1)
    assert details["failures"][0]["test"] == "t/test_a.py::test_y"
    assert details["unfinished"] == ["t/test_a.py::test_z"]
    begun = "t/test_a.py::test_x \nt/test_b.py::test_y \nt/test_b.py::test_z \n"
    ended = "[gw0] [ 3%] PASSED t/test_a.py::test_x \n[gw1] [ 6%] SKIPPED t/test_b.py::test_y \n"
    details = gpu_reports.read_progress(begun + ended)
    assert (details["passed"], details["failed"], details["skipped"]) == (1, 0, 1)
    assert details["unfinished"] == ["t/test_b.py::test_z"]
    summary = (
        "=== FAILURES ===\nt/test_a.py:3: AssertionError\n=== slowest 10 durations ===\n"
        "0.01s call     t/test_a.py::test_y\n=== short test summary info ===\n"
        "FAILED t/test_a.py::test_y - assert 1 == 2\n"
    )
    details = gpu_reports.read_progress(serial + summary)
    assert (details["passed"], details["failed"], details["unfinished"]) == (1, 1, [])


@pytest.mark.parametrize("sleep", [0, 600])
def test_the_tests_are_counted_though_they_are_stopped(
    monkeypatch: Any, tmp_path: Path, sleep: int
) -> None:
    check = gpu_check.Check(False, True, tmp_path, {})
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_some.py").write_text(
        "import pytest, time\npytestmark = pytest.mark.cuda\ndef test_a(): pass\n"
        f"def test_b(): time.sleep({sleep})\ndef test_c(): assert 1 == 2\n"
    )
    monkeypatch.setattr(gpu_process, "ROOT", tmp_path)
    result = gpu_check.run_part("tests", check, time.monotonic() + (18 if sleep else 90))
    details = result["details"]
    assert result["status"] == "failed" and ("not done" in result.get("reason", "")) == (sleep > 0)
    assert details["passed"] == (1 if sleep else 2)
    assert [test.split("::")[-1] for test in details["unfinished"]] == ["test_b"] * (sleep > 0)
    assert details["failures"][0]["message"].startswith("assert 1 == 2")
