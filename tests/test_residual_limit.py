"""The limit of a residual: what an operator, a model and training make of it."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from precision import assert_exact
from problems import CAMERA_MODELS, ROOT_MODES, Problem, make_network, make_problem, pack
from small_training import held_out_set, run, small_config, train_set, trained_model
from torch import Tensor

import erd_cuda
import erd_cuda.array as array
from erd_cuda import ERD
from erd_cuda.cli import main
from erd_cuda.data import DetectorNoise
from erd_cuda.modules.packing import PackedRegressors
from erd_cuda.training import TrainConfig

# The problems' keypoints are 5 px off: a good part of the coordinates is cut.
LIMIT = 4.0


def limited(network: oracle.Network, limit: float = LIMIT) -> PackedRegressors:
    return replace(pack(network), residual_limit=limit)


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


@pytest.mark.parametrize("root_mode", ["given", "solve"])
@pytest.mark.parametrize("features", ["residual", "residual+pose"])
def test_gradients(features: str, root_mode: str) -> None:
    """First and second order, with joints missing; finite differences do not meet the edges."""
    problem = make_problem((2,), joints=4)
    network = make_network(4, 2, 12, "linear", features)
    weights = limited(network)
    confidence = problem.tensor("confidence").clamp(min=0.3)
    confidence[0, 1] = 0.0
    leaves = [
        problem.tensor("keypoints"),
        problem.tensor("pose"),
        problem.tensor("intrinsics"),
        confidence,
    ]
    seen = confidence > 0

    def function(keypoints: Tensor, pose: Tensor, camera: Tensor, confidence: Tensor) -> Tensor:
        confidence = torch.where(seen, confidence, 0.0)
        root = problem.tensor("root") if root_mode == "given" else root_mode
        return erd_cuda.refine(keypoints, pose, root, camera, weights, confidence)

    inputs = tuple(leaf.clone().requires_grad_() for leaf in leaves)
    tolerances = {"atol": 1e-6, "rtol": 1e-4}
    assert torch.autograd.gradcheck(function, inputs, **tolerances)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True, **tolerances)


def test_layers_and_fused_operator_agree() -> None:
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
