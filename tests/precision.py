"""How close is close: float64 to rounding, float32 within twice the error of torch's own."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def assert_exact(got: Tensor, expected: NDArray[np.float64], tolerance: float = 1e-12) -> None:
    """Within `tolerance` of the largest value: exactness to rounding in float64."""
    assert got.dtype == torch.float64
    assert tuple(got.shape) == expected.shape
    if expected.size:
        scale = np.abs(expected).max()
        np.testing.assert_allclose(got.numpy(force=True), expected, rtol=0, atol=tolerance * scale)


def relative_error(got: Tensor, expected: NDArray[np.float64]) -> float:
    """Euclidean norm of the error over that of the truth."""
    assert tuple(got.shape) == expected.shape
    error = got.double().numpy(force=True) - expected
    return float(np.linalg.norm(error) / np.linalg.norm(expected))


def assert_as_precise(
    got: Tensor, peer: Tensor, expected: NDArray[np.float64], factor: float = 2.0
) -> None:
    """Norm-wise and at the worst element at most `factor` times the peer's error, an ulp of the
    largest value aside (a peer may be exact by luck).
    """
    assert got.dtype == peer.dtype == torch.float32
    assert tuple(got.shape) == tuple(peer.shape) == expected.shape
    if not expected.size:
        return
    ulp = float(np.spacing(np.float32(np.abs(expected).max())))
    ours = np.abs(got.double().numpy(force=True) - expected)
    theirs = np.abs(peer.double().numpy(force=True) - expected)
    assert ours.max() <= factor * theirs.max() + ulp
    assert np.linalg.norm(ours) <= factor * np.linalg.norm(theirs) + ulp
