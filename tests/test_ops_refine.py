"""refine against the float64 oracle, whose layers are the paper's and never collapsed."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from precision import assert_exact, relative_error

import erd_cuda
from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.problems import (
    CAMERA_MODELS,
    FEATURES,
    JOINT_COUNTS,
    ROOT_MODES,
    Problem,
    make_network,
    make_problem,
    pack,
)
from erd_cuda.benchmarks.torch_layers import PaperLayers


def refine(
    problem: Problem,
    network: oracle.Network,
    root_mode: str = "given",
    dtype: torch.dtype = torch.float64,
    with_confidence: bool = False,
    device: str = "cpu",
    return_stages: bool = False,
) -> torch.Tensor:
    root = problem.tensor("root", dtype, device) if root_mode == "given" else root_mode
    return erd_cuda.refine(
        problem.tensor("keypoints", dtype, device),
        problem.tensor("pose", dtype, device),
        root,
        problem.camera(dtype, device),
        pack(network, dtype, device),
        problem.tensor("confidence", dtype, device) if with_confidence else None,
        return_stages=return_stages,
    )


def expected_stages(
    problem: Problem,
    network: oracle.Network,
    root_mode: str = "given",
    with_confidence: bool = False,
) -> np.ndarray:
    return oracle.refine(
        problem.keypoints,
        problem.pose,
        problem.root if root_mode == "given" else root_mode,
        network,
        *problem.lens,
        confidence=problem.confidence if with_confidence else None,
    )


@pytest.mark.parametrize(
    ("block", "features", "root_mode", "with_confidence"),
    list(itertools.product(("linear", "relu"), FEATURES, ROOT_MODES, (False, True))),
)
def test_float64_is_exact(block: str, features: str, root_mode: str, with_confidence: bool) -> None:
    """Every block, feature, way to the root and confidence, after every stage."""
    network = make_network(17, 3, 40, block, features)
    problem = make_problem((6,))
    got = refine(problem, network, root_mode, with_confidence=with_confidence, return_stages=True)
    expected = expected_stages(problem, network, root_mode, with_confidence)
    assert got.shape == (3, 6, 17, 3)
    assert_exact(got - problem.tensor("pose"), expected - problem.pose, 1e-11)
    last = refine(problem, network, root_mode, with_confidence=with_confidence)
    assert torch.equal(last, got[-1])


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("block", ["linear", "relu"])
def test_pca_folds_exactly(block: str, features: str) -> None:
    network = make_network(17, 2, 40, block, features, components=30)
    problem = make_problem((6,))
    got = refine(problem, network, return_stages=True)
    assert_exact(
        got - problem.tensor("pose"), expected_stages(problem, network) - problem.pose, 1e-11
    )


@pytest.mark.parametrize("root_mode", ROOT_MODES)
@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_every_camera_model(model: str, root_mode: str) -> None:
    network = make_network(17, 2, 40)
    problem = make_problem((6,), model=model)
    got = refine(problem, network, root_mode, with_confidence=True)
    expected = expected_stages(problem, network, root_mode, with_confidence=True)[-1]
    assert_exact(got - problem.tensor("pose"), expected - problem.pose, 1e-11)


@pytest.mark.parametrize("width", [1, 7, 64, 256, 300])
@pytest.mark.parametrize("joints", JOINT_COUNTS)
@pytest.mark.parametrize("block", ["linear", "relu"])
@pytest.mark.parametrize("features", ["concat", "residual+pose"])
def test_any_joint_count_and_width(features: str, block: str, joints: int, width: int) -> None:
    """Nothing is a multiple of a tile here, and "residual+pose" is odd where J is."""
    network = make_network(joints, 2, width, block, features)
    problem = make_problem((5,), joints)
    assert_exact(
        refine(problem, network) - problem.tensor("pose"),
        expected_stages(problem, network)[-1] - problem.pose,
        1e-11,
    )


@pytest.mark.parametrize("stages", [1, 2, 10])
def test_any_number_of_stages(stages: int) -> None:
    network = make_network(17, stages, 24)
    problem = make_problem((5,))
    got = refine(problem, network, return_stages=True)
    assert_exact(got, expected_stages(problem, network), 1e-12)


@pytest.mark.parametrize("batch", [(), (0,), (1,), (2, 3), (2, 0, 3)], ids=str)
def test_any_batch_shape(batch: tuple[int, ...]) -> None:
    network = make_network(17, 2, 24)
    problem = make_problem(batch)
    assert_exact(refine(problem, network), expected_stages(problem, network)[-1])
    stages = refine(problem, network, return_stages=True)
    assert tuple(stages.shape) == (2, *batch, 17, 3)


@pytest.mark.parametrize("root_mode", ROOT_MODES)
def test_batch_axes_broadcast(root_mode: str) -> None:
    network = make_network(17, 2, 24)
    problem, other = make_problem((3, 1)), make_problem((1, 5), seed=1)
    root = torch.from_numpy(problem.root) if root_mode == "given" else root_mode
    got = erd_cuda.refine(
        other.tensor("keypoints"),
        problem.tensor("pose"),
        root,
        other.tensor("intrinsics"),
        pack(network),
        problem.tensor("confidence"),
    )
    expected = oracle.refine(
        other.keypoints,
        problem.pose,
        problem.root if root_mode == "given" else root_mode,
        network,
        other.intrinsics,
        confidence=problem.confidence,
    )[-1]
    assert expected.shape == (3, 5, 17, 3)
    assert_exact(got, expected)


@pytest.mark.parametrize("root_mode", ROOT_MODES)
@pytest.mark.parametrize(
    ("block", "features"),
    [
        ("linear", "residual"),
        ("relu", "residual"),
        ("relu", "concat"),
        ("linear", "residual+pose"),
        ("relu", "residual+pose"),
    ],
)
def test_float32_increment_is_as_precise_as_torch(
    block: str, features: str, root_mode: str, device: str
) -> None:
    """The sum of all four stages' steps, against float64: at most twice the error of torch's own
    layers.
    """
    problem = make_problem((300,)).rounded(torch.float32)
    network = make_network(17, 4, 256, block, features)
    increment = expected_stages(problem, network, root_mode)[-1] - problem.pose
    pose = problem.tensor("pose", torch.float32)
    got = refine(problem, network, root_mode, torch.float32, device=device).cpu() - pose
    layers = PaperLayers(network)
    root = problem.tensor("root", torch.float32) if root_mode == "given" else root_mode
    peer = layers(
        problem.tensor("keypoints", torch.float32),
        pose,
        root,
        problem.tensor("intrinsics", torch.float32),
    )
    assert relative_error(got, increment) <= 2 * relative_error(peer - pose, increment)


def uncollapsed_difference(problem: Problem, network: oracle.Network, dtype: torch.dtype) -> float:
    """Fused op on collapsed weights against the paper's layers, both in `dtype`, relative to the
    increment.
    """
    weights, layers = pack(network, dtype), PaperLayers(network, dtype)
    assert weights.w_hidden is None
    names = ("keypoints", "pose", "root", "intrinsics")
    keypoints, pose, root, camera = (problem.tensor(name, dtype) for name in names)
    collapsed = erd_cuda.refine(keypoints, pose, root, camera, weights) - pose
    uncollapsed = layers(keypoints, pose, root, camera) - pose
    return relative_error(collapsed, uncollapsed.double().numpy())


@pytest.mark.parametrize("features", FEATURES)
def test_collapse_is_exact(features: str) -> None:
    """Two matrices a stage for the paper's four are the same function: float64 shows no
    difference.
    """
    assert (
        uncollapsed_difference(make_problem((100,)), make_network(features=features), torch.float64)
        < 1e-13
    )


@pytest.mark.parametrize("features", ["concat", "init2d", "proj2d"])
def test_collapse_in_float32_stays_below_a_millionth(features: str) -> None:
    assert (
        uncollapsed_difference(make_problem((300,)), make_network(features=features), torch.float32)
        <= 1e-6
    )


def test_collapse_of_residual_stages_in_float32_stays_below_a_millionth() -> None:
    """On image points that float32 holds exactly (a plane at 4096 mm seen with a focal length of
    1024 px).

    Elsewhere the residual, a small difference of large pixels, carries a rounding error of about a
    millionth into both networks before the collapse has anything to do with it.
    """
    problem = make_problem((300,))
    pose = np.round(problem.pose) * [1.0, 1.0, 0.0]
    root = np.round(problem.root) * [1.0, 1.0, 0.0] + [0.0, 0.0, 4096.0]
    exact = replace(
        problem,
        pose=pose,
        root=root,
        intrinsics=np.broadcast_to([1024.0, 1024.0, 512.0, 512.0], (300, 4)).copy(),
        keypoints=np.round(problem.keypoints * 4) / 4,
    )
    network = make_network(stages=1)
    network = replace(network, std2d=np.full((17, 2), 128.0))
    assert uncollapsed_difference(exact, network, torch.float32) <= 1e-6


def test_weights_are_not_changed_and_inputs_are_not_overwritten() -> None:
    problem = make_problem((5,))
    weights = pack(make_network(17, 2, 24))
    tensors = [problem.tensor(n).clone() for n in ("keypoints", "pose", "root", "intrinsics")]
    before = [value.clone() for value in (*tensors, weights.w_in, weights.w_out, weights.mean2d)]
    erd_cuda.refine(*tensors, weights)
    erd_cuda.refine(*tensors, weights, return_stages=True)
    after = (*tensors, weights.w_in, weights.w_out, weights.mean2d)
    for got, want in zip(after, before, strict=True):
        assert torch.equal(got, want)


def test_steps_are_not_noise() -> None:
    """The networks of these tests move joints by a plausible amount: neither nothing nor metres."""
    problem = make_problem((50,))
    for features in FEATURES:
        stages = expected_stages(problem, make_network(features=features))
        step = np.linalg.norm(stages[0] - problem.pose, axis=-1).mean()
        assert 5 < step < 300
