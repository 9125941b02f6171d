"""The stand-in for HumanEva-I: written from other motion, read back by HumanEva-I's reader."""

from __future__ import annotations

import json
from pathlib import Path

import data_helpers as files
import numpy as np
import pytest
import torch

from erd_cuda.data import h36m17, humaneva15, load_dataset, synthetic_motion, write_poses
from erd_cuda.data.synthetic import synthetic_capture
from erd_cuda.data.videopose3d import read_positions
from erd_cuda.reproduce.humaneva_stand_in import write_stand_in

# Human3.6M's joints in HumanEva's order: pelvis, thorax, arms, legs, head.
JOINTS = [0, 8, 11, 12, 13, 14, 15, 16, 4, 5, 6, 1, 2, 3, 10]


def motion_folder(folder: Path, fps: float = 30.0) -> dict[str, dict[str, np.ndarray]]:
    """Synthetic motion in mocap17's form, in which the fourth person and fourth action are short,
    and three more people, of whom there is most, are test subjects.
    """
    capture = synthetic_capture(
        train_subjects=4,
        test_subjects=3,
        takes=2,
        seconds=3.0,
        actions=["Walking", "Sitting", "Boxing", "Waving"],
        seed=4,
    )

    def frames(subject: str, key: str) -> int:
        if subject == "Train2" or key.startswith("Sitting"):
            return 20
        return 60 if subject.startswith("Train") else 90

    positions = {
        subject: {key: value[: frames(subject, key)] for key, value in takes.items()}
        for subject, takes in capture.positions.items()
    }
    files.write_positions(folder / "data_3d_own.npz", positions)
    cameras = files.by_action_cameras({name: list(takes) for name, takes in positions.items()})
    files.write_json(folder / "cameras_own.json", cameras)
    meta = {
        **{f"subjects_{split}": names for split, names in capture.splits.items()},
        "fps": fps,
        "joints": list(h36m17.joints),
        "parents": list(h36m17.parents),
        "joints_left": list(h36m17.left),
        "joints_right": list(h36m17.right),
    }
    files.write_json(folder / "meta_own.json", meta)
    return positions


@pytest.fixture
def written(tmp_path: Path) -> tuple[dict[str, dict[str, np.ndarray]], Path]:
    positions = motion_folder(tmp_path)
    return positions, write_stand_in(tmp_path, tmp_path / "stand_in")


def test_layout_is_humanevas(written: tuple[dict[str, dict[str, np.ndarray]], Path]) -> None:
    _, folder = written
    positions = read_positions(folder / "data_3d_humaneva15.npz")
    parts = [f"{part}/S{number}" for part in ("Train", "Validate") for number in (1, 2, 3)]
    assert list(positions) == parts
    keys = [
        f"{action} {take} chunk0" for action in ("Boxing", "Walking", "Waving") for take in (1, 2)
    ]
    for takes in positions.values():
        assert list(takes) == keys
        assert {value.dtype for value in takes.values()} == {np.dtype(np.float32)}
    assert sorted(each.relative_to(folder).as_posix() for each in folder.rglob("*.*")) == [
        *(f"S{s}/Calibration_Data/C{c}.cal" for s in (1, 2, 3) for c in (1, 2, 3)),
        "data_3d_humaneva15.npz",
        "stand_in.json",
    ]
    # The longest common motion, and nobody of the test split.
    origin = json.loads((folder / "stand_in.json").read_text())
    assert origin["subjects"] == {"S1": "Train1", "S2": "Train3", "S3": "Train4"}
    assert origin["actions"] == ["Boxing", "Walking", "Waving"] and origin["source"] == "own"


def test_poses_are_the_sources(written: tuple[dict[str, dict[str, np.ndarray]], Path]) -> None:
    sources, folder = written
    positions = read_positions(folder / "data_3d_humaneva15.npz")
    for number, person in ((1, "Train1"), (2, "Train3"), (3, "Train4")):
        for action in ("Boxing", "Walking", "Waving"):
            source = sources[person][f"{action} 2"][:, JOINTS].astype(np.float64)
            key = f"{action} 2 chunk0"
            parts = [positions[f"{part}/S{number}"][key] for part in ("Train", "Validate")]
            assert [len(part) for part in parts] == [59, 60]
            motion = np.concatenate(parts)
            middle = (source[:, 0, :2].min(axis=0) + source[:, 0, :2].max(axis=0)) / 2
            moved = source - [*middle, 0.0]
            # 30 frames a second became 60: every second frame is the source's.
            np.testing.assert_allclose(motion[::2], moved, atol=2e-3)
            np.testing.assert_allclose(motion[1::2], (moved[1:] + moved[:-1]) / 2, atol=2e-3)
            path = motion[:, 0, :2]
            np.testing.assert_allclose(path.min(axis=0), -path.max(axis=0), atol=1e-5)


def test_humanevas_reader_reads_it(
    written: tuple[dict[str, dict[str, np.ndarray]], Path],
) -> None:
    _, folder = written
    train = load_dataset(folder, "train", cameras=folder)
    test = load_dataset(folder, "test", cameras=folder, keypoints="distorted")
    assert (train.name, train.fps, train.skeleton) == ("HumanEva-I", 60.0, humaneva15)
    assert train.subjects == ["Train/S1", "Train/S2", "Train/S3"]
    assert test.subjects == ["Validate/S1", "Validate/S2", "Validate/S3"]
    assert test.actions == ["Boxing", "Walking", "Waving"]
    assert len(train) == 3 * 6 * 59 * 3 and len(test) == 3 * 6 * 60 * 3
    assert train.view.unique().tolist() == [0, 1, 2] and test.camera.model == "opencv"
    # Upright people in the picture: heads above ankles, everything within 640 x 480.
    for data in (train, test):
        inside = (data.keypoints > 0) & (data.keypoints < torch.tensor([640.0, 480.0]))
        assert float(inside.double().mean()) > 0.999
        height = data.keypoints[:, humaneva15.index("LAnkle"), 1] - data.keypoints[:, 14, 1]
        assert 150 < float(height.median()) < 400
        assert float(data.root[:, 2].min()) > 3500
    # Three cameras around the person see three sides of it.
    facing = train.pose[:, humaneva15.index("LHip"), 0].reshape(-1, 3, 59)
    assert float(torch.corrcoef(facing.transpose(0, 1).reshape(3, -1)).min()) < 0.0
    for subject in ("Train/S1", "Train/S2"):
        # A camera stands still for a person, and people have cameras of their own.
        assert len(train.select(subjects=[subject]).camera.intrinsics.unique(dim=0)) == 3
    assert len(train.camera.intrinsics.unique(dim=0)) == 9


def test_the_same_source_gives_the_same_files(tmp_path: Path) -> None:
    folders = [write_stand_in("synthetic", tmp_path / name, 3) for name in ("a", "a", "b")]
    other = write_stand_in("synthetic", tmp_path / "c", seed=4)
    for file in sorted(folders[0].rglob("*.cal")):
        name = file.relative_to(folders[0])
        assert file.read_bytes() == (folders[2] / name).read_bytes()
        assert file.read_bytes() != (other / name).read_bytes()
    one, two = (read_positions(each / "data_3d_humaneva15.npz") for each in (folders[0], other))
    for subject, takes in one.items():
        for key, value in takes.items():
            np.testing.assert_array_equal(value, two[subject][key])


def test_other_frame_rates(tmp_path: Path) -> None:
    positions = motion_folder(tmp_path, fps=100.0)
    folder = write_stand_in(tmp_path, tmp_path / "stand_in")
    written = read_positions(folder / "data_3d_humaneva15.npz")
    parts = [written[f"{part}/S1"]["Walking 1 chunk0"] for part in ("Train", "Validate")]
    # 60 frames at 100 a second last 0.59 s.
    assert [len(part) for part in parts] == [18, 18]
    pelvis, motion = positions["Train1"]["Walking 1"][:, 0, 2], np.concatenate(parts)[:, 0, 2]
    expected = np.interp(np.arange(36) / 60.0, np.arange(60) / 100.0, pelvis)
    np.testing.assert_allclose(motion, expected, atol=1e-5)


def test_what_cannot_be_made_gets_one_sentence(tmp_path: Path) -> None:
    files.mocap_folder(tmp_path)
    with pytest.raises(ValueError, match="no 3 training subjects with 3 actions in common"):
        write_stand_in(tmp_path, tmp_path / "out")
    poses = tmp_path / "poses.safetensors"
    write_poses(poses, synthetic_motion(train_subjects=1, test_subjects=0, seconds=0.1))
    with pytest.raises(ValueError, match="is a pose file, which has no world coordinates"):
        write_stand_in(poses, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="nowhere does not exist"):
        write_stand_in(tmp_path / "nowhere", tmp_path / "out")
    humaneva = tmp_path / "humaneva"
    humaneva.mkdir()
    files.humaneva_folder(humaneva)
    with pytest.raises(ValueError, match=r"expected the 17 joints of Human3.6M, but .* humaneva15"):
        write_stand_in(humaneva, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError):
        write_stand_in("synthetic", tmp_path / "no" / "out")
