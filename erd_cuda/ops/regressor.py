"""One residual regressor in train mode, with its gradients: what `ResidualRegressor` trains by."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from .._library import operators
from .autograd import must_record

#: The backward operator's results, in its order, as positions among `Regressor.apply`'s inputs: the
#: bias of the first layer has none, because BatchNorm subtracts it again.
_FEATURES, _W_IN, _B_IN, _GAMMA, _BETA, _W0, _B0, _W1, _B1, _W_OUT, _B_OUT = range(11)
_GRADIENTS = (_FEATURES, _W_IN, _GAMMA, _BETA, _W0, _W1, _B0, _B1, _W_OUT, _B_OUT)


class BatchResult(NamedTuple):
    """What a regressor makes of one batch.

    Attributes:
        increment: (N, O).
        mean: (H,) of the first layer's results over the batch; no gradient.
        variance: (H,) the same, divided by N - 1; no gradient.
    """

    increment: Tensor
    mean: Tensor
    variance: Tensor


#: The devices that the operator has kernels for.
_DEVICES = tuple(
    device
    for device in ("cpu", "cuda")
    if torch._C._dispatch_has_kernel_for_dispatch_key("erd_cuda::regressor_forward", device.upper())
)


#: The widest layer on a GPU, in bytes of one row: a tile of rows has to fit into the shared memory
#: of every GPU (csrc/cuda/training_kernels.h). 512 units in float32, 256 in float64.
_WIDEST_ON_GPU = 2048


def can_regress_batch(features: Tensor, *parameters: Tensor) -> bool:
    """Whether `regress_batch` has kernels for the dtype, the device and the width of these."""
    if features.dtype not in (torch.float32, torch.float64) or features.device.type not in _DEVICES:
        return False
    if any(p.dtype != features.dtype or p.device != features.device for p in parameters):
        return False
    widest = max(p.shape[0] for p in parameters)
    return features.device.type == "cpu" or widest * features.element_size() <= _WIDEST_ON_GPU


def draw_seeds(device: torch.device, count: int = 1) -> Tensor:
    """Seeds for dropout from torch's default generator of the device.

    They stay on the device: a captured CUDA graph draws new ones at every replay. On the CPU many
    at once are those that one after another would be.

    Args:
        device: where the seeds are drawn and stay.
        count: how many.

    Returns:
        (count,) int64, from 0 to 2^63 - 2; numbers without a unit.
    """
    return torch.randint(torch.iinfo(torch.int64).max, (count,), dtype=torch.int64, device=device)


def regress_batch(
    features: Tensor,
    w_in: Tensor,
    b_in: Tensor,
    gamma: Tensor,
    beta: Tensor,
    w_hidden0: Tensor,
    b_hidden0: Tensor,
    w_hidden1: Tensor,
    b_hidden1: Tensor,
    w_out: Tensor,
    b_out: Tensor,
    *,
    dropout: float = 0.0,
    eps: float = 1e-5,
    relu_block: bool = False,
    seed: Tensor | None = None,
) -> BatchResult:
    """Linear, BatchNorm with the batch's statistics, ReLU, dropout; two hidden blocks; Linear.

    Args:
        features: (N, F), N at least 2.
        w_in, b_in: (H, F) and (H,).
        gamma, beta: (H,), BatchNorm's weight and bias.
        w_hidden0, b_hidden0, w_hidden1, b_hidden1: (H, H) and (H,), of h <- h + dropout(W h + b),
            with a ReLU around W h + b if ``relu_block``.
        w_out, b_out: (O, H) and (O,).
        dropout: probability of dropping a unit, in [0, 1).
        eps: BatchNorm's.
        seed: (1,) int64, decides what is dropped; by default `draw_seeds`'s. Equal seeds drop the
            same units on every device.

    All tensors are float32 or all float64, on one device. Differentiable once in every tensor; the
    gradient of ``b_in`` is exactly 0, because BatchNorm takes that bias out again.
    """
    if seed is None and dropout > 0:
        seed = draw_seeds(features.device)
    parameters = (
        features, w_in, b_in, gamma, beta, w_hidden0, b_hidden0, w_hidden1, b_hidden1, w_out, b_out
    )  # fmt: skip
    if must_record(parameters):
        results = Regressor.apply(*parameters, seed, dropout, eps, relu_block)
    else:
        results = operators.regressor_forward(*parameters, seed, dropout, eps, relu_block)
    return BatchResult(*results[:3])


# Parameters are spelled out for torch.compile's sake, see autograd.py.


class Regressor(Function):
    """``apply(features, ..., seed, dropout, eps, relu_block)`` returns the operator's results."""

    @staticmethod
    def forward(
        features: Tensor,
        w_in: Tensor,
        b_in: Tensor,
        gamma: Tensor,
        beta: Tensor,
        w_hidden0: Tensor,
        b_hidden0: Tensor,
        w_hidden1: Tensor,
        b_hidden1: Tensor,
        w_out: Tensor,
        b_out: Tensor,
        seed: Tensor | None,
        dropout: float,
        eps: float,
        relu_block: bool,
    ) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = operators.regressor_forward(
            features, w_in, b_in, gamma, beta, w_hidden0, b_hidden0, w_hidden1, b_hidden1, w_out,
            b_out, seed, dropout, eps, relu_block,
        )  # fmt: skip
        return results

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        features, w_in, b_in, gamma, _, w_hidden0, _, w_hidden1, _, w_out = inputs[:10]
        ctx.dropout = inputs[12]
        _, mean, variance, inverse_std, activations, passes = output
        ctx.mark_non_differentiable(mean, variance, inverse_std, activations, passes)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            features, w_in, b_in, gamma, w_hidden0, w_hidden1, w_out, inverse_std, activations,
            passes,
        )  # fmt: skip

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 15
        features, w_in, b_in, gamma, *others = ctx.saved_tensors
        wanted = sum(1 << i for i, at in enumerate(_GRADIENTS) if ctx.needs_input_grad[at])
        arguments = (grad, features, w_in, gamma, *others, ctx.dropout, wanted)
        record = must_record((grad, *ctx.saved_tensors))
        run = RegressorBackward.apply if record else operators.regressor_backward
        results = run(*arguments)
        gradients: list[Tensor | None] = [None] * 15
        for i, at in enumerate(_GRADIENTS):
            if wanted >> i & 1:
                gradients[at] = results[i]
        if ctx.needs_input_grad[_B_IN]:
            gradients[_B_IN] = torch.zeros_like(b_in)
        return tuple(gradients)


class RegressorBackward(Function):
    """``apply(grad, ..., wanted)`` returns the gradients; itself not differentiable."""

    @staticmethod
    def forward(
        grad: Tensor,
        features: Tensor,
        w_in: Tensor,
        gamma: Tensor,
        w_hidden0: Tensor,
        w_hidden1: Tensor,
        w_out: Tensor,
        inverse_std: Tensor,
        activations: Tensor,
        passes: Tensor,
        dropout: float,
        wanted: int,
    ) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = operators.regressor_backward(
            grad, features, w_in, gamma, w_hidden0, w_hidden1, w_out, inverse_std, activations,
            passes, dropout, wanted,
        )  # fmt: skip
        return results

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        raise RuntimeError(
            "a ResidualRegressor in train mode has first derivatives only; a second was asked for"
        )


@torch.library.register_fake("erd_cuda::regressor_forward")
def _(features: Tensor, w_in: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    rows, width, outputs = features.shape[0], w_in.shape[0], arguments[7].shape[0]
    vectors = (features.new_empty(width) for _ in range(3))
    return (
        features.new_empty(rows, outputs),
        *vectors,
        features.new_empty(4, rows, (width + 63) // 64 * 64),
        features.new_empty(rows, width, dtype=torch.uint8),
    )


@torch.library.register_fake("erd_cuda::regressor_backward")
def _(
    grad: Tensor, features: Tensor, w_in: Tensor, gamma: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    w_hidden0, w_hidden1, w_out = arguments[:3]
    wanted = arguments[-1]
    # In the order of _GRADIENTS; biases have the shape of gamma.
    shapes = (features, w_in, gamma, gamma, w_hidden0, w_hidden1, gamma, gamma, w_out, w_out[:, 0])
    always = (_GRADIENTS.index(_GAMMA), _GRADIENTS.index(_BETA))
    return tuple(
        features.new_empty(like.shape if wanted >> i & 1 or i in always else 0)
        for i, like in enumerate(shapes)
    )
