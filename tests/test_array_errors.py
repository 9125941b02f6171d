"""What the functions on arrays say to bad input: one sentence, in the words of the torch ops."""

from __future__ import annotations

import dataclasses
from typing import Any

import mistakes
import numpy as np
import pytest
import torch
from array_calls import as_weights
from mistakes import (
    BATCH,
    JOINTS,
    OPS,
    Mistake,
    assert_one_sentence,
    check_message,
    check_sentence,
    ops_with,
)
from op_calls import small_weights

import erd_cuda
import erd_cuda.array as ea


def as_argument(value: Any) -> Any:
    """A tensor as an array; everything else as it is."""
    if isinstance(value, erd_cuda.PackedRegressors):
        return as_weights(value)
    return value.numpy() if isinstance(value, torch.Tensor) else value


def good_arguments(op: str) -> dict[str, Any]:
    return {name: as_argument(value) for name, value in mistakes.good_arguments(op).items()}


# Mistakes in shapes are the same for tensors and arrays.
SHAPES = [
    Mistake(m.argument, m.label, as_argument(m.value), m.error, m.came, m.expected, m.ops)
    for m in mistakes.shape_mistakes()
]


def unshareable(value: Any) -> list[tuple[str, torch.Tensor, str]]:
    """Tensors over which no array can be laid, by label, and why not."""
    tensor = torch.from_numpy(value.copy())
    return [
        ("gradient", tensor.clone().requires_grad_(), "require gradient"),
        ("bfloat16", tensor.bfloat16(), "(Unsupported dtype|bfloat16)"),
        ("meta", tensor.to("meta"), "meta"),
    ]


def type_mistakes() -> list[Mistake]:
    found = []
    for name in ("keypoints", "pose", "root", "camera", "std", "confidence"):
        ops = ops_with(name)
        value = good_arguments(ops[0])[name]
        masked = np.ma.masked_invalid(value)
        found += [
            Mistake(name, "list", value.tolist(), TypeError, "list", "NumPy or CuPy array", ops),
            Mistake(name, "number", 1.0, TypeError, "float", "NumPy or CuPy array", ops),
            Mistake(name, "scalar", np.float32(1), TypeError, "float32", "CuPy array", ops),
            Mistake(name, "class", np.ndarray, TypeError, "ndarray", "NumPy or CuPy array", ops),
            Mistake(name, "masked", masked, TypeError, "masked", "plain.*confidence of 0", ops),
            Mistake(name, "float16", value.astype("f2"), TypeError, "float16", "float32", ops),
            Mistake(name, "int64", value.astype("i8"), TypeError, "int64", "float32", ops),
            Mistake(name, "swapped", value.astype(">f4"), TypeError, ">f4", "float32", ops),
        ]
        found += [
            Mistake(
                name, label, tensor, TypeError, f"Tensor .*{reason}", "NumPy or CuPy array", ops
            )
            for label, tensor, reason in unshareable(value)
        ]
        if name != "pose":  # the other arguments are compared with the pose
            found.append(
                Mistake(name, "mixed", value.astype("f8"), TypeError, "float64", "float32", ops)
            )
    none = "NumPy or CuPy array"
    found += [
        Mistake("camera", "none", None, TypeError, "NoneType", none, OPS),
        Mistake("pose", "none", None, TypeError, "NoneType", none, OPS),
        Mistake("keypoints", "none", None, TypeError, "NoneType", none, ops_with("keypoints")),
        Mistake("root", "none", None, TypeError, "None", "array", ops_with("root")),
        Mistake("pose", "many", np.ones((1, 129, 3)), ValueError, "129 joints", "1 to 128", OPS),
        Mistake("pose", "no_joint", np.ones((1, 0, 3)), ValueError, "0 joints", "1 to 128", OPS),
    ]
    camera = erd_cuda.Camera(torch.ones(4))
    found.append(
        Mistake("camera", "torch", camera, TypeError, "erd_cuda.camera", "erd_cuda.array", OPS)
    )
    return found


def refine_mistakes() -> list[Mistake]:
    one = ("refine",)
    more, double = (as_weights(small_weights(n, t)) for n, t in WEIGHTS)
    packed = small_weights(JOINTS, torch.float32)
    return [
        Mistake("root", "word", "slove", ValueError, "slove", "solve_each_stage", one),
        Mistake("root", "given", "given", ValueError, "given", "solve_each_stage", one),
        Mistake("weights", "none", None, TypeError, "NoneType", "load_weights", one),
        Mistake("weights", "packed", packed, TypeError, "PackedRegressors", "load_weights", one),
        Mistake("weights", "joints", more, ValueError, f"{JOINTS + 1} joints", f"{JOINTS}", one),
        Mistake("weights", "dtype", double, TypeError, "float64", "float32", one),
    ]


WEIGHTS = ((JOINTS + 1, torch.float32), (JOINTS, torch.float64))
TABLE = [
    pytest.param(op, mistake, id=f"{op}-{mistake.argument}-{mistake.label}")
    for mistake in SHAPES + type_mistakes() + refine_mistakes()
    for op in mistake.ops
]


@pytest.mark.parametrize(("op", "mistake"), TABLE)
def test_message(op: str, mistake: Mistake) -> None:
    check_message(getattr(ea, op), good_arguments(op), mistake)


@pytest.mark.parametrize("op", OPS)
def test_good_arguments_are_good(op: str) -> None:
    """Else the table above could pass for the wrong reason."""
    result = getattr(ea, op)(**good_arguments(op))
    for part in result if op == "solve_residual" else (result,):
        assert np.isfinite(part).all()


CAMERA_MISTAKES = {
    "model": ((np.ones(4), np.zeros(5), "fisheye"), ValueError, "model.*fisheye.*pinhole"),
    "lens_on_pinhole": ((np.ones(4), np.zeros(5)), ValueError, "distortion"),
    "no_lens": ((np.ones(4), None, "opencv"), ValueError, r"opencv.*distortion.*\(\.\.\., 5\)"),
    "lens_shape": (
        (np.ones(4), np.zeros((2, 4)), "h36m"),
        ValueError,
        r"distortion.*\(2, 4\).*\(\.\.\., 5\)",
    ),
    "lens_type": ((np.ones(4), [0.0] * 5, "h36m"), TypeError, "distortion.*list.*array"),
    "matrix": ((np.ones((3, 3)),), ValueError, r"intrinsics.*\(3, 3\).*\(\.\.\., 4\)"),
    "intrinsics_type": (([1.0] * 4,), TypeError, "intrinsics.*list.*array"),
}


@pytest.mark.parametrize("mistake", sorted(CAMERA_MISTAKES))
def test_camera_message(mistake: str) -> None:
    arguments, error, pattern = CAMERA_MISTAKES[mistake]
    with pytest.raises(error) as raised:
        ea.Camera(*arguments)
    check_sentence(raised, pattern)


@pytest.mark.parametrize(
    ("distortion", "error", "pattern"),
    [
        (np.zeros(5), TypeError, "distortion.*float64.*float32"),
        (np.zeros((BATCH + 1, 5), np.float32), ValueError, r"distortion.*\(5,\).*broadcast"),
    ],
    ids=["dtype", "batch"],
)
def test_lens_message(distortion: Any, error: type[Exception], pattern: str) -> None:
    arguments = good_arguments("project")
    arguments["camera"] = ea.Camera(arguments["camera"], distortion, "opencv")
    with pytest.raises(error, match=pattern) as raised:
        ea.project(**arguments)
    assert_one_sentence(str(raised.value))


GOOD_WEIGHTS = {
    field.name: getattr(as_weights(small_weights(JOINTS)), field.name)
    for field in dataclasses.fields(ea.Weights)
    if field.init
}


@pytest.mark.parametrize(
    ("change", "error", "pattern"),
    [
        ({"block": "lineer"}, ValueError, "block.*lineer.*linear"),
        ({"features": "all"}, ValueError, "features.*all.*concat"),
        ({"w_in": [[1.0]]}, TypeError, "w_in.*list.*array"),
        ({"b_in": GOOD_WEIGHTS["b_in"][:, 1:]}, ValueError, r"b_in.*\(2, 8\).*\(2, 9\)"),
        ({"w_hidden": None}, ValueError, r"w_hidden.*None.*\(2, 2, 9, 9\)"),
        ({"w_out": GOOD_WEIGHTS["w_out"].astype("f4")}, TypeError, "w_out.*float32.*float64"),
        ({"w_in": GOOD_WEIGHTS["w_in"].astype("f2")}, TypeError, "w_in.*float16.*float32"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_weights_message(change: dict[str, Any], error: type[Exception], pattern: str) -> None:
    with pytest.raises(error, match=pattern) as raised:
        ea.Weights(**GOOD_WEIGHTS | change)
    assert_one_sentence(str(raised.value))


@pytest.mark.parametrize("device", ["gpu", "cpu:1", "cuda:x", ""])
def test_device_message(device: str) -> None:
    with pytest.raises(ValueError, match=r"device is '.*', expected 'cpu', 'cuda' or 'cuda:N'"):
        ea.Weights(**GOOD_WEIGHTS).to(device=device)
