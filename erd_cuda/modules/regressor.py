"""The residual regressor R_k, one descent direction (paper section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from erd_cuda.modules.arguments import check_choice, check_count, check_dropout

BLOCKS = ("linear", "relu")


class ResidualRegressor(nn.Module):
    """From 2D features to a 3D increment in millimetres.

    Linear(F -> width), BatchNorm, ReLU, Dropout; twice h <- h + Dropout(Linear(h)) with
    ``block="linear"`` (the paper's) or h <- h + Dropout(ReLU(Linear(h))) with ``block="relu"``;
    Linear(width -> 3 J). For F = 34, J = 17 and width 256 that is 154,163 parameters.

    Args:
        num_features: F, length of the feature vector.
        num_joints: J.
        width: width of the hidden layers.
        dropout: dropout probability, 0.25 in the paper.
        block: what a hidden block holds, "linear" or "relu".
    """

    def __init__(
        self,
        num_features: int,
        num_joints: int = 17,
        width: int = 256,
        dropout: float = 0.25,
        block: str = "linear",
    ) -> None:
        super().__init__()
        check_count("num_features", num_features)
        check_count("num_joints", num_joints)
        check_count("width", width)
        check_dropout(dropout)
        check_choice("block", block, BLOCKS)
        self.num_features = num_features
        self.num_joints = num_joints
        self.width = width
        self.block = block
        self.input = nn.Linear(num_features, width)
        self.norm = nn.BatchNorm1d(width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.output = nn.Linear(width, 3 * num_joints)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Increment (..., 3 J) in mm, joint-major, for features (..., F).

        Raises:
            ValueError: the last dimension of ``features`` is not F.
        """
        if features.dim() == 0 or features.shape[-1] != self.num_features:
            raise ValueError(
                f"features has shape {tuple(features.shape)}, expected (..., {self.num_features})."
            )
        # BatchNorm1d takes a second batch dimension for the length of a signal.
        h = self.input(features.reshape(-1, self.num_features))
        h = self.dropout(torch.relu(self.norm(h)))
        for layer in self.hidden:
            change = layer(h)
            if self.block == "relu":
                change = torch.relu(change)
            h = h + self.dropout(change)
        increment = self.output(h)
        return increment.reshape(*features.shape[:-1], 3 * self.num_joints)

    def extra_repr(self) -> str:
        return f"block={self.block!r}"
