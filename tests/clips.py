"""A short walk for the viewers' tests, with made-up errors that shrink from stage to stage."""

from __future__ import annotations

import torch

from erd_cuda.data import synthetic_motion
from erd_cuda.viewer import PoseSequence
from erd_cuda.viewer.gravity import estimate_up


def make_clip(frames: int = 40) -> PoseSequence:
    """Frames of a procedural walk; the last stage has 0.3 of the lifter's error."""
    whole = synthetic_motion(
        train_subjects=0, test_subjects=1, actions=["Walking"], split="test", seconds=2.0
    )
    walk = whole.sequence(whole.takes[0], view=1)[:frames]
    generator = torch.Generator().manual_seed(3)
    wrong = 40.0 * torch.randn(walk.num_joints, 3, generator=generator)
    drift = torch.linspace(0.7, 1.3, len(walk))[:, None, None] * wrong
    return PoseSequence(
        title="Walking",
        skeleton=walk.skeleton,
        fps=walk.fps,
        keypoints=walk.keypoints,
        stages=torch.stack([walk.pose + share * drift for share in (1.0, 0.6, 0.4, 0.32, 0.3)]),
        root=walk.root,
        camera=walk.camera[0],
        truth=walk.pose,
        up=estimate_up(walk.pose + walk.root[:, None], walk.fps),
    )
