"""What the figures are of: processor, GPU, versions, commit and date."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from erd_cuda.build import build_info
from erd_cuda.cli.info import cpu_name

#: The peers' packages, by the names that pip knows.
PACKAGES = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "triton", "pytest-benchmark")


def has_bf16() -> bool:
    """Whether the processor multiplies bf16 numbers; torch's products of them crawl without."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return False
    flags = set(cpuinfo.read_text(encoding="utf-8", errors="replace").split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def machine_facts(device: str) -> dict[str, Any]:
    """JSON-ready facts, the same for all rows of a report.

    Args:
        device: "cpu" or "cuda": a GPU is named only if it was measured.
    """
    build = build_info()
    facts: dict[str, Any] = {
        "processor": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": build["cpu_capability"],
        "system": platform.platform(),
    }
    if device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = torch.version.cuda
    versions = {"erd_cuda": build["version"], "python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    facts["versions"] = versions
    # More than a little: other programs took time from what is measured here.
    facts["load_before"] = round(os.getloadavg()[0], 2)
    facts["compiler"] = build["compiler"]
    facts["commit"] = build["commit"]
    facts["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return facts
