"""scripts/gpu_check.py without a GPU: it rehearses, and it survives what fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import gpu_check
import gpu_reports

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def check(tmp_path: Path) -> Any:
    return gpu_check.Check(True, True, time.monotonic() + 60, tmp_path, {})


@pytest.mark.timeout(900)
def test_rehearsal(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    finished = subprocess.run(
        [
            *("sh", str(ROOT / "scripts" / "gpu_check.sh"), "--rehearse", "--out", str(out)),
            *("--parts", "environment,tests,memcheck,racecheck,ncu,benchmarks"),
            *("--minutes", "14"),
        ],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]
    result = json.loads(out.read_text())
    assert result["rehearsal"] is True
    assert {"date", "commit", "seconds", "environment"} <= set(result)
    parts = result["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "environment": "passed",
        "tests": "passed",
        "memcheck": "passed",
        "racecheck": "skipped",
        "ncu": "passed",
        "benchmarks": "passed",
    }
    assert all(part["seconds"] >= 0 for part in parts.values())
    assert parts["racecheck"]["reason"] == "no GPU"
    assert parts["tests"]["details"]["collected"] > 10
    rows = parts["benchmarks"]["details"]["rows"]
    timed = {row["suite"] for row in rows if "us" in row}
    assert timed == {
        *("ceilings", "latency", "refine", "geometry", "calls", "training", "variants")
    }
    peers = {row["contender"] for row in rows if row["suite"] == "refine"}
    assert peers == {"erd_cuda", "torch eager", "torch graph", "torch.compile", "triton"}
    assert list(tmp_path.iterdir()) == [out]  # no temporary file stays


def test_a_failing_part_is_recorded(check: Any, monkeypatch: Any) -> None:
    def broken(check: Any, limit: float) -> None:
        raise OSError("the disk is full")

    monkeypatch.setitem(gpu_check.RUNNERS, "ncu", broken)
    result = gpu_check.run_part("ncu", check, 10)
    assert result["status"] == "failed"
    assert result["reason"] == "OSError: the disk is full"


def test_exit_status_and_output_are_kept() -> None:
    result = gpu_check.run([sys.executable, "-c", "print('some words'); raise SystemExit(7)"], 60)
    assert (result["status"], result["exit_status"]) == ("failed", 7)
    assert result["output_tail"].endswith("some words\n")


def test_a_part_that_hangs_is_stopped_with_its_children() -> None:
    begin = time.monotonic()
    # The child would hold the pipe open if it were left behind.
    result = gpu_check.run(["sh", "-c", "echo begun; sleep 600 & sleep 600"], 1.0)
    assert time.monotonic() - begin < 60
    assert result["status"] == "failed" and "not done after 1 seconds" in result["reason"]
    assert result["output_tail"] == "begun\n"


def test_what_is_stopped_can_still_report() -> None:
    program = "import time\ntry:\n  time.sleep(600)\nexcept KeyboardInterrupt:\n  print('so far')"
    # A shell's background jobs ignore the signal, and so would their children.
    restore = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    result = gpu_check.run([sys.executable, "-c", restore + program], 3.0)
    assert result["status"] == "failed" and result["output_tail"] == "so far\n"


def test_a_missing_program_is_no_crash() -> None:
    result = gpu_check.run(["a-program-that-nobody-has"], 10)
    assert result["status"] == "failed" and "No such file" in result["reason"]


def test_out_of_time_is_said() -> None:
    assert gpu_check.run(["true"], -1.0)["reason"] == "out of time"


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [([], None), (["8.0"], "80"), (["9.0"], "90;90a"), (["9.0", "8.6"], "86;90;90a")],
    ids=str,
)
def test_architectures(check: Any, capabilities: list[str], expected: str | None) -> None:
    check.environment["gpus"] = [{"capability": c} for c in capabilities]
    assert gpu_check.architectures(check) == expected


def test_reads_the_profilers_table() -> None:
    output = "\n".join(
        [
            "==PROF== Connected to process 1",
            '"ID","Kernel Name","gpu__time_duration.sum","launch__registers_per_thread"',
            '"","","usecond","register/thread"',
            '"0","void erd::cuda::refine_latency<erd::cuda::Fp16, false>(Params)","3.5","96"',
        ]
    )
    (kernel,) = gpu_reports.read_ncu(output)
    assert kernel["kernel"].startswith("void erd::cuda::refine_latency")
    assert kernel["duration"] == "3.5 usecond"
    assert kernel["registers"] == "96 register/thread"
    assert gpu_reports.read_ncu("==ERROR== ERR_NVGPUCTRPERM: no permission") == []


def test_reads_the_test_report(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="good"/>'
        '<testcase classname="a" name="bad"><failure message="1 is not 2"/></testcase>'
        '<testcase classname="a" name="not today"><skipped message="one GPU"/></testcase>'
        "</testsuite></testsuites>"
    )
    details = gpu_reports.read_junit(report)
    assert (details["passed"], details["failed"], details["skipped"]) == (1, 1, 1)
    assert details["failures"] == [{"test": "a::bad", "message": "1 is not 2"}]
    assert details["skips"] == {"a::not today": "one GPU"}
