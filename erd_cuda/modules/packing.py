"""The weights of all stages in the form that the fused op takes.

BatchNorm, z-scoring and PCA are folded into the first layer, and the linear block is collapsed
(`erd_cuda._folding` holds the algebra); the relu block keeps its hidden layers. All of it is
computed in float64 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from erd_cuda._folding import Affine, Norm, Principal, Spread, collapse_output, fold_input
from erd_cuda.modules.normalization import scale_of
from erd_cuda.modules.packed import PackedRegressors
from erd_cuda.modules.pca import PCA
from erd_cuda.modules.regressor import ResidualRegressor

__all__ = ["pack_regressors"]


@torch.no_grad()
def pack_regressors(
    regressors: Iterable[nn.Module],
    features: str,
    mean2d: Tensor,
    std2d: Tensor,
    pca: PCA | None,
    pose: tuple[Tensor, Tensor] | None,
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
        pose: mean3d and std3d, (J, 3) mm, for "residual+pose"; else None.
        dtype, device: of the result.

    Raises:
        TypeError: a stage, or a layer of one, is of another class, whose equation is unknown here.
        ValueError: the stages' blocks differ.
    """
    stages = _checked(list(regressors))
    inputs = [_folded_input(stage, features, std2d, pca, pose) for stage in stages]
    block = stages[0].block
    hidden: list[tuple[Tensor, Tensor]] = []
    if block == "linear":
        outputs = [
            collapse_output(_affine(stage.output), [_affine(layer) for layer in stage.hidden])
            for stage in stages
        ]
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


def _affine(layer: nn.Module) -> Affine:
    """A linear layer's weight and bias in float64."""
    _check_foldable(layer, nn.Linear)
    assert isinstance(layer, nn.Linear)
    return Affine(layer.weight.double(), layer.bias.double())


def _folded_input(
    regressor: ResidualRegressor,
    features: str,
    std2d: Tensor,
    pca: PCA | None,
    pose: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """BatchNorm(Linear(PCA(f / std2d))) as one affine map of f, in float64."""
    spread = None
    if pose is not None:
        mean3d, std3d = (value.double() for value in pose)
        spread = Spread(mean3d.flatten(), scale_of(std3d).flatten())
    norm = regressor.norm
    _check_foldable(norm, nn.BatchNorm1d)
    if norm.running_mean is None or norm.running_var is None or norm.weight is None:
        raise TypeError(
            "a regressor's norm has no running statistics or no weight, expected a BatchNorm1d "
            "with both: another one cannot be folded into the fused op."
        )
    columns, bias = fold_input(
        _affine(regressor.input),
        Norm(
            norm.weight.double(),
            norm.bias.double(),
            norm.running_mean.double(),
            norm.running_var.double(),
            norm.eps,
        ),
        scale_of(std2d.double()).flatten(),
        None if pca is None else Principal(pca.mean.double(), pca.basis.double()),
        features,
        spread,
    )
    return torch.cat(columns, dim=1), bias
