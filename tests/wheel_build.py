"""The package built as users build it: source archive, its tree, the wheel made there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "erd_cuda/liberd_cuda_ops.so"
ARRAY_MODULE = f"erd_cuda/_array{sysconfig.get_config_var('EXT_SUFFIX')}"
NOT_SOURCES = shutil.ignore_patterns(
    *(".git", ".venv", ".hypothesis", ".*_cache", "__pycache__"),
    *("build", "build-cpp", "dist", "erd-demo", "*.egg-info", "*.so"),
)


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs a command; the result holds its output, whatever its exit status."""
    return subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def output_of(*command: str | Path, **options: object) -> str:
    result = run(*command, **options)
    assert result.returncode == 0, result.stdout
    return result.stdout


def binary_tool(name: str) -> str:
    if shutil.which(name) is None:
        pytest.skip(f"{name} (binutils) is not installed")
    return name


@dataclass
class Built:
    """A source archive, the tree it unpacks to, and the wheel built in that tree."""

    version: str
    archive: Path
    tree: Path
    wheel: Path
    unpacked: Path

    @property
    def metadata(self) -> Path:
        return self.unpacked / f"erd_cuda-{self.version}.dist-info"


@pytest.fixture(scope="session")
def clean_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources without anything that was built in them."""
    copy = tmp_path_factory.mktemp("clean") / "erd_cuda"
    shutil.copytree(ROOT, copy, ignore=NOT_SOURCES)
    return copy


@pytest.fixture(scope="session")
def built(clean_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Clean copy -> source archive -> its tree -> wheel, with compiler warnings as errors.

    The checkout's own build has all CUDA kernels and CPU variants; a second one would only take
    minutes more.
    """
    out = tmp_path_factory.mktemp("built")
    hook = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    output_of(sys.executable, "-c", hook, cwd=clean_copy)
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        # Python before 3.11.4 knows no filters, later ones warn without.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(out / "tree", **safely)
    (tree,) = (out / "tree").iterdir()

    arguments = ("-DERD_WERROR=ON", "-DERD_CPU_VARIANTS=portable", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")
    environment = os.environ | {"CMAKE_ARGS": " ".join(arguments), "ERD_CUDA": "0"}
    pip = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps")
    output_of(*pip, "-w", out, tree, env=environment)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(out / "unpacked")
    version = wheel.name.split("-")[1]
    return Built(version, archive, tree, wheel, out / "unpacked")
