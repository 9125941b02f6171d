"""Weights read without torch: those of ERD.packed, from the same files."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from array_calls import same_bits
from erd_models import make_erd, make_lifter, scramble
from safetensors import safe_open
from safetensors.torch import save_file

import erd_cuda
import erd_cuda.array as ea
from erd_cuda import ERD, PackedRegressors
from erd_cuda.benchmarks.problems import FEATURES, make_network

FIELDS = ("w_in", "b_in", "w_hidden", "b_hidden", "w_out", "b_out", "mean2d")


def assert_same_weights(
    got: ea.Weights, want: PackedRegressors, tolerance: float | None = None
) -> None:
    """Relative to each matrix's largest entry; None for equal to the last bit."""
    assert (got.block, got.features) == (want.block, want.features)
    assert (got.stages, got.width, got.num_joints) == (want.stages, want.width, want.num_joints)
    for name in FIELDS:
        values, expected = getattr(got, name), getattr(want, name)
        if expected is None:
            assert values is None
        elif tolerance is None:
            assert same_bits(values, expected.numpy()), name
        else:
            scale = float(expected.abs().max())
            np.testing.assert_allclose(
                values, expected.numpy(), rtol=0, atol=tolerance * scale, err_msg=name
            )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("block", "features", "components"),
    list(itertools.product(("linear", "relu"), FEATURES, (None, 21))),
)
def test_float64_is_exact(block: str, features: str, components: int | None, file: Path) -> None:
    erd = make_erd(make_network(17, 3, 40, block, features, components))
    erd.save(file)
    assert_same_weights(ea.load_weights(file, np.float64), erd.packed(torch.float64), 1e-12)


@pytest.mark.parametrize("name", ea.bundled_models())
def test_bundled_models(name: str) -> None:
    erd = ERD.from_pretrained(name)
    weights = ea.load_weights(name)
    assert weights.dtype == np.float32 and weights.device == "cpu"
    # Rounded once, from float64: one last place at most, where the two float64s round apart.
    assert_same_weights(weights, erd.packed(), 1e-7)
    assert_same_weights(ea.load_weights(name, "float64"), erd.packed(torch.float64), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_halved_matrices(dtype: torch.dtype, file: Path) -> None:
    make_erd(make_network(components=20), dtype=dtype).save(file, half=True)
    want = ERD.from_pretrained(file).packed(torch.float64)
    assert_same_weights(ea.load_weights(file, np.float64), want, 1e-12)


def test_a_bfloat16_model(file: Path) -> None:
    make_erd(make_network(), dtype=torch.bfloat16).save(file)
    want = ERD.from_pretrained(file).packed(torch.float64)
    assert_same_weights(ea.load_weights(file, np.float64), want, 1e-12)


def test_constant_coordinates_are_not_scaled(file: Path) -> None:
    erd = make_erd(make_network(features="residual+pose"))
    erd.std2d[0] = 0.0
    erd.std3d[0] = 0.0
    erd.save(file)
    weights = ea.load_weights(file, np.float64)
    assert np.isfinite(weights.w_in).all()
    assert_same_weights(weights, erd.packed(), 1e-12)


def test_the_lifter_is_left_alone(file: Path) -> None:
    erd = ERD(make_lifter(), stages=2, width=24)
    scramble(erd)
    erd.eval().save(file)
    assert_same_weights(ea.load_weights(file), erd.packed(), 1e-7)


def test_to_copies() -> None:
    weights = ea.load_weights(ea.bundled_models()[0])
    double = weights.to(np.float64)
    assert double.dtype == np.float64 and weights.dtype == np.float32
    assert same_bits(double.to("float32").w_in, weights.w_in)
    assert not np.shares_memory(weights.to().w_in, weights.w_in)


def test_arrays_are_read_only_views() -> None:
    """What is arranged for tensor cores would not follow them."""
    weights = ea.load_weights(ea.bundled_models()[0])
    with pytest.raises(ValueError, match="read-only"):
        weights.w_in[0] = 0
    own = {name: getattr(weights, name) for name in FIELDS} | {"w_in": weights.w_in.copy()}
    again = ea.Weights(block=weights.block, features=weights.features, **own)
    assert np.shares_memory(again.w_in, own["w_in"]) and not again.w_in.flags.writeable
    assert own["w_in"].flags.writeable, "the caller's own array stays as it was"


def test_an_unknown_arrangement() -> None:
    weights = ea.load_weights(ea.bundled_models()[0])
    with pytest.raises(ValueError, match="precision is 'auto', expected one of 'split', 'fp16'"):
        weights.for_tensor_cores("auto")


def test_gaps_are_closed() -> None:
    """The kernels read matrices without gaps."""
    weights = ea.load_weights(ea.bundled_models()[0])
    values = {name: getattr(weights, name) for name in FIELDS} | {
        "block": weights.block,
        "features": weights.features,
        "w_in": np.asfortranarray(weights.w_in),
    }
    closed = ea.Weights(**values)
    assert closed.w_in.flags.c_contiguous and same_bits(closed.w_in, weights.w_in)


def test_names_are_those_of_the_package() -> None:
    assert ea.bundled_models() == erd_cuda.bundled_models() != []
    with pytest.raises(FileNotFoundError, match=f"no-such.*{ea.bundled_models()[0]}"):
        ea.load_weights("no-such")


# ---- broken files --------------------------------------------------------------------------------


def rewritten(file: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> Path:
    make_erd(make_network(5, 2, 9, components=4)).save(file)
    with safe_open(file, framework="pt") as opened:
        header = json.loads(opened.metadata()["erd_cuda"])
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, file, metadata={"erd_cuda": json.dumps(header)})
    return file


BROKEN: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], Any], str]] = {
    "missing": (lambda _, tensors: tensors.pop("std2d"), "lacks the tensor std2d"),
    "left_over": (
        lambda _, tensors: tensors.update(extra=torch.ones(1)),
        "tensor extra that its description knows nothing of",
    ),
    "shape": (
        lambda _, tensors: tensors.update({"regressors.1.norm.bias": torch.ones(8)}),
        r"regressors\.1\.norm\.bias .* shape \(8,\).* \(9,\)",
    ),
    "dtype": (
        lambda _, tensors: tensors.update(mean2d=torch.ones(5, 2, dtype=torch.int16)),
        "mean2d as I16, expected one of F64, F32, F16, BF16, I64",
    ),
    "features": (
        lambda header, _: header["config"].update(features="residual+pose"),
        "lacks the tensor mean3d",
    ),
    "stages": (
        lambda header, _: header["config"].update(stages=3),
        r"lacks the tensor regressors\.2",
    ),
    "pca": (lambda header, _: header["config"].update(pca=0), "cannot be built: pca is 0"),
    "block": (lambda header, _: header["config"].update(block="x"), "cannot be built: block is"),
    "no_width": (lambda header, _: header["config"].pop("width"), "cannot be built: 'width'"),
    "version": (lambda header, _: header.update(format_version=9), "version 9"),
    "no_config": (lambda header, _: header.pop("config"), "lacks config"),
}


@pytest.mark.parametrize("damage", sorted(BROKEN))
def test_broken_files(damage: str, file: Path) -> None:
    change, pattern = BROKEN[damage]
    with pytest.raises(ValueError, match=pattern) as raised:
        ea.load_weights(rewritten(file, change))
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


def test_truncated_and_foreign_files(file: Path) -> None:
    make_erd(make_network(5, 2, 9)).save(file)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        ea.load_weights(file)
    save_file({"a": torch.ones(2)}, file)
    with pytest.raises(ValueError, match="not one that erd_cuda wrote"):
        ea.load_weights(file)
