"""Drives CMake for setuptools: pip's install, editable install and wheel all end here.

Environment variables:
    CMAKE_ARGS                  more arguments for CMake, such as "-DERD_CPU_VARIANTS=portable"
                                (the top of CMakeLists.txt lists them)
    CMAKE_BUILD_PARALLEL_LEVEL  how many compilers run at once
    CXX                         the C++ compiler
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

SOURCE = Path(__file__).resolve().parent
BUILD = SOURCE / "build" / "cmake"
PACKAGE = "erd_cuda"
LIBRARY = "liberd_cuda_ops.so"
OLDEST_TORCH = (2, 10)


def torch_root() -> Path:
    """Directory of the installed torch, found without importing it (which would take seconds)."""
    oldest = ".".join(map(str, OLDEST_TORCH))
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        raise SetupError(
            "erd_cuda is compiled against an installed torch, and this build environment has none: "
            f'run `pip install "torch>={oldest}"`, then `pip install --no-build-isolation .` '
            "(without that option pip builds where the installed torch is not seen)."
        )
    version = importlib.metadata.version("torch")
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST_TORCH:
        raise SetupError(f"erd_cuda needs torch >= {oldest}; this environment has torch {version}.")
    return Path(spec.origin).parent


def tool(name: str) -> str:
    """Path of a build tool: the one in this Python's environment, active or not, else on PATH."""
    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=places)
    if found is None:
        raise SetupError(
            f"erd_cuda is built with {name}, which was not found: run `pip install cmake ninja`."
        )
    return found


class CMakeBuild(build_ext):
    """Configures, compiles and puts the operator library into the package.

    The package is that of the source tree for an editable install, else the copy in the build tree.
    """

    def run(self) -> None:
        in_source = self.inplace or self.editable_mode
        destination = SOURCE if in_source else Path(self.build_lib).resolve()
        torch, cmake, ninja = torch_root(), tool("cmake"), tool("ninja")
        configure = [
            *(cmake, "-S", str(SOURCE), "-B", str(BUILD), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DERD_TORCH_ROOT={torch}",
            *shlex.split(os.environ.get("CMAKE_ARGS", "")),
        ]
        install = [cmake, "--install", str(BUILD), "--prefix", str(destination)]
        for command in (configure, [cmake, "--build", str(BUILD)], install):
            try:
                subprocess.run(command, check=True)
            except subprocess.CalledProcessError as error:
                raise SetupError(
                    f"erd_cuda could not be built, see the messages above: {shlex.join(command)}"
                ) from error

    def get_outputs(self) -> list[str]:
        return [os.path.join(self.build_lib, PACKAGE, LIBRARY)]

    def get_output_mapping(self) -> dict[str, str]:
        if not (self.inplace or self.editable_mode):
            return {}
        return {self.get_outputs()[0]: str(SOURCE / PACKAGE / LIBRARY)}


class PlatformWheel(bdist_wheel):
    """The library has no Python symbol in it: one wheel serves every Python 3 of a platform."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    # setuptools must know that there is something to compile; what it is, CMake knows.
    ext_modules=[Extension(f"{PACKAGE}.{LIBRARY.removesuffix('.so')}", sources=[])],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": PlatformWheel},
)
