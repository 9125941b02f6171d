"""Poses from files and from procedural motion: readers, cameras, skeletons, the pose file."""

from __future__ import annotations

from erd_cuda.data.calibration import read_cameras
from erd_cuda.data.capture import Capture, Detections, action_group, assemble
from erd_cuda.data.cmu import cmu_capture
from erd_cuda.data.dataset import PoseDataset
from erd_cuda.data.extrinsics import CameraRig, CameraSet, cameras_from_json, quaternion_to_matrix
from erd_cuda.data.keypoints import project_samples
from erd_cuda.data.load import load_dataset
from erd_cuda.data.motions import MOTIONS
from erd_cuda.data.noise import DetectorNoise
from erd_cuda.data.posefile import read_poses, write_poses
from erd_cuda.data.predictions import with_predictions
from erd_cuda.data.skeleton import (
    SKELETONS,
    Skeleton,
    coco17,
    get_skeleton,
    h36m14,
    h36m16,
    h36m17,
    humaneva15,
)
from erd_cuda.data.synthetic import synthetic_capture, synthetic_motion
from erd_cuda.data.undistort import undistort_points, undistorted
from erd_cuda.data.unpickle import RefusedPickle, load_restricted, read_npz
from erd_cuda.data.videopose3d import (
    DRIFTED_TAKES,
    read_detections,
    read_positions,
    without_drifted_takes,
)

__all__ = [
    "DRIFTED_TAKES",
    "MOTIONS",
    "SKELETONS",
    "CameraRig",
    "CameraSet",
    "Capture",
    "Detections",
    "DetectorNoise",
    "PoseDataset",
    "RefusedPickle",
    "Skeleton",
    "action_group",
    "assemble",
    "cameras_from_json",
    "cmu_capture",
    "coco17",
    "get_skeleton",
    "h36m14",
    "h36m16",
    "h36m17",
    "humaneva15",
    "load_dataset",
    "load_restricted",
    "project_samples",
    "quaternion_to_matrix",
    "read_cameras",
    "read_detections",
    "read_npz",
    "read_poses",
    "read_positions",
    "synthetic_capture",
    "synthetic_motion",
    "undistort_points",
    "undistorted",
    "with_predictions",
    "without_drifted_takes",
    "write_poses",
]
