"""scripts/gpu_check.py without a GPU: it rehearses, and it survives what fails."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

import gpu_check
import gpu_machine
import gpu_process
import gpu_reports

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def check(tmp_path: Path) -> Any:
    return gpu_check.Check(False, True, tmp_path, {"gpus": []})


def soon() -> float:
    return time.monotonic() + 60


@pytest.mark.timeout(900)
def test_rehearsal(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    finished = subprocess.run(
        [
            *("sh", str(ROOT / "scripts" / "gpu_check.sh"), "--rehearse", "--out", str(out)),
            *("--minutes", "14"),
            *("--commit", "0123abc"),
        ],
        # Not even a path to the package: nothing may have to be installed.
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-4000:]
    result = json.loads(out.read_text())
    assert result["rehearsal"] is True
    assert {"date", "seconds", "environment"} <= set(result)
    assert (result["commit"], result["uncommitted_changes"]) == ("0123abc", None)
    assert result["environment"]["build"]["version"]
    parts = result["parts"]
    assert {name: part["status"] for name, part in parts.items()} == {
        "environment": "passed",
        "build": "skipped",
        "tests": "passed",
        "memcheck": "passed",
        "racecheck": "skipped",
        "warm_up": "skipped",
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
    assert list(parts["benchmarks"]["details"]["suite_s"])[1:3] == [
        "refine linear 40",
        "refine relu 40",
    ]
    peers = {row["contender"] for row in rows if row["suite"] == "refine"}
    named = {"erd_cuda", "cupy", "torch eager", "torch graph", "torch.compile", "triton"}
    assert peers == named
    assert list(tmp_path.iterdir()) == [out]  # no temporary file stays


def test_a_failing_part_is_recorded(check: Any, monkeypatch: Any) -> None:
    def broken(check: Any, until: float) -> None:
        raise OSError("the disk is full")

    monkeypatch.setitem(gpu_check.RUNNERS, "ncu", broken)
    result = gpu_check.run_part("ncu", check, soon())
    assert result["status"] == "failed"
    assert result["reason"] == "OSError: the disk is full"


def test_exit_status_and_output_are_kept() -> None:
    result = gpu_process.run([sys.executable, "-c", "print('some words'); raise SystemExit(7)"], 60)
    assert (result["status"], result["exit_status"]) == ("failed", 7)
    assert result["output_tail"].endswith("some words\n")


def test_a_part_that_hangs_is_stopped_with_its_children() -> None:
    begin = time.monotonic()
    # The child would hold the pipe open if it were left behind.
    result = gpu_process.run(["sh", "-c", "echo begun; sleep 600 & sleep 600"], 1.0)
    assert time.monotonic() - begin < 60
    assert result["status"] == "failed" and "not done after 1 seconds" in result["reason"]
    assert result["output_tail"] == "begun\n"


def test_what_is_stopped_can_still_report() -> None:
    program = "import time\ntry:\n  time.sleep(600)\nexcept KeyboardInterrupt:\n  print('so far')"
    # A shell's background jobs ignore the signal, and so would their children.
    restore = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    result = gpu_process.run([sys.executable, "-c", restore + program], 3.0)
    assert result["status"] == "failed" and result["output_tail"] == "so far\n"


def test_a_missing_program_is_no_crash() -> None:
    result = gpu_process.run(["a-program-that-nobody-has"], 10)
    assert result["status"] == "failed" and "No such file" in result["reason"]


def test_out_of_time_is_said() -> None:
    assert gpu_process.run(["true"], -1.0)["reason"] == "out of time"


def test_a_process_that_ends_while_it_is_stopped_keeps_its_output(monkeypatch: Any) -> None:
    def gone(group: int, number: int) -> None:
        raise ProcessLookupError

    monkeypatch.setattr(os, "killpg", gone)
    result = gpu_process.run(["sh", "-c", "echo begun; exec sleep 2"], 0.5)
    assert (result["status"], result["output_tail"]) == ("failed", "begun\n")


# ---- the plan ------------------------------------------------------------------------------------


def test_the_plan_fits_into_its_time() -> None:
    assert sum(share for share, _ in gpu_check.PLAN) <= 60 * gpu_check.MINUTES < 480
    assert set(gpu_check.PARTS) == set(gpu_check.RUNNERS)
    kept = gpu_check.kept_for_later(gpu_check.PARTS, 60 * gpu_check.MINUTES)
    assert kept == sorted(kept, reverse=True) and kept[-1] == 0
    # A part that is alone may take all the time there is.
    assert gpu_check.kept_for_later(["tests"], 600.0) == [pytest.approx(600 * 110 / 468), 0, 0, 0]


# ---- machine, build, commit ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [([], None), (["8.0"], "80"), (["9.0"], "90;90a"), (["9.0", "8.6"], "86;90;90a")],
    ids=str,
)
def test_architectures(capabilities: list[str], expected: str | None) -> None:
    assert gpu_machine.architectures([{"capability": c} for c in capabilities]) == expected


def test_odd_lines_of_nvidia_smi_are_passed_over() -> None:
    row = "NVIDIA H200, 580.65.06, 9.0, 143771 MiB, 1980 MHz, 700.00 W"
    odd = ["", "No devices were found", "Warning, a thing", "a, b, c, d, e, f", "[N/A]"]
    (gpu,) = gpu_machine.read_nvidia_smi("\n".join([*odd, row, *odd]))
    assert (gpu["name"], gpu["driver"], gpu["capability"]) == ("NVIDIA H200", "580.65.06", "9.0")
    assert gpu_machine.read_nvidia_smi("\n".join(odd)) == []


def test_nvidia_smi_serves_where_torch_does_not_answer(check: Any, monkeypatch: Any) -> None:
    check.environment["gpus"] = [{"name": "NVIDIA H200", "capability": "9.0"}]
    hung = {"status": "failed", "reason": "not done after 120 seconds", "output": ""}
    monkeypatch.setattr(gpu_check, "ask_driver", lambda what, limit: (dict(hung), None))
    assert gpu_check.run_part("environment", check, soon())["status"] == "failed"
    commands: list[Any] = []

    def run(command: list[str], limit: float, variables: dict[str, str]) -> dict[str, Any]:
        commands.append(variables["CMAKE_ARGS"])
        return {"status": "passed"}

    monkeypatch.setattr(gpu_check, "run", run)
    assert gpu_check.run_part("build", check, soon())["status"] == "passed"
    assert commands and "-DERD_CUDA_ARCHITECTURES=90;90a" in commands[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "result.json"
    assert gpu_check.main(["--out", str(out)]) == 1
    said = capsys.readouterr().out.strip()
    assert said.startswith("neither nvidia-smi nor torch sees a GPU here") and "\n" not in said
    assert not out.exists()


def test_a_python_without_the_tests_packages_is_named(monkeypatch: Any) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "pytest" else found(name)
    )
    said = gpu_machine.obstacle([], rehearse=True)
    assert said is not None and sys.executable in said and "has no pytest:" in said


def test_no_gpu_to_build_for_is_said(check: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(gpu_check, "ask_driver", lambda what, limit: ({}, {"gpus": []}))
    result = gpu_check.run_part("build", check, soon())
    assert result["reason"] == "neither nvidia-smi nor torch names a GPU to build for"


def test_the_driver_describes_the_build() -> None:
    result, answer = gpu_machine.ask_driver("build", 120)
    assert result["status"] == "passed", result["output_tail"]
    assert answer is not None and answer["cpu_variants"]


def test_the_commit_of_a_copy(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(gpu_machine, "ROOT", tmp_path)  # no repository
    nothing = {"commit": None, "uncommitted_changes": None, "commit_from": None}
    assert gpu_machine.commit_facts(None, None) == nothing
    assert gpu_machine.commit_facts(None, {"commit": "unknown"}) == nothing
    assert gpu_machine.commit_facts("", {"missing": "no library"}) == nothing
    built = gpu_machine.commit_facts(None, {"commit": "12ab-dirty"})
    assert built == {"commit": "12ab", "uncommitted_changes": True, "commit_from": "build"}
    given = gpu_machine.commit_facts("34cd", {"commit": "12ab"})
    assert given == {"commit": "34cd", "uncommitted_changes": None, "commit_from": "argument"}


# ---- sanitizers and profiler ---------------------------------------------------------------------


def driver(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "gpu_driver.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_the_driver_stops_in_time() -> None:
    finished = driver("every", "--device", "cpu", "--seconds", "0")
    assert finished.returncode == 0, finished.stderr
    assert re.fullmatch(
        r"0 calls ran, 0 failed, \d{3} left out for want of time\n", finished.stdout
    )


def test_the_driver_stops_with_the_context(monkeypatch: Any, capsys: Any) -> None:
    import gpu_driver

    def bad() -> None:
        raise RuntimeError("CUDA error: misaligned address")

    def calls(device: str, *options: Any, **named: Any) -> Any:
        yield from [("first", lambda: torch.ones(1)), ("bad", bad), ("next", bad)]

    for name in ("refine_calls", "feature_calls", "geometry_calls", "training_calls"):
        monkeypatch.setattr(gpu_driver, name, calls)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", bad)
    assert gpu_driver.every("cpu", 100.0) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("call")] == ["call first", "call bad"]
    assert lines[-1].startswith("1 calls ran, 1 failed")


def test_reads_the_sanitizers_output() -> None:
    details = gpu_reports.first_finding(
        "========= COMPUTE-SANITIZER\ncall refine fp32 simt linear 1\n"
        "========= Invalid __global__ write of size 4 bytes\n=========     at erd::cuda::simt\n"
        "call refine fp32 simt linear 19\n2 calls ran, 0 failed, 0 left out for want of time\n"
        "========= ERROR SUMMARY: 1 error\n"
    )
    assert details["summary"] == ["========= ERROR SUMMARY: 1 error"]
    assert details["first_finding"].startswith("========= Invalid __global__ write")
    assert details["last_call"] == "call refine fp32 simt linear 19"
    assert details["ran"] == "2 calls ran, 0 failed, 0 left out for want of time"


def test_a_profiler_without_permission_is_asked_once(check: Any, monkeypatch: Any) -> None:
    asked = []

    def run(command: list[str], limit: float) -> dict[str, Any]:
        asked.append(command)
        return {"status": "failed", "output": "==ERROR== ERR_NVGPUCTRPERM - The user does not"}

    monkeypatch.setattr(gpu_check, "run", run)
    monkeypatch.setattr(gpu_check.shutil, "which", lambda name: name)
    result = gpu_check.run_part("ncu", check, soon())
    assert result["status"] == "skipped" and "ERR_NVGPUCTRPERM" in result["reason"]
    assert len(asked) == 1


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
