"""Small data sets in exactly the published file formats, written as their authors write them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

H36M_SYMMETRY = [[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]]
H36M16_SYMMETRY = [[4, 5, 6, 10, 11, 12], [1, 2, 3, 13, 14, 15]]
HUMANEVA_SYMMETRY = [[2, 3, 4, 8, 9, 10], [5, 6, 7, 11, 12, 13]]
COCO_SYMMETRY = [[1, 3, 5, 7, 9, 11, 13, 15], [2, 4, 6, 8, 10, 12, 14, 16]]

# Of Human3.6M's 32 joints, those that VideoPose3D keeps.
KEPT_OF_32 = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]


def cloud(seed: int, frames: int, joints: int) -> Array:
    """Joints scattered within a metre of a place 1 m above the ground, metres, float32."""
    rng = np.random.default_rng(seed)
    return rng.uniform([-0.5, -0.5, 0.5], [0.5, 0.5, 1.5], (frames, joints, 3)).astype(np.float32)


def quaternion_of(matrix: Array) -> Array:
    """The quaternion w, x, y, z of a rotation, as the eigenvector that belongs to it."""
    m = matrix
    k = np.array(
        [
            [m[0, 0] + m[1, 1] + m[2, 2], 0, 0, 0],
            [m[2, 1] - m[1, 2], m[0, 0] - m[1, 1] - m[2, 2], 0, 0],
            [m[0, 2] - m[2, 0], m[0, 1] + m[1, 0], m[1, 1] - m[0, 0] - m[2, 2], 0],
            [
                m[1, 0] - m[0, 1],
                m[0, 2] + m[2, 0],
                m[1, 2] + m[2, 1],
                m[2, 2] - m[0, 0] - m[1, 1],
            ],
        ]
    )
    _, vectors = np.linalg.eigh(k, UPLO="L")
    return np.asarray(vectors[:, -1])


def looking_at_centre(number: int) -> tuple[Array, Array]:
    """Rotation camera -> world and centre in metres of a camera on a circle, 1.5 m high."""
    azimuth = 0.4 + np.pi / 2 * number
    centre = np.array([5.0 * np.cos(azimuth), 5.0 * np.sin(azimuth), 1.5])
    forward = np.array([0.0, 0.0, 1.0]) - centre
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward], axis=1), centre


def intrinsics(number: int) -> dict[str, Any]:
    """One camera's lens in the published JSON form."""
    return {
        "focal_length": [1145.0 + number, 1143.0 + 2 * number],
        "center": [512.0 - number, 506.0 + number],
        "radial_distortion": [-0.2, 0.24 + 0.01 * number, -0.003],
        "tangential_distortion": [-0.001, -0.0015],
        "res_w": 1000,
        "res_h": 1000,
    }


def extrinsics(number: int, unit: float) -> dict[str, Any]:
    """One camera's place in the published JSON form; unit 1 for metres, 1000 for millimetres."""
    rotation, centre = looking_at_centre(number)
    return {
        "orientation": quaternion_of(rotation).tolist(),
        "translation": (centre * unit).tolist(),
    }


def by_subject_cameras(subjects: list[str], count: int = 4) -> dict[str, Any]:
    """Human3.6M's published layout: one list of lenses, places in mm by subject."""
    return {
        "note": "any text",
        "intrinsics": [{"id": str(n), **intrinsics(n)} for n in range(count)],
        "extrinsics": {
            "S2": [{}] * count,
            **{name: [extrinsics(n, 1000.0) for n in range(count)] for name in subjects},
        },
    }


def by_action_cameras(actions: dict[str, list[str]]) -> dict[str, Any]:
    """mocap17's layout: lenses by subject, places in metres by subject and action."""
    return {
        "intrinsics": {subject: [intrinsics(n) for n in range(4)] for subject in actions},
        "extrinsics": {
            subject: {key: [extrinsics(n, 1.0) for n in range(4)] for key in keys}
            for subject, keys in actions.items()
        },
    }


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def write_positions(path: Path, positions: dict[str, dict[str, Array]]) -> None:
    """A data_3d file, as VideoPose3D's prepare scripts save it."""
    np.savez_compressed(path, positions_3d=positions)


def write_keypoints(
    path: Path,
    keypoints: dict[str, dict[str, list[Array]]],
    num_joints: int = 17,
    symmetry: Any = H36M_SYMMETRY,
) -> None:
    """A data_2d file, as VideoPose3D's prepare scripts save it."""
    metadata = {"layout_name": "any", "num_joints": num_joints, "keypoints_symmetry": symmetry}
    np.savez_compressed(path, positions_2d=keypoints, metadata=metadata)


def detected(
    positions: dict[str, dict[str, Array]], joints: int, channels: int = 2, extra: int = 0
) -> dict[str, dict[str, list[Array]]]:
    """2D of every sequence and camera; some frames longer than the 3D."""
    rng = np.random.default_rng(0)
    return {
        subject: {
            action: [
                rng.uniform(0, 1, (len(x) + extra, joints, channels)).astype(np.float32)
                * ([1000.0, 1000.0, 1.0][:channels])
                for _ in range(4)
            ]
            for action, x in takes.items()
        }
        for subject, takes in positions.items()
    }


def h36m_folder(folder: Path, frames: int = 5) -> dict[str, dict[str, Array]]:
    """Human3.6M in small: 32 joints, three subjects, cameras beside it. Returns the positions."""
    positions = {
        "S1": {"Walking": cloud(1, frames, 32), "Walking 1": cloud(2, frames + 2, 32)},
        "S9": {"Sitting": cloud(3, frames, 32), "SittingDown 1": cloud(4, frames, 32)},
        "S11": {"Walking": cloud(5, frames, 32)},
    }
    write_positions(folder / "data_3d_h36m.npz", positions)
    write_json(folder / "cameras_h36m.json", by_subject_cameras(list(positions)))
    return positions


def mocap_folder(
    folder: Path, name: str = "small", joints: int = 17
) -> dict[str, dict[str, Array]]:
    """A folder in mocap17's form. Returns the positions."""
    from erd_cuda.data import h36m17

    positions = {
        "A": {"Walk 1": cloud(1, 4, joints), "Run 1": cloud(2, 3, joints)},
        "B": {"Walk 1": cloud(3, 6, joints)},
        "C": {"Jump 1": cloud(4, 5, joints)},
    }
    write_positions(folder / f"data_3d_{name}.npz", positions)
    cameras = by_action_cameras({subject: list(keys) for subject, keys in positions.items()})
    write_json(folder / f"cameras_{name}.json", cameras)
    meta = {
        "subjects_train": ["A", "B"],
        "subjects_test": ["C"],
        "fps": 30,
        "joints": list(h36m17.joints),
        "parents": list(h36m17.parents),
        "joints_left": list(h36m17.left),
        "joints_right": list(h36m17.right),
    }
    write_json(folder / f"meta_{name}.json", meta)
    return positions


def humaneva_folder(folder: Path) -> dict[str, dict[str, Array]]:
    """HumanEva-I in small, 3D only. Returns the positions."""
    positions = {
        "Train/S1": {"Walking 1 chunk0": cloud(1, 4, 15), "Jog 1 chunk2": cloud(2, 3, 15)},
        "Validate/S1": {"Walking 1 chunk0": cloud(3, 5, 15)},
    }
    write_positions(folder / "data_3d_humaneva15.npz", positions)
    return positions


def write_calibrations(folder: Path, subject: str = "S1") -> None:
    """HumanEva-I's own text files: fc 2, cc 2, alpha, kc 5, R 9 world -> camera, T 3 mm."""
    target = folder / subject / "Calibration_Data"
    target.mkdir(parents=True)
    for number in range(3):
        rotation, centre = looking_at_centre(number)
        numbers = [640.0 + number, 641.0, 320.0, 240.0, 0.0, -0.2, 0.1, 0.001, -0.002, 0.0]
        numbers += rotation.T.ravel().tolist() + (-rotation.T @ centre * 1000.0).tolist()
        (target / f"C{number + 1}.cal").write_text("\n".join(f"{n:.12g}" for n in numbers))


def seen_by(number: int, points: Array) -> Array:
    """Camera coordinates in mm of world points in metres, by the published formula R^-1 (X - t)."""
    rotation, centre = looking_at_centre(number)
    return np.einsum("ji,...j->...i", rotation, points.astype(np.float64) - centre) * 1000.0
