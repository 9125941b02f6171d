"""Human3.6M without Hip, Spine and Neck/Nose: poses stay relative to a Hip that is no joint."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import data_helpers as files
import numpy as np
import pytest
import torch
from small_training import run, small_config

from erd_cuda.cli import main
from erd_cuda.data import PoseDataset, h36m14, h36m17, load_dataset
from erd_cuda.evaluation import evaluate, mpjpe, solved_root
from erd_cuda.modules import ERD
from erd_cuda.ops import solve_root
from erd_cuda.viewer import PoseSequence, write_page

KEPT = [h36m17.index(joint) for joint in h36m14.joints]


def small(split: str = "train") -> PoseDataset:
    return load_dataset("synthetic", split, stride=80, joints=14)


@pytest.mark.parametrize("joints", [14, "h36m14"])
def test_joints_are_dropped_and_the_origin_stays(joints: int | str, tmp_path: Path) -> None:
    files.h36m_folder(tmp_path)
    full, data = load_dataset(tmp_path, "all"), load_dataset(tmp_path, "all", joints=joints)
    assert data.skeleton == h36m14
    assert torch.equal(data.pose, full.pose[:, KEPT]) and torch.equal(data.root, full.root)
    assert torch.equal(data.keypoints, full.keypoints[:, KEPT])
    data.save(tmp_path / "poses.safetensors")
    again = PoseDataset.load(tmp_path / "poses.safetensors")
    assert again.skeleton == h36m14 and again.content_hash() == data.content_hash()


@pytest.mark.parametrize("given", [17, 16, 14])
def test_detections_of_more_joints(given: int, tmp_path: Path) -> None:
    positions = files.h36m_folder(tmp_path)
    found = files.detected(positions, given)
    names = {17: list(h36m17.joints), 16: [*h36m17.joints], 14: list(h36m14.joints)}[given]
    if given == 16:
        names.remove("Neck/Nose")
    sides = [[n for n, name in enumerate(names) if re.match(f"{side}[A-Z]", name)] for side in "LR"]
    files.write_keypoints(tmp_path / "data_2d_h36m_det.npz", found, given, sides)
    data = load_dataset(tmp_path, "all", keypoints="det", joints=14)
    expected = found["S9"]["Sitting"][2][:, [names.index(joint) for joint in h36m14.joints]]
    np.testing.assert_allclose(data.sequence("S9/Sitting", 2).keypoints, expected, atol=1e-3)
    if given == 14:
        with pytest.raises(ValueError, match="has the joints of h36m14, which cannot give h36m16"):
            load_dataset(tmp_path, "all", keypoints="det", joints=16)


def test_a_folder_of_these_joints_alone_has_another_origin(tmp_path: Path) -> None:
    """Its 3D has no Hip, so poses can only be relative to the tree's root."""
    positions = files.mocap_folder(tmp_path, joints=14)
    meta = json.loads((tmp_path / "meta_small.json").read_text())
    layout = h36m14.to_dict()
    meta |= {"joints": layout["joints"], "parents": layout["parents"]}
    meta |= {"joints_left": layout["left"], "joints_right": layout["right"]}
    files.write_json(tmp_path / "meta_small.json", meta)
    data = load_dataset(tmp_path, "train")
    assert data.skeleton.origin is None and (data.pose[:, h36m14.root] == 0).all()
    thorax = files.seen_by(0, positions["A"]["Walk 1"])[:, h36m14.root]
    np.testing.assert_allclose(data.sequence("A/Walk 1").root, thorax, atol=1e-3)


@pytest.mark.parametrize("root", ["given", "solve"])
def test_training_and_evaluation_align_nothing(root: str, tmp_path: Path) -> None:
    data = small()
    erd = run(tmp_path, small_config(root=root), dataset=data)
    assert erd.root_joint is None
    again = ERD.from_pretrained(tmp_path / "model.safetensors")
    assert again.skeleton == h36m14 and again.root_joint is None
    table = evaluate(again, data, roots=(root,))
    given = data.root if root == "given" else root
    with torch.no_grad():
        stages = again(data.keypoints, data.camera, given, return_stages=True)
    distance = (stages - data.pose).norm(dim=-1).mean(dim=-1).double()
    expected = distance.mean(dim=1)
    torch.testing.assert_close(table.mean_over_poses(root), expected, rtol=1e-5, atol=1e-4)


def test_the_root_is_solved_from_the_pose_as_it_is() -> None:
    data = small("test")
    erd = ERD(num_joints=14, skeleton=h36m14, root="solve")
    expected = solve_root(data.keypoints, data.pose, data.camera)
    assert torch.equal(erd.resolve_root(data.keypoints, data.pose, data.camera), expected)
    solved, status = solved_root(erd, data.keypoints, data.pose, data.camera, None, "solve")
    assert torch.equal(solved, expected) and not status.any()
    # The true pose and 2D without noise have the Hip's place as their root.
    assert (solved - data.root).norm(dim=-1).max() < 1.0


def test_metrics_without_a_root_joint() -> None:
    truth = torch.randn(4, 14, 3)
    moved = truth + torch.tensor([3.0, 0.0, 4.0])
    assert mpjpe(moved, truth, root_joint=None).tolist() == pytest.approx([5.0] * 4, abs=1e-4)
    assert mpjpe(moved, truth, root_joint=h36m14.root).abs().max() < 1e-5


def test_the_viewer_aligns_nothing(tmp_path: Path) -> None:
    walk = small("test")
    walk = walk.sequence(walk.takes[0])[:4]
    clip = PoseSequence(
        title="x",
        skeleton=h36m14,
        fps=10.0,
        keypoints=walk.keypoints,
        stages=torch.stack([walk.pose + torch.tensor([0.0, 6.0, 8.0])] * 2),
        root=walk.root,
        camera=walk.camera[0],
        truth=walk.pose,
    )
    np.testing.assert_allclose(clip.errors(), 10.0, atol=1e-3)
    assert '"rootJoint":null' in write_page(tmp_path / "x.html", clip).read_text().replace(" ", "")
    seventeen = replace(clip, skeleton=replace(h36m14, origin=None))
    np.testing.assert_allclose(seventeen.errors(), 0.0, atol=1e-3)


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "poses.safetensors"
    assert (
        main(["convert", "synthetic", "--joints", "14", "--stride", "60", "-o", str(output)]) == 0
    )
    assert "of 14 joints (h36m14)" in capsys.readouterr().out
    small = "--lifter-width 16 --lifter-blocks 1 --lifter-epochs 1 --stages 1 --width 16 --quiet"
    command = ["train", "--data", "synthetic", "--joints", "14", "--stride", "80"]
    assert main([*command, "-o", str(tmp_path / "run"), *small.split()]) == 0
    assert main(["evaluate", str(tmp_path / "run/model.safetensors"), "--data", str(output)]) == 0
