"""The functions on NumPy arrays: what the torch ops compute, to the last bit, for any array."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import pytest
import torch
from array_calls import array_call, as_arrays, as_weights, same_bits
from hypothesis import given
from layouts import LAYOUTS
from op_calls import ALL_CASES, Case, small_weights
from test_ops_degenerate import degenerate_batch
from test_ops_shapes import broadcasting, oracle_call

import erd_cuda
import erd_cuda.array as ea
from erd_cuda.benchmarks.problems import CAMERA_MODELS, FEATURES, make_network, make_problem, pack

DTYPES = [torch.float32, torch.float64]
LARGE = 1000  # samples, enough for several threads


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("batch", [(LARGE,), (3, 5), ()], ids=str)
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_same_bits_as_the_torch_op(case: Case, batch: tuple[int, ...], dtype: torch.dtype) -> None:
    tensors = case.tensors(make_problem(batch, joints=6, model=case.model), dtype)
    weights = small_weights(6, dtype)
    got = array_call(case, as_arrays(tensors), as_weights(weights))
    assert isinstance(got, np.ndarray) and got.flags.writeable and got.flags.c_contiguous
    assert same_bits(got, case(tensors, weights).numpy())


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_against_the_oracle(case: Case) -> None:
    problem = make_problem((4,), joints=5, model=case.model)
    arrays = {name: getattr(problem, name) for name in case.inputs}
    want = oracle_call(case, problem)
    got = array_call(case, arrays, as_weights(small_weights(5)))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * np.abs(want).max())


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("block", ["linear", "relu"])
def test_every_stage_of_every_kind_of_network(block: str, features: str) -> None:
    problem = make_problem((7,))
    packed = pack(make_network(17, 3, 40, block, features))
    case = Case("refine", "pinhole", "solve_each_stage")
    tensors = case.tensors(problem)
    got = array_call(case, as_arrays(tensors), as_weights(packed), return_stages=True)
    want = erd_cuda.refine(
        tensors["keypoints"],
        tensors["pose"],
        "solve_each_stage",
        tensors["intrinsics"],
        packed,
        tensors["confidence"],
        return_stages=True,
    )
    assert got.shape == (3, 7, 17, 3)
    assert same_bits(got, want.numpy())


@pytest.mark.parametrize("op", ["project", "residual", "solve_root", "solve_residual", "refine"])
def test_parameters_are_those_of_the_torch_op(op: str) -> None:
    ours, theirs = (inspect.signature(getattr(m, op)).parameters for m in (ea, erd_cuda))
    assert list(ours) == list(theirs)
    for name, parameter in ours.items():
        assert parameter.kind == theirs[name].kind, name
        assert parameter.default == theirs[name].default, name


# ---- memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_layout_of_any_one_input_changes_nothing(case: Case, layout: str) -> None:
    tensors = case.tensors(make_problem((3, 5), joints=6, model=case.model), torch.float32)
    weights = as_weights(small_weights(6, torch.float32))
    want = array_call(case, as_arrays(tensors), weights)
    for name in case.inputs:
        moved = as_arrays(tensors | {name: LAYOUTS[layout](tensors[name])})
        assert same_bits(array_call(case, moved, weights), want), name


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_odd_memory(case: Case) -> None:
    """Backwards, read-only, and in records, where no float32 is aligned."""
    problem = make_problem((9,), joints=6, model=case.model)
    arrays = as_arrays(case.tensors(problem, torch.float32))
    weights = as_weights(small_weights(6, torch.float32))
    want = array_call(case, arrays, weights)

    def backwards(array: Any) -> Any:
        return np.flip(np.flip(array).copy())

    def read_only(array: Any) -> Any:
        array = array.copy()
        array.flags.writeable = False
        return array

    def in_records(array: Any) -> Any:
        records = np.zeros(
            array.shape[:1], [("flag", "u1"), ("values", array.dtype, array.shape[1:])]
        )
        records["values"] = array
        return records["values"]

    for change in (backwards, read_only, in_records):
        changed = {name: change(array) for name, array in arrays.items()}
        assert same_bits(array_call(case, changed, weights), want), change.__name__


@given(broadcasting())
def test_broadcasting_and_strides(drawn: dict[str, Any]) -> None:
    case: Case = drawn["case"]
    problem = make_problem(drawn["batch"], drawn["joints"], case.model, drawn["seed"])
    tensors = {}
    for name in case.inputs:
        value = getattr(problem, name)[drawn["selections"].get(name, ())]
        tensors[name] = LAYOUTS[drawn["layouts"][name]](torch.from_numpy(np.array(value)))
    weights = small_weights(drawn["joints"])
    got = array_call(case, as_arrays(tensors), as_weights(weights))
    assert same_bits(got, case(tensors, weights).numpy())


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_nothing_is_copied_that_can_be_read_in_place(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays with one stride from sample to sample: every second frame, the first of several
    people, x and y beside a score, one camera and std for all.
    """
    problem = make_problem((6, 4), 6, case.model)
    arrays = {}
    for name in case.inputs:
        values = getattr(problem, name)
        if name in ("intrinsics", "distortion"):
            arrays[name] = values[0, 0]
        elif name == "std":
            arrays[name] = values
        else:
            beside = np.concatenate([values, values[..., :1]], axis=-1)
            arrays[name] = beside[::2, :1, ..., :-1]
    weights = as_weights(small_weights(6))
    want = array_call(case, {name: np.array(a) for name, a in arrays.items()}, weights)
    monkeypatch.setattr(ea.memory.Place, "copy", lambda *_: pytest.fail("copied"))
    assert same_bits(array_call(case, arrays, weights), want)


def test_results_never_share_memory_with_inputs() -> None:
    case = ALL_CASES[0]
    arrays = as_arrays(case.tensors(make_problem((4,))))
    before = {name: array.copy() for name, array in arrays.items()}
    array_call(case, arrays)[:] = 0
    assert all(same_bits(arrays[name], before[name]) for name in arrays)


@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_tensors_come_in_through_dlpack(case: Case) -> None:
    tensors = case.tensors(make_problem((4,), 6, case.model))
    weights = small_weights(6)
    got = array_call(case, tensors, as_weights(weights))
    assert isinstance(got, np.ndarray)
    assert same_bits(got, case(tensors, weights).numpy())


# ---- values that have no answer ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("model", CAMERA_MODELS)
def test_every_degenerate_root_has_its_status(model: str, dtype: torch.dtype) -> None:
    tensors, expected = degenerate_batch(model, dtype)
    case = Case("solve_root", model)
    root, status = array_call(case, as_arrays(tensors), return_status=True)
    assert status.dtype == np.int32
    assert [ea.RootStatus(s) for s in status] == expected
    assert same_bits(root, case(tensors).numpy())


@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=str)
@pytest.mark.parametrize("case", ALL_CASES, ids=str)
def test_bad_values_do_what_they_do_to_the_torch_op(case: Case, poison: float) -> None:
    for name in case.inputs:
        tensors = case.tensors(make_problem((19,), 5, case.model), torch.float32)
        tensors[name].view(-1)[-1] = poison
        weights = small_weights(5, torch.float32)
        got = array_call(case, as_arrays(tensors), as_weights(weights))
        np.testing.assert_array_equal(got, case(tensors, weights).numpy(), err_msg=name)


def test_the_bundled_example_of_the_readme() -> None:
    weights = ea.load_weights(ea.bundled_models()[0])
    problem = make_problem((3,))
    arrays = as_arrays(Case("refine", "pinhole").tensors(problem, torch.float32))
    packed = erd_cuda.ERD.from_pretrained(ea.bundled_models()[0]).packed()
    want = Case("refine", "pinhole")(
        {name: torch.from_numpy(array) for name, array in arrays.items()}, packed
    )
    assert same_bits(array_call(Case("refine", "pinhole"), arrays, weights), want.numpy())
