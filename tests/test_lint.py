"""The code is clean for ruff, mypy and clang-format, in the versions pyproject.toml names."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}


def run_tool(name: str, *arguments: str) -> None:
    """Runs a tool of this Python's environment on the repository; its findings fail the test."""
    tool = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if tool is None:
        pytest.skip(f"{name} is not installed: pip install -e '.[dev]'")
    result = subprocess.run(
        [tool, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if result.returncode != 0:
        pytest.fail(f"{name} {' '.join(arguments[:2])}\n{result.stdout}", pytrace=False)


def test_ruff_finds_nothing() -> None:
    run_tool("ruff", "check", ".")


def test_ruff_would_format_nothing() -> None:
    run_tool("ruff", "format", "--diff", ".")


def test_mypy_finds_nothing() -> None:
    run_tool("mypy", "--python-executable", sys.executable)


def test_clang_format_would_change_nothing() -> None:
    sources = sorted(path for path in ROOT.glob("csrc/**/*") if path.suffix in NATIVE_SUFFIXES)
    assert sources, "no C++ sources found"
    run_tool("clang-format", "--dry-run", "--Werror", *map(str, sources))
