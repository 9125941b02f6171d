"""What may be asked of the refiner, and what is said about the rest: for tensors and arrays."""

from __future__ import annotations

from typing import Any, Final

from ._definitions import ROOTS, check_choice

#: Arithmetic of the matrix products, by the words of the public functions.
PRECISIONS: Final = ("auto", "fp32", "fp16", "bf16")


def root_mode(root: Any, kind: str) -> str:
    """One of `ROOTS` for the argument ``root``, which is "given" if it is no word.

    Args:
        kind: "tensor" or "array", for messages.

    Raises:
        TypeError: None.
        ValueError: an unknown word.
    """
    expected = f"expected a (..., 3) {kind}, 'solve' or 'solve_each_stage'"
    if root is None:
        raise TypeError(f"root is None, {expected}")
    if not isinstance(root, str):
        return "given"
    if root not in ROOTS[1:]:
        raise ValueError(f"root is {root!r}, {expected}")
    return root


def check_weights_fit(
    weights: Any, has: tuple[Any, Any], joints: int, dtype: Any, device: Any
) -> None:
    """Checks a model's weights against the pose they are to refine.

    Args:
        has: dtype and device of the weights.
        joints, dtype, device: of the pose.

    Raises:
        TypeError: they differ in dtype.
        ValueError: they differ in the number of joints, or lie on different devices.
    """
    if weights.num_joints != joints:
        raise ValueError(f"weights are for {weights.num_joints} joints, pose has {joints}")
    if has[0] != dtype:
        raise TypeError(
            f"weights have dtype {has[0]}, expected {dtype} like pose: use weights.to(pose.dtype)"
        )
    if has[1] != device:
        raise ValueError(
            f"weights are on {has[1]}, expected {device} like pose: use "
            f"weights.to(device={str(device)!r})"
        )


def kernel_precision(
    precision: str, float32: bool, on_gpu: bool, device: Any, automatic: str = "split"
) -> str:
    """What the kernels are asked for: "fp32", "split", "fp16" or "bf16".

    Args:
        precision: one of `PRECISIONS`.
        float32: whether pose is float32, not float64.
        on_gpu, device: where pose is.
        automatic: what "auto" means for float32 on a GPU.

    Raises:
        ValueError: an unknown word, or nothing there is for such a pose.
    """
    check_choice("precision", precision, PRECISIONS)
    if precision == "fp16" and not on_gpu:
        raise ValueError(
            f"precision is 'fp16', which needs a pose on a CUDA device; pose is on {device}, which "
            "takes 'auto', 'fp32' or 'bf16'"
        )
    if not float32 and precision != "auto":
        raise ValueError(f"precision is {precision!r}, expected 'auto' for a float64 pose")
    if precision == "auto":
        return automatic if float32 and on_gpu else "fp32"
    return precision
