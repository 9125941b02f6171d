"""The limit of a residual: what an operator, a model and training make of it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from erd_models import inputs_of, make_erd
from precision import assert_exact
from small_training import held_out_set, run, small_config, train_set, trained_model
from torch import Tensor

import erd_cuda
import erd_cuda.array as array
from erd_cuda import ERD, Camera
from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.problems import (
    CAMERA_MODELS,
    ROOT_MODES,
    Problem,
    make_network,
    make_problem,
    pack,
)
from erd_cuda.cli import main
from erd_cuda.data import DetectorNoise
from erd_cuda.modules.packed import PackedRegressors
from erd_cuda.training import TrainConfig

# The problems' keypoints are 5 px off: a good part of the coordinates is cut.
LIMIT = 4.0


def limited(network: oracle.Network, limit: float = LIMIT) -> PackedRegressors:
    return pack(replace(network, residual_limit=limit))


def refine(
    problem: Problem, weights: PackedRegressors, root_mode: str, with_confidence: bool
) -> Tensor:
    return erd_cuda.refine(
        problem.tensor("keypoints"),
        problem.tensor("pose"),
        problem.tensor("root") if root_mode == "given" else root_mode,
        problem.camera(),
        weights,
        problem.tensor("confidence") if with_confidence else None,
        return_stages=True,
    )


@pytest.mark.parametrize(
    ("block", "features", "root_mode", "with_confidence"),
    list(
        itertools.product(
            ("linear", "relu"), ("residual", "residual+pose"), ROOT_MODES, (False, True)
        )
    ),
)
def test_float64_is_exact(block: str, features: str, root_mode: str, with_confidence: bool) -> None:
    network = make_network(17, 3, 40, block, features)
    problem = make_problem((6,))
    got = refine(problem, limited(network), root_mode, with_confidence)
    expected = oracle.refine(
        problem.keypoints,
        problem.pose,
        problem.root if root_mode == "given" else root_mode,
        replace(network, residual_limit=LIMIT),
        *problem.lens,
        confidence=problem.confidence if with_confidence else None,
    )
    assert_exact(got - problem.tensor("pose"), expected - problem.pose, 1e-11)
    assert not torch.allclose(got, refine(problem, pack(network), root_mode, with_confidence))


@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_a_limit_that_nothing_reaches_changes_no_bit(model: str) -> None:
    network, problem = make_network(17, 2, 40), make_problem((6,), model=model)
    plain = refine(problem, pack(network), "given", True)
    assert torch.equal(refine(problem, limited(network, 1e9), "given", True), plain)
    assert torch.equal(refine(problem, limited(network, math.inf), "given", True), plain)


def test_nan_is_not_hidden() -> None:
    network, problem = make_network(17, 1, 40), make_problem((3,))
    keypoints = problem.keypoints.copy()
    keypoints[1, 4, 0] = np.nan
    got = refine(replace(problem, keypoints=keypoints), limited(network), "given", False)[-1]
    assert got[1].isnan().all() and got[[0, 2]].isfinite().all()


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("root_mode", ROOT_MODES)
@pytest.mark.parametrize(
    ("block", "features", "model"),
    [
        ("linear", "residual", "pinhole"),
        ("relu", "residual+pose", "opencv"),
        ("linear", "residual+pose", "h36m"),
    ],
)
def test_gradients(block: str, features: str, model: str, root_mode: str, weighted: bool) -> None:
    """First and second order, with joints missing; finite differences do not meet the edges."""
    problem = make_problem((2,), joints=4, model=model)
    network = make_network(4, 2, 12, block, features)
    weights = limited(network)
    confidence = problem.tensor("confidence").clamp(min=0.3)
    confidence[0, 1] = 0.0
    leaves = [
        problem.tensor("keypoints"),
        problem.tensor("pose"),
        problem.tensor("root"),
        problem.tensor("intrinsics"),
        confidence,
    ]
    seen = confidence > 0
    lens = None if model == "pinhole" else problem.camera()

    def function(keypoints: Tensor, pose: Tensor, root: Tensor, *rest: Tensor) -> Tensor:
        intrinsics, confidence = rest
        return erd_cuda.refine(
            keypoints,
            pose,
            root if root_mode == "given" else root_mode,
            intrinsics if lens is None else Camera(intrinsics, lens.distortion, model),
            weights,
            torch.where(seen, confidence, 0.0) if weighted else None,
        )

    inputs = tuple(leaf.clone().requires_grad_() for leaf in leaves)
    tolerances = {"atol": 1e-6, "rtol": 1e-4}
    assert torch.autograd.gradcheck(function, inputs, **tolerances)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True, **tolerances)


@pytest.mark.parametrize("features", ["residual", "residual+pose"])
@pytest.mark.parametrize("pca", [None, 8])
@pytest.mark.parametrize("root_mode", ROOT_MODES)
def test_layers_are_the_operator(root_mode: str, pca: int | None, features: str) -> None:
    problem = make_problem((6,))
    network = make_network(17, 2, 24, "linear", features, pca)
    erd = make_erd(replace(network, residual_limit=LIMIT), root_mode)
    inputs = inputs_of(problem, root_mode, with_confidence=True)
    with torch.no_grad():
        fused = erd(**inputs)
        erd.train()
        for regressor in erd.regressors:
            regressor.eval()
        torch.testing.assert_close(erd(**inputs), fused, rtol=0, atol=1e-9)
    erd.residual_limit = None
    assert not torch.allclose(erd.eval()(**inputs), fused, atol=1e-3)


def test_layers_and_fused_operator_agree_with_a_trained_model() -> None:
    erd = trained_model(residual_limit=20.0)
    data = DetectorNoise(8.0).apply(held_out_set())[:40]
    assert data.confidence is not None
    pose = erd.lift(data.keypoints, data.confidence).detach()
    with torch.no_grad():
        stages = erd(
            data.keypoints, data.camera, data.root, data.confidence, pose, return_stages=True
        )
        for k in range(erd.stages):
            pose = erd.stage(k, data.keypoints, pose, data.root, data.camera, data.confidence)
            torch.testing.assert_close(stages[k + 1], pose, rtol=1e-4, atol=1e-2)
    unlimited = trained_model()(data.keypoints, data.camera, data.root, data.confidence)
    assert not torch.allclose(stages[-1], unlimited, atol=1.0)


def test_a_joint_in_the_wrong_place_pulls_no_further() -> None:
    erd, data = trained_model(residual_limit=20.0), held_out_set()[:5]
    poses = []
    for shift in (300.0, 3000.0):
        keypoints = data.keypoints.clone()
        keypoints[:, 6, 0] += shift
        with torch.no_grad():
            pose = erd(keypoints, data.camera, data.root, pose=data.pose)
        poses.append(pose)
    assert torch.equal(*poses)


def test_a_new_limit_counts_at_once() -> None:
    erd = make_erd(make_network(17, 2, 24))
    inputs = inputs_of(make_problem((6,)))
    plain = erd(**inputs)
    erd.residual_limit = LIMIT
    limited_pose = erd(**inputs)
    assert not torch.allclose(limited_pose, plain, atol=1e-3)
    erd.residual_limit = math.inf
    assert erd.residual_limit is None and torch.equal(erd(**inputs), plain)
    with pytest.raises(ValueError, match="residual_limit is -3"):
        erd.residual_limit = -3


def test_models_pickled_before_there_was_one() -> None:
    erd = make_erd(make_network(17, 2, 24))
    state = erd.__getstate__()
    del state["_residual_limit"], state["_confidence_weights"]
    old = ERD.__new__(ERD)
    old.__setstate__(state)
    assert old.residual_limit is None and old.confidence_weights
    inputs = inputs_of(make_problem((3,)))
    assert torch.equal(old(**inputs), erd(**inputs))


def test_models_of_several_limits_compile_in_one_process() -> None:
    """A second number makes the first one's graph symbolic."""
    inputs = inputs_of(make_problem((3,)))
    inputs["pose"].requires_grad_()
    torch._dynamo.reset()
    for limit in (None, LIMIT, 2 * LIMIT):
        erd = make_erd(replace(make_network(17, 2, 24), residual_limit=limit or math.inf))
        compiled = torch.compile(erd, fullgraph=True, backend="aot_eager")
        expected = erd(**inputs)
        torch.testing.assert_close(compiled(**inputs), expected)
        ours = torch.autograd.grad(compiled(**inputs).square().sum(), inputs["pose"])
        torch.testing.assert_close(
            ours, torch.autograd.grad(expected.square().sum(), inputs["pose"])
        )


def test_files_and_arrays_keep_it(tmp_path: Path) -> None:
    trained_model(residual_limit=20.0).save(tmp_path / "model.safetensors")
    loaded = ERD.from_pretrained(tmp_path / "model.safetensors")
    assert loaded.residual_limit == 20.0 and loaded.packed().residual_limit == 20.0
    weights = array.load_weights(tmp_path / "model.safetensors")
    assert weights.residual_limit == 20.0
    data = DetectorNoise(8.0).apply(held_out_set())[:40]
    inputs = (data.keypoints, 0.9 * data.pose, data.root, data.camera.intrinsics)
    ours = erd_cuda.refine(*inputs, loaded.packed())
    theirs = array.refine(*(tensor.numpy() for tensor in inputs), weights)
    assert np.array_equal(ours.detach().numpy(), theirs)


def test_training_knows_it(tmp_path: Path) -> None:
    data = DetectorNoise(8.0).apply(train_set())
    trained = run(tmp_path / "limited", small_config(residual_limit=15.0), dataset=data)
    plain = run(tmp_path / "plain", dataset=data)
    assert trained.residual_limit == 15.0
    name = "regressors.0.output.weight"
    assert not torch.equal(trained.state_dict()[name], plain.state_dict()[name])


def test_command(tmp_path: Path) -> None:
    train_set().save(tmp_path / "train.safetensors")
    small = ["--width", "8", "--lifter-width", "8", "--lifter-epochs", "1", "--stage-epochs", "1"]
    command = ["train", "--data", str(tmp_path / "train.safetensors"), "-o", str(tmp_path / "run")]
    assert main([*command, *small, "--residual-limit", "30", "--quiet"]) == 0
    assert ERD.from_pretrained(tmp_path / "run" / "model.safetensors").residual_limit == 30.0


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, "far", True])
def test_wrong_limits(value: Any) -> None:
    for build in (ERD, TrainConfig):
        with pytest.raises(ValueError, match=r"residual_limit is .*, expected a"):
            build(residual_limit=value)
    with pytest.raises(ValueError, match=r"residual_limit is .*, expected a"):
        replace(pack(make_network(3, 1, 8)), residual_limit=value)


def test_packed_weights_have_a_number() -> None:
    with pytest.raises(ValueError, match="residual_limit is None, expected a float, infinity"):
        replace(pack(make_network(3, 1, 8)), residual_limit=None)
    assert ERD(residual_limit=np.float32(25)).residual_limit == 25.0
