"""What is inside the compiled library's GPU code: architectures, registers, instructions.

Read with ``cuobjdump`` (packages ``nvidia-cuda-cuobjdump`` and ``nvidia-cuda-nvdisasm``, no toolkit
and no GPU needed). Run as a program, it writes the register budget from the installed library::

    python tests/cuda_library.py > tests/data/cuda_budget.json
"""

from __future__ import annotations

import functools
import importlib.util
import json
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import erd_cuda

LIBRARY = Path(erd_cuda.__file__).with_name("liberd_cuda_ops.so")


def cuobjdump() -> str | None:
    """Path of the tool: the one from PyPI, else the toolkit's."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(place).glob("cu*/bin/cuobjdump")):
            return str(found)
    return shutil.which("cuobjdump")


def _dump(*options: str) -> str:
    done = subprocess.run(
        [cuobjdump() or "cuobjdump", *options, str(LIBRARY)],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def architectures() -> set[str]:
    """Such as sm_80 for machine code and compute_120 for PTX."""
    elf = re.findall(r"\.(sm_\w+)\.cubin", _dump("--list-elf"))
    ptx = re.findall(r"\.(sm_\w+)\.ptx", _dump("--list-ptx"))
    return set(elf) | {name.replace("sm_", "compute_") for name in ptx}


@dataclass(frozen=True)
class Resources:
    registers: int
    stack: int  # bytes of local memory: arrays that found no registers, and spills
    shared: int  # bytes of static shared memory


@functools.cache
def _raw_resources() -> dict[tuple[str, str], Resources]:
    found = {}
    architecture = name = ""
    for line in _dump("--dump-resource-usage").splitlines():
        if match := re.match(r"\s*arch = (\w+)", line):
            architecture = match[1]
        elif match := re.match(r"\s*Function (\S+):", line):
            name = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+)", line):
            found[name, architecture] = Resources(*map(int, match.groups()))
    return found


@functools.cache
def resources() -> dict[tuple[str, str], Resources]:
    """Per kernel and architecture."""
    return {(_names()[name], where): value for (name, where), value in _raw_resources().items()}


def instructions(kernels: tuple[str, ...], architecture: str) -> dict[str, Counter[str]]:
    """Opcodes in the machine code of the kernels whose names begin so, and how often each stands.

    Such as HMMA or LDG. Only these kernels are disassembled: all of them would take a minute.
    """
    wanted = [
        mangled
        for mangled, name in _names().items()
        if name.startswith(kernels) and (name, architecture) in resources()
    ]
    found: dict[str, Counter[str]] = {}
    name = ""
    chosen = ("--gpu-architecture", architecture, "--function", ",".join(wanted))
    for line in _dump("--dump-sass", *chosen).splitlines() if wanted else []:
        if match := re.match(r"\s*Function : (\S+)", line):
            name = _names()[match[1]]
            found[name] = Counter()
        elif match := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9]*)", line):
            found[name][match[1]] += 1
    return found


@functools.cache
def _names() -> dict[str, str]:
    """From the names in the library to those in the sources, with template arguments."""
    mangled = sorted({name for name, _ in _raw_resources()})
    done = subprocess.run(["c++filt", "-p", *mangled], capture_output=True, text=True, check=True)
    noise = r"\b(?:erd|cuda)::|\(anonymous namespace\)::|^void "
    readable = [re.sub(noise, "", line) for line in done.stdout.splitlines()]
    return dict(zip(mangled, readable, strict=True))


def budget() -> dict[str, object]:
    """What the test compares with: the compiler, and each kernel's registers per architecture.

    Rounded up to eight, which is how a GPU hands them out.
    """
    kernels: dict[str, dict[str, int]] = {}
    for (name, architecture), value in sorted(resources().items()):
        kernels.setdefault(name, {})[architecture] = -(-value.registers // 8) * 8
    return {"compiler": erd_cuda.build_info()["cuda_compiler"], "registers": kernels}


if __name__ == "__main__":
    print(json.dumps(budget(), indent=1))
