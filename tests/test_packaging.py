"""The source archive is complete, and the wheel built from it holds what it must and runs."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = "erd_cuda/liberd_cuda_ops.so"
# The first test to run compiles everything, for minutes on a busy machine.
pytestmark = pytest.mark.timeout(900)

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
    """Clean copy -> source archive -> its tree -> wheel, with compiler warnings as errors."""
    out = tmp_path_factory.mktemp("built")
    hook = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    output_of(sys.executable, "-c", hook, cwd=clean_copy)
    (archive,) = out.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        # Python before 3.11.4 knows no filters, later ones warn without.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(out / "tree", **safely)
    (tree,) = (out / "tree").iterdir()

    environment = {**os.environ, "CMAKE_ARGS": "-DERD_WERROR=ON"}
    pip = (sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps")
    output_of(*pip, "-w", out, tree, env=environment)
    (wheel,) = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        file.extractall(out / "unpacked")
    version = wheel.name.split("-")[1]
    return Built(version, archive, tree, wheel, out / "unpacked")


def test_wheel_serves_every_python_of_the_platform(built: Built) -> None:
    assert re.fullmatch(r"erd_cuda-[\d.]+-py3-none-(linux|macosx)\w+\.whl", built.wheel.name)
    facts = email.message_from_string((built.metadata / "WHEEL").read_text())
    assert facts["Root-Is-Purelib"] == "false"
    assert facts["Tag"].startswith("py3-none-")


def test_wheel_holds_the_package_and_nothing_else(built: Built, clean_copy: Path) -> None:
    def files_below(top: Path) -> set[str]:
        return {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}

    held = files_below(built.unpacked)
    package = {name for name in held if name.startswith("erd_cuda/")}
    source = {f"erd_cuda/{name}" for name in files_below(clean_copy / "erd_cuda")}
    assert package == source | {LIBRARY}
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


# ---- the library ---------------------------------------------------------------------------------


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
    system = {"libstdc++", "libgcc_s", "libm", "libc", "libpthread"}
    assert {name for name in needed if not name.startswith("ld-linux")} - system == {"libtorch_cpu"}
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


def test_library_exports_nothing(built: Built) -> None:
    assert output_of(binary_tool("nm"), "-D", "--defined-only", built.library) == ""


def test_old_processors_never_meet_avx(built: Built) -> None:
    """Objects for every processor hold no AVX, and the linker sees them before those that do.

    An inline function that several objects hold is taken from the first one.
    """
    build = built.tree / "build/cmake"
    cache = (build / "CMakeCache.txt").read_text()
    ninja = re.search(r"^CMAKE_MAKE_PROGRAM:\w+=(.*)$", cache, re.MULTILINE)
    assert ninja is not None
    commands = output_of(ninja[1], "-C", build, "-t", "commands", "liberd_cuda_ops.so")
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


def build_in(python: Path, source: Path, out: Path, extra_path: Path | None = None) -> str:
    """What a build says that must fail: one sentence at the end of its output, no traceback."""
    hook = f"from setuptools import build_meta; build_meta.build_wheel({str(out)!r})"
    environment = {"PATH": str(out), "PYTHONPATH": str(extra_path or "")}
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
