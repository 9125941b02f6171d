"""How a model comes by the root: given, solved once, solved before each stage, or not at all."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from erd_models import inputs_of, make_erd, through_stages
from torch import Tensor

import erd_cuda
from erd_cuda import ERD, Skeleton
from erd_cuda.benchmarks.problems import FEATURES, ROOT_MODES, make_network, make_problem


def test_solve_sets_the_root_joint_to_zero_and_solve_each_stage_does_not() -> None:
    problem = make_problem((5,))
    shifted = problem.pose + 40.0  # no joint at the origin
    zeroed = shifted.copy()
    zeroed[:, 0] = 0.0
    network = make_network(17, 2, 24)
    inputs = inputs_of(dataclasses.replace(problem, pose=shifted), "solve")
    keypoints, pose, camera = (inputs[name] for name in ("keypoints", "pose", "camera"))
    whole = erd_cuda.solve_root(keypoints, pose, camera)
    without = erd_cuda.solve_root(keypoints, torch.from_numpy(zeroed), camera)
    assert not torch.allclose(whole, without)

    erd = make_erd(network, "solve")
    assert torch.equal(erd.resolve_root(keypoints, pose, camera), without)
    assert torch.equal(pose[:, 0], torch.full_like(pose[:, 0], 40.0))
    assert torch.equal(erd(**inputs), erd(**inputs | {"root": without}))
    torch.testing.assert_close(erd(**inputs), through_stages(erd, inputs))

    erd = make_erd(network, "solve_each_stage")
    assert torch.equal(erd.resolve_root(keypoints, pose, camera), whole)
    first = erd(**inputs, return_stages=True)[1]
    torch.testing.assert_close(first, erd.stage(0, keypoints, pose, whole, camera))


def test_the_skeleton_names_the_root_joint() -> None:
    skeleton = Skeleton("chain", ("tip", "middle", "base"), (1, 2, -1), (), ())
    erd = ERD(num_joints=3, stages=1, width=8, root="solve", skeleton=skeleton).double().eval()
    inputs = inputs_of(make_problem((5,), 3), "solve")
    pose = inputs["pose"] + 40.0
    zeroed = pose.clone()
    zeroed[:, 2] = 0.0
    expected = erd_cuda.solve_root(inputs["keypoints"], zeroed, inputs["camera"])
    assert torch.equal(erd.resolve_root(inputs["keypoints"], pose, inputs["camera"]), expected)


@pytest.mark.parametrize("built", ROOT_MODES)
@pytest.mark.parametrize("called", ROOT_MODES)
def test_a_call_may_choose_another_root(built: str, called: str) -> None:
    problem, network = make_problem((5,)), make_network(17, 2, 24)
    inputs = inputs_of(problem, called)
    expected = make_erd(network, called)(**inputs)
    if called != "given":
        inputs["root"] = called
    assert torch.equal(make_erd(network, built)(**inputs), expected)


@pytest.mark.parametrize("mode", ["fused", "layers", "train"])
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("root", ["solve", "solve_each_stage"])
def test_a_pose_without_a_root_stays_and_harms_nobody(root: str, features: str, mode: str) -> None:
    """Too few joints, one image point, behind the camera and NaN, between two good samples."""
    problem = make_problem((6,))
    erd = make_erd(make_network(17, 2, 24, features=features), root)
    inputs = inputs_of(problem, root)
    confidence = torch.ones(6, 17, dtype=torch.float64)
    confidence[1, 1:] = 0
    keypoints = inputs["keypoints"].clone()
    keypoints[2] = keypoints[2, 0]
    keypoints[3] = 2 * inputs["camera"][3, 2:] - keypoints[3]  # upside down
    keypoints[4, 5] = float("nan")
    inputs |= {"confidence": confidence, "keypoints": keypoints}
    status = erd_cuda.solve_root(
        keypoints, inputs["pose"], inputs["camera"], confidence, return_status=True
    )[1]
    assert status.tolist() == [0, 1, 2, 3, 4, 0]

    def run(inputs: dict[str, Any]) -> Tensor:
        return through_stages(erd, inputs) if mode == "layers" else erd(**inputs)

    if mode == "train":
        erd.train()
    inputs["pose"].requires_grad_()
    out = run(inputs)
    bad = slice(1, 5)
    assert torch.equal(out[bad], inputs["pose"][bad])
    (gradient,) = torch.autograd.grad(out.sum(), inputs["pose"])
    assert torch.equal(gradient[bad], torch.ones_like(gradient[bad]))
    assert torch.isfinite(gradient).all()
    if mode == "train":
        assert all(torch.isfinite(v).all() for v in erd.state_dict().values())
        return
    alone = {k: v[::5] if isinstance(v, Tensor) else v for k, v in inputs.items()}
    torch.testing.assert_close(out[::5], run(alone), rtol=1e-12, atol=1e-10)
