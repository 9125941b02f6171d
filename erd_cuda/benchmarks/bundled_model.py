"""How far each precision is from float64 on the bundled model, in millimetres."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

import erd_cuda
from erd_cuda.data import load_dataset
from erd_cuda.evaluation.metrics import mpjpe

MODEL = "cmu17-given-root"
#: What the figures here are of; the poses of the README's table, mocap17's, are not in here.
TEST_SET = "synthetic test subjects, every 40th pose: 480 poses"


@dataclass(frozen=True)
class Reference:
    """The test poses, refined in float64 on the CPU.

    Attributes:
        keypoints, pose, root, camera: the refiner's inputs in float32; the pose is the lifter's.
        refined: (N, J, 3) float64.
        truth: (N, J, 3) float64.
    """

    keypoints: Tensor
    pose: Tensor
    root: Tensor
    camera: erd_cuda.Camera
    refined: Tensor
    truth: Tensor


@cache
def reference() -> Reference:
    data = load_dataset("synthetic", "test", stride=40)
    model = erd_cuda.ERD.from_pretrained(MODEL)
    keypoints, root = data.keypoints.float(), data.root.float()
    intrinsics = data.camera.intrinsics.float()
    distortion = data.camera.distortion
    if distortion is not None:
        distortion = distortion.float()
    camera = erd_cuda.Camera(intrinsics, distortion, data.camera.model)
    wide = erd_cuda.Camera(
        intrinsics.double(),
        None if distortion is None else distortion.double(),
        data.camera.model,
    )
    with torch.inference_mode():
        pose = model.lift(keypoints)
        refined = erd_cuda.refine(
            keypoints.double(),
            pose.double(),
            root.double(),
            wide,
            model.packed(torch.float64),
        )
    return Reference(keypoints, pose, root, camera, refined, data.pose.double())


def errors_in_mm(precision: str, device: str) -> dict[str, float]:
    """Of one precision on one device, over the joints of all poses of the test set.

    ``mpjpe_mm`` and what float64 has, ``mpjpe_float64_mm``; and how far a joint is from float64's,
    ``mean_distance_mm`` and ``largest_distance_mm``. Beside them, how many ``poses`` there are.
    """
    known = reference()
    camera = known.camera
    distortion = None if camera.distortion is None else camera.distortion.to(device)
    on_device = erd_cuda.Camera(camera.intrinsics.to(device), distortion, camera.model)
    weights = erd_cuda.ERD.from_pretrained(MODEL).packed(torch.float32, device)
    with torch.inference_mode():
        refined = erd_cuda.refine(
            known.keypoints.to(device),
            known.pose.to(device),
            known.root.to(device),
            on_device,
            weights,
            precision=precision,
        )
    refined = refined.double().cpu()
    distance = (refined - known.refined).norm(dim=-1)
    return {
        "poses": len(refined),
        "mpjpe_mm": float(mpjpe(refined, known.truth).mean()),
        "mpjpe_float64_mm": float(mpjpe(known.refined, known.truth).mean()),
        "mean_distance_mm": float(distance.mean()),
        "largest_distance_mm": float(distance.max()),
    }
