"""Every benchmark runs once: what is only measured now and then must not rot in between."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]


def test_every_benchmark_runs() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--benchmark-disable", "benchmarks"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert finished.returncode == 0, finished.stdout[-4000:] + finished.stderr[-1000:]
    passed = re.search(r"(\d+) passed", finished.stdout)
    assert passed and int(passed[1]) >= 40, finished.stdout[-500:]
