"""Runs the suites under pytest-benchmark, in a process of their own, and reads what they found."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import erd_cuda
from erd_cuda.benchmarks import results, targets

_SUITES = Path(__file__).with_name("suites")
_NEEDED = ("pytest", "pytest_benchmark", "matplotlib")


class SuitesFailedError(RuntimeError):
    """The suites ended without figures."""


def check_installed() -> None:
    """Raise ImportError, with what to do, if something is missing that every report needs."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing).replace("_", "-")
        raise ImportError(f"benchmarks need {names}; install with: pip install 'erd-cuda[bench]'")


def measure(plan: str, device: str, threads: int | None) -> dict[str, Any]:
    """Results as `results.merge` has them, with ``targets``.

    Args:
        plan: one of `cases.PLANS`.
        device: "cpu" or "cuda".
        threads: of the CPU, for all contenders; None for torch's choice.

    Raises:
        ImportError: something is not installed that is needed whatever is measured.
        SuitesFailedError: the suites did not come to their end.
    """
    check_installed()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "measured.json"
        command = [sys.executable, "-m", "pytest", str(_SUITES), "-c", str(_SUITES / "pytest.ini")]
        command += ["-q", "-s", "-p", "no:cacheprovider", "--tb=short", "--erd-progress"]
        command += [f"--benchmark-json={out}", f"--erd-plan={plan}", f"--erd-device={device}"]
        if threads is not None:
            command.append(f"--erd-threads={threads}")
        # This very package, wherever the new process would find one.
        paths = [str(Path(erd_cuda.__file__).parents[1]), os.environ.get("PYTHONPATH")]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        # What the suites print is for developers; progress and warnings are on stderr.
        finished = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        # 1: some contender failed; the figures of the others are there, and the reason is.
        if finished.returncode not in (0, 1) or not out.is_file():
            raise SuitesFailedError(
                f"the suites ended with status {finished.returncode}:\n{finished.stdout[-3000:]}"
            )
        merged = results.merge(json.loads(out.read_text(encoding="utf-8")))
    merged["targets"] = targets.check(merged)
    rounded: dict[str, Any] = results.rounded(merged)
    return rounded
