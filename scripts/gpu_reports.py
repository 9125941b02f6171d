"""What gpu_check.py keeps of the reports of pytest, compute-sanitizer and ncu."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

Result = dict[str, Any]

#: What ncu is asked for, as it names it.
METRICS = {
    "gpu__time_duration.sum": "duration",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram_percent",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "tensor_percent",
    "sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active": "tensor_issue_percent",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_percent",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum": "bank_conflicts",
    "smsp__cycles_elapsed.avg.per_second": "clock",
    "launch__registers_per_thread": "registers",
    "launch__shared_mem_per_block_dynamic": "shared_memory",
    "launch__grid_size": "blocks",
    "launch__block_size": "threads",
}


def read_junit(report: Path) -> Result:
    """Counts, and what failed, could not be collected or was skipped."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures, reasons = [], {}
    for case in ElementTree.parse(report).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        bad = [child for child in case if child.tag in ("failure", "error")]
        skip = case.find("skipped")
        if bad:
            counts["failed"] += 1
            failures.append({"test": name, "message": (bad[0].get("message") or "")[:500]})
        elif skip is not None:
            counts["skipped"] += 1
            reasons[name] = (skip.get("message") or "")[:200]
        else:
            counts["passed"] += 1
    return counts | {"failures": failures[:60], "skips": dict(list(reasons.items())[:60])}


def read_progress(output: str) -> Result:
    """The same from what ``pytest -v`` prints on its way, and which tests were ``unfinished``.

    For a run that was stopped: it has no report, or one that takes an unfinished test for a passed
    one.
    """
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures: list[Result] = []
    begun: dict[str, None] = {}
    result = re.compile(r"\b(PASSED|FAILED|ERROR|SKIPPED)\b")
    # Behind the last test come tracebacks, durations and a summary, which name tests once more.
    progress = re.split(
        r"^=+ (?:ERRORS|FAILURES|warnings summary|slowest .*|short .*) =+$",
        output,
        maxsplit=1,
        flags=re.MULTILINE,
    )[0]
    for line in progress.splitlines():
        name = re.search(r"\S+\.py::\S+", line)
        if name is None:
            continue
        found = result.search(line)
        if found is None:
            begun[name[0]] = None
            continue
        key = {"PASSED": "passed", "SKIPPED": "skipped"}.get(found[1], "failed")
        counts[key] += 1
        if key == "failed":
            failures.append({"test": name[0], "message": ""})
        begun.pop(name[0], None)
    return counts | {"failures": failures[:60], "unfinished": list(begun)}


def first_finding(output: str) -> Result:
    """Of compute-sanitizer: its first finding, its sum, and what the driver was doing last."""
    finding = re.search(r"=+ (?!COMPUTE-SANITIZER)\S.*(?:\n=+ .*){0,25}", output)
    calls = re.findall(r"^call .*", output, re.MULTILINE)
    ran = re.search(r"^\d+ calls ran.*", output, re.MULTILINE)
    return {
        "summary": re.findall(r"=+ (?:ERROR|RACECHECK) SUMMARY: .*", output),
        "first_finding": finding[0] if finding else None,
        "ran": ran[0] if ran else None,
        "last_call": calls[-1] if calls else None,
    }


def read_ncu(output: str, everything: bool = False) -> list[Result]:
    """Rows of ncu's raw page; its second line holds the units."""
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        return []
    rows = list(csv.DictReader(io.StringIO("\n".join(lines[start:]))))
    if len(rows) < 2:
        return []
    units, kernels = rows[0], []
    for row in rows[1:]:
        kernel: Result = {"kernel": (row.get("Kernel Name") or "")[:200]}
        for name, value in row.items():
            if name in METRICS or (everything and "__" in str(name)):
                kernel[METRICS.get(name, name)] = f"{value} {units.get(name) or ''}".strip()
        kernels.append(kernel)
    return kernels
