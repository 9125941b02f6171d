"""Samples that look as if they were in other units than a model takes: reasons to warn.

Nothing else would tell: wrong units have the right shapes, and poses come out that are merely bad.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from erd_cuda.modules.normalization import scale_of
from erd_cuda.refining.keypoint_input import KeypointInput

if TYPE_CHECKING:
    from erd_cuda.modules import ERD

__all__ = ["SAMPLE", "unit_warnings"]

SAMPLE = 4096
"""Rows that are looked at, at most."""

# In standard deviations of the training keypoints, half of which lie within one. Other people,
# other places in the picture and a detector's mistakes do not move them this far.
FAR = 10.0
# Coordinates that were normalised by the picture's or the person's size.
NORMALISED = 2.0
# In mm. People and their distances are far above, and far below when they are metres.
NEAREST_ROOT = SHORTEST_BONES = 100.0
SMALLEST_POSE = 20.0


def unit_warnings(data: KeypointInput, erd: ERD, uses_root: bool, path: Path) -> list[str]:
    """Sentences about medians over some of the samples that no sensible samples have.

    Args:
        data: samples that the model takes.
        erd: the model.
        uses_root: whether the samples' roots are used.
        path: of their file, for the sentences.
    """
    every = slice(None, None, -(-len(data) // SAMPLE) or 1)
    found = _about_keypoints(data, erd, every, path)
    depth = _median(data.root[every, 2]) if uses_root and data.root is not None else None
    if depth is not None and depth < NEAREST_ROOT:
        found.append(
            f"half of the roots in {path} are nearer than {depth:.3g} mm: are they in metres?"
            if depth > 0
            else f"half of the roots in {path} lie behind the camera: z should point forward"
        )
    spread = _median(data.pose[every].norm(dim=-1)) if data.pose is not None else None
    if spread is not None and spread < SMALLEST_POSE:
        found.append(
            f"half of the joints of the poses in {path} lie within {spread:.3g} mm of the root: "
            "are they in metres?"
        )
    sizes = data.bone_length[every] if data.bone_length is not None else torch.empty(0)
    length = _median(sizes[sizes > 0])
    if length is not None and length < SHORTEST_BONES:
        found.append(f"bone_length in {path} has the median {length:.3g} mm: is it in metres?")
    return found


def _about_keypoints(data: KeypointInput, erd: ERD, every: slice, path: Path) -> list[str]:
    keypoints = data.keypoints[every]
    distance = (keypoints - erd.mean2d.cpu()) / scale_of(erd.std2d.cpu())
    if data.confidence is not None:
        # What stands in a missing joint's place may be anything.
        seen = data.confidence[every] > 0
        keypoints, distance = keypoints[seen], distance[seen]
    far = _median(distance.abs())
    if far is None:
        return []
    if float(keypoints.abs().max()) <= NORMALISED:
        return [f"the keypoints in {path} all lie between -2 and 2: are they normalised, not px?"]
    if far > FAR:
        return [
            f"the keypoints in {path} lie {far:,.0f} standard deviations from those that the model "
            "was trained on (median): are they px in such pictures?"
        ]
    return []


def _median(values: Tensor) -> float | None:
    """None if there are no values."""
    return float(values.median()) if values.numel() else None
