"""Runs the programs of gpu_check.py: with a time limit, and without ever raising."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TAIL = 6000

Result = dict[str, Any]


def run(command: Sequence[str], limit: float, environment: dict[str, str] | None = None) -> Result:
    """Runs a command with a time limit for it and its children; never raises.

    The result has ``command``, ``status`` ("passed", "failed" or "skipped"), ``exit_status``,
    ``seconds``, ``output`` with its end in ``output_tail``, and a ``reason`` where the status alone
    does not say it.
    """
    begin = time.monotonic()
    result: Result = {"command": " ".join(command), "status": "failed", "exit_status": None}
    if limit <= 0:
        skipped = {"status": "skipped", "reason": "out of time", "seconds": 0.0}
        return result | skipped | {"output": "", "output_tail": ""}
    output = ""
    # This checkout's erd_cuda, whether or not one is installed.
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": paths} | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
            preexec_fn=_heed_interrupts,
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


def _heed_interrupts() -> None:
    # A shell starts its background jobs with this signal ignored, and their children inherit that:
    # what `stop` asks of them would not reach them.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def stop(process: subprocess.Popen[str]) -> str:
    """Ends a process and its children; those that can still write their report."""
    signal_group(process, signal.SIGINT)
    try:
        output, _ = process.communicate(timeout=8)
    except subprocess.TimeoutExpired:
        signal_group(process, signal.SIGKILL)
        output, _ = process.communicate()
    return output


def signal_group(process: subprocess.Popen[str], number: signal.Signals) -> None:
    # It may have ended by itself just now; what it has written is still to be read.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def first_line(command: Sequence[str], pattern: str = "") -> str | None:
    """The line of a tool's output that matches, or None if there is no such tool."""
    if shutil.which(command[0]) is None:
        return None
    lines = run(command, 20)["output"].splitlines()
    return next((line.strip() for line in lines if line and re.search(pattern, line)), None)
