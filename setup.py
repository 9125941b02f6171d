"""Drives CMake for setuptools: pip's install, editable install and wheel all end here.

Environment variables:
    ERD_CUDA                    1 builds the CUDA kernels or fails, 0 leaves them out; unset: they
                                are built where a CUDA toolkit is found, GPU or not
    ERD_COMPILE                 0: an editable install does not compile, `setup.py build_ext
                                --inplace` does it before, after or at the same time
    CUDACXX, CUDA_HOME          the CUDA compiler, the toolkit's directory
    CMAKE_ARGS                  more arguments for CMake, such as "-DERD_CUDA_ARCHITECTURES=80;90"
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
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

SOURCE = Path(__file__).resolve().parent
BUILD = SOURCE / "build" / "cmake"
PACKAGE = "erd_cuda"
LIBRARY = "liberd_cuda_ops.so"
ARRAY_MODULE = f"_array{sysconfig.get_config_var('EXT_SUFFIX')}"
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


def cuda_choice() -> str:
    """The value of CMake's ERD_CUDA that the environment asks for."""
    asked = os.environ.get("ERD_CUDA", "")
    choice = {"": "AUTO", "0": "OFF", "1": "ON"}.get(asked)
    if choice is None:
        raise SetupError(f"the environment variable ERD_CUDA is {asked!r}, expected 0, 1 or unset.")
    return choice


def tool(name: str) -> str:
    """Path of a build tool: the one in this Python's environment, active or not, else on PATH."""
    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    found = shutil.which(name, path=places)
    if found is None:
        raise SetupError(
            f"erd_cuda is built with {name}, which was not found: run `pip install cmake ninja`."
        )
    return found


def python_with_pybind11() -> str:
    """The Python that runs this, after a look whether it finds pybind11."""
    if importlib.util.find_spec("pybind11") is None:
        raise SetupError(
            "erd_cuda is built with pybind11, which was not found: run `pip install pybind11`."
        )
    return sys.executable


class CMakeBuild(build_ext):
    """Configures, compiles and puts the operator library and the array module into the package.

    The package is that of the source tree for an editable install, else the copy in the build tree.
    """

    def run(self) -> None:
        if self.editable_mode and os.environ.get("ERD_COMPILE") == "0":
            return
        in_source = self.inplace or self.editable_mode
        destination = SOURCE if in_source else Path(self.build_lib).resolve()
        torch, cmake, ninja = torch_root(), tool("cmake"), tool("ninja")
        configure = [
            *(cmake, "-S", str(SOURCE), "-B", str(BUILD), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DERD_TORCH_ROOT={torch}",
            f"-DERD_CUDA={cuda_choice()}",
            f"-DERD_PYTHON={python_with_pybind11()}",
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
        return [os.path.join(self.build_lib, PACKAGE, name) for name in (LIBRARY, ARRAY_MODULE)]

    def get_output_mapping(self) -> dict[str, str]:
        if not (self.inplace or self.editable_mode):
            return {}
        return {path: str(SOURCE / PACKAGE / Path(path).name) for path in self.get_outputs()}


setup(
    # setuptools must know that there is something to compile; what it is, CMake knows.
    ext_modules=[
        Extension(f"{PACKAGE}.{name}", sources=[])
        for name in (LIBRARY.removesuffix(".so"), "_array")
    ],
    cmdclass={"build_ext": CMakeBuild},
)
