"""Builds and runs the CUDA kernels on the CPU: tests/cuda_emulation from Python.

The programs land in ``build/emulation``. A *stage* is a directory in which the package lies with
the emulated operator library in place of its own; the operator tests run in it unchanged, and what
they test then are the CUDA kernels' sources.
"""

from __future__ import annotations

import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tests" / "cuda_emulation"
BUILD = ROOT / "build" / "emulation"

# Every program here is small; one that hangs is a finding.
TIMEOUT = 600


def tool(name: str) -> str | None:
    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    return shutil.which(name, path=places)


def compiler() -> str | None:
    return tool(os.environ.get("CXX", "g++"))


def missing_tool() -> str | None:
    """What stands in the way of building the emulation, or None."""
    if sys.platform != "linux":
        return "the emulation runs on Linux only"
    for name in ("cmake", "ninja"):
        if tool(name) is None:
            return f"{name} is not installed"
    if compiler() is None:
        return "there is no C++ compiler"
    version = subprocess.run([compiler() or "", "--version"], capture_output=True, text=True)
    return None if "Free Software" in version.stdout else "the emulation is built with g++ only"


needs_emulation = pytest.mark.skipif(missing_tool() is not None, reason=str(missing_tool()))


@functools.cache
def _configured() -> bool:
    BUILD.mkdir(parents=True, exist_ok=True)
    command = [
        *(str(tool("cmake")), "-S", str(SOURCE), "-B", str(BUILD), "-G", "Ninja"),
        f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
        f"-DCMAKE_CXX_COMPILER={compiler()}",
        f"-DERD_TORCH_ROOT={Path(torch.__file__).parent}",
        f"-DERD_ARRAY_INCLUDES={sysconfig.get_path('include')};{pybind11.get_include()}",
        f"-DERD_ARRAY_SUFFIX={sysconfig.get_config_var('EXT_SUFFIX')}",
    ]
    _checked(command)
    return True


def _checked(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * TIMEOUT)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\n{done.stdout[-8000:]}\n{done.stderr[-4000:]}")


@functools.cache
def build(*targets: str) -> Path:
    """Brings targets of tests/cuda_emulation/CMakeLists.txt up to date; returns where they are."""
    BUILD.parent.mkdir(exist_ok=True)
    with (BUILD.parent / "emulation.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _configured():
            _checked([str(tool("cmake")), "--build", str(BUILD), "--target", *targets])
    return BUILD


def stage(flavour: str) -> Path:
    """A directory with the package, the tests and the emulated library of ``flavour``."""
    place = build(f"operators_{flavour}") / flavour
    return _staged(place, place / "liberd_cuda_ops.so", keep="")


def array_stage() -> Path:
    """The same with the emulated array module; the operator library stays the product's."""
    place = build("array_plain") / "array"
    (module,) = place.glob("_array*.so")
    return _staged(place, module, keep="liberd_cuda_ops.so")


@functools.cache
def _staged(place: Path, library: Path, keep: str) -> Path:
    """Links to the package in `place`, with the emulated library and, if any, the one to keep."""
    package = place / "erd_cuda"
    package.mkdir(exist_ok=True)
    links = {
        package / entry.name: entry
        for entry in (ROOT / "erd_cuda").iterdir()
        if (entry.suffix != ".so" or entry.name == keep) and entry.name != "__pycache__"
    }
    links[package / library.name] = library
    links |= {place / name: ROOT / name for name in ("tests", "pyproject.toml")}
    # What is right stays untouched: another run may be using it.
    for old in package.iterdir():
        if old.is_symlink() and old not in links:
            old.unlink(missing_ok=True)
    for link, target in links.items():
        if not link.is_symlink() or link.readlink() != target:
            new = link.with_name(f"{link.name}.{os.getpid()}")
            new.symlink_to(target)
            new.replace(link)
    return place


def environment(device: int, seed: int, flavour: str = "plain") -> dict[str, str]:
    """Variables for a program of ``flavour`` that emulates compute capability ``device``."""
    variables = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")
    }
    variables |= {
        "ERD_EMULATED_DEVICE": str(device),
        "ERD_EMULATION_SEED": str(seed),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Python and torch leave things allocated at the end.
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
    }
    variables.pop("PYTHONPATH", None)
    return variables


def run_python(
    arguments: list[str], *, flavour: str = "plain", device: int = 80, seed: int = 0
) -> subprocess.CompletedProcess[str]:
    """Runs Python in the stage of ``flavour``."""
    place = stage(flavour)
    variables = environment(device, seed, flavour)
    if flavour == "asan":
        # Python itself is not instrumented: the sanitizer has to be there before it, and the
        # exceptions' library, whose functions the sanitizer wraps.
        variables["LD_PRELOAD"] = " ".join(
            _library(name) for name in ("libasan.so", "libstdc++.so")
        )
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env=variables,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def run_tests(
    arguments: list[str], *, flavour: str = "plain", device: int = 80, seed: int = 0
) -> None:
    """Runs operator tests on the emulated kernels; at least one must pass and none may fail."""
    done = run_python(
        ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--durations=5", *arguments],
        flavour=flavour,
        device=device,
        seed=seed,
    )
    said = done.stdout[-6000:] + done.stderr[-6000:]
    assert done.returncode == 0, said
    assert re.search(r"\b[1-9]\d* passed", done.stdout), said


def run_program(
    name: str, *arguments: str, device: int = 80, seed: int = 0
) -> subprocess.CompletedProcess[str]:
    """Runs a program of tests/cuda_emulation."""
    return subprocess.run(
        [str(build(name) / name), *arguments],
        env=environment(device, seed),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


def _library(name: str) -> str:
    found = subprocess.run(
        [compiler() or "", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()
