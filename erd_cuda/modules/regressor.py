"""The residual regressor R_k, one descent direction (paper section 3.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from erd_cuda._definitions import BLOCKS
from erd_cuda.modules.arguments import check_choice, check_count, check_dropout
from erd_cuda.ops.regressor import can_regress_batch, regress_batch


class ResidualRegressor(nn.Module):
    """From 2D features to a 3D increment in millimetres.

    Linear(F -> width), BatchNorm, ReLU, Dropout; twice h <- h + Dropout(Linear(h)) with
    ``block="linear"`` (the paper's) or h <- h + Dropout(ReLU(Linear(h))) with ``block="relu"``;
    Linear(width -> 3 J). For F = 34, J = 17 and width 256 that is 154,163 parameters.

    In train mode all layers run as one operator, forward and backward, with the same results as the
    torch layers but for which units dropout drops: those follow from one number, which is drawn
    from torch's generator of the device, and are the same on every device. The torch layers
    themselves run

    - in eval mode, and where BatchNorm or dropout alone is in eval mode,
    - where a layer was replaced, has no bias or was given hooks (parameters with
      ``requires_grad=False`` change nothing),
    - for a single row, which BatchNorm refuses in train mode,
    - under autocast and torch.func, and in forward mode,
    - in other dtypes than float32 and float64,
    - on a GPU, where a layer, the last one included, has more than 512 units (256 in float64).

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
        rows = features.reshape(-1, self.num_features)
        increment = self._train(rows) if self._is_plain_training(rows) else self._run_layers(rows)
        return increment.reshape(*features.shape[:-1], 3 * self.num_joints)

    def _run_layers(self, features: Tensor) -> Tensor:
        h = self.dropout(torch.relu(self.norm(self.input(features))))
        for layer in self.hidden:
            change = layer(h)
            if self.block == "relu":
                change = torch.relu(change)
            h = h + self.dropout(change)
        increment: Tensor = self.output(h)
        return increment

    def _is_plain_training(self, features: Tensor) -> bool:
        """Whether the operator does what the layers would."""
        return self.norm.training and self.dropout.training and self.trains_as_one(features)

    def trains_as_one(self, features: Tensor) -> bool:
        """Whether the operator does in train mode, on these features (N, F), what layers would."""
        linear = (self.input, *self.hidden, self.output)
        if (
            type(self.norm) is not nn.BatchNorm1d
            or type(self.dropout) is not nn.Dropout
            or len(linear) != 4
            or any(type(layer) is not nn.Linear or layer.bias is None for layer in linear)
            or self.norm.weight is None
            or self.norm.running_mean is None
            or any(_is_watched(layer) for layer in (*linear, self.norm, self.dropout))
            or _has_any_global_hook()
        ):
            return False
        if (
            torch.is_autocast_enabled(features.device.type)
            or torch._C._are_functorch_transforms_active()
            or forward_ad._current_level >= 0
        ):
            return False
        # One row has no variance: BatchNorm1d says so.
        return len(features) > 1 and can_regress_batch(
            features, *(p for layer in (*linear, self.norm) for p in layer.parameters())
        )

    def _train(self, features: Tensor) -> Tensor:
        norm = self.norm
        first, second = self.hidden
        result = regress_batch(
            features,
            self.input.weight, self.input.bias, norm.weight, norm.bias,
            first.weight, first.bias, second.weight, second.bias,  # type: ignore[arg-type]
            self.output.weight, self.output.bias,
            dropout=self.dropout.p, eps=norm.eps, relu_block=self.block == "relu",
        )  # fmt: skip
        running_mean, running_var, batches = (
            norm.running_mean, norm.running_var, norm.num_batches_tracked
        )  # fmt: skip
        assert running_mean is not None and running_var is not None and batches is not None
        with torch.no_grad():
            batches.add_(1)
            # Without a momentum BatchNorm keeps the average of all batches.
            factor: Any = norm.momentum
            if factor is None:
                factor = 1.0 / batches.to(features.dtype)
            running_mean.lerp_(result.mean, factor)
            running_var.lerp_(result.variance, factor)
        return result.increment

    def extra_repr(self) -> str:
        return f"block={self.block!r}"


def _is_watched(layer: nn.Module) -> bool:
    """Whether someone has put hooks on a layer, which only its own call would run."""
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
    )
