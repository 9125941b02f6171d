"""What gpu_check.py keeps of the reports of pytest and ncu."""

from __future__ import annotations

import csv
import io
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
