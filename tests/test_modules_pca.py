"""PCA against NumPy's singular value decomposition, which is what scikit-learn computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from erd_cuda import PCA


def correlated(count: int = 500, width: int = 34) -> torch.Tensor:
    mixing = torch.randn(width, width, dtype=torch.float64)
    scales = torch.linspace(2.0, 0.1, width, dtype=torch.float64)
    return (torch.randn(count, width, dtype=torch.float64) * scales) @ mixing + 0.7


def test_components_are_the_singular_vectors() -> None:
    z = correlated()
    pca = PCA(12).double().fit(z)
    centred = z.numpy() - z.numpy().mean(axis=0)
    _, _, vectors = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign((vectors[:12] * pca.basis.numpy()).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(pca.basis.numpy(), signs * vectors[:12], atol=1e-10)
    np.testing.assert_allclose(pca.mean.numpy(), z.numpy().mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(pca(z).numpy(), centred @ (signs * vectors[:12]).T, atol=1e-9)


def test_the_largest_entry_of_a_component_is_positive() -> None:
    basis = PCA(34).fit(correlated().float()).basis
    assert (basis.gather(1, basis.abs().argmax(1, keepdim=True)) > 0).all()


def test_all_components_lose_nothing() -> None:
    z = correlated()
    pca = PCA(34).double().fit(z)
    torch.testing.assert_close(pca(z) @ pca.basis + pca.mean, z)


def test_the_mean_cancels_from_a_difference() -> None:
    z = correlated()
    pca = PCA(9).double().fit(z)
    torch.testing.assert_close(pca.rotate(z[:100] - z[100:200]), pca(z[:100]) - pca(z[100:200]))


def test_float32_is_fitted_in_float64() -> None:
    z = correlated().float()
    single, double = PCA(12).fit(z), PCA(12).double().fit(z.double())
    assert single.basis.dtype == torch.float32
    assert torch.equal(single.basis, double.basis.float())
    assert torch.equal(single.mean, double.mean.float())


def test_more_rows_than_one_chunk() -> None:
    z = correlated(70_000, 6)
    pca = PCA(3, 6).double().fit(z)
    _, vectors = np.linalg.eigh(np.cov(z.numpy().T))
    overlap = np.abs(pca.basis.numpy() @ vectors[:, ::-1][:, :3])
    np.testing.assert_allclose(overlap, np.eye(3), atol=1e-9)


def test_a_coordinate_that_never_varies() -> None:
    z = correlated()
    z[:, 4] = 0.0
    pca = PCA(33).double().fit(z)
    assert pca.basis[:, 4].abs().max() < 1e-9


def test_before_fit_it_keeps_the_first_coordinates() -> None:
    z = torch.randn(3, 34)
    assert torch.equal(PCA(5)(z), z[:, :5])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((35,), "components is 35, expected at most 34"),
        ((0,), "components is 0, expected an integer of at least 1"),
        ((2.5,), "components is 2.5, expected an integer"),
        ((True,), "components is True, expected an integer"),
    ],
)
def test_wrong_counts(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PCA(*arguments)


def test_what_cannot_be_fitted() -> None:
    with pytest.raises(ValueError, match=r"z has shape \(5, 33\), expected \(N, 34\)"):
        PCA(3).fit(torch.zeros(5, 33))
    with pytest.raises(ValueError, match="N of at least 2"):
        PCA(3).fit(torch.zeros(1, 34))
    with pytest.raises(ValueError, match="NaN or infinity"):
        PCA(3).fit(torch.full((5, 34), float("nan")))
