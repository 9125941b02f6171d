"""What gpu_check.py says about the machine, the build and the commit; unknown is None."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import re
import shutil
import sys
from collections.abc import Iterable
from typing import Any

from gpu_process import ROOT, Result, first_line, run

DRIVER = ROOT / "scripts" / "gpu_driver.py"
#: What nvidia-smi is asked for, and what the answers are called here.
SMI_FIELDS = {
    "name": "name",
    "driver_version": "driver",
    "compute_cap": "capability",
    "memory.total": "memory",
    "clocks.max.sm": "clock",
    "power.limit": "power",
}


def read_nvidia_smi(output: str) -> list[Result]:
    """One entry for each GPU; lines that are no rows of the table are passed over."""
    rows = (
        [value.strip() for value in row]
        for row in csv.reader(output.splitlines(), skipinitialspace=True)
    )
    wanted = len(SMI_FIELDS)
    found = [dict(zip(SMI_FIELDS.values(), row, strict=True)) for row in rows if len(row) == wanted]
    return [gpu for gpu in found if re.fullmatch(r"\d+\.\d+", gpu["capability"])]


def machine_facts() -> Result:
    """From the system's own tools, in a second or two: what torch knows takes its import."""
    query = ["nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader"]
    output = run(query, 20)["output"] if shutil.which("nvidia-smi") else None
    gpus = read_nvidia_smi(output or "")
    return {
        "gpus": gpus,
        "nvidia_smi": output if output is None else output.strip()[:1000],
        "driver": gpus[0]["driver"] if gpus else None,
        "nvcc": first_line(["nvcc", "--version"], "release"),
        "ncu": first_line(["ncu", "--version"], "Version"),
        "compute_sanitizer": first_line(["compute-sanitizer", "--version"], "ersion"),
        "cxx": first_line([os.environ.get("CXX", "c++"), "--version"]),
        "processors": os.cpu_count(),
        "processor": first_line(["lscpu"], "Model name"),
    }


def obstacle(gpus: list[Result], rehearse: bool) -> str | None:
    """Why a check would be of no use here, in a sentence; None if nothing stands in the way."""
    missing = [name for name in ("torch", "pytest") if importlib.util.find_spec(name) is None]
    if missing:
        return (
            f"{sys.executable} has no {' and no '.join(missing)}: make test builds an environment "
            "that has all (PYTHON=.venv/bin/python), or install '.[test]' into this one"
        )
    if rehearse or gpus:
        return None
    seen = run([sys.executable, "-c", "import torch; print(torch.cuda.is_available())"], 120)
    if "True" in seen["output"].split():
        return None
    return (
        "neither nvidia-smi nor torch sees a GPU here: --rehearse runs what needs none (about a "
        "minute)"
    )


def ask_driver(what: str, limit: float) -> tuple[Result, Result | None]:
    """How gpu_driver.py ran, and the JSON that it has printed, if any."""
    result = run([sys.executable, str(DRIVER), what], limit)
    answer = None
    for line in result["output"].splitlines():
        if line.startswith("{"):
            try:
                answer = json.loads(line)
            except json.JSONDecodeError:
                continue
    return result, answer


def architectures(gpus: Iterable[Result]) -> str | None:
    """For CMake: these GPUs and no others."""
    names = sorted({gpu["capability"].replace(".", "") for gpu in gpus})
    # Hopper's own instructions are a target of their own.
    return ";".join(name + (";90a" if name == "90" else "") for name in names) or None


def git(*arguments: str) -> str | None:
    result = run(["git", *arguments], 20)
    return result["output"].strip() if result["status"] == "passed" else None


def commit_facts(given: str | None, build: Any) -> Result:
    """``commit``, ``uncommitted_changes`` and where they are from.

    Args:
        given: by whoever has copied the sources to where there is no repository.
        build: `erd_cuda.build_info()`, whose commit is that of the library's sources.
    """
    if given:
        return {"commit": given, "uncommitted_changes": None, "commit_from": "argument"}
    # A copy that lies inside another repository has not that one's commit.
    if (ROOT / ".git").exists() and (commit := git("rev-parse", "HEAD")):
        changes = git("status", "--porcelain", "--untracked-files=no")
        changed = None if changes is None else bool(changes)
        return {"commit": commit, "uncommitted_changes": changed, "commit_from": "git"}
    built = str((build or {}).get("commit") or "unknown")
    if built == "unknown":
        return {"commit": None, "uncommitted_changes": None, "commit_from": None}
    return {
        "commit": built.removesuffix("-dirty"),
        "uncommitted_changes": built.endswith("-dirty"),
        "commit_from": "build",
    }
