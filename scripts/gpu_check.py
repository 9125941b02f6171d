"""Builds, tests, sanitizes, profiles and measures erd_cuda on a machine with a GPU.

    scripts/gpu_check.sh                      all of it, within eight minutes
    scripts/gpu_check.sh --rehearse           without a GPU: runs what can, says why the rest cannot

One JSON file comes out. Every part is a process of its own with a time limit; one that fails is
recorded with the end of its output, and the rest goes on. The exit status is 0 if nothing failed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_reports import METRICS, read_junit, read_ncu

ROOT = Path(__file__).resolve().parents[1]
DRIVER = ROOT / "scripts" / "gpu_driver.py"
RESULTS = ROOT / "benchmarks" / "results"
TAIL = 6000

Result = dict[str, Any]

#: Parts in their order, with the seconds each may take; those of one line run side by side, since
#: none of them measures time.
GROUPS = (
    {"environment": 40},
    {"build": 180},
    {"tests": 150, "memcheck": 140, "racecheck": 140},
    {"benchmarks": 170},
    {"ncu": 80},
)
PARTS = [part for group in GROUPS for part in group]


@dataclass
class Check:
    """What all parts need to know."""

    rehearse: bool
    tiny: bool
    deadline: float
    scratch: Path
    environment: Result

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    def remaining(self, limit: float) -> float:
        return min(limit, self.deadline - time.monotonic())


def skipped(reason: str) -> Result:
    return {"status": "skipped", "reason": reason, "seconds": 0.0}


def run(command: Sequence[str], limit: float, environment: dict[str, str] | None = None) -> Result:
    """Runs a command with a time limit for it and its children; never raises."""
    begin = time.monotonic()
    result: Result = {"command": " ".join(command), "status": "failed", "exit_status": None}
    if limit <= 0:
        return result | {"status": "skipped", "reason": "out of time", "seconds": 0.0}
    output = ""
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        result["reason"] = str(error)
    else:
        try:
            output, _ = process.communicate(timeout=limit)
            result["exit_status"] = process.returncode
            result["status"] = "passed" if process.returncode == 0 else "failed"
        except subprocess.TimeoutExpired:
            output = stop(process)
            result |= {"status": "failed", "reason": f"not done after {limit:.0f} seconds"}
    result["seconds"] = round(time.monotonic() - begin, 2)
    result["output_tail"] = output[-TAIL:]
    result["output"] = output
    return result


def stop(process: subprocess.Popen[str]) -> str:
    """Ends a process and its children; those that can still write their report."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=8)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
    return output


def first_line(command: Sequence[str], pattern: str = "") -> str | None:
    """The line of a tool's output that matches, or None if there is no such tool."""
    if shutil.which(command[0]) is None:
        return None
    lines = run(command, 20)["output"].splitlines()
    return next((line.strip() for line in lines if line and re.search(pattern, line)), None)


def describe_environment(check: Check, limit: float) -> Result:
    """Versions, GPU and commit."""
    result = run([sys.executable, str(DRIVER), "describe"], check.remaining(limit))
    facts: Result = {}
    for line in result["output"].splitlines():
        if line.startswith("{"):
            facts = json.loads(line)
    query = "--query-gpu=name,driver_version,compute_cap,memory.total,clocks.max.sm,power.limit"
    facts |= {
        "nvidia_smi": first_line(["nvidia-smi", query, "--format=csv,noheader"]),
        "nvcc": first_line(["nvcc", "--version"], "release"),
        "ncu": first_line(["ncu", "--version"], "Version"),
        "compute_sanitizer": first_line(["compute-sanitizer", "--version"], "ersion"),
        "cxx": first_line([os.environ.get("CXX", "c++"), "--version"]),
        "processors": os.cpu_count(),
        "processor": first_line(["lscpu"], "Model name"),
    }
    facts["driver"] = (facts["nvidia_smi"] or ",").split(",")[1].strip() or None
    # Before the build these are the last build's; the JSON gets those after it.
    check.environment.update(facts)
    result["details"] = facts
    return result


def architectures(check: Check) -> str | None:
    """For CMake: this machine's GPUs and no others."""
    capabilities = {gpu["capability"] for gpu in check.environment.get("gpus", [])}
    names = sorted(capability.replace(".", "") for capability in capabilities)
    # Hopper's own instructions are a target of their own.
    return ";".join(name + (";90a" if name == "90" else "") for name in names) or None


def build(check: Check, limit: float) -> Result:
    """The package in place, for this GPU only; no network."""
    variables = {"CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1)}
    wanted = architectures(check)
    if wanted is None:
        # No CUDA in a rehearsal: a library for some GPU or other would show nothing.
        variables["ERD_CUDA"] = "0"
    else:
        variables["ERD_CUDA"] = "1"
        given = os.environ.get("CMAKE_ARGS", "")
        variables["CMAKE_ARGS"] = f'{given} "-DERD_CUDA_ARCHITECTURES={wanted}"'.strip()
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    result = run(command, check.remaining(limit), variables)
    details: Result = {"architectures": wanted}
    if result["status"] == "failed" and "reason" not in result:
        # Where Python's headers are missing, all but the module for arrays can be built.
        details["first_output_tail"] = result["output_tail"]
        given = variables.get("CMAKE_ARGS", os.environ.get("CMAKE_ARGS", ""))
        variables["CMAKE_ARGS"] = f"{given} -DERD_PYTHON=".strip()
        result = run(command, check.remaining(limit), variables)
        details["without_array_module"] = True
    result["details"] = details
    if result["status"] == "passed":
        after = run([sys.executable, str(DRIVER), "describe"], check.remaining(60))
        for line in after["output"].splitlines():
            if line.startswith("{"):
                result["details"]["build"] = json.loads(line)["build"]
    return result


def tests(check: Check, limit: float) -> Result:
    """Those marked cuda; in a rehearsal they are collected only."""
    if importlib.util.find_spec("pytest") is None:
        return skipped("pytest is not installed")
    report = check.scratch / "tests.xml"
    # Without plugins, their settings in pyproject.toml are unknown and must be no error.
    lenient = ["-o", "addopts=", "--continue-on-collection-errors", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", *lenient, "tests"]
    if check.rehearse:
        command.append("--collect-only")
    else:
        command += ["-rs", "--durations=10", f"--junitxml={report}"]
    result = run(command, check.remaining(limit))
    details: Result = {}
    missing = ("hypothesis", "pytest_timeout", "expecttest", "triton", "cupy")
    details["missing_packages"] = [n for n in missing if importlib.util.find_spec(n) is None]
    collected = re.search(r"(\d+)(?:/\d+)? tests? (?:collected|selected)", result["output"])
    if collected:
        details["collected"] = int(collected[1])
    if report.exists():
        details |= read_junit(report)
    result["details"] = details
    return result


def sanitizer(tool: str) -> Callable[[Check, float], Result]:
    def part(check: Check, limit: float) -> Result:
        driver = [sys.executable, str(DRIVER), "every", "--device", check.device]
        if check.rehearse:
            # The driver's calls are the same; racecheck would only repeat them.
            if tool == "racecheck":
                return skipped("no GPU")
            result = run(driver, check.remaining(limit), {"OMP_NUM_THREADS": "1"})
            return result | {"details": {"rehearsed": "the driver on the CPU"}}
        if shutil.which("compute-sanitizer") is None:
            return skipped("compute-sanitizer is not on PATH")
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "86", *driver]
        # Memory of its own for every tensor: what lies behind one is then nobody's.
        result = run(command, check.remaining(limit), {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
        summary = re.findall(r"=+ (?:ERROR|RACECHECK) SUMMARY: .*", result["output"])
        first = re.search(r"=+ (?!COMPUTE-SANITIZER)\S.*(?:\n=+ .*){0,25}", result["output"])
        result["details"] = {"summary": summary, "first_finding": first[0] if first else None}
        return result

    return part


def ncu(check: Check, limit: float) -> Result:
    """A few counters of the hot kernels."""
    driver = [sys.executable, str(DRIVER), "hot", "--device", check.device]
    if check.rehearse:
        result = run(driver, check.remaining(limit), {"OMP_NUM_THREADS": "1"})
        return result | {"details": {"rehearsed": "the driver on the CPU"}}
    if shutil.which("ncu") is None:
        return skipped("ncu is not on PATH")
    options = ["--csv", "--page", "raw", "--profile-from-start", "off", "--clock-control", "none"]
    options += ["--kernel-name-base", "demangled", "--kernel-name", "regex:erd::"]
    result = run(
        ["ncu", *options, "--metrics", ",".join(METRICS), *driver], check.remaining(limit * 0.6)
    )
    kernels = read_ncu(result["output"])
    if not kernels:
        # A metric that this version does not know may have stopped it: its own choice, then.
        result["first_output_tail"] = result["output_tail"]
        sections = ["--section", "SpeedOfLight", "--section", "LaunchStats", "--section"]
        again = run(
            ["ncu", *options, *sections, "Occupancy", *driver], check.remaining(limit * 0.6)
        )
        again["seconds"] = round(again["seconds"] + result["seconds"], 2)
        result = again | {"first_output_tail": result["first_output_tail"]}
        kernels = read_ncu(result["output"], everything=True)
    if not kernels and result["status"] == "passed":
        result |= {"status": "failed", "reason": "ncu reported no kernel"}
    result["details"] = {"kernels": kernels}
    return result


def benchmarks(check: Check, limit: float) -> Result:
    out = check.scratch / "benchmarks.json"
    seconds = check.remaining(limit)
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--device", check.device]
    # What is going on when the time is up still has to end.
    command += ["--out", str(out), "--seconds", f"{max(1.0, 0.8 * seconds):.0f}"]
    if check.tiny:
        command.append("--tiny")
    result = run(command, seconds)
    if out.exists():
        result["details"] = json.loads(out.read_text())
    return result


RUNNERS: dict[str, Callable[[Check, float], Result]] = {
    "environment": describe_environment,
    "build": build,
    "tests": tests,
    "memcheck": sanitizer("memcheck"),
    "racecheck": sanitizer("racecheck"),
    "ncu": ncu,
    "benchmarks": benchmarks,
}


def run_part(name: str, check: Check, limit: float) -> Result:
    """One part's entry in the JSON file, whatever happens in it."""
    begin = time.monotonic()
    try:
        result = RUNNERS[name](check, limit)
    except Exception as error:
        result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    result["seconds"] = round(time.monotonic() - begin, 2)
    result.pop("output", None)
    print(f"{name}: {result['status']} ({result['seconds']} s) {result.get('reason', '')}".rstrip())
    sys.stdout.flush()
    return result


def git(*arguments: str) -> str | None:
    result = run(["git", *arguments], 20)
    return result["output"].strip() if result["status"] == "passed" else None


def default_path(result: Result) -> Path:
    gpus = result["parts"].get("environment", {}).get("details", {}).get("gpus", [])
    name = gpus[0]["name"] if gpus else "no-gpu"
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    return RESULTS / f"{result['date']}-{slug}.json"


def write(path: Path, result: Result) -> None:
    """In one step: a file that is there is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as file:
        json.dump(result, file, indent=1)
        file.write("\n")
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON file (benchmarks/results/<date>-<gpu>.json)")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma-separated, of the default")
    parser.add_argument(
        "--rehearse", action="store_true", help="run what needs no GPU, say the rest"
    )
    parser.add_argument("--minutes", type=float, default=7.8, help="for all parts together")
    chosen = parser.parse_args(arguments)
    wanted = chosen.parts.split(",")
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}, expected some of {', '.join(PARTS)}")

    begin = time.monotonic()
    now = datetime.datetime.now(datetime.timezone.utc)
    result: Result = {
        "date": now.date().isoformat(),
        "started": now.isoformat(timespec="seconds"),
        "rehearsal": chosen.rehearse,
        "commit": git("rev-parse", "HEAD"),
        "uncommitted_changes": bool(git("status", "--porcelain", "--untracked-files=no")),
        "parts": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        check = Check(
            chosen.rehearse, chosen.rehearse, begin + 60 * chosen.minutes, Path(scratch), {}
        )
        for group in GROUPS:
            names = [name for name in group if name in wanted]
            # A rehearsal may run on two processors, where side by side is no gain.
            with ThreadPoolExecutor(1 if chosen.rehearse else max(1, len(names))) as pool:
                # A part that is alone may take all the time there is.
                alone = 60 * chosen.minutes if len(wanted) == 1 else 0.0
                running = {n: pool.submit(run_part, n, check, max(group[n], alone)) for n in names}
                result["parts"] |= {name: future.result() for name, future in running.items()}
            if "environment" in names and not chosen.rehearse and not check.environment.get("gpus"):
                print("torch sees no GPU here: --rehearse runs what needs none")
                break
    result["environment"] = check.environment
    result["seconds"] = round(time.monotonic() - begin, 1)
    path = chosen.out or default_path(result)
    write(path, result)
    print(f"{result['seconds']} s, written to {path}")
    failed = [name for name, part in result["parts"].items() if part["status"] == "failed"]
    return 1 if failed or set(wanted) - set(result["parts"]) else 0


if __name__ == "__main__":
    sys.exit(main())
