"""What each op says to bad input: one sentence with the argument, what came, what was expected."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from op_calls import small_weights
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import erd_cuda

OPS = ("project", "residual", "solve_root", "solve_residual", "refine")
JOINTS = 5
BATCH = 4


def good_arguments(op: str) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "keypoints": torch.rand(BATCH, JOINTS, 2) * 1000,
        "pose": torch.rand(BATCH, JOINTS, 3) * 300,
        "root": torch.tensor([0.0, 0.0, 4000.0]).repeat(BATCH, 1),
        "camera": torch.tensor([1145.0, 1143.0, 512.0, 515.0]),
    }
    if op in ("project", "solve_root", "solve_residual"):
        del arguments["keypoints" if op == "project" else "root"]
    if op in ("residual", "solve_residual"):
        arguments["std"] = torch.full((JOINTS, 2), 100.0)
    if op == "refine":
        arguments["weights"] = small_weights(JOINTS, torch.float32)
    if op != "project":
        arguments["confidence"] = torch.ones(BATCH, JOINTS)
    return arguments


@dataclass(frozen=True)
class Mistake:
    """A bad value for one argument and what the message must say about it."""

    argument: str
    label: str
    value: Any
    error: type[Exception]
    came: str
    expected: str
    ops: tuple[str, ...] = OPS


def shape_mistakes() -> list[Mistake]:
    """One wrong last axis, one wrong joint count, one missing axis and one batch that cannot
    broadcast.
    """
    per_joint = {"keypoints": 2, "pose": 3, "std": 2}
    mistakes = []
    for name, channels in per_joint.items():
        for label, shape in {
            "channels": (BATCH, JOINTS, channels + 1),
            "no_joint_axis": (channels,),
            "scalar": (),
        }.items():
            mistakes.append(shape_mistake(name, label, shape, f"(..., J|{JOINTS}, {channels})"))
        if name != "pose":
            shape = (BATCH, JOINTS + 1, channels)
            mistakes.append(shape_mistake(name, "joints", shape, f"(..., {JOINTS}, {channels})"))
    mistakes += [
        shape_mistake("confidence", "joints", (BATCH, JOINTS + 1), f"(..., {JOINTS})"),
        shape_mistake("confidence", "scalar", (), f"(..., {JOINTS})"),
        shape_mistake("root", "channels", (BATCH, 2), "(..., 3)"),
        shape_mistake("root", "scalar", (), "(..., 3)"),
        shape_mistake("camera", "channels", (BATCH, 3), "(..., 4)"),
        shape_mistake("camera", "matrix", (3, 3), "(..., 4)"),
        shape_mistake("camera", "scalar", (), "(..., 4)"),
    ]
    for name, event in (
        ("keypoints", (JOINTS, 2)),
        ("root", (3,)),
        ("camera", (4,)),
        ("std", (JOINTS, 2)),
        ("confidence", (JOINTS,)),
    ):
        mistakes.append(
            Mistake(
                name,
                "batch",
                torch.ones(BATCH + 1, *event),
                ValueError,
                rf"\({BATCH + 1},\)",
                rf"broadcast.*\({BATCH},\)",
                ops_with(name),
            )
        )
    return mistakes


def ops_with(argument: str) -> tuple[str, ...]:
    return tuple(op for op in OPS if argument in good_arguments(op))


def shape_mistake(argument: str, label: str, shape: tuple[int, ...], expected: str) -> Mistake:
    pattern = re.escape(expected).replace(re.escape(f"J|{JOINTS}"), f"(J|{JOINTS})")
    return Mistake(
        argument,
        label,
        torch.ones(shape),
        ValueError,
        re.escape(str(shape)),
        pattern,
        ops_with(argument),
    )


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


def assert_one_sentence(message: str) -> None:
    assert "\n" not in message
    assert 20 < len(message) < 300
    # Ends with or without its full stop, and nothing after it.
    assert not re.search(r"\.\s+[A-Z]", message)


@pytest.mark.parametrize(("op", "mistake"), TABLE)
def test_message(op: str, mistake: Mistake) -> None:
    arguments = good_arguments(op) | {mistake.argument: mistake.value}
    with pytest.raises(mistake.error) as raised:
        getattr(erd_cuda, op)(**arguments)
    assert type(raised.value) is mistake.error
    message = str(raised.value)
    assert_one_sentence(message)
    assert re.search(rf"\b{mistake.argument}\b", message), message
    assert re.search(mistake.came, message), message
    assert re.search(mistake.expected, message), message


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
    assert_one_sentence(str(raised.value))
    assert re.search(pattern, str(raised.value)), str(raised.value)


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
    assert_one_sentence(str(raised.value))
    assert re.search(pattern, str(raised.value)), str(raised.value)


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
    message = str(raised.value)
    assert_one_sentence(message)
    assert re.search("pose is on cuda:0, but this build of erd_cuda has no CUDA kernels", message)


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
