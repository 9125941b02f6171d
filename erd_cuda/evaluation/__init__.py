"""Metrics, and the tables an evaluation prints."""

from erd_cuda.data.videopose3d import DRIFTED_TAKES, without_drifted_takes
from erd_cuda.evaluation.evaluate import evaluate
from erd_cuda.evaluation.inference import StagedPoses, solved_root, staged_poses
from erd_cuda.evaluation.metrics import mpjpe, n_mpjpe, p_mpjpe, pose_errors
from erd_cuda.evaluation.table import EvaluationTable

__all__ = [
    "DRIFTED_TAKES",
    "EvaluationTable",
    "StagedPoses",
    "evaluate",
    "mpjpe",
    "n_mpjpe",
    "p_mpjpe",
    "pose_errors",
    "solved_root",
    "staged_poses",
    "without_drifted_takes",
]
