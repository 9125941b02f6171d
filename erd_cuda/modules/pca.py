"""Principal component analysis of z-scored 2D poses (paper section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from erd_cuda.modules.arguments import check_count

_CHUNK = 65536


class PCA(nn.Module):
    """Projection of z-scored 2D poses on their first principal components, without whitening.

    The same result as scikit-learn's ``PCA(n_components)`` up to the sign of a component. Here
    the entry of largest magnitude in each component is positive. Before `fit` the components are
    the first coordinates themselves.

    Args:
        components: number of components kept, at most ``num_features``.
        num_features: length of the vectors, 2 J.

    Attributes:
        mean: buffer (num_features,), the mean of the fitted vectors.
        basis: buffer (components, num_features), orthonormal rows, largest variance first.
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, components: int, num_features: int = 34) -> None:
        super().__init__()
        check_count("num_features", num_features)
        check_count("components", components)
        if components > num_features:
            raise ValueError(
                f"components is {components}, expected at most {num_features}, the number of "
                f"coordinates of a 2D pose."
            )
        self.components = components
        self.num_features = num_features
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("basis", torch.eye(components, num_features))

    @torch.no_grad()
    def fit(self, z: Tensor) -> PCA:
        """Take mean and components from ``z`` (N, num_features); computed in float64.

        Raises:
            ValueError: wrong shape, fewer than two rows, or a NaN or infinity.
        """
        if z.dim() != 2 or z.shape[1] != self.num_features or z.shape[0] < 2:
            raise ValueError(
                f"z has shape {tuple(z.shape)}, expected (N, {self.num_features}) with N of at "
                f"least 2."
            )
        mean = torch.zeros(self.num_features, dtype=torch.float64, device=z.device)
        for chunk in z.split(_CHUNK):
            mean += chunk.double().sum(dim=0)
        mean /= z.shape[0]
        scatter = mean.new_zeros(self.num_features, self.num_features)
        for chunk in z.split(_CHUNK):
            centred = chunk.double() - mean
            scatter += centred.T @ centred
        if not torch.isfinite(scatter).all():
            raise ValueError("z holds NaN or infinity, expected finite z-scores.")
        _, vectors = torch.linalg.eigh(scatter)
        basis = vectors.flip(1)[:, : self.components].T
        # An eigenvector's sign is arbitrary; fixing it makes two runs give the same features.
        peak = basis.gather(1, basis.abs().argmax(dim=1, keepdim=True))
        self.mean.copy_(mean)
        self.basis.copy_(basis * torch.where(peak < 0, -1.0, 1.0))
        return self

    def forward(self, z: Tensor) -> Tensor:
        """Components of ``z`` (..., num_features): (z - mean) basis^T, (..., components)."""
        return self.rotate(z - self.mean)

    def rotate(self, difference: Tensor) -> Tensor:
        """Components of a difference of two z-scores, from which the mean has cancelled."""
        return difference @ self.basis.mT

    def extra_repr(self) -> str:
        return f"components={self.components}, num_features={self.num_features}"
