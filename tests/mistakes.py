"""Bad arguments for every op, and what a message about one must be: a single sentence with the
argument, what came and what was expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from op_calls import small_weights

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


def assert_one_sentence(message: str) -> None:
    assert "\n" not in message
    assert 20 < len(message) < 300
    # Ends with or without its full stop, and nothing after it.
    assert not re.search(r"\.\s+[A-Z]", message)


def check_message(op: Callable[..., Any], arguments: dict[str, Any], mistake: Mistake) -> None:
    """`arguments` are good but for the mistake, which is put in here."""
    with pytest.raises(mistake.error) as raised:
        op(**arguments | {mistake.argument: mistake.value})
    assert type(raised.value) is mistake.error
    message = str(raised.value)
    assert_one_sentence(message)
    assert re.search(rf"\b{mistake.argument}\b", message), message
    assert re.search(mistake.came, message), message
    assert re.search(mistake.expected, message), message


def check_sentence(raised: pytest.ExceptionInfo[Exception], pattern: str) -> None:
    assert_one_sentence(str(raised.value))
    assert re.search(pattern, str(raised.value)), str(raised.value)
