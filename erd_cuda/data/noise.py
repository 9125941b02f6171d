"""DetectorNoise: exact 2D made to look like a keypoint detector's, for data without detections.

The model, joint by joint, with every length as a share of the person's size in the picture (the
longer side of the box around all joints), because detectors work on a crop of fixed size:

- most joints are off by an isotropic Gaussian whose width depends on the joint: hips, thorax and
  shoulders are found best, then knees, elbows, feet and wrists;
- a few left and right joints have changed places;
- a few joints, the outliers, lie anywhere in the person's box;
- a few are missing.

One number, the width of the Gaussian, is solved for so that the expected distance between detected
and true joints, outliers and swaps included and missing joints left out, is the wanted one.

Errors of different frames are independent. A real detector's are alike in neighbouring frames, but
models that look at one frame at a time only see how errors are distributed, which stays the same.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from erd_cuda.data.dataset import PoseDataset
from erd_cuda.data.keypoints import fill_missing
from erd_cuda.data.skeleton import Skeleton

# Relative widths by the end of the joint's name. Only their order and rough ratios are meant: the
# limbs' ends move fastest, are thin and hide behind the body, so detectors miss them most.
_WIDTHS = {
    "Wrist": 1.6,
    "Ankle": 1.4,
    "Foot": 1.4,
    "Elbow": 1.2,
    "Knee": 1.0,
    "Shoulder": 0.8,
    "Hip": 0.7,
    "Pelvis": 0.7,
    "Thorax": 0.7,
}
_OTHER_WIDTH = 0.8  # spine, neck and the parts of the head

# The detector knows its own error up to this factor's standard deviation (of the logarithm), which
# gives a rank correlation near -0.6 between confidence and error; 0 would make it an oracle.
_BLUR = 1.0
# Error, in widths of the Gaussian, that a confidence of one half stands for.
_HALF_CONFIDENCE = 4.0

_MEAN_OF_RAYLEIGH = math.sqrt(math.pi / 2.0)
_MIN_BOX = 1.0  # px
_BATCH = 65536


@dataclass(frozen=True)
class DetectorNoise:
    """A simulated 2D keypoint detector.

    Attributes:
        mean_error: mean distance of the detected joints from the true ones, px; 6.7 is that of the
            fine-tuned CPN detections most papers use on Human3.6M.
        outliers: share of the detected joints that lie anywhere in the person's box.
        swaps: share of the left-right pairs of joints that have changed places. Their confidence
            does not show it: the other limb looks just as well.
        missing: share of all joints that are not found; they get confidence 0 and the mean of the
            frame's other keypoints as their place, as the readers of detections do it.

    Raises:
        TypeError: a value is not a number.
        ValueError: ``mean_error`` is not positive, a share is not in [0, 1), or the shares are
            above 1 together.
    """

    mean_error: float = 6.7
    outliers: float = 0.02
    swaps: float = 0.005
    missing: float = 0.02

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{field.name}: expected a number, got {type(value).__name__}.")
        if not (self.mean_error > 0 and math.isfinite(self.mean_error)):
            raise ValueError(
                f"mean_error: expected a positive number of px, got {self.mean_error}."
            )
        for name in ("outliers", "swaps", "missing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}: expected a share in [0, 1), got {getattr(self, name)}.")
        together = self.outliers + self.swaps + self.missing
        if together > 1:
            raise ValueError(
                f"outliers, swaps, missing: expected at most 1 together, got {together:g}."
            )

    def apply(self, dataset: PoseDataset, seed: int = 0, scale: float | None = None) -> PoseDataset:
        """The same samples with detected keypoints and confidences; ``dataset`` is left as it is.

        The draws of a sample depend on the seed, the take's name, the view and the frame alone, so
        they are the same in any part or order of the data, and for every ``mean_error``, which only
        stretches them.

        Args:
            dataset: samples with exact 2D.
            seed: seed of the noise.
            scale: width of the Gaussian from `calibrated`, to treat several sets as one detector
                would; None calibrates on ``dataset``.

        Returns:
            Samples whose ``keypoint_source`` says what was added, such as ``"pinhole+6.7px"``.
            Confidences are in [0, 1], 0 for missing joints, and fall with the error on average.

        Raises:
            TypeError: ``seed`` is not an integer.
            ValueError: there are no samples; the data have confidences, so they hold detections
                already; keypoints are not finite; the wanted error is below what outliers and swaps
                make alone; or ``scale`` is not positive.
        """
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise TypeError(f"seed: expected an integer, got {type(seed).__name__}.")
        _check_exact(dataset)
        if scale is None:
            scale = self.calibrated(dataset)
        if not (scale > 0 and math.isfinite(scale)):
            raise ValueError(f"scale: expected a positive number, got {scale}.")
        points = torch.empty(*dataset.keypoints.shape[:2], 3)
        truth, frame = dataset.keypoints.cpu(), dataset.frame.cpu().long()
        # Rows of one take and view together: each such sequence has a stream of its own.
        key = (dataset.take.long() * 256 + dataset.view.long()).cpu()
        order = torch.argsort(key, stable=True)
        present, counts = torch.unique_consecutive(key[order], return_counts=True)
        for each, rows in zip(present.tolist(), order.split(counts.tolist()), strict=True):
            take, view = divmod(each, 256)
            draws = _draws(seed, dataset.takes[take], view, frame[rows], dataset.skeleton)
            points[rows] = self._detected(truth[rows].double(), draws, scale, dataset.skeleton)
        keypoints, confidence = fill_missing(points, dataset.camera.intrinsics.cpu())
        assert confidence is not None
        device = dataset.keypoints.device
        return replace(
            dataset,
            keypoints=keypoints.to(device),
            confidence=confidence.to(device),
            keypoint_source=f"{dataset.keypoint_source}+{self.mean_error:g}px",
        )

    def calibrated(self, dataset: PoseDataset) -> float:
        """Width of the Gaussian that gives ``mean_error`` on these data.

        It is the standard deviation, along x as along y, of a joint of relative width 1, as a share
        of the person's size. Nothing random is involved: expected distances have closed forms.

        Raises:
            ValueError: as `apply`.
        """
        _check_exact(dataset)
        skeleton = dataset.skeleton
        outlying, widths, apart, ends = 0.0, [], [], []
        for truth in dataset.keypoints.cpu().split(_BATCH):
            truth = truth.double()
            low, high = _box(truth)
            outlying += float(_distance_in_box(truth - low, high - truth).mean(dim=1).sum())
            width = (high - low).amax(dim=-1) * joint_widths(skeleton)
            widths.append(width)
            left, right = list(skeleton.left), list(skeleton.right)
            apart.append((truth[:, left] - truth[:, right]).norm(dim=-1).repeat(1, 2))
            ends.append(width[:, left + right])
        count, joints = len(dataset), skeleton.num_joints
        gaussian = float(torch.cat(widths).mean()) * _MEAN_OF_RAYLEIGH
        distance, end = torch.cat(apart), torch.cat(ends) * _MEAN_OF_RAYLEIGH
        paired = distance.shape[1] / joints
        least = self.outliers * outlying / count
        if self.swaps and paired:
            least += (1 - self.outliers) * self.swaps * paired * float(distance.mean())
        if least >= self.mean_error:
            raise ValueError(
                f"mean_error: outliers and swaps alone make {least:.2f} px on {dataset.name}, so "
                f"{self.mean_error:g} px needs fewer of them."
            )

        def expected(scale: float) -> float:
            error = scale * gaussian
            if self.swaps and paired:
                # A swapped joint's distance has a Rice distribution. Its mean is taken as the root
                # of squares, at most 4 % off, in a term that is some per mille of the whole.
                swapped = torch.hypot(distance, scale * end).mean() - scale * end.mean()
                error += self.swaps * paired * float(swapped)
            return self.outliers * outlying / count + (1 - self.outliers) * error

        # The swaps hardly depend on the scale, so stepping along the Gaussian's slope converges.
        scale, slope = 0.0, (1 - self.outliers) * gaussian
        for _ in range(10):
            scale += (self.mean_error - expected(scale)) / slope
        return scale

    def _detected(self, truth: Tensor, draws: _Draws, scale: float, skeleton: Skeleton) -> Tensor:
        """x, y, confidence (n, J, 3), float32, of one sequence; x and y NaN for missing joints."""
        low, high = _box(truth)
        width = scale * (high - low).amax(dim=-1)
        shift = draws.gaussian * (width * joint_widths(skeleton))[..., None]
        outlier = (draws.outlier < self.outliers)[..., None]
        shift = torch.where(outlier, low + draws.place * (high - low) - truth, shift)
        blurred = shift.norm(dim=-1) / width * torch.exp(_BLUR * draws.blur)
        confidence = 1.0 / (1.0 + (blurred / _HALF_CONFIDENCE) ** 2)
        target = truth
        if self.swaps and skeleton.left:
            left, right = list(skeleton.left), list(skeleton.right)
            source = torch.arange(skeleton.num_joints).repeat(len(truth), 1)
            swapped = draws.swap < self.swaps
            source[:, left] = torch.where(swapped, torch.tensor(right), torch.tensor(left))
            source[:, right] = torch.where(swapped, torch.tensor(left), torch.tensor(right))
            mirrored = truth.gather(1, source[..., None].expand_as(truth))
            target = torch.where(outlier, truth, mirrored)
        missing = (draws.missing < self.missing)[..., None]
        found = torch.where(missing, torch.nan, target + shift)
        return torch.cat([found, confidence[..., None]], dim=-1).float()


def joint_widths(skeleton: Skeleton) -> Tensor:
    """Relative width of each joint's Gaussian (J,), float64, by the end of the joint's name."""
    widths = [
        next((width for end, width in _WIDTHS.items() if joint.endswith(end)), _OTHER_WIDTH)
        for joint in skeleton.joints
    ]
    return torch.tensor(widths, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class _Draws:
    """All that is random about n frames of J joints and P left-right pairs, float64.

    ``missing``, ``outlier`` (n, J), ``place`` (n, J, 2) and ``swap`` (n, P) are uniform on [0, 1),
    ``gaussian`` (n, J, 2) and ``blur`` (n, J) are standard normal.
    """

    missing: Tensor
    outlier: Tensor
    place: Tensor
    gaussian: Tensor
    blur: Tensor
    swap: Tensor


def _draws(seed: int, take: str, view: int, frame: Tensor, skeleton: Skeleton) -> _Draws:
    """The draws of some frames of one sequence, the same whichever other frames are asked for."""
    digest = hashlib.sha256(f"{seed} {view} {take}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    joints, pairs = skeleton.num_joints, len(skeleton.left)
    # Uniform numbers are drawn one after the other, so frame t has the same in a longer sequence;
    # torch's normal numbers are drawn in blocks and have not that property.
    shape = (int(frame.max()) + 1, 7 * joints + pairs)
    uniform = torch.rand(shape, generator=generator, dtype=torch.float64)[frame]
    parts = uniform.split([joints, joints, 2 * joints, 2 * joints, joints, pairs], dim=1)
    missing, outlier, place, gaussian, blur, swap = parts
    return _Draws(
        missing=missing,
        outlier=outlier,
        place=place.unflatten(1, (joints, 2)),
        gaussian=_normal(gaussian).unflatten(1, (joints, 2)),
        blur=_normal(blur),
        swap=swap,
    )


def _normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers; the uniform ones are multiples of 2^-53, of which 0 has no image."""
    return torch.special.ndtri(uniform.clamp(min=2.0**-54))


def _box(points: Tensor) -> tuple[Tensor, Tensor]:
    """Corners (n, 1, 2) of the boxes around all joints, at least 1 px wide and high."""
    low, high = points.amin(dim=1, keepdim=True), points.amax(dim=1, keepdim=True)
    return low, torch.maximum(high, low + _MIN_BOX)


def _distance_in_box(before: Tensor, behind: Tensor) -> Tensor:
    """Mean distance (n, J) between a point and a uniform one in a box.

    The point cuts the box into four rectangles, of each of which it is a corner; the integral of
    the distance from a corner has a closed form.

    Args:
        before, behind: (n, J, 2) distances of the point from the box's lower and upper sides, px.
    """
    total = torch.zeros_like(before[..., 0])
    for across in (before[..., 0], behind[..., 0]):
        for down in (before[..., 1], behind[..., 1]):
            a, b = across.clamp(min=1e-6), down.clamp(min=1e-6)
            total += a * b * torch.hypot(a, b) / 3.0
            total += (a**3 * torch.asinh(b / a) + b**3 * torch.asinh(a / b)) / 6.0
    return total / (before + behind).prod(dim=-1)


def _check_exact(dataset: PoseDataset) -> None:
    if not len(dataset):
        raise ValueError(f"dataset: {dataset.name} holds no samples to add noise to.")
    if dataset.confidence is not None:
        raise ValueError(
            f"dataset: noise is for exact 2D, but that of {dataset.name} "
            f"({dataset.keypoint_source}) has confidences, as detections do."
        )
    if not bool(dataset.keypoints.isfinite().all()):
        raise ValueError(f"dataset: {dataset.name} has 2D keypoints that are not finite.")
