"""Parquet files of small samples, for the tests of refining data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from small_training import held_out_set


def samples(count: int) -> dict[str, np.ndarray]:
    """Arrays by the names of an .npz input: the small test set, repeated, with noise."""
    data = held_out_set()
    rows = np.arange(count) % len(data)
    noise = np.random.default_rng(5).normal(scale=3.0, size=(count, data.num_joints, 2))
    return {
        "keypoints": (data.keypoints.numpy()[rows] + noise).astype(np.float32),
        "camera": data.camera.intrinsics.numpy()[rows],
        "root": data.root.numpy()[rows],
    }


def column(values: np.ndarray, fixed: bool = True) -> Any:
    """Nested lists, of a size that the type fixes or not."""
    array = pa.array(values.reshape(-1))
    for size in reversed(values.shape[1:]):
        if fixed:
            array = pa.FixedSizeListArray.from_arrays(array, size)
        else:
            offsets = np.arange(0, len(array) + 1, size, dtype=np.int32)
            array = pa.ListArray.from_arrays(pa.array(offsets), array)
    return array


def table(arrays: dict[str, Any]) -> Any:
    """Arrays as columns, with two that mean nothing to a model before them."""
    count = len(next(iter(arrays.values())))
    columns = {
        "take": pa.array([f"take {i // 100}" for i in range(count)]).dictionary_encode(),
        "frame": pa.array(range(count)),
    }
    for name, values in arrays.items():
        columns[name] = column(values) if isinstance(values, np.ndarray) else values
    return pa.table(columns)


def write(path: Path, arrays: dict[str, Any], rows_per_group: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(arrays), path, row_group_size=rows_per_group)
    return path


def read(folder: Path) -> dict[str, np.ndarray]:
    """All files of an output, one after the other, as arrays by the names of an .npz output."""
    files = sorted(folder.rglob("*.parquet"))
    found = pa.concat_tables([pq.read_table(file) for file in files])
    arrays = {name: np.array(found[name].to_pylist()) for name in found.column_names}
    for name in ("pose", "root", "stages"):
        if name in arrays:
            arrays[name] = arrays[name].astype(np.float32)
    if "stages" in arrays:
        arrays["stages"] = arrays["stages"].swapaxes(0, 1)
    return arrays
