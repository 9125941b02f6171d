"""The readers on real motion capture: set ERD_MOCAP17 to the folder with data_3d_mocap17.npz."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from erd_cuda.data import PoseDataset, h36m17, load_dataset

FOLDER = os.environ.get("ERD_MOCAP17", "")
pytestmark = pytest.mark.skipif(not FOLDER, reason="ERD_MOCAP17 does not name the data's folder")


@pytest.fixture(scope="module")
def train() -> PoseDataset:
    # Processor time, which other processes on the machine do not stretch as they do the clock's.
    start = time.process_time()
    data = load_dataset(FOLDER, "train")
    # A few seconds; per-sample Python would take minutes.
    assert time.process_time() - start < 20.0
    return data


@pytest.fixture(scope="module")
def test() -> PoseDataset:
    return load_dataset(FOLDER, "test")


def test_counts(train: PoseDataset, test: PoseDataset) -> None:
    assert (len(train), len(test)) == (4 * 81648, 4 * 8293)
    assert (len(train.subjects), len(test.subjects)) == (15, 3)
    assert train.skeleton == test.skeleton == h36m17 and train.fps == 30.0
    assert not set(train.subjects) & set(test.subjects)


@pytest.mark.parametrize("name", ["train", "test"])
def test_people_are_upright_in_front_of_the_cameras(
    name: str, request: pytest.FixtureRequest
) -> None:
    data: PoseDataset = request.getfixturevalue(name)
    depth = data.pose[..., 2] + data.root[:, None, 2]
    assert depth.min() > 2000.0 and depth.max() < 9000.0
    inside = ((data.keypoints > 0) & (data.keypoints < 1000)).all(dim=-1).float().mean()
    assert inside > 0.999
    assert (data.pose[:, 0] == 0).all()
    head, feet = data.keypoints[:, 10, 1], data.keypoints[:, [3, 6], 1].mean(dim=1)
    assert (head < feet).float().mean() > 0.98


def test_bones_are_those_of_the_file(test: PoseDataset) -> None:
    # No camera changes a length, so lengths seen by the four views agree.
    part = test[test.take == int(test.take[0])]
    lengths = torch.stack(
        [(part.pose[:, p] - part.pose[:, j]).norm(dim=-1) for p, j in h36m17.bones]
    )
    views = lengths.reshape(len(h36m17.bones), 4, -1)
    assert (views - views[:, :1]).abs().max() < 0.01


def test_one_sample_by_hand(test: PoseDataset) -> None:
    cameras = json.loads((Path(FOLDER) / "cameras_mocap17.json").read_text())
    with np.load(Path(FOLDER) / "data_3d_mocap17.npz", allow_pickle=True) as archive:
        positions = archive["positions_3d"].item()
    row = len(test) // 2 + 17
    subject, key = test.takes[int(test.take[row])].split("/")
    view, frame = int(test.view[row]), int(test.frame[row])
    place = cameras["extrinsics"][subject][key][view]
    lens = cameras["intrinsics"][subject][view]
    w, x, y, z = np.array(place["orientation"]) / np.linalg.norm(place["orientation"])
    points = positions[subject][key][frame].astype(np.float64) - place["translation"]
    # q* v q with the conjugate: world to camera.
    vector = np.array([-x, -y, -z])
    seen = points + 2 * np.cross(vector, np.cross(vector, points) + w * points)
    np.testing.assert_allclose(test.root[row], seen[0] * 1000.0, atol=1e-3)
    np.testing.assert_allclose(test.pose[row], (seen - seen[0]) * 1000.0, atol=1e-3)
    pixels = seen[:, :2] / seen[:, 2:] * lens["focal_length"] + lens["center"]
    np.testing.assert_allclose(test.keypoints[row], pixels, atol=1e-3)


def test_distortion_moves_2d_by_about_a_pixel(test: PoseDataset) -> None:
    distorted = load_dataset(FOLDER, "test", keypoints="distorted")
    assert torch.equal(distorted.pose, test.pose)
    gap = (distorted.keypoints - test.keypoints).norm(dim=-1)
    assert 0.3 < gap.mean() < 3.0


def test_cmu_subjects_alone(train: PoseDataset) -> None:
    names = [name for name in train.subjects if name.startswith("CMU")]
    data = load_dataset(FOLDER, "train", subjects=names, stride=10)
    assert data.subjects == names and len(names) == 12
    part = train.select(subjects=names)
    assert torch.equal(data.pose, part[part.frame % 10 == 0].pose)
