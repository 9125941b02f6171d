"""What a stage is trained on, against the model's own stage-by-stage path."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_training import train_set, trained_model

from erd_cuda.data import PoseDataset
from erd_cuda.evaluation import mpjpe
from erd_cuda.modules import ERD
from erd_cuda.training.stages import StagedData, lifted_poses

ROOTS = ("given", "solve", "solve_each_stage")


def with_missing_joints(data: PoseDataset) -> PoseDataset:
    confidence = torch.ones(len(data), data.num_joints)
    confidence[::3, 4] = 0
    confidence[1::4, 10] = 0.5
    return replace(data, confidence=confidence)


def staged(erd: ERD, data: PoseDataset) -> StagedData:
    return StagedData(erd, data, lifted_poses(erd, data))


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("missing", [False, True])
def test_poses_advance_as_in_the_model(root: str, missing: bool) -> None:
    erd = trained_model(root=root)
    data = with_missing_joints(train_set()) if missing else train_set()
    given = data.root if root == "given" else None
    with torch.no_grad():
        expected = erd(data.keypoints, data.camera, given, data.confidence, return_stages=True)
    poses = staged(erd, data)
    torch.testing.assert_close(poses.pose, expected[0])
    for k in range(erd.stages):
        poses.prepare(k)
        erd.regressors[k].train()  # as training leaves it
        assert poses.mpjpe(k) == pytest.approx(
            mpjpe(expected[k + 1], data.pose).mean().item(), abs=1e-2
        )
        poses.advance(k)
        torch.testing.assert_close(poses.pose, expected[k + 1], atol=2e-2, rtol=1e-4)
    moved = (expected[-1] - expected[0]).abs().mean().item()
    assert moved > 1, "stages that do nothing would pass this test"


def test_increments_are_what_is_missing_to_the_truth() -> None:
    erd, data = trained_model(), train_set()
    poses = staged(erd, data)
    poses.prepare(0)
    poses.advance(0)
    poses.prepare(1)
    torch.testing.assert_close(
        poses.pose + poses.increments.view_as(poses.pose), data.pose, atol=1e-3, rtol=0
    )
    assert poses.features.shape == (len(data), 34)
    assert poses.features.is_contiguous() and poses.increments.is_contiguous()
    assert not poses.features.requires_grad and not poses.increments.requires_grad


@pytest.mark.parametrize("root", ["solve", "solve_each_stage"])
def test_samples_without_a_root_are_left_out_and_keep_their_pose(root: str) -> None:
    erd, data = trained_model(root=root), train_set()[:60]
    confidence = torch.ones(60, data.num_joints)
    confidence[[7, 31]] = 0
    data = replace(data, confidence=confidence)
    poses = staged(erd, data)
    lifted = poses.pose.clone()
    poses.prepare(0)
    assert len(poses.features) == len(poses.increments) == 58
    kept = torch.tensor([i for i in range(60) if i not in (7, 31)])
    torch.testing.assert_close(
        poses.increments.view(58, -1, 3), data.pose[kept] - lifted[kept], atol=1e-3, rtol=0
    )
    poses.advance(0)
    assert torch.equal(poses.pose[[7, 31]], lifted[[7, 31]])
    assert (poses.pose[kept] - lifted[kept]).abs().amax(dim=(1, 2)).min() > 0


def test_predictions_are_made_in_eval_mode_and_the_same_in_any_chunk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    erd, data = trained_model(), train_set()
    erd.train()
    whole = lifted_poses(erd, data)
    monkeypatch.setattr("erd_cuda.training.stages.CHUNK", 100)
    torch.testing.assert_close(lifted_poses(erd, data), whole, atol=1e-2, rtol=1e-5)
    erd.eval()
    with torch.no_grad():
        assert torch.equal(whole, erd.lift(data.keypoints))
