"""Undistortion on reading: the inverse against the oracle's lens, folds, gaps, and every source."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import data_helpers as files
import numpy as np
import pytest
import torch

from erd_cuda import Camera
from erd_cuda.benchmarks import oracle
from erd_cuda.cli import main
from erd_cuda.data import PoseDataset, load_dataset, undistort_points, undistorted

# Human3.6M's first camera, and a lens of the same strength in OpenCV's order.
H36M = [-0.2070989, 0.2477752, -0.0030752, -0.0009757, -0.0014245]
LENSES = {"h36m": H36M, "opencv": [-0.2, 0.24, 0.001, -0.0015, -0.003]}
INTRINSICS = [1145.05, 1143.78, 512.54, 515.45]


def seen_through(rays: files.Array, distortion: list[float], model: str) -> files.Array:
    """Pixels (N, J, 2) of rays (N, J, 2), by the oracle's lens."""
    intrinsics = np.array(INTRINSICS)
    return oracle.distort(rays, np.array(distortion), model) * intrinsics[:2] + intrinsics[2:]


def lens(distortion: list[float], model: str, count: int) -> Camera:
    one = Camera(
        torch.tensor(INTRINSICS, dtype=torch.float64),
        torch.tensor(distortion, dtype=torch.float64),
        model,
    )
    return one.expand((count,))


@pytest.mark.parametrize("model", LENSES)
def test_inverse_of_both_models(model: str) -> None:
    # Corner to corner of the image and beyond.
    rays = np.random.default_rng(0).uniform(-0.6, 0.6, (50, 17, 2))
    pixels = seen_through(rays, LENSES[model], model)
    found = undistort_points(torch.from_numpy(pixels), lens(LENSES[model], model, 50))
    expected = rays * INTRINSICS[:2] + INTRINSICS[2:]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-8)
    assert np.abs(pixels - expected).max() > 20.0


def test_precision_and_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    rays = np.random.default_rng(1).uniform(-0.4, 0.4, (20, 5, 2))
    pixels = torch.from_numpy(seen_through(rays, H36M, "h36m"))
    whole = undistort_points(pixels, lens(H36M, "h36m", 20))
    assert undistort_points(pixels.float(), lens(H36M, "h36m", 20)).dtype == torch.float32
    monkeypatch.setattr("erd_cuda.data.undistort.BATCH", 7)
    # How far a batch's slowest point is from its ray may cost the others one more step.
    torch.testing.assert_close(
        undistort_points(pixels, lens(H36M, "h36m", 20)), whole, rtol=0, atol=1e-9
    )
    assert undistort_points(pixels[:0], lens(H36M, "h36m", 0)).shape == (0, 5, 2)


def test_folds_are_refused() -> None:
    # Barrel distortion k1 = -0.5 turns around at r = 0.8165 and reaches 0.5443 there. Wherever
    # Newton's method happens to stop for what lies beyond, it must not pass for an answer.
    distortion = [-0.5, 0.0, 0.0, 0.0, 0.0]
    radii = torch.linspace(0.545, 2.0, 300, dtype=torch.float64)
    points = torch.tensor(INTRINSICS[2:]) + torch.stack([radii, 0 * radii], 1) * INTRINSICS[0]
    found = undistort_points(points.reshape(100, 3, 2), lens(distortion, "h36m", 100))
    assert found.isnan().all()
    # 1.1 - 0.5 * 1.1^3 is an image point of a ray beyond the fold, and of a nearer one.
    beyond = seen_through(np.array([[[1.1, 0.0]]]), distortion, "h36m")
    found = undistort_points(torch.from_numpy(beyond), lens(distortion, "h36m", 1))
    inner = (found[0, 0, 0].item() - INTRINSICS[2]) / INTRINSICS[0]
    assert 0 < inner < 0.8165
    assert inner - 0.5 * inner**3 == pytest.approx(1.1 - 0.5 * 1.1**3, abs=1e-9)


def test_a_second_branch_is_not_taken_for_the_lens() -> None:
    # r - 2 r^3 + 1.2 r^5 falls from r = 0.483 to r = 0.845 and rises again: what only the outer
    # branch reaches has a ray with a positive determinant, but no light takes it.
    distortion = [-2.0, 1.2, 0.0, 0.0, 0.0]
    pixels = seen_through(np.array([[[1.3, 0.0]]]), distortion, "h36m")
    assert undistort_points(torch.from_numpy(pixels), lens(distortion, "h36m", 1)).isnan().all()


def test_distorted_projections_become_pinhole_ones(tmp_path: Path) -> None:
    files.h36m_folder(tmp_path)
    plain = load_dataset(tmp_path, "all")
    data = load_dataset(tmp_path, "all", keypoints="distorted", undistort=True)
    assert data.camera.is_pinhole and data.keypoint_source == "distorted, undistorted"
    assert torch.equal(data.camera.intrinsics, plain.camera.intrinsics)
    torch.testing.assert_close(data.keypoints, plain.keypoints, rtol=0, atol=1e-3)
    assert data.confidence is None and torch.equal(data.pose, plain.pose)


def distorted_detections(folder: Path) -> None:
    """Human3.6M in small with a detector that sees the truth through the lens, a joint missing."""
    positions = files.h36m_folder(folder)
    seen = load_dataset(folder, "all", keypoints="distorted")
    found = {
        subject: {
            action: [
                seen.sequence(f"{subject}/{action}", view).keypoints.numpy().copy()
                for view in range(4)
            ]
            for action in takes
        }
        for subject, takes in positions.items()
    }
    found["S9"]["Sitting"][1][2, 5] = np.nan
    files.write_keypoints(folder / "data_2d_h36m_det.npz", found)


def test_detections_and_pose_files(tmp_path: Path) -> None:
    distorted_detections(tmp_path)
    plain = load_dataset(tmp_path, "all")
    data = load_dataset(tmp_path, "all", keypoints="det", undistort=True)
    assert data.keypoint_source == "det, undistorted" and data.confidence is not None
    missing = data.confidence == 0
    assert int(missing.sum()) == 1
    gap = (data.keypoints - plain.keypoints).norm(dim=-1)
    assert gap[~missing].max() < 1e-3
    raw = tmp_path / "raw.safetensors"
    load_dataset(tmp_path, "all", keypoints="det").save(raw)
    again = load_dataset(raw, "all", undistort=True)
    assert again.content_hash() == data.content_hash()
    assert load_dataset(tmp_path, "all", keypoints="det").camera.model == "h36m"
    assert main(["convert", str(raw), "-o", str(tmp_path / "u.safetensors"), "--undistort"]) == 0
    assert PoseDataset.load(tmp_path / "u.safetensors").content_hash() == data.content_hash()


def strong_lens(folder: Path) -> None:
    """Cameras that fold half way from the centre of the image to its edge."""
    cameras = json.loads((folder / "cameras_h36m.json").read_text())
    for one in cameras["intrinsics"]:
        one["radial_distortion"] = [-4.0, 0.0, 0.0]
    files.write_json(folder / "cameras_h36m.json", cameras)


def test_a_keypoint_beyond_the_fold_is_named(tmp_path: Path) -> None:
    positions = files.h36m_folder(tmp_path)
    found = files.detected(positions, 17)
    for takes in found.values():
        for views in takes.values():
            for view in views:
                view[:] = 512.0
    strong_lens(tmp_path)
    found["S9"]["Sitting"][2][3, 10] = [1000.0, 512.0]
    files.write_keypoints(tmp_path / "data_2d_h36m_det.npz", found)
    with pytest.raises(ValueError, match=r"Head of S9/Sitting, camera 2, frame 3 at \(1000.0, 512"):
        load_dataset(tmp_path, "all", keypoints="det", undistort=True)
    # The same place does no harm where the joint is missing: it is only a stand-in.
    data = load_dataset(tmp_path, "all", keypoints="det")
    confidence = torch.ones(data.pose.shape[:2])
    confidence[(data.keypoints[..., 0] > 900)] = 0.0
    clean = undistorted(replace(data, confidence=confidence))
    place = clean.keypoints[confidence == 0]
    assert place.shape == (1, 2)
    row = int((confidence == 0).any(dim=1).nonzero())
    others = clean.keypoints[row][confidence[row] > 0]
    torch.testing.assert_close(place[0], others.mean(dim=0))


def test_pinholes_have_nothing_to_undo(tmp_path: Path) -> None:
    files.mocap_folder(tmp_path)
    with pytest.raises(ValueError, match=r"undistort: the 2D of small \(pinhole\) belongs to pinh"):
        load_dataset(tmp_path, "train", undistort=True)
