"""The weights of all stages as the fused op takes them, and in the orders that kernels read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erd_cuda._columns import weight_columns
from erd_cuda._definitions import FEATURES, check_choice
from erd_cuda._fragments import PRECISIONS, collapsed_fragments, fits_tensor_cores
from erd_cuda._fragments_relu import relu_fragments
from erd_cuda._library import operators
from erd_cuda._shapes import check_packed
from erd_cuda._tensor_plan import tensor_plan

__all__ = ["CPU_PRECISIONS", "TENSOR_CORE_PRECISIONS", "ArrangedWeights", "PackedRegressors"]

_version = attrgetter("_version")

#: What `PackedRegressors.for_tensor_cores` takes.
TENSOR_CORE_PRECISIONS = tuple(name for name in PRECISIONS if name != "fp32")

#: What `PackedRegressors.for_cpu` takes.
CPU_PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True, eq=False)
class ArrangedWeights:
    """The regressors' weights once more, in the order in which a kernel reads them.

    Attributes:
        weights: for tensor cores (csrc/cuda/fragments.h) int16, the bits of 16-bit floating point
            numbers; for the CPU (csrc/core/weight_columns.h) in the model's dtype, or int32, the
            bits of pairs of bf16 numbers and of float32 biases.
        biases: float32; None where they are among the weights.
        feature_scale: power of two that the features are multiplied by; None: they are not.
    """

    weights: Tensor
    biases: Tensor | None
    feature_scale: float | None


@dataclass(frozen=True, eq=False)
class PackedRegressors:
    """All K stages' weights for `erd_cuda.refine`; `ERD.packed` makes them.

    A stage computes pose + w_out h + b_out with h = relu(w_in f + b_in), and between the two, in
    the relu block, twice h <- h + relu(w_hidden h + b_hidden). Poses and features are flattened
    joint-major. The features f, in pixels, of length F = 2 J (4 J for "concat", 5 J for
    "residual+pose"):

    - "residual": confidence * (keypoints - projection), the difference within +- residual_limit
    - "init2d": keypoints - mean2d
    - "proj2d": projection - mean2d
    - "concat": init2d, then proj2d
    - "residual+pose": residual, then the pose before the stage in mm

    A missing joint (confidence <= 0) has 0 for its residual and init2d entries.

    Treat the tensors as read-only: to change a model, change its parameters and pack again. A
    second copy is kept in the order in which the kernels read it, on a GPU with tensor cores
    (`for_tensor_cores`) and on the CPU (`for_cpu`): a call outside a compiled graph arranges it
    anew if a tensor was changed in place or given other memory, a compiled graph or a captured CUDA
    graph goes on with the old one. What torch does not count, as `tensor.data = other`, may go
    unseen by calls of one pose, which then use the weights before it.

    The first call of a precision on a GPU arranges that copy on the CPU and moves it to the GPU,
    which waits for the GPU: make one such call, or call `for_tensor_cores`, before capturing a CUDA
    graph.

    Attributes:
        block: "linear" or "relu".
        features: "residual", "concat", "init2d", "proj2d" or "residual+pose".
        w_in: (K, H, F).
        b_in: (K, H).
        w_out: (K, 3 J, H).
        b_out: (K, 3 J).
        mean2d: (J, 2) px.
        w_hidden: (K, 2, H, H), relu block only.
        b_hidden: (K, 2, H), relu block only.
        confidence_weights: whether a call's confidences weigh the joints; False: they only say
            which are missing, those of 0.
        residual_limit: px, the most that each coordinate of a residual counts; infinity in the
            paper.

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
    confidence_weights: bool = True
    residual_limit: float = math.inf

    # By precision, with the state of the tensors that it was made from.
    _arranged: dict[str, tuple[list[int], ArrangedWeights]] = field(
        default_factory=dict, init=False, repr=False
    )
    # By precision the last plan, with the state of the tensors that it points into and those
    # columns.
    _plans: dict[str, tuple[list[int], Tensor, ArrangedWeights]] = field(
        default_factory=dict, init=False, repr=False
    )
    # The same plans as `erd_cuda._tensor_plan.refine_tensors` looks for them: by what a call's
    # precision says. It refuses those that the weights have changed under.
    tensor_plans: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_packed(self)

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
        """F, the length of the feature vector: 2 J, 4 J for "concat", 5 J for "residual+pose"."""
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

    def for_tensor_cores(self, precision: str) -> ArrangedWeights | None:
        """The weights as the GPU's tensor-core kernels take them, arranged once and kept.

        Args:
            precision: "fp16", "bf16", or "split" (float32 accuracy from pairs of fp16 numbers).

        Returns:
            Tensors on the weights' device. None for sizes that no such kernel serves, for float64,
            and inside a graph that is being compiled if the weights were not arranged before.

        Raises:
            ValueError: an unknown word.
        """
        check_choice("precision", precision, TENSOR_CORE_PRECISIONS)
        fits = fits_tensor_cores(self.block, self.features, self.num_joints, self.width)
        if not fits or self.w_in.dtype != torch.float32:
            return None
        return self._kept(precision, lambda: self._fragments(precision))

    def for_cpu(self, precision: str = "fp32") -> ArrangedWeights | None:
        """The weights as the CPU's other kernels take them, arranged once and kept.

        Args:
            precision: "fp32" for the kernel for few poses, in the weights' own dtype; "bf16" for
                those that multiply rounded float32 weights.

        Returns:
            Tensors on the CPU. None for dtypes that the op does not take, where the weights'
            numbers cannot be read, as under torch.func's transforms, and inside a graph that is
            being compiled if they were not arranged before: there the kernel for many poses does
            the work in plain float32, with the same result as that for few.

        Raises:
            ValueError: an unknown word.
        """
        check_choice("precision", precision, CPU_PRECISIONS)
        dtypes = (torch.float32, torch.float64) if precision == "fp32" else (torch.float32,)
        if self.w_in.dtype not in dtypes or not self._has_numbers():
            return None
        return self._kept(f"{precision} columns", lambda: self._columns(precision))

    def plan(self, precision: str = "fp32") -> Tensor | None:
        """What the op knows of these weights on the CPU, checked and described once and kept.

        Args:
            precision: as for `for_cpu`.

        Returns:
            The ``plan`` of the private op ``refine_planned``, which points into these tensors; None
            where `for_cpu` returns None and for tensors with gaps.
        """
        state = self._state()
        last = self._plans.get(precision)
        if last is not None and last[0] == state:
            return last[1]
        columns = self.for_cpu(precision)
        if columns is None or not all(t.is_contiguous() for t in self._watched[1]):
            return None
        made = operators.plan_refine(
            *self._layers(),
            self.mean2d,
            columns.weights,
            FEATURES.index(self.features),
            PRECISIONS[precision],
            self.residual_limit,
        )
        if last is not None:
            self.tensor_plans.clear()  # the others' weights have changed, too
        self._plans[precision] = (state, made, columns)
        # Each tensor to be watched costs a single pose 2 %; residuals have no use for mean2d.
        read = [t for t in self._layers() if t is not None]
        if not self.features.startswith("residual"):
            read.append(self.mean2d)
        few = tensor_plan(made, read, columns, self.confidence_weights)
        # "auto" is plain arithmetic in any dtype; to ask for a precision takes float32.
        if precision == "fp32":
            self.tensor_plans["auto"] = few
        if self.w_in.dtype == torch.float32:
            self.tensor_plans[precision] = few
        return made

    def __getstate__(self) -> dict[str, Any]:
        # Copies are arranged and planned anew: addresses mean nothing in them.
        return {f.name: getattr(self, f.name) for f in fields(self) if f.init}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @cached_property
    def _watched(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors that have version counters, and all."""
        tensors = [t for t in (*self._layers(), self.mean2d) if t is not None]
        # Those made under inference_mode have none.
        return [t for t in tensors if not t.is_inference()], tensors

    def _has_numbers(self) -> bool:
        """Whether the weights can be read: modes (fake tensors', say) and transforms forbid it."""
        return torch.compiler.is_compiling() or (
            type(self.w_in) is Tensor
            and not self.w_in.is_meta
            and not torch._C._len_torch_dispatch_stack()
            and not torch._C._are_functorch_transforms_active()
        )

    def _kept(self, name: str, arrange: Callable[[], ArrangedWeights]) -> ArrangedWeights | None:
        kept = self._arranged.get(name)
        if torch.compiler.is_compiling():
            # A graph cannot look at version counters.
            return None if kept is None else kept[1]
        state = self._state()
        if kept is None or kept[0] != state:
            kept = self._arranged[name] = (state, arrange())
        return kept[1]

    def _fragments(self, precision: str) -> ArrangedWeights:
        w_in, b_in, w_hidden, b_hidden, w_out, b_out = self._matrices()
        if w_hidden is None or b_hidden is None:
            made = collapsed_fragments(w_in, b_in, w_out, b_out, precision)
        else:
            made = relu_fragments(w_in, b_in, w_hidden, b_hidden, w_out, b_out, precision)
        return ArrangedWeights(
            torch.from_numpy(made.weights.view(np.int16)).to(self.w_in.device),
            torch.from_numpy(made.biases).to(self.w_in.device),
            made.feature_scale,
        )

    def _columns(self, precision: str) -> ArrangedWeights:
        made = weight_columns(*self._matrices(), precision=precision)
        return ArrangedWeights(torch.from_numpy(made), None, None)

    def _matrices(self) -> tuple[Any, Any, Any, Any, Any, Any]:
        """NumPy's view of the weights and biases, layer after layer."""
        arrays = [None if t is None else t.detach().cpu().numpy() for t in self._layers()]
        w_in, b_in, w_hidden, b_hidden, w_out, b_out = arrays
        return w_in, b_in, w_hidden, b_hidden, w_out, b_out

    def _layers(self) -> tuple[Tensor | None, ...]:
        return self.w_in, self.b_in, self.w_hidden, self.b_hidden, self.w_out, self.b_out

    def _state(self) -> list[int]:
        """Numbers that change when the tensors do: in place, or to other memory."""
        counted, tensors = self._watched
        return [*map(_version, counted), *map(Tensor.data_ptr, tensors)]
