"""Projection, lens and root solve as ONNX nodes: the formulas of csrc/core once more.

Points are planar here, (N, 2 or 3, J), so that every node works along rows of joints. A camera may
be one for all samples, (1, ...), or one for each: the nodes broadcast.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .._definitions import MIN_DEPTH
from .onnx_graph import Value

# As in csrc/core/camera.h and csrc/core/root_solve.h.
_UNDISTORT_STEPS = 8
_UNDISTORT_TOLERANCE = 1e-5
_ONE_IMAGE_POINT = 1e-6

# Where k1 k2 k3 a b lie among the five coefficients, and the factor of the tangential terms.
_LENSES = {"opencv": ((0, 1, 4, 3, 2), 2.0), "h36m": ((0, 1, 2, 3, 4), 1.0)}


@dataclass(frozen=True)
class Lens:
    """Distortion of normalised image points (csrc/core/camera.h): u' = u m + (a, b) r2."""

    k1: Value
    k2: Value
    k3: Value
    a: Value
    b: Value
    tangential: float

    @classmethod
    def of(cls, coefficients: Value, model: str) -> Lens:
        """Of five coefficients (N or 1, 5) in the order of the camera model."""
        order, tangential = _LENSES[model]
        values = coefficients.reshape(-1, 5, 1).split([1] * 5, axis=1)
        k1, k2, k3, a, b = (values[i] for i in order)
        return cls(k1, k2, k3, a, b, tangential)

    def terms(self, x: Value, y: Value) -> tuple[Value, Value]:
        """r2 and m."""
        r2 = x * x + y * y
        radial = 1.0 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))
        return r2, radial + self.tangential * (self.a * x + self.b * y)

    def distort(self, x: Value, y: Value) -> tuple[Value, Value]:
        """Where the lens puts a point."""
        r2, m = self.terms(x, y)
        return x * m + self.a * r2, y * m + self.b * r2

    def jacobian(self, x: Value, y: Value) -> tuple[Value, Value, Value, Value]:
        """d distort / d (x, y), row after row."""
        r2, m = self.terms(x, y)
        slope = self.k1 + r2 * (2.0 * self.k2 + 3.0 * (r2 * self.k3))
        m_x = 2.0 * (slope * x) + self.tangential * self.a
        m_y = 2.0 * (slope * y) + self.tangential * self.b
        return (
            m + x * m_x + 2.0 * (self.a * x),
            x * m_y + 2.0 * (self.a * y),
            y * m_x + 2.0 * (self.b * x),
            m + y * m_y + 2.0 * (self.b * y),
        )

    def undistort(self, points: Value) -> Value:
        """The points that the lens puts there, by Newton's method; NaN where none is found."""
        wanted_x, wanted_y = points.split([1, 1], axis=1)
        x, y = wanted_x, wanted_y
        for _ in range(_UNDISTORT_STEPS):
            off_x, off_y = self._miss(x, y, wanted_x, wanted_y)
            xx, xy, yx, yy = self.jacobian(x, y)
            determinant = xx * yy - xy * yx
            step_x = (yy * off_x - xy * off_y) / determinant
            step_y = (xx * off_y - yx * off_x) / determinant
            x, y = x - step_x, y - step_y
        off_x, off_y = self._miss(x, y, wanted_x, wanted_y)
        xx, xy, yx, yy = self.jacobian(x, y)
        _, m = self.terms(x, y)
        close = off_x * off_x + off_y * off_y < _UNDISTORT_TOLERANCE**2
        # Newton's method may also end past a fold of the polynomial, where no ray passes.
        found = close & (m > 0.0) & (xx * yy - xy * yx > 0.0)
        return found.where(points.graph.concat([x, y], axis=1), np.nan)

    def _miss(self, x: Value, y: Value, wanted_x: Value, wanted_y: Value) -> tuple[Value, Value]:
        image_x, image_y = self.distort(x, y)
        return image_x - wanted_x, image_y - wanted_y


@dataclass(frozen=True)
class GraphCamera:
    """A camera whose numbers are values of a graph."""

    focal: Value  # (N or 1, 2, 1)
    center: Value  # (N or 1, 2, 1)
    lens: Lens | None

    @classmethod
    def of(cls, intrinsics: Value, distortion: Value | None, model: str) -> GraphCamera:
        """Of intrinsics (N or 1, 4), coefficients (N or 1, 5) or None, and the camera model."""
        focal, center = intrinsics.reshape(-1, 4, 1).split([2, 2], axis=1)
        return cls(focal, center, None if distortion is None else Lens.of(distortion, model))

    def image(self, pose: Value, root: Value) -> Value:
        """Where joints (N, 3, J) are seen, (N, 2, J) in px from the principal point."""
        xy, z = (pose + root).split([2, 1], axis=1)
        normalized = xy / z.at_least(MIN_DEPTH)
        if self.lens is not None:
            distorted = self.lens.distort(*normalized.split([1, 1], axis=1))
            normalized = normalized.graph.concat(distorted, axis=1)
        return self.focal * normalized

    def undistorted(self, offsets: Value) -> Value:
        """Normalised image points (N, 2, J) of offsets in px from the principal point."""
        measured = offsets / self.focal
        return measured if self.lens is None else self.lens.undistort(measured)


@dataclass(frozen=True)
class Joints:
    """How much each joint weighs, (N, 1, J), and whether it is seen; None where all count 1."""

    weight: Value | None
    seen: Value | None
    total: Value | float  # of the weights, (N, 1, 1)

    @classmethod
    def of(cls, confidence: Value | None, number: int, weigh: bool) -> Joints:
        """Of confidences (N, J). Not positive is missing; without ``weigh`` the others count 1."""
        if confidence is None:
            return cls(None, None, number)
        planar = confidence.reshape(-1, 1, number)
        seen = planar > 0.0
        weight = seen.where(planar, 0.0) if weigh else seen.number()
        return cls(weight, seen, weight.sum(2))

    def keep(self, values: Value) -> Value:
        """``values`` of the joints that are seen, else 0, whatever stands there."""
        return values if self.seen is None else self.seen.where(values, 0.0)

    def weighed(self, values: Value) -> Value:
        """``values`` times the joints' weights."""
        return values if self.weight is None else self.weight * values

    def mean(self, values: Value) -> Value:
        """Weighted mean (N, C, 1) of ``values`` (N, C, J)."""
        total = self.total
        if isinstance(total, Value):
            total = (total > 0.0).where(total, 1.0)
        return self.weighed(values).sum(2) / total


def solve_root(
    points: Value, pose: Value, camera: GraphCamera, joints: Joints
) -> tuple[Value, Value]:
    """The root (N, 3, 1) by least squares (csrc/core/root_solve.h), and where there is one.

    There is no count of joints: a single one has no spread, so it gives no root.

    Args:
        points: (N, 2, J), the keypoints as normalised image points, undistorted.
        pose: (N, 3, J) mm.
        camera, joints: of each sample.
    """
    graph = pose.graph
    xy, z = joints.keep(pose).split([2, 1], axis=1)
    b = points * z - xy
    mean_u, mean_b = joints.mean(points), joints.mean(b)
    from_mean = points - mean_u
    square = camera.focal * camera.focal
    weighed = joints.weighed(square * from_mean)
    spread = (weighed * from_mean).sum(1, 2)
    enough = spread > _ONE_IMAGE_POINT**2 * (joints.total * square.sum(1))
    depth = -((weighed * (b - mean_b)).sum(1, 2) / enough.where(spread, 1.0))
    root = graph.concat([mean_b + mean_u * depth, depth], axis=1)
    # Neither infinities nor NaNs are smaller than the largest number.
    finite = graph.op("Abs", root).sum(1) + spread < np.finfo(graph.dtype).max
    return root, enough & finite & (depth > 0.0)
