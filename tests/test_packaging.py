"""The source archive is complete, and the wheel built from it holds what it must and runs."""

from __future__ import annotations

import email
import importlib.metadata
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from erd_models import make_erd
from wheel_build import ARRAY_MODULE, LIBRARY, NOT_SOURCES, ROOT, Built, binary_tool, output_of, run

from erd_cuda.benchmarks.problems import make_network, make_problem
from erd_cuda.export import to_cpp

# The first test to run compiles everything, for minutes on a busy machine.
pytestmark = pytest.mark.timeout(1500)


def test_wheel_is_for_this_python_and_platform(built: Built) -> None:
    """The array module is compiled for one Python; the other library would serve them all."""
    python = "cp{}{}".format(*sys.version_info)
    pattern = rf"erd_cuda-[\d.]+-{python}-{python}t?-(linux|macosx)\w+\.whl"
    assert re.fullmatch(pattern, built.wheel.name)
    facts = email.message_from_string((built.metadata / "WHEEL").read_text())
    assert facts["Root-Is-Purelib"] == "false"
    assert facts["Tag"].startswith(f"{python}-{python}")


def test_what_readme_builds_is_no_source() -> None:
    ignored = ROOT / ".gitignore"
    if not ignored.exists():
        pytest.skip("a source archive has no .gitignore")
    folders = re.findall(r"cmake -S \. -B (\S+)", (ROOT / "README.md").read_text())
    assert folders and {f"/{folder}/" for folder in folders} <= set(ignored.read_text().split())


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


# ---- the compiled libraries need, load and export only what they may ----------------------------


@pytest.fixture(params=["wheel", "checkout"])
def place(request: pytest.FixtureRequest, built: Built) -> Path:
    """Where a pair of libraries lies: with portable kernels only, and with all that are built."""
    if request.param == "wheel":
        return built.unpacked
    if not (ROOT / LIBRARY).exists():
        pytest.skip("the checkout's own libraries are not built in place")
    return ROOT


def undefined_symbols(library: Path) -> set[str]:
    lines = output_of(binary_tool("nm"), "-D", "--undefined-only", library).splitlines()
    return {line.split()[-1] for line in lines if line.split()[0] == "U"}


def test_library_needs_no_python_and_nothing_newer_than_torch_2_10(place: Path) -> None:
    """Only symbols of the C and C++ libraries carry a version: all others must be torch's."""
    shim = (ROOT / "tests/data/torch_2_10_shim.txt").read_text().splitlines()
    unversioned = {symbol for symbol in undefined_symbols(place / LIBRARY) if "@" not in symbol}
    assert "torch_call_dispatcher" in shim
    assert unversioned, "an operator library without a symbol of torch?"
    assert unversioned <= set(shim), sorted(unversioned - set(shim))


def test_library_loads_only_torch_and_the_system(place: Path) -> None:
    dynamic = output_of(binary_tool("readelf"), "-d", place / LIBRARY)
    needed = {name.split(".so")[0] for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)}
    system = {"libstdc++", "libgcc_s", "libm", "libc", "libpthread", "libdl", "librt"}
    assert {name for name in needed if not name.startswith("ld-linux")} - system == {"libtorch_cpu"}
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic


def test_array_module_needs_python_and_the_system_only(place: Path) -> None:
    dynamic = output_of(binary_tool("readelf"), "-d", place / ARRAY_MODULE)
    needed = {name.split(".so")[0] for name in re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)}
    system = {"libstdc++", "libgcc_s", "libm", "libc", "libpthread", "libdl", "librt"}
    assert {name for name in needed if not name.startswith("ld-linux")} <= system
    assert "RPATH" not in dynamic and "RUNPATH" not in dynamic
    undefined = undefined_symbols(place / ARRAY_MODULE)
    unversioned = {symbol for symbol in undefined if "@" not in symbol}
    assert unversioned, "a module of Python without a symbol of Python?"
    assert {symbol for symbol in unversioned if not re.match("_?Py", symbol)} == set()


def test_array_module_exports_its_initialisation_only(place: Path) -> None:
    exported = output_of(binary_tool("nm"), "-D", "--defined-only", place / ARRAY_MODULE)
    assert [line.split()[-1] for line in exported.splitlines()] == ["PyInit__array"]


def test_library_exports_nothing(place: Path) -> None:
    assert output_of(binary_tool("nm"), "-D", "--defined-only", place / LIBRARY) == ""


@pytest.mark.parametrize("library", [LIBRARY, ARRAY_MODULE])
def test_old_processors_never_meet_avx(library: str) -> None:
    """Objects for every processor hold no AVX, and the linker sees them before those that do.

    An inline function that several objects hold is taken from the first one.
    """
    build = ROOT / "build/cmake"
    if not (build / "CMakeCache.txt").exists():
        pytest.skip("the checkout's own libraries are not built in place")
    cache = (build / "CMakeCache.txt").read_text()
    ninja = re.search(r"^CMAKE_MAKE_PROGRAM:\w+=(.*)$", cache, re.MULTILINE)
    assert ninja is not None
    commands = output_of(ninja[1], "-C", build, "-t", "commands", Path(library).name)
    objects = re.findall(r"CMakeFiles/\w+\.dir/\S+?\.o\b", commands.splitlines()[-1])
    rank = {"erd_cpu_avx2": 1} | dict.fromkeys(
        ("erd_cpu_avx512_by_256_bits", "erd_cpu_avx512", "erd_cpu_avx512_bf16"), 2
    )
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


# ---- the C++ library: from the same build, its kernels compiled once -----------------------------


@dataclass
class CppProgram:
    """The example program, linked to an installed C++ library."""

    path: Path
    prefix: Path

    def run(self, weights: Path, directory: Path) -> CompletedProcess[str]:
        return run(self.path, weights, directory)

    def refined(self, weights: Path, directory: Path, **arrays: Any) -> tuple[Any, Any]:
        """Refined poses and solved roots."""
        directory.mkdir()
        for name, array in arrays.items():
            array.tofile(directory / f"{name}.f32")
        said = output_of(self.path, weights, directory)
        assert said.startswith(f"{len(arrays['pose'])} poses, ")
        shape = arrays["pose"].shape
        refined = np.fromfile(directory / "refined.f32", np.float32).reshape(shape)
        return refined, np.fromfile(directory / "solved.f32", np.float32).reshape(-1, 3)


@pytest.fixture(scope="module")
def cpp_program(built: Built, tmp_path_factory: pytest.TempPathFactory) -> CppProgram:
    """Configured anew without torch and Python; installed; the example built against that."""
    cmake = next(Path(sys.executable).parent.glob("cmake"), "cmake")
    build, place = built.tree / "build/cmake", tmp_path_factory.mktemp("cpp")
    without = ("-DERD_TORCH_ROOT=", "-DERD_PYTHON=", "-DERD_CPP=ON")
    output_of(cmake, "-S", built.tree, "-B", build, *without)
    said = output_of(cmake, "--build", build)
    assert not re.search(r"csrc/(torch|python|cuda)/", said)
    output_of(cmake, "--install", build, "--prefix", place / "prefix")
    example = place / "example"
    found = f"-DCMAKE_PREFIX_PATH={place / 'prefix'}"
    output_of(cmake, "-S", built.tree / "examples/cpp", "-B", example, found)
    output_of(cmake, "--build", example)
    return CppProgram(example / "refine_poses", place / "prefix")


def test_cpp_library_is_installed_for_find_package(cpp_program: CppProgram, built: Built) -> None:
    names = {str(path.relative_to(cpp_program.prefix)) for path in cpp_program.prefix.rglob("*.*")}
    config = {"erd_cudaConfig.cmake", "erd_cudaConfigVersion.cmake", "erd_cudaConfig-release.cmake"}
    minor = ".".join(built.version.split(".")[:2])
    assert {name.removeprefix("lib/cmake/erd_cuda/") for name in names} == config | {
        "include/erd_cuda/refiner.h",
        *(f"lib/liberd_cuda.so{suffix}" for suffix in ("", f".{minor}", f".{built.version}")),
    }
    library = cpp_program.prefix / "lib/liberd_cuda.so"
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", output_of(binary_tool("readelf"), "-d", library)))
    known = ("libstdc++", "libm", "libgcc_s", "libc", "libpthread", "ld-linux")
    assert all(name.startswith(known) for name in needed), needed
    exported = output_of(binary_tool("nm"), "-DC", "--defined-only", library).splitlines()
    assert exported and all(" erd_cuda::" in line for line in exported)


@pytest.mark.parametrize("root", ["given", "solve", "solve_each_stage"])
@pytest.mark.parametrize("block", ["linear", "relu"])
def test_cpp_library_refines_to_the_same_bits(
    root: str, block: str, cpp_program: CppProgram, tmp_path: Path
) -> None:
    """As erd_cuda.array does on the same, portable instruction set, whatever a call brings."""
    relu = block == "relu"
    features = {"given": "residual", "solve": "concat", "solve_each_stage": "residual+pose"}[root]
    network = make_network(17, 2, 24, block, features)
    erd = make_erd(network, root, torch.float32)
    erd.confidence_weights, erd.residual_limit = relu, 12.5 if relu else None
    erd.save(tmp_path / "model.safetensors")
    to_cpp(erd, tmp_path / "stages.safetensors")
    problem = make_problem((100,), model="opencv" if relu else "pinhole", camera_batch=(1,))
    names = ["keypoints", "pose", "intrinsics", *(["confidence", "distortion"] if relu else [])]
    names += ["root"] * (root == "given")
    arrays = {name: getattr(problem, name).astype(np.float32) for name in names}
    got, solved = cpp_program.refined(tmp_path / "stages.safetensors", tmp_path / "in", **arrays)

    np.savez(tmp_path / "arrays.npz", **arrays)
    code = f"""
import numpy as np, erd_cuda.array as ea
a = np.load({str(tmp_path / "arrays.npz")!r})
weights = ea.load_weights({str(tmp_path / "model.safetensors")!r})
camera = ea.Camera(a["intrinsics"], a["distortion"], "opencv") if {relu} else a["intrinsics"]
confidence = a["confidence"] if {relu} else None
root = a["root"] if {root == "given"} else {root!r}
refined = ea.refine(a["keypoints"], a["pose"], root, camera, weights, confidence)
solved = ea.solve_root(a["keypoints"], a["pose"], camera, confidence)
np.savez({str(tmp_path / "expected.npz")!r}, refined=refined, solved=solved)
"""
    output_of(
        *(sys.executable, "-c", code), env=os.environ | {"ERD_CPU_CAPABILITY": "portable"}, cwd=ROOT
    )
    expected = np.load(tmp_path / "expected.npz")
    np.testing.assert_array_equal(got, expected["refined"])
    np.testing.assert_array_equal(solved, expected["solved"])
    assert np.abs(got - arrays["pose"]).max() > 1


def test_cpp_library_says_what_is_wrong(cpp_program: CppProgram, tmp_path: Path) -> None:
    erd = make_erd(make_network(17, 2, 24), dtype=torch.float32)
    weights = tmp_path / "stages.safetensors"
    to_cpp(erd, weights)
    good = weights.read_bytes()

    def said(data: bytes | None) -> str:
        weights.unlink(missing_ok=True)
        if data is not None:
            weights.write_bytes(data)
        result = cpp_program.run(weights, tmp_path)
        assert result.returncode == 1, result.stdout
        return result.stdout

    problem = make_problem((3,))
    for name in ("keypoints", "pose", "intrinsics"):
        getattr(problem, name).astype(np.float32).tofile(tmp_path / f"{name}.f32")
    assert "poses.root is null, expected [count, 3] mm, because the model was" in said(good)
    assert "stages.safetensors cannot be used: it cannot be opened." in said(None)
    for length in (0, 7, 8, 100, len(good) // 2, len(good) - 1):
        assert re.search(r"truncated|header is damaged", said(good[:length])), length
    assert "it is no file of weights" in said(b"x" * 100)
    assert "its block is 'Linear', which" in said(good.replace(b'"linear"', b'"Linear"'))
    assert "its format version is 2, and" in said(good.replace(b'version":"1"', b'version":"2"'))
    assert "it lacks the tensor mean2d" in said(good.replace(b'"mean2d"', b'"mean3d"'))
    assert "shape that does not fit" in said(good.replace(b"[17,2]", b"[2,17]"))
    assert "is not float32" in said(good.replace(b'"F32"', b'"F16"'))
    bundled = (ROOT / "erd_cuda/models/cmu17-detected.safetensors").read_bytes()
    assert re.search("not float32|no file that erd-cuda export --format cpp wrote", said(bundled))
