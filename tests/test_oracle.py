"""The oracle measures everything else, so it is itself checked, against published facts."""

from __future__ import annotations

import numpy as np
import pytest

from erd_cuda.benchmarks import oracle
from erd_cuda.benchmarks.problems import FEATURES, make_network, make_problem

OPENCV_INTRINSICS = np.array([1145.0, 1143.0, 512.5, 515.4])
OPENCV_DISTORTION = np.array([-0.207, 0.248, -0.00142, -0.00098, -0.0031])
POINTS = np.array([[300.0, -450, 2500], [-800, 620, 3100], [0, 0, 4000], [120, 905, 2750]])
# cv2.projectPoints of OpenCV 5.0.0 for the three constants above, no rotation, no translation.
OPENCV_PIXELS = [
    [648.6289210858214, 311.40869499750147],
    [222.60336421770268, 739.4119044152206],
    [512.5, 515.4],
    [561.299496235127, 883.5387994076002],
]


def test_opencv_camera_agrees_with_opencv() -> None:
    pixels = oracle.project(POINTS, np.zeros(3), OPENCV_INTRINSICS, OPENCV_DISTORTION, "opencv")
    np.testing.assert_allclose(pixels, OPENCV_PIXELS, rtol=1e-14)


def test_h36m_camera_agrees_with_its_formula_in_scalars() -> None:
    k1, k2, k3, p1, p2 = -0.207, 0.248, -0.0031, -0.00098, -0.00142
    distortion = np.array([k1, k2, k3, p1, p2])
    pixels = oracle.project(POINTS, np.zeros(3), OPENCV_INTRINSICS, distortion, "h36m")
    for (px, py, pz), pixel in zip(POINTS, pixels, strict=True):
        x, y = px / pz, py / pz
        r2 = x**2 + y**2
        radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
        tangential = p1 * x + p2 * y
        assert pixel[0] == pytest.approx(1145 * (x * (radial + tangential) + p1 * r2) + 512.5)
        assert pixel[1] == pytest.approx(1143 * (y * (radial + tangential) + p2 * r2) + 515.4)


def test_a_lens_without_coefficients_is_a_pinhole() -> None:
    problem = make_problem()
    plain = oracle.project(problem.pose, problem.root, problem.intrinsics)
    for model in ("opencv", "h36m"):
        lens = oracle.project(problem.pose, problem.root, problem.intrinsics, np.zeros(5), model)
        np.testing.assert_array_equal(lens, plain)


@pytest.mark.parametrize("model", ["opencv", "h36m"])
def test_undistortion_inverts_distortion(model: str) -> None:
    problem = make_problem((64,), model=model)
    image = (problem.keypoints - problem.intrinsics[:, None, 2:]) / problem.intrinsics[:, None, :2]
    assert problem.distortion is not None
    lens = np.broadcast_to(problem.distortion[:, None], (*image.shape[:-1], 5))
    back = oracle.distort(oracle.undistort(image, lens, model), lens, model)
    np.testing.assert_allclose(back, image, atol=1e-15)


@pytest.mark.parametrize("model", ["pinhole", "opencv", "h36m"])
def test_root_of_noiseless_keypoints_is_the_true_root(model: str) -> None:
    problem = make_problem((8,), model=model)
    keypoints = oracle.project(problem.pose, problem.root, *problem.lens)
    root, status = oracle.solve_root(keypoints, problem.pose, *problem.lens, problem.confidence)
    assert (status == oracle.OK).all()
    np.testing.assert_allclose(root, problem.root, rtol=1e-10)


def test_root_minimises_the_weighted_pixel_rows() -> None:
    problem = make_problem((1,))
    root, _ = oracle.solve_root(problem.keypoints, problem.pose, *problem.lens, problem.confidence)

    def cost(t: np.ndarray) -> float:
        fx, fy, cx, cy = problem.intrinsics[0]
        u = (problem.keypoints[0] - [cx, cy]) / [fx, fy]
        b = u * problem.pose[0, :, 2:] - problem.pose[0, :, :2]
        error = np.array([fx, fy]) * (t[:2] - u * t[2] - b)
        return float((problem.confidence[0][:, None] * error**2).sum())

    best = cost(root[0])
    for axis in range(3):
        for sign in (-1.0, 1.0):
            assert cost(root[0] + sign * np.eye(3)[axis]) > best


@pytest.mark.parametrize("block", ["linear", "relu"])
@pytest.mark.parametrize("components", [None, 5])
@pytest.mark.parametrize("features", FEATURES)
def test_folded_weights_are_the_same_function(
    features: str, components: int | None, block: str
) -> None:
    """Folding by hand, against the layers one after another: two spellings of one map from pixels
    (and mm) to mm.
    """
    network = make_network(4, 2, 16, block, features, components)
    problem = make_problem((6,), joints=4)
    projection = oracle.project(problem.pose, problem.root, *problem.lens)
    observed = (problem.keypoints - network.mean2d).reshape(6, -1)
    predicted = (projection - network.mean2d).reshape(6, -1)
    pose = problem.pose.reshape(6, -1)
    flat = {
        "residual": observed - predicted,
        "init2d": observed,
        "proj2d": predicted,
        "concat": np.concatenate([observed, predicted], axis=-1),
        "residual+pose": np.concatenate([observed - predicted, pose], axis=-1),
    }[features]
    folded = oracle.fold(network)
    for k, stage in enumerate(network.stages):
        hidden = np.maximum(flat @ folded.w_in[k].T + folded.b_in[k], 0)
        if folded.w_hidden is not None and folded.b_hidden is not None:
            for weight, bias in zip(folded.w_hidden[k], folded.b_hidden[k], strict=True):
                hidden = hidden + np.maximum(hidden @ weight.T + bias, 0)
        step = hidden @ folded.w_out[k].T + folded.b_out[k]
        expected = stage(network.inputs(problem.keypoints, projection, problem.pose, None), block)
        np.testing.assert_allclose(step, expected, rtol=1e-9, atol=1e-9)
