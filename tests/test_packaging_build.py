"""What a build makes of its machine: CUDA found, chosen or left out, and tools that are missing."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from wheel_build import output_of, run

# ---- CUDA: found, chosen, left out ---------------------------------------------------------------


def configure(source: Path, build: Path, *options: str) -> tuple[int, str, str]:
    """CMake's exit status, its output as one line, and the architectures it settled on."""
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if cmake is None:
        pytest.skip("needs cmake")
    import torch

    root = f"-DERD_TORCH_ROOT={Path(torch.__file__).parent}"
    result = run(cmake, "-S", source, "-B", build, root, "-DERD_CPU_VARIANTS=portable", *options)
    header = build / "generated/erd_build_info.h"
    facts = header.read_text() if header.exists() else ""
    found = re.search(r'CUDA_ARCHITECTURES "(.*)"', facts)
    return result.returncode, " ".join(result.stdout.split()), found[1] if found else ""


def pretend_nvcc(place: Path, release: str, toolkit: Path) -> str:
    """A compiler that says what nvcc says, as the option that names it."""
    place.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        f'--version) echo "Cuda compilation tools, release {release}, V{release}.0";;\n'
        f"--dryrun) echo '#$ TOP={toolkit}/bin/..' >&2;;\n"
        '--list-gpu-arch) for i in 75 80 90; do echo "compute_$i"; done;;\n'
        "esac\n"
    )
    place.chmod(0o755)
    return f"-DERD_NVCC={place}"


@pytest.fixture
def pretend_toolkit(tmp_path: Path) -> str:
    """A whole toolkit; its nvcc lies elsewhere, as a script that calls the real one does."""
    toolkit = tmp_path / "toolkit"
    for name in ("bin/nvcc", "include/cuda_runtime.h", "lib64/libcudart_static.a"):
        (toolkit / name).parent.mkdir(parents=True)
        (toolkit / name).touch()
    return pretend_nvcc(tmp_path / "nvcc", "12.4", toolkit)


def test_architectures_are_those_that_nvcc_knows(
    clean_copy: Path, tmp_path: Path, pretend_toolkit: str
) -> None:
    status, said, architectures = configure(clean_copy, tmp_path / "build", pretend_toolkit)
    assert status == 0, said
    with_hopper = any((clean_copy / "csrc/cuda").glob("*_sm90a.cu"))
    expected = ["sm_75", "sm_80", "sm_90", *["sm_90a"] * with_hopper, "compute_80"]
    assert architectures.split() == expected
    assert "CUDA 12.4" in said


def test_architectures_can_be_chosen(
    clean_copy: Path, tmp_path: Path, pretend_toolkit: str
) -> None:
    chosen = "-DERD_CUDA_ARCHITECTURES=75;90"
    status, said, architectures = configure(clean_copy, tmp_path / "a", pretend_toolkit, chosen)
    assert status == 0, said
    assert architectures == "sm_75 sm_90 compute_90"
    unknown = "-DERD_CUDA_ARCHITECTURES=75;77"
    status, said, _ = configure(clean_copy, tmp_path / "b", pretend_toolkit, unknown)
    assert status != 0
    assert "ERD_CUDA_ARCHITECTURES names '77', this nvcc (CUDA 12.4) knows: 75;80;90" in said


def test_cuda_can_be_left_out(clean_copy: Path, tmp_path: Path, pretend_toolkit: str) -> None:
    status, said, architectures = configure(
        clean_copy, tmp_path / "build", pretend_toolkit, "-DERD_CUDA=OFF"
    )
    assert status == 0, said
    assert architectures == ""
    assert "no CUDA (ERD_CUDA is OFF)" in said


@pytest.mark.parametrize(
    ("release", "missing", "why"),
    [
        ("none", "", r"'\S+/nvcc' does not run or is no nvcc"),
        ("11.8", "", r"'\S+/nvcc' is of CUDA 11\.8, and 12\.1 or newer is needed"),
        ("12.4", "include", r"\S+/toolkit has no cuda_runtime\.h or no libcudart_static\.a"),
    ],
    ids=["not_nvcc", "old", "incomplete"],
)
def test_a_toolkit_that_does_not_do(
    release: str,
    missing: str,
    why: str,
    clean_copy: Path,
    tmp_path: Path,
    pretend_toolkit: str,
) -> None:
    """Where CUDA was asked for, the build stops; else it goes on without."""
    pretend_nvcc(tmp_path / "nvcc", release, tmp_path / "toolkit")
    if missing:
        shutil.rmtree(tmp_path / "toolkit" / missing)
    status, said, _ = configure(clean_copy, tmp_path / "on", pretend_toolkit, "-DERD_CUDA=ON")
    assert status != 0
    assert re.search(f"ERD_CUDA is ON, but no CUDA toolkit can be used: .*{why}\\.", said), said
    status, said, architectures = configure(clean_copy, tmp_path / "auto", pretend_toolkit)
    assert status == 0, said
    assert architectures == ""
    assert re.search(rf"erd_cuda kernels: no CUDA \(.*{why}\)", said), said


# ---- a build that cannot work says why -----------------------------------------------------------


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment whose only package is setuptools."""
    import setuptools

    place = tmp_path_factory.mktemp("bare")
    output_of(sys.executable, "-m", "venv", "--without-pip", place)
    (site_packages,) = place.glob("lib/python*/site-packages")
    installed = Path(setuptools.__file__).parent.parent
    for part in [*installed.glob("setuptools*"), installed / "_distutils_hack"]:
        (site_packages / part.name).symlink_to(part)
    return place / "bin/python"


def build_in(
    python: Path, source: Path, out: Path, extra_path: Path | None = None, **variables: str
) -> str:
    """What a build says that must fail: one sentence at the end of its output, no traceback."""
    hook = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    environment = {"PATH": str(out), "PYTHONPATH": str(extra_path or ""), **variables}
    result = run(python, "-c", hook, cwd=source, env=environment)
    assert result.returncode != 0
    assert "Traceback" not in result.stdout, result.stdout
    return result.stdout.splitlines()[-1]


def pretend_torch(place: Path, version: str) -> Path:
    (place / "torch").mkdir()
    (place / "torch/__init__.py").write_text("raise ImportError('a build must not import torch')\n")
    (place / f"torch-{version}.dist-info").mkdir()
    (place / f"torch-{version}.dist-info/METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
    )
    return place


def test_missing_torch_is_one_clear_sentence(
    clean_copy: Path, bare_python: Path, tmp_path: Path
) -> None:
    said = build_in(bare_python, clean_copy, tmp_path)
    assert said == (
        "error: erd_cuda is compiled against an installed torch, and this build environment has "
        'none: run `pip install "torch>=2.10"`, then `pip install --no-build-isolation .` '
        "(without that option pip builds where the installed torch is not seen)."
    )


def test_old_torch_is_one_clear_sentence(
    clean_copy: Path, bare_python: Path, tmp_path: Path
) -> None:
    old = pretend_torch(tmp_path, "2.9.1+cpu")
    said = build_in(bare_python, clean_copy, tmp_path, old)
    assert said == "error: erd_cuda needs torch >= 2.10; this environment has torch 2.9.1+cpu."


def test_missing_cmake_is_one_clear_sentence(
    clean_copy: Path, bare_python: Path, tmp_path: Path
) -> None:
    torch = pretend_torch(tmp_path, "2.10.0")
    said = build_in(bare_python, clean_copy, tmp_path, torch)
    assert said == (
        "error: erd_cuda is built with cmake, which was not found: run `pip install cmake ninja`."
    )


def pretend_tools(place: Path) -> None:
    for name in ("cmake", "ninja"):
        (place / name).write_text("#!/bin/sh\nexit 1\n")
        (place / name).chmod(0o755)


def test_unknown_choice_of_cuda_is_one_clear_sentence(
    clean_copy: Path, bare_python: Path, tmp_path: Path
) -> None:
    torch = pretend_torch(tmp_path, "2.10.0")
    pretend_tools(tmp_path)
    said = build_in(bare_python, clean_copy, tmp_path, torch, ERD_CUDA="yes")
    assert said == ("error: the environment variable ERD_CUDA is 'yes', expected 0, 1 or unset.")


def test_missing_pybind11_is_one_clear_sentence(
    clean_copy: Path, bare_python: Path, tmp_path: Path
) -> None:
    torch = pretend_torch(tmp_path, "2.10.0")
    pretend_tools(tmp_path)
    said = build_in(bare_python, clean_copy, tmp_path, torch)
    assert said == (
        "error: erd_cuda is built with pybind11, which was not found: run `pip install pybind11`."
    )
