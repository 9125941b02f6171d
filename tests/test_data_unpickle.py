"""The restricted unpickler: reads what NumPy writes, runs nothing, and survives damage."""

from __future__ import annotations

import io
import math
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.lib import format as npy

from erd_cuda.data import load_restricted, read_npz

ARRAYS = npst.arrays(
    dtype=st.sampled_from(["<f4", ">f4", "<f8", "<f2", "i1", "<i8", ">u2", "?", "<U3", "S4"]),
    shape=npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
TREES = st.recursive(
    PLAIN | ARRAYS | ARRAYS.map(np.asfortranarray),
    lambda children: (
        st.lists(children, max_size=3)
        | st.tuples(children, children)
        | st.dictionaries(st.text(max_size=4), children, max_size=3)
    ),
    max_leaves=12,
)


def restricted(data: bytes) -> Any:
    return load_restricted(io.BytesIO(data))


def assert_equal_trees(left: Any, right: Any) -> None:
    if isinstance(right, np.ndarray):
        assert isinstance(left, np.ndarray)
        assert left.dtype == right.dtype and left.shape == right.shape
        np.testing.assert_array_equal(left, right)
    elif isinstance(right, dict):
        assert list(left) == list(right)
        for key in right:
            assert_equal_trees(left[key], right[key])
    elif isinstance(right, (list, tuple)):
        assert type(left) is type(right) and len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal_trees(one, other)
    else:
        assert type(left) is type(right)
        assert left == right or (math.isnan(left) and math.isnan(right))


@given(tree=TREES, protocol=st.integers(2, 5))
def test_reads_what_numpy_pickles(tree: Any, protocol: int) -> None:
    assert_equal_trees(restricted(pickle.dumps(tree, protocol)), tree)


def test_scalars_and_object_arrays() -> None:
    ragged = np.empty(2, dtype=object)
    ragged[:] = [np.zeros(3), {"a": np.arange(2)}]
    grid = np.array([[1, "x"], [None, 2.5]], dtype=object)
    box = np.array({"key": [1, 2]}, dtype=object)
    tree = {"scalar": np.float32(1.5), "ragged": ragged, "grid": grid, "box": box}
    result = restricted(pickle.dumps(tree, 4))
    assert result["scalar"] == 1.5 and type(result["scalar"]) is float
    assert_equal_trees(result["ragged"], [np.zeros(3), {"a": np.arange(2)}])
    assert result["grid"] == [[1, "x"], [None, 2.5]]
    assert result["box"] == {"key": [1, 2]}


@pytest.mark.parametrize(("core", "protocol"), [("numpy.core", 2), ("numpy._core", 3)])
def test_names_of_numpy_1_and_2(core: str, protocol: int) -> None:
    # These protocols spell module names in plain lines, so they can be exchanged in the bytes.
    data = pickle.dumps([np.arange(6.0).reshape(2, 3), np.float64(2.0)], protocol)
    data = data.replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", core.encode())
    assert core.encode() + b".multiarray\n" in data
    result = restricted(data)
    np.testing.assert_array_equal(result[0], np.arange(6.0).reshape(2, 3))
    assert result[1] == 2.0


def test_byte_strings_of_python_2() -> None:
    data = pickle.dumps(np.arange(3, dtype="<i4"), 2)
    # Python 2 wrote array bytes as a plain string, without _codecs.encode.
    start = data.index(b"h\x03X")
    end = data.index(b"h\x05\x86", start)
    raw = np.arange(3, dtype="<i4").tobytes()
    old = data[:start] + b"U" + bytes([len(raw)]) + raw + data[data.index(b"R", end) + 1 :]
    old = old.replace(b"q\x14", b"", 1)  # the result of encode was memoised
    np.testing.assert_array_equal(restricted(old), np.arange(3))


class Runs:
    """Unpickling this with the standard machine would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("nesting", ["bare", "in a dictionary", "in an object array", "as a key"])
def test_code_in_a_pickle_does_not_run(nesting: str, tmp_path: Path) -> None:
    witness = tmp_path / "it ran"
    evil = Runs(witness)
    smuggled = np.empty(3, dtype=object)
    smuggled[:] = [np.zeros(2), evil, 1]
    tree: Any = {
        "bare": evil,
        "in a dictionary": {"S1": {"Walking": evil}},
        "in an object array": {"S1": {"Walking": smuggled}},
        "as a key": {evil: 1},
    }[nesting]
    path = tmp_path / "data_3d_h36m.npz"
    np.savez(path, positions_3d=np.array(tree, dtype=object))
    with pytest.raises(ValueError) as caught:
        read_npz(path, ["positions_3d"])
    message = str(caught.value)
    assert message.startswith(f"{path}: entry 'positions_3d' is a pickle that asks for ")
    assert "system; only NumPy arrays and builtin containers are read." in message
    assert "\n" not in message
    assert not witness.exists()
    np.load(path, allow_pickle=True)["positions_3d"]
    assert witness.exists(), "the pickle was harmless, so this test shows nothing"


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def array_pickle(dtype: bytes, state: bytes) -> bytes:
    """An array with a hand-written dtype and state, protocol 2."""
    start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR"
    kind = b"(cnumpy\ndtype\n(" + dtype + b"K\x00K\x01tR"
    return opcodes(start, b"(K\x01", state.replace(b"DTYPE", kind[1:]), b"tb")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pickle.dumps(print), "asks for builtins.print"),
        (pickle.dumps({1, 2}, 4), "holds a set"),
        (pickle.dumps(frozenset()), "holds a frozenset"),
        (pickle.dumps(1j), "asks for builtins.complex"),
        (pickle.dumps(bytearray(b"x"), 5), "holds a bytearray"),
        (pickle.dumps(np.zeros(2, "c16")), "type 'c16'"),
        (pickle.dumps(np.zeros(2, "M8[s]")), "type 'M8'"),
        (pickle.dumps(np.zeros(2, [("a", "f4")])), "type 'V4'"),
        (pickle.dumps(np.zeros(2, [("a", "O")])), "type 'V8'"),
        (opcodes(b"cnumpy\nndarray\n"), "outside an array"),
        (opcodes(b"cnumpy\nndarray\n", b")R"), "array without a type"),
        (opcodes(b"cnumpy\ndtype\n", b"U\x02f4\x85R"), "outside an array"),
        # BUILD on what find_class returned: would set attributes of a function.
        (opcodes(b"cnumpy\ndtype\n", b"}U\x01aK\x01s", b"b"), "tries to change a function"),
        # NEWOBJ with something that is no class.
        (opcodes(b"cnumpy\ndtype\n", b")\x81"), "damaged or truncated pickle"),
        # More elements than bytes, elements that are no objects, a negative size.
        (array_pickle(b"U\x02f8", b"(K\x7ftDTYPE\x89U\x08aaaaaaaa"), "do not fit its type"),
        (array_pickle(b"U\x02O8", b"(K\x01tDTYPE\x89U\x08aaaaaaaa"), "object array whose elements"),
        (array_pickle(b"U\x02O8", b"(K\x02tDTYPE\x89]K\x01a"), "object array whose elements"),
        (array_pickle(b"U\x02f8", b"(J\xff\xff\xff\xfftDTYPE\x89U\x00"), "impossible shape"),
        (array_pickle(b"U\x02f8", b"K\x01DTYPE\x89U\x08aaaaaaaa"), "impossible shape"),
        (array_pickle(b"U\x02U0", b"(K\x01tDTYPE\x89U\x00"), "type 'U0'"),
        (array_pickle(b"U\x02f8", b"(K\x01tDTYPE\x89K\x05"), "content is not bytes"),
        (array_pickle(b"U\x02f8", b"(K\x01tK\x05\x89U\x00"), "array without a type"),
        (opcodes(b"]q\x00h\x00a"), "more than 32 deep"),  # a list that holds itself
        (opcodes(b"]" * 100, b"a" * 99), "more than 32 deep"),
        # A memo index of two billion: 16 GB of table in the C machine.
        (opcodes(b"K\x01", b"r\xff\xff\xff\x7f", b"]\x86"), None),
        # Bytes that claim to be 2 TB.
        (opcodes(b"\x96\x00\x00\x00\x00\x00\x02\x00\x00"), "damaged or truncated"),
        (opcodes(b"\x8e\x00\x00\x00\x00\x00\x02\x00\x00"), "damaged or truncated"),
        (b"", "damaged or truncated"),
        (b"not a pickle", "damaged or truncated"),
    ],
)
def test_anything_else_is_refused(data: bytes, message: str | None) -> None:
    if message is None:
        assert restricted(data) == (1, [])
        return
    with pytest.raises(ValueError, match=message):
        restricted(data)


def test_shared_nodes_do_not_unfold() -> None:
    node: Any = [0] * 100
    for _ in range(25):  # 2 ** 25 leaves when written out
        node = [node, node]
    result = restricted(pickle.dumps(node))
    assert result[0] is result[1]


def is_allowed(node: Any) -> bool:
    if isinstance(node, dict):
        return all(map(is_allowed, [*node, *node.values()]))
    if isinstance(node, (list, tuple)):
        return all(map(is_allowed, node))
    if isinstance(node, np.ndarray):
        return not node.dtype.hasobject
    return node is None or type(node) in (str, bytes, int, float, bool)


VICTIM = pickle.dumps({"S1": {"Walking": [np.zeros((2, 17, 2), "f4")], "n": np.float64(1)}}, 4)


@given(
    flips=st.lists(
        st.tuples(st.integers(0, len(VICTIM) - 1), st.integers(0, 255)), min_size=1, max_size=4
    ),
    length=st.integers(0, len(VICTIM)) | st.just(len(VICTIM)),
)
def test_damage_gives_a_value_error_or_harmless_values(
    flips: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(VICTIM)
    for position, value in flips:
        data[position] = value
    try:
        assert is_allowed(restricted(bytes(data[:length])))
    except ValueError as error:
        assert str(error)


def npz(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(f"{name}.npy", content)
    return path


def test_read_npz_reads_plain_arrays_too(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(3), b=np.array({"k": 1}, dtype=object), c=np.zeros(2))
    result = read_npz(path, ["a"], ["b", "missing"])
    assert sorted(result) == ["a", "b"]
    np.testing.assert_array_equal(result["a"], np.arange(3))
    assert result["b"] == {"k": 1}


def test_truncated_files_are_refused_at_every_length(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez_compressed(whole, positions_3d={"S1": {"a": np.random.default_rng(0).random((9, 9))}})
    data = whole.read_bytes()
    path = tmp_path / "part.npz"
    for length in [*range(0, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:length])
        what = "is truncated or damaged" if length > 1 else "is not an .npz file"
        with pytest.raises(ValueError, match=f"part.npz {what}"):
            read_npz(path, ["positions_3d"])


def test_flipped_bits_are_noticed_by_the_checksum(tmp_path: Path) -> None:
    whole = tmp_path / "whole.npz"
    np.savez(whole, positions_3d=np.array({"a": np.zeros(500)}, dtype=object))
    data = bytearray(whole.read_bytes())
    data[len(data) // 2] ^= 1  # amid the zeros
    path = tmp_path / "flipped.npz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"flipped\.npz"):
        read_npz(path, ["positions_3d"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"subject,action\nS1,Walking\n", "is not an .npz file"),
        (b"", "is not an .npz file"),
        (b"\x93NUMPY\x01\x00", "is not an .npz file"),
    ],
)
def test_other_files_are_named_as_such(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_npz(path, ["positions_3d"])


def test_missing_file_and_missing_entry(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.npz: there is no such file"):
        read_npz(tmp_path / "nowhere.npz", ["a"])
    np.savez(tmp_path / "x.npz", other=np.zeros(1), more=np.zeros(1))
    with pytest.raises(ValueError, match="has no entry 'positions_3d'; it holds more, other"):
        read_npz(tmp_path / "x.npz", ["positions_3d"])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no magic",
        b"\x93NUMPY\x01\x00\x10\x00{'descr': 'f4'",
        b"\x93NUMPY\x01\x00\x0a\x00__import__",
        b"\x93NUMPY\x09\x00",
    ],
)
def test_damaged_entries(content: bytes, tmp_path: Path) -> None:
    path = npz(tmp_path / "x.npz", positions_3d=content)
    with pytest.raises(ValueError, match=r"x\.npz: entry 'positions_3d'|x\.npz is truncated"):
        read_npz(path, ["positions_3d"])


def test_a_structured_array_of_objects_is_refused(tmp_path: Path) -> None:
    stream = io.BytesIO()
    npy.write_array(stream, np.zeros(1, [("a", "O")]), allow_pickle=True)
    path = npz(tmp_path / "x.npz", positions_3d=stream.getvalue())
    with pytest.raises(ValueError, match="structured array that holds"):
        read_npz(path, ["positions_3d"])
