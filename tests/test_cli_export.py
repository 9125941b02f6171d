"""erd-cuda export writes what the functions write, and says in one sentence what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from erd_cuda import ERD
from erd_cuda.benchmarks.problems import make_problem
from erd_cuda.cli import main


def test_onnx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    options = ["--confidence", "--camera", "h36m", "--root", "solve"]
    assert main(["export", "cmu17-solved-root", str(path), "--format", "onnx", *options]) == 0
    assert capsys.readouterr().out == f"{path}: {path.stat().st_size:,} bytes\n"
    problem = make_problem((5,), model="h36m")
    names = ("keypoints", "intrinsics", "distortion", "confidence")
    given = {name: getattr(problem, name).astype(np.float32) for name in names}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (got,) = session.run(None, given)
    erd = ERD.from_pretrained("cmu17-solved-root")
    with torch.no_grad():
        confidence = torch.from_numpy(given["confidence"])
        expected = erd(
            torch.from_numpy(given["keypoints"]),
            problem.camera(torch.float32),
            confidence=confidence,
        )
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-3, atol=0.1)


def test_cpp(tmp_path: Path) -> None:
    path = tmp_path / "stages.safetensors"
    arguments = ["export", "cmu17-detected", str(path), "--format", "cpp"]
    assert main([*arguments, "--root", "solve_each_stage"]) == 0
    with safe_open(path, "np") as file:
        assert file.metadata()["root"] == "solve_each_stage"
        assert not any(name.startswith("lifter") for name in file.keys())  # noqa: SIM118
    assert main(arguments) == 0
    with safe_open(path, "np") as file:
        assert file.metadata()["root"] == "given"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x.onnx", "--format", "cpp", "--camera", "opencv"], "--camera is for --format onnx and"),
        (["x.bin", "--format", "aoti"], "expected a name that ends in .pt2"),
        (["nowhere/x.onnx", "--format", "onnx"], "there is no directory nowhere"),
    ],
)
def test_what_cannot_be_written(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "cmu17-detected", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
