"""``erd-cuda info``: versions, build and capabilities, to paste in a bug report."""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from erd_cuda._definitions import LIFTER_SIZES
from erd_cuda._version import __version__

__all__ = ["add_parser", "cpu_name", "run"]

PACKAGES = ("numpy", "safetensors", "tqdm", "tensorboard", "matplotlib")


def add_parser(subparsers: Any) -> None:
    """Add the command to the dispatcher."""
    parser = subparsers.add_parser(
        "info",
        description="Print versions, build and capabilities: paste the output in a bug report.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    facts = collect()
    if args.json:
        print(json.dumps(facts, indent=1))
    else:
        width = max(len(name) for name in facts)
        for name, value in facts.items():
            print(f"{name:<{width}}  {_text(value)}")
    return 0


def collect() -> dict[str, Any]:
    """The facts, JSON-ready. Works without a built extension, and says so then."""
    facts: dict[str, Any] = {
        "erd_cuda": __version__,
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
    }
    import torch

    facts["torch"] = torch.__version__
    facts["threads"] = torch.get_num_threads()
    facts["torch cuda"] = torch.version.cuda or "no"
    facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts.update({name: _version(name) for name in PACKAGES})
    try:
        import erd_cuda

        facts["build"] = erd_cuda.build_info()
    except (ImportError, OSError, RuntimeError) as error:
        facts["build"] = f"the compiled extension does not load: {' '.join(str(error).split())}"
    facts["lifters"] = list(LIFTER_SIZES)
    try:
        from erd_cuda.modules import bundled_models

        facts["bundled models"] = list(bundled_models())
    except ImportError as error:
        facts["bundled models"] = f"unknown: {' '.join(str(error).split())}"
    return facts


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    """The processor's name; platform.processor() is empty on Linux."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    return str(value)
