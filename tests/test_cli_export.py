"""erd-cuda export writes what the functions write, and says in one sentence what cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors import safe_open

from erd_cuda import ERD
from erd_cuda.array import load_weights
from erd_cuda.benchmarks.problems import make_problem
from erd_cuda.cli import main
from erd_cuda.export.signature import Signature


def test_onnx(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.onnx"
    options = ["--confidence", "--camera", "h36m", "--root", "solve"]
    assert main(["export", "cmu17-solved-root", str(path), "--format", "onnx", *options]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == f"{path}: {path.stat().st_size:,} bytes"
    assert [" ".join(line.split()) for line in said[1:]] == [
        "takes keypoints (N, 17, 2) float32 px",
        "intrinsics (N, 4) float32 fx, fy, cx, cy in px",
        "distortion (N, 5) float32 k1, k2, k3, p1, p2",
        "confidence (N, 17) float32 0 marks a missing joint",
        "gives refined (N, 17, 3) float32 mm relative to the root",
    ]
    problem = make_problem((5,), model="h36m")
    names = ("keypoints", "intrinsics", "distortion", "confidence")
    given = {name: getattr(problem, name).astype(np.float32) for name in names}
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    # In this order, and of as many dimensions.
    ports = [*session.get_inputs(), *session.get_outputs()]
    for port, line in zip(ports, said[1:], strict=True):
        shape = ", ".join(["N", *map(str, port.shape[1:])])
        assert f" {port.name} " in line and f"({shape})" in line
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


def test_the_order_of_a_packages_inputs_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `to_package` writes takes half a minute, and test_export_aoti.py tests it."""
    path = tmp_path / "model.pt2"
    monkeypatch.setattr(
        "erd_cuda.export.to_package", lambda erd, path, **_: path.write_bytes(b""), raising=False
    )
    assert main(["export", "cmu17-detected", str(path), "--format", "aoti", "--pose"]) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows[0][0] == "takes, in this order" and rows[-1][0] == "gives"
    names = [next(filter(None, row[1:])).strip() for row in rows]
    assert names == ["keypoints", "intrinsics", "root", "pose", "refined"]


def test_cpp(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "stages.safetensors"
    arguments = ["export", "cmu17-detected", str(path), "--format", "cpp"]
    assert main([*arguments, "--root", "solve_each_stage"]) == 0
    about = f"{path.stat().st_size:,} bytes, 4 stages, 17 joints, root solve_each_stage\n"
    assert capsys.readouterr().out == f"{path}: {about}"
    with safe_open(path, "np") as file:
        assert file.metadata()["root"] == "solve_each_stage"
        assert not any(name.startswith("lifter") for name in file.keys())  # noqa: SIM118
    assert main(arguments) == 0
    with safe_open(path, "np") as file:
        assert file.metadata()["root"] == "given"


def test_what_is_for_cpp_is_no_model_for_python(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "stages.safetensors"
    assert main(["export", "cmu17-detected", str(path), "--format", "cpp"]) == 0
    sentence = (
        f"{path} is an export for the C++ library (erd-cuda export --format cpp): Python reads the "
        "model file that it was made from."
    )
    for load in (ERD.from_pretrained, load_weights):
        with pytest.raises(ValueError) as raised:
            load(path)
        assert str(raised.value) == sentence
    capsys.readouterr()
    assert main(["export", str(path), str(tmp_path / "x.onnx"), "--format", "onnx"]) == 2
    assert capsys.readouterr().err == f"erd-cuda: {sentence}\n"


def test_every_input_is_described() -> None:
    everything = Signature(5, "given", "opencv", confidence=True, pose=True, bone_length=True)
    *inputs, result = everything.described()
    assert [name for name, _, _ in inputs] == everything.inputs()
    assert len(inputs) == 7 and all(meaning for _, _, meaning in inputs)
    assert inputs[-1] == ("bone_length", "(N,)", "mm, 0 where unknown")
    assert result == ("refined", "(N, 5, 3)", "mm relative to the root")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["x.safetensors", "--format", "cpp", "--camera", "h36m"], "--camera is for --format onnx"),
        (["x.bin", "--format", "aoti"], "path is 'x.bin', expected a name that ends in .pt2"),
        (["x.pt2", "--format", "onnx"], "expected a name that ends in .onnx"),
        (["x.onnx", "--format", "cpp"], "expected a name that ends in .safetensors"),
        (["nowhere/x.onnx", "--format", "onnx"], "there is no directory nowhere"),
    ],
)
def test_what_cannot_be_written(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # A model that is not there: it is not even looked for.
    assert main(["export", "nobody", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
