"""Whole models as torch.export's graphs, and compiled ahead of time: for Python and for C++."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from erd_models import make_erd, make_lifter
from torch import Tensor, nn
from wheel_build import ROOT, output_of, run

from erd_cuda import ERD, get_skeleton
from erd_cuda.benchmarks.problems import ROOT_MODES, make_network, make_problem
from erd_cuda.export import Package, exported_program, operator_library, to_package

ALL_INPUTS = ("keypoints", "intrinsics", "distortion", "confidence", "bone_length")


class Lifter(nn.Module):
    """A user's own: nearly what the picture shows, so that a root lies at a person's distance."""

    def __init__(self) -> None:
        super().__init__()
        self.network = make_lifter()

    def forward(self, keypoints: Tensor) -> Tensor:
        flat = 3.5 * (keypoints - keypoints.mean(dim=-2, keepdim=True))
        return nn.functional.pad(flat, (0, 1)) + 0.1 * self.network(keypoints)


def model(root: str = "solve") -> ERD:
    torch.manual_seed(0)
    erd = make_erd(make_network(17, 2, 24), root, torch.float32, Lifter())
    erd.skeleton = get_skeleton("h36m17")
    return erd


def tensors(batch: int) -> dict[str, Tensor]:
    problem = make_problem((batch,), model="h36m", seed=batch)
    fields = [field.name for field in dataclasses.fields(problem) if field.name != "model"]
    given = {name: problem.tensor(name, torch.float32) for name in fields}
    return given | {"bone_length": torch.linspace(0, 5000, batch)}


def expected(erd: ERD, given: dict[str, Tensor]) -> Tensor:
    camera = make_problem((1,), model="h36m").camera(torch.float32)
    camera = dataclasses.replace(
        camera, intrinsics=given["intrinsics"], distortion=given["distortion"]
    )
    root = given["root"] if erd.root == "given" else None
    rest = {"confidence": given["confidence"], "bone_length": given["bone_length"]}
    with torch.no_grad():
        return erd(given["keypoints"], camera, root, **rest)


@pytest.mark.parametrize("root", ROOT_MODES)
def test_an_exported_program_serves_any_batch(root: str) -> None:
    erd = model(root)
    options = {"camera_model": "h36m", "confidence": True, "bone_length": True}
    program = exported_program(erd, **options).module()
    names = [*ALL_INPUTS[:3], *["root"] * (root == "given"), *ALL_INPUTS[3:]]
    for batch in (1, 6):
        given = tensors(batch)
        got = program(*(given[name] for name in names))
        torch.testing.assert_close(got, expected(erd, given), rtol=0, atol=0)


def test_poses_may_come_from_elsewhere() -> None:
    erd = make_erd(make_network(17, 2, 24), dtype=torch.float32)
    given = tensors(4)
    arguments = [given[name] for name in ("keypoints", "intrinsics", "root", "pose")]
    got = exported_program(erd).module()(*arguments)
    with torch.no_grad():
        torch.testing.assert_close(got, erd(*arguments[:3], pose=arguments[3]), rtol=0, atol=0)


# ---- compiled ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that takes everything there is and solves for its root."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("needs a C++ compiler")
    path = tmp_path_factory.mktemp("aoti") / "model.pt2"
    # They would speed up a second compilation.
    with torch._inductor.config.patch("aot_inductor.precompile_headers", False):
        to_package(model(), path, camera_model="h36m", confidence=True, bone_length=True)
    assert [entry.name for entry in path.parent.iterdir()] == ["model.pt2"]
    return path


@pytest.fixture
def erd() -> ERD:
    """The packaged one."""
    return model()


def test_a_package_in_python(package: Path, erd: ERD) -> None:
    loaded = Package(package)
    assert (loaded.inputs, loaded.joints, loaded.dtype) == ([*ALL_INPUTS], 17, torch.float32)
    for batch in (1, 3, 50):
        given = tensors(batch)
        got = loaded(**{name: given[name] for name in ALL_INPUTS})
        # The lifter's layers are summed in another order.
        torch.testing.assert_close(got, expected(erd, given), rtol=1e-4, atol=0.05)
        in_order = [given[name] for name in loaded.inputs]
        assert torch.equal(loaded(*in_order), got)
        assert torch.equal(loaded(*in_order[:-1], **{loaded.inputs[-1]: in_order[-1]}), got)


def test_a_package_takes_gaps_and_one_camera(package: Path, erd: ERD) -> None:
    loaded = Package(package)
    given = tensors(4)
    given["intrinsics"], given["distortion"] = given["intrinsics"][0], given["distortion"][:1]
    given["keypoints"] = torch.cat((given["keypoints"],) * 2, dim=-1)[..., 1:3].flip(-1)
    got = loaded(**{name: given[name] for name in ALL_INPUTS})
    torch.testing.assert_close(got, expected(erd, given), rtol=1e-4, atol=0.05)


def test_a_package_says_what_it_takes(package: Path, tmp_path: Path) -> None:
    loaded = Package(package)
    given = {name: value for name, value in tensors(3).items() if name in ALL_INPUTS}
    with pytest.raises(TypeError, match="takes keypoints, intrinsics, distortion, confidence, bon"):
        loaded(keypoints=given["keypoints"])
    in_order = [given[name] for name in loaded.inputs]
    for values, named, words in (
        (in_order[:2], {}, "got 2 in order$"),
        ([*in_order, in_order[0]], {}, f"got {len(in_order) + 1} in order$"),
        (in_order, {"keypoints": in_order[0]}, "in order, keypoints$"),
        ([], {}, "got nothing$"),
    ):
        with pytest.raises(TypeError, match=words):
            loaded(*values, **named)
    for name, value, error, words in (
        ("keypoints", torch.ones(3, 16, 2), ValueError, r"\(3, 16, 2\), expected \(N, 17, 2\)"),
        ("keypoints", torch.ones(2, 17, 2), ValueError, "a batch of 2, expected 3"),
        ("confidence", torch.ones(1, 17), ValueError, "a batch of 1, expected 3"),
        ("bone_length", torch.ones(3).double(), TypeError, r"is torch\.float64, expected a"),
        ("intrinsics", torch.ones(3, 4, device="meta"), ValueError, "is on meta, expected cpu"),
    ):
        with pytest.raises(error, match=f"{name} .*{words}"):
            loaded(**(given | {name: value}))
    damaged = tmp_path / "damaged.pt2"
    damaged.write_bytes(package.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"damaged\.pt2 is damaged, or no package that erd_cuda"):
        Package(damaged)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        Package(tmp_path / "nothing.pt2")


def test_a_package_in_a_program_without_python(package: Path, erd: ERD, tmp_path: Path) -> None:
    """examples/aoti, built against the libtorch of the installed torch."""
    cmake = next(Path(sys.executable).parent.glob("cmake"), shutil.which("cmake"))
    if cmake is None or torch.version.cuda is not None:
        pytest.skip("needs cmake and a torch without CUDA, whose CMake files want a CUDA toolkit")
    build = tmp_path / "build"
    where = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    output_of(cmake, "-S", ROOT / "examples/aoti", "-B", build, where)
    output_of(cmake, "--build", build)
    given = tensors(7)
    for name in ALL_INPUTS:
        given[name].numpy().tofile(tmp_path / f"{name}.f32")
    said = output_of(build / "run_package", package, operator_library(), tmp_path)
    assert said == "7 poses of 17 joints\n"
    got = torch.from_numpy(np.fromfile(tmp_path / "refined.f32", np.float32)).view(7, 17, 3)
    torch.testing.assert_close(got, expected(erd, given), rtol=1e-4, atol=0.05)

    (tmp_path / "confidence.f32").unlink()
    result = run(build / "run_package", package, operator_library(), tmp_path)
    assert result.returncode == 1 and "confidence.f32" in result.stdout


def test_what_cannot_be_packaged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.onnx', expected a name that ends in \.pt2"):
        to_package(model(), tmp_path / "model.onnx")
    missing = (None, str(tmp_path / "no-such-compiler"))
    with (
        torch._inductor.config.patch("cpp.cxx", missing),
        pytest.raises(
            FileNotFoundError, match=r"with a C\+\+ compiler, and there is none: install"
        ),
    ):
        to_package(model(), tmp_path / "model.pt2")
