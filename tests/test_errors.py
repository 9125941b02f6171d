"""What each op says to bad input: one sentence with the argument, what came, what was expected."""

from __future__ import annotations

import pytest
import torch
from mistakes import (
    BATCH,
    JOINTS,
    OPS,
    Mistake,
    check_message,
    check_sentence,
    good_arguments,
    ops_with,
    shape_mistakes,
)
from op_calls import small_weights
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import erd_cuda


def type_mistakes() -> list[Mistake]:
    mistakes = []
    for name in ("keypoints", "pose", "root", "camera", "std", "confidence"):
        ops = ops_with(name)
        value = good_arguments(ops[0])[name]
        mistakes += [
            Mistake(name, "list", value.tolist(), TypeError, "list", "tensor", ops),
            Mistake(name, "numpy", value.numpy(), TypeError, "ndarray", "tensor", ops),
            Mistake(name, "float16", value.half(), TypeError, "float16", "float32", ops),
            Mistake(name, "int64", value.long(), TypeError, "int64", "float32", ops),
            Mistake(name, "complex", value.cfloat(), TypeError, "complex64", "float32", ops),
        ]
        if name != "pose":  # the other arguments are compared with the pose
            mistakes += [
                Mistake(name, "mixed", value.double(), TypeError, "float64", "float32", ops),
                Mistake(name, "device", value.to("meta"), ValueError, "meta", "cpu", ops),
            ]
    mistakes += [
        Mistake("camera", "none", None, TypeError, "NoneType", "Camera|tensor"),
        Mistake("pose", "none", None, TypeError, "NoneType", "tensor"),
        Mistake("keypoints", "none", None, TypeError, "NoneType", "tensor", ops_with("keypoints")),
        Mistake("root", "none", None, TypeError, "None", "tensor", ops_with("root")),
        Mistake(
            "pose",
            "no_joints",
            torch.ones(BATCH, 0, 3),
            ValueError,
            "0 joints",
            "1 to 128",
        ),
        Mistake(
            "pose",
            "too_many_joints",
            torch.ones(BATCH, 129, 3),
            ValueError,
            "129 joints",
            "1 to 128",
        ),
    ]
    return mistakes


def refine_mistakes() -> list[Mistake]:
    refine = ("refine",)
    return [
        Mistake("root", "word", "slove", ValueError, "slove", "solve_each_stage", refine),
        Mistake("root", "number", 4000.0, TypeError, "float", "tensor", refine),
        Mistake("weights", "none", None, TypeError, "NoneType", "PackedRegressors", refine),
        Mistake("weights", "dict", {}, TypeError, "dict", "PackedRegressors", refine),
        Mistake(
            "weights",
            "module",
            torch.nn.Linear(2, 2),
            TypeError,
            "Linear",
            "PackedRegressors",
            refine,
        ),
        Mistake(
            "weights",
            "joints",
            small_weights(JOINTS + 1, torch.float32),
            ValueError,
            f"{JOINTS + 1} joints",
            f"{JOINTS}",
            refine,
        ),
        Mistake(
            "weights",
            "dtype",
            small_weights(JOINTS, torch.float64),
            TypeError,
            "float64",
            "float32",
            refine,
        ),
        Mistake(
            "weights",
            "device",
            small_weights(JOINTS, torch.float32).to("meta"),
            ValueError,
            "meta",
            "cpu",
            refine,
        ),
    ]


TABLE = [
    pytest.param(op, mistake, id=f"{op}-{mistake.argument}-{mistake.label}")
    for mistake in shape_mistakes() + type_mistakes() + refine_mistakes()
    for op in mistake.ops
]


@pytest.mark.parametrize(("op", "mistake"), TABLE)
def test_message(op: str, mistake: Mistake) -> None:
    check_message(getattr(erd_cuda, op), good_arguments(op), mistake)


@pytest.mark.parametrize("op", OPS)
def test_good_arguments_are_good(op: str) -> None:
    """Else the table above could pass for the wrong reason."""
    result = getattr(erd_cuda, op)(**good_arguments(op))
    for part in result if op == "solve_residual" else (result,):
        assert isinstance(part, Tensor) and part.isfinite().all()


INTRINSICS, DISTORTION = torch.ones(4), torch.zeros(5)
CAMERA_MISTAKES = {
    "model": ((INTRINSICS, DISTORTION, "fisheye"), ValueError, "model.*fisheye.*pinhole"),
    "model_none": ((INTRINSICS, None, None), ValueError, "model.*None.*pinhole"),
    "lens_on_pinhole": ((INTRINSICS, DISTORTION, "pinhole"), ValueError, "distortion"),
    "no_lens": ((INTRINSICS, None, "opencv"), ValueError, r"opencv.*distortion.*\(\.\.\., 5\)"),
    "lens_shape": (
        (INTRINSICS, torch.zeros(2, 4), "h36m"),
        ValueError,
        r"distortion.*\(2, 4\).*\(\.\.\., 5\)",
    ),
    "lens_type": ((INTRINSICS, [0.0] * 5, "h36m"), TypeError, "distortion.*list.*tensor"),
    "intrinsics_shape": (
        (torch.ones(3, 3), None, "pinhole"),
        ValueError,
        r"intrinsics.*\(3, 3\).*\(\.\.\., 4\)",
    ),
    "intrinsics_type": (([1.0] * 4, None, "pinhole"), TypeError, "intrinsics.*list.*tensor"),
}


@pytest.mark.parametrize("mistake", sorted(CAMERA_MISTAKES))
def test_camera_message(mistake: str) -> None:
    arguments, error, pattern = CAMERA_MISTAKES[mistake]
    with pytest.raises(error) as raised:
        erd_cuda.Camera(*arguments)
    check_sentence(raised, pattern)


@pytest.mark.parametrize(
    ("distortion", "error", "pattern"),
    [
        (torch.zeros(5, dtype=torch.float64), TypeError, "distortion.*float64.*float32"),
        (torch.zeros(5, device="meta"), ValueError, "distortion.*meta.*cpu"),
        (torch.zeros(BATCH + 1, 5), ValueError, r"distortion.*\(5,\).*broadcast"),
    ],
    ids=["dtype", "device", "batch"],
)
def test_lens_message(distortion: Tensor, error: type[Exception], pattern: str) -> None:
    arguments = good_arguments("project")
    arguments["camera"] = erd_cuda.Camera(arguments["camera"], distortion, "opencv")
    with pytest.raises(error) as raised:
        erd_cuda.project(**arguments)
    check_sentence(raised, pattern)


def test_bfloat16_outside_autocast_is_refused() -> None:
    arguments = {name: v.bfloat16() for name, v in good_arguments("project").items()}
    with pytest.raises(TypeError, match=r"pose.*bfloat16.*float32"):
        erd_cuda.project(**arguments)


@pytest.mark.parametrize("op", OPS)
def test_cuda_tensors_in_a_build_without_cuda(op: str) -> None:
    if erd_cuda.build_info()["architectures"] not in ([], ["emulated"]):
        pytest.skip("this build has CUDA kernels")
    with FakeTensorMode(allow_non_fake_inputs=True):
        arguments = {
            name: torch.empty(value.shape, device="cuda") if isinstance(value, Tensor) else value
            for name, value in good_arguments(op).items()
        }
        with pytest.raises(RuntimeError) as raised:
            getattr(erd_cuda, op)(**arguments)
    check_sentence(raised, "pose is on cuda:0, but this build of erd_cuda has no CUDA kernels")


def test_weights_that_want_a_gradient_are_refused() -> None:
    """Packed weights get none; leaving it silently out would stop a training run from learning."""
    arguments = good_arguments("refine")
    arguments["weights"].w_in.requires_grad_()
    arguments["pose"].requires_grad_()
    with pytest.raises(ValueError, match=r"weights.*gradient"):
        erd_cuda.refine(**arguments)


def test_nan_is_not_an_error() -> None:
    """Bad values are reported per sample (status, NaN in the result), never for the batch as a
    whole.
    """
    arguments = good_arguments("solve_root")
    arguments["keypoints"][1] = float("nan")
    _, status = erd_cuda.solve_root(**arguments, return_status=True)
    assert (status == erd_cuda.RootStatus.NOT_FINITE).tolist() == [False, True, False, False]
