"""ONNX models against the operators that they stand for, run by ONNX Runtime."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from erd_models import make_erd, scramble
from numpy.typing import NDArray

import erd_cuda
import erd_cuda.array
from erd_cuda import get_skeleton
from erd_cuda.benchmarks.problems import (
    CAMERA_MODELS,
    FEATURES,
    ROOT_MODES,
    Problem,
    make_network,
    make_problem,
    pack,
)
from erd_cuda.export import onnx_model, onnx_refiner, to_onnx
from erd_cuda.modules.lifters import new_lifter

Array = NDArray[np.float64]


def run(model: Any, feed: dict[str, Array]) -> Array:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    assert {value.name for value in session.get_inputs()} == set(feed)
    (result,) = session.run(None, feed)
    return result


def feed_of(
    problem: Problem, root: str = "given", confidence: bool = False, dtype: Any = np.float64
) -> dict[str, Array]:
    names = ["keypoints", "pose", "intrinsics"]
    names += ["distortion"] * (problem.distortion is not None)
    names += ["root"] * (root == "given") + ["confidence"] * confidence
    return {name: getattr(problem, name).astype(dtype) for name in names}


@pytest.mark.parametrize("confidence", [False, True])
@pytest.mark.parametrize("root", ROOT_MODES)
@pytest.mark.parametrize("model", CAMERA_MODELS)
@pytest.mark.parametrize("features", FEATURES)
def test_the_refiner(features: str, model: str, root: str, confidence: bool) -> None:
    block = "relu" if features == "concat" else "linear"
    weights = pack(make_network(17, 2, 24, block, features))
    weights = replace(weights, residual_limit=6.0 if root == "given" else math.inf)
    problem = make_problem((7,), model=model)
    built = onnx_refiner(weights, root=root, camera_model=model, confidence=confidence)
    expected = erd_cuda.refine(
        problem.tensor("keypoints"),
        problem.tensor("pose"),
        problem.tensor("root") if root == "given" else root,
        problem.camera(),
        weights,
        problem.tensor("confidence") if confidence else None,
    )
    got = run(built, feed_of(problem, root, confidence))
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-10, atol=1e-8)
    assert {node.domain for node in built.graph.node} == {""}


@pytest.mark.parametrize("batch", [1, 200])
def test_trained_stages_in_float32(batch: int) -> None:
    """From arrays, with one camera for all; two products a stage and nothing else that is big."""
    weights = erd_cuda.array.load_weights("cmu17-detected")
    model = onnx_refiner(weights)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("Gemm") == 2 * weights.stages and kinds.count("Relu") == weights.stages
    feed = feed_of(make_problem((batch,), camera_batch=(1,)), dtype=np.float32)
    expected = erd_cuda.array.refine(
        *(feed[name] for name in ("keypoints", "pose", "root", "intrinsics")), weights
    )
    np.testing.assert_allclose(run(model, feed), expected, rtol=1e-5, atol=0.02)


@pytest.mark.parametrize("root", ROOT_MODES)
def test_one_bad_sample_stays_alone(root: str) -> None:
    """NaN comes out where NaN went in, and a pose without a root comes out as it was."""
    weights = replace(pack(make_network(17, 2, 24), torch.float32), residual_limit=8.0)
    built = onnx_refiner(weights, root=root, confidence=True)
    problem = make_problem((6,))
    feed = feed_of(problem, root, True, np.float32)
    clean = run(built, feed)
    feed["keypoints"][1, 4] = math.nan
    feed["confidence"][1] = 1.0
    feed["confidence"][2] = 0.0  # nothing is seen
    if root == "given":
        feed["root"][5, 2] = 30.0  # some joints are behind the camera
    feed["confidence"][3, 4], feed["keypoints"][3, 4], feed["pose"][3, 5] = 0.0, math.nan, 1.0
    got = run(built, feed)
    np.testing.assert_array_equal(got[[0, 4]], clean[[0, 4]])
    expected = erd_cuda.refine(
        *(torch.from_numpy(feed[name]) for name in ("keypoints", "pose")),
        torch.from_numpy(feed["root"]) if root == "given" else root,
        torch.from_numpy(feed["intrinsics"]),
        weights,
        torch.from_numpy(feed["confidence"]),
    ).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=0.02)
    assert np.isnan(got[1]).all() == (root == "given")
    if root != "given":
        np.testing.assert_array_equal(got[2], feed["pose"][2])


def test_a_lens_that_cannot_be_undone() -> None:
    """A keypoint beyond the image of the lens has no ray: the root cannot be solved."""
    weights = pack(make_network(17, 2, 24))
    problem = make_problem((3,), model="opencv")
    feed = feed_of(problem, "solve")
    feed["keypoints"][1, 3] += 4000.0
    got = run(onnx_refiner(weights, root="solve", camera_model="opencv"), feed)
    np.testing.assert_array_equal(got[1], feed["pose"][1])
    assert not np.allclose(got[[0, 2]], feed["pose"][[0, 2]])


def lifter_of(name: str) -> Any:
    """A small lifter, every parameter away from its initial value."""
    pca = 20 if name == "martinez-pca" else None
    kind = name.removesuffix("-pca")
    lifter = new_lifter(kind, get_skeleton("h36m17"), width=12, blocks=2, pca=pca).double()
    scramble(lifter)
    lifter.fit_normalization(
        500 + 100 * torch.randn(64, 17, 2).double(), 300 * torch.randn(64, 17, 3).double()
    )
    return lifter.eval()


@pytest.mark.parametrize("name", ["martinez", "martinez-pca", "lcn", "semgcn", "semgcn-nonlocal"])
def test_a_lifter_and_stages(name: str) -> None:
    erd = make_erd(make_network(17, 2, 24), lifter=lifter_of(name))
    # ONNX Runtime has LCN's activation in float32 alone.
    erd = erd.float() if name == "lcn" else erd
    dtype = np.float32 if name == "lcn" else np.float64
    feed = feed_of(make_problem((5,)), dtype=dtype)
    del feed["pose"]
    with torch.no_grad():
        expected = erd(*(torch.from_numpy(feed[n]) for n in ("keypoints", "intrinsics", "root")))
    tolerance = {"rtol": 1e-4, "atol": 0.05} if name == "lcn" else {"rtol": 1e-9, "atol": 1e-7}
    np.testing.assert_allclose(run(onnx_model(erd), feed), expected.numpy(), **tolerance)


@pytest.mark.parametrize("root", ROOT_MODES)
@pytest.mark.parametrize("root_joint", [True, False])
def test_a_call_with_everything(root: str, root_joint: bool) -> None:
    """Missing joints before the lifter, a known size, and a root joint that the lifter moves."""
    erd = make_erd(make_network(17, 2, 24), root, lifter=lifter_of("martinez"))
    erd.skeleton = get_skeleton("h36m17")
    if not root_joint:
        erd.skeleton = replace(erd.skeleton, origin="outside")
    erd.confidence_weights = False
    erd.residual_limit = 9.0
    problem = make_problem((6,), model="h36m")
    feed = feed_of(problem, root, True) | {"bone_length": np.array([0.0, 4e3, 3e3, 5e3, -1.0, 4e3])}
    del feed["pose"]
    built = onnx_model(erd, camera_model="h36m", confidence=True, bone_length=True)
    with torch.no_grad():
        expected = erd(
            problem.tensor("keypoints"),
            problem.camera(),
            problem.tensor("root") if root == "given" else None,
            problem.tensor("confidence"),
            bone_length=torch.from_numpy(feed["bone_length"]),
        )
    np.testing.assert_allclose(run(built, feed), expected.numpy(), rtol=1e-9, atol=1e-7)


def test_what_cannot_be_exported() -> None:
    erd = make_erd(make_network(17, 2, 24))
    with pytest.raises(ValueError, match="pose is False, expected True, because this model has no"):
        onnx_model(erd, pose=False)
    with pytest.raises(ValueError, match="bone_length is True, expected False, because this model"):
        onnx_model(erd, bone_length=True)
    with pytest.raises(ValueError, match="root is 'found', expected one of 'given', 'solve', "):
        onnx_model(erd, root="found")
    with pytest.raises(ValueError, match="camera_model is 'fisheye', expected one of 'pinhole', "):
        onnx_refiner(erd.packed(), camera_model="fisheye")
    erd.lifter = torch.nn.Identity()
    with pytest.raises(TypeError, match="the lifter is a Identity, expected one of this package's"):
        onnx_model(erd)
    with pytest.raises(ValueError, match=r"erd is in train mode, expected eval mode: call erd\."):
        onnx_model(erd.train())


def test_without_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r'onnx, which does not import .*"erd-cuda\[onnx\]"'):
        onnx_refiner(pack(make_network(17, 1, 8)))


def test_a_file(tmp_path: Path) -> None:
    erd = make_erd(make_network(17, 2, 24), dtype=torch.float32)
    path = tmp_path / "model.onnx"
    to_onnx(erd, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]
    onnx.checker.check_model(str(path))
    with pytest.raises(FileNotFoundError, match="there is no directory"):
        to_onnx(erd, tmp_path / "nowhere" / "model.onnx")
    with pytest.raises(ValueError, match=r"expected a name that ends in \.onnx"):
        to_onnx(erd, tmp_path / "model.pt2")
