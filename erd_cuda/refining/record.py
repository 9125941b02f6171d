"""The record that a folder of refined poses keeps of the run that makes it.

A run that was stopped goes on by leaving out the parts whose files are there. That is right only if
they came of the same model, the same options and the same input, which this record says.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from erd_cuda._files import remove_leftovers, write_text
from erd_cuda._model_file import find_model
from erd_cuda._version import __version__
from erd_cuda.refining.parts import has_results
from erd_cuda.refining.refiner import RefineOptions

__all__ = ["RECORD", "begin_or_continue", "model_hash"]

#: Readers of Parquet folders pass over names that begin with an underscore.
RECORD = "_refine.json"
FORMAT = 1


def model_hash(model: str) -> str:
    """Tells the contents of model files apart."""
    return hashlib.sha256(find_model(model).read_bytes()).hexdigest()


def begin_or_continue(
    out: Path,
    folder: Path,
    sources: list[str],
    options: RefineOptions,
    mode: str,
    part_rows: int,
) -> None:
    """Make ``out`` the folder of this run, or find that it is already.

    Files that the input has got since are welcome, and so are changes of those that nothing has
    been made of, because something was wrong with them. What a killed run had begun to write is
    removed, so one run at a time may write to a folder.

    Args:
        out: the folder of the refined poses; its parent exists.
        folder, sources: the input.
        options: of the run.
        mode: where the roots come from.
        part_rows: as in `parts.plan`.

    Raises:
        ValueError: ``out`` holds the results of other settings, of input that has changed, or
            something else.
    """
    settings = {
        "model": model_hash(options.model),
        "root": mode,
        "stages": options.stages,
        "batch_size": options.batch_size,
        "part_rows": part_rows,
        "device": options.device.partition(":")[0],
        "precision": options.precision,
        "erd_cuda": __version__,
    }
    files = {name: _state(folder / name) for name in sources}
    path = out / RECORD
    if path.is_file():
        _check(out, _read(path), settings, files)
        remove_leftovers(out)
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(
            f"{out} is not empty and holds no poses of an earlier run; name another folder"
        )
    out.mkdir(exist_ok=True)
    record = {"erd_cuda_refine": FORMAT, "settings": settings, "files": files}
    write_text(path, json.dumps(record, indent=1) + "\n")


def _state(path: Path) -> list[int]:
    about = path.stat()
    return [about.st_size, about.st_mtime_ns]


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record["erd_cuda_refine"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the record of an earlier run; remove it") from error
    if version != FORMAT:
        raise ValueError(f"{path} has format {version!r}, this version reads format {FORMAT}")
    found: dict[str, Any] = record
    # Runs from before there was a choice.
    found["settings"].setdefault("precision", "auto")
    return found


def _check(
    out: Path, record: dict[str, Any], settings: dict[str, Any], files: dict[str, list[int]]
) -> None:
    other = [
        "another model" if name == "model" else f"{name} {there!r} there, {settings[name]!r} here"
        for name, there in record["settings"].items()
        if there != settings.get(name)
    ]
    if other:
        raise ValueError(
            f"{out} holds poses refined otherwise ({'; '.join(other)}); name another folder"
        )
    for name, state in record["files"].items():
        if files.get(name) != state and has_results(out, name):
            what = "has changed" if name in files else "is gone"
            raise ValueError(f"{name} {what} since it was refined into {out}; name another folder")
