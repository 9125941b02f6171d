"""The weights of all stages in the form that the fused op takes.

With dropout off, BatchNorm, the division by std2d and PCA are affine and fold into a regressor's
first layer. In the linear block everything behind the one ReLU is affine too, so its three
matrices become one: W_out (I + W_b) (I + W_a). The relu block keeps its hidden layers. All of it
is computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from erd_cuda.modules.arguments import check_choice
from erd_cuda.modules.normalization import scale_of
from erd_cuda.modules.pca import PCA
from erd_cuda.modules.regressor import BLOCKS, ResidualRegressor

FEATURES = ("residual", "concat", "init2d", "proj2d")


@dataclass(frozen=True, eq=False)
class PackedRegressors:
    """All K stages' weights for `erd_cuda.refine`; `ERD.packed` makes them.

    A stage computes pose + w_out h + b_out with h = relu(w_in f + b_in), and between the two, in
    the relu block, twice h <- h + relu(w_hidden h + b_hidden). Poses and features are flattened
    joint-major. The features f, in pixels, of length F = 2 J (4 J for "concat"):

    - "residual": confidence * (keypoints - projection)
    - "init2d": keypoints - mean2d
    - "proj2d": projection - mean2d
    - "concat": init2d, then proj2d

    A missing joint (confidence <= 0) has 0 for its residual and init2d entries.

    Attributes:
        block: "linear" or "relu".
        features: "residual", "concat", "init2d" or "proj2d".
        w_in: (K, H, F).
        b_in: (K, H).
        w_out: (K, 3 J, H).
        b_out: (K, 3 J).
        mean2d: (J, 2) px.
        w_hidden: (K, 2, H, H), relu block only.
        b_hidden: (K, 2, H), relu block only.

    Raises:
        ValueError: shapes that do not fit together.
    """

    block: str
    features: str
    w_in: Tensor
    b_in: Tensor
    w_out: Tensor
    b_out: Tensor
    mean2d: Tensor
    w_hidden: Tensor | None = None
    b_hidden: Tensor | None = None

    def __post_init__(self) -> None:
        check_choice("block", self.block, BLOCKS)
        check_choice("features", self.features, FEATURES)
        if self.w_in.dim() != 3:
            raise ValueError(f"w_in has shape {tuple(self.w_in.shape)}, expected (K, H, F).")
        if self.mean2d.dim() != 2 or self.mean2d.shape[1] != 2:
            raise ValueError(f"mean2d has shape {tuple(self.mean2d.shape)}, expected (J, 2).")
        stages, width, _ = self.w_in.shape
        if stages < 1 or width < 1:
            raise ValueError(
                f"w_in has shape {tuple(self.w_in.shape)}, expected (K, H, F) with at least one "
                "stage and one unit."
            )
        joints = self.mean2d.shape[0]
        expected: dict[str, tuple[int, ...] | None] = {
            "w_in": (stages, width, raw_features(self.features, joints)),
            "b_in": (stages, width),
            "w_out": (stages, 3 * joints, width),
            "b_out": (stages, 3 * joints),
            "w_hidden": (stages, 2, width, width) if self.block == "relu" else None,
            "b_hidden": (stages, 2, width) if self.block == "relu" else None,
        }
        for name, shape in expected.items():
            tensor = getattr(self, name)
            found = None if tensor is None else tuple(tensor.shape)
            if found != shape:
                raise ValueError(
                    f"{name} has shape {found}, expected {shape} for block={self.block!r}, "
                    f"features={self.features!r} and {joints} joints."
                )

    @property
    def stages(self) -> int:
        """K."""
        return self.w_in.shape[0]

    @property
    def width(self) -> int:
        """H, the width of the hidden layers."""
        return self.w_in.shape[1]

    @property
    def num_features(self) -> int:
        """F, the length of the feature vector in pixels: 2 J, or 4 J for "concat"."""
        return self.w_in.shape[2]

    @property
    def num_joints(self) -> int:
        """J."""
        return self.mean2d.shape[0]

    def to(self, *args: Any, **kwargs: Any) -> PackedRegressors:
        """The same weights on another device or in another dtype, as `torch.Tensor.to`."""
        moved: dict[str, Any] = {
            name: value.to(*args, **kwargs)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def raw_features(features: str, num_joints: int) -> int:
    """Length of a stage's feature vector before PCA."""
    return 4 * num_joints if features == "concat" else 2 * num_joints


@torch.no_grad()
def pack_regressors(
    regressors: Iterable[nn.Module],
    features: str,
    mean2d: Tensor,
    std2d: Tensor,
    pca: PCA | None,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
) -> PackedRegressors:
    """Fold and collapse trained regressors, with BatchNorm's running statistics.

    Args:
        regressors: the K stages.
        features: which features they were trained on.
        mean2d, std2d: (J, 2) px, what the features were z-scored with.
        pca: what reduced the z-scores, or None.
        dtype, device: of the result.

    Raises:
        TypeError: a stage, or a layer of one, is of another class, whose equation is unknown here.
        ValueError: the stages' blocks differ.
    """
    stages = _checked(list(regressors))
    inputs = [_folded_input(stage, features, std2d, pca) for stage in stages]
    block = stages[0].block
    hidden: list[tuple[Tensor, Tensor]] = []
    if block == "linear":
        outputs = [_collapsed_output(stage) for stage in stages]
    else:
        outputs = [_affine(stage.output) for stage in stages]
        for stage in stages:
            weights, biases = zip(*(_affine(layer) for layer in stage.hidden), strict=True)
            hidden.append((torch.stack(weights), torch.stack(biases)))

    def stacked(tensors: Iterable[Tensor]) -> Tensor:
        return torch.stack(list(tensors)).to(device=device, dtype=dtype)

    return PackedRegressors(
        block=block,
        features=features,
        w_in=stacked(weight for weight, _ in inputs),
        b_in=stacked(bias for _, bias in inputs),
        w_out=stacked(weight for weight, _ in outputs),
        b_out=stacked(bias for _, bias in outputs),
        # A copy, so that refitting the model's normalisation cannot change packed weights.
        mean2d=mean2d.detach().to(device=device, dtype=dtype, copy=True),
        w_hidden=stacked(weight for weight, _ in hidden) if hidden else None,
        b_hidden=stacked(bias for _, bias in hidden) if hidden else None,
    )


def _checked(stages: Sequence[nn.Module]) -> list[ResidualRegressor]:
    checked = []
    for k, stage in enumerate(stages):
        if not isinstance(stage, ResidualRegressor):
            raise TypeError(
                f"regressors[{k}] is a {type(stage).__name__}, expected a ResidualRegressor: "
                f"another module cannot be folded into the fused op."
            )
        checked.append(stage)
        if stage.block != checked[0].block:
            raise ValueError(
                f"regressors[{k}] has block {stage.block!r}, expected {checked[0].block!r} like "
                f"regressors[0]."
            )
    return checked


def _check_foldable(layer: nn.Module, expected: type[nn.Module]) -> None:
    # A subclass with a forward of its own (LoRA, say) or a hook computes something else.
    hooks = layer._forward_hooks or layer._forward_pre_hooks
    if type(layer).forward is not expected.forward or hooks:
        raise TypeError(
            f"a layer of a regressor is a {type(layer).__name__}{' with hooks' if hooks else ''}, "
            f"expected a plain {expected.__name__}: another module cannot be folded into the "
            "fused op."
        )


def _affine(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """A linear layer's weight and bias in float64."""
    _check_foldable(layer, nn.Linear)
    assert isinstance(layer, nn.Linear)
    return layer.weight.double(), layer.bias.double()


def _folded_input(
    regressor: ResidualRegressor, features: str, std2d: Tensor, pca: PCA | None
) -> tuple[Tensor, Tensor]:
    """BatchNorm(Linear(PCA(f / std2d))) as one affine map of f, in float64."""
    weight, bias = _affine(regressor.input)
    norm = regressor.norm
    _check_foldable(norm, nn.BatchNorm1d)
    if norm.running_mean is None or norm.running_var is None or norm.weight is None:
        raise TypeError(
            "a regressor's norm has no running statistics or no weight, expected a BatchNorm1d "
            "with both: another one cannot be folded into the fused op."
        )
    gain = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = gain[:, None] * weight
    bias = gain * (bias - norm.running_mean.double()) + norm.bias.double()
    scale = scale_of(std2d.double()).flatten()
    # "concat" sees keypoints and projection through the same normalisation, one after the other.
    halves = []
    for half in weight.chunk(2, dim=1) if features == "concat" else (weight,):
        if pca is not None:
            basis = pca.basis.double()
            # In a residual the mean has cancelled already.
            if features != "residual":
                bias = bias - half @ (basis @ pca.mean.double())
            half = half @ basis
        halves.append(half / scale)
    return torch.cat(halves, dim=1), bias


def _collapsed_output(regressor: ResidualRegressor) -> tuple[Tensor, Tensor]:
    """Output(h + B(h)) after h <- h + A(h) as one affine map of h, in float64."""
    weight, bias = _affine(regressor.output)
    for layer in reversed(regressor.hidden):
        inner_weight, inner_bias = _affine(layer)
        bias = bias + weight @ inner_bias
        weight = weight + weight @ inner_weight
    return weight, bias
