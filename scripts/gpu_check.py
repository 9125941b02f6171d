"""Builds, tests, sanitizes, profiles and measures erd_cuda on a machine with a GPU.

    scripts/gpu_check.sh                      all of it, within eight minutes
    scripts/gpu_check.sh --commit HASH        where the sources are a copy without their repository
    scripts/gpu_check.sh --rehearse           without a GPU: runs what can, says why the rest cannot

One JSON file comes out, written anew after every group of parts. Every part is a process of its own
with a time limit; one that fails is recorded with the end of its output, and the rest goes on. The
exit status is 0 if nothing failed.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from gpu_machine import (
    DRIVER,
    architectures,
    ask_driver,
    commit_facts,
    machine_facts,
    obstacle,
)
from gpu_process import ROOT, Result, run
from gpu_reports import METRICS, first_finding, read_junit, read_ncu, read_progress

RESULTS = ROOT / "benchmarks" / "results"

#: Groups of parts in their order, with the seconds that are kept for each: together less than
#: MINUTES. What a group leaves is the next one's. The parts of a group run side by side, since none
#: of them measures time.
PLAN = (
    (150, ("environment", "build")),
    (110, ("tests", "memcheck", "racecheck", "warm_up")),
    (160, ("benchmarks",)),
    (45, ("ncu",)),
)
PARTS = [part for _, group in PLAN for part in group]
MINUTES = 7.8

#: Mangled names of this library's kernels hold it; torch's own need no sanitizer.
OUR_KERNELS = "kernel_substring=3erd"


@dataclass
class Check:
    """What all parts need to know."""

    rehearse: bool
    tiny: bool
    scratch: Path
    environment: Result

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"


def left(until: float) -> float:
    """Seconds until a time of time.monotonic()."""
    return until - time.monotonic()


def skipped(reason: str) -> Result:
    return {"status": "skipped", "reason": reason, "seconds": 0.0}


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def describe_environment(check: Check, until: float) -> Result:
    """Versions, and the GPUs as torch sees them."""
    # The first import of torch from a cold disk takes its time.
    result, facts = ask_driver("describe", min(120.0, left(until)))
    if facts is not None:
        # Where torch sees none, nvidia-smi's stay.
        check.environment.update({name: value for name, value in facts.items() if value})
        result["details"] = facts
    return result


def build(check: Check, until: float) -> Result:
    """The package in place, for this GPU only; no network."""
    if check.rehearse:
        return skipped("a rehearsal leaves the library as it is")
    wanted = architectures(check.environment["gpus"])
    if wanted is None:
        _, facts = ask_driver("describe", min(120.0, left(until)))
        wanted = architectures((facts or {}).get("gpus", []))
    if wanted is None:
        reason = "neither nvidia-smi nor torch names a GPU to build for"
        return {"status": "failed", "reason": reason}
    given = os.environ.get("CMAKE_ARGS", "")
    variables = {
        "CMAKE_BUILD_PARALLEL_LEVEL": str(os.cpu_count() or 1),
        "ERD_CUDA": "1",
        "CMAKE_ARGS": f'{given} "-DERD_CUDA_ARCHITECTURES={wanted}"'.strip(),
    }
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    result = run(command, left(until), variables)
    details: Result = {"architectures": wanted}
    if result["status"] == "failed" and "reason" not in result:
        # Where Python's headers are missing, all but the module for arrays can be built.
        details["first_output_tail"] = result["output_tail"]
        variables["CMAKE_ARGS"] += " -DERD_PYTHON="
        result = run(command, left(until), variables)
        details["without_array_module"] = True
    result["details"] = details
    return result


def tests(check: Check, until: float) -> Result:
    """Those marked cuda; in a rehearsal they are collected only."""
    if not installed("pytest"):
        return skipped("pytest is not installed")
    report = check.scratch / "tests.xml"
    # Without plugins, their settings in pyproject.toml are unknown and must be no error.
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-o", "addopts="]
    command += ["--continue-on-collection-errors", "-p", "no:cacheprovider"]
    if check.rehearse:
        command += ["-q", "--collect-only"]
    else:
        # Names as they come: all there is where no report gets written.
        command += ["-v", "-rs", "--durations=10", f"--junitxml={report}"]
        if installed("xdist"):
            # A crash takes one worker along, and another goes on with the tests that are left;
            # with --dist loadfile it would begin with the one that has crashed, again and again.
            command += ["-n", "3", "--dist", "worksteal", "--max-worker-restart", "24"]
        if installed("pytest_timeout"):
            # The thread ends a process whose kernel does not come back.
            command += ["--timeout", "60", "--timeout-method", "thread"]
    result = run([*command, "tests"], left(until), {"OMP_NUM_THREADS": "4"})
    details: Result = {}
    missing = ("hypothesis", "pytest_timeout", "xdist", "expecttest", "triton", "cupy")
    details["missing_packages"] = [name for name in missing if not installed(name)]
    collected = re.search(r"(\d+)(?:/\d+)? tests? (?:collected|selected)", result["output"])
    if collected:
        details["collected"] = int(collected[1])
    details["lost_contexts"] = re.findall(r"the CUDA context is lost in .*", result["output"])
    if not check.rehearse:
        details |= read_progress(result["output"])
        if report.exists():
            reported = read_junit(report)
            whole = result["exit_status"] is not None
            details |= reported if whole else {"failures": reported["failures"]}
        if result["status"] == "passed" and not details["passed"]:
            result |= {"status": "failed", "reason": "every test was skipped"}
    result["details"] = details
    return result


def sanitizer(tool: str) -> Callable[[Check, float], Result]:
    def part(check: Check, until: float) -> Result:
        driver = [sys.executable, str(DRIVER), "every", "--device", check.device]
        # Starting and reporting take the rest.
        driver += ["--seconds", f"{0.7 * left(until):.0f}"]
        if check.rehearse:
            # The driver's calls are the same; racecheck would only repeat them.
            if tool == "racecheck":
                return skipped("no GPU")
            result = run(driver, left(until), {"OMP_NUM_THREADS": "1"})
            return result | {"details": {"rehearsed": "the driver on the CPU"}}
        if shutil.which("compute-sanitizer") is None:
            return skipped("compute-sanitizer is not on PATH")
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "86"]
        command += ["--kernel-name", OUR_KERNELS, *driver]
        # Memory of its own for every tensor: what lies behind one is then nobody's.
        result = run(command, left(until), {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})
        result["details"] = first_finding(result["output"])
        return result

    return part


def ncu(check: Check, until: float) -> Result:
    """A few counters of the hot kernels."""
    driver = [sys.executable, str(DRIVER), "hot", "--device", check.device]
    if check.rehearse:
        result = run(driver, left(until), {"OMP_NUM_THREADS": "1"})
        return result | {"details": {"rehearsed": "the driver on the CPU"}}
    if shutil.which("ncu") is None:
        return skipped("ncu is not on PATH")
    options = ["--csv", "--page", "raw", "--profile-from-start", "off", "--clock-control", "none"]
    options += ["--kernel-name-base", "demangled", "--kernel-name", "regex:erd::"]
    result = run(["ncu", *options, "--metrics", ",".join(METRICS), *driver], 0.6 * left(until))
    if "ERR_NVGPUCTRPERM" in result["output"]:
        reason = "no permission to read the GPU's performance counters (ERR_NVGPUCTRPERM)"
        return result | {"status": "skipped", "reason": reason}
    kernels = read_ncu(result["output"])
    if not kernels:
        # A metric that this version does not know may have stopped it: its own choice, then.
        first = result["output_tail"]
        sections = ["--section", "SpeedOfLight", "--section", "LaunchStats", "--section"]
        result = run(["ncu", *options, *sections, "Occupancy", *driver], left(until))
        result["first_output_tail"] = first
        kernels = read_ncu(result["output"], everything=True)
    if not kernels and result["status"] == "passed":
        result |= {"status": "failed", "reason": "ncu reported no kernel"}
    result["details"] = {"kernels": kernels}
    return result


def warm_up(check: Check, until: float) -> Result:
    """Fills the caches of torch.compile and Triton, for whom the benchmarks then do not wait."""
    if check.rehearse:
        return skipped("nothing is compiled for a CPU")
    return _benchmarks(check, until, "warm_up.json", "--only", "refine ", "--rounds", "1")


def benchmarks(check: Check, until: float) -> Result:
    return _benchmarks(check, until, "benchmarks.json")


def _benchmarks(check: Check, until: float, name: str, *options: str) -> Result:
    out = check.scratch / name
    command = [sys.executable, "-m", "erd_cuda.benchmarks.gpu", "--device", check.device]
    # What is going on when the time is up still has to end.
    command += ["--out", str(out), "--seconds", f"{max(1.0, 0.8 * left(until)):.0f}", *options]
    if check.tiny:
        command.append("--tiny")
    result = run(command, left(until))
    if out.exists():
        details = json.loads(out.read_text())
        if options:
            # Numbers that were taken beside the tests are no numbers.
            details = {"failed": [row for row in details["rows"] if "failed" in row]}
        result["details"] = details
    return result


RUNNERS: dict[str, Callable[[Check, float], Result]] = {
    "environment": describe_environment,
    "build": build,
    "tests": tests,
    "memcheck": sanitizer("memcheck"),
    "racecheck": sanitizer("racecheck"),
    "warm_up": warm_up,
    "benchmarks": benchmarks,
    "ncu": ncu,
}


def run_part(name: str, check: Check, until: float) -> Result:
    """One part's entry in the JSON file, whatever happens in it."""
    begin = time.monotonic()
    try:
        result = RUNNERS[name](check, until)
    except Exception as error:
        result = {"status": "failed", "reason": f"{type(error).__name__}: {error}"}
    result["seconds"] = round(time.monotonic() - begin, 2)
    result.pop("output", None)
    print(f"{name}: {result['status']} ({result['seconds']} s) {result.get('reason', '')}".rstrip())
    sys.stdout.flush()
    return result


def kept_for_later(wanted: list[str], seconds: float) -> list[float]:
    """For each group of the plan, the seconds of those behind it of which something is wanted."""
    scale = seconds / (60 * MINUTES)
    shares = [scale * share if set(group) & set(wanted) else 0.0 for share, group in PLAN]
    return [sum(shares[i + 1 :]) for i in range(len(PLAN))]


def default_path(result: Result) -> Path:
    gpus = result["environment"].get("gpus")
    slug = re.sub(r"[^a-z0-9]+", "-", gpus[0]["name"].lower()).strip("-") if gpus else "no-gpu"
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
    parser.add_argument("--minutes", type=float, default=MINUTES, help="for all parts together")
    parser.add_argument(
        "--commit",
        default=os.environ.get("ERD_COMMIT"),
        help="the sources' commit where git cannot tell (ERD_COMMIT)",
    )
    chosen = parser.parse_args(arguments)
    wanted = chosen.parts.split(",")
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        parser.error(f"unknown part {unknown[0]!r}, expected some of {', '.join(PARTS)}")

    facts = machine_facts()
    problem = obstacle(facts["gpus"], chosen.rehearse)
    if problem is not None:
        print(problem)
        return 1

    begin = time.monotonic()
    deadline = begin + 60 * chosen.minutes
    kept = kept_for_later(wanted, 60 * chosen.minutes)
    now = datetime.datetime.now(datetime.timezone.utc)
    parts: Result = {}
    result: Result = {
        "date": now.date().isoformat(),
        "started": now.isoformat(timespec="seconds"),
        "rehearsal": chosen.rehearse,
        **commit_facts(chosen.commit, None),
        "environment": facts,
        "parts": parts,
    }
    with tempfile.TemporaryDirectory() as scratch:
        check = Check(chosen.rehearse, chosen.rehearse, Path(scratch), result["environment"])
        for (_, group), later in zip(PLAN, kept, strict=True):
            names = [name for name in group if name in wanted]
            until = deadline - later
            # A rehearsal may run on two processors, where side by side is no gain.
            with ThreadPoolExecutor(1 if chosen.rehearse else max(1, len(names))) as pool:
                running = {name: pool.submit(run_part, name, check, until) for name in names}
                parts |= {name: future.result() for name, future in running.items()}
            if "build" not in result["environment"]:
                # After the build, whose library it is that all others use.
                _, built = ask_driver("build", min(60.0, left(until)))
                result["environment"]["build"] = built
                result |= commit_facts(chosen.commit, built)
            result["seconds"] = round(time.monotonic() - begin, 1)
            path = chosen.out or default_path(result)
            write(path, result)
    print(f"{result['seconds']} s, written to {path}")
    failed = [name for name, part in parts.items() if part["status"] == "failed"]
    return 1 if failed or set(wanted) - set(parts) else 0


if __name__ == "__main__":
    sys.exit(main())
