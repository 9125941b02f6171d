"""load_dataset on the published formats: what is read, and what is said when it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import data_helpers as files
import numpy as np
import pytest
import torch

from erd_cuda.benchmarks import oracle
from erd_cuda.data import PoseDataset, h36m16, h36m17, humaneva15, load_dataset


def expected_view(points: files.Array, view: int, root: int = 0) -> tuple[files.Array, files.Array]:
    """Pose and root of world points in metres as a helper camera sees them."""
    seen = files.seen_by(view, points)
    return seen - seen[:, root : root + 1], seen[:, root]


def lens(view: int) -> tuple[files.Array, files.Array]:
    """Intrinsics and Human3.6M distortion of a helper camera."""
    one = files.intrinsics(view)
    return (
        np.array(one["focal_length"] + one["center"]),
        np.array(one["radial_distortion"] + one["tangential_distortion"]),
    )


def assert_samples(
    part: PoseDataset, points: files.Array, view: int, model: str = "pinhole"
) -> None:
    """The samples of one take and view against the published formulas in float64."""
    pose, root = expected_view(points, view)
    np.testing.assert_allclose(part.pose.numpy(), pose, atol=1e-3)
    np.testing.assert_allclose(part.root.numpy(), root, atol=1e-3)
    intrinsics, distortion = lens(view)
    pixels = oracle.project(
        pose, root, intrinsics, None if model == "pinhole" else distortion, model
    )
    np.testing.assert_allclose(part.keypoints.numpy(), pixels, atol=1e-3)
    assert (part.frame == torch.arange(len(part))).all()


@pytest.mark.parametrize(("keypoints", "model"), [("pinhole", "pinhole"), ("distorted", "h36m")])
def test_h36m_projected(keypoints: str, model: str, tmp_path: Path) -> None:
    positions = files.h36m_folder(tmp_path)
    data = load_dataset(tmp_path, "all", keypoints=keypoints)
    assert data.skeleton == h36m17 and data.fps == 50.0 and data.keypoint_source == keypoints
    assert data.subjects == ["S1", "S9", "S11"]
    # Exact match up to the first space: SittingDown is not Sitting.
    assert data.actions == ["Walking", "Sitting", "SittingDown"]
    assert data.splits == {"train": ["S1", "S5", "S6", "S7", "S8"], "test": ["S9", "S11"]}
    assert len(data) == 4 * sum(len(x) for takes in positions.values() for x in takes.values())
    assert data.confidence is None and data.camera.model == model
    for subject, takes in positions.items():
        for action, points in takes.items():
            for view in range(4):
                part = data.sequence(f"{subject}/{action}", view)
                assert_samples(part, points[:, files.KEPT_OF_32], view, model)
                assert part.subjects[part.subject[0]] == subject
                assert part.actions[part.action[0]] == action.split(" ")[0]


def test_h36m_of_17_joints_and_a_path_to_the_file(tmp_path: Path) -> None:
    points = files.cloud(0, 3, 17)
    files.write_positions(tmp_path / "data_3d_h36m.npz", {"S1": {"Walking": points}})
    files.write_json(tmp_path / "elsewhere.json", files.by_subject_cameras(["S1"]))
    file = tmp_path / "data_3d_h36m.npz"
    data = load_dataset(file, "train", cameras=tmp_path / "elsewhere.json")
    assert_samples(data.sequence("S1/Walking", 2), points, 2)


def test_splits_subjects_actions_and_stride(tmp_path: Path) -> None:
    files.h36m_folder(tmp_path, frames=7)
    assert load_dataset(tmp_path, "train").subjects == ["S1"]
    test = load_dataset(tmp_path, "test", actions=["Walking", "SittingDown 1"])
    assert test.takes == ["S9/SittingDown 1", "S11/Walking"]
    one = load_dataset(tmp_path, "test", subjects=["S11"], stride=3)
    assert one.takes == ["S11/Walking"] and one.fps == pytest.approx(50 / 3)
    assert one.frame.tolist() == [0, 3, 6] * 4
    full = load_dataset(tmp_path, "test", subjects=["S11"])
    assert torch.equal(one.pose, full[full.frame % 3 == 0].pose)


def drifted_folder(folder: Path) -> None:
    """Human3.6M's test subjects in small, with two of the three drifted takes."""
    takes = ["Greeting", "Greeting 1", "SittingDown", "SittingDown 1"]
    positions = {
        subject: {take: files.cloud(number, 3, 32) for number, take in enumerate(takes)}
        for subject in ("S9", "S11")
    }
    files.write_positions(folder / "data_3d_h36m.npz", positions)
    files.write_json(folder / "cameras_h36m.json", files.by_subject_cameras(["S9", "S11"]))


def test_drifted_takes_in_and_out(tmp_path: Path) -> None:
    drifted_folder(tmp_path)
    whole = load_dataset(tmp_path, "test")
    clean = load_dataset(tmp_path, "test", drifted=False)
    # S11's takes of the same names have not drifted.
    gone = {"S9/Greeting", "S9/SittingDown 1"}
    assert set(whole.takes) - set(clean.takes) == gone and len(whole.takes) == 8
    assert len(clean) == len(whole) - 2 * 4 * 3
    whole.save(tmp_path / "whole.safetensors")
    again = load_dataset(tmp_path / "whole.safetensors", "test", drifted=False)
    assert again.takes == clean.takes and torch.equal(again.pose, clean.pose)
    for source in (tmp_path, tmp_path / "whole.safetensors"):
        with pytest.raises(ValueError, match="the chosen subjects and actions have drifted takes"):
            load_dataset(source, "test", subjects=["S9"], actions=["SittingDown 1"], drifted=False)
    # Detections that lack a drifted take are no obstacle to leaving it out.
    found = files.detected(
        {
            subject: {
                take: files.cloud(0, 3, 17)
                for take in ("Greeting", "Greeting 1", "SittingDown", "SittingDown 1")
                if f"{subject}/{take}" not in gone
            }
            for subject in ("S9", "S11")
        },
        17,
    )
    files.write_keypoints(tmp_path / "data_2d_h36m_det.npz", found)
    assert load_dataset(tmp_path, "test", keypoints="det", drifted=False).takes == clean.takes


def test_joints_16_is_17_without_neck_nose(tmp_path: Path) -> None:
    files.h36m_folder(tmp_path)
    data = load_dataset(tmp_path, "all", joints=16)
    full = load_dataset(tmp_path, "all")
    assert data.skeleton == h36m16
    keep = [joint for joint in range(17) if joint != 9]
    assert torch.equal(data.pose, full.pose[:, keep])
    assert torch.equal(data.keypoints, full.keypoints[:, keep])


def test_detected_2d_is_trimmed_and_keeps_the_lens(tmp_path: Path) -> None:
    positions = files.h36m_folder(tmp_path)
    found = files.detected(positions, 17, extra=3)
    found["S1"]["Posing"] = found["S1"]["Walking"]  # the 2D may know more than the 3D
    files.write_keypoints(tmp_path / "data_2d_h36m_cpn_ft_h36m_dbb.npz", found)
    data = load_dataset(tmp_path, "test", keypoints="cpn_ft_h36m_dbb")
    assert data.camera.model == "h36m" and data.confidence is None
    assert data.keypoint_source == "cpn_ft_h36m_dbb"
    for view in range(4):
        part = data.sequence("S9/Sitting", view)
        expected = np.float32(found["S9"]["Sitting"][view][:5])
        np.testing.assert_array_equal(part.keypoints.numpy(), expected)
        pose, _ = expected_view(positions["S9"]["Sitting"][:, files.KEPT_OF_32], view)
        np.testing.assert_allclose(part.pose.numpy(), pose, atol=1e-3)


def test_a_third_channel_is_the_confidence(tmp_path: Path) -> None:
    positions = files.h36m_folder(tmp_path)
    found = files.detected(positions, 17, channels=3)
    files.write_keypoints(tmp_path / "data_2d_h36m_det.npz", found)
    data = load_dataset(tmp_path, "all", keypoints="det", stride=2)
    part = data.sequence("S11/Walking", 3)
    assert part.confidence is not None
    expected = np.float32(found["S11"]["Walking"][3][::2])
    np.testing.assert_array_equal(part.confidence.numpy(), expected[..., 2])
    np.testing.assert_array_equal(part.keypoints.numpy(), expected[..., :2])


def test_missing_keypoints_get_confidence_zero_and_a_finite_place(tmp_path: Path) -> None:
    positions = files.h36m_folder(tmp_path)
    found = files.detected(positions, 17)
    view = found["S11"]["Walking"][1]
    view[2, 5] = np.nan
    view[2, 6, 0] = np.inf
    view[3] = np.nan
    files.write_keypoints(tmp_path / "data_2d_h36m_det.npz", found)
    data = load_dataset(tmp_path, "all", keypoints="det")
    assert data.confidence is not None
    assert data.keypoints.isfinite().all()
    part = data.sequence("S11/Walking", 1)
    assert part.confidence is not None
    assert part.confidence[2].tolist() == [0.0 if joint in (5, 6) else 1.0 for joint in range(17)]
    seen = [joint for joint in range(17) if joint not in (5, 6)]
    np.testing.assert_allclose(part.keypoints[2, 5], view[2, seen].mean(axis=0), rtol=1e-5)
    assert (part.confidence[3] == 0).all()
    assert torch.equal(part.keypoints[3], part.camera.intrinsics[3, 2:].expand(17, 2))
    assert int((data.confidence == 0).sum()) == 2 + 17


@pytest.mark.parametrize("joints", [None, 16, "h36m16"])
def test_semgcn_16_joint_file_of_the_same_name(joints: Any, tmp_path: Path) -> None:
    positions = files.h36m_folder(tmp_path)
    found = files.detected(positions, 16)
    path = tmp_path / "data_2d_h36m_gt.npz"
    files.write_keypoints(path, found, num_joints=16, symmetry=files.H36M16_SYMMETRY)
    data = load_dataset(tmp_path, "all", keypoints="gt", joints=joints)
    assert data.skeleton == h36m16
    expected = np.float32(found["S9"]["Sitting"][0])
    np.testing.assert_array_equal(data.sequence("S9/Sitting").keypoints.numpy(), expected)
    full = load_dataset(tmp_path, "all")
    assert torch.equal(data.pose, full.pose[:, [joint for joint in range(17) if joint != 9]])


def test_16_joints_of_a_17_joint_file(tmp_path: Path) -> None:
    positions = files.h36m_folder(tmp_path)
    found = files.detected(positions, 17)
    files.write_keypoints(tmp_path / "data_2d_h36m_gt.npz", found)
    data = load_dataset(tmp_path, "all", keypoints="gt", joints=16)
    expected = np.delete(np.float32(found["S1"]["Walking 1"][2]), 9, axis=1)
    np.testing.assert_array_equal(data.sequence("S1/Walking 1", 2).keypoints.numpy(), expected)


def test_2d_without_metadata_is_counted(tmp_path: Path) -> None:
    found = files.detected(files.h36m_folder(tmp_path), 16)
    np.savez_compressed(tmp_path / "data_2d_h36m_gt.npz", positions_2d=found)
    assert load_dataset(tmp_path, "all", keypoints="gt").skeleton == h36m16


def test_sequences_without_2d_can_be_left_out_on_request(tmp_path: Path) -> None:
    found = files.detected(files.h36m_folder(tmp_path), 17)
    del found["S1"]["Walking 1"]
    files.write_keypoints(tmp_path / "data_2d_h36m_det.npz", found)
    data = load_dataset(tmp_path, "test", keypoints="det")
    assert data.subjects == ["S9", "S11"]


def test_frames_without_3d_are_left_out_with_a_warning(tmp_path: Path) -> None:
    positions = files.h36m_folder(tmp_path)
    positions["S1"]["Walking"][2, 0, 1] = np.nan
    files.write_positions(tmp_path / "data_3d_h36m.npz", positions)
    with pytest.warns(UserWarning, match="left out 1 frames whose 3D is not finite"):
        data = load_dataset(tmp_path, "train")
    assert data.sequence("S1/Walking", 3).frame.tolist() == [0, 1, 3, 4]
    assert data.pose.isfinite().all()


def test_mocap_folder(tmp_path: Path) -> None:
    positions = files.mocap_folder(tmp_path)
    data = load_dataset(tmp_path, "train", keypoints="distorted")
    assert (data.name, data.fps, data.skeleton) == ("small", 30.0, h36m17)
    assert data.takes == ["A/Walk 1", "A/Run 1", "B/Walk 1"]
    assert data.actions == ["Walk", "Run"]
    for view in range(4):
        assert_samples(data.sequence("B/Walk 1", view), positions["B"]["Walk 1"], view, "h36m")
    assert load_dataset(tmp_path, "test").takes == ["C/Jump 1"]
    assert data.view.tolist()[:16] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4


def test_mocap_folder_with_another_skeleton(tmp_path: Path) -> None:
    files.mocap_folder(tmp_path, joints=2)
    meta = {
        "subjects_train": ["A"],
        "subjects_test": ["B"],
        "fps": 25,
        "joints": ["pelvis", "head"],
        "parents": [-1, 0],
        "joints_left": [],
        "joints_right": [],
    }
    files.write_json(tmp_path / "meta_small.json", meta)
    data = load_dataset(tmp_path, "test")
    assert data.skeleton.joints == ("pelvis", "head") and data.num_joints == 2
    with pytest.raises(ValueError, match=r"joints: .* has the joints of small, which cannot give"):
        load_dataset(tmp_path, "test", joints=16)


def test_humaneva_needs_cameras(tmp_path: Path) -> None:
    files.humaneva_folder(tmp_path)
    with pytest.raises(ValueError, match="comes without camera parameters; pass cameras=PATH"):
        load_dataset(tmp_path, "train")


def test_humaneva_with_its_own_calibrations(tmp_path: Path) -> None:
    positions = files.humaneva_folder(tmp_path)
    files.write_calibrations(tmp_path / "humaneva")
    data = load_dataset(tmp_path, "test", keypoints="distorted", cameras=tmp_path / "humaneva")
    assert data.skeleton == humaneva15 and data.fps == 60.0
    assert data.takes == ["Validate/S1/Walking 1 chunk0"] and data.actions == ["Walking"]
    assert data.camera.model == "opencv"
    points = positions["Validate/S1"]["Walking 1 chunk0"]
    for view in range(3):
        part = data.sequence("Validate/S1/Walking 1 chunk0", view)
        pose, root = expected_view(points, view)
        np.testing.assert_allclose(part.pose.numpy(), pose, atol=1e-3)
        np.testing.assert_allclose(part.root.numpy(), root, atol=1e-3)
        intrinsics = np.array([640.0 + view, 641.0, 320.0, 240.0])
        distortion = np.array([-0.2, 0.1, 0.001, -0.002, 0.0])
        pixels = oracle.project(pose, root, intrinsics, distortion, "opencv")
        np.testing.assert_allclose(part.keypoints.numpy(), pixels, atol=1e-3)
    train = load_dataset(tmp_path, "train", cameras=tmp_path / "humaneva")
    assert train.actions == ["Walking", "Jog"]


def test_humaneva_2d(tmp_path: Path) -> None:
    positions = files.humaneva_folder(tmp_path)
    cameras = files.by_subject_cameras(["S1"], count=3)
    files.write_json(tmp_path / "cams.json", cameras)
    found = {
        subject: {key: views[:3] for key, views in takes.items()}
        for subject, takes in files.detected(positions, 15, extra=1).items()
    }
    path = tmp_path / "data_2d_humaneva15_gt.npz"
    files.write_keypoints(path, found, 15, files.HUMANEVA_SYMMETRY)
    data = load_dataset(tmp_path, "all", keypoints="gt", cameras=tmp_path / "cams.json")
    part = data.sequence("Train/S1/Jog 1 chunk2", 1)
    expected = np.float32(found["Train/S1"]["Jog 1 chunk2"][1][:3])
    np.testing.assert_array_equal(part.keypoints.numpy(), expected)
