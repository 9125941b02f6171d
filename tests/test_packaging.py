"""The source archive is complete, and the wheel built from it holds what it must and runs."""

from __future__ import annotations

import email
import importlib.metadata
import json
import os
import re
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
# The first test to run compiles everything, for minutes on a busy machine.
pytestmark = pytest.mark.timeout(1500)

NOT_SOURCES = shutil.ignore_patterns(
    *(".git", ".venv", ".hypothesis", ".*_cache", "__pycache__"),
    *("build", "dist", "erd-demo", "*.egg-info", "*.so"),
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
    def library(self) -> Path:
        return self.unpacked / LIBRARY

    @property
    def array_module(self) -> Path:
        return self.unpacked / ARRAY_MODULE

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

    Where there is a CUDA toolkit, CUDA kernels are in it, for one GPU: all of them take minutes.
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

    environment = {**os.environ, "CMAKE_ARGS": "-DERD_WERROR=ON -DERD_CUDA_ARCHITECTURES=80"}
    environment.pop("ERD_CUDA", None)
    pip = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps")
    output_of(*pip, "-w", out, tree, env=environment)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(out / "unpacked")
    version = wheel.name.split("-")[1]
    return Built(version, archive, tree, wheel, out / "unpacked")


def test_wheel_is_for_this_python_and_platform(built: Built) -> None:
    """The array module is compiled for one Python; the other library would serve them all."""
    python = "cp{}{}".format(*sys.version_info)
    pattern = rf"erd_cuda-[\d.]+-{python}-{python}t?-(linux|macosx)\w+\.whl"
    assert re.fullmatch(pattern, built.wheel.name)
    facts = email.message_from_string((built.metadata / "WHEEL").read_text())
    assert facts["Root-Is-Purelib"] == "false"
    assert facts["Tag"].startswith(f"{python}-{python}")


def test_wheel_holds_the_package_and_nothing_else(built: Built, clean_copy: Path) -> None:
    def files_below(top: Path) -> set[str]:
        return {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}

    held = files_below(built.unpacked)
    package = {name for name in held if name.startswith("erd_cuda/")}
    source = {f"erd_cuda/{name}" for name in files_below(clean_copy / "erd_cuda")}
    assert package == source | {LIBRARY, ARRAY_MODULE}
    assert "erd_cuda/py.typed" in package
    assert {name.split("/")[0] for name in held - package} == {built.metadata.name}


def test_metadata_names_licence_readme_and_dependencies(built: Built) -> None:
    facts = email.message_from_string((built.metadata / "METADATA").read_text())
    assert facts["License-Expression"] == "Apache-2.0"
    assert sorted(facts.get_all("License-File", [])) == ["LICENSE", "NOTICE"]
    assert "Apache License" in (built.metadata / "licenses" / "LICENSE").read_text()
    assert facts["Requires-Python"] == ">=3.10"
    required = {line for line in facts.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert required == {"torch>=2.10", "numpy", "safetensors", "tqdm", "tabulate"}
    assert facts.get_payload() == (ROOT / "README.md").read_text()
    entry_points = (built.metadata / "entry_points.txt").read_text()
    assert "erd-cuda = erd_cuda.cli:main" in entry_points


def test_version_is_the_same_everywhere(built: Built) -> None:
    import erd_cuda

    assert built.version == erd_cuda.__version__
    header = (built.tree / "build/cmake/generated/erd_build_info.h").read_text()
    assert f'#define ERD_BUILD_VERSION "{erd_cuda.__version__}"' in header
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.findall(r"^## \[(\d[^]]*)\]", changelog, re.MULTILINE)[0] == erd_cuda.__version__


def test_source_archive_claims_no_commit_of_a_surrounding_repository(
    built: Built, tmp_path: Path
) -> None:
    """A tree unpacked inside some other project's checkout is not that project's commit."""
    git = shutil.which("git")
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if git is None or cmake is None:
        pytest.skip("needs git and cmake")
    outer = tmp_path / "outer"
    shutil.copytree(built.tree, outer / "erd_cuda", ignore=NOT_SOURCES)
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    output_of(git, "init", "-q", outer)
    output_of(git, *identity, "commit", "-q", "--allow-empty", "-m", "c", cwd=outer)
    build = outer / "build"
    torch_root = re.search(
        r"^ERD_TORCH_ROOT:PATH=(.*)$",
        (built.tree / "build/cmake/CMakeCache.txt").read_text(),
        re.MULTILINE,
    )
    assert torch_root is not None
    output_of(cmake, "-S", outer / "erd_cuda", "-B", build, f"-DERD_TORCH_ROOT={torch_root[1]}")
    header = (build / "generated/erd_build_info.h").read_text()
    assert '#define ERD_BUILD_COMMIT "unknown"' in header


def test_wheel_runs_where_there_is_no_source_tree(built: Built, tmp_path: Path) -> None:
    program = f"""
import sys
import erd_cuda
assert "torch" not in sys.modules, "importing erd_cuda imports torch"
assert erd_cuda.__file__.startswith({str(built.unpacked)!r}), erd_cuda.__file__
import torch
pose = torch.tensor([[[0.0, 0.0, 0.0], [100.0, -200.0, 0.0]]])
root = torch.tensor([[0.0, 0.0, 4000.0]])
camera = torch.tensor([1000.0, 1000.0, 500.0, 500.0])
print(erd_cuda.project(pose, root, camera).tolist())
"""
    environment = {**os.environ, "PYTHONPATH": str(built.unpacked)}
    printed = output_of(sys.executable, "-c", program, cwd=tmp_path, env=environment)
    assert printed.strip() == "[[[500.0, 500.0], [525.0, 450.0]]]"


def test_wheel_has_cuda_kernels_where_there_is_a_toolkit(built: Built, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(built.unpacked)}
    program = "import erd_cuda, json; print(json.dumps(erd_cuda.build_info()))"
    facts = json.loads(output_of(sys.executable, "-c", program, cwd=tmp_path, env=environment))
    if shutil.which("nvcc") is None:
        pytest.skip("there is no nvcc on PATH")
    assert facts["cuda"] is True
    assert facts["architectures"] == ["sm_80", "compute_80"]
    assert re.fullmatch(r"nvcc \d+\.\d+", facts["cuda_compiler"])


def test_arrays_need_no_torch(built: Built, tmp_path: Path) -> None:
    """An environment with NumPy and safetensors, and the package installed without its other
    dependencies.
    """
    environment = tmp_path / "environment"
    output_of(sys.executable, "-m", "venv", "--without-pip", environment)
    (site_packages,) = environment.glob("lib/python*/site-packages")
    for name in ("numpy", "safetensors"):
        installed = Path(str(importlib.metadata.distribution(name).locate_file("")))
        for part in installed.glob(f"{name}*"):
            (site_packages / part.name).symlink_to(part)
    program = """
import importlib.util
assert importlib.util.find_spec("torch") is None
import numpy as np
import erd_cuda.array as ea
pose = np.float32([[[0, 0, 0], [100, -200, 0]]])
print(ea.project(pose, np.float32([0, 0, 4000]), np.float32([1000, 1000, 500, 500])).tolist())
print(ea.load_weights(ea.bundled_models()[0]).num_joints)
"""
    variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(built.unpacked)}
    printed = output_of(environment / "bin/python", "-c", program, cwd=tmp_path, env=variables)
    assert printed.split("\n")[:2] == ["[[[500.0, 500.0], [525.0, 450.0]]]", "17"]


# ---- the libraries -------------------------------------------------------------------------------


def undefined_symbols(library: Path) -> set[str]:
    lines = output_of(binary_tool("nm"), "-D", "--undefined-only", library).splitlines()
    return {line.split()[-1] for line in lines if line.split()[0] == "U"}


def test_library_needs_no_python_and_nothing_newer_than_torch_2_10(built: Built) -> None:
    """Only symbols of the C and C++ libraries carry a version: all others must be torch's."""
    shim = (ROOT / "tests/data/torch_2_10_shim.txt").read_text().splitlines()
    unversioned = {symbol for symbol in undefined_symbols(built.library) if "@" not in symbol}
    assert "torch_call_dispatcher" in shim
    assert unversioned, "an operator library without a symbol of torch?"
    assert unversioned <= set(shim), sorted(unversioned - set(shim))


def test_library_loads_only_torch_and_the_system(built: Built) -> None:
    dynamic = output_of(binary_tool("readelf"), "-d", built.library)
    needed = {name.split(".so")[0] for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)}
    system = {"libstdc++", "libgcc_s", "libm", "libc", "libpthread", "libdl", "librt"}
    assert {name for name in needed if not name.startswith("ld-linux")} - system == {"libtorch_cpu"}
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


def test_array_module_needs_python_and_the_system_only(built: Built) -> None:
    dynamic = output_of(binary_tool("readelf"), "-d", built.array_module)
    needed = {name.split(".so")[0] for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)}
    system = {"libstdc++", "libgcc_s", "libm", "libc", "libpthread", "libdl", "librt"}
    assert {name for name in needed if not name.startswith("ld-linux")} <= system
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic
    unversioned = {symbol for symbol in undefined_symbols(built.array_module) if "@" not in symbol}
    assert unversioned, "a module of Python without a symbol of Python?"
    assert {symbol for symbol in unversioned if not re.match("_?Py", symbol)} == set()


def test_array_module_exports_its_initialisation_only(built: Built) -> None:
    exported = output_of(binary_tool("nm"), "-D", "--defined-only", built.array_module).splitlines()
    assert [line.split()[-1] for line in exported] == ["PyInit__array"]


def test_library_exports_nothing(built: Built) -> None:
    assert output_of(binary_tool("nm"), "-D", "--defined-only", built.library) == ""


@pytest.mark.parametrize("library", [LIBRARY, ARRAY_MODULE])
def test_old_processors_never_meet_avx(built: Built, library: str) -> None:
    """Objects for every processor hold no AVX, and the linker sees them before those that do.

    An inline function that several objects hold is taken from the first one.
    """
    build = built.tree / "build/cmake"
    cache = (build / "CMakeCache.txt").read_text()
    ninja = re.search(r"^CMAKE_MAKE_PROGRAM:\w+=(.*)$", cache, re.MULTILINE)
    assert ninja is not None
    commands = output_of(ninja[1], "-C", build, "-t", "commands", Path(library).name)
    objects = re.findall(r"CMakeFiles/\w+\.dir/\S+?\.o\b", commands.splitlines()[-1])
    rank = {"erd_cpu_avx2": 1, "erd_cpu_avx512": 2}
    ranks = [rank.get(name.split("/")[1].removesuffix(".dir"), 0) for name in objects]
    assert ranks == sorted(ranks), objects
    if ranks[-1] == 0:
        pytest.skip("this processor family has only the portable variant")

    for name, its_rank in zip(objects, ranks, strict=True):
        registers = set(
            re.findall(r"%([yz])mm\d", output_of(binary_tool("objdump"), "-d", build / name))
        )
        assert its_rank > 0 or not registers, name
        assert its_rank > 1 or "z" not in registers, name


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
