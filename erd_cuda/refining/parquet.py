"""Samples from the columns of a Parquet file, and results as columns beside those of the input.

A row is a sample and a column has the name and meaning that an array of an .npz input has. Lists
are fixed-size or not, nested or flat; files are streamed, a batch of rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erd_cuda._files import replacing
from erd_cuda.refining.keypoint_input import (
    OPTIONAL,
    REQUIRED,
    KeypointInput,
    check_finite,
    from_arrays,
)

try:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq
except ImportError as error:
    raise ImportError(
        "Parquet files need the package pyarrow: pip install 'erd-cuda[scale]'"
    ) from error

__all__ = ["batches", "check_columns", "open_file", "write_part"]

RESULTS = ("pose", "root", "status", "stages")

# What is read from a file ahead of its decoding, so that a row group may be larger than the memory.
READ_BUFFER = 1 << 20
# Results are collected up to this many rows: small row groups make Parquet files slow to read.
ROWS_PER_GROUP = 131_072


def open_file(path: Path) -> Any:
    """The Parquet file, of which only the footer has been read.

    Raises:
        ValueError: it is none, or damaged.
    """
    try:
        return pq.ParquetFile(path, buffer_size=READ_BUFFER, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable Parquet file ({_first_line(error)})") from error


def check_columns(path: Path, schema: Any, joints: int) -> None:
    """Raise a ValueError for columns that are missing, of the wrong type, or of a fixed shape that
    no model with so many joints takes."""
    names = ", ".join(schema.names) or "nothing"
    for name in REQUIRED:
        if name not in schema.names:
            raise ValueError(f"{path} has no column {name}; it holds {names}")
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise ValueError(f"{path} has more than one column {name}")
        if name in (*REQUIRED, *OPTIONAL):
            _check_type(path, name, schema.field(name).type, joints)
        elif name in RESULTS:
            raise ValueError(
                f"{path} has a column {name}, which is the name of a result; rename it"
            )


def batches(
    path: Path, file: Any, row_groups: tuple[int, ...], first: int, joints: int, size: int
) -> Iterator[tuple[Any, KeypointInput]]:
    """Rows of some row groups, ``size`` at a time: as they are, and as samples.

    Args:
        path: of the file, for sentences about it.
        file: from `open_file`.
        row_groups: numbers of the row groups to read.
        first: number of their first row in the file.
        joints: J of the model.
        size: rows at a time.

    Raises:
        ValueError: the file is damaged, a column has the wrong shape, or holds nulls, NaN or
            infinity where a number is needed.
    """
    try:
        for batch in file.iter_batches(size, row_groups=list(row_groups), use_threads=False):
            arrays = {
                name: _numbers(path, name, batch.column(name), joints)
                for name in (*REQUIRED, *OPTIONAL)
                if name in batch.schema.names
            }
            data = from_arrays(path, arrays)
            check_finite(path, data, first)
            first += len(data)
            yield batch, data
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is a damaged Parquet file ({_first_line(error)})") from error


def write_part(
    path: Path,
    schema: Any,
    joints: int,
    stages: int | None,
    results: Iterator[tuple[Any, dict[str, Tensor]]],
) -> None:
    """Write the results of one part, replacing ``path`` when they are complete.

    Args:
        path: the Parquet file to write.
        schema: of the input; columns that mean nothing to the model are passed on.
        joints: J.
        stages: how many poses of a sample the column ``stages`` holds; None for no such column.
        results: batches of the input and what `Refiner` made of them.
    """
    passed = [f for f in schema if f.name not in (*REQUIRED, *OPTIONAL)]
    pose = pa.list_(pa.list_(pa.float32(), 3), joints)
    fields = [("pose", pose), ("root", pa.list_(pa.float32(), 3)), ("status", pa.int32())]
    if stages is not None:
        fields.append(("stages", pa.list_(pose, stages)))
    target = pa.schema([*passed, *(pa.field(name, kind, False) for name, kind in fields)])
    # Of floats no two are equal: a dictionary of them would only cost time.
    repeated = [f.name for f in passed]
    waiting, rows = [], 0
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, target, use_dictionary=repeated) as writer,
    ):
        for batch, result in results:
            columns = [batch.column(f.name) for f in passed]
            for name, kind in fields:
                values = result[name]
                columns.append(
                    _column(values.transpose(0, 1) if name == "stages" else values, kind)
                )
            waiting.append(pa.RecordBatch.from_arrays(columns, schema=target))
            rows += batch.num_rows
            if rows >= ROWS_PER_GROUP:
                writer.write_table(pa.Table.from_batches(waiting))
                waiting, rows = [], 0
        writer.write_table(pa.Table.from_batches(waiting, schema=target))


def _column(values: Tensor, kind: Any) -> Any:
    sizes = values.shape[1:]
    column = pa.array(values.contiguous().numpy().reshape(-1))
    for size in reversed(sizes):
        column = pa.FixedSizeListArray.from_arrays(column, size)
    return column.cast(kind)


def _shapes(name: str, joints: int) -> tuple[tuple[int, ...], ...]:
    """What a row of the column may look like; the last of those with as many numbers is meant."""
    if name == "keypoints":
        return ((2 * joints,), (3 * joints,), (joints, 2), (joints, 3))
    if name == "pose":
        return ((3 * joints,), (joints, 3))
    return {"camera": ((4,),), "confidence": ((joints,),), "root": ((3,),)}.get(name, ((),))


def _check_type(path: Path, name: str, kind: Any, joints: int) -> None:
    """The numbers and, as far as a type fixes it, the shape of a column."""
    shape: list[int | None] = []
    if isinstance(kind, pa.FixedShapeTensorType):
        shape, kind = list(kind.shape), kind.value_type
    while pa.types.is_nested(kind) and hasattr(kind, "value_type"):
        shape.append(kind.list_size if pa.types.is_fixed_size_list(kind) else None)
        kind = kind.value_type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise ValueError(f"column {name} in {path} must hold real numbers, got {kind}")
    allowed = _shapes(name, joints)
    if not any(
        len(shape) == len(one) and all(a in (None, b) for a, b in zip(shape, one, strict=True))
        for one in allowed
    ):
        raise ValueError(_shape_sentence(path, name, tuple(shape), allowed, joints))


def _numbers(path: Path, name: str, column: Any, joints: int) -> Tensor:
    """A column as a float32 tensor (N, ...) of the shape that an array of that name has."""
    count, shape = len(column), []
    if isinstance(column.type, pa.FixedShapeTensorType):
        # Its storage is flat.
        shape, column = list(column.type.shape), column.storage.flatten()
    while True:
        if column.null_count:
            raise ValueError(f"column {name} in {path} holds nulls; leave such rows out")
        if not pa.types.is_nested(column.type):
            break
        if pa.types.is_fixed_size_list(column.type):
            shape.append(column.type.list_size)
        else:
            lengths = pc.min_max(pc.list_value_length(column)).as_py()
            if lengths["min"] != lengths["max"]:
                raise ValueError(f"column {name} in {path} holds lists of different lengths")
            shape.append(lengths["min"])
        column = column.flatten()
    allowed = _shapes(name, joints)
    if tuple(shape) not in allowed:
        raise ValueError(_shape_sentence(path, name, tuple(shape), allowed, joints))
    meant = [one for one in allowed if np.prod(one) == np.prod(shape)][-1]
    values = np.asarray(column, dtype=np.float32).reshape(count, *meant)
    return torch.from_numpy(np.array(values))


def _shape_sentence(path: Path, name: str, shape: Any, allowed: Any, joints: int) -> str:
    def text(one: Any) -> str:
        return " x ".join("?" if n is None else str(n) for n in one) or "one"

    return (
        f"column {name} in {path} must hold {' or '.join(map(text, allowed))} numbers a row for a "
        f"model with {joints} joints, got {text(shape)}"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
