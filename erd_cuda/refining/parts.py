"""What is to be refined, cut into parts: each is read, refined and written on its own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor

from erd_cuda.refining.keypoint_input import read_input
from erd_cuda.refining.refiner import Cost, Refiner, Stopwatch
from erd_cuda.refining.result_file import RESULT_SUFFIXES, write_results
from erd_cuda.refining.units import SAMPLE

__all__ = [
    "Part",
    "Refused",
    "has_results",
    "part_warnings",
    "plan",
    "refine_part",
    "source_files",
    "try_part",
]


#: How many parts are searched for one whose first rows can be read.
SEARCHED = 20


@dataclass(frozen=True)
class Part:
    """One file, or some row groups of a Parquet file.

    Attributes:
        source: the file, relative to the input's folder.
        output: what is made of it, relative to the output's folder.
        row_groups: of a Parquet file; of other files there are none.
        first: number of its first row in the file.
    """

    source: str
    output: str
    row_groups: tuple[int, ...] = ()
    first: int = 0


@dataclass(frozen=True)
class Refused:
    """A part that cannot be refined, or a Parquet file that cannot be cut into parts.

    Attributes:
        sentence: what is wrong with its file; never empty.
    """

    sentence: str


def has_results(out: Path, source: str) -> bool:
    """Whether something has been made of this file in ``out``."""
    target = out / source
    if target.suffix != ".parquet":
        return target.exists()
    number = re.compile(re.escape(target.stem) + r"-\d{5,}\.parquet")
    folder = target.parent
    return folder.is_dir() and any(number.fullmatch(path.name) for path in folder.iterdir())


def source_files(source: Path) -> tuple[Path, list[str]]:
    """The folder of the input, and the names in it of what is to be refined.

    Args:
        source: a Parquet file, or a folder with Parquet files, .npz files and pose files, at any
            depth. Names that begin with a dot or an underscore are none of the data's.

    Raises:
        ValueError: there is nothing to refine.
    """
    if source.is_file():
        return source.parent, [source.name]
    found = []
    for folder, folders, files in os.walk(source):
        folders[:] = [name for name in folders if name[0] not in "._"]
        at = PurePosixPath(Path(folder).relative_to(source).as_posix())
        found += [
            str(at / name)
            for name in files
            if name[0] not in "._" and Path(name).suffix in (*RESULT_SUFFIXES, ".parquet")
        ]
    if not found:
        raise ValueError(f"{source} holds no .parquet, .npz or .safetensors files to refine")
    return source, sorted(found)


def plan(
    folder: Path, sources: list[str], refiner: Refiner, part_rows: int
) -> tuple[list[Part], list[Refused], Path | None]:
    """The parts of these files, in order, and the first Parquet file with roots, if there is one.

    Whole row groups of a Parquet file are put together until they have ``part_rows`` rows. A file
    that is damaged, or whose columns are not what the model takes, has none: it is refused.

    Raises:
        ValueError: all files are refused; the sentence is the first one's.
        ImportError: there are Parquet files and pyarrow is not installed.
    """
    parts: list[Part] = []
    refused: list[Refused] = []
    rooted = None
    for source in sources:
        name = PurePosixPath(source)
        if name.suffix != ".parquet":
            parts.append(Part(source, source))
            continue
        try:
            found, has_root = _parquet_parts(folder, name, refiner, part_rows)
        except ValueError as error:
            refused.append(_refused(error))
            continue
        parts += found
        if has_root and rooted is None:
            rooted = folder / name
    if not parts:
        raise ValueError(refused[0].sentence)
    return parts, refused, rooted


def _parquet_parts(
    folder: Path, name: PurePosixPath, refiner: Refiner, part_rows: int
) -> tuple[list[Part], bool]:
    from erd_cuda.refining import parquet

    path = folder / name
    with parquet.open_file(path) as file:
        columns = file.schema_arrow
        parquet.check_columns(path, columns, refiner.erd.num_joints)
        if "pose" not in columns.names and refiner.erd.lifter is None:
            raise ValueError(
                f"the model has no lifter, so {path} must hold initial poses (a column pose)"
            )
        has_root = "root" in columns.names
        refiner.check_root(has_root, path)
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    parts: list[Part] = []
    groups: list[int] = []
    first = rows = 0
    for group, size in enumerate(sizes):
        groups.append(group)
        rows += size
        if rows >= part_rows or group + 1 == len(sizes):
            output = name.with_name(f"{name.stem}-{len(parts):05d}.parquet")
            parts.append(Part(str(name), str(output), tuple(groups), first))
            first, groups, rows = first + rows, [], 0
    empty = Part(str(name), str(name.with_name(f"{name.stem}-00000.parquet")))
    return parts or [empty], has_root


def part_warnings(parts: list[Part], folder: Path, refiner: Refiner) -> list[str]:
    """`Refiner.unit_warnings` of the first rows of the first part that is not wrong.

    What is wrong with the others `try_part` says.
    """
    for part in parts[:SEARCHED]:
        with suppress(ValueError):
            return _part_warnings(part, folder, refiner)
    return []


def _part_warnings(part: Part, folder: Path, refiner: Refiner) -> list[str]:
    source = folder / part.source
    if source.suffix != ".parquet":
        data = read_input(source)
        refiner.check(data, source)
        return refiner.unit_warnings(data, source)
    from erd_cuda.refining import parquet

    with parquet.open_file(source) as file:
        rows = parquet.batches(
            source, file, part.row_groups, part.first, refiner.erd.num_joints, SAMPLE
        )
        return next((refiner.unit_warnings(data, source) for _, data in rows), [])


def try_part(part: Part, folder: Path, out: Path, refiner: Refiner) -> Cost | Refused:
    """`refine_part`, or what is wrong with the part's file: the others can be refined all the same.

    Raises:
        OSError: no part can be read or written, then.
    """
    try:
        return refine_part(part, folder, out, refiner)
    except ValueError as error:
        return _refused(error)


def _refused(error: ValueError) -> Refused:
    return Refused(str(error) or repr(error))


def refine_part(part: Part, folder: Path, out: Path, refiner: Refiner) -> Cost:
    """Refine a part and write its output, which is there whole or not at all.

    Raises:
        ValueError: something in the part's file is wrong.
    """
    watch = Stopwatch()
    source, target = folder / part.source, out / part.output
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix == ".parquet":
        return _refine_rows(part, source, target, refiner, watch)
    data = read_input(source)
    refiner.check(data, source)
    results = refiner(data)
    write_results(target, results)
    return watch.cost(len(data), int((results["status"] != 0).sum()))


def _refine_rows(
    part: Part, source: Path, target: Path, refiner: Refiner, watch: Stopwatch
) -> Cost:
    from erd_cuda.refining import parquet

    joints = refiner.erd.num_joints
    poses = failed = 0
    with parquet.open_file(source) as file:

        def results() -> Iterator[tuple[Any, dict[str, Tensor]]]:
            nonlocal poses, failed
            for batch, data in parquet.batches(
                source, file, part.row_groups, part.first, joints, refiner.options.batch_size
            ):
                refiner.check(data, source)
                refined = refiner(data)
                poses += len(data)
                failed += int((refined["status"] != 0).sum())
                yield batch, refined

        stages = refiner.kept_stages if refiner.options.stages else None
        parquet.write_part(target, file.schema_arrow, joints, stages, results())
    return watch.cost(poses, failed)
