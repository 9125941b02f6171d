"""Metrics against formulas that share nothing with the implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from erd_cuda.evaluation.metrics import mpjpe, n_mpjpe, p_mpjpe

METRICS = {"MPJPE": mpjpe, "P-MPJPE": p_mpjpe, "N-MPJPE": n_mpjpe}
TOLERANCE = {torch.float32: 2e-4, torch.float64: 1e-9}


def poses(count: int, joints: int = 17, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple:
    generator = torch.Generator().manual_seed(seed)
    target = 300 * torch.randn(count, joints, 3, generator=generator, dtype=torch.float64)
    prediction = target + 60 * torch.randn(
        count, joints, 3, generator=generator, dtype=torch.float64
    )
    return prediction.to(dtype), target.to(dtype)


def random_rotation(seed: int) -> torch.Tensor:
    """A proper rotation from a random unit quaternion."""
    w, x, y, z = torch.nn.functional.normalize(
        torch.randn(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=0
    ).tolist()
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )


def procrustes_by_quaternion(p: np.ndarray, q: np.ndarray) -> float:
    """Horn's closed form: the best rotation is an eigenvector of a 4 x 4 matrix, never a mirror."""
    p, q = p - p.mean(0), q - q.mean(0)
    s = p.T @ q
    trace = np.trace(s)
    antisymmetric = np.array([s[1, 2] - s[2, 1], s[2, 0] - s[0, 2], s[0, 1] - s[1, 0]])
    matrix = np.empty((4, 4))
    matrix[0, 0] = trace
    matrix[0, 1:] = matrix[1:, 0] = antisymmetric
    matrix[1:, 1:] = s + s.T - trace * np.eye(3)
    values, vectors = np.linalg.eigh(matrix)
    w, x, y, z = vectors[:, -1]
    rotation = np.array(
        [
            [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
        ]
    )
    scale = values[-1] / (p**2).sum()
    return float(np.linalg.norm(scale * p @ rotation.T - q, axis=1).mean())


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_mpjpe_is_the_mean_distance_after_root_alignment(dtype: torch.dtype) -> None:
    prediction, target = poses(50, dtype=dtype)
    expected = []
    for p, q in zip(prediction.double().tolist(), target.double().tolist(), strict=True):
        p = [[a - b for a, b in zip(joint, p[2], strict=True)] for joint in p]
        q = [[a - b for a, b in zip(joint, q[2], strict=True)] for joint in q]
        expected.append(sum(math.dist(a, b) for a, b in zip(p, q, strict=True)) / 17)
    error = mpjpe(prediction, target, root_joint=2)
    assert error.dtype == dtype
    torch.testing.assert_close(
        error.double(), torch.tensor(expected, dtype=torch.float64), atol=TOLERANCE[dtype], rtol=0
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_n_mpjpe_uses_the_best_scale(dtype: torch.dtype) -> None:
    prediction, target = poses(20, dtype=dtype, seed=1)
    p = (prediction - prediction[:, :1]).double().numpy()
    q = (target - target[:, :1]).double().numpy()
    expected = []
    for a, b in zip(p, q, strict=True):
        (scale,), *_ = np.linalg.lstsq(a.reshape(-1, 1), b.reshape(-1), rcond=None)
        expected.append(np.linalg.norm(scale * a - b, axis=1).mean())
    torch.testing.assert_close(
        n_mpjpe(prediction, target).double(),
        torch.tensor(expected, dtype=torch.float64),
        atol=TOLERANCE[dtype],
        rtol=0,
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_p_mpjpe_agrees_with_horns_quaternions(dtype: torch.dtype) -> None:
    prediction, target = poses(200, dtype=dtype, seed=2)
    # A mirrored pose is where a Procrustes without the reflection test goes wrong; a flat pose has
    # a singular covariance.
    prediction[:40, :, 0] *= -1
    prediction[40:60, :, 2] = 0
    target[50:60, :, 2] = 0
    expected = [
        procrustes_by_quaternion(p, q)
        for p, q in zip(prediction.double().numpy(), target.double().numpy(), strict=True)
    ]
    torch.testing.assert_close(
        p_mpjpe(prediction, target).double(),
        torch.tensor(expected, dtype=torch.float64),
        atol=TOLERANCE[dtype] * 10,
        rtol=0,
    )


def test_p_mpjpe_forgives_similarities_but_not_mirrors() -> None:
    _, target = poses(30)
    moved = 1.7 * target @ random_rotation(3).T + torch.tensor(
        [100.0, -50.0, 4000.0], dtype=torch.float64
    )
    assert p_mpjpe(moved, target).max() < 1e-9
    mirrored = moved * torch.tensor([-1.0, 1.0, 1.0], dtype=torch.float64)
    assert p_mpjpe(mirrored, target).min() > 10


def test_n_mpjpe_forgives_scale_and_translation_only() -> None:
    _, target = poses(30)
    assert n_mpjpe(0.3 * target + 1000, target).max() < 1e-9
    assert n_mpjpe(target @ random_rotation(4).T, target).min() > 10


def test_mpjpe_forgives_translation_only() -> None:
    _, target = poses(30)
    assert mpjpe(target + 1000, target).max() < 1e-9
    assert mpjpe(1.1 * target, target).min() > 10


def test_p_mpjpe_is_at_most_the_least_squares_fit_of_any_other_similarity() -> None:
    """Procrustes minimises squared distances: no other similarity may have a smaller sum."""
    prediction, target = poses(1, seed=5)
    rms = []
    for seed in range(200):
        rotated = prediction @ random_rotation(seed).T
        centred, goal = (
            rotated - rotated.mean(1, keepdim=True),
            target - target.mean(1, keepdim=True),
        )
        scale = (centred * goal).sum() / (centred * centred).sum()
        rms.append(((scale * centred - goal) ** 2).sum(-1).mean().sqrt())
    # The mean distance is at most the root mean square distance (Jensen).
    assert p_mpjpe(prediction, target).item() <= min(rms).item()


@pytest.mark.parametrize("name", METRICS)
def test_batch_shapes_empty_batches_and_single_poses(name: str) -> None:
    metric = METRICS[name]
    prediction, target = poses(24, seed=6)
    flat = metric(prediction, target)
    assert flat.shape == (24,)
    nested = metric(prediction.view(2, 3, 4, 17, 3), target.view(2, 3, 4, 17, 3))
    torch.testing.assert_close(nested, flat.view(2, 3, 4))
    assert metric(prediction[0], target[0]).shape == ()
    assert metric(prediction[:0], target[:0]).shape == (0,)
    assert metric(target, target).abs().max() < 1e-9


@pytest.mark.parametrize("name", METRICS)
def test_a_pose_with_nan_or_without_extent_leaves_the_others_alone(name: str) -> None:
    metric = METRICS[name]
    prediction, target = poses(8, seed=7)
    clean = metric(prediction, target)
    prediction[3, 4, 1] = float("nan")
    prediction[5] = 7.0
    error = metric(prediction, target)
    assert error[3].isnan()
    assert error[5].isfinite()
    others = [0, 1, 2, 4, 6, 7]
    assert torch.equal(error[others], clean[others])


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(
    ("prediction", "target", "error", "sentence"),
    [
        (
            torch.zeros(2, 17, 2),
            torch.zeros(2, 17, 2),
            ValueError,
            r"prediction must have the shape \(\.\.\., J, 3\)",
        ),
        (torch.zeros(3), torch.zeros(3), ValueError, r"got \(3,\)"),
        (
            torch.zeros(2, 17, 3),
            torch.zeros(3, 17, 3),
            ValueError,
            r"same shape, got \(2, 17, 3\) and \(3, 17, 3\)",
        ),
        (
            torch.zeros(2, 17, 3),
            torch.zeros(2, 17, 3).double(),
            TypeError,
            "prediction is torch.float32 but target",
        ),
        (
            torch.zeros(2, 17, 3).half(),
            torch.zeros(2, 17, 3).half(),
            TypeError,
            "must be float32 or float64",
        ),
    ],
)
def test_bad_arguments_get_one_sentence(
    name: str, prediction: torch.Tensor, target: torch.Tensor, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        METRICS[name](prediction, target)


def test_root_joint_must_be_a_joint() -> None:
    prediction, target = poses(2)
    with pytest.raises(ValueError, match=r"root_joint must be in \[0, 16\], got 17"):
        mpjpe(prediction, target, root_joint=17)
